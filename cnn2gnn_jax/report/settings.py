"""Tables of graph students under every protocol, with graph diagnostics: by setting, and the audit of all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnn2gnn_jax.report import choices, names, notes
from cnn2gnn_jax.report.cells import Cell, Table
from cnn2gnn_jax.report.names import BATCH_BY_BATCH, ONE_BY_ONE, TRAINING_SET, Protocol
from cnn2gnn_jax.report.observations import Observation, accuracy, difference, grouped, mean, protocols, select
from cnn2gnn_jax.report.statistics import is_uniform

OFF = "graph off"
OFF_TRAINING_SET = f"{OFF}, {TRAINING_SET.name}"
OFF_TRAINING_SET_WORTH = f"{TRAINING_SET.worth}, {OFF}"
AGREEMENT, CHANCE, SELF_WEIGHT, DISTINCT_ANCHORS = DIAGNOSTICS = (
    "neighbors of the same class",
    "expected by chance",
    "weight on self",
    "distinct anchors per batch",
)
"""Columns with diagnostics of the graph."""


def table(observations: Sequence[Observation]) -> Table:
    """The table of one name, with a row for each setting.

    The control without a graph is in the same records as the student, or in a separate record with the same place.
    """
    groups = grouped(observations, "setting")
    rows = {setting: _cells(group, protocols(observations)) for setting, group in groups.items()}
    remarks, records = notes.uniform(groups.items()), [observation.record for observation in observations]
    if any("tuned" in record for record in records):
        rows = {setting: cells | _chosen(groups[setting]) for setting, cells in rows.items()}
        remarks.append(choices.note(records))
    return notes.captioned(observations, rows, remarks)


def audit(records: Iterable[Mapping[str, Any]]) -> Table | None:
    """The table of all graph students from all tables; None if there are none."""
    groups: dict[str, list[Observation]] = {}
    for record in records:
        # A control in a separate record belongs to all students with the same places.
        places = record["places"] if record["method"] == "cnn2gnn_off" else record["places"][:1]
        for entry in record["accuracies"]:
            for place in places if entry["graph"] is not None else ():
                heading = ", ".join(_place_text(key, place[key]) for key in _PLACE_KEYS if key in place)
                groups.setdefault(heading, []).append(Observation(place, record, entry))
    if not groups:
        return None
    observations = [observation for group in groups.values() for observation in group]
    rows = {heading: _cells(group, protocols(observations)) for heading, group in groups.items()}
    # The rows come from several tables, so each heading gives its own number of seeds.
    body, over = notes.mark_intervals(
        {f"{heading} (n = {max(cell.n or 0 for cell in row.values())})": row for heading, row in rows.items()}
    )
    remarks = [notes.AUDIT + notes.classes_a_batch(observations), *over, *notes.uniform(groups.items())]
    return Table("Audit of the graph students", body, remarks, "audit")


_PLACE_KEYS = ("name", "row", "setting", "panel", "column", "line", "x")


def _place_text(key: str, value: Any) -> str:
    if key == "row":
        return names.row_title(value)
    return f"at {value}" if key == "x" else str(value)


def _cells(group: Sequence[Observation], recorded: Sequence[Protocol]) -> dict[str, Cell]:
    """The cells of a graph student by column, under the recorded protocols."""
    on = {protocol: select(group, protocol, names.ON) for protocol in recorded}
    off, off_training_set = select(group, ONE_BY_ONE, "off"), select(group, TRAINING_SET, "off")
    training_set = {
        OFF_TRAINING_SET: accuracy(off_training_set),
        OFF_TRAINING_SET_WORTH: difference(off_training_set, off),
    }
    plain = [protocol for protocol in recorded if not protocol.is_audit]
    return {
        **{protocol.column: accuracy(on[protocol]) for protocol in plain},
        OFF: accuracy(off),
        **{protocol.worth: difference(on[protocol], off) for protocol in plain},
        **(training_set if TRAINING_SET in plain else {}),
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
    """The mean of a diagnostic over seeds, formatted by `text`."""
    values = (observation.entry["diagnostics"].get(diagnostic) for observation in observations)
    return mean((scale * value for value in values if value is not None), text)


def _chosen(group: Sequence[Observation]) -> dict[str, Cell]:
    """The hyperparameters chosen on held-out images, for the students with and without the graph."""
    arms = (select(group, graph=names.ON), select(group, graph="off"))
    texts = [choices.chosen(observation.record for observation in arm) for arm in arms]
    return dict(zip(choices.COLUMNS, map(Cell, texts), strict=True))
