"""Tables and their cells, whatever they are written in."""

import dataclasses
from collections.abc import Sequence


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
Rows = Sequence[tuple[str, Sequence[Cell]]]
"""A heading and a cell for each column."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; `kind` is that of its records, or `differences` or `audit`."""

    title: str
    columns: Sequence[str]
    rows: Rows
    notes: Sequence[str] = ()
    kind: str = ""

    def column(self, name: str) -> dict[str, Cell]:
        """The cells of a column by the headings of the rows."""
        index = list(self.columns).index(name)
        return {heading: cells[index] for heading, cells in self.rows}
