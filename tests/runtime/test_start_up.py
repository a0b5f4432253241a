"""Tests that importing the package changes no setting of a program, and that commands set JAX up when they start."""

import pathlib
import subprocess
import sys

import jax
import pytest

from cnn2gnn_jax import main, pipeline, sweep
from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.sweeps import runner

ROOT = pathlib.Path(__file__).parents[2]

IMPORTS = """
import importlib, os, pathlib, pkgutil, signal, sys
import jax

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")

def world():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return {name: getattr(jax.config, name) for name in SETTINGS}, os.environ.get("XLA_FLAGS"), handlers

before = world()
import cnn2gnn_jax
for module in pkgutil.walk_packages(cnn2gnn_jax.__path__, "cnn2gnn_jax."):
    importlib.import_module(module.name)
from cnn2gnn_jax.runtime import processes
assert processes._stop.cache_info().currsize == 0
assert not processes.must_stop()

from cnn2gnn_jax import run
from cnn2gnn_jax.configs import digits
config = digits.get_config("smoke")
config.cache_dir = sys.argv[1]
run.begin(config, pathlib.Path(sys.argv[1]) / "run")  # as a library does
assert world() == before, (world(), before)
"""


def test_a_library_that_imports_everything_and_begins_a_run_keeps_its_own_settings(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("keep", "named"), [(True, None), (False, None), (True, "/somewhere")])
@pytest.mark.parametrize("command", ["main", "sweep"])
def test_a_command_keeps_compiled_programs_if_the_config_says_so(command, keep, named, tmp_path, monkeypatch):
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    settings_of_the_tests = {name: getattr(jax.config, name) for name in settings}
    before = {settings[0]: named, settings[1]: settings_of_the_tests[settings[1]]}
    jax.config.update(settings[0], before[settings[0]])
    monkeypatch.setattr(processes, "install_signal_handlers", lambda: None)
    monkeypatch.setattr(pipeline, "run", lambda *arguments: None)
    monkeypatch.setattr(runner, "run", lambda *arguments, **options: runner.Outcome(0, 0, False))
    monkeypatch.chdir(ROOT)
    files = {"main": ["--config=configs/digits.py"], "sweep": ["--sweep=configs/sweeps/figure4.py:digits"]}
    arguments = [*files[command], f"--config.cache_dir={tmp_path}", f"--config.compilation_cache={keep}"]
    if command == "sweep":
        arguments.append(f"--out={tmp_path / 'out'}")
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    try:
        {"main": main, "sweep": sweep}[command].main()
        changed = {name: getattr(jax.config, name) for name in settings}
        stored = dict(zip(settings, (str(tmp_path / "compilation"), 0.1), strict=True))
        assert changed == (stored if keep and named is None else before)
    finally:
        for name, value in settings_of_the_tests.items():
            jax.config.update(name, value)
