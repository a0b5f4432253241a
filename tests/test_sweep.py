"""Sweeps: equal cells run once, go on, fail as recorded and are shared; their report says what they recorded."""

import csv
import json
import pathlib
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest

from cnn2gnn_jax import pipeline, sweep
from cnn2gnn_jax.report import records, tables
from cnn2gnn_jax.report.__main__ import write as write_report
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import Diverged, InUse, Stopped, UserError
from cnn2gnn_jax.sweeps import tuning

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
    for record in found:
        for entry in record["accuracies"]:
            assert entry["correct"].shape == (record["dataset"]["evaluated_images"],)
            assert 100 * entry["correct"].mean() == pytest.approx(entry["accuracy"], abs=1e-4)
    # From results.jsonl and correct.npz alone the tables are the same.
    whole, alone = (tmp_path / "out/report/results.md").read_text(), tmp_path / "alone"
    alone.mkdir()
    for name in ("results.jsonl", "correct.npz"):
        (alone / name).write_bytes((tmp_path / "out" / name).read_bytes())
    write_report(alone, cache)
    assert (alone / "report/results.md").read_text() == whole
    assert "of a single seed are over images alone" in whole
    # Without the predictions there are no intervals of a single seed.
    (alone / "correct.npz").unlink()
    write_report(alone, cache)
    assert "over images alone" not in (alone / "report/results.md").read_text()


