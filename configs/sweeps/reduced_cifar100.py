"""CIFAR-100 at a size for 2 CPU cores: KD, DKD, GNN, and CNN2GNN with each kind of node features.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/reduced_cifar100.py --out=DIR --config.data.manual_dir=DIR

The config is `configs/cifar100.py:smoke`: 100 training images per class and all test images. ResNet8 is the teacher
(8 epochs) and the CNN student. Students are trained for 6 epochs, with three seeds. `:smoke` is the same sweep, and
`:digits` is the same grid on digits.
"""

from cnn2gnn_jax.configs.sweeps import grids


def sweep(add: grids.Add, size: str = "") -> None:
    title = "digits" if size == "digits" else "CIFAR-100, reduced"
    for seed in range(3):
        for method in ("cnn2gnn", "gnn", "kd", "dkd"):
            for backbone in ("stem", "pixels", "teacher", "pair") if method == "cnn2gnn" else ("stem",):
                config = grids.base("cifar100", size or "smoke")
                config.seed, config.method, config.student.backbone = seed, method, backbone
                row = method if backbone == "stem" else f"{method}, {backbone}"
                add(config, "methods", title, row=row, column=grids.pairs(size or "smoke")[0])
                if method == "cnn2gnn":
                    add(config, "settings", f"Node features on {title}", setting=backbone)
