"""The command line: each mistake ends in one line and exit code 2."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

WRONG = {
    "no config": ([], "no --config"),
    "no such config": (["--config=configs/nothing.py"], "configs/nothing.py"),
    "no such field": (["--config=configs/digits.py", "--config.student.sparsty=3"], "sparsty"),
    "wrong type": (["--config=configs/digits.py", "--config.student.sparsity=many"], "many"),
    "no such pair": (["--config=configs/cifar100.py:resnet34-resnet17"], "resnet17"),
    "no such size": (["--config=configs/cifar100.py:smok"], "smoke"),
    "no such stage": (["--config=configs/digits.py", "--stage=teach"], "teach"),
    "a word too many": (["--config=configs/digits.py", "student"], "'student' is no flag"),
    "no data": (["--config=configs/mini_imagenet.py", "--config.data.manual_dir=/nowhere"], "/nowhere"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_is_one_line(wrong, tmp_path):
    arguments, message = WRONG[wrong]
    command = [sys.executable, "-m", "cnn2gnn_jax.main", *arguments, f"--workdir={tmp_path / 'run'}"]
    if arguments and ".py" in arguments[0] and "nothing" not in arguments[0]:
        command.append(f"--config.cache_dir={tmp_path / 'cache'}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "run").exists()
