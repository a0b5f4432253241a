"""A run: its complete config, its data and its places on disk, and what its workdir keeps of them.

A workdir holds all that its student needs to answer for new images: the data set need not be there.
"""

import importlib.metadata
import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import data
from cnn2gnn_jax.data import Dataset, Split, batches
from cnn2gnn_jax.runtime import processes, storage
from cnn2gnn_jax.runtime.devices import ONE, Devices, from_config
from cnn2gnn_jax.runtime.errors import UserError

_NAMED = 5  # fields in an error


class Run(NamedTuple):
    """What every stage reads: the complete config, the data, the places on disk, and the devices."""

    config: FrozenConfigDict
    dataset: Dataset
    teacher_folder: pathlib.Path
    workdir: pathlib.Path
    fingerprint: str
    devices: Devices = ONE

    @property
    def evaluated(self) -> Split:
        """The images that accuracies are of."""
        split = self.dataset.test if self.config.evaluate.split == "test" else self.dataset.holdout
        assert split is not None
        return split


def begin(config: ConfigDict, workdir: pathlib.Path | None = None) -> Run:
    """The run of a config as a config file gives it; `workdir` None for `runs/<config.name>-<fingerprint>`.

    Raises:
      UserError: wrong config, data missing or damaged, a workdir of another config.
    """
    complete = configs.resolve(config)
    cache = pathlib.Path(complete.cache_dir).expanduser()
    devices = from_config(complete.parallel)
    dataset = processes.first_before_others(lambda: data.load(complete.data, cache))
    configs.check_data(complete, dataset)
    fingerprint = configs.student_fingerprint(complete, dataset.fingerprint)
    folder = pathlib.Path("runs") / f"{complete.name}-{fingerprint}" if workdir is None else workdir
    _refuse_another(folder, complete, fingerprint)
    teacher_folder = cache / "teachers" / configs.teacher_fingerprint(complete, dataset.fingerprint)
    return Run(complete, dataset, teacher_folder, folder, fingerprint, devices)


def _refuse_another(workdir: pathlib.Path, config: FrozenConfigDict, fingerprint: str) -> None:
    path = workdir / "config.json"
    if not path.exists() or (facts := storage.read_json(path)).get("fingerprint") == fingerprint:
        return
    differences = configs.differences(facts.get("config"), config)
    more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
    fields = f"{'; '.join(differences[:_NAMED])}{more}" if differences else "no field differs"
    if facts.get("format") != configs.STUDENT_FORMAT:
        raise UserError(
            f"{workdir} was written by {_versions(facts)} ({fields}): choose another --workdir, or delete this one"
        )
    fields = fields if differences else "no field differs, but its images or the given logits do"
    raise UserError(
        f"{workdir} holds a run of another config ({fields}): choose another --workdir, or none for one of its own"
    )


def _versions(facts: dict[str, Any]) -> str:
    """The version that has written a workdir, beside this one."""
    written = f"cnn2gnn_jax {facts['version']}, " if "version" in facts else ""
    return (
        f"another version of this program ({written}format {facts.get('format')}; "
        f"this one is cnn2gnn_jax {_package_version()}, format {configs.STUDENT_FORMAT})"
    )


def _package_version() -> str:
    try:
        return importlib.metadata.version("cnn2gnn_jax")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def record(run: Run) -> None:
    """Writes what the run is to its workdir, for `reopen`."""
    train, anchors_sha256 = run.dataset.train, None
    if run.config.student.kind == "graph":
        # Those of the first student, which answers for new images.
        index = np.stack(batches.anchor_sets(train.labels, run.config.evaluate, run.config.seed))
        arrays = {"index": index, "labels": train.labels[index], "images": train.images[index]}
        if train.files is not None:
            arrays["files"] = np.array(train.files)[index]
        with storage.atomic_path(run.workdir / "anchors.npz") as beside:
            with open(beside, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            anchors_sha256 = storage.sha256(beside)
    facts = {
        "format": configs.STUDENT_FORMAT,
        "version": _package_version(),
        "fingerprint": run.fingerprint,
        "teacher_folder": str(run.teacher_folder.absolute()),
        "dataset_fingerprint": run.dataset.fingerprint,
        "dataset": {
            "classes": list(run.dataset.classes),
            "image_shape": list(train.images.shape[1:]),
            "train_images": len(train),
            "mean": list(run.dataset.mean),
            "std": list(run.dataset.std),
        },
        "config": run.config.to_dict(),
        "anchors_sha256": anchors_sha256,
    }
    storage.write_json(run.workdir / "config.json", facts)


class Recorded(NamedTuple):
    """What a workdir tells of its run.

    fingerprint: of the run.
    teacher_folder: of the teacher, which may have gone since.
    classes: the name of label k at position k.
    image_shape: (H, W, C).
    train_images: how many there were.
    mean, std: of the images.
    anchors: of a graph student, `index` (K, A), `labels` (K, A) and `images` (K, A, H, W, C) uint8 of K batches; of an
      image folder also `files` (K, A), relative to the folder.
    """

    config: FrozenConfigDict
    workdir: pathlib.Path
    fingerprint: str
    teacher_folder: pathlib.Path
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train_images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    anchors: dict[str, np.ndarray] | None


def read(workdir: pathlib.Path) -> Recorded:
    """What `record` has written.

    Raises:
      UserError: there is no run, it is of another version, or damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(
            f"{workdir} is no workdir (it has no config.json): give one that cnn2gnn_jax.main has trained in"
        )
    facts = storage.read_json(path)
    if facts.get("format") != configs.STUDENT_FORMAT:
        raise UserError(
            f"{workdir} was written by {_versions(facts)}: "
            "use the version that wrote it, or train again in a new workdir"
        )
    path = workdir / "anchors.npz"
    try:
        config = configs.resolve(ConfigDict(facts["config"]))
        dataset = facts["dataset"]
        height, width, channels = dataset["image_shape"]
        anchors = None
        if config.student.kind == "graph":
            if facts["anchors_sha256"] != storage.sha256(path):
                raise ValueError(f"{path.name} is not what was written")
            anchors = _anchors(path)
        return Recorded(
            config,
            workdir,
            str(facts["fingerprint"]),
            pathlib.Path(facts["teacher_folder"]),
            tuple(dataset["classes"]),
            (height, width, channels),
            dataset["train_images"],
            tuple(dataset["mean"]),
            tuple(dataset["std"]),
            anchors,
        )
    except UserError:
        raise
    except Exception as error:  # of values where a config has sections, many kinds
        what = " ".join(str(error).split())
        raise UserError(
            f"{workdir} is damaged or of another version ({what}): "
            "run its own command again, or train again in a new workdir"
        ) from None


def _anchors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = ("index", "labels", "images", *(["files"] if "files" in arrays else []))
            return {name: arrays[name] for name in names}
    except Exception as error:  # of NumPy and zipfile, many kinds
        raise ValueError(f"{path.name}: {error}") from None
