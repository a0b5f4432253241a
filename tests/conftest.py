"""Fixtures: eight emulated devices, a cache and finished runs that tests share, and programs that tests start and kill.

The number of devices is set here, before JAX starts a backend.
"""

import os
import pathlib
import runpy
import signal
import subprocess
import time

import jax
import pytest

from cnn2gnn_jax.configs import base
from cnn2gnn_jax.runtime import xla

xla.set_cpu_options()
jax.config.update("jax_num_cpu_devices", 8)

ROOT = pathlib.Path(__file__).parent.parent
# Compilation takes most of the time of the tests. Compiled programs are kept on disk for other tests, for the programs
# that they start, and for later calls of pytest.
COMPILED = {
    "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.05,
}
for name, value in COMPILED.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

# A shell that starts the tests in the background makes them ignore SIGINT. The programs under test would inherit this.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ONE_CPU = {**os.environ, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Returns the cache folder that all runs share, so that their teacher is trained only once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def program():
    """Returns `program(command)`, which runs a command to its end on one CPU device and returns its stderr."""

    def run(command):
        done = subprocess.run(command, cwd=ROOT, env=ONE_CPU, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


@pytest.fixture
def killed(tmp_path):
    """Returns `killed(command, pattern, lines)`, which starts a command, kills it, and returns what it printed.

    The signal `how` is sent once a file in `tmp_path` that matches `pattern` has at least this number of lines. The
    command must then end with the exit code `code`.
    """

    def run(command, pattern, lines, how=signal.SIGKILL, code=-signal.SIGKILL):
        log = tmp_path / "killed.txt"
        with open(log, "w") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=ONE_CPU, stderr=output, stdout=output)
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            if any(path.read_bytes().count(b"\n") >= lines for path in tmp_path.glob(pattern)):
                break
            time.sleep(0.01)
        assert process.poll() is None, log.read_text()
        process.send_signal(how)
        assert process.wait(60) == code, log.read_text()
        return log.read_text()

    return run


@pytest.fixture(scope="session")
def finished_run(cache, tmp_path_factory):
    """Returns the workdir and the results of a finished run of two epochs on digits. Tests must not change it."""
    from cnn2gnn_jax import pipeline
    from cnn2gnn_jax.configs import digits

    config = digits.get_config("smoke")
    config.cache_dir, config.tensorboard, config.evaluate.graph_off = str(cache), False, False
    config.student.stem_widths, config.student.sparsity, config.student.train.epochs = (8, 16), 20, 2
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, pipeline.run(config, workdir)


@pytest.fixture(scope="session")
def bank_config(cache):
    """A config that trains for two epochs on digits and builds the training-set graph."""
    from cnn2gnn_jax.configs import digits

    config = digits.get_config("smoke")
    config.cache_dir, config.tensorboard, config.data.holdout = str(cache), False, 0.1
    config.student.stem_widths, config.student.sparsity, config.student.train.epochs = (8, 16), 20, 2
    config.evaluate.training_set.enabled = True
    config.evaluate.training_set.spaces = ("backbone", "hidden", "head")
    config.evaluate.training_set.sparsities, config.evaluate.training_set.weights = (1, 5), (0.3, 1.0)
    return config


@pytest.fixture(scope="session")
def bank_run(bank_config, tmp_path_factory):
    """Returns the workdir and the results of a finished run of `bank_config`. Tests must not change it."""
    from cnn2gnn_jax import pipeline

    workdir = tmp_path_factory.mktemp("with_bank") / "run"
    return workdir, pipeline.run(bank_config, workdir)


@pytest.fixture
def docs_script(monkeypatch):
    """Returns a function that runs a script of docs/, which then writes nothing, and returns the script's variables."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return lambda name: runpy.run_path(str(ROOT / "docs" / name))


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """Makes runs use one of the emulated devices, unless their config sets the number of devices."""
    plain = base.get_config

    def get_config():
        config = plain()
        config.parallel.devices = 1
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "get_config", get_config)
        yield
