"""Tables and cells, independent of the format in which they are written."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Cell:
    """The content of a cell.

    text: a mean with its standard deviation, or a difference with its interval, as displayed.
    value: the mean, by which rows are sorted.
    deviation: the standard deviation of a mean over seeds.
    interval: the 95% confidence interval of a difference.
    over: what the interval is over, see `statistics.Difference`.
    n: the number of seeds; None where it does not apply.
    paper: the paper's figure.
    rank: 1 for the best cell of its column, 2 for the second, 0 otherwise.
    arrow: 1 if it is above KD, -1 if below, 0 otherwise.
    """

    text: str
    value: float | None = None
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    over: str = ""
    n: int | None = None
    paper: float | None = None
    rank: int = 0
    arrow: int = 0

    @property
    def comparison(self) -> str:
        """The paper's figure and the difference from it; '' without one."""
        if self.paper is None or self.value is None:
            return ""
        return f"{self.paper:.2f}, {self.value - self.paper:+.2f}"


EMPTY = Cell("")
Rows = Mapping[str, Mapping[str, Cell]]
"""Cells by row heading and column; every row has the same columns."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with its notes; `kind` is that of its records, or `differences`, `audit` or `run`."""

    title: str
    rows: Rows
    notes: Sequence[str] = ()
    kind: str = ""

    @property
    def columns(self) -> list[str]:
        """The column headings."""
        return list(next(iter(self.rows.values()), ()))
