"""Names of methods, protocols and graph settings, as tables and figures show them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cnn2gnn_jax import inference
from cnn2gnn_jax.distillers import METHODS
from cnn2gnn_jax.training import tasks


class Protocol(NamedTuple):
    """An evaluation protocol of graph students: how the evaluated images are linked.

    name: its name in tables and figures.
    mechanism, batch_order: the values that select its accuracies in the records.
    description: a sentence for the report page.
    phrase: its name inside a sentence.
    is_published: whether the paper's Tables 1 and 2 are compared with it.
    is_audit: whether it measures how much the batch order leaks. Its figures are then not accuracies.
    """

    name: str
    mechanism: str
    batch_order: str | None = None
    description: str = ""
    phrase: str = ""
    is_published: bool = False
    is_audit: bool = False

    @property
    def title(self) -> str:
        """The mechanism and the batch order, as `batch by batch, shuffled`."""
        order = f", {self.batch_order.replace('_', '-')}" if self.batch_order else ""
        return self.mechanism.replace("_", " ") + order

    @property
    def column(self) -> str:
        """The heading of the column with its accuracies."""
        return f"{self.name} (audit)" if self.is_audit else self.name

    @property
    def worth(self) -> str:
        """The heading of the column with the differences from the same student without a graph."""
        return f"gain from the graph, {self.name}"

    def has(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of `accuracies` was evaluated under this protocol."""
        return (entry["mechanism"], entry["batch_order"]) == (self.mechanism, self.batch_order)


ONE_BY_ONE = Protocol(
    "one by one",
    inference.ONE_BY_ONE,
    phrase="one by one",
    description="One by one (Mechanism 1) links each test image to a batch of training images.",
)
BATCH_BY_BATCH = Protocol(
    "batch by batch",
    inference.BATCH_BY_BATCH,
    "shuffled",
    "Batch by batch (Mechanism 2, the paper's) lets a batch of test images in shuffled order borrow the graph of their "
    "nearest training images.",
    phrase="under the paper's protocol (batch by batch)",
    is_published=True,
)
CLASS_SORTED = Protocol("class-sorted", inference.BATCH_BY_BATCH, "class_sorted", is_audit=True)
TRAINING_SET = Protocol(
    "training set",
    inference.TRAINING_SET,
    description="Training set links each image to the nearest of all training images, whose labels or teacher's "
    "probabilities are combined with the student's prediction.",
    phrase="over the training set",
)

# Every table, figure and page shows each of these protocols for which its records have accuracies.
PROTOCOLS = (ONE_BY_ONE, BATCH_BY_BATCH, TRAINING_SET, CLASS_SORTED)


def is_plain(entry: Mapping[str, Any]) -> bool:
    """Whether a student without a graph was evaluated on its own predictions alone.

    With the graph off, all mechanisms of the paper give the same accuracy, so only one of them is kept.
    """
    return entry["mechanism"] is None or ONE_BY_ONE.has(entry)


def recorded_protocols(entries: Iterable[Mapping[str, Any]]) -> list[Protocol]:
    """The protocols that occur in entries of `accuracies`."""
    entries = list(entries)
    return [protocol for protocol in PROTOCOLS if any(map(protocol.has, entries))]


def published_first(protocols: Iterable[Protocol]) -> list[Protocol]:
    """Sorts protocols: the paper's first, audits last."""
    return sorted(protocols, key=lambda protocol: (protocol.is_audit, not protocol.is_published))


PAPERS_GRAPHS = {"inner_product": "InGNN", "euclidean": "EucGNN"}
"""The paper's names of the students with other graphs, in its ablation."""
ON = "on"
"""Selects every graph setting that is tested with a graph; see `observations.select`."""
GRAPHS = {
    "learned": "learned graph (Eq. 3)",
    "off": "graph off: trained and tested with A = I",
    "off_at_test": "the same weights, graph off at test",
    "inner_product": f"inner-product graph ({PAPERS_GRAPHS['inner_product']})",
    "euclidean": f"Euclidean graph ({PAPERS_GRAPHS['euclidean']})",
    "euclidean_sparse": "Eq. 3 on Euclidean distances",
}
"""The name of each graph setting."""


def has_graph(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of `accuracies` was tested with a graph."""
    return entry["graph"] not in (None, "off", "off_at_test")


def student(entry: Mapping[str, Any]) -> str:
    """The name of an entry's student in the records of its run, as `tasks.student_name` gives it."""
    return tasks.named(entry["graph"], entry["seed"])


def stage_title(stage: str, method: str) -> str:
    """A training stage in plain words: `graph_learned-seed0` of cnn2gnn is `CNN2GNN, learned graph, seed 0`."""
    match = re.fullmatch(r"(?:graph_(\w+)|cnn)-seed(\d+)(?: (.+))?", stage)
    if match is None:
        return stage
    graph, seed, name = match.groups()
    setting = re.split(r" \(|:", GRAPHS.get(graph, graph))[0] if graph else ""  # without details
    return ", ".join(filter(None, (row_title(method), setting, f"seed {seed}", name and f"stage {name}")))


def row_title(row: str) -> str:
    """The heading of a row: the name of its method or graph setting, with any text after a comma."""
    name, comma, suffix = row.partition(", ")
    return (METHODS[name].title if name in METHODS else PAPERS_GRAPHS.get(name, name)) + comma + suffix


def plural(count: int | str, noun: str) -> str:
    """A count and its noun, as `3 seeds`."""
    return f"{count} {noun}{'s' * (str(count) != '1')}"


def span(values: Iterable[int]) -> str:
    """The range of some numbers, as `3 to 5`, or `3` where all are equal."""
    values = list(values)
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
