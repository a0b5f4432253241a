"""The training-set graph of a run of the chain: chosen on held-out images, read on test images, kept as a bank."""

import shutil

import numpy as np
import pytest

from cnn2gnn_jax import neighbors, pipeline
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import bank as banks
from configs import digits


@pytest.fixture(scope="module")
def config(cache):
    config = digits.get_config("smoke")
    config.cache_dir, config.tensorboard, config.data.holdout = str(cache), False, 0.1
    config.student.stem_widths, config.student.sparsity, config.student.train.epochs = (8, 16), 20, 2
    config.evaluate.training_set.enabled = True
    config.evaluate.training_set.spaces = ("backbone", "hidden", "head")
    config.evaluate.training_set.sparsities, config.evaluate.training_set.weights = (1, 5), (0.3, 1.0)
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("training_set") / "run"
    return workdir, pipeline.run(config, workdir)


def fingerprint(workdir):
    return runs.evaluation_fingerprint(runs.read(workdir))


def read(workdir, graph):
    return banks.read(workdir / banks.BANK / f"graph_{graph}-seed0", fingerprint(workdir))


def rows(results, graph):
    return [row for row in results["accuracies"] if row["mechanism"] == "training_set" and row["graph"] == graph]


@pytest.mark.parametrize("graph", ["learned", "off"])
def test_every_student_has_a_row_and_its_settings_are_recorded(finished, graph):
    _, results = finished
    [row] = rows(results, graph)
    [chosen] = [entry for entry in results["training_set"] if entry["graph"] == graph]
    assert row["accuracy"] > 50 and row["batch_order"] is None
    assert chosen["settings"]["space"] in ("backbone", "hidden", *(["head"] if graph == "learned" else []))
    assert chosen["settings"]["signal"] in ("labels", "teacher")
    assert chosen["settings"]["sparsity"] in (1, 5)
    assert chosen["accuracy"] >= chosen["accuracy_alone"] - 5


@pytest.mark.parametrize("graph", ["learned", "off"])
def test_the_bank_holds_the_training_images_alone(finished, graph):
    workdir, results = finished
    bank = read(workdir, graph).bank
    counts = results["dataset"]
    assert len(bank.keys) == len(bank.labels) == len(bank.signals) == counts["train_images"]
    assert counts["holdout_images"] > 0
    assert bank.keys.dtype == np.float16
    assert bank.settings == neighbors.Settings(
        **next(entry["settings"] for entry in results["training_set"] if entry["graph"] == graph)
    )


@pytest.mark.parametrize("graph", ["learned", "off"])
def test_the_bank_holds_what_is_needed_to_serve_and_to_thin_it(finished, graph):
    workdir, results = finished
    stored = read(workdir, graph)
    [chosen] = [entry for entry in results["training_set"] if entry["graph"] == graph]
    [alone] = [entry["accuracy"] for entry in results["holdout_accuracies"] if entry["graph"] == graph]
    held_out = stored.held_out
    assert len(held_out.labels) == len(held_out.features) == results["dataset"]["holdout_images"]
    assert stored.accuracy == chosen["accuracy_two_fold"]
    right = 100 * np.mean(held_out.logits.argmax(-1) == held_out.labels)
    assert stored.accuracy_alone == chosen["accuracy_alone"] == pytest.approx(alone) == pytest.approx(right)
    assert stored.files is None


def test_a_damaged_bank_is_refused(finished, tmp_path):
    workdir, _ = finished
    folder = tmp_path / "bank"
    shutil.copytree(workdir / banks.BANK / "graph_off-seed0", folder)
    data = bytearray((folder / "keys.npy").read_bytes())
    data[-1] ^= 1
    (folder / "keys.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"keys.npy is not what was written"):
        banks.read(folder, fingerprint(workdir))
    with pytest.raises(UserError, match="fingerprint"):
        banks.read(workdir / banks.BANK / "graph_off-seed0", "another")


def test_several_values_need_held_out_images(config, tmp_path):
    other = config.copy_and_resolve_references()
    other.data.holdout = 0.0
    with pytest.raises(UserError, match=r"evaluate.training_set.spaces has several values.*set data.holdout"):
        pipeline.run(other, tmp_path / "run")


def test_given_settings_need_none(config, tmp_path):
    other = config.copy_and_resolve_references()
    other.data.holdout = 0.0
    section = other.evaluate.training_set
    section.spaces, section.signals, section.sparsities = ("hidden",), ("labels",), (5,)
    section.weights, section.epsilons = (1.0,), (0.1,)
    results = pipeline.run(other, tmp_path / "run")
    assert {row["graph"] for row in results["accuracies"] if row["mechanism"] == "training_set"} == {"learned", "off"}
    assert all(entry["accuracy"] is None for entry in results["training_set"])


def test_without_it_nothing_is_added(finished_run):
    _, results = finished_run
    assert results["training_set"] == []
    assert not any(row["mechanism"] == "training_set" for row in results["accuracies"])
