"""Graph students under every protocol, and what their graphs do: by setting, and the audit of all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnn2gnn_jax.report import choices, names, notes
from cnn2gnn_jax.report.cells import Cell, Table
from cnn2gnn_jax.report.names import BATCH_BY_BATCH, ONE_BY_ONE, Protocol
from cnn2gnn_jax.report.observations import Observation, accuracy, difference, grouped, mean, protocols, select
from cnn2gnn_jax.report.statistics import is_uniform

OFF = "graph off"
AGREEMENT, CHANCE, SELF_WEIGHT, DISTINCT_ANCHORS = DIAGNOSTICS = (
    "neighbours of the same class",
    "by chance",
    "weight on self",
    "distinct anchors a batch",
)
"""Columns that tell what the graph does."""


def table(observations: Sequence[Observation]) -> Table:
    """The table of one name: a row for each setting.

    The control, with the graph off, is of the same records or of one of its own at the same place.
    """
    groups = grouped(observations, "setting")
    rows = {setting: _cells(group, protocols(observations)) for setting, group in groups.items()}
    remarks, records = notes.uniform(groups.items()), [observation.record for observation in observations]
    if any("tuned" in record for record in records):
        rows = {setting: cells | _chosen(groups[setting]) for setting, cells in rows.items()}
        remarks.append(choices.note(records))
    return notes.captioned(observations, rows, remarks)


def audit(records: Iterable[Mapping[str, Any]]) -> Table | None:
    """Every graph student of the records, whatever table it stands in; None if there is none."""
    groups: dict[str, list[Observation]] = {}
    for record in records:
        # A control of its own belongs to every student beside which it stands.
        places = record["places"] if record["method"] == "cnn2gnn_off" else record["places"][:1]
        for entry in record["accuracies"]:
            for place in places if entry["graph"] is not None else ():
                heading = ", ".join(_word(key, place[key]) for key in _IN_ORDER if key in place)
                groups.setdefault(heading, []).append(Observation(place, record, entry))
    if not groups:
        return None
    every = [observation for group in groups.values() for observation in group]
    rows = {heading: _cells(group, protocols(every)) for heading, group in groups.items()}
    # Its rows are of several tables, so each heading tells its seeds.
    body, over = notes.mark_intervals(
        {f"{heading} (n = {max(cell.n or 0 for cell in row.values())})": row for heading, row in rows.items()}
    )
    remarks = [notes.AUDIT + notes.classes_a_batch(every), *over, *notes.uniform(groups.items())]
    return Table("Audit of the graph students", body, remarks, "audit")


_IN_ORDER = ("name", "row", "setting", "panel", "column", "line", "x")


def _word(key: str, value: Any) -> str:
    if key == "row":
        return names.row_title(value)
    return f"at {value}" if key == "x" else str(value)


def _cells(group: Sequence[Observation], recorded: Sequence[Protocol]) -> dict[str, Cell]:
    """A graph student under some protocols, by column."""
    on = {protocol: select(group, protocol, names.ON) for protocol in recorded}
    off = select(group, ONE_BY_ONE, "off")
    plain = [protocol for protocol in recorded if not protocol.is_audit]
    return {
        **{protocol.column: accuracy(on[protocol]) for protocol in plain},
        OFF: accuracy(off),
        **{protocol.worth: difference(on[protocol], off) for protocol in plain},
        **{protocol.column: accuracy(on[protocol]) for protocol in recorded if protocol.is_audit},
        **_diagnostics(on.get(ONE_BY_ONE, []), on.get(BATCH_BY_BATCH, [])),
    }


def _diagnostics(one_by_one: Sequence[Observation], batch_by_batch: Sequence[Observation]) -> dict[str, Cell]:
    count, students = sum(is_uniform(item.entry) for item in batch_by_batch), len(batch_by_batch)
    is_uniform_in = f", uniform{f' in {count} of {students}' * (count < students)}" * bool(count)
    in_training = _mean(one_by_one, "self_weight_in_training", "{:.2f}").text
    return {
        AGREEMENT: _mean(one_by_one, "label_agreement", "{:.1f}%", 100),
        CHANCE: _mean(one_by_one, "label_agreement_chance", "{:.1f}%", 100),
        SELF_WEIGHT: _mean(one_by_one, "self_weight", "{:.2f}" + f" ({in_training} in training)" * bool(in_training)),
        DISTINCT_ANCHORS: _mean(batch_by_batch, "distinct_anchors", "{:.1f}" + is_uniform_in),
    }


def _mean(observations: Iterable[Observation], diagnostic: str, text: str, scale: float = 1) -> Cell:
    """The mean of a diagnostic over the seeds, written as `text`."""
    values = (observation.entry["diagnostics"].get(diagnostic) for observation in observations)
    return mean((scale * value for value in values if value is not None), text)


def _chosen(group: Sequence[Observation]) -> dict[str, Cell]:
    """What the students with the graph and those without it have chosen on held-out images."""
    arms = (select(group, graph=names.ON), select(group, graph="off"))
    texts = [choices.chosen(observation.record for observation in arm) for arm in arms]
    return dict(zip(choices.COLUMNS, map(Cell, texts), strict=True))
