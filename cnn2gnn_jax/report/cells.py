"""Tables and their cells, whatever they are written in."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    text: mean and deviation, or a difference and its interval, as written.
    value: the mean, by which it is sorted.
    deviation: over the seeds, of a mean.
    interval, over: of a difference, and what it is over, as `statistics.Difference`.
    n: the seeds, None where they are not told.
    paper: the paper's figure.
    rank: 1 for the best of its column, 2 for the second, 0 otherwise.
    arrow: whether it is above (1) or below (-1) KD.
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
    def beside(self) -> str:
        """The paper's figure and the difference from it, or ''."""
        if self.paper is None or self.value is None:
            return ""
        return f"{self.paper:.2f}, {self.value - self.paper:+.2f}"


EMPTY = Cell("")
Rows = Mapping[str, Mapping[str, Cell]]
"""Cells by heading and column, the same columns in every row."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; `kind` is that of its records, or `differences` or `audit`."""

    title: str
    rows: Rows
    notes: Sequence[str] = ()
    kind: str = ""

    @property
    def columns(self) -> list[str]:
        """The headings of the columns."""
        return list(next(iter(self.rows.values()), ()))
