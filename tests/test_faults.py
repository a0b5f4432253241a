"""Tests of what docs/reliability.md promises, with few faults. Slow tests run whole campaigns of tests/faults."""

import os
import random
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from cnn2gnn_jax import pipeline
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.configs import digits
from cnn2gnn_jax.runtime import artifact
from cnn2gnn_jax.runtime.errors import UserError, of_machine
from cnn2gnn_jax.serving import bundle, trained
from cnn2gnn_jax.training import saving
from cnn2gnn_jax.training.checkpoint import Checkpoints, recover
from tests.conftest import ONE_CPU, ROOT
from tests.faults import damage, fuzz
from tests.faults.runs import without_times


def campaign(name, *flags):
    """Runs a campaign, which must find nothing wrong, and returns what it prints."""
    command = [sys.executable, "-m", f"tests.faults.{name}", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, env=ONE_CPU, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_killed_four_times_a_run_ends_as_if_it_had_not_been(tmp_path):
    printed = campaign("crash", f"--out={tmp_path}", "--kills=4", "--methods", "cnn2gnn", "--seed=1")
    assert re.search(r"^all +4 +4$", printed, re.M), printed


@pytest.mark.slow
def test_killed_with_a_bank_a_run_ends_as_if_it_had_not_been(tmp_path):
    printed = campaign("crash", f"--out={tmp_path}", "--kills=4", "--methods", "training_set", "--seed=2")
    assert re.search(r"^all +4 +4$", printed, re.M), printed


@pytest.mark.slow
def test_the_crash_campaign(tmp_path):
    assert re.search(r"^all +100 +100$", campaign("crash", f"--out={tmp_path}", "--kills=100"), re.M)


@pytest.mark.slow
def test_what_the_machine_refuses(tmp_path):
    campaign("machine", f"--out={tmp_path}")


@pytest.mark.slow
def test_damaged_files(tmp_path):
    campaign("damage", f"--out={tmp_path}")


@pytest.mark.slow
def test_the_fuzzer(tmp_path):
    campaign("fuzz", f"--out={tmp_path}")


@pytest.fixture(scope="module")
def finished(finished_run, cache, tmp_path_factory):
    """Returns a folder with a copy of a finished run, a bundle, and a cache with only its data set and its teacher."""
    out = tmp_path_factory.mktemp("damaged")
    shutil.copytree(finished_run[0], out / "run")
    teacher = finished_run[1]["teacher"]["fingerprint"]
    shutil.copytree(cache / "teachers" / teacher, out / "cache" / "teachers" / teacher)
    for folder in (cache / "datasets").glob("digits-native-*/"):
        shutil.copytree(folder, out / "cache" / "datasets" / folder.name)
    student = trained.open_student(out / "run")
    bundle.write(out / "run" / "bundle", student, b"a module that nobody calls", {})
    return out


@pytest.mark.parametrize(
    "name", ["data cache", "logits", "student checkpoint", "run", "results", "evaluation", "bundle"]
)
def test_damage_is_never_used(finished, tmp_path, name):
    kind = damage.kinds(finished / "cache", finished / "run", None)[name]
    if name == "bundle":
        kind = kind._replace(read=lambda folder: artifact.read(folder, bundle.KIND))
    if name == "run":
        kind = kind._replace(read=lambda folder: runs.read(folder))
    counts, wrong = damage.inject(name, kind, tmp_path / "copy", 1, random.Random(0))
    assert not wrong
    assert counts["flipped", "refused"] > 0 and counts["truncated", "refused"] > 0


def test_a_run_goes_back_to_the_checkpoint_before_a_damaged_one(finished_run, cache, tmp_path, capsys):
    workdir, results = finished_run
    config = digits.get_config("smoke")
    config.cache_dir, config.tensorboard, config.evaluate.graph_off = str(cache), False, False
    config.student.stem_widths, config.student.sparsity, config.student.train.epochs = (8, 16), 20, 2
    shutil.copytree(workdir, tmp_path / "run")
    [folder] = (tmp_path / "run" / "checkpoints").glob("*/train/last")
    step = max(int(path.name[5:]) for path in folder.glob("step_*"))
    [data] = (folder / f"step_{step}" / "state" / "d").iterdir()
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 4
    data.write_bytes(content)
    with pytest.raises(UserError, match=f"step_{step} is damaged .*{data.name} is not what was written"):
        trained.open_student(tmp_path / "run")
    again = pipeline.run(config, tmp_path / "run")
    assert f"step_{step} is damaged" in capsys.readouterr().err
    assert without_times(again) == without_times(results)


def test_a_checkpoint_of_another_run_is_refused_and_one_without_a_manifest_is_damaged(tmp_path, capsys):
    for step in (3, 5):
        with Checkpoints(tmp_path / "last", "mine") as checkpoints:
            checkpoints.save(step, {"x": np.arange(4.0) + step}, {"accuracy": step})
    assert recover(tmp_path / "last", "mine") == 5
    with pytest.raises(UserError, match="holds a checkpoint with the fingerprint mine, expected yours: put back"):
        recover(tmp_path / "last", "yours")
    with Checkpoints(tmp_path / "last", "yours") as checkpoints, pytest.raises(UserError, match="mine, expected yours"):
        checkpoints.restore_as_saved()
    with Checkpoints(tmp_path / "last", "mine") as checkpoints:
        assert checkpoints.facts() == {"accuracy": 5}
    (tmp_path / "last" / "step_5" / "manifest.json").unlink()
    with Checkpoints(tmp_path / "last", "mine") as checkpoints:
        for read in (checkpoints.restore_as_saved, checkpoints.facts):
            with pytest.raises(UserError, match=r"step_5 is damaged \(manifest.json is missing\): run the run's own"):
                read()
    assert recover(tmp_path / "last", "mine") == 3
    assert "step_5 is damaged (manifest.json is missing): it is removed" in capsys.readouterr().err
    with Checkpoints(tmp_path / "last", "mine") as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore_as_saved()["x"], np.arange(4.0) + 3)
    with Checkpoints(tmp_path / "best", "mine") as checkpoints, pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.restore_as_saved()


def test_a_parser_takes_or_refuses(tmp_path):
    counts, crashes = fuzz.run(tmp_path, inputs=3400, seed=7)
    assert not crashes
    assert sum(count.total() for count in counts.values()) == 3400


@pytest.mark.parametrize(
    ("number", "line"),
    [(28, "x/a.npy: No space left on device: make room"), (13, "Permission denied: give"), (30, "Read-only file")],
)
def test_what_the_machine_refuses_is_a_line_with_what_to_do(number, line):
    text = of_machine(OSError(number, os.strerror(number), "x/a.npy"))
    assert line in text and text.endswith("and the same command goes on") and "\n" not in text


def test_a_file_size_limit_ends_a_run_in_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "cnn2gnn_jax.main",
        "--config=tests/faults/tiny.py",
        f"--workdir={tmp_path / 'run'}",
    ]
    command = ["bash", "-c", 'ulimit -f 1; exec "$@"', "-", *command, f"--config.cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run(command, cwd=ROOT, env=ONE_CPU, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert re.fullmatch(r"error: digits: .*File too large: raise the limit on the size of files .*", line)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_state_that_is_not_finite_is_known():
    assert saving._finite({"a": jax.numpy.ones(3), "n": jax.numpy.arange(3)})
    for bad in (np.nan, np.inf):
        assert not saving._finite({"a": jax.numpy.ones(3), "b": {"c": jax.numpy.array([1.0, bad])}})
