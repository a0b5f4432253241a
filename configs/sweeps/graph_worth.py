"""Measures what the graph contributes, for different fractions of labels, batch sizes, and losses without the graph.

The graph is Eq. 3, on the distances of the head or on Euclidean distances. Node features are pixels, and there are five
seeds. The student with the graph and its control without the graph each choose their learning rate on held-out training
images. If only a fraction of the labels is used, the held-out images are all the others.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/graph_worth.py:digits --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/graph_worth.py --out=DIR --config.data.manual_dir=DIR

Without a word after the colon, the data are the first 10 classes of CIFAR-100. Both sweeps together take about half an
hour on 2 CPU cores.
"""

from typing import Any

from ml_collections import ConfigDict

from cnn2gnn_jax.configs import cifar100
from cnn2gnn_jax.configs.sweeps import grids

HEAD, EUCLIDEAN = "head", "Euclidean"
LARGE = {"student.train.batch_size": 280, "evaluate.anchors": 280}
BOTH = {"student.graph_off_loss_weight": 1.0}
# Candidate learning rates. With few labels and large batches, an epoch has only one or two steps, so rates are higher.
RATES, LARGE_RATES = (0.005, 0.01, 0.02, 0.04), (0.01, 0.02, 0.04, 0.08)
# Fraction of the training images whose labels are used, distances of Eq. 3, sparsity s, and other fields. Settings with
# the same control are next to each other.
DIGITS: list[tuple[float, str, int, dict[str, Any]]] = [
    (1.0, HEAD, 50, {}),
    (1.0, EUCLIDEAN, 5, {}),
    (0.2, EUCLIDEAN, 5, LARGE),
    (0.2, HEAD, 30, {**LARGE, **BOTH}),
    (0.2, EUCLIDEAN, 5, {**LARGE, **BOTH}),
]
CIFAR100: list[tuple[float, str, int, dict[str, Any]]] = [
    (fraction, distances, s, fields)
    for fraction, fields in ((1.0, {}), (0.1, {**LARGE, **BOTH}))
    for distances, s in ((HEAD, 30), (EUCLIDEAN, 5))
]


def sweep(add: grids.Add, size: str = "") -> None:
    title = "digits" if size == "digits" else f"CIFAR-100, 10 classes{', smoke' * (size == 'smoke')}"
    for fraction, distances, sparsity, fields in DIGITS if size == "digits" else CIFAR100:
        setting = [f"{round(100 * fraction)}% of the labels", f"{distances}, s = {sparsity}"]
        setting += [f"{field.rpartition('.')[2]} {value}" for field, value in fields.items()]
        config = _config(size, fraction, {field: value for field, value in fields.items() if field not in BOTH})
        control = ConfigDict(config.to_dict())
        control.method = "cnn2gnn_off"
        config.student.graph = "learned" if distances == HEAD else "euclidean_sparse"
        config.student.sparsity, config.student.graph_off_loss_weight = (
            sparsity,
            fields.get("student.graph_off_loss_weight", 0.0),
        )
        tune = {"student.train.learning_rate": LARGE_RATES if "evaluate.anchors" in fields else RATES}
        for arm in (config, control):
            add(arm, "settings", f"What the graph is worth on {title}", setting="; ".join(setting), tune=tune)


def _config(size: str, fraction: float, fields: dict[str, Any]) -> ConfigDict:
    """The config that the student with the graph and its control have in common."""
    if size == "digits":
        config = grids.digits_config()
    else:
        config = cifar100.get_config("smoke")
        config.data.classes, config.data.limit = 10, 300 if size == "smoke" else 500
    config.data.holdout = round(1 - fraction, 4)
    config.seeds, config.student.backbone, config.evaluate.graph_off = 5, "pixels", False
    # Each fraction is trained on about the same total number of images.
    config.student.train.epochs = round(40 / fraction)
    config.update_from_flattened_dict(fields)
    return config
