"""Figures of a run: the confusion matrix, and the learned neighbors of test images (Figure 3)."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cnn2gnn_jax.data import Dataset, Split
from cnn2gnn_jax.runtime import storage

_SAME_CLASS, _OTHER_CLASS = "#1a7f37", "#b0b0b0"
_MAX_NAME_LENGTH = 18
_MAX_NEIGHBORS = 6  # neighbors of an image in the figure
_MAX_LABELED_CLASSES = 30  # with more classes, names and counts do not fit


def _short(name: str) -> str:
    """Shortens a class name to fit over an image, and escapes `$`, which would begin a formula."""
    return (name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 1]}…").replace("$", r"\$")


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG to `path`, and as PDF beside it; neither file is ever partial."""
    options: dict[str, Any] = {"dpi": 150, "bbox_inches": "tight"}
    with storage.atomic_path(path) as partial:
        figure.savefig(partial, format="png", **options)
    # TrueType fonts, which publishers ask for; no date, so that the same figure gives the same file.
    with storage.atomic_path(path.with_suffix(".pdf")) as partial, matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(partial, format="pdf", metadata={"CreationDate": None}, **options)


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts the images of true class i and predicted class j, (classes, classes), from (N,) integers of any type."""
    index = labels.astype(np.int64) * classes + predicted
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draws the confusion matrix: a row for each true class, colored by its percentages, with counts where they fit.

    Args:
      counts: as `confusion_counts` returns them, (C, C).
      classes: C names.
    """
    size = len(classes)
    labeled = size <= _MAX_LABELED_CLASSES
    side = max(3.0, 0.42 * size) if labeled else 8.0
    figure = Figure(figsize=(side + 2, side + 1), layout="constrained")
    axis = figure.subplots()
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(100 * fractions, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axis, label="images of the true class (%)", shrink=0.7)
    axis.set(xlabel="predicted class", ylabel="true class")
    if labeled:
        names = [_short(name) for name in classes]
        axis.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axis.set_yticks(range(size), names, fontsize=8)
        for i, j in np.argwhere(counts > 0):
            color = "white" if fractions[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color=color)
    axis.spines[:].set_visible(False)
    return figure


def neighbors(examples: list[dict[str, Any]], dataset: Dataset, split: Split) -> Figure:
    """Draws test images, each with its learned neighbors and their weights, strongest first, in two halves of a slide.

    The last row repeats the last image, followed by anchors of other classes. The weights are the image's row of A with
    its self-loop, scaled to sum to 1.

    Args:
      examples: the `examples` of a run's results.
      dataset: the data set, whose training images are the neighbors.
      split: the evaluated split, whose images `test_index` refers to.
    """
    rows = [*examples, {**examples[-1], "neighbors": examples[-1]["others"]}]
    columns = 1 + max(1, *(min(_MAX_NEIGHBORS, len(row["neighbors"])) for row in rows))
    height = -(-len(rows) // 2)
    figure = Figure(figsize=(2 * 1.15 * columns, 1.5 * height + 0.3), layout="constrained")
    for half, part in enumerate(figure.subfigures(1, 2, squeeze=False)[0]):
        axes = part.subplots(height, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for row, example in zip(axes, rows[half * height : (half + 1) * height], strict=False):
            _draw_example(row, example, dataset, split)
    frames = {"same class as the test image": _SAME_CLASS, "another class": _OTHER_CLASS}
    patches = [Patch(fill=False, edgecolor=color, linewidth=2.5, label=label) for label, color in frames.items()]
    patches.insert(0, Patch(fill=False, edgecolor="black", linewidth=2.5, label="test image"))
    figure.legend(handles=patches, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _draw_example(axes: Sequence[Any], example: dict[str, Any], dataset: Dataset, split: Split) -> None:
    label = int(split.labels[example["test_index"]])
    predicted = dataset.classes[example["predicted"]]
    title = f"{_short(dataset.classes[label])}\npredicted {_short(predicted)}\nself {example['self_weight']:.2f}"
    _draw_image(axes[0], split.images[example["test_index"]], title, "black")
    for axis, (index, weight) in zip(axes[1:], example["neighbors"], strict=False):
        neighbor_label = int(dataset.train.labels[index])
        color = _SAME_CLASS if neighbor_label == label else _OTHER_CLASS
        title = f"{_short(dataset.classes[neighbor_label])}\n{weight:.2f}"
        _draw_image(axis, dataset.train.images[index], title, color)


def _draw_image(axis: Any, image: np.ndarray, title: str, color: str) -> None:
    axis.set_axis_on()
    axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7, color="black")
    for spine in axis.spines.values():
        spine.set(edgecolor=color, linewidth=2.5)
