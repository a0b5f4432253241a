"""What each arm of a comparison has chosen on held-out training images, in words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnn2gnn_jax.report.names import plural, span

COLUMNS = ("chosen with the graph", "chosen with the graph off")


def chosen(records: Iterable[Mapping[str, Any]]) -> str:
    """The chosen values of the records, and whether they are the smallest or the largest that were tried."""
    texts = [_values(record["tuned"]) for record in records if "tuned" in record]
    return "; ".join(dict.fromkeys(texts))


def _values(tuned: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{_short(field)} {value}{_edge(value, [tried['fields'][field] for tried in tuned['candidates']])}"
        for field, value in tuned["fields"].items()
    )


def note(records: Iterable[Mapping[str, Any]]) -> str:
    """How the records chose, and from what."""
    choosing = [record for record in records if "tuned" in record]
    tuned = [record["tuned"] for record in choosing]
    values: dict[str, set[Any]] = {}
    for candidate in (candidate for choice in tuned for candidate in choice["candidates"]):
        for field, value in candidate["fields"].items():
            values.setdefault(_short(field), set()).add(value)
    tried = "; ".join(f"{field} {', '.join(map(str, sorted(every)))}" for field, every in values.items())
    images, seeds = (span(choice[key] for choice in tuned) for key in ("images", "seeds"))
    more_labels = (
        " Where the labels are few, these are the images whose labels were dropped, so that a value is chosen on more "
        "labels than its student learns from."
    ) * any(record["tuned"]["images"] > record["dataset"]["train_images"] for record in choosing)
    return (
        f"With and without the graph, each student has the values with the best mean accuracy, one by one, on {images} "
        f"held-out training images ({plural(seeds, 'seed')}), never on test images.{more_labels} "
        f"Tried: {tried}. "
        "Where the best is the smallest or the largest that was tried, a better one may lie beyond it."
    )


def _short(field: str) -> str:
    return field.rpartition(".")[2]


def _edge(value: Any, values: Sequence[Any]) -> str:
    """Whether a number is the smallest or the largest of several."""
    if len(set(values)) < 2 or not all(isinstance(other, int | float) for other in values):
        return ""
    return {min(values): " (smallest tried)", max(values): " (largest tried)"}.get(value, "")
