"""A trained student with everything that the studies of the training-set graph need of it."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import data, neighbors
from cnn2gnn_jax.evaluation import choice, summary, training_set
from cnn2gnn_jax.evaluation.choice import Embedded, Grid
from cnn2gnn_jax.evaluation.outputs import accuracy, by_batches, concatenated
from cnn2gnn_jax.neighbors import Settings
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving.trained import open_student
from cnn2gnn_jax.training.model import TrainedModel


class Images(NamedTuple):
    """N images of a split.

    embedded: the student's logits and features.
    labels: (N,), the classes.
    teacher: (N, C), the teacher's class probabilities.
    """

    embedded: Embedded
    labels: np.ndarray
    teacher: np.ndarray


class Student(NamedTuple):
    """A trained student and its images."""

    train: Images
    holdout: Images
    test: Images
    grid: Grid
    workdir: pathlib.Path

    @property
    def classes(self) -> int:
        return self.test.embedded.logits.shape[1]


def load(workdir: pathlib.Path) -> Student:
    """Loads the student of a finished run.

    Args:
      workdir: the workdir of a run with `--config.student.backbone=teacher`, held-out images, and the training-set
        graph.

    Raises:
      UserError: the run is not of this kind; or see `open_student`.
    """
    recorded, model, _ = open_student(workdir)
    config = recorded.config
    dataset = data.load(config.data, pathlib.Path(config.cache_dir).expanduser())
    if model.features is None or dataset.holdout is None or "training_set" not in config.evaluate:
        raise UserError(
            f"{workdir} holds another kind of run: expected one with --config.student.backbone=teacher, "
            "--config.data.holdout=0.1 and --config.evaluate.training_set.enabled=True"
        )
    section = config.evaluate.training_set
    grid = Grid(section.spaces, section.signals, section.sparsities, section.weights, section.epsilons)
    train, holdout, test = (
        Images(Embedded(logits, features), split.labels, teacher)
        for split in (dataset.train, dataset.holdout, dataset.test)
        for logits, features, teacher in [concatenated(by_batches(_outputs, model, split.images))]
    )
    return Student(train, holdout, test, grid, workdir)


def _outputs(model: TrainedModel, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    assert model.features is not None
    logits, features = model.logits_and_features(images)
    return logits, features, jax.nn.softmax(model.features.outputs(images).logits.astype(jnp.float32))


def with_teacher_logits(student: Student) -> Student:
    """The same images with the teacher's logits, up to a constant for each image, in place of the student's."""

    def images(split: Images) -> Images:
        return split._replace(embedded=split.embedded._replace(logits=np.log(np.maximum(split.teacher, 1e-12))))

    return student._replace(train=images(student.train), holdout=images(student.holdout), test=images(student.test))


def one_hot(student: Student) -> np.ndarray:
    """The labels of the training images as signals, (N, C)."""
    return np.eye(student.classes, dtype=np.float32)[student.train.labels]


def measure(
    student: Student, grid: Grid, columns: np.ndarray | None = None, signals: np.ndarray | None = None
) -> dict[str, Any]:
    """Measures the training-set graph of a student.

    The settings are chosen on the held-out images. Then the test images are evaluated once.

    Args:
      student: the student.
      grid: the settings to choose from.
      columns: the training images that are in the bank; None for all.
      signals: (N, C), the signals of all training images; replaces those of `grid`. The field `signals` of `grid` must
        have one value.
    """
    columns = np.arange(len(student.train.labels)) if columns is None else columns
    by_name = {"labels": one_hot(student), "teacher": student.train.teacher}
    banks = {}
    for space in grid.spaces:
        features = jnp.asarray(student.train.embedded.features[space][columns])
        labels = jnp.asarray(student.train.labels[columns])
        for name in grid.signals:
            sent = jnp.asarray((by_name[name] if signals is None else signals)[columns], jnp.float16)
            settings = Settings(space, name, 1, 0.0, 1.0)
            banks[space, name] = neighbors.make_bank(features, labels, sent, settings, "float16")
    chosen = choice.choose(student.holdout.embedded, student.holdout.labels, banks, grid)
    bank = banks[chosen.settings.space, chosen.settings.signal].replace(settings=chosen.settings)
    result = training_set.evaluate(bank, student.test.embedded, student.test.labels)
    return {
        **chosen.settings._asdict(),
        "images": len(columns),
        "holdout_accuracy": chosen.accuracy_two_fold,
        "accuracy": result["accuracy"],
        "accuracy_of_neighbors": result["diagnostics"]["accuracy_of_neighbors"],
    }


def accuracy_without_graph(images: Images) -> float:
    """The accuracy of the student without the training-set graph, in percent."""
    return accuracy(images.embedded.logits, images.labels)


def accuracy_of_teacher(images: Images) -> float:
    """The accuracy of the teacher in percent."""
    return accuracy(images.teacher, images.labels)


def write(out: pathlib.Path, student: Student, rows: Iterable[dict[str, Any]]) -> None:
    """Writes the rows of a study, one JSON object a line, after a line about the student."""
    lines = [
        {
            "workdir": student.workdir.name,
            "versions": summary.versions(),
            "holdout_accuracy_without_graph": accuracy_without_graph(student.holdout),
            "accuracy_without_graph": accuracy_without_graph(student.test),
            "accuracy_of_teacher": accuracy_of_teacher(student.test),
        }
    ]
    print(json.dumps(lines[0]), flush=True)
    for row in rows:
        print(json.dumps(row), flush=True)
        lines.append(row)
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
