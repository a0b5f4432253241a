"""Eight emulated devices for every test; they must be asked for before JAX starts a backend."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache for all runs of the chain, so that the teacher that they share is trained once."""
    return tmp_path_factory.mktemp("cache")
