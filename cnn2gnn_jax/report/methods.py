"""Tables of methods by teacher-student pairs, as the paper's Tables 1 and 2, and their differences from KD."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from cnn2gnn_jax.distillers import METHODS
from cnn2gnn_jax.report import names, notes, paper
from cnn2gnn_jax.report.cells import Cell, Rows, Table
from cnn2gnn_jax.report.observations import Observation, accuracy, difference, grouped, mean, protocols, select

_ORDER = [*paper.ROWS, *METHODS]
# For each heading: its row in the paper's table ('' if it has none), and its accuracies.
_Groups = Mapping[str, tuple[str, Sequence[Observation]]]


def tables(observations: Sequence[Observation]) -> list[Table]:
    """The table of the methods, and the table of their paired differences from KD if the first has a row for KD."""
    columns, groups = grouped(observations, "column"), _groups(observations)
    kd = next((own for row, own in groups.values() if row == "kd"), [])
    from_kd = {
        heading: {c: difference(select(own, column=c), select(kd, column=c)) for c in columns}
        for heading, (_, own) in groups.items()
    }
    table = _accuracies(observations, groups, from_kd)
    differences = {heading: from_kd[heading] for heading, (row, _) in groups.items() if row != "kd"}
    if len(differences) == len(groups):
        return [table]
    counted, seeds = notes.mark_seeds(differences)
    body, over = notes.mark_intervals(counted)
    note = f"Mean over {seeds} of the difference from KD of the same seed, in percentage points."
    return [table, Table(f"{table.title}: paired difference from KD", body, [note, *over], "differences")]


def _accuracies(observations: Sequence[Observation], groups: _Groups, from_kd: Rows) -> Table:
    published = paper.METHODS.get(observations[0].place["name"], {})
    rows: dict[str, dict[str, Cell]] = {"Teacher": {}, **{heading: {} for heading in groups}}
    for column, group in grouped(observations, "column").items():
        rows["Teacher"][column] = mean(notes.teachers(group).values(), published=published.get(("teacher", column)))
        accuracies = {
            heading: accuracy(select(own, column=column), published.get((row, column)))
            for heading, (row, own) in groups.items()
        }
        for heading, cell in accuracies.items():
            rank, arrow = _rank(cell, accuracies.values()), _sign(from_kd[heading][column])
            rows[heading][column] = dataclasses.replace(cell, rank=rank, arrow=arrow)
    has_kd = any(row == "kd" for row, _ in groups.values())
    remark = (
        "In each column, the best student is bold and the second best is underlined."
        + " An arrow shows whether a student is above or below KD with the same seeds." * has_kd
        + " In parentheses: the paper's figure (the mean of ten runs; the paper does not give the batch order), and "
        "our figure minus the paper's." * bool(published)
    )
    uniform = notes.uniform((heading, own) for heading, (_, own) in groups.items())
    return notes.captioned(observations, rows, [remark, *uniform])


def _groups(observations: Sequence[Observation]) -> _Groups:
    groups: dict[str, tuple[str, Sequence[Observation]]] = {}
    for row, own in sorted(grouped(observations, "row").items(), key=lambda item: _order(item[0])):
        heading = names.row_title(row)
        for protocol in names.published_first(protocols(own)):
            if not protocol.is_audit and (students := select(own, protocol, names.ON)):
                groups[f"{heading}, {protocol.name}"] = row if protocol.is_published else "", students
        # Neither a CNN nor a student with the graph off uses a mechanism of the paper.
        for graph, title in ((None, heading), ("off", f"{heading}, graph off")):
            students = [observation for observation in own if observation.entry["graph"] == graph]
            if without := [observation for observation in students if names.is_plain(observation.entry)]:
                groups[title] = row if graph is None else "", without
            if names.TRAINING_SET in protocols(students):
                groups[f"{title}, {names.TRAINING_SET.name}"] = "", select(students, names.TRAINING_SET)
    return groups


def _order(row: str) -> tuple[int, str]:
    method = row.partition(", ")[0]
    return (_ORDER.index(method) if method in _ORDER else len(_ORDER), row)


def _displayed(value: float) -> float:
    """A mean as it is displayed. Means that are displayed as the same number are tied."""
    return round(value, 2)


def _rank(cell: Cell, column: Iterable[Cell]) -> int:
    if cell.value is None:
        return 0
    best = sorted({_displayed(other.value) for other in column if other.value is not None}, reverse=True)[:2]
    return best.index(_displayed(cell.value)) + 1 if _displayed(cell.value) in best else 0


def _sign(cell: Cell) -> int:
    return 0 if cell.value is None else (_displayed(cell.value) > 0) - (_displayed(cell.value) < 0)
