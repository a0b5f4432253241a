"""Tests of plans: cells that compute the same are merged, and invalid sweeps are refused before anything runs."""

import pathlib

import pytest

from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import plan
from tests.sweeps.conftest import SWEEP, TUNED, cells_of

ROOT = pathlib.Path(__file__).parents[2]


def test_cells_that_compute_the_same_run_once(file):
    cells = cells_of(file)
    assert len(cells) == 6 and len({cell.name for cell in cells}) == 6
    assert [place["kind"] for place in cells[0].places] == ["methods", "settings", "ablation", "curve"]
    # The name of a cell depends on the fields that change its result, but not on the paths of its files.
    moved = cells_of(file, **{"data.manual_dir": "elsewhere", "cache_dir": "elsewhere"})
    assert [cell.name for cell in moved] == [cell.name for cell in cells]
    wider = cells_of(file, **{"student.hidden": 8})  # a field that CNN students do not use
    assert [a.name == b.name for a, b in zip(cells, wider, strict=True)] == [False, True, False] * 2
    for field, value in (
        ("student.train.epochs", 8),
        ("evaluate.anchors", 30),
        ("data.limit", 15),
        ("seeds", 2),
    ):
        assert not {cell.name for cell in cells_of(file, **{field: value})} & {cell.name for cell in cells}, field


def test_cells_know_whose_teacher_they_share(file, tmp_path):
    teachers = [cell.teacher for cell in cells_of(file)]
    assert teachers[0] is not None and teachers == [teachers[0], teachers[0], None] * 2
    for field, value in (("teacher.seed", 1), ("teacher.network", "resnet20"), ("data.limit", 15)):
        assert cells_of(file, **{field: value})[0].teacher not in (None, teachers[0]), field
    for field, value in (("student.train.epochs", 9), ("data.residency", "host"), ("data.manual_dir", "elsewhere")):
        assert cells_of(file, **{field: value})[0].teacher == teachers[0], field
    (tmp_path / "logits.npy").write_bytes(b"")
    file.write_text(SWEEP.replace(', "gnn")', ")"))
    with_file = cells_of(file, **{"teacher.logits_file": str(tmp_path / "logits.npy")})
    assert [cell.teacher for cell in with_file] == [None] * 4


def test_a_wrong_value_is_refused_before_anything_runs(file):
    with pytest.raises(UserError, match="student.hidden is 0: it must be between 1 and 1000000"):
        cells_of(file, **{"student.hidden": 0})


def test_a_wrong_file_is_refused(tmp_path, file):
    with pytest.raises(UserError, match=r"none.py is no file and no built-in sweep: .*, or choices, figure4, .*table3"):
        plan.load(tmp_path / "none.py", "", {})
    with pytest.raises(UserError, match=r"^grids is no file and no built-in sweep"):
        plan.load(pathlib.Path("grids"), "", {})
    with pytest.raises(UserError, match="'huge' after the colon is no size"):
        plan.load(file, "huge", {})
    (tmp_path / "other.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"no function sweep\(add, size\)"):
        plan.load(tmp_path / "other.py", "", {})


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/sweeps").glob("*.py")))
def test_every_sweep_has_a_small_size_whose_cells_are_right(name):
    path = ROOT / "configs/sweeps" / f"{name}.py"
    if "def sweep(" not in path.read_text():
        pytest.skip("no sweep")
    for size in ("smoke", "digits"):
        cells = plan.load(path, size, {})
        assert [cell.name for cell in plan.load(pathlib.Path(name), size, {})] == [cell.name for cell in cells] != []


def test_the_full_tables_have_every_row_of_every_pair():
    cells = plan.load(ROOT / "configs/sweeps/table1.py", "", {})
    places = [(place["row"], place["column"], cell.config.seed) for cell in cells for place in cell.places]
    assert len(places) == len(set(places)) == 16 * 9 * 10
    # For each seed: the CNN methods with a teacher, CNN2GNN (two pairs share a teacher), labels alone, and GNN.
    assert len(cells) == 10 * (13 * 9 + 8 + 4 + 1)


def test_a_config_with_held_out_images_is_tuned_on_them(tuned_file):
    cells = cells_of(tuned_file, **{"data.holdout": 0.8})
    assert {cell.config.data.holdout for cell in cells} == {0.8}
    # A field that is set for every cell is not tuned.
    assert not any(cell.candidates for cell in cells_of(tuned_file, **{"student.train.learning_rate": 0.03}))


def test_a_wrong_choice_is_refused(tuned_file):
    tuned_file.write_text(TUNED.replace("student.train.learning_rate", "student.train.learning_rat"))
    with pytest.raises(UserError, match="tune: .*learning_rat"):
        cells_of(tuned_file)
    tuned_file.write_text(TUNED.replace("0.04)", "-1.0)"))
    with pytest.raises(UserError, match="student.train.learning_rate is -1.0"):
        cells_of(tuned_file)
    tuned_file.write_text(TUNED.replace("graph_off = seed, method, 10, False", "graph_off = seed, method, 10, True"))
    with pytest.raises(UserError, match="tune chooses for one student"):
        cells_of(tuned_file)
