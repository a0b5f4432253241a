"""Resolves configs: fills in values that follow from recipe and method, checks them, and makes fingerprints."""

import pathlib
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from cnn2gnn_jax import distillers, gnn, networks
from cnn2gnn_jax.configs.base import FIELDS
from cnn2gnn_jax.data import Dataset, batches, teacher_logits
from cnn2gnn_jax.runtime import fields, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.runtime.fields import EVALUATION, TRAINING, plain
from cnn2gnn_jax.training.recipes import RECIPES

# Raise a format when the same config gives other results on disk than before.
TEACHER_FORMAT = 3
STUDENT_FORMAT = 5

BACKBONES = ("pixels", "stem", "teacher", "pair")


def resolve(config: ConfigDict) -> FrozenConfigDict:
    """Resolves a config, and checks it as far as possible without the data.

    Raises:
      UserError: a field is unknown, or its value is invalid.
    """
    config = ConfigDict(config.to_dict())
    fields.check(config, FIELDS)
    method = distillers.METHODS[config.method]
    if config.student.kind is None:
        config.student.kind = method.student
    hyper = distillers.hyperparameters(config.method, config.teacher.network, config.student.network, config.data.name)
    for field in list(config.distill):
        if config.distill[field] is None:
            # Fields that the method does not use are removed, so that they cannot change the fingerprint.
            if field in hyper:
                config.distill[field] = hyper[field]
            else:
                del config.distill[field]
        elif field not in hyper:
            used = ", ".join(sorted(hyper)) or "no field of distill"
            raise UserError(f"distill.{field} is set, but the method {config.method} uses {used}: leave it out")
    for role in ("teacher", "student"):
        _resolve_train(f"{role}.train", config[role].train)
        networks.create(config[role].network, 2, stem=config[role].stem)
    if config.teacher.train.head_update == "rows":
        config.teacher.train.head_update = "auto"
    _resolve_student(config)
    _check_distill(config)
    if config.teacher.logits_file:
        _check_logits_file(config)
    _resolve_parallel(config)
    if config.evaluate.split == "holdout" and not config.data.holdout:
        raise UserError("evaluate.split is holdout, but nothing is held out: set data.holdout, as 0.1")
    if config.evaluate.split == "holdout":
        _check_holdout_is_unused(FrozenConfigDict(config))
    if not config.evaluate.anchors:
        config.evaluate.anchors = config.student.train.batch_size
    _resolve_training_set(config)
    return FrozenConfigDict(config)


def _check_holdout_is_unused(config: FrozenConfigDict) -> None:
    """Raises UserError if an epoch is chosen on the same held-out images on which its accuracy is evaluated."""
    roles = ["student"] + ["teacher"] * (needs_teacher(config) and not config.teacher.logits_file)
    for role in roles:
        if config[role].train.epoch == "best":
            raise UserError(
                f"evaluate.split is holdout, but {role}.train.epoch is best, which is chosen on the same images, so "
                "that the accuracy would be too high: set it to last, or evaluate.split to test"
            )


def _resolve_training_set(config: ConfigDict) -> None:
    section = config.evaluate.get("training_set")
    if section is None:  # the config was resolved before
        return
    candidates = {name: section[name] for name in ("spaces", "signals", "sparsities", "weights", "epsilons")}
    for name, values in candidates.items():
        if not values:
            raise UserError(f"evaluate.training_set.{name} is empty: give at least one value")
    if not section.enabled:
        # A section that is not used is removed, so that it cannot change a fingerprint.
        del config.evaluate.training_set
        return
    several = [name for name, values in candidates.items() if len(values) > 1]
    if several and (config.evaluate.split == "holdout" or not config.data.holdout):
        advice = ": set data.holdout, as 0.1"
        if config.data.holdout:
            advice = ", and evaluate.split is holdout, so that the accuracy would be too high: set it to test"
        problem = f"evaluate.training_set.{several[0]} has several values, which are chosen between on held-out images"
        raise UserError(f"{problem}{advice}, or give one value")


def _resolve_parallel(config: ConfigDict) -> None:
    section = config.parallel
    if section.seeds and section.shard_head:
        raise UserError("parallel.seeds keeps each student whole on a device: leave parallel.shard_head out")
    if section.shard_head and config.student.train.head_update != "rows":
        raise UserError("parallel.shard_head needs student.train.head_update rows, which sgd allows: found dense")


