"""Choices that the paper leaves open, compared on held-out training images: node features, self-loops, the factor tau
squared, the sparsity and the graph of Mechanism 2.

The data are the first 20 classes of CIFAR-100, with 100 training and 25 held-out images each. There are three seeds.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/choices.py --out=DIR --config.data.manual_dir=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/choices.py:digits --out=DIR
"""

from typing import Any

from cnn2gnn_jax.configs.sweeps import grids

SETTINGS: dict[str, dict[str, Any]] = {
    "default (stem, s = 50, self-loops, tau squared, Mechanism 2 graph similar)": {},
    "node features: pixels": {"student.backbone": "pixels"},
    "node features: teacher": {"student.backbone": "teacher"},
    "node features: the pair's CNN": {"student.backbone": "pair"},
    "no self-loops": {"student.self_loops": False},
    "without tau squared": {"distill.tau_squared": False},
    "s = 10": {"student.sparsity": 10},
    "s = 30": {"student.sparsity": 30},
    "s = 70": {"student.sparsity": 70},
    "s = 90": {"student.sparsity": 90},
    "Mechanism 2 graph test_rows": {"evaluate.mechanism2_graph": "test_rows"},
}


def sweep(add: grids.Add, size: str = "") -> None:
    for seed in range(3):
        for setting, fields in SETTINGS.items():
            config = grids.base("cifar100", size or "smoke")
            if not size:
                config.data.classes, config.data.limit = 20, 125
            config.data.holdout, config.evaluate.split, config.seed = 0.2, "holdout", seed
            # The student without a graph is trained only for the default and for other node features.
            config.evaluate.graph_off = not fields or "student.backbone" in fields
            config.update_from_flattened_dict(fields)
            title = {"": "CIFAR-100, 20 classes", "smoke": "CIFAR-100, smoke", "digits": "digits"}[size]
            add(config, "settings", f"Choices, held-out images of {title}", setting=setting)
