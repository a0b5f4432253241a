"""From the user's config to a complete one: what recipe and method leave to say is filled in, everything is checked."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from cnn2gnn_jax import distillers, gnn, inference, networks, teacher_logits
from cnn2gnn_jax.data import Dataset, batches
from cnn2gnn_jax.runtime import devices, storage
from cnn2gnn_jax.runtime.errors import UserError

RECIPES: dict[str, dict[str, Any]] = {
    # Section 4.1; momentum and weight decay, which the paper does not give, as in `crd`.
    "paper": {
        "epochs": 200,
        "batch_size": 100,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "milestones": (),
        "milestone_factor": 1.0,
        "augment": False,
    },
    # The field's usual one for CIFAR-100 (Tian et al., 2020).
    "crd": {
        "epochs": 240,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "milestones": (150 / 240, 180 / 240, 210 / 240),
        "milestone_factor": 0.1,
        "augment": True,
    },
    # A good network in a tenth of the epochs: the rate rises over the first part of the training and falls to 0 by its
    # end (Smith and Topin, 2019).
    "fast": {
        "epochs": 20,
        "batch_size": 100,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "one_cycle",
        "milestones": (),
        "milestone_factor": 1.0,
        "augment": True,
    },
}

# Raised when the same config gives something else on disk than before.
TEACHER_FORMAT = 3
STUDENT_FORMAT = 4
# Fields of a `train` section that are spelled out by others, or change how fast and not what.
_HOW_FIELDS = ("recipe", "chunk_steps")

BACKBONES = ("pixels", "stem", "teacher", "pair")


_LARGEST = 1e9  # of weights and rates: beyond it float32 has no use for a number
_SEED = (0, 2**31 - 1)
_TRAIN_BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (1, 1e6),
    "batch_size": (2, 1e6),
    "learning_rate": (1e-12, 1e3),
    "momentum": (0, 0.9999),
    "weight_decay": (0, 1e3),
    "milestone_factor": (0, 1e3),
    "chunk_steps": (1, 1e6),
}
# The least and the most of every number, and of the numbers in every tuple; those of `data` are checked by data.check.
BOUNDS: dict[str, tuple[float, float]] = {
    "seed": _SEED,
    "seeds": (1, 10_000),
    "checkpoint.every_seconds": (0, math.inf),
    "parallel.devices": (0, 1e6),
    "teacher.seed": _SEED,
    "student.stem_widths": (1, 100_000),
    "student.head_widths": (1, 100_000),
    "student.hidden": (1, 1e6),
    "student.sparsity": (1, math.inf),
    "student.classes_per_batch": (0, 1e6),
    "student.off_weight": (0, _LARGEST),
    "student.threshold": (0, _LARGEST),
    "distill.ce_weight": (0, _LARGEST),
    "distill.kd_weight": (0, _LARGEST),
    "distill.weight": (0, _LARGEST),
    "distill.temperature": (1e-6, _LARGEST),
    "distill.distance_weight": (0, _LARGEST),
    "distill.angle_weight": (0, _LARGEST),
    "distill.beta": (0, _LARGEST),
    "distill.warmup": (0, 1e6),
    "distill.negatives": (1, 1e7),
    "distill.momentum": (0, 1),
    "distill.feature_dim": (1, 100_000),
    "distill.probability": (0, 1),
    "distill.pretrain_epochs": (1, 1e6),
    "distill.pretrain_learning_rate": (1e-12, 1e3),
    "evaluate.batch_size": (2, math.inf),
    "evaluate.order_seed": _SEED,
    "evaluate.anchors": (0, math.inf),
    "evaluate.anchor_batches": (1, 10_000),
    "evaluate.anchor_seed": _SEED,
    **{f"{role}.train.{name}": bounds for role in ("teacher", "student") for name, bounds in _TRAIN_BOUNDS.items()},
    **{f"{role}.train.milestones": (0, 1) for role in ("teacher", "student")},
}


def _choice(field: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{field} is {value!r}: choose one of {', '.join(choices)}")


def _check_numbers(section: ConfigDict, prefix: str = "") -> None:
    for name, value in section.items():
        field = prefix + name
        if isinstance(value, ConfigDict):
            if field != "data":
                _check_numbers(value, f"{field}.")
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                low, high = BOUNDS[field]
                if not (math.isfinite(number) and low <= number <= high):
                    bound = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:.10g}"
                    raise UserError(f"{field} is {number}: it must be {bound}")


def resolve(config: ConfigDict) -> FrozenConfigDict:
    """The complete config, checked as far as that is possible without the data.

    Raises:
      UserError: a field has a value that makes no sense.
    """
    config = ConfigDict(config.to_dict())
    _choice("method", config.method, list(distillers.METHODS))
    method = distillers.METHODS[config.method]
    if config.student.kind is None:
        config.student.kind = method.student
    _choice("student.kind", config.student.kind, ("graph", "cnn"))
    hyper = distillers.hyperparameters(config.method, config.teacher.network, config.student.network, config.data.name)
    for field in list(config.distill):
        if config.distill[field] is None:
            # What this method does not use is not part of its config, so that it cannot change its fingerprint.
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
    _check_numbers(config)
    if config.teacher.train.head_update == "rows":
        config.teacher.train.head_update = "auto"
    _resolve_student(config)
    _check_distill(config)
    if config.teacher.logits_file:
        _check_logits_file(config)
    _resolve_parallel(config)
    _choice("data.residency", config.data.residency, ("auto", "device", "host"))
    _choice("compute_dtype", config.compute_dtype, ("float32", "bfloat16"))
    _choice("evaluate.split", config.evaluate.split, ("test", "holdout"))
    if config.evaluate.split == "holdout" and not config.data.holdout:
        raise UserError("evaluate.split is holdout, but nothing is held out: set data.holdout, as 0.1")
    if config.evaluate.split == "holdout":
        _refuse_chosen_images(FrozenConfigDict(config))
    _choice("evaluate.reading", config.evaluate.reading, inference.READINGS)
    if not config.evaluate.anchors:
        config.evaluate.anchors = config.student.train.batch_size
    return FrozenConfigDict(config)


def _refuse_chosen_images(config: FrozenConfigDict) -> None:
    """Raises UserError where an epoch would be chosen on the same held-out images that its accuracy is reported on."""
    roles = ["student"] + ["teacher"] * (needs_teacher(config) and not config.teacher.logits_file)
    for role in roles:
        if config[role].train.epoch == "best":
            raise UserError(
                f"evaluate.split is holdout, but {role}.train.epoch is best, which is chosen on the same images, so "
                "that the accuracy would be too high: set it to last, or evaluate.split to test"
            )


def _resolve_parallel(config: ConfigDict) -> None:
    section = config.parallel
    _choice("parallel.backend", section.backend, devices.BACKENDS)
    if section.seeds and section.shard_head:
        raise UserError("parallel.seeds keeps each student whole on a device: leave parallel.shard_head out")
    if section.shard_head and config.student.train.head_update != "rows":
        raise UserError("parallel.shard_head needs student.train.head_update rows, which sgd allows: found dense")


def _check_distill(config: ConfigDict) -> None:
    distiller = distillers.create(distillers.METHODS[config.method].distiller, config.distill)
    if config.student.kind == "graph":
        missing = sorted(set(distiller.student) - {"logits", "pooled"})
        if missing or distiller.second_view is not None:
            what = f"the student's {', '.join(missing)}" if missing else "two views of each image"
            raise UserError(
                f"the method {config.method} needs {what}, which a graph student has not: set student.kind to cnn"
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
    _choice(f"{section}.recipe", train.recipe, list(RECIPES))
    for field, value in RECIPES[train.recipe].items():
        if train[field] is None:
            train[field] = value
    _choice(f"{section}.optimizer", train.optimizer, ("sgd", "adamw"))
    _choice(f"{section}.schedule", train.schedule, ("constant", "step", "cosine", "one_cycle"))
    _choice(f"{section}.head_update", train.head_update, ("auto", "rows", "dense"))
    _choice(f"{section}.epoch", train.epoch, ("last", "best"))
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
    _choice("student.graph", student.graph, gnn.GRAPHS)
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
    """Checks the config against the data.

    Raises:
      UserError: a batch is larger than the data, too small for the sparsity, or cannot hold so many classes.
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
        teacher_logits.given(config.teacher.logits_file, dataset.train.labels, len(dataset.classes))
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
    """Whether the method learns from a teacher, or the student's node features are a teacher's."""
    distiller = distillers.create(distillers.METHODS[config.method].distiller, config.distill)
    return bool(distiller.teacher) or (config.student.kind == "graph" and config.student.backbone == "teacher")


