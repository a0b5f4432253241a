"""Tests that run the whole pipeline on digits with every distillation method."""

import sys

import chex
import numpy as np
import pytest

from cnn2gnn_jax import distillers, pipeline
from cnn2gnn_jax.configs import digits
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training.checkpoint import Checkpoints
from cnn2gnn_jax.training.metrics import read_records

BASELINES = [name for name, method in distillers.METHODS.items() if method.student == "cnn"]
IN_THE_SUITE = ("kd", "crd", "ft")
FIELDS = {
    # The loss of AT is a mean over the pixels of unit vectors. At 8x8 it is 16 times as large as at 32x32, so the
    # published weight of 1000 is too large for the learning rate of the other methods.
    "at": {"student.train.learning_rate": 0.01, "student.train.epochs": 20},
}


def config_of(cache, method, epochs, **fields):
    config = digits.get_config("smoke")
    config.cache_dir, config.method, config.tensorboard = str(cache), method, False
    config.student.train.epochs = epochs
    config.student.train.learning_rate = 0.05
    if "pretrain_epochs" in distillers.METHODS[method].hyper:
        config.distill.pretrain_epochs = 3
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    "method", [m if m in IN_THE_SUITE else pytest.param(m, marks=pytest.mark.slow) for m in BASELINES]
)
def test_a_baseline_learns_and_its_own_loss_falls(cache, tmp_path, method):
    results = pipeline.run(config_of(cache, method, epochs=10, **FIELDS.get(method, {})), tmp_path / "run")
    assert results["student"]["kind"] == "cnn"
    assert results["accuracies"][0]["accuracy"] > 93
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    for stage in dict.fromkeys(record["stage"] for record in records):
        own = [r.get("distillation", r["loss"]) for r in records if r["stage"] == stage]
        assert own[-1] < own[0]


@pytest.mark.slow
def test_stored_attention_maps_give_the_same_student_as_the_teacher(cache, tmp_path, monkeypatch):
    config, records = config_of(cache, "at", epochs=1, **{"student.train.learning_rate": 0.01}), {}
    for where in ("disk", "live"):
        if where == "live":  # as if a map of the teacher were larger than the student's
            monkeypatch.setattr(maps, "teacher_maps_not_larger", lambda student, teacher: False)
        pipeline.run(config, tmp_path / where, "student")
        records[where] = read_records(tmp_path / where / "metrics.jsonl")
    (folder,) = cache.glob("teachers/*/teacher_attention")
    shapes = [np.load(folder / f"train_{stage}.npy").shape for stage in (1, 2, 3)]
    assert shapes == [(1438, 8, 8, 1), (1438, 4, 4, 1), (1438, 2, 2, 1)]
    for disk, live in zip(records["disk"], records["live"], strict=True):
        assert disk["distillation"] == pytest.approx(live["distillation"], rel=1e-3)
        assert disk["loss"] == pytest.approx(live["loss"], rel=1e-3)


@pytest.mark.parametrize("method", ["ab", "ft"])
@pytest.mark.slow
def test_killed_in_either_stage_a_staged_method_ends_identical_to_the_bit(program, killed, tmp_path, method):
    def command(name):
        return [
            *(sys.executable, "-m", "cnn2gnn_jax.main", "--config=configs/digits.py:smoke", "--stage=student"),
            *(f"--config.method={method}", f"--config.cache_dir={tmp_path / 'cache'}", f"--workdir={tmp_path / name}"),
            *("--config.distill.pretrain_epochs=2", "--config.student.train.chunk_steps=2"),
            "--config.checkpoint.every_seconds=0",
        ]

    program(command("whole"))
    # An epoch writes 7 records, so the first stage writes 14.
    killed(command("broken"), "broken/metrics.jsonl", 5)
    assert "pretrain: resuming at step" in killed(command("broken"), "broken/metrics.jsonl", 14 + 5)
    assert "train: resuming at step" in program(command("broken"))
    states = []
    for name in ("whole", "broken"):
        folder = tmp_path / name / "checkpoints" / "cnn-seed0" / "train" / "last"
        owner = storage.read_json(tmp_path / name / "run" / "manifest.json")["fingerprint"] + "/cnn-seed0"
        with Checkpoints(folder, owner) as checkpoints:
            states.append(checkpoints.restore_as_saved())
    assert states[0]["step"] == 3 * 14
    chex.assert_trees_all_equal(*states)
    whole, broken = (
        [{key: value for key, value in record.items() if not key.endswith("seconds")} for record in records]
        for records in (read_records(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken"))
    )
    assert broken == whole


@pytest.mark.parametrize("method", ["rkd", "pkt", "crd", "dkd"])
@pytest.mark.slow
def test_a_method_of_logits_or_pooled_features_teaches_the_graph_student(cache, tmp_path, method):
    fields = {"student.kind": "graph", "student.sparsity": 20, "evaluate.graph_off": False}
    if (
        method == "crd"
    ):  # CRD's loss, a sum over thousands of negatives, is too large for the learning rate of the other methods
        fields |= {"student.train.learning_rate": 0.01, "student.train.epochs": 30}
    results = pipeline.run(config_of(cache, method, epochs=20, **fields), tmp_path / "run")
    assert results["accuracies"][0]["mechanism"] == "one_by_one"
    assert results["accuracies"][0]["accuracy"] > 80


@pytest.mark.parametrize(
    ("method", "message"), [("fitnets", "features"), ("ab", "preactivations"), ("ccd", "two views")]
)
def test_a_method_that_a_graph_student_cannot_use_is_refused(cache, tmp_path, method, message):
    with pytest.raises(UserError, match=message):
        pipeline.run(config_of(cache, method, epochs=1, **{"student.kind": "graph"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
