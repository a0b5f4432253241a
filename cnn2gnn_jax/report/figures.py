"""Pictures of a run: confusions, and the neighbours that the head gives to test images (Figure 3)."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cnn2gnn_jax.data import Dataset, Split
from cnn2gnn_jax.runtime import storage

_SAME, _OTHER = "#1a7f37", "#b0b0b0"
_LONGEST = 18  # signs of a class name
_MOST_NAMED = 30  # classes whose names and counts fit


def _short(name: str) -> str:
    """A class name that fits over a picture; `$` would begin a formula."""
    return (name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…").replace("$", r"\$")


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    with storage.atomic_path(path) as beside:
        figure.savefig(beside, format="png", dpi=150, bbox_inches="tight")


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many images of class i were taken for class j, (classes, classes)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """The confusion matrix: a row for each true class, coloured by parts of its images, with counts where they fit."""
    size = len(classes)
    named = size <= _MOST_NAMED
    side = max(3.0, 0.42 * size) if named else 8.0
    figure = Figure(figsize=(side + 2, side + 1), layout="constrained")
    axis = figure.subplots()
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = axis.imshow(100 * parts, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, ax=axis, label="of the true class (%)", shrink=0.7)
    axis.set(xlabel="answer", ylabel="true class")
    if named:
        names = [_short(name) for name in classes]
        axis.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axis.set_yticks(range(size), names, fontsize=8)
        for i, j in np.argwhere(counts > 0):
            color = "white" if parts[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color=color)
    axis.spines[:].set_visible(False)
    return figure


def neighbors(examples: list[dict[str, Any]], dataset: Dataset, split: Split) -> Figure:
    """A row for each test image: the image, then its learned neighbours with their weights, strongest first.

    The bottom row has the last image again, with an anchor of each of some other classes. Weights are the image's row
    of A with its self-loop, scaled to sum to 1; a green frame marks the same class.
    """
    columns = 1 + max(1, *(len(example["neighbors"]) for example in examples), len(examples[-1]["others"]))
    shown = [*examples, {**examples[-1], "neighbors": examples[-1]["others"]}]
    figure = Figure(figsize=(1.15 * columns, 1.45 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for row, example in zip(axes, shown, strict=True):
        label = int(split.labels[example["test_index"]])
        predicted = dataset.classes[example["predicted"]]
        title = f"{_short(dataset.classes[label])}\nanswer {_short(predicted)}\nself {example['self_weight']:.2f}"
        _picture(row[0], split.images[example["test_index"]], title, "black")
        for axis in row[1:]:
            axis.set_axis_off()
        for axis, (index, weight) in zip(row[1:], example["neighbors"], strict=False):
            same = int(dataset.train.labels[index]) == label
            name = dataset.classes[int(dataset.train.labels[index])]
            _picture(axis, dataset.train.images[index], f"{_short(name)}\n{weight:.2f}", _SAME if same else _OTHER)
    return figure


def _picture(axis: Any, image: np.ndarray, title: str, color: str) -> None:
    axis.set_axis_on()
    axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7, color="black")
    for spine in axis.spines.values():
        spine.set(edgecolor=color, linewidth=2.5)
