"""Table 2 on Mini-ImageNet: all rows for all nine pairs, ten seeds.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table2.py --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table2.py:smoke --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table2.py:digits --out=DIR

Full size is for accelerators. `smoke` (one small pair, 100 images a class, one seed) and `digits` (in place of the data
set, ten seeds) are for a laptop.
"""

from cnn2gnn_jax.configs.sweeps import grids


def sweep(add: grids.Add, size: str = "") -> None:
    grids.methods(add, "Table 2", "mini_imagenet", size)
