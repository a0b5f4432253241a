"""The graph student over all training images, with and without a teacher, over each kind of node features.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_students.py:cifar100 --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_students.py:mini_imagenet --out=DIR \
        --config.data.manual_dir=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_students.py:cifar100-cpu --out=DIR

The settings are the paper's: batch 100, s = 50, tau = 48, learning rate 0.01, 200 epochs. With `-cpu` there are fewer
epochs, see configs/sweeps/full.py. Beside each student with the learned graph stands the same one trained without.
"""

from cnn2gnn_jax.configs.sweeps import full, grids

WORDS = full.WORDS


def sweep(add: grids.Add, word: str = "") -> None:
    data, size = full.parse(word)
    for backbone in ("teacher", "pixels", "stem"):
        for method in ("cnn2gnn", "gnn"):
            config = full.config(data, size, backbone)
            config.method, config.seeds = method, 1 if size and backbone == "stem" else 3
            row = method if backbone == "stem" else f"{method}, {backbone}"
            column = f"{config.teacher.network}-graph"
            add(config, "methods", f"Students over {full.title(data, size)}", row=row, column=column)