def _check_distill(config: ConfigDict) -> None:
    distiller = distillers.create(distillers.METHODS[config.method].distiller, config.distill)
    if config.student.kind == "graph":
        missing = sorted(set(distiller.student) - {"logits", "pooled"})
        if missing or distiller.second_view is not None:
            needs = f"the student's {', '.join(missing)}" if missing else "two views of each image"
            raise UserError(
                f"the method {config.method} needs {needs}, which a graph student has not: set student.kind to cnn"
            )


def _check_logits_file(config: ConfigDict) -> None:
    distiller = distillers.create(distillers.METHODS[config.method].distiller, config.distill)
    features = config.student.kind == "graph" and config.student.backbone == "teacher"
    if tuple(distiller.teacher) != ("logits",) or distiller.second_view is not None or features:
        needs = "features for student.backbone=teacher" if features else ", ".join(distiller.teacher) or "nothing"
        raise UserError(
            f"teacher.logits_file holds logits, but the method {config.method} takes {needs} of the teacher: "
            "choose a method that takes logits alone (cnn2gnn, kd, dkd), or leave teacher.logits_file out"
        )
    if config.student.train.augment:
        raise UserError(
            "teacher.logits_file holds the answers to the images as they are, but student.train.augment is True: "
            "set it to False"
        )


def _resolve_train(section: str, train: ConfigDict) -> None:
    for field, value in RECIPES[train.recipe].items():
        if train[field] is None:
            train[field] = value
    exact = train.optimizer == "sgd" and train.schedule in ("constant", "step")
    if train.head_update == "rows" and not exact:
        raise UserError(
            f"{section}.head_update is rows, which is exact for sgd with a constant or stepped rate alone: "
            f"found {train.optimizer}, {train.schedule}; choose dense"
        )
    if train.head_update == "auto":
        train.head_update = "rows" if exact else "dense"


def _resolve_student(config: ConfigDict) -> None:
    student, graph = config.student, distillers.METHODS[config.method].graph
    if student.graph is None:
        student.graph = graph or "learned"
    if graph not in (None, student.graph):
        raise UserError(
            f"student.graph is {student.graph}, but the method {config.method} has the graph {graph}: "
            "leave student.graph out, or choose another method"
        )
    if student.backbone not in BACKBONES:
        networks.create(student.backbone, 2)
    if student.backbone == "pair":
        student.backbone = student.network
    if student.backbone == "teacher" and student.train.augment:
        raise UserError(
            "student.backbone is teacher, whose features are stored once: set student.train.augment to False"
        )
    if student.classes_per_batch > student.train.batch_size:
        raise UserError(
            f"student.classes_per_batch is {student.classes_per_batch}, but student.train.batch_size is "
            f"{student.train.batch_size}: choose at most that"
        )
    for field in ("stem_widths", "head_widths"):
        if not student[field]:
            raise UserError(f"student.{field} is empty: give at least one width")
    if student.kind == "graph" and student.graph in gnn.SPARSE_GRAPHS:
        batch = student.train.batch_size
        for field, size in (
            ("student.train.batch_size", batch),
            ("evaluate.batch_size", config.evaluate.batch_size),
            ("evaluate.anchors", config.evaluate.anchors or batch),
        ):
            if student.sparsity + 1 > size:
                raise UserError(
                    f"student.sparsity is {student.sparsity}, but {field} is {size}: "
                    f"Eq. 3 allows at most {size - 1} there"
                )


def check_data(config: FrozenConfigDict, dataset: Dataset) -> None:
    """Checks a resolved config against the data.

    Raises:
      UserError: a batch is larger than the data, too small for the sparsity, or too small for its number of classes.
    """
    train = len(dataset.train)
    test = len(dataset.test if config.evaluate.split == "test" else dataset.holdout or ())
    sizes = [("student.train.batch_size", config.student.train.batch_size)]
    if needs_teacher(config):
        sizes.append(("teacher.train.batch_size", config.teacher.train.batch_size))
    if config.student.kind == "graph":
        sizes.append(("evaluate.anchors", config.evaluate.anchors))
    for field, size in sizes:
        if size > train:
            raise UserError(
                f"{field} is {size}, but {dataset.name} has {train} training images here: choose at most that"
            )
    if config.student.classes_per_batch:
        batches.check_groups(dataset.train.labels, config.student.classes_per_batch, config.student.train.batch_size)
    if config.teacher.logits_file:
        teacher_logits.read_logits_file(config.teacher.logits_file, dataset.train.labels, len(dataset.classes))
    if config.student.kind == "graph":
        try:
            batches.balanced_batch(dataset.train.labels, config.evaluate.anchors, 0)
        except UserError as error:
            raise UserError(f"evaluate.anchors is {config.evaluate.anchors}: {error}") from None
    if config.student.kind == "graph" and config.student.graph in gnn.SPARSE_GRAPHS:
        per_batch = test // -(-test // config.evaluate.batch_size)
        if config.student.sparsity + 1 > per_batch:
            raise UserError(
                f"student.sparsity is {config.student.sparsity}, but {test} {config.evaluate.split} images make "
                f"batches of {per_batch}: "
                f"Eq. 3 allows at most {per_batch - 1} there"
            )
    for role in ("teacher", "student"):
        if config[role].train.epoch == "best" and dataset.holdout is None:
            raise UserError(f"{role}.train.epoch is best, which is chosen on held-out images: set data.holdout, as 0.1")


