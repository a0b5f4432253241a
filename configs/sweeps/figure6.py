"""Figure 6: accuracy as a function of the batch size. Training, anchors and test batches all have this size.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/figure6.py --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/figure6.py:digits --out=DIR

The paper shows its sizes only in the figure. The sparsity s is 50 throughout.
"""

from cnn2gnn_jax.configs.sweeps import grids

SIZES = (60, 80, 100, 150, 200)


def sweep(add: grids.Add, size: str = "") -> None:
    for config, place in grids.curves(size):
        for batch_size in SIZES:
            config.student.train.batch_size = config.evaluate.batch_size = batch_size
            add(config, "curve", "Figure 6, batch size", x=batch_size, **place)
