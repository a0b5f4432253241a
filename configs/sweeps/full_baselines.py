"""Distillation baselines on all training images. The CNN student costs about as much as a graph student with `stem`.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_baselines.py:cifar100 --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_baselines.py:mini_imagenet --out=DIR \
        --config.data.manual_dir=DIR

The teacher and the students are trained with the recipe `fast`. There are three seeds.
"""

from cnn2gnn_jax.configs.sweeps import full, grids

METHODS = ("ce", "kd", "dkd", "rkd", "pkt", "crd", "at")

WORDS = ("", *full.SMALL, *grids.DATA)


def sweep(add: grids.Add, word: str = "") -> None:
    data, size = full.parse(word)
    for seed in range(3):
        for method in METHODS:
            config = full.config(data, size, backbone="stem")
            config.method, config.seed = method, seed
            config.student.network, config.student.train.recipe = "resnet8", "fast"
            add(
                config,
                "methods",
                f"Baselines over {full.title(data, size)}",
                row=method,
                column=f"{config.teacher.network}-resnet8",
            )
