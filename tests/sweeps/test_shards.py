"""Tests of the division into shards: each cell is in one shard, dependent cells stay together, sizes are similar."""

import itertools
import pathlib
import random
import runpy

import pytest
from ml_collections import ConfigDict

from cnn2gnn_jax.configs.sweeps import grids
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import plan, shards, tuning
from tests.sweeps.conftest import cells_of

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "configs/sweeps").glob("*.py") if "def sweep(" in path.read_text())
SWEEPS = [(path, word) for path in FILES for word in runpy.run_path(str(path)).get("WORDS", plan.SIZES)]


def check(cells, count):
    """Checks what must hold for every division into `count` shards. Returns the sizes of the shards."""
    division = [shards.share(cells, shards.Shard(k + 1, count)) for k in range(count)]
    positions = {cell.name: position for position, cell in enumerate(cells)}
    order = [[positions[cell.name] for cell in own] for own in division]
    assert sorted(itertools.chain(*order)) == list(range(len(cells)))
    assert all(own == sorted(own) for own in order)
    shard_of = {cell.name: k for k, own in enumerate(division) for cell in own}
    teachers = {(cell.teacher, shard_of[cell.name]) for cell in cells if cell.teacher is not None}
    assert len(teachers) == len({teacher for teacher, _ in teachers})
    for cell in cells:
        assert {shard_of[candidate.name] for candidate in cell.candidates} <= {shard_of[cell.name]}
    return [len(own) for own in division]


def largest_group(cells):
    """Returns the size of the largest group of cells that stays together: the largest shard of the finest division."""
    return max(check(cells, len(cells)))


@pytest.mark.parametrize(("path", "size"), SWEEPS, ids=[f"{path.stem}-{word}" for path, word in SWEEPS])
def test_the_division_of_a_real_sweep(path, size, monkeypatch):
    monkeypatch.setattr(grids, "seeds", lambda size: range(2))  # fewer than the real ten, to save time
    cells, again = plan.load(path, size, {}), plan.load(path, size, {"data.manual_dir": "elsewhere"})
    largest = largest_group(cells)
    for count in (1, 2, 3, 5, 8):
        sizes = check(cells, count)
        assert max(sizes) - min(sizes) <= largest
        # The division is the same on a machine that has its data in another folder.
        assert [cell.name for cell in shards.share(cells, shards.Shard(count, count))] == [
            cell.name for cell in shards.share(again, shards.Shard(count, count))
        ]


def test_the_division_of_sweeps_at_random():
    rng = random.Random(0)
    for _ in range(100):
        cells = []
        for k in range(rng.randrange(1, 60)):
            tried = [
                tuning.Candidate({}, cell.name, cell.config)
                for cell in rng.sample(cells, min(k, rng.choice((0, 0, 2))))
            ]
            teacher = rng.choice((None, *"abcdefgh"))
            cells.append(plan.Cell(f"cell{k}", ConfigDict(), [{}], tried, teacher, ""))
        largest = largest_group(cells)
        for count in (1, 2, 3, 7, 100):
            sizes = check(cells, count)
            assert max(sizes) - min(sizes) <= largest


def test_the_division_equals_a_recorded_one(file):
    cells = cells_of(file)  # for each of two seeds: two cells that use the common teacher, and one without a teacher

    def positions(number, total):
        return [cells.index(cell) for cell in shards.share(cells, shards.Shard(number, total))]

    assert positions(1, 1) == [0, 1, 2, 3, 4, 5]
    assert [positions(k, 2) for k in (1, 2)] == [[0, 1, 3, 4], [2, 5]]
    assert [positions(k, 3) for k in (1, 2, 3)] == [[0, 1, 3, 4], [2], [5]]
    assert [positions(k, 999_999_999) for k in (1, 4, 999_999_999)] == [[0, 1, 3, 4], [], []]
    assert shards.share([], shards.WHOLE) == []


@pytest.mark.parametrize("text", ["0/3", "4/3", "a/b", "1/0", "-1/3", "1", "1/2/3", "", "1.0/2", "1/" + "9" * 5000])
def test_a_wrong_shard_is_refused(text):
    with pytest.raises(UserError, match="expected K/N with K from 1 to N, as --shard=1/3 for the first of 3 shards"):
        shards.parse(text)


def test_a_shard_is_parsed():
    assert shards.parse("3/4") == (3, 4) and shards.parse("1/1") == shards.WHOLE
