"""Tests that the wheel contains only the package, and that its commands run without the repository."""

import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import jax
import pytest

import cnn2gnn_jax
from tests.package import modules

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = ("cnn2gnn", "cnn2gnn-sweep", "cnn2gnn-predict", "cnn2gnn-export", "cnn2gnn-report")
# The build backend and pip of the environment are used, so that nothing is downloaded.
BACKEND = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"

VERSIONS = """
import importlib.metadata, sys
import cnn2gnn_jax

folder = sys.argv[1]
assert cnn2gnn_jax.__file__.startswith(folder), cnn2gnn_jax.__file__
[distribution] = importlib.metadata.distributions(name="cnn2gnn_jax", path=[folder])
for command in distribution.entry_points:
    sys.argv = [command.name, "--version"]
    try:
        command.load()()
    except SystemExit as ended:
        print(command.name, ended.code)
"""


def call(*command, cwd, packages=None):
    """Runs a command that sees the packages in a folder, if given, but not the repository's. Returns its stdout."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(packages or "")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Returns two wheels: one is built from a copy of the sources, the other from their sdist.

    The sources are copied because setuptools leaves files beside them.
    """
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("setuptools and pip are not installed in this environment: the extra dev has setuptools")
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is older than pyproject.toml asks for")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("cnn2gnn_jax", "configs", "benchmarks", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "sources" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "sources")
    call(sys.executable, "-c", BACKEND, "build_sdist", folder / "sdist", cwd=folder / "sources")
    [packed] = (folder / "sdist").iterdir()
    with tarfile.open(packed) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    for out, sources in (("direct", folder / "sources"), ("by_sdist", unpacked)):
        call(sys.executable, "-c", BACKEND, "build_wheel", folder / out, cwd=sources)
    return [next((folder / out).glob("*.whl")) for out in ("direct", "by_sdist")]


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """Returns the folder in which a wheel is installed. Its commands are in bin/."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder)
    call(*pip, wheels[0], cwd=folder)
    return folder


def test_a_wheel_holds_the_package_with_its_configs_and_nothing_else(wheels):
    sources = {path.relative_to(ROOT).as_posix() for path in modules().values()}
    assert {"cnn2gnn_jax/configs/base.py", "cnn2gnn_jax/configs/sweeps/table1.py"} <= sources
    for wheel in wheels:
        names = set(zipfile.ZipFile(wheel).namelist())
        described = {name for name in names if name.startswith(f"cnn2gnn_jax-{cnn2gnn_jax.__version__}.dist-info/")}
        assert names - described == sources


def test_a_wheels_commands_tell_their_versions(installed, tmp_path):
    version = f"cnn2gnn_jax {cnn2gnn_jax.__version__}, JAX {jax.__version__}\n"
    assert call(installed / "bin" / "cnn2gnn", "--version", cwd=tmp_path, packages=installed) == version
    # All commands are called in one process, since each start of Python takes seconds.
    shown = call(sys.executable, "-c", VERSIONS, installed, cwd=tmp_path, packages=installed)
    assert sorted(shown.split(version)) == sorted(["", *(f"{name} 0\n" for name in COMMANDS)])


@pytest.mark.slow
def test_a_wheels_commands_run_built_in_configs(installed, tmp_path):
    def command(name, *flags):
        return call(installed / "bin" / name, *flags, cwd=tmp_path, packages=installed)

    for name in COMMANDS:
        assert f"    {name} --" in command(name, "--help").partition("Examples:")[2]
    small = ["--config.cache_dir=cache", "--config.data.limit=20", "--config.student.train.epochs=1"]
    small += [
        "--config.student.train.batch_size=50",
        "--config.student.sparsity=20",
        "--config.student.backbone=pixels",
    ]
    trained = command("cnn2gnn", "--config=digits:smoke", *small, "--config.method=gnn", "--workdir=run")
    assert "gnn student" in trained
    assert "images, ms" in command("cnn2gnn-export", "--workdir=run", "--out=bundle")
    answers = command("cnn2gnn-predict", "--bundle=bundle", "run/report/curves.png", "--format=csv")
    assert answers.startswith("image,class,probability\n")
    sweep = ["--sweep=table3:digits", "--out=sweep", *small, "--config.evaluate.graph_off=False"]
    sweep += ["--config.teacher.network=resnet8", "--config.teacher.train.epochs=1"]
    assert len(command("cnn2gnn-sweep", *sweep, "--dry_run").splitlines()) > 1
    assert "1 of " in command("cnn2gnn-sweep", *sweep, "--cells=1")
    assert command("cnn2gnn-report", "--out=sweep", "--cache_dir=cache") == "sweep/report/index.html\n"
