"""The hyperparameters that each arm of a comparison chose on held-out training images, as text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnn2gnn_jax.report.names import plural, span

COLUMNS = ("chosen with the graph", "chosen with the graph off")


def chosen(records: Iterable[Mapping[str, Any]]) -> str:
    """The chosen values. A value is marked if it is the smallest or the largest that was tried."""
    texts = [_values(record["tuned"]) for record in records if "tuned" in record]
    return "; ".join(dict.fromkeys(texts))


def _values(tuned: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{_short(field)} {value}{_edge(value, [candidate['fields'][field] for candidate in tuned['candidates']])}"
        for field, value in tuned["fields"].items()
    )


def note(records: Iterable[Mapping[str, Any]]) -> str:
    """A note on how the values were chosen, and from which candidates."""
    tuned_records = [record for record in records if "tuned" in record]
    tuned = [record["tuned"] for record in tuned_records]
    values: dict[str, set[Any]] = {}
    for candidate in (candidate for choice in tuned for candidate in choice["candidates"]):
        for field, value in candidate["fields"].items():
            values.setdefault(_short(field), set()).add(value)
    candidates = "; ".join(f"{field} {', '.join(map(str, sorted(tried)))}" for field, tried in values.items())
    images, seeds = (span(choice[key] for choice in tuned) for key in ("images", "seeds"))
    more_labels = (
        " In settings with few labels, the held-out images are those whose labels were dropped, so the choice uses "
        "more labels than the training of the student."
    ) * any(record["tuned"]["images"] > record["dataset"]["train_images"] for record in tuned_records)
    return (
        "Each student, with and without the graph, uses the values with the highest mean one-by-one accuracy on "
        f"{images} held-out training images ({plural(seeds, 'seed')}). Test images play no part in this "
        f"choice.{more_labels} Tried: {candidates}. "
        "If the chosen value is the smallest or the largest of these, a value outside the range may be better."
    )


def _short(field: str) -> str:
    return field.rpartition(".")[2]


def _edge(value: Any, values: Sequence[Any]) -> str:
    """A mark if a number is the smallest or the largest of several; '' otherwise."""
    if len(set(values)) < 2 or not all(isinstance(other, int | float) for other in values):
        return ""
    return {min(values): " (smallest tried)", max(values): " (largest tried)"}.get(value, "")
