"""Tests of the pipeline on digits, from images to report: what it records, what it skips and what it refuses."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from cnn2gnn_jax import pipeline
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.configs import digits
from cnn2gnn_jax.report.__main__ import write_run
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training.checkpoint import Checkpoints
from cnn2gnn_jax.training.metrics import read_records


def tiny(cache, **fields):
    config = digits.get_config("smoke")
    config.cache_dir = str(cache)
    config.tensorboard = False
    config.student.stem_widths = (8, 16)
    config.student.sparsity = 20
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def done(cache, tmp_path_factory):
    """Returns the config, the workdir and the results of a finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    config = tiny(cache)
    return config, workdir, pipeline.run(config, workdir)


def owner(folder):
    """Returns the fingerprint that the checkpoints in a folder are stored with."""
    return storage.read_json(next(folder.glob("step_*/manifest.json")))["fingerprint"]


def modified(folder):
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_results_are_complete_and_far_above_chance(done):
    _, workdir, results = done
    assert storage.read_json(workdir / "results.json") == json.loads(json.dumps(results))
    assert results["teacher"]["accuracy"] > 70
    by_protocol = {(e["graph"], e["mechanism"], e["batch_order"]): e["accuracy"] for e in results["accuracies"]}
    protocols = [("one_by_one", None), ("batch_by_batch", "shuffled"), ("batch_by_batch", "class_sorted")]
    assert set(by_protocol) == {(g, *p) for g in ("learned", "off", "off_at_test") for p in protocols}
    assert by_protocol["learned", "one_by_one", None] > 50
    # With A = I, all protocols give the same accuracy.
    assert (
        len({by_protocol["off", *p] for p in protocols})
        == len({by_protocol["off_at_test", *p] for p in protocols})
        == 1
    )
    assert {e["method"] for e in results["accuracies"]} == {"cnn2gnn"}
    for entry in results["accuracies"]:
        facts = entry["diagnostics"]
        assert 0 <= facts["self_weight"] <= 1.0001
        if entry["graph"] == "learned":
            assert 1 <= facts["distinct_anchors"] <= 100
            assert facts["effective_neighbors"] > 1
        else:
            assert facts["self_weight"] == pytest.approx(1)
    student = results["student"]
    assert student["head_table_parameters"] == 1438 * 257
    assert student["inference_flops"]["one_by_one"] > student["inference_flops"]["batch_by_batch"] > 0
    assert results["teacher"]["training_flops"] > 2 * results["teacher"]["inference_flops"]
    assert {
        "teacher resnet8",
        "teacher logits",
        "graph_learned-seed0",
        "graph_off-seed0",
        "evaluation",
        "compilation",
    } == set(results["seconds"])
    assert results["versions"]["jax"] == jax.__version__


