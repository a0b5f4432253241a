"""A run: its complete config, its data and its places on disk."""

import pathlib
from typing import NamedTuple

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import data, storage
from cnn2gnn_jax.data import Dataset
from cnn2gnn_jax.errors import UserError


class Run(NamedTuple):
    """What every stage reads: the complete config, the data, and the places on disk."""

    config: FrozenConfigDict
    dataset: Dataset
    teacher_folder: pathlib.Path
    workdir: pathlib.Path
    fingerprint: str


def begin(config: ConfigDict, workdir: pathlib.Path | None = None) -> Run:
    """The run of a config as a config file gives it; `workdir` None for `runs/<config.name>-<fingerprint>`.

    Raises:
      UserError: wrong config, data missing or damaged, a workdir of another config.
    """
    complete = configs.resolve(config)
    cache = pathlib.Path(complete.cache_dir).expanduser()
    if complete.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compilation"))
        # By default JAX keeps only what took a second, and a run compiles dozens of smaller programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    dataset = data.load(complete.data, cache)
    configs.check_data(complete, dataset)
    fingerprint = configs.student_fingerprint(complete, dataset.fingerprint)
    folder = pathlib.Path("runs") / f"{complete.name}-{fingerprint}" if workdir is None else workdir
    _refuse_another(folder, fingerprint)
    teacher_folder = cache / "teachers" / configs.teacher_fingerprint(complete, dataset.fingerprint)
    return Run(complete, dataset, teacher_folder, folder, fingerprint)


def _refuse_another(workdir: pathlib.Path, fingerprint: str) -> None:
    path = workdir / "config.json"
    if path.exists() and (found := storage.read_json(path).get("fingerprint")) != fingerprint:
        raise UserError(
            f"{workdir} holds a run of another config (fingerprint {found}, this one's is {fingerprint}): "
            "choose another --workdir, or none for one of its own"
        )


def record(run: Run) -> None:
    """Writes what the run is to its workdir, for `reopen`."""
    facts = {
        "format": configs.FORMAT,
        "fingerprint": run.fingerprint,
        "dataset_fingerprint": run.dataset.fingerprint,
        "config": run.config.to_dict(),
    }
    storage.write_json(run.workdir / "config.json", facts)
