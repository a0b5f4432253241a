"""A run: its complete config, its data and its places on disk, and what its workdir keeps of them.

A workdir holds all that its student needs to answer for new images: the data set need not be there. Its folder `run`
tells the config and what the student needs of the data set, and holds the anchors of a graph student.
"""

import contextlib
import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import data
from cnn2gnn_jax.data import Dataset, Split, batches
from cnn2gnn_jax.runtime import artifact, processes, storage
from cnn2gnn_jax.runtime.devices import ONE, Devices, from_config
from cnn2gnn_jax.runtime.errors import UserError

RECORD = "run"  # the folder in a workdir
KIND = artifact.Kind("the record of a run", configs.STUDENT_FORMAT, remake="run the run's own command again")
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
    if (workdir / "config.json").exists():  # which earlier versions wrote
        raise UserError(
            f"{workdir} was written by an earlier version of this program: choose another --workdir, or delete this one"
        )
    try:
        artifact.read_manifest(workdir / RECORD, KIND, fingerprint)
    except artifact.Missing:
        return
    except (artifact.Outdated, artifact.Foreign) as error:
        facts = error.manifest.get("facts")
        differences = configs.differences(facts.get("config") if isinstance(facts, dict) else None, config)
        more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        fields = f"{'; '.join(differences[:_NAMED])}{more}"
        if isinstance(error, artifact.Outdated):
            what = f"{error.what} ({fields or 'no field differs'}): choose another --workdir, or delete this one"
            raise UserError(what) from None
        fields = fields or "no field differs, but its images or the given logits do"
        raise UserError(
            f"{workdir} holds a run of another config ({fields}): choose another --workdir, or none for one of its own"
        ) from None


def record(run: Run) -> None:
    """Writes what the run is to its workdir, for `read`, unless it is there."""
    folder, train = run.workdir / RECORD, run.dataset.train
    facts = {
        "teacher_folder": str(run.teacher_folder.absolute()),
        "dataset_fingerprint": run.dataset.fingerprint,
        "dataset": {
            "classes": list(run.dataset.classes),
            "image_shape": list(train.images.shape[1:]),
            "train_images": len(train),
            "mean": list(run.dataset.mean),
            "std": list(run.dataset.std),
        },
        "config": configs.plain(run.config),
    }
    with contextlib.suppress(artifact.Refused):
        if artifact.read(folder, KIND, run.fingerprint).facts == facts:
            return
    anchors = {}
    if run.config.student.kind == "graph":
        # Those of the first student, which answers for new images.
        index = np.stack(batches.anchor_sets(train.labels, run.config.evaluate, run.config.seed))
        anchors = {"index": index, "labels": train.labels[index], "images": train.images[index]}
        if train.files is not None:
            anchors["files"] = np.array(train.files)[index]
    artifact.write(folder, KIND, run.fingerprint, facts, anchors)


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


def evaluation_fingerprint(run: Run | Recorded) -> str:
    """Names what the run's students are worth: the run's fingerprint, and every field of `evaluate`."""
    return storage.fingerprint([run.fingerprint, configs.plain(run.config.evaluate)])


def read(workdir: pathlib.Path) -> Recorded:
    """What `record` has written.

    Raises:
      UserError: there is no run, it is of another version, or damaged.
    """
    folder = workdir / RECORD
    try:
        kept = artifact.read(folder, KIND)
    except artifact.Missing as error:
        raise UserError(
            f"{workdir} is no workdir ({error.what}): give one that cnn2gnn_jax.main has trained in"
        ) from None
    except artifact.Outdated as error:
        raise UserError(f"{error.what}: use the version that wrote it, or train again in a new workdir") from None
    with artifact.intact(folder, KIND):
        config = configs.resolve(ConfigDict(kept.facts["config"]))
        dataset = kept.facts["dataset"]
        height, width, channels = dataset["image_shape"]
        if config.student.kind == "graph" and not {"index", "labels", "images"} <= kept.arrays.keys():
            raise ValueError("it has no anchors")
        return Recorded(
            config,
            workdir,
            kept.fingerprint,
            pathlib.Path(kept.facts["teacher_folder"]),
            tuple(dataset["classes"]),
            (height, width, channels),
            dataset["train_images"],
            tuple(dataset["mean"]),
            tuple(dataset["std"]),
            kept.arrays if config.student.kind == "graph" else None,
        )
