"""Lists the neighbors of a new image, with the weights of the edges to them."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import neighbors
from cnn2gnn_jax.inference import ONE_BY_ONE, TRAINING_SET
from cnn2gnn_jax.neighbors import Neighbors
from cnn2gnn_jax.serving.pictures import Pictures
from cnn2gnn_jax.serving.trained import Prediction, Trained


def describe_neighbors(
    student: Trained, batch: Pictures, prediction: Prediction, k: int, mechanism: str, count: int
) -> dict[str, Any]:
    """Lists the neighbors of an image.

    Args:
      student: the student, with its bank for training_set.
      batch: the images of the batch, without padding.
      prediction: the predictions for the batch, on the host.
      k: the position of the image in the batch.
      mechanism: the mechanism of the predictions.
      count: the maximum number of neighbors.

    Returns:
      `neighbors`, a list in descending order of `weight`, and, except for training_set, `self_weight`, the weight of
      the image itself. These weights are the image's row of A, with the self-loop, scaled to sum to 1. A neighbor is:
        one_by_one: an anchor, with its `class`, its `index` in the training set, and its file as `image` if the data
          set has files.
        training_set: a training image, with the same entries. The weights are those of Eq. 3.
        batch_by_batch: another `image` of the batch. If the graph has a head, `class` and `index` are those of the
          anchor nearest to it, and `nearest_image` is the file of this anchor.
    """
    facts: dict[str, Any] = {}
    if mechanism == TRAINING_SET:
        nearest = jax.tree.map(lambda array: array[k], prediction.neighbors)
        links = _links_to_bank(student, batch.pixels[k], nearest)
    else:
        if mechanism == ONE_BY_ONE:
            links, self_column = _links_to_anchors(student, prediction, k), -1
        else:
            links, self_column = _links_to_batch(student, batch.names, prediction, k), k
        facts["self_weight"] = float(np.mean([weights[k, self_column] for weights in prediction.links]))
    return {**facts, "neighbors": sorted(links, key=lambda link: -link["weight"])[:count]}


def _training_image(student: Trained, label: int, index: int, weight: float, file: str | None) -> dict[str, Any]:
    image = {} if file is None else {"image": file}
    return {**image, "class": student.recorded.classes[int(label)], "index": int(index), "weight": float(weight)}


def _links_to_bank(student: Trained, image: np.ndarray, nearest: Neighbors) -> Iterator[dict[str, Any]]:
    """The training images with positive weight in Eq. 3; `nearest` are the nearest columns of the image, (s + 1,)."""
    assert student.bank is not None
    bank, files = student.bank.bank, student.bank.files
    weights, columns, distances = map(np.asarray, nearest)
    if distances[-1] == distances[0]:
        # All columns at the smallest distance have the same weight. There may be more of them than the search returns.
        features = student.model.feature_spaces(jnp.asarray(image[None]))[bank.settings.space]
        d = np.asarray(neighbors.distances(neighbors.queries(bank, features), bank.keys))[0]
        tied = np.flatnonzero(d == d.min())
        # Distances may be rounded differently here than in the search. If ties are missing, its result is kept.
        columns = tied if len(tied) >= len(columns) else columns
        weights = np.full(len(columns), 1 / len(columns))
    for column, weight in zip(columns[weights > 0], weights[weights > 0], strict=True):
        yield _training_image(student, bank.labels[column], column, weight, None if files is None else files[column])


def _links_to_anchors(student: Trained, prediction: Prediction, k: int) -> Iterator[dict[str, Any]]:
    """The anchors that an image is linked to."""
    anchors = student.recorded.anchors
    assert anchors is not None
    for batch, weights in enumerate(prediction.links):
        for column in map(int, np.flatnonzero(np.asarray(weights[k, :-1]) > 0)):
            label, index = anchors["labels"][batch, column], anchors["index"][batch, column]
            weight = float(weights[k, column]) / len(prediction.links)
            yield _training_image(student, label, index, weight, _anchor_file(anchors, batch, column))


def _anchor_file(anchors: dict[str, np.ndarray], batch: int, column: int) -> str | None:
    """The file of an anchor; None if the data set has no files."""
    return str(anchors["files"][batch, column]) if "files" in anchors else None


def _links_to_batch(student: Trained, names: Sequence[str], prediction: Prediction, k: int) -> Iterator[dict[str, Any]]:
    """The other images of the batch that an image is linked to."""
    anchors = student.recorded.anchors
    assert anchors is not None
    for column, name in enumerate(names):
        weight = float(np.mean([weights[k, column] for weights in prediction.links]))
        if column != k and weight > 0:
            link: dict[str, Any] = {"image": name, "weight": weight}
            if (nearest := int(prediction.nearest[0][column])) >= 0:
                link |= {
                    "class": student.recorded.classes[int(anchors["labels"][0, nearest])],
                    "index": int(anchors["index"][0, nearest]),
                    "nearest_image": _anchor_file(anchors, 0, nearest),
                }
            yield link
