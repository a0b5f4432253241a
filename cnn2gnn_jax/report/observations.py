"""Observations are the accuracies in a sweep's records with their places. Functions select, group and average them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cnn2gnn_jax.report import names
from cnn2gnn_jax.report.cells import EMPTY, Cell
from cnn2gnn_jax.report.statistics import Correct, paired, summarize


class Observation(NamedTuple):
    """An entry of `accuracies`, with its record and its place in a table or figure."""

    place: Mapping[str, Any]
    record: Mapping[str, Any]
    entry: Mapping[str, Any]


def observe(records: Iterable[Mapping[str, Any]], kind: str) -> list[Observation]:
    """The accuracies that appear in tables or figures of this kind."""
    return [
        Observation(place, record, entry)
        for record in records
        for place in record["places"]
        if place["kind"] == kind
        for entry in record["accuracies"]
    ]


def select(
    observations: Iterable[Observation], protocol: names.Protocol | None = None, graph: str | None = None, **place: Any
) -> list[Observation]:
    """The observations with this protocol, graph setting and place; None selects all. `names.ON` selects all graphs."""
    return [
        observation
        for observation in observations
        if (protocol is None or protocol.has(observation.entry))
        and (graph is None or graph in (observation.entry["graph"], names.has_graph(observation.entry) and names.ON))
        and all(observation.place[key] == value for key, value in place.items())
    ]


def grouped(observations: Sequence[Observation], key: str) -> dict[Any, list[Observation]]:
    """The observations by the value of a key of their places, in the order of the records."""
    groups: dict[Any, list[Observation]] = {}
    for observation in observations:
        groups.setdefault(observation.place[key], []).append(observation)
    return groups


def protocols(observations: Iterable[Observation]) -> list[names.Protocol]:
    """The protocols that occur in observations."""
    return names.recorded_protocols(observation.entry for observation in observations)


def by_seed(observations: Iterable[Observation]) -> dict[int, float]:
    """The accuracies of one row, in percent, by seed."""
    return {observation.entry["seed"]: observation.entry["accuracy"] for observation in observations}


def mean(values: Iterable[float], text: str = "", published: float | None = None) -> Cell:
    """A cell with the mean of values, formatted by `text` or with its standard deviation; empty without values."""
    summary = summarize(list(values))
    if summary is None:
        return EMPTY
    return Cell(text.format(summary.mean) or str(summary), summary.mean, summary.deviation, paper=published)


def accuracy(observations: Iterable[Observation], published: float | None = None) -> Cell:
    """A cell with mean and standard deviation over seeds, and the paper's figure."""
    accuracies = by_seed(observations)
    return dataclasses.replace(mean(accuracies.values(), published=published), n=len(accuracies) or None)


def difference(ours: Sequence[Observation], theirs: Sequence[Observation]) -> Cell:
    """A cell with the mean of ours minus theirs over their common seeds, and its 95% interval.

    If both record their predictions for the same images, the interval is over images as well as seeds.
    """
    datasets = [observation.record["dataset"] for observation in (*ours, *theirs)]
    images = {(dataset.get("fingerprint"), dataset["evaluated"]) for dataset in datasets}
    correct = None
    if (
        len(images) == 1
        and (our_correct := _correct(ours)) is not None
        and (their_correct := _correct(theirs)) is not None
    ):
        correct = (our_correct, their_correct)
    result = paired(by_seed(ours), by_seed(theirs), correct)
    if result is None:
        return EMPTY
    return Cell(str(result), result.mean, interval=result.interval, over=result.over, n=result.n)


def _correct(observations: Sequence[Observation]) -> Correct | None:
    """Which images the students of one row classify correctly; None where a record keeps no predictions."""
    correct = {
        observation.entry["seed"]: observation.entry["correct"]
        for observation in observations
        if "correct" in observation.entry
    }
    return correct if len(correct) == len(by_seed(observations)) else None
