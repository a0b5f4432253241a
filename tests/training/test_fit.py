"""Tests of training with checkpoints. Seeds that train side by side must end as if each had been trained alone."""

import re
import types

import chex
import jax
import numpy as np
import pytest

from cnn2gnn_jax import distillers, gnn
from cnn2gnn_jax.config import RECIPES
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import fit
from cnn2gnn_jax.training.checkpoint import Checkpoints, recover
from cnn2gnn_jax.training.fit import Job
from cnn2gnn_jax.training.metrics import read_records
from cnn2gnn_jax.training.task import Task

IMAGES, BATCH = 24, 8


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    label = np.arange(IMAGES, dtype=np.int32) % 3
    images = (rng.integers(0, 128, (IMAGES, 4, 4, 1)) + 60 * label[:, None, None, None]).astype(np.uint8)
    return {"input": images, "label": label}


def task(seed, epochs=3, epoch="last", **fields):
    fields |= {"head_update": "rows", "chunk_steps": 3, "epoch": epoch, "epochs": epochs, "batch_size": BATCH}
    recipe = types.SimpleNamespace(**{**RECIPES["paper"], **fields})
    labels = distillers.create("none", {})
    module = gnn.GraphStudent(3, gnn.Flatten(), sparsity=3, hidden=4, head_widths=(4, 4))
    return Task(module, labels, labels.stages[0], recipe, IMAGES // BATCH, IMAGES, seed, mean=(0.5,), std=(0.25,))


def train(folder, data, seeds, score=None, **fields):
    jobs = [Job(task(seed, **fields), f"seed{seed}", folder / f"seed{seed}", f"run/seed{seed}") for seed in seeds]
    setting = fit.Setting(folder / "metrics.jsonl", every_seconds=0)
    loads = fit.fit_on_disk(jobs, lambda: data, score or (lambda task, state: 0.0), setting)
    return [load() for load in loads]


def test_seeds_with_different_progress_end_as_if_trained_alone(data, tmp_path):
    train(tmp_path / "together", data, [1], epochs=2)  # seed 1 is ahead of the others, but not finished
    together = train(tmp_path / "together", data, [0, 1, 2])
    for seed, state in enumerate(together):
        [alone] = train(tmp_path / "alone", data, [seed])
        chex.assert_trees_all_close(state, alone, rtol=1e-4, atol=1e-6)
    steps = {}
    for record in read_records(tmp_path / "together" / "metrics.jsonl"):
        steps.setdefault(record["stage"], []).append(record["step"])
    assert steps == {f"seed{seed}": [3, 6, 9] for seed in range(3)}


def test_each_seed_keeps_the_best_of_its_own_epochs(data, tmp_path):
    asked = {0: [1.0, 3.0, 2.0], 1: [5.0, 4.0, 3.0]}

    def score(task, state):
        return asked[task.seed][int(state.step) // 3 - 1]

    states = train(tmp_path, data, [0, 1], score, epoch="best")
    assert [int(state.step) for state in states] == [6, 3]


def test_training_that_is_not_finite_names_the_step_and_keeps_the_last_finite_state(data, tmp_path):
    with pytest.raises(UserError) as raised:
        train(tmp_path, data, [0], epochs=200, learning_rate=100.0, weight_decay=0.0, momentum=0.9)
    actual = re.fullmatch(
        r"seed0: .* became .* at step (\d+); its last checkpoint, of step (\d+), is good: try .*", str(raised.value)
    )
    assert actual is not None, raised.value
    broken, stored = map(int, actual.groups())
    assert 0 < stored <= broken <= stored + 6
    assert recover(tmp_path / "seed0" / "train" / "last", "run/seed0") == stored
    with Checkpoints(tmp_path / "seed0" / "train" / "last", "run/seed0") as checkpoints:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoints.restore_as_saved()))


def test_the_training_set_stays_where_there_is_room(data, monkeypatch, capsys):
    assert set(fit.place_training_set(data, "auto")[0]) == set(data)
    assert "stay on the device" in capsys.readouterr().err
    monkeypatch.setattr(fit, "_CPU_FRACTION", 1e-12)
    resident, host = fit.place_training_set(data, "auto")
    assert not resident
    assert host.keys() == data.keys()
    assert "stay on the host" in capsys.readouterr().err
    assert isinstance(fit.place_training_set(data, "device")[0]["input"], jax.Array)
