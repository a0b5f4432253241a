"""The outputs of a teacher that students learn from: computed once for all images, stored on disk, and scored."""

import functools
import time
from typing import Any, NamedTuple

import numpy as np

from cnn2gnn_jax.data import teacher_logits
from cnn2gnn_jax.evaluation.outputs import accuracy, attention_maps, network_outputs
from cnn2gnn_jax.evaluation.scoring import model_of
from cnn2gnn_jax.run import Run
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.training import tasks
from cnn2gnn_jax.training.fit import Load
from cnn2gnn_jax.training.model import TrainedModel


class TeacherOutputs(NamedTuple):
    """The teacher's outputs on disk.

    arrays: a dictionary for each field of `networks.Outputs` that is stored, with an array for each split. `logits` are
      always stored, `pooled` and `features` where they are needed. Features are attention maps of the training images,
      by stage: `train_1`, `train_2`, ...
    facts: `test_accuracy` and `train_accuracy` in percent, and `seconds`. Logits of `teacher.logits_file` have
      `train_accuracy` alone.
    """

    arrays: dict[str, dict[str, np.ndarray]]
    facts: dict[str, Any]

    def for_training(self, fields: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The outputs for the training images, by the names under which a training step reads them.

        Args:
          fields: the fields of `networks.Outputs` that are needed.
        """
        return {
            f"teacher_{field}{name.removeprefix('train').removeprefix('_')}": array
            for field in fields
            for name, array in self.arrays[field].items()
            if name.startswith("train")
        }


def images_by_split(run: Run) -> dict[str, np.ndarray]:
    """The raw images (N, H, W, C) of each split; `holdout` is present only if images are held out."""
    splits = {"train": run.dataset.train, "test": run.dataset.test, "holdout": run.dataset.holdout}
    return {name: split.images for name, split in splits.items() if split is not None}


def student_inputs(run: Run, outputs: TeacherOutputs | None) -> dict[str, np.ndarray]:
    """The raw inputs of the student by split: images (N, H, W, C), or the teacher's pooled features (N, F)."""
    if not tasks.takes_features(run.config):
        return images_by_split(run)
    assert outputs is not None
    return outputs.arrays["pooled"]


def outputs_from_file(run: Run) -> TeacherOutputs:
    """Reads the logits of `teacher.logits_file`.

    Raises:
      UserError: the file is missing, or does not fit the training images.
    """
    file, train = run.config.teacher.logits_file, run.dataset.train
    logits, accuracy_in_percent = teacher_logits.read_logits_file(file, train.labels, len(run.dataset.classes))
    log(f"teacher: logits from {file}, {accuracy_in_percent:.2f}% correct on the training images")
    return TeacherOutputs({"logits": {"train": logits}}, {"train_accuracy": accuracy_in_percent})


def computed_outputs(run: Run, load: Load) -> TeacherOutputs:
    """The outputs of the run's teacher, computed unless they are on disk.

    Args:
      run: the run.
      load: loads the trained state of the teacher.
    """
    name, images = run.config.teacher.network, images_by_split(run)
    rows = {split: len(array) for split, array in images.items()}

    @functools.cache
    def model() -> TrainedModel:
        return model_of(run, tasks.teacher_task(run.config, run.dataset), load(), images["train"])

    @functools.cache
    def compute() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
        log(f"computing the outputs of teacher {name}")
        start = time.monotonic()
        logits, pooled, facts = {}, {}, {}
        for split, array in images.items():
            logits[split], pooled[split] = network_outputs(model(), array, run.devices)
            facts[f"{split}_accuracy"] = accuracy(logits[split], getattr(run.dataset, split).labels)
        return logits, pooled, {**facts, "seconds": round(time.monotonic() - start, 3)}

    def compute_attention() -> tuple[teacher_logits.Blocks, dict[str, Any]]:
        log(f"computing the attention maps of teacher {name}")
        batches = attention_maps(model(), images["train"], run.devices)
        return ({f"train_{i}": array for i, array in enumerate(batch, 1)} for batch in batches), {}

    def ensure(field: str, function: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        folder = run.teacher_folder / f"teacher_{field}"
        return teacher_logits.ensure(folder, run.teacher_folder.name, rows, function)

    fields, arrays = tasks.stored_outputs(run.config, run.dataset), {}
    arrays["logits"], facts = ensure("logits", lambda: ([compute()[0]], compute()[2]))
    if "pooled" in fields or tasks.takes_features(run.config):
        arrays["pooled"], _ = ensure("pooled", lambda: ([compute()[1]], compute()[2]))
    if "features" in fields:
        arrays["features"], _ = ensure("attention", compute_attention)
    return TeacherOutputs(arrays, facts)