def test_metrics_figures_and_logits_are_on_disk(done, cache):
    _, workdir, results = done
    records = read_records(workdir / "metrics.jsonl")
    losses = [r["loss"] for r in records if r["stage"] == "graph_learned-seed0"]
    assert losses[-1] < losses[0]
    assert all("self_weight" in r for r in records if r["stage"] == "graph_learned-seed0")
    for name in ("curves", "confusion", "neighbors"):
        assert (workdir / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (workdir / "report" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "learned graph" in (workdir / "report" / "results.md").read_text()
    folder = cache / "teachers" / results["teacher"]["fingerprint"] / "teacher_logits"
    logits = np.load(folder / "test.npy", allow_pickle=False)
    assert logits.shape == (359, 10)
    assert logits.dtype == np.float32


def test_the_report_of_a_run_is_written_again_from_its_workdir(done, tmp_path):
    _, workdir, _ = done
    copy = shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(copy / "report")
    assert write_run(copy) == copy / "report" / "results.md"
    for name in ("results.md", "results.tex", "results.csv", "confusion.png", "curves.png", "curves.pdf"):
        assert (copy / "report" / name).read_bytes() == (workdir / "report" / name).read_bytes(), name
    assert r"\begin{tabular}{lrrr}" in (copy / "report" / "results.tex").read_text()
    (copy / "predictions" / "predicted.npy").write_bytes(b"damaged")
    with pytest.raises(UserError, match="predictions is damaged"):
        write_run(copy)


def test_a_second_call_computes_nothing_again(done):
    config, workdir, results = done
    before = (
        modified(workdir / "checkpoints"),
        modified(workdir / "evaluations"),
        modified(workdir / "run"),
        modified(pathlib.Path(config.cache_dir)),
    )
    assert pipeline.run(config, workdir) == results
    after = (
        modified(workdir / "checkpoints"),
        modified(workdir / "evaluations"),
        modified(workdir / "run"),
        modified(pathlib.Path(config.cache_dir)),
    )
    for old, new in zip(before, after, strict=True):
        assert {k: v for k, v in old.items() if not k.endswith(".lock")} == {
            k: v for k, v in new.items() if not k.endswith(".lock")
        }


def test_a_field_of_the_evaluation_reruns_the_evaluation_alone(done):
    config, workdir, _ = done
    checkpoints, evaluations = modified(workdir / "checkpoints"), modified(workdir / "evaluations")
    changed = config.copy_and_resolve_references()
    changed.evaluate.batch_size = 50
    pipeline.run(changed, workdir)
    assert modified(workdir / "checkpoints") == checkpoints
    assert all(modified(workdir / "evaluations")[path] != when for path, when in evaluations.items())


def test_a_workdir_of_another_config_is_refused_and_unchanged(done):
    config, workdir, _ = done
    before = modified(workdir)
    changed = config.copy_and_resolve_references()
    changed.student.sparsity = 10
    with pytest.raises(UserError, match=r"another config \(student.sparsity is 20 there and 10 here\): choose another"):
        pipeline.run(changed, workdir)
    assert modified(workdir) == before


def test_a_workdir_of_another_version_is_refused_with_what_differs(done, tmp_path):
    config, workdir, _ = done
    manifest = storage.read_json(workdir / "run" / "manifest.json")
    del manifest["facts"]["config"]["student"]["graph_off_loss_weight"], manifest["program"]
    manifest["facts"]["config"]["evaluate"]["anchors"] = 77  # an evaluation field, which the message must not name
    record = tmp_path / "run" / "run"
    storage.write_json(record / "manifest.json", manifest | {"format": 1, "fingerprint": "0123456789abcdef"})
    before = modified(tmp_path / "run")
    with pytest.raises(UserError) as raised:
        pipeline.run(config, tmp_path / "run")
    text = str(raised.value)
    assert text.startswith(f"{record} was written by another version of this program (format 1; this one is ")
    assert text.endswith(
        "(student.graph_off_loss_weight is missing there and 0.0 here): choose another --workdir, or delete this one"
    )
    assert modified(tmp_path / "run") == before


def test_a_workdir_without_a_record_is_refused_and_unchanged(done, tmp_path):
    (tmp_path / "run").mkdir()
    storage.write_json(tmp_path / "run" / "config.json", {"format": 3, "fingerprint": "0123456789abcdef"})
    before = modified(tmp_path / "run")
    with pytest.raises(UserError, match="was written by an earlier version of this program: choose another --workdir"):
        pipeline.run(done[0], tmp_path / "run")
    assert modified(tmp_path / "run") == before


def test_a_damaged_record_is_refused_or_written_again(done, tmp_path):
    config, workdir, results = done
    shutil.copytree(workdir, tmp_path / "run")
    record = tmp_path / "run" / "run"
    whole = (record / "images.npy").read_bytes()
    (record / "images.npy").write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"images\.npy.*: delete it and run the run's own command again"):
        runs.read(tmp_path / "run")
    assert pipeline.run(config, tmp_path / "run")["accuracies"] == results["accuracies"]
    assert (record / "images.npy").read_bytes() == whole
    (record / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"run is damaged .*: delete it and run the run's own command again"):
        pipeline.run(config, tmp_path / "run")
    shutil.rmtree(record)
    pipeline.run(config, tmp_path / "run", "student")
    assert runs.read(tmp_path / "run").fingerprint == results["fingerprint"]


def test_a_changed_student_reuses_the_teacher(done, cache, tmp_path):
    config, _, results = done
    teachers = modified(cache / "teachers" / results["teacher"]["fingerprint"] / "checkpoints")
    changed = config.copy_and_resolve_references()
    changed.student.hidden = 32
    changed.student.train.epochs = 1
    changed.evaluate.graph_off = False
    assert pipeline.run(changed, tmp_path / "run")["teacher"] == results["teacher"]
    assert modified(cache / "teachers" / results["teacher"]["fingerprint"] / "checkpoints") == teachers


def test_the_chain_stops_after_the_given_stage(cache, tmp_path):
    config = tiny(cache)
    assert pipeline.run(config, tmp_path / "run", "logits") is None
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert pipeline.run(config, tmp_path / "run", "student") is None
    assert (tmp_path / "run" / "checkpoints" / "graph_learned-seed0").exists()
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("fields", "student"),
    [
        ({"method": "gnn", "student.backbone": "pixels"}, "graph over pixels"),
        ({"method": "cnn2gnn", "student.backbone": "teacher"}, "graph over teacher"),
        pytest.param({"method": "cnn2gnn", "student.backbone": "pair"}, "graph over resnet8", marks=pytest.mark.slow),
        ({"method": "gnn", "student.graph": "euclidean_sparse"}, "graph over stem"),
        ({"method": "kd"}, "resnet8"),
        ({"method": "ce", "student.train.recipe": "crd", "student.train.epochs": 6}, "resnet8"),
    ],
)
def test_every_kind_of_student_runs(cache, tmp_path, fields, student):
    fields = {"student.train.epochs": 2, "evaluate.graph_off": False, **fields}
    results = pipeline.run(tiny(cache, **fields), tmp_path / "run")
    assert results["student"]["network"] == student
    assert (results["teacher"] is None) == (fields["method"] in ("gnn", "ce"))
    assert all(entry["accuracy"] > 15 for entry in results["accuracies"])
    if fields.get("student.graph") == "euclidean_sparse":  # batch by batch uses no anchors
        for entry in results["accuracies"]:
            uses_anchors = (entry["graph"], entry["mechanism"]) == ("euclidean_sparse", "one_by_one")
            assert ("distinct_anchors" in entry["diagnostics"]) == uses_anchors