def graph_settings(config: FrozenConfigDict) -> list[str]:
    """The graphs of a run's students: the config's, and `off` to tell what that one is worth; [""] for a CNN."""
    if config.student.kind == "cnn":
        return [""]
    graph = config.student.graph
    return [graph, "off"] if config.evaluate.graph_off and graph != "off" else [graph]


def plain(section: Any) -> Any:
    """A config section as JSON values."""
    if isinstance(section, ConfigDict):
        return {key: plain(value) for key, value in section.items()}
    return [plain(value) for value in section] if isinstance(section, tuple | list) else section


def _what(section: ConfigDict, *without: str) -> dict[str, Any]:
    found = {key: value for key, value in plain(section).items() if key not in without}
    if "train" in found:
        found["train"] = {key: value for key, value in found["train"].items() if key not in _HOW_FIELDS}
    return found


def teacher_fingerprint(config: FrozenConfigDict, data: str) -> str:
    """Names a teacher: the data set's fingerprint and every field that changes its weights, or its logits."""
    if config.teacher.logits_file:
        logits = storage.sha256(pathlib.Path(config.teacher.logits_file).expanduser())
        return storage.fingerprint({"format": TEACHER_FORMAT, "data": data, "logits": logits})
    return storage.fingerprint(
        {
            "format": TEACHER_FORMAT,
            "data": data,
            "compute_dtype": config.compute_dtype,
            "teacher": _what(config.teacher, "logits_file"),
        }
    )


