"""Methods by pairs of networks, as the paper's Tables 1 and 2, and their differences from KD."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cnn2gnn_jax.distillers import METHODS
from cnn2gnn_jax.report import names, notes, paper
from cnn2gnn_jax.report.cells import Cell, Table
from cnn2gnn_jax.report.observations import (
    Observation,
    accuracy,
    difference,
    grouped,
    mean,
    protocols,
    select,
    teachers,
    with_graph,
)

_ORDER = [*paper.ROWS, *METHODS]


class _Row(NamedTuple):
    """A row: its heading, the row of the paper's table or '', and its accuracies."""

    heading: str
    published: str
    observations: Sequence[Observation]


def tables(observations: Sequence[Observation]) -> list[Table]:
    """The table of one name, and the paired differences to KD if it has a row of KD."""
    columns, rows = grouped(observations, "column"), _rows(observations)
    to_kd = {
        row.heading: {
            column: difference(select(row.observations, column=column), select(group, row="kd"))
            for column, group in columns.items()
        }
        for row in rows
    }
    table = _accuracies(observations, rows, to_kd)
    others = [(row.heading, list(to_kd[row.heading].values())) for row in rows if row.published != "kd"]
    if len(others) == len(rows):
        return [table]
    counted, seeds = notes.mark_seeds(others)
    body, over = notes.mark_intervals(counted)
    note = f"Mean over {seeds} of the difference to KD of the same seed, in points."
    return [table, Table(f"{table.title}: paired difference to KD", [*columns], body, [note, *over], "differences")]


def _accuracies(
    observations: Sequence[Observation], rows: Sequence[_Row], to_kd: Mapping[str, Mapping[str, Cell]]
) -> Table:
    published = paper.METHODS.get(observations[0].place["name"], {})
    cells: dict[str, dict[str, Cell]] = {"Teacher": {}, **{row.heading: {} for row in rows}}
    for column, group in grouped(observations, "column").items():
        cells["Teacher"][column] = mean(teachers(group).values(), published=published.get(("teacher", column)))
        accuracies = {
            row.heading: accuracy(select(row.observations, column=column), published.get((row.published, column)))
            for row in rows
        }
        for heading, cell in accuracies.items():
            rank, arrow = _rank(cell, accuracies.values()), _sign(to_kd[heading][column])
            cells[heading][column] = dataclasses.replace(cell, rank=rank, arrow=arrow)
    remark = (
        "Bold is best and underlined second of a column's students; arrows are against KD of the same seeds. "
        + "In brackets the paper's figure (ten runs; its batch order is not told) and ours less it." * bool(published)
    )
    uniform = notes.uniform((row.heading, row.observations) for row in rows)
    return notes.captioned(observations, cells, [remark, *uniform])


def _rows(observations: Sequence[Observation]) -> list[_Row]:
    rows = []
    for row, own in sorted(grouped(observations, "row").items(), key=lambda item: _order(item[0])):
        heading = names.row_title(row)
        if all(observation.entry["graph"] is None for observation in own):
            rows.append(_Row(heading, row, own))
            continue
        for protocol in names.published_first(protocols(own)):
            if not protocol.is_audit:
                published = row if protocol.is_published else ""
                rows.append(_Row(f"{heading}, {protocol.name}", published, with_graph(select(own, protocol))))
        if off := select(own, names.ONE_BY_ONE, "off"):
            rows.append(_Row(f"{heading}, graph off", "", off))
    return rows


def _order(row: str) -> tuple[int, str]:
    method = row.partition(", ")[0]
    return (_ORDER.index(method) if method in _ORDER else len(_ORDER), row)


def _shown(value: float) -> float:
    """A mean as it is written: what differs in less is a tie."""
    return round(value, 2)


def _rank(cell: Cell, column: Iterable[Cell]) -> int:
    if cell.value is None:
        return 0
    best = sorted({_shown(other.value) for other in column if other.value is not None}, reverse=True)[:2]
    return best.index(_shown(cell.value)) + 1 if _shown(cell.value) in best else 0


def _sign(cell: Cell) -> int:
    return 0 if cell.value is None else (_shown(cell.value) > 0) - (_shown(cell.value) < 0)