def test_the_row_with_the_graph_off_is_the_same_student_without_its_graph(done, tmp_path):
    config, _, results = done
    config = config.copy_and_resolve_references()
    config.method = "cnn2gnn_off"
    entries = pipeline.run(config, tmp_path / "run")["accuracies"]
    assert {entry["graph"] for entry in entries} == {"off"}
    expected = [entry for entry in results["accuracies"] if entry["graph"] == "off"]
    assert entries == [{**entry, "method": "cnn2gnn_off"} for entry in expected]
    config.student.graph = "learned"
    with pytest.raises(UserError, match="student.graph is learned, but the method cnn2gnn_off has the graph off"):
        pipeline.run(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("graph", ["inner_product", "euclidean"])
def test_the_ablations_graphs_run_and_average_the_whole_batch(cache, tmp_path, graph):
    fields = {"method": "gnn", "student.graph": graph, "student.backbone": "pixels", "evaluate.graph_off": False}
    results = pipeline.run(tiny(cache, **fields), tmp_path / "run")
    shuffled = [e for e in results["accuracies"] if e["graph"] == graph and e["batch_order"] == "shuffled"]
    assert shuffled[0]["diagnostics"]["effective_neighbors"] > 50
    assert "distinct_anchors" not in shuffled[0]["diagnostics"]


def test_several_seeds_and_the_best_epoch_on_held_out_images(cache, tmp_path):
    fields = {"seeds": 2, "data.holdout": 0.2, "student.train.epoch": "best", "evaluate.graph_off": False}
    results = pipeline.run(tiny(cache, **fields), tmp_path / "run")
    assert {entry["seed"] for entry in results["accuracies"]} == {0, 1}
    assert results["dataset"]["holdout_images"] == 288 - 1
    folder = tmp_path / "run" / "checkpoints" / "graph_learned-seed0" / "train"
    with (
        Checkpoints(folder / "best", owner(folder / "best")) as best,
        Checkpoints(folder / "last", owner(folder / "last")) as last,
    ):
        assert best.newest() % 11 == 0  # the end of an epoch
        assert 0 < best.facts()["accuracy"] <= 100
        assert last.newest() == 33


def test_only_one_process_uses_a_workdir(done, tmp_path):
    config, workdir, _ = done
    with (
        storage.lock(workdir / ".lock", wait=False),
        pytest.raises(UserError, match=f"in use by process {os.getpid()}"),
    ):
        pipeline.run(config, workdir)


def test_logits_of_another_teacher_are_refused_and_damaged_ones_computed_again(done, cache, tmp_path, capsys):
    config, _, results = done
    folder = cache / "teachers" / results["teacher"]["fingerprint"] / "teacher_logits"
    manifest = (folder / "manifest.json").read_bytes()
    array = (folder / "train.npy").read_bytes()
    try:
        facts = storage.read_json(folder / "manifest.json")
        storage.write_json(folder / "manifest.json", facts | {"fingerprint": "0123456789abcdef"})
        with pytest.raises(UserError, match="outputs of a teacher with the fingerprint 0123456789abcdef"):
            pipeline.run(config, tmp_path / "run")
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "train.npy").write_bytes(array[:-1] + bytes([array[-1] ^ 1]))
        pipeline.run(config, tmp_path / "run", "logits")
        assert "teacher_logits is damaged (train.npy is not what was written)" in capsys.readouterr().err
        assert (folder / "train.npy").read_bytes() == array
    finally:
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "train.npy").write_bytes(array)