def student_fingerprint(config: FrozenConfigDict, data: str) -> str:
    """Names a run: the data set's fingerprint, its teacher's, and every field that changes its first student."""
    student = config.student
    if student.kind == "cnn":
        fields = {key: plain(student[key]) for key in ("kind", "network", "stem")} | {"train": _what(student)["train"]}
    else:
        fields = _what(student, "network", *(["stem"] if student.backbone in BACKBONES else []))
    return storage.fingerprint(
        {
            "format": STUDENT_FORMAT,
            "data": data,
            "compute_dtype": config.compute_dtype,
            "seed": config.seed,
            "method": config.method,
            "distill": plain(config.distill),
            "student": fields,
            "teacher": teacher_fingerprint(config, data) if needs_teacher(config) else None,
        }
    )


def cell_fingerprint(config: FrozenConfigDict) -> str:
    """Names a run without its data at hand: every field that changes a figure in its results."""
    return storage.fingerprint(
        {
            "run": student_fingerprint(config, _data_fingerprint(config)),
            "evaluate": plain(config.evaluate),
            "seeds": config.seeds,
        }
    )


def cell_teacher(config: FrozenConfigDict) -> str | None:
    """Names the teacher that a run trains, without its data at hand; None where it trains none."""
    if not needs_teacher(config) or config.teacher.logits_file:
        return None
    return teacher_fingerprint(config, _data_fingerprint(config))


def _data_fingerprint(config: FrozenConfigDict) -> str:
    """Names the data by what the config says of them."""
    what = {key: value for key, value in plain(config.data).items() if key not in ("residency", "manual_dir")}
    if config.data.name == "image_folder":
        what["manual_dir"] = config.data.manual_dir
    return storage.fingerprint(what)
