"""The names of methods, protocols and graph settings, as tables and figures show them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cnn2gnn_jax.distillers import METHODS
from cnn2gnn_jax.training import tasks


class Protocol(NamedTuple):
    """A way in which evaluated images are linked: a column or a row of every table with graph students.

    name: in tables and figures.
    mechanism, batch_order: of its accuracies in the records.
    description: on the page.
    is_published: whether the accuracies of the paper's Tables 1 and 2 are compared with it.
    is_audit: its figure tells how much the order of the images leaks, and is no accuracy.
    """

    name: str
    mechanism: str
    batch_order: str | None = None
    description: str = ""
    is_published: bool = False
    is_audit: bool = False

    @property
    def title(self) -> str:
        """The mechanism and the batch order."""
        order = f", {self.batch_order.replace('_', '-')}" if self.batch_order else ""
        return self.mechanism.replace("_", " ") + order

    @property
    def column(self) -> str:
        """The heading of its accuracies."""
        return f"{self.name} (audit)" if self.is_audit else self.name

    @property
    def worth(self) -> str:
        """The heading of its differences from the same student without a graph."""
        return f"the graph is worth, {self.name}"

    def has(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of `accuracies` is of this protocol."""
        return (entry["mechanism"], entry["batch_order"]) == (self.mechanism, self.batch_order)


ONE_BY_ONE = Protocol(
    "one by one",
    "one_by_one",
    description="One by one (Mechanism 1) links each test image to a batch of training images.",
)
BATCH_BY_BATCH = Protocol(
    "batch by batch",
    "batch_by_batch",
    "shuffled",
    "Batch by batch (Mechanism 2, the paper's) lets a batch of test images in shuffled order borrow the graph of their "
    "nearest training images.",
    is_published=True,
)
CLASS_SORTED = Protocol("class-sorted", "batch_by_batch", "class_sorted", is_audit=True)
TRAINING_SET = Protocol(
    "training set",
    "training_set",
    description="Training set links each image to the nearest of all training images, whose labels or teacher's "
    "probabilities are combined with the student's answer.",
)

# An entry here is shown by every table, figure and page whose records have its accuracies.
PROTOCOLS = (ONE_BY_ONE, BATCH_BY_BATCH, TRAINING_SET, CLASS_SORTED)


def recorded_protocols(entries: Iterable[Mapping[str, Any]]) -> list[Protocol]:
    """The protocols that some accuracies are of."""
    entries = list(entries)
    return [protocol for protocol in PROTOCOLS if any(map(protocol.has, entries))]


def published_first(protocols: Iterable[Protocol]) -> list[Protocol]:
    """The paper's protocol, the others, and audits at the end."""
    return sorted(protocols, key=lambda protocol: (protocol.is_audit, not protocol.is_published))


PAPERS_GRAPHS = {"inner_product": "InGNN", "euclidean": "EucGNN"}
"""What the paper's ablation calls students with other graphs."""
ON = "on"
"""Any graph setting with a graph."""
GRAPHS = {
    "learned": "learned graph (Eq. 3)",
    "off": "graph off: trained and tested with A = I",
    "off_at_test": "the same weights, graph off at test",
    "inner_product": f"inner-product graph ({PAPERS_GRAPHS['inner_product']})",
    "euclidean": f"Euclidean graph ({PAPERS_GRAPHS['euclidean']})",
    "euclidean_sparse": "Eq. 3 on Euclidean distances",
}
"""The graph settings of accuracies."""


def has_graph(entry: Mapping[str, Any]) -> bool:
    """Whether an accuracy is of a student that is tested with a graph."""
    return entry["graph"] not in (None, "off", "off_at_test")


def student(entry: Mapping[str, Any]) -> str:
    """The name of an accuracy's student in the records of its run, as `tasks.student_name` gives it."""
    return tasks.named(entry["graph"], entry["seed"])


def row_title(row: str) -> str:
    """The heading of a row: a method or a graph setting, perhaps with a comma and more."""
    name, comma, rest = row.partition(", ")
    return (METHODS[name].title if name in METHODS else PAPERS_GRAPHS.get(name, name)) + comma + rest


def plural(count: int | str, noun: str) -> str:
    """A count with its noun, as `3 seeds`."""
    return f"{count} {noun}{'s' * (str(count) != '1')}"


def span(values: Iterable[int]) -> str:
    """The smallest and the largest of some numbers, as `3 to 5`, or the only one."""
    values = list(values)
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