def test_a_logits_file_trains_the_same_student_as_the_teacher(done, cache, tmp_path):
    config, _, results = done
    logits = np.load(cache / "teachers" / results["teacher"]["fingerprint"] / "teacher_logits" / "train.npy")
    np.save(tmp_path / "mine.npy", logits.astype(np.float64))
    with_file = config.copy_and_resolve_references()
    with_file.teacher.logits_file, with_file.cache_dir = str(tmp_path / "mine.npy"), str(tmp_path / "cache")
    actual = pipeline.run(with_file, tmp_path / "run")

    def accuracies(results):
        return [(e["graph"], e["mechanism"], e["batch_order"], e["accuracy"]) for e in results["accuracies"]]

    assert accuracies(actual) == accuracies(results)
    assert actual["teacher"]["network"] == "mine.npy" and actual["teacher"]["train_accuracy"] > 70
    assert "The teacher's logits are those of mine.npy" in (tmp_path / "run" / "report" / "results.md").read_text()
    assert not (tmp_path / "cache" / "teachers").exists()
    np.save(tmp_path / "mine.npy", logits + 1e-3)
    with pytest.raises(UserError, match="another config"):
        pipeline.run(with_file, tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "gnn"}, "the method gnn takes nothing of the teacher"),
        ({"method": "crd"}, "the method crd takes"),
        ({"student.backbone": "teacher"}, "features for student.backbone=teacher"),
        ({"student.train.recipe": "crd"}, "student.train.augment is True"),
        ({}, "nowhere.npy cannot be read"),
    ],
)
def test_unusable_logits_files_are_refused(cache, tmp_path, fields, message):
    config = tiny(cache, **fields, **{"teacher.logits_file": str(tmp_path / "nowhere.npy")})
    with pytest.raises(UserError, match=message):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


WRONG = {  # test_config.py tests the values of each field
    "student.sparsity": (100, "Eq. 3 allows at most 99"),
    "student.train.batch_size": (5000, "has 1438 training images"),
    "evaluate.batch_size": (20, "Eq. 3 allows at most 19"),
    "evaluate.anchors": (20, "Eq. 3 allows at most 19"),
    "data.name": ("digitz", "digitz"),
    "student.train.epoch": ("best", "set data.holdout"),
    "data.limit": (-1, "data.limit"),
}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_values_give_a_one_line_error_and_write_nothing(cache, tmp_path, field):
    value, message = WRONG[field]
    with pytest.raises(UserError, match=message) as raised:
        pipeline.run(tiny(cache, **{field: value}), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
