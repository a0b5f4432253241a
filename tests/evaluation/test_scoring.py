"""Tests of what an evaluation stores, of its anchors and batch order, and of the weight on self in training."""

import shutil

import numpy as np
import pytest

from cnn2gnn_jax import pipeline, predict
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.configs import base, digits
from cnn2gnn_jax.data import batches
from cnn2gnn_jax.evaluation import scoring
from cnn2gnn_jax.evaluation import summary as run_results
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import trained
from cnn2gnn_jax.serving.pictures import Pictures
from cnn2gnn_jax.training.metrics import last_epoch_mean, read_records


@pytest.fixture(scope="module")
def seeded(cache, tmp_path_factory):
    """Returns the workdir and the results of a finished run with the seeds 3 and 4 and two batches of anchors."""
    config = digits.get_config("smoke")
    config.cache_dir, config.tensorboard, config.seed, config.seeds = str(cache), False, 3, 2
    config.student.backbone, config.student.sparsity, config.student.train.epochs = "pixels", 20, 2
    config.evaluate.anchor_batches = 2
    workdir = tmp_path_factory.mktemp("seeded") / "run"
    return workdir, pipeline.run(config, workdir)


def test_each_accuracy_is_that_of_the_predictions_kept(seeded):
    workdir, results = seeded
    correct = run_results.correct(results, workdir)
    assert correct.shape == (len(results["accuracies"]), 359) and len(correct) == 2 * (6 + 3)
    np.testing.assert_allclose(100 * correct.mean(axis=1), [e["accuracy"] for e in results["accuracies"]])
    predicted = np.load(workdir / run_results.PREDICTIONS / "predicted.npy")
    assert predicted.dtype == np.uint8
    assert len({tuple(row) for row in predicted}) > 6  # not all rows are equal
    assert sum(path.stat().st_size for path in (workdir / run_results.PREDICTIONS).iterdir()) < 20_000


def test_damaged_predictions_are_refused_and_computed_again(seeded, tmp_path):
    workdir, results = seeded
    path = tmp_path / run_results.PREDICTIONS / "predicted.npy"
    shutil.copytree(workdir / run_results.PREDICTIONS, path.parent)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), content[:100], b"", None):
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"predictions is damaged .*: delete it and run the same command again"):
            run_results.correct(results, tmp_path)
    shutil.rmtree(path.parent)
    with pytest.raises(artifact.Missing):
        run_results.correct(results, tmp_path)
    with pytest.raises(artifact.Foreign):  # predictions of other results
        run_results.correct(results | {"predictions": "0123456789abcdef"}, workdir)
    assert run_results.correct({}, tmp_path) is None  # results of an earlier version


def test_an_evaluation_without_predictions_is_computed_again(seeded, capsys):
    workdir, _ = seeded
    folder = workdir / "evaluations" / "graph_learned-seed3"
    fingerprint, array = storage.read_json(folder / "manifest.json")["fingerprint"], folder / "predicted.npy"

    def make():
        raise InterruptedError

    def evaluated(fingerprint):
        try:
            return bool(artifact.ensure(folder, scoring.KIND, fingerprint, make, replaces=True))
        except InterruptedError:
            return False

    assert evaluated(fingerprint) and not evaluated("another")
    content = array.read_bytes()
    try:
        array.write_bytes((workdir / "evaluations" / "graph_learned-seed4" / "predicted.npy").read_bytes())
        assert not evaluated(fingerprint)
        assert "predicted.npy is not what was written" in capsys.readouterr().err
    finally:
        array.write_bytes(content)


def test_anchors_and_order_change_with_the_seed():
    protocol = base.get_config().evaluate
    protocol.anchors, protocol.anchor_batches, protocol.anchor_seed = 20, 2, 5
    labels = np.arange(200) % 10
    chosen = [batches.anchor_sets(labels, protocol, seed) for seed in range(3)]
    assert all(len(sets) == 2 for sets in chosen)
    assert len({tuple(sorted(index)) for sets in chosen for index in sets}) == 6  # all batches differ
    np.testing.assert_array_equal(batches.anchor_sets(labels, protocol, 1), chosen[1])
    assert len({batches.order_seed(protocol, seed) for seed in range(3)}) == 3


def test_the_anchors_of_the_workdir_are_those_of_the_first_student(seeded):
    workdir, results = seeded
    recorded = runs.read(workdir)
    linked = {index for example in results["examples"] for index, _ in example["neighbors"]}
    assert linked <= set(recorded.anchors["index"][0])
    student = trained.open_student(workdir)
    predicted = np.load(workdir / run_results.PREDICTIONS / "predicted.npy")
    images = runs.begin(recorded.config, workdir).dataset.test.images
    pictures = Pictures([str(k) for k in range(len(images))], images)
    for k, mechanism in enumerate(("one_by_one", "batch_by_batch")):
        assert results["accuracies"][k]["mechanism"] == mechanism and results["accuracies"][k]["seed"] == 3
        rows = predict.student_predictions(student, pictures, mechanism)
        classes = [recorded.classes.index(row["class"]) for row in rows]
        assert np.mean(classes == predicted[k]) > 0.995  # except for ties, which another program may round differently


def test_the_weight_on_self_in_training_is_the_mean_of_the_last_epoch(seeded, tmp_path):
    workdir, results = seeded
    for seed in (3, 4):
        stage = f"graph_learned-seed{seed}"
        records = [r for r in read_records(workdir / "metrics.jsonl") if r["stage"] == stage and r["epoch"] > 1]
        entries = [e for e in results["accuracies"] if e["graph"] == "learned" and e["seed"] == seed]
        [value] = {entry["diagnostics"]["self_weight_in_training"] for entry in entries}
        assert len(entries) == 3 and value == pytest.approx(np.mean([record["self_weight"] for record in records]))
        # At test time, the rows of the anchors have no column for the image.
        assert value < 0.65 and entries[0]["diagnostics"]["self_weight"] == pytest.approx(2 / 3, abs=1e-3)
    others = [e for e in results["accuracies"] if e["graph"] != "learned"]
    assert others and not any("self_weight_in_training" in e["diagnostics"] for e in others)
    first = results["accuracies"][0]["diagnostics"]["self_weight_in_training"]
    assert f"weight on self 0.67 ({first:.2f} in training)" in (workdir / "report" / "results.md").read_text()
    # A record is a mean over the steps since the record before, and is weighted by their number.
    lines = [(4, 1.0, 0.9), (6, 1.5, 0.2), (8, 2.0, 0.4), (3, 3.0, 0.0)]
    stages = ["a", "a", "a", "b"]
    for stage, (step, epoch, value) in zip(stages, lines, strict=True):
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(f'{{"stage": "{stage}", "step": {step}, "epoch": {epoch}, "self_weight": {value}}}\n')
    assert last_epoch_mean(tmp_path / "metrics.jsonl", "a", "self_weight") == {
        "self_weight_in_training": pytest.approx(0.3)
    }
    assert last_epoch_mean(tmp_path / "metrics.jsonl", "c", "self_weight") == {}


def test_the_report_gives_what_the_graph_is_worth_with_its_interval(seeded):
    workdir, _ = seeded
    text = (workdir / "report" / "results.md").read_text()
    [line] = [line for line in text.splitlines() if "What the graph is worth, in points: one by one" in line]
    assert "[" in line and "95% intervals are over seeds and images, for 2 seeds" in line
