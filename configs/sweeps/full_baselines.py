"""Distillation baselines on all training images, each alone and with the graph over the training set.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_baselines.py:cifar100 --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_baselines.py:mini_imagenet --out=DIR \
        --config.data.manual_dir=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_baselines.py:cifar100-cpu --out=DIR

The CNN student costs about as much as a graph student with `stem`. The teacher and the students are trained with the
recipe `fast`, and there are three seeds. One student is like the teacher. With `-cpu`, there are one seed, few epochs
and no augmentation, so that the outputs of the teacher are computed only once.
"""

from cnn2gnn_jax.configs.sweeps import full, grids

METHODS = ("ce", "kd", "dkd", "at", "rkd", "pkt", "crd")
CPU_EPOCHS = 5

WORDS = full.WORDS


def sweep(add: grids.Add, word: str = "") -> None:
    data, size = full.parse(word)
    pairs = [("resnet8", method) for method in METHODS]
    if size != "cpu":
        pairs.append((full.config(data, size).teacher.network, "ce"))
    for seed in range(1 if size == "cpu" else 3):
        for network, method in pairs:
            config = full.config(data, size, backbone="stem")
            config.method, config.seed = method, seed
            config.student.network, config.student.train.recipe = network, "fast"
            if size == "cpu":
                config.student.train.epochs, config.student.train.augment = CPU_EPOCHS, False
            config.evaluate.training_set.enabled = True
            add(
                config,
                "methods",
                f"Baselines over {full.title(data, size)}",
                row=method,
                column=f"{config.teacher.network}-{network}",
            )
