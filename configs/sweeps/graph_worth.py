"""Whether the graph helps: few labels, sparsity, batch size, anchors, classes in a batch, training with and without the
graph under one classifier; Eq. 3 on the head's distances and on Euclidean ones. Students over raw pixels, five seeds.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/graph_worth.py:digits --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/graph_worth.py --out=DIR --config.data.manual_dir=DIR

Without a size it is CIFAR-100's first 10 classes, over pixels and over the teacher's features.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import cifar100
from configs.sweeps import grids

HEAD, EUCLIDEAN = "head", "Euclidean"
LARGE = {"student.train.batch_size": 280, "evaluate.anchors": 280}
# The part of the training images whose labels are kept, the distances, s, and further fields.
DIGITS: list[tuple[float, str, int, dict[str, Any]]] = [
    *((part, distances, s, {}) for part in (1.0, 0.5, 0.2, 0.1) for distances, s in ((HEAD, 50), (EUCLIDEAN, 5))),
    *((0.2, HEAD, s, LARGE) for s in (10, 30, 60)),
    *((0.2, EUCLIDEAN, s, LARGE) for s in (2, 5, 20)),
    (0.2, HEAD, 30, {**LARGE, "student.off_weight": 1.0}),
    (0.2, EUCLIDEAN, 5, {**LARGE, "student.off_weight": 1.0}),
    (0.2, HEAD, 30, {"student.classes_per_batch": 5}),
    (0.2, EUCLIDEAN, 5, {"evaluate.anchors": 50}),
]
CIFAR100: list[tuple[float, str, int, dict[str, Any]]] = [
    (part, distances, s, {"student.backbone": backbone})
    for backbone in ("pixels", "teacher")
    for part in (1.0, 0.1)
    for distances, s in ((HEAD, 30), (EUCLIDEAN, 5))
] + [
    (0.1, distances, s, {"student.backbone": "pixels", **fields, "student.off_weight": 1.0})
    for distances, s in ((HEAD, 30), (EUCLIDEAN, 5))
    for fields in ({}, LARGE)
]


def sweep(add: grids.Add, size: str = "") -> None:
    for part, distances, sparsity, fields in DIGITS if size == "digits" else CIFAR100:
        config = grids.digits_config() if size == "digits" else _cifar100(size)
        config.data.holdout = round(1 - part, 4)  # held-out images are those whose labels nobody sees
        config.seeds, config.student.backbone, config.student.sparsity = 5, "pixels", sparsity
        config.student.graph = "learned" if distances == HEAD else "euclidean_sparse"
        # About as many images are seen, whatever part is left.
        config.student.train.epochs = round(40 / part)
        config.update_from_flattened_dict(fields)
        words = [f"{round(100 * part)}% of the labels", f"{distances}, s = {sparsity}"]
        words += [f"{field.rpartition('.')[2]} {value}" for field, value in fields.items()]
        title = "digits" if size == "digits" else f"CIFAR-100, 10 classes{', smoke' * (size == 'smoke')}"
        add(config, "settings", f"What the graph is worth on {title}", setting="; ".join(words))


def _cifar100(size: str) -> ConfigDict:
    config = cifar100.get_config("smoke")
    config.data.classes, config.data.limit = 10, 100 if size == "smoke" else 500
    return config
