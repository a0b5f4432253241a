"""Tests of the XLA options that are set at start-up."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from cnn2gnn_jax.runtime import xla


@pytest.fixture
def flags(monkeypatch):
    """Returns `flags(before, version)`, which sets the options for a version of jaxlib and returns `XLA_FLAGS`."""

    def after(before, version="0.12.0"):
        monkeypatch.setenv("XLA_FLAGS", before)
        monkeypatch.setattr(importlib.metadata, "version", lambda package: version)
        xla.set_cpu_options()
        return os.environ["XLA_FLAGS"]

    return after


def test_convolutions_are_left_out_of_the_fusions(flags):
    option, _, types = flags("").partition("=")
    assert option == "--xla_cpu_experimental_ynn_fusion_type"
    assert "LIBRARY_FUSION_TYPE_REDUCE" in types
    assert "CONVOLUTION" not in types


def test_other_options_of_the_user_are_kept(flags):
    assert flags("--xla_dump_to=x").startswith("--xla_dump_to=x --xla_cpu_experimental_ynn_fusion_type=")


def test_the_users_setting_of_the_option_is_kept(flags):
    own = "--xla_cpu_experimental_ynn_fusion_type= --xla_dump_to=x"
    assert flags(own) == own


@pytest.mark.parametrize("version", ["0.9.2", "0.13.0", "1.0.0", "0.1.10"])
def test_untested_versions_get_no_option(flags, version):
    assert flags("", version) == ""


def test_the_installed_version_takes_the_option():
    program = (
        "from cnn2gnn_jax.runtime import xla; xla.set_cpu_options()\n"
        "import os, jax, jax.numpy as jnp\n"
        "assert xla.FUSION_OPTION in os.environ['XLA_FLAGS']\n"
        "assert jax.jit(lambda x: x + 1)(jnp.ones(()))  == 2"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