def test_which_images_are_right_is_kept_beside_the_records_and_verified(tmp_path, file, monkeypatch):
    right = {0: np.arange(10) < 5, 1: np.arange(10) % 3 == 0}

    def run(config, workdir, stage):
        arrays = {
            "predicted": np.where(right[config.seed], 1, 0)[None].astype(np.uint8),
            "labels": np.ones(10, np.uint8),
        }
        storage.write_arrays(workdir / "predictions.npz", arrays)
        storage.write_text(workdir / "metrics.jsonl", "")
        hashes = {f"{name}_sha256": storage.array_sha256(array) for name, array in arrays.items()}
        accuracy = ACCURACY | {"seed": config.seed, "accuracy": 10.0 * right[config.seed].sum()}
        return RESULTS | {"method": config.method, "accuracies": [accuracy], "predictions": hashes}

    monkeypatch.setattr(pipeline, "run", run)
    out, cells = tmp_path / "out", cells_of(file)
    assert sweep.run(cells, out, "tiny") == (6, 0, None)
    for record in records.read(out):
        [entry] = record["accuracies"]
        np.testing.assert_array_equal(entry["correct"], right[entry["seed"]])
    # A damaged or missing file beside a record: the cell is run again.
    first, second = (out / "records" / f"{cell.name}.npz" for cell in cells[:2])
    first.write_bytes(second.read_bytes())
    second.unlink()
    assert not records.is_done(out, cells[0].name) and not records.is_done(out, cells[1].name)
    assert sweep.run(cells, out, "tiny") == (6, 0, None) and records.is_done(out, cells[1].name)
    # Of the collected ones there is nothing to fall back to.
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "results.jsonl").write_bytes((out / "results.jsonl").read_bytes())
    (alone / "correct.npz").write_bytes((out / "correct.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match="correct.npz is damaged"):
        records.read(alone)


TUNED = """
from configs import digits

def sweep(add, size=""):
    for seed in (4, 5):
        for method in ("cnn2gnn", "cnn2gnn_off"):
            config = digits.get_config("smoke")
            config.seed, config.method, config.student.sparsity, config.evaluate.graph_off = seed, method, 10, False
            config.student.train.epochs = 1
            tune = {"student.train.learning_rate": (0.01, 0.02, 0.04)}
            add(config, "settings", "Worth", setting="plain", tune=tune)
"""


@pytest.fixture
def tuned_file(tmp_path):
    path = tmp_path / "tuned.py"
    path.write_text(TUNED)
    return path


@pytest.fixture
def tuned_pipeline(monkeypatch):
    """Runs that cost nothing: held-out accuracy is best at another learning rate with the graph than without it."""
    runs = []

    def run(config, workdir, stage):
        rate, split, graph = config.student.train.learning_rate, config.evaluate.split, config.method == "cnn2gnn"
        runs.append((config.method, split, config.data.holdout, config.seed, config.seeds, rate))
        storage.write_text(workdir / "metrics.jsonl", "")
        if not graph and rate == 0.01:
            raise Diverged("the loss became nan at step 3")
        accuracy = {"test": 70.0 - 10 * (not graph), "holdout": 100 * rate if graph else 10 - 100 * rate}[split]
        entries = [
            {"seed": config.seed + k, "graph": name, "mechanism": mechanism, "batch_order": order,
             "accuracy": accuracy + k + other, "diagnostics": {}}
            for k in range(config.seeds)
            for name, other in ((("learned", 0), ("off_at_test", 99)) if graph else (("off", 0),))
            for mechanism, order, other in (("one_by_one", None, other), ("batch_by_batch", "shuffled", 50))
        ]  # fmt: skip
        dataset = RESULTS["dataset"] | {"evaluated": split}
        seconds = [None] * len(entries)
        return RESULTS | {
            "method": config.method,
            "dataset": dataset,
            "accuracies": entries,
            "inference_seconds": seconds,
        }

    monkeypatch.setattr(pipeline, "run", run)
    return runs


def test_each_arm_chooses_on_held_out_images_and_is_tested_once(tmp_path, tuned_file, tuned_pipeline):
    cells, out = cells_of(tuned_file), tmp_path / "out"
    # Cells that differ in their seed share their candidates.
    assert len(cells) == 2 * 3 + 2 * 2
    assert [bool(cell.candidates) for cell in cells] == [False] * 3 + [True] + [False] * 3 + [True] * 3
    assert sweep.run(cells, out, "tuned") == (10, 0, None)
    held_out = [run for run in tuned_pipeline if run[1] == "holdout"]
    assert held_out == [
        (method, "holdout", 0.2, 0, tuning.SEEDS, rate)
        for method in ("cnn2gnn", "cnn2gnn_off")
        for rate in (0.01, 0.02, 0.04)
    ]
    # The candidate that diverged is out; the figures under other protocols play no part.
    assert [run for run in tuned_pipeline if run[1] == "test"] == [
        (method, "test", 0.0, seed, 1, {"cnn2gnn": 0.04, "cnn2gnn_off": 0.02}[method])
        for seed in (4, 5)
        for method in ("cnn2gnn", "cnn2gnn_off")
    ]
    kept = records.read(out)
    assert len(kept) == 4  # without the candidates
    mean = (tuning.SEEDS - 1) / 2
    assert kept[1]["tuned"] == {
        "fields": {"student.train.learning_rate": 0.02},
        "candidates": [
            {"fields": {"student.train.learning_rate": rate}, "accuracy": accuracy}
            for rate, accuracy in ((0.01, None), (0.02, 8.0 + mean), (0.04, 6.0 + mean))
        ],
        "images": 10,
        "seeds": tuning.SEEDS,
    }
    assert kept[1]["config"]["student.train.learning_rate"] == 0.02


def test_the_report_pairs_tuned_arms_and_tells_their_choices(tmp_path, tuned_file, tuned_pipeline):
    sweep.run(cells_of(tuned_file), tmp_path / "out", "tuned")
    settings, audit = tables.every(records.read(tmp_path / "out"))
    [(heading, line)] = settings.rows
    row = dict(zip(settings.columns, line, strict=True))
    assert heading == "plain"
    assert row["the graph is worth, one by one"].value == 10 and row["the graph is worth, one by one"].n == 2
    assert row["graph off"].value == 60
    assert row["chosen with the graph"].text == "learning_rate 0.04 (largest tried)"
    assert row["chosen with the graph off"].text == "learning_rate 0.02"
    assert "on 10 held-out training images" in settings.notes[1]
    assert "Tried: learning_rate 0.01, 0.02, 0.04." in settings.notes[1]
    [(heading, line)] = audit.rows
    assert heading == "Worth, plain (n = 2)" and line[3].value == 10
    made = runpy.run_path(str(ROOT / "docs" / "make_results.py"))
    made["section"].__globals__["sweeps"] = lambda: {"tuned": [settings]}
    shown = made["section"]()
    assert "class-sorted (audit) | chosen with the graph | chosen with the graph off |" in shown
    assert "| learning_rate 0.04 (largest tried) | learning_rate 0.02 |" in shown


def test_a_choice_goes_on_where_it_was_and_is_the_same(tmp_path, tuned_file, tuned_pipeline):
    whole = tmp_path / "whole"
    sweep.run(cells_of(tuned_file), whole, "tuned")
    expected = [(record["cell"], record["tuned"]) for record in records.read(whole)]
    runs = sorted(tuned_pipeline)
    tuned_pipeline.clear()
    for done in range(1, 11):  # one cell each time, as if killed after it
        assert sweep.run(cells_of(tuned_file), tmp_path / "out", "tuned", limit=1).done == done
    assert [(record["cell"], record["tuned"]) for record in records.read(tmp_path / "out")] == expected
    assert sorted(tuned_pipeline) == runs


def test_a_cell_waits_for_candidates_that_another_process_runs(tmp_path, tuned_file, tuned_pipeline):
    cells, out = cells_of(tuned_file), tmp_path / "out"
    (out / "claims").mkdir(parents=True)
    (out / "claims" / cells[0].name).write_text("another")
    assert sweep.run(cells, out, "tuned") == (7, 0, None)
    assert ("cnn2gnn", "test") not in {run[:2] for run in tuned_pipeline}


def test_a_choice_among_candidates_that_all_diverged_is_a_failure(tmp_path, tuned_file, tuned_pipeline):
    tuned_file.write_text(TUNED.replace("(0.01, 0.02, 0.04)", "(0.01,)").replace("(4, 5)", "(4,)"))
    cells, out = cells_of(tuned_file), tmp_path / "out"
    assert sweep.run(cells, out, "tuned") == (3, 1, None)
    failure = storage.read_json(out / "failures" / f"{cells[3].name}.json")
    assert failure["error"].startswith("all 1 candidates diverged, as the loss became nan at step 3")


def test_images_that_a_config_holds_out_are_those_it_chooses_on(tuned_file):
    cells = cells_of(tuned_file, **{"data.holdout": "0.8"})
    assert {cell.config.data.holdout for cell in cells} == {0.8}
    # What is set for every cell is not chosen.
    assert not any(cell.candidates for cell in cells_of(tuned_file, **{"student.train.learning_rate": "0.03"}))


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
