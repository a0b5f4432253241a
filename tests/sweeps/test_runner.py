"""Tests of the runner: a sweep continues, records failures, stops in time, and skips cells that other processes run."""

import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from cnn2gnn_jax import pipeline
from cnn2gnn_jax.evaluation import summary
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import InUse, Stopped, UserError
from cnn2gnn_jax.sweeps import records, runner, shards
from tests.conftest import ONE_CPU
from tests.sweeps.conftest import ACCURACY, RESULTS, cells_of, run_sweep

ROOT = pathlib.Path(__file__).parents[2]


def test_a_sweep_continues_after_an_interruption(tmp_path, file, fake_pipeline):
    cells, out = cells_of(file), tmp_path / "out"
    assert run_sweep(cells, out, limit=2) == (2, 0, False)
    assert run_sweep(cells, out) == (6, 0, False)
    assert fake_pipeline == [(method, seed) for seed in range(2) for method in ("cnn2gnn", "kd", "gnn")]
    assert run_sweep(cells, out) == (6, 0, False) and len(fake_pipeline) == 6
    assert len(records.read(out)) == 6
    assert not list((out / "cells").glob("*/checkpoints"))
    # A cell whose record is damaged is run again.
    (out / "records" / f"{cells[3].name}.json").write_text("{")
    assert run_sweep(cells, out) == (6, 0, False) and fake_pipeline[6:] == [("cnn2gnn", 1)]


def test_failures_are_recorded_and_tried_again(tmp_path, file, monkeypatch, fake_pipeline):
    cells, out, works = cells_of(file), tmp_path / "out", pipeline.run

    def fails(config, workdir, stage):
        if config.method == "kd":
            raise MemoryError("too large")
        if config.method == "gnn":
            raise InUse("its owner lives")
        return works(config, workdir, stage)

    monkeypatch.setattr(pipeline, "run", fails)
    assert run_sweep(cells, out) == (2, 2, False)
    failure = storage.read_json(out / "failures" / f"{cells[1].name}.json")
    assert failure["error"] == "MemoryError: too large" and "in fails" in failure["traceback"]
    monkeypatch.setattr(pipeline, "run", works)
    assert run_sweep(cells, out) == (6, 0, False) and not list((out / "failures").iterdir())
    # As after a kill between the writing of the record and the removal of old files.
    (out / "failures" / f"{cells[1].name}.json").write_text("{}")
    (out / "cells" / cells[1].name / "checkpoints").mkdir()
    assert run_sweep(cells, out) == (6, 0, False) and not list((out / "failures").iterdir())
    assert not list((out / "cells").glob("*/checkpoints"))


def test_the_time_limit_stops_the_running_cell(tmp_path, file, monkeypatch):
    def forever(config, workdir, stage):
        signal.sigtimedwait([signal.SIGUSR1], 30)
        raise Stopped("after step 3 of 9")

    monkeypatch.setattr(pipeline, "run", forever)
    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(Stopped("between two stages")))
    try:
        outcome = run_sweep(cells_of(file), tmp_path / "out", minutes=0.005)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome == (0, 0, True)


def test_a_cell_that_another_process_runs_is_skipped(tmp_path, file, fake_pipeline, locked):
    cells, out = cells_of(file), tmp_path / "out"
    with locked(out, cells[0]):
        assert run_sweep(cells, out) == (5, 0, False)
        assert run_sweep(cells, out) == (5, 0, False)
    assert ("cnn2gnn", 0) not in fake_pipeline and len(fake_pipeline) == 5
    assert run_sweep(cells, out) == (6, 0, False) and fake_pipeline[5:] == [("cnn2gnn", 0)]


def test_the_cell_of_a_process_that_dies_meanwhile_is_run_at_the_end(
    tmp_path, file, monkeypatch, fake_pipeline, locked
):
    cells, out, works = cells_of(file), tmp_path / "out", pipeline.run
    with locked(out, cells[0]) as other:

        def run(config, workdir, stage):
            if (config.method, config.seed) == ("gnn", 1):
                other.kill()
                other.wait()
            return works(config, workdir, stage)

        monkeypatch.setattr(pipeline, "run", run)
        assert run_sweep(cells, out) == (6, 0, False)
    assert fake_pipeline[0] == ("kd", 0) and fake_pipeline[4:] == [("gnn", 1), ("cnn2gnn", 0)]


