"""Tests of the training-set graph of a run: chosen on held-out images, evaluated on test images, stored as a bank."""

import shutil
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn2gnn_jax import neighbors, pipeline
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import bank as banks
from tests.faults.runs import without_times


def fingerprint(workdir):
    return runs.evaluation_fingerprint(runs.read(workdir))


def read(workdir, graph):
    return banks.read(workdir / banks.BANK / f"graph_{graph}-seed0", fingerprint(workdir))


def rows(results, graph):
    return [row for row in results["accuracies"] if row["mechanism"] == "training_set" and row["graph"] == graph]


@pytest.mark.parametrize("graph", ["learned", "off"])
def test_every_student_has_a_row_and_its_settings_are_recorded(bank_run, graph):
    _, results = bank_run
    [row] = rows(results, graph)
    [chosen] = [entry for entry in results["training_set"] if entry["graph"] == graph]
    assert row["accuracy"] > 50 and row["batch_order"] is None
    assert chosen["settings"]["space"] in ("backbone", "hidden", *(["head"] if graph == "learned" else []))
    assert chosen["settings"]["signal"] in ("labels", "teacher")
    assert chosen["settings"]["sparsity"] in (1, 5)
    assert chosen["accuracy"] >= chosen["accuracy_alone"] - 5


@pytest.mark.parametrize("graph", ["learned", "off"])
def test_the_bank_holds_the_training_images_alone(bank_run, graph):
    workdir, results = bank_run
    bank = read(workdir, graph).bank
    counts = results["dataset"]
    assert len(bank.keys) == len(bank.labels) == len(bank.signals) == counts["train_images"]
    assert counts["holdout_images"] > 0
    assert bank.keys.dtype == np.float16
    assert bank.settings == neighbors.Settings(
        **next(entry["settings"] for entry in results["training_set"] if entry["graph"] == graph)
    )


@pytest.mark.parametrize("graph", ["learned", "off"])
def test_the_bank_holds_what_is_needed_to_serve_and_to_thin_it(bank_run, graph):
    workdir, results = bank_run
    stored = read(workdir, graph)
    [chosen] = [entry for entry in results["training_set"] if entry["graph"] == graph]
    [alone] = [entry["accuracy"] for entry in results["holdout_accuracies"] if entry["graph"] == graph]
    held_out = stored.held_out
    assert len(held_out.labels) == len(held_out.features) == results["dataset"]["holdout_images"]
    assert stored.accuracy == chosen["accuracy_two_fold"]
    right = 100 * np.mean(held_out.logits.argmax(-1) == held_out.labels)
    assert stored.accuracy_alone == chosen["accuracy_alone"] == pytest.approx(alone) == pytest.approx(right)
    assert stored.files is None


def test_a_damaged_bank_is_refused(bank_run, tmp_path):
    workdir, _ = bank_run
    folder = tmp_path / "bank"
    shutil.copytree(workdir / banks.BANK / "graph_off-seed0", folder)
    data = bytearray((folder / "keys.npy").read_bytes())
    data[-1] ^= 1
    (folder / "keys.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"keys.npy is not what was written"):
        banks.read(folder, fingerprint(workdir))
    with pytest.raises(UserError, match="fingerprint"):
        banks.read(workdir / banks.BANK / "graph_off-seed0", "another")


def test_a_bank_that_is_damaged_or_gone_is_made_anew_by_the_runs_own_command(bank_run, bank_config, tmp_path, capsys):
    workdir, results = bank_run
    other = tmp_path / "run"
    shutil.copytree(workdir, other)
    whole = {path.name: path.read_bytes() for path in (other / banks.BANK / "graph_off-seed0").iterdir()}
    (other / banks.BANK / "graph_off-seed0" / "keys.npy").write_bytes(b"")
    shutil.rmtree(other / banks.BANK / "graph_learned-seed0")
    assert without_times(pipeline.run(bank_config, other)) == without_times(results)
    assert "graph_off-seed0 is damaged" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (other / banks.BANK / "graph_off-seed0").iterdir()} == whole
    assert len(read(other, "learned").bank.keys) == results["dataset"]["train_images"]


def test_a_run_killed_once_its_bank_is_written_goes_on(bank_run, killed, tmp_path):
    """Tests a run that is killed between its bank and its evaluation. It must end as an uninterrupted run."""
    workdir, results = bank_run
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("bank", "evaluations", "results.json"))
    program = tmp_path / "again.py"
    program.write_text(
        "import jax, pathlib, time\n"
        "from cnn2gnn_jax import pipeline\n"
        "from cnn2gnn_jax import run as runs\n"
        "from cnn2gnn_jax.evaluation import scoring\n"
        "from ml_collections import ConfigDict\n"
        "write = scoring.artifact.write\n"
        "def slow(folder, *arguments):\n"
        "    if 'evaluations' in folder.parts: time.sleep(60)\n"
        "    write(folder, *arguments)\n"
        "scoring.artifact.write = slow\n"
        f"workdir = pathlib.Path({str(tmp_path / 'run')!r})\n"
        "pipeline.run(ConfigDict(runs.read(workdir).config.to_dict()), workdir)\n"
    )
    killed([sys.executable, str(program)], "run/bank/*/manifest.json", 1)
    assert not list((tmp_path / "run").glob("evaluations/*/manifest.json"))
    assert not (tmp_path / "run" / "results.json").exists()
    config = ConfigDict(runs.read(tmp_path / "run").config.to_dict())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("checkpoints/**/*")}
    assert without_times(pipeline.run(config, tmp_path / "run")) == without_times(results)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("checkpoints/**/*")}
    for path in (workdir / banks.BANK).glob("*/*.npy"):
        again = tmp_path / "run" / banks.BANK / path.parent.name / path.name
        assert again.read_bytes() == path.read_bytes(), path
    # A run that was killed before it wrote results.json uses the stored bank.
    (tmp_path / "run" / "results.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / banks.BANK).glob("*/*")}
    assert without_times(pipeline.run(config, tmp_path / "run")) == without_times(results)
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / banks.BANK).glob("*/*")}


def test_several_values_need_held_out_images(bank_config, tmp_path):
    other = bank_config.copy_and_resolve_references()
    other.data.holdout = 0.0
    with pytest.raises(UserError, match=r"evaluate.training_set.spaces has several values.*set data.holdout"):
        pipeline.run(other, tmp_path / "run")


def test_given_settings_need_none(bank_config, tmp_path):
    other = bank_config.copy_and_resolve_references()
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
