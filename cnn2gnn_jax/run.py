"""A run: its resolved config, its data and its folders, and what its workdir records of them.

A workdir holds everything that its student needs to classify new images, without the data set. Its folder `run` records
the config, the facts about the data set that the student needs, and the anchors of a graph student.
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

RECORD = "run"  # the name of the folder in a workdir
KIND = artifact.Kind("the record of a run", configs.STUDENT_FORMAT, remake="run the run's own command again")
_MAX_NAMED_FIELDS = 5  # in an error message


class Run(NamedTuple):
    """The inputs of every stage: the resolved config, the data, the folders, and the devices."""

    config: FrozenConfigDict
    dataset: Dataset
    teacher_folder: pathlib.Path
    workdir: pathlib.Path
    fingerprint: str
    devices: Devices = ONE

    @property
    def evaluated(self) -> Split:
        """The split on which accuracies are evaluated."""
        split = self.dataset.test if self.config.evaluate.split == "test" else self.dataset.holdout
        assert split is not None
        return split


def begin(config: ConfigDict, workdir: pathlib.Path | None = None) -> Run:
    """Begins the run of a config: resolves the config, loads the data, and checks that both fit.

    Args:
      config: the config, as a config file returns it.
      workdir: the folder of the run; None for `runs/<config.name>-<fingerprint>`.

    Raises:
      UserError: the config is invalid, data is missing or damaged, or the workdir has another config.
    """
    resolved = configs.resolve(config)
    cache = pathlib.Path(resolved.cache_dir).expanduser()
    devices = from_config(resolved.parallel)
    dataset = processes.first_before_others(lambda: data.load(resolved.data, cache))
    configs.check_data(resolved, dataset)
    fingerprint = configs.student_fingerprint(resolved, dataset.fingerprint)
    folder = pathlib.Path("runs") / f"{resolved.name}-{fingerprint}" if workdir is None else workdir
    _check_workdir(folder, resolved, fingerprint)
    teacher_folder = cache / "teachers" / configs.teacher_fingerprint(resolved, dataset.fingerprint)
    return Run(resolved, dataset, teacher_folder, folder, fingerprint, devices)


def _check_workdir(workdir: pathlib.Path, config: FrozenConfigDict, fingerprint: str) -> None:
    """Raises UserError if the workdir holds a run of another config or of an earlier version."""
    if (workdir / "config.json").exists():  # written by earlier versions
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
        more = f"; and {len(differences) - _MAX_NAMED_FIELDS} more" if len(differences) > _MAX_NAMED_FIELDS else ""
        fields = f"{'; '.join(differences[:_MAX_NAMED_FIELDS])}{more}"
        if isinstance(error, artifact.Outdated):
            what = f"{error.reason} ({fields or 'no field differs'}): choose another --workdir, or delete this one"
            raise UserError(what) from None
        fields = fields or "no field differs, but its images or the given logits do"
        raise UserError(
            f"{workdir} holds a run of another config ({fields}): choose another --workdir, or none for one of its own"
        ) from None


def record(run: Run) -> None:
    """Records the run in its workdir, for `read`, unless it is recorded already."""
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
        # The anchors of the first student, which classifies new images.
        index = np.stack(batches.anchor_sets(train.labels, run.config.evaluate, run.config.seed))
        anchors = {"index": index, "labels": train.labels[index], "images": train.images[index]}
        if train.files is not None:
            anchors["files"] = np.array(train.files)[index]
    artifact.write(folder, KIND, run.fingerprint, facts, anchors)


class Recorded(NamedTuple):
    """What a workdir records of its run.

    config: the resolved config.
    workdir: the folder of the run.
    fingerprint: the fingerprint of the run.
    teacher_folder: the folder of the teacher, which may have been removed since.
    classes: the name of label k at position k.
    image_shape: (H, W, C).
    train_images: the number of training images.
    mean, std: the channel statistics of the images.
    anchors: for a graph student, `index` (K, A), `labels` (K, A) and `images` (K, A, H, W, C) uint8 of K batches; for
      an image folder also `files` (K, A), relative to the folder.
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
    """Reads what `record` has written.

    Raises:
      UserError: there is no run in the workdir, or it is damaged or of another version.
    """
    folder = workdir / RECORD
    try:
        recorded = artifact.read(folder, KIND)
    except artifact.Missing as error:
        raise UserError(
            f"{workdir} is no workdir ({error.reason}): give one that cnn2gnn_jax.main has trained in"
        ) from None
    except artifact.Outdated as error:
        raise UserError(f"{error.reason}: use the version that wrote it, or train again in a new workdir") from None
    with artifact.intact(folder, KIND):
        config = configs.resolve(ConfigDict(recorded.facts["config"]))
        dataset = recorded.facts["dataset"]
        height, width, channels = dataset["image_shape"]
        if config.student.kind == "graph" and not {"index", "labels", "images"} <= recorded.arrays.keys():
            raise ValueError("it has no anchors")
        return Recorded(
            config,
            workdir,
            recorded.fingerprint,
            pathlib.Path(recorded.facts["teacher_folder"]),
            tuple(dataset["classes"]),
            (height, width, channels),
            dataset["train_images"],
            tuple(dataset["mean"]),
            tuple(dataset["std"]),
            recorded.arrays if config.student.kind == "graph" else None,
        )
