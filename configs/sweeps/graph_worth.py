"""Whether the graph helps: few labels, many anchors, training with and without the graph under one classifier; Eq. 3 on
the head's distances and on Euclidean ones. Students over raw pixels, five seeds.

The student with the graph and its control without it each choose their learning rate on held-out training images. Where
a part of the labels is kept, the held-out images are all those whose labels were dropped.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/graph_worth.py:digits --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/graph_worth.py --out=DIR --config.data.manual_dir=DIR

Without a size it is CIFAR-100's first 10 classes. Both together take about half an hour on 2 CPU cores.
"""

from typing import Any

from ml_collections import ConfigDict

from cnn2gnn_jax.configs import cifar100
from cnn2gnn_jax.configs.sweeps import grids

HEAD, EUCLIDEAN = "head", "Euclidean"
LARGE = {"student.train.batch_size": 280, "evaluate.anchors": 280}
BOTH = {"student.off_weight": 1.0}
# The learning rates that are tried. Few labels in large batches make a step or two an epoch: higher rates.
RATES, LARGE_RATES = (0.005, 0.01, 0.02, 0.04), (0.01, 0.02, 0.04, 0.08)
# The part of the training images whose labels are kept, the distances, s, and further fields; what shares a control
# stands together.
DIGITS: list[tuple[float, str, int, dict[str, Any]]] = [
    (1.0, HEAD, 50, {}),
    (1.0, EUCLIDEAN, 5, {}),
    (0.2, EUCLIDEAN, 5, LARGE),
    (0.2, HEAD, 30, {**LARGE, **BOTH}),
    (0.2, EUCLIDEAN, 5, {**LARGE, **BOTH}),
]
CIFAR100: list[tuple[float, str, int, dict[str, Any]]] = [
    (part, distances, s, fields)
    for part, fields in ((1.0, {}), (0.1, {**LARGE, **BOTH}))
    for distances, s in ((HEAD, 30), (EUCLIDEAN, 5))
]


def sweep(add: grids.Add, size: str = "") -> None:
    title = "digits" if size == "digits" else f"CIFAR-100, 10 classes{', smoke' * (size == 'smoke')}"
    for part, distances, sparsity, fields in DIGITS if size == "digits" else CIFAR100:
        words = [f"{round(100 * part)}% of the labels", f"{distances}, s = {sparsity}"]
        words += [f"{field.rpartition('.')[2]} {value}" for field, value in fields.items()]
        config = _config(size, part, {field: value for field, value in fields.items() if field not in BOTH})
        control = ConfigDict(config.to_dict())
        control.method = "cnn2gnn_off"
        config.student.graph = "learned" if distances == HEAD else "euclidean_sparse"
        config.student.sparsity, config.student.off_weight = sparsity, fields.get("student.off_weight", 0.0)
        tune = {"student.train.learning_rate": LARGE_RATES if "evaluate.anchors" in fields else RATES}
        for arm in (config, control):
            add(arm, "settings", f"What the graph is worth on {title}", setting="; ".join(words), tune=tune)


def _config(size: str, part: float, fields: dict[str, Any]) -> ConfigDict:
    """What the student with the graph has in common with its control."""
    if size == "digits":
        config = grids.digits_config()
    else:
        config = cifar100.get_config("smoke")
        config.data.classes, config.data.limit = 10, 300 if size == "smoke" else 500
    config.data.holdout = round(1 - part, 4)
    config.seeds, config.student.backbone, config.evaluate.graph_off = 5, "pixels", False
    # About as many images are seen, whatever part is left.
    config.student.train.epochs = round(40 / part)
    config.update_from_flattened_dict(fields)
    return config
