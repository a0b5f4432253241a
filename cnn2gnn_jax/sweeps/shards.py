"""Divides a sweep into shards, for processes that do not communicate.

A shard is a part of the cells. Cells that share a teacher are in the same shard, and so are a cell and its candidates,
so no shard waits for another. The division depends only on the plan, and is the same on every machine.
"""

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps.plan import Cell


class Shard(NamedTuple):
    """Shard `number` of `total`, counted from 1."""

    number: int
    total: int


WHOLE = Shard(1, 1)


def parse(text: str) -> Shard:
    """Parses `K/N`.

    Raises:
      UserError: the text is not `K/N` with K from 1 to N.
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

    Groups of cells that stay together are assigned in order of decreasing size, each to the shard with the fewest
    cells, so the sizes of two shards differ by at most the largest group. If there are more shards than groups, the
    last shards are empty.
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
    """The positions of the cells in each group that stays together, in the order of the first cells."""
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
