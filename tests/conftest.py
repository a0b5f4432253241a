"""Eight emulated devices for every test; they must be asked for before JAX starts a backend."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache for all runs of the chain, so that the teacher that they share is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def finished_run(cache, tmp_path_factory):
    """A finished run of two epochs on digits, not to be changed: its workdir and results."""
    from cnn2gnn_jax import pipeline
    from configs import digits

    config = digits.get_config("smoke")
    config.cache_dir, config.tensorboard, config.evaluate.graph_off = str(cache), False, False
    config.student.stem_widths, config.student.sparsity, config.student.train.epochs = (8, 16), 20, 2
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, pipeline.run(config, workdir)
