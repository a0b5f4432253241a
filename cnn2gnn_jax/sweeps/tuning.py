"""Fields of a sweep's cell that are chosen on held-out training images.

A candidate is a cell of its own: the same config with other values, trained without the held-out images and evaluated
on them, never on test images. In a comparison each arm is a cell, and so has a choice of its own.
"""

import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import records

HOLDOUT = 0.2  # of the training images, where the config holds out none
SEEDS = 1  # of each candidate, from 0 on: cells that differ in their seed alone share their candidates


class Candidate(NamedTuple):
    """Values that are tried: the fields with their values, and the name and config of the cell that tries them."""

    fields: dict[str, Any]
    name: str
    config: ConfigDict


def candidates(config: ConfigDict, tune: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """The candidates of a cell, one for each combination of values.

    A config that holds images out keeps them, so that its candidates train on as many images as the cell itself.

    Args:
      config: of the cell.
      tune: the values of each field that are tried; none for a cell without a choice.

    Raises:
      UserError: there is no such field, a value makes no sense, or the cell trains a second student without its graph,
        for which the first one's choice would hold.
    """
    if tune and len(configs.graph_settings(configs.resolve(config))) > 1:
        raise UserError(
            "tune chooses for one student, but evaluate.graph_off trains a second one without the graph: set it to "
            "False, and add the method cnn2gnn_off as a cell with a choice of its own, at the same place"
        )
    made = []
    for values in itertools.product(*tune.values()) if tune else ():
        fields = dict(zip(tune, values, strict=True))
        tried = with_fields(config, fields)
        tried.data.holdout = config.data.holdout or HOLDOUT
        tried.evaluate.split, tried.seed, tried.seeds = "holdout", 0, SEEDS
        # Its settings would be chosen on the same images; it is not what the values are chosen by.
        tried.evaluate.training_set.enabled = False
        made.append(Candidate(fields, configs.cell_fingerprint(configs.resolve(tried)), tried))
    return made


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with other values.

    Raises:
      UserError: there is no such field, or a value is of another type.
    """
    config = ConfigDict(config.to_dict()).lock()  # so that a field which is not there is refused
    try:
        config.update_from_flattened_dict(fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"tune: {error} (see configs/base.py for the fields and their types)") from None
    return config


def as_text(fields: Mapping[str, Any]) -> str:
    """The fields and their values in a line."""
    return ", ".join(f"{field} {value}" for field, value in fields.items())


def choose(out: pathlib.Path, tried: Sequence[Candidate]) -> dict[str, Any]:
    """The values with the best mean accuracy on the held-out images; of equal ones the first.

    Args:
      out: the sweep's folder, where all candidates have records.
      tried: the candidates.

    Returns:
      `fields`, the chosen values; `candidates`, each with its `fields` and its `accuracy` in percent, None where the
      loss did not stay finite; `images`, how many were held out; `seeds`, of each candidate.

    Raises:
      UserError: the loss of no candidate stayed finite.
    """
    read = [records.load(out, candidate.name) for candidate in tried]
    accuracies = [None if "diverged" in record else _accuracy(record) for record in read]
    finite = [accuracy for accuracy in accuracies if accuracy is not None]
    if not finite:
        raise UserError(f"all {len(tried)} candidates diverged, as {read[0]['diverged']}")
    best = accuracies.index(max(finite))
    return {
        "fields": tried[best].fields,
        "candidates": [
            {"fields": candidate.fields, "accuracy": accuracy}
            for candidate, accuracy in zip(tried, accuracies, strict=True)
        ],
        "images": read[best]["dataset"]["evaluated_images"],
        "seeds": SEEDS,
    }


def _accuracy(record: Mapping[str, Any]) -> float:
    """The mean over the seeds; of a graph student one by one."""
    accuracies = [
        entry["accuracy"]
        for entry in record["accuracies"]
        if entry["mechanism"] in (None, "one_by_one") and entry["graph"] != "off_at_test"
    ]
    return round(statistics.fmean(accuracies), 4)
