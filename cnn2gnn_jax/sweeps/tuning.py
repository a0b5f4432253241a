"""Tuning: fields of a sweep's cell are chosen on held-out training images.

A candidate is a cell of its own: the same config with other values, trained without the held-out images and evaluated
on them, never on test images. In a comparison each arm is a cell, and so is tuned separately.
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

HOLDOUT = 0.2  # the fraction of the training images that is held out, unless the config holds images out
SEEDS = 1  # for each candidate, from 0; cells that differ only in their seed share their candidates


class Candidate(NamedTuple):
    """Values for the tuned fields, with the name and the config of the cell that evaluates them."""

    fields: dict[str, Any]
    name: str
    config: ConfigDict


def candidates(config: ConfigDict, tune: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """The candidates of a cell, one for each combination of values.

    A config that holds images out keeps them, so that its candidates train on as many images as the cell itself.

    Args:
      config: the config of the cell.
      tune: the candidate values of each tuned field; empty for a cell that is not tuned.

    Raises:
      UserError: there is no such field, a value is invalid, or the cell trains a second student without its graph,
        which would need a choice of its own.
    """
    if tune and len(configs.graph_settings(configs.resolve(config))) > 1:
        raise UserError(
            "tune chooses for one student, but evaluate.graph_off trains a second one without the graph: set it to "
            "False, and add the method cnn2gnn_off as a cell with a choice of its own, at the same place"
        )
    result = []
    for values in itertools.product(*tune.values()) if tune else ():
        fields = dict(zip(tune, values, strict=True))
        candidate_config = with_fields(config, fields)
        candidate_config.data.holdout = config.data.holdout or HOLDOUT
        candidate_config.evaluate.split, candidate_config.seed, candidate_config.seeds = "holdout", 0, SEEDS
        # The training-set graph would be chosen on the same images. The candidates are not chosen by it.
        candidate_config.evaluate.training_set.enabled = False
        result.append(Candidate(fields, configs.cell_fingerprint(configs.resolve(candidate_config)), candidate_config))
    return result


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with other values.

    Raises:
      UserError: there is no such field, or a value is of another type.
    """
    config = ConfigDict(config.to_dict()).lock()  # so that an unknown field raises an error
    try:
        config.update_from_flattened_dict(fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"tune: {error} (see configs/base.py for the fields and their types)") from None
    return config


def as_text(fields: Mapping[str, Any]) -> str:
    """Formats fields and their values in one line."""
    return ", ".join(f"{field} {value}" for field, value in fields.items())


def choose(out: pathlib.Path, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Chooses the candidate with the highest mean accuracy on the held-out images, the first of equal ones.

    Args:
      out: the sweep's folder, which holds the records of all candidates.
      candidates: the candidates.

    Returns:
      `fields`, the chosen values; `candidates`, each with its `fields` and its `accuracy` in percent, which is None if
      the loss did not stay finite; `images`, the number of held-out images; `seeds`, the number for each candidate.

    Raises:
      UserError: no candidate has a finite loss.
    """
    read = [records.load(out, candidate.name) for candidate in candidates]
    accuracies = [None if "diverged" in record else _accuracy(record) for record in read]
    finite = [accuracy for accuracy in accuracies if accuracy is not None]
    if not finite:
        raise UserError(f"all {len(candidates)} candidates diverged, as {read[0]['diverged']}")
    best = accuracies.index(max(finite))
    return {
        "fields": candidates[best].fields,
        "candidates": [
            {"fields": candidate.fields, "accuracy": accuracy}
            for candidate, accuracy in zip(candidates, accuracies, strict=True)
        ],
        "images": read[best]["dataset"]["evaluated_images"],
        "seeds": SEEDS,
    }


def _accuracy(record: Mapping[str, Any]) -> float:
    """The mean accuracy over seeds; one by one for a graph student."""
    accuracies = [
        entry["accuracy"]
        for entry in record["accuracies"]
        if entry["mechanism"] in (None, "one_by_one") and entry["graph"] != "off_at_test"
    ]
    return round(statistics.fmean(accuracies), 4)
