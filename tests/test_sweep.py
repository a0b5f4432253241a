"""Sweeps: equal cells run once, go on, fail as recorded and are shared; their report says what they recorded."""

import csv
import json
import pathlib
import signal
import subprocess
import sys

import pytest

from cnn2gnn_jax import pipeline, storage, sweep
from cnn2gnn_jax.errors import InUse, Stopped, UserError
from cnn2gnn_jax.report import records
from cnn2gnn_jax.report.__main__ import write as write_report

ROOT = pathlib.Path(__file__).parent.parent
SWEEP = """
from configs import digits

def sweep(add, size=""):
    for seed in range(2):
        for method in ("cnn2gnn", "kd", "gnn"):
            config = digits.get_config("smoke")
            config.data.limit, config.seed, config.method = 20, seed, method
            config.teacher.train.epochs = config.student.train.epochs = 1
            config.student.sparsity = 10
            config.teacher.network = "resnet8"
            add(config, "methods", "Table: tiny", row=method, column="resnet8-resnet8")
            if method == "cnn2gnn":
                add(config, "settings", "Features", setting="stem")
                add(config, "ablation", "Table 3: digits", row="learned", column="digits")
                add(config, "curve", "Figure 4, sparsity", panel="digits", line="resnet8", x=10)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def fake_pipeline(monkeypatch):
    """Runs that cost nothing: each gives the results of its config, and is counted."""
    runs = []

    def run(config, workdir, stage):
        runs.append((config.method, config.seed))
        storage.write_text(workdir / "metrics.jsonl", "")
        (workdir / "checkpoints").mkdir(exist_ok=True)
        return RESULTS | {"method": config.method, "accuracies": [ACCURACY | {"seed": config.seed}]}

    monkeypatch.setattr(pipeline, "run", run)
    return runs


ACCURACY = {"seed": 0, "graph": None, "mechanism": None, "batch_order": None, "accuracy": 50.0}
RESULTS = {
    "dataset": {"classes": ["a", "b"], "name": "digits", "evaluated": "test", "evaluated_images": 10,
                "train_images": 20},
    "teacher": None,
    "student": {"recipe": "paper", "epoch": "last", "inference_flops": 1.0},
    "seconds": {},
    "inference_seconds": [None],
    "examples": [],
    "devices": 1,
    "versions": {},
}  # fmt: skip


def cells_of(file, **settings):
    return sweep.plan(file, "", settings)


def test_cells_that_compute_the_same_are_one(file):
    cells = cells_of(file)
    assert len(cells) == 6 and len({cell.name for cell in cells}) == 6
    assert [place["kind"] for place in cells[0].places] == ["methods", "settings", "ablation", "curve"]
    # Where things are is not what they are; what they are is.
    moved = cells_of(file, **{"data.manual_dir": "elsewhere", "cache_dir": "elsewhere"})
    assert [cell.name for cell in moved] == [cell.name for cell in cells]
    wider = cells_of(file, **{"student.hidden": "8"})  # which is no field of a CNN student
    assert [a.name == b.name for a, b in zip(cells, wider, strict=True)] == [False, True, False] * 2
    for field, value in (
        ("student.train.epochs", "8"),
        ("evaluate.anchors", "30"),
        ("data.limit", "15"),
        ("seeds", "2"),
    ):
        assert not {cell.name for cell in cells_of(file, **{field: value})} & {cell.name for cell in cells}, field


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"student.hiden": "8"},
            "there is no field config.student.hiden: did you mean config.student.hidden",
        ),
        ({"sparsity": "8"}, "there is no field config.sparsity: did you mean config.student.sparsity"),
        ({"data.name.first": "1"}, "there is no field config.data.name.first"),
        ({"student.hidden": "many"}, "--config.student.hidden=many: expected a value of type int"),
        ({"student.hidden": "__import__('os')"}, "expected a value of type int"),
        ({"student.hidden": "0"}, "student.hidden is 0"),
    ],
)
def test_a_wrong_field_is_refused_before_anything_runs(file, settings, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        cells_of(file, **settings)


def test_a_wrong_file_is_refused(tmp_path, file):
    with pytest.raises(UserError, match="is no file"):
        sweep.plan(tmp_path / "none.py", "", {})
    with pytest.raises(UserError, match="'huge' after the colon is no size"):
        sweep.plan(file, "huge", {})
    (tmp_path / "other.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"no function sweep\(add, size\)"):
        sweep.plan(tmp_path / "other.py", "", {})


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/sweeps").glob("*.py")))
def test_every_sweep_has_a_small_size_whose_cells_are_right(name):
    path = ROOT / "configs/sweeps" / f"{name}.py"
    if "def sweep(" not in path.read_text():
        pytest.skip("no sweep")
    assert {len(sweep.plan(path, size, {})) > 0 for size in ("smoke", "digits")} == {True}


def test_the_full_tables_have_every_row_of_every_pair():
    cells = sweep.plan(ROOT / "configs/sweeps/table1.py", "", {})
    places = [(place["row"], place["column"], cell.config.seed) for cell in cells for place in cell.places]
    assert len(places) == len(set(places)) == 16 * 9 * 10
    # Of each seed: the CNN methods with a teacher, CNN2GNN (two pairs share a teacher), labels alone, GNN.
    assert len(cells) == 10 * (13 * 9 + 8 + 4 + 1)


def test_a_sweep_goes_on_where_it_was(tmp_path, file, fake_pipeline):
    cells, out = cells_of(file), tmp_path / "out"
    assert sweep.run(cells, out, "tiny", limit=2) == (2, 0, None)
    assert sweep.run(cells, out, "tiny") == (6, 0, None)
    assert fake_pipeline == [(method, seed) for seed in range(2) for method in ("cnn2gnn", "kd", "gnn")]
    assert sweep.run(cells, out, "tiny") == (6, 0, None) and len(fake_pipeline) == 6
    assert len(records.read(out)) == 6
    assert not list((out / "cells").glob("*/checkpoints")) and not list((out / "claims").iterdir())
    # A record that is not whole is made again.
    (out / "records" / f"{cells[3].name}.json").write_text("{")
    assert sweep.run(cells, out, "tiny") == (6, 0, None) and fake_pipeline[6:] == [("cnn2gnn", 1)]


def test_failures_are_recorded_and_tried_again(tmp_path, file, monkeypatch, fake_pipeline):
    cells, out, works = cells_of(file), tmp_path / "out", pipeline.run

    def fails(config, workdir, stage):
        if config.method == "kd":
            raise MemoryError("too large")
        if config.method == "gnn":
            raise InUse("its owner lives")
        return works(config, workdir, stage)

    monkeypatch.setattr(pipeline, "run", fails)
    assert sweep.run(cells, out, "tiny") == (2, 2, None)
    failure = storage.read_json(out / "failures" / f"{cells[1].name}.json")
    assert failure["error"] == "MemoryError: too large" and "in fails" in failure["traceback"]
    monkeypatch.setattr(pipeline, "run", works)
    assert sweep.run(cells, out, "tiny") == (6, 0, None) and not list((out / "failures").iterdir())
    # A kill between the record and what follows it.
    (out / "failures" / f"{cells[1].name}.json").write_text("{}")
    (out / "cells" / cells[1].name / "checkpoints").mkdir()
    assert sweep.run(cells, out, "tiny") == (6, 0, None) and not list((out / "failures").iterdir())
    assert not list((out / "cells").glob("*/checkpoints"))


def test_time_that_is_up_stops_the_running_cell(tmp_path, file, monkeypatch):
    def forever(config, workdir, stage):
        signal.sigtimedwait([signal.SIGUSR1], 30)
        raise Stopped("after step 3 of 9")

    monkeypatch.setattr(pipeline, "run", forever)
    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(Stopped("between two stages")))
    try:
        outcome = sweep.run(cells_of(file), tmp_path / "out", "tiny", minutes=0.005)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome == (0, 0, "the time is up") and not list((tmp_path / "out" / "claims").iterdir())


def test_a_cell_that_another_process_holds_is_left_to_it(tmp_path, file, fake_pipeline):
    cells, out = cells_of(file), tmp_path / "out"
    (out / "claims").mkdir(parents=True)
    (out / "claims" / cells[0].name).write_text("another")
    assert sweep.run(cells, out, "tiny") == (5, 0, None)
    assert ("cnn2gnn", 0) not in fake_pipeline


def test_a_real_sweep_shared_by_two_processes_and_its_report(tmp_path, file, cache):
    file.write_text(SWEEP.replace("range(2)", "range(1)").replace(', "gnn")', ")"))
    command = [sys.executable, "-m", "cnn2gnn_jax.sweep", f"--sweep={file}", f"--out={tmp_path / 'out'}"]
    command += [f"--config.cache_dir={cache}"]
    workers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    text = "".join(said)
    assert text.count("evaluating graph_learned-seed0") == text.count("evaluating cnn-seed0") == 1  # each cell once
    page = write_report(tmp_path / "out", cache).read_text()
    assert "<script" in page and "http:" not in page and "https:" not in page
    for words in ("CNN2GNN, batch by batch", "CNN2GNN, graph off", "Figure 3", "Figure 5", "audit of how much"):
        assert words in page, words
    found = records.read(tmp_path / "out")
    [accuracy] = [entry["accuracy"] for record in found for entry in record["accuracies"] if record["method"] == "kd"]
    with open(tmp_path / "out/report/table_tiny.csv", newline="") as opened:
        rows = {row[0]: row for row in csv.reader(opened)}
    assert float(rows["KD"][2]) == pytest.approx(accuracy, abs=1e-3)
    assert json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[0])["places"]
    # From results.jsonl alone the tables are the same.
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "results.jsonl").write_bytes((tmp_path / "out/results.jsonl").read_bytes())
    write_report(alone, cache)
    assert (alone / "report/results.md").read_text() == (tmp_path / "out/report/results.md").read_text()
