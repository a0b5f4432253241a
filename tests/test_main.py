"""Tests of the command line: a mistake or Ctrl-C ends a command with a one-line message, --help prints the flags."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

import cnn2gnn_jax
from cnn2gnn_jax import export, main, predict, sweep
from cnn2gnn_jax.configs import base, digits
from cnn2gnn_jax.report import __main__ as report
from cnn2gnn_jax.runtime import built_in, config_flag, fields
from cnn2gnn_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent

WRONG = {
    "no config": ([], "no --config"),
    "no such config": (
        ["--config=configs/nothing.py"],
        "configs/nothing.py is no file and no built-in config: give the path of a file, or cifar10, cifar100, digits, "
        "image_folder, mini_imagenet, stl10",
    ),
    "no such name": (["--config=base:smoke"], "base is no file and no built-in config: give the path of a file, or ci"),
    "no config file": (["--config=configs/sweeps/table1.py"], "it has no function get_config()"),
    "a broken config": (["--config=README.md"], "README.md cannot be loaded (SyntaxError: "),
    "no such field": (
        ["--config=configs/digits.py", "--config.student.sparcity=3"],
        "there is no field config.student.sparcity: did you mean config.student.sparsity?",
    ),
    "a field of a section": (
        ["--config=configs/digits.py", "--config.sparsity=3"],
        "there is no field config.sparsity: did you mean config.student.sparsity?",
    ),
    "a renamed field": (
        ["--config=configs/digits.py", "--config.evaluate.reading=similar"],
        "evaluate.reading is now called evaluate.mechanism2_graph: use the new name",
    ),
    "a section": (["--config=configs/digits.py", "--config.student=3"], "config.student is a section: set one of"),
    "wrong type": (
        ["--config=configs/digits.py", "--config.student.sparsity=many"],
        "--config.student.sparsity=many: expected a value of type int",
    ),
    "no whole number": (["--config=configs/digits.py", "--config.seed=1.5"], "expected a value of type int"),
    "no truth value": (["--config=configs/digits.py", "--config.tensorboard=maybe"], "expected a value of type bool"),
    "no tuple": (["--config=configs/digits.py", "--config.student.stem_widths=(8,x"], "expected a value of type tuple"),
    "no numbers": (["--config=configs/digits.py", "--config.student.stem_widths=wide"], "stem_widths is 'wide'"),
    "no value": (["--config=configs/digits.py", "--config.seed"], "--config.seed=--workdir="),  # it takes the next flag
    "no such flag": (["--config=configs/digits.py", "--workdri=x"], "'workdri'. Did you mean: workdir"),
    "fields before the config": (["--config.seed=1", "--config=configs/digits.py"], "before a value for --config"),
    "fields without a config": (["--config.seed=1"], "no --config: give FILE[:WORD], as configs/digits.py"),
    "no such pair": (["--config=configs/cifar100.py:resnet34-resnet17"], "resnet17"),
    "no such size": (["--config=configs/cifar100.py:smok"], "smoke"),
    "no such stage": (["--config=configs/digits.py", "--stage=teach"], "teach"),
    "a word too many": (["--config=configs/digits.py", "student"], "'student' is no flag"),
    "no data": (["--config=configs/mini_imagenet.py", "--config.data.manual_dir=/nowhere"], "/nowhere"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_gives_a_one_line_error(wrong, tmp_path):
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


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort"])
def test_help_prints_the_flags_of_this_program(flag):
    command = [sys.executable, "-m", "cnn2gnn_jax.main", flag]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    usage = "python -m cnn2gnn_jax.main --config=CONFIG[:WORD] [--workdir=DIR]"
    for text in (usage, "--workdir: ", "Examples:", "--config: FILE[:WORD]", "cifar10, cifar100, digits,"):
        assert text in done.stdout
    assert "absl" not in done.stdout and "jax_" not in done.stdout
    assert len(done.stdout.splitlines()) < 50


@pytest.mark.parametrize("command", [main, sweep])
def test_helpfull_lists_every_field_of_a_config(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--helpfull"])
    with pytest.raises(SystemExit):
        command.main()
    shown = capsys.readouterr().out
    assert "absl" not in shown and all(f"\n  --config.{name}: " in shown for name in base.FIELDS)
    text = "graph, cnn; default: of the recipe or method"
    assert text in " ".join(shown.partition("--config.student.kind: ")[2].split("--config")[0].split())


@pytest.mark.parametrize("command", [main, sweep, predict, export, report], ids=lambda module: module.__name__)
def test_every_command_tells_its_version_and_shows_examples(command, monkeypatch, capsys):
    shown = {}
    for flag in ("--version", "--help"):
        monkeypatch.setattr(sys, "argv", ["command", flag])
        with pytest.raises(SystemExit) as ended:
            command.run()
        assert ended.value.code == 0
        shown[flag] = capsys.readouterr().out
    assert shown["--version"] == f"cnn2gnn_jax {cnn2gnn_jax.__version__}, JAX {jax.__version__}\n"
    name = f"cnn2gnn-{command.__name__.split('.')[1]}".removesuffix("-main")
    text, _, flags = shown["--help"].partition("Flags:")
    assert f"`{name}` is the same command." in text and f"\n    {name} --" in text.partition("Examples:")[2]
    assert "--version: " in flags and "absl" not in flags and "jax_" not in flags


def test_commands_do_not_accept_each_others_flags(monkeypatch, capsys):
    """Tests the flags of each command in a process that imports all commands."""
    for command, own, others in (
        (main, "--stage", ("--sweep", "--bundle", "--manual_dir")),
        (sweep, "--shard", ("--stage", "--bundle", "--manual_dir")),
        (predict, "--bundle", ("--stage", "--sweep", "--manual_dir")),
        (export, "--graph", ("--stage", "--sweep", "--bundle")),
        (report, "--manual_dir", ("--stage", "--sweep", "--bundle")),
    ):
        monkeypatch.setattr(sys, "argv", ["command", "--help"])
        with pytest.raises(SystemExit) as ended:
            command.main()
        shown = capsys.readouterr().out
        flags = {word.rstrip(":") for line in shown.split("Flags:")[1].splitlines() for word in line.split()[:1]}
        assert ended.value.code == 0 and own in flags and not flags & set(others)
        for other in others:
            monkeypatch.setattr(sys, "argv", ["command", f"{other}=x"])
            with pytest.raises(UserError):
                command.main()


@pytest.mark.parametrize(
    ("field", "advice"),
    [
        ("train.epochs", "did you mean config.student.train.epochs or config.teacher.train.epochs?"),
        ("student.train.lerning_rate", "did you mean config.student.train.learning_rate?"),
        ("zzz", "configs/base.py lists the fields"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_names(field, advice):
    assert str(fields.no_such_field(field, base.FIELDS)) == f"there is no field config.{field}: {advice}"


def test_fields_are_set_from_text(monkeypatch):
    arguments = ["--noconfig.tensorboard", "--config.seed", "3", "--config.student.stem_widths=8", "--config.name=a=b"]
    arguments += ["--config.teacher.train.learning_rate=1", "--config.student.kind=cnn", "--config.data.limit=-1"]
    arguments += [
        "--config.student.head_widths=(16, 8)",
        "--config.compilation_cache=False",
        "--config.distill.warmup=2",
    ]
    monkeypatch.setattr(sys, "argv", ["main", "--config=configs/digits.py:smoke", *arguments])
    monkeypatch.chdir(ROOT)
    config = main._flags().config
    assert (config.tensorboard, config.seed, config.student.stem_widths, config.name) == (False, 3, (8,), "a=b")
    assert (config.teacher.train.learning_rate, config.student.kind, config.data.limit) == (1.0, "cnn", -1)
    assert (config.student.head_widths, config.compilation_cache, config.distill.warmup) == ((16, 8), False, 2)
    assert config.student.train.epochs == 3  # the value in the file


def test_any_file_that_returns_a_config_is_a_config_file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("from cnn2gnn_jax.configs import base\n\ndef get_config():\n    return base.get_config()\n")
    assert config_flag.load(str(path)).method == "cnn2gnn"
    with pytest.raises(UserError, match="takes no word after a colon: found 'smoke'"):
        config_flag.load(f"{path}:smoke")
    path.write_text("def get_config():\n    return {}\n")
    with pytest.raises(UserError, match="returns a dict, expected an ml_collections.ConfigDict"):
        config_flag.load(str(path))


@pytest.mark.parametrize("name", built_in.names("config"))
def test_a_built_in_config_is_named_without_its_path(name):
    for word in ("", ":smoke"):
        assert config_flag.load(f"{name}{word}") == config_flag.load(f"{ROOT}/configs/{name}.py{word}")


def test_a_file_wins_over_the_built_in_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stl10").mkdir()
    assert config_flag.load("stl10").name == "stl10"  # a folder of this name is ignored
    text = "from cnn2gnn_jax.configs import base\n\ndef get_config():\n    return base.get_config()\n"
    (tmp_path / "digits").write_text(text)
    assert config_flag.load("digits") == base.get_config() != digits.get_config()


def test_a_config_may_import_modules_of_the_working_directory(tmp_path):
    """Tests the case of console commands, which do not add the working directory to the path as `python -m` does."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "own_module.py").write_text(
        "from cnn2gnn_jax.configs import base\n\nget_config = base.get_config\n"
    )
    (tmp_path / "own.py").write_text("from own_module import get_config\n")
    (tmp_path / "command").write_text("from cnn2gnn_jax.main import run\n\nrun()\n")
    command = [sys.executable, str(tmp_path / "command"), f"--config={tmp_path / 'own.py'}", "--config.seed=many"]
    done = subprocess.run(
        command,
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "--config.seed=many: expected a value of type int" in done.stderr


def tiny(tmp_path):
    command = [sys.executable, "-m", "cnn2gnn_jax.main", "--config=tests/faults/tiny.py"]
    return [*command, f"--workdir={tmp_path / 'run'}", f"--config.cache_dir={tmp_path / 'cache'}"]


def test_after_ctrl_c_the_state_is_saved_and_the_same_command_resumes(killed, program, tmp_path):
    long = [*tiny(tmp_path), "--config.student.train.epochs=200", "--config.checkpoint.every_seconds=1000"]
    lines = killed(long, "run/metrics.jsonl", 4, signal.SIGINT, 130).strip().splitlines()
    assert lines[-1].startswith("stopped by Ctrl-C after step ") and lines[-1].endswith("the same command goes on")
    step = int(lines[-1].split("after step ")[1].split()[0])
    assert not any("Traceback" in line for line in lines)
    lines = killed(long, "run/metrics.jsonl", step + 4, signal.SIGINT, 130).splitlines()
    assert any(f"resuming at step {step} of 800" in line for line in lines)


INTERRUPTS = """
import os, signal, sys, time
from cnn2gnn_jax.runtime import command_line, errors, processes

def main():
    if sys.argv[1] != "unheeded":
        processes.install_signal_handlers()
    if sys.argv[1] in ("between", "unheeded"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    with processes.stopping_between_chunks():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        time.sleep(60)

command_line.run(main)
"""


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("between", ["stopped by Ctrl-C between two stages of training: the same command goes on"]),
        ("unheeded", ["stopped by Ctrl-C: the same command starts again"]),
        (
            "twice",
            [
                "Ctrl-C: the state is saved after these steps; Ctrl-C again stops at once",
                "stopped by Ctrl-C at once: the same command goes on from the last checkpoint",
            ],
        ),
    ],
)
def test_ctrl_c_ends_a_program_in_one_line(when, expected):
    command = [sys.executable, "-c", INTERRUPTS, when]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert done.stderr.splitlines() == expected
