"""Fixtures: small sweeps, and pipelines that return results without training."""

import contextlib
import subprocess
import sys

import pytest

from cnn2gnn_jax import pipeline
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import Diverged
from cnn2gnn_jax.sweeps import plan, records, runner

SWEEP = """
from cnn2gnn_jax.configs import digits

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
    """Replaces the pipeline by one that returns results without training. Returns the list of its runs."""
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


LOCK = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def locked():
    """Returns `locked(out, cell)`, a context in which another process holds the lock of the cell, as if it ran it."""

    @contextlib.contextmanager
    def lock(out, cell):
        path = out / "cells" / cell.name / runner.LOCK
        path.parent.mkdir(parents=True)
        command = [sys.executable, "-c", LOCK, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "locked\n"
            try:
                yield process
            finally:
                process.kill()

    return lock


def cells_of(file, **settings):
    return plan.load(file, "", settings)


def run_sweep(cells, out, shard=None, **options):
    """Runs a sweep as the command does: the plan lists all cells, but only those in `shard` are run, if it is given."""
    records.write_plan(out, "tiny", [(cell.name, cell.places) for cell in cells])
    return runner.run(cells if shard is None else shard, out, **options)


TUNED = """
from cnn2gnn_jax.configs import digits

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
    """Like `fake_pipeline`. The learning rate with the best held-out accuracy differs with and without the graph."""
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
            for mechanism, order, other in (
                ("one_by_one", None, other),
                ("batch_by_batch", "shuffled", 50),
                ("batch_by_batch", "class_sorted", 50),
            )
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
