"""Every distillation method through the chain on digits."""

import pytest

from cnn2gnn_jax import distillers, pipeline
from cnn2gnn_jax.errors import UserError
from cnn2gnn_jax.metrics import read_records
from configs import digits

BASELINES = [name for name, method in distillers.METHODS.items() if method.student == "cnn"]
IN_THE_SUITE = ("kd", "crd", "ft")


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
    results = pipeline.run(config_of(cache, method, epochs=10), tmp_path / "run")
    assert results["student"]["kind"] == "cnn"
    assert results["accuracies"][0]["accuracy"] > 93
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    for stage in dict.fromkeys(record["stage"] for record in records):
        own = [r.get("distillation", r["loss"]) for r in records if r["stage"] == stage]
        if method == "dkd":
            own = own[len(own) // 2 :]  # its weight grows over the first epochs
        assert own[-1] < own[0]


@pytest.mark.parametrize("method", ["rkd", "pkt", "dkd"])
@pytest.mark.slow
def test_a_method_of_logits_or_pooled_features_teaches_the_graph_student(cache, tmp_path, method):
    fields = {"student.kind": "graph", "student.sparsity": 20, "evaluate.graph_off": False}
    results = pipeline.run(config_of(cache, method, epochs=20, **fields), tmp_path / "run")
    assert results["accuracies"][0]["mechanism"] == "one_by_one"
    assert results["accuracies"][0]["accuracy"] > 80


@pytest.mark.parametrize(
    ("method", "message"), [("fitnets", "features"), ("ab", "preactivations"), ("ccd", "two views")]
)
def test_what_a_graph_student_lacks_is_refused_by_name(cache, tmp_path, method, message):
    with pytest.raises(UserError, match=message):
        pipeline.run(config_of(cache, method, epochs=1, **{"student.kind": "graph"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
