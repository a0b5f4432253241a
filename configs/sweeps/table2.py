"""Table 2 on Mini-ImageNet: all methods and all nine pairs, with ten seeds.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table2.py --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table2.py:smoke --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table2.py:digits --out=DIR

The full size needs accelerators. `smoke` (one small pair, 100 images per class, one seed) and `digits` (the data set is
digits, ten seeds) run on a laptop.
"""

from cnn2gnn_jax.configs.sweeps import grids


def sweep(add: grids.Add, size: str = "") -> None:
    grids.methods(add, "Table 2", "mini_imagenet", size)
