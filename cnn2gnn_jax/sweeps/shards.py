"""The division of a sweep among processes that need not know of each other.

A shard is a part of the cells. Cells that share a teacher are in the same one, and so are a cell and the candidates
that it chooses from: no shard waits for another. The division depends on the plan alone, and is the same on every
machine.
"""

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps.plan import Cell


class Shard(NamedTuple):
    """Shard `number`, from 1 on, of `total`."""

    number: int
    total: int


WHOLE = Shard(1, 1)


def parse(text: str) -> Shard:
    """The shard that `K/N` names.

    Raises:
      UserError: it names none.
    """
    numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    shard = Shard(int(numbers[1]), int(numbers[2])) if numbers else Shard(0, 0)
    if not 1 <= shard.number <= shard.total:
        raise UserError(
            f"--shard={text}: expected K/N with K from 1 to N, as --shard=1/3 for the first of 3 shards; where a job "
            "array counts from 0, add 1"
        )
    return shard


def share(cells: Sequence[Cell], shard: Shard) -> list[Cell]:
    """The cells of one shard, in their order.

    The largest group of cells that stay together goes first, each to the shard with the fewest cells: two shards differ
    by at most the largest group. If there are more shards than groups, the last ones have no cells.
    """
    groups = sorted(_groups(cells), key=len, reverse=True)
    sizes = [0] * min(shard.total, len(groups))
    chosen: list[int] = []
    for group in groups:
        fewest = sizes.index(min(sizes))
        sizes[fewest] += len(group)
        if fewest == shard.number - 1:
            chosen += group
    return [cells[position] for position in sorted(chosen)]


def _groups(cells: Sequence[Cell]) -> list[list[int]]:
    """The positions of the cells that stay together, by the first cell of each group."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            name = parent
        return name

    for cell in cells:
        for shared in (cell.teacher, *(candidate.name for candidate in cell.candidates)):
            if shared is not None:
                parents[root(cell.name)] = root(shared)
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for position, cell in enumerate(cells):
        groups[root(cell.name)].append(position)
    return list(groups.values())
