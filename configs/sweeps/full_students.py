"""The graph student on all training images, with and without a teacher, for each kind of node features.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_students.py:cifar100 --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_students.py:mini_imagenet --out=DIR \
        --config.data.manual_dir=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_students.py:cifar100-cpu --out=DIR

The settings are those of the paper: batch size 100, s = 50, tau = 48, learning rate 0.01, 200 epochs. `-cpu` reduces
the number of epochs; see configs/sweeps/full.py. Each student is also trained without its graph,
and both are evaluated with the graph over the training set, too.
"""

from cnn2gnn_jax.configs.sweeps import full, grids

WORDS = full.WORDS


def sweep(add: grids.Add, word: str = "") -> None:
    data, size = full.parse(word)
    for backbone in ("teacher", "pixels", "stem"):
        for method in ("cnn2gnn", "gnn"):
            config = full.config(data, size, backbone)
            config.method, config.seeds = method, 1 if size and backbone == "stem" else 3
            config.evaluate.training_set.enabled = True
            row = method if backbone == "stem" else f"{method}, {backbone}"
            column = f"{config.teacher.network}-graph"
            add(config, "methods", f"Students over {full.title(data, size)}", row=row, column=column)