def test_a_cell_is_locked_until_its_record_is_written(tmp_path, file, monkeypatch, fake_pipeline):
    cells, out, write, refused = cells_of(file)[:1], tmp_path / "out", records.write, []

    def watched(*arguments):
        with pytest.raises(InUse), storage.lock(out / "cells" / cells[0].name / runner.LOCK, wait=False):
            pass
        refused.append(True)
        write(*arguments)

    monkeypatch.setattr(records, "write", watched)
    assert run_sweep(cells, out) == (1, 0, False) and refused == [True]


RACE = """
import pathlib, sys, time
from cnn2gnn_jax import pipeline
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.sweeps import plan, runner
from cnn2gnn_jax.sweeps import runner, shards
from tests.conftest import ONE_CPU
from tests.sweeps.conftest import ACCURACY, RESULTS

file, out = map(pathlib.Path, sys.argv[1:])

def run(config, workdir, stage):
    with open(out / f"{config.method}-{config.seed}", "x"):  # fails if two run the same cell
        time.sleep(0.05)
    storage.write_text(workdir / "metrics.jsonl", "")
    return RESULTS | {"method": config.method, "accuracies": [ACCURACY]}

pipeline.run = run
cells = plan.load(file, "", {})
print("ready", flush=True)
sys.stdin.readline()
assert runner.run(cells, out).failed == 0
"""


def test_processes_that_run_the_same_cells_do_each_once(tmp_path, file):
    cells, out = cells_of(file), tmp_path / "out"
    run_sweep(cells, out, shard=[])  # writes only the plan
    command = [sys.executable, "-c", RACE, str(file), str(out)]
    racers = [
        subprocess.Popen(command, cwd=ROOT, env=ONE_CPU, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=60)
        assert racer.returncode == 0
    assert len(list(out.glob("*-*"))) == len(records.read(out)) == 6


@pytest.mark.parametrize("folders", ["shared", "apart"])
def test_two_shards_together_run_every_cell_once(tmp_path, file, fake_pipeline, folders):
    cells = cells_of(file)
    outs = [tmp_path / ("out" if folders == "shared" else f"out{k}") for k in range(2)]
    for k, out in enumerate(outs):
        own = shards.share(cells, shards.Shard(k + 1, 2))
        assert run_sweep(cells, out, shard=own) == (len(own), 0, False)
    assert sorted(fake_pipeline) == sorted((cell.config.method, cell.config.seed) for cell in cells)
    # The plan of each shard lists all cells, so that the records of all shards can be copied into one folder.
    for out in outs[1:] if folders == "apart" else ():
        shutil.copytree(out / "records", outs[0] / "records", dirs_exist_ok=True)
    assert [record["cell"] for record in records.read(outs[0])] == [cell.name for cell in cells]


def test_correct_images_are_stored_with_the_records_and_verified(tmp_path, file, monkeypatch):
    right = {0: np.arange(10) < 5, 1: np.arange(10) % 3 == 0}

    def run(config, workdir, stage):
        arrays = {
            "predicted": np.where(right[config.seed], 1, 0)[None].astype(np.uint8),
            "labels": np.ones(10, np.uint8),
        }
        artifact.write(workdir / summary.PREDICTIONS, summary.KIND, "abc", {}, arrays)
        storage.write_text(workdir / "metrics.jsonl", "")
        accuracy = ACCURACY | {"seed": config.seed, "accuracy": 10.0 * right[config.seed].sum()}
        return RESULTS | {"method": config.method, "accuracies": [accuracy], "predictions": "abc"}

    monkeypatch.setattr(pipeline, "run", run)
    out, cells = tmp_path / "out", cells_of(file)
    assert run_sweep(cells, out) == (6, 0, False)
    for record in records.read(out):
        [entry] = record["accuracies"]
        np.testing.assert_array_equal(entry["correct"], right[entry["seed"]])
    # If the file beside a record is damaged or missing, the cell is run again.
    first, second = (out / "records" / f"{cell.name}.npz" for cell in cells[:2])
    first.write_bytes(second.read_bytes())
    second.unlink()
    assert not records.is_done(out, cells[0].name) and not records.is_done(out, cells[1].name)
    assert run_sweep(cells, out) == (6, 0, False) and records.is_done(out, cells[1].name)
    # The collected file cannot be computed again from a cell, so a damaged one is refused.
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "results.jsonl").write_bytes((out / "results.jsonl").read_bytes())
    (alone / "correct.npz").write_bytes((out / "correct.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match="correct.npz is damaged"):
        records.read(alone)