def needs_teacher(config: FrozenConfigDict) -> bool:
    """Whether the method learns from a teacher, or the node features are a teacher's features."""
    distiller = distillers.create(distillers.METHODS[config.method].distiller, config.distill)
    return bool(distiller.teacher) or (config.student.kind == "graph" and config.student.backbone == "teacher")


def graph_settings(config: FrozenConfigDict) -> list[str]:
    """The graph settings of a run's students: the config's, and `off` for comparison; [""] for a CNN."""
    if config.student.kind == "cnn":
        return [""]
    graph = config.student.graph
    return [graph, "off"] if config.evaluate.graph_off and graph != "off" else [graph]


def teacher_fingerprint(config: FrozenConfigDict, data: str) -> str:
    """The fingerprint of a teacher: a hash of the data set's fingerprint and every field that changes its logits."""
    inputs: dict[str, Any] = {"format": TEACHER_FORMAT, "data": data}
    if config.teacher.logits_file:
        logits = storage.sha256(pathlib.Path(config.teacher.logits_file).expanduser())
        return storage.fingerprint(inputs | {"logits": logits})
    teacher = fields.select(config.teacher, FIELDS, TRAINING, "teacher.")
    del teacher["logits_file"]
    return storage.fingerprint(inputs | {"compute_dtype": config.compute_dtype, "teacher": teacher})


def student_fingerprint(config: FrozenConfigDict, data: str) -> str:
    """The fingerprint of a run: a hash of those of data and teacher, and of fields that change its first student."""
    inputs = {"distill": {}, **fields.select(config, FIELDS, TRAINING)}
    student = inputs["student"]
    if config.student.kind == "cnn":
        student = {name: student[name] for name in ("kind", "network", "stem", "train")}
    else:
        del student["network"]
        if config.student.backbone in BACKBONES:
            del student["stem"]
    teacher = teacher_fingerprint(config, data) if needs_teacher(config) else None
    return storage.fingerprint(
        inputs | {"format": STUDENT_FORMAT, "data": data, "teacher": teacher, "student": student}
    )


def cell_fingerprint(config: FrozenConfigDict) -> str:
    """The fingerprint of a sweep's cell, without loading data: a hash of every field that changes its results."""
    run = student_fingerprint(config, _data_fingerprint(config))
    return storage.fingerprint({"run": run, **fields.select(config, FIELDS, EVALUATION)})


def cell_teacher(config: FrozenConfigDict) -> str | None:
    """The fingerprint of the teacher that a cell trains, without loading data; None if it trains none."""
    if not needs_teacher(config) or config.teacher.logits_file:
        return None
    return teacher_fingerprint(config, _data_fingerprint(config))


def _data_fingerprint(config: FrozenConfigDict) -> str:
    """A fingerprint of the data set from the fields of the config."""
    inputs = fields.select(config.data, FIELDS, TRAINING, "data.")
    if config.data.name == "image_folder":
        inputs["manual_dir"] = config.data.manual_dir
    return storage.fingerprint(inputs)


def differences(old: Any, new: FrozenConfigDict) -> list[str]:
    """The fields that change training and differ between two configs, with both values.

    `old` was read from a file and may be of another version, with other fields.
    """
    before, after = fields.flat(old) if isinstance(old, dict) else {}, fields.flat(plain(new))
    trained = [
        name for name in sorted(before.keys() | after.keys()) if name not in FIELDS or FIELDS[name].changes == TRAINING
    ]
    return [
        f"{name} is {before.get(name, 'missing')} there and {after.get(name, 'missing')} here"
        for name in trained
        if (name in before, before.get(name)) != (name in after, after.get(name))
    ]
