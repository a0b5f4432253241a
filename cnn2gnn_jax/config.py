"""From the user's config to a complete one: what recipe and method leave to say is filled in, everything is checked."""

import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from cnn2gnn_jax import distillers, gnn, inference, networks, storage
from cnn2gnn_jax.data import Dataset
from cnn2gnn_jax.errors import UserError

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
}

FORMAT = 1  # raised when the meaning of what is on disk changes
# Fields of a `train` section that are spelled out by others, or change how fast and not what.
_HOW_FIELDS = ("recipe", "chunk_steps")

BACKBONES = ("pixels", "stem", "teacher", "pair")


def _choice(field: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{field} is {value!r}: choose one of {', '.join(choices)}")


def _within(field: str, value: float, low: float, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        bound = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UserError(f"{field} is {value}: it must be {bound}")


def _above_zero(field: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{field} is {value}: it must be above 0")


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
    if method.distiller == "kd":
        hyper["tau_squared"] = True
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
    if config.teacher.train.head_update == "rows":
        config.teacher.train.head_update = "auto"
    _resolve_student(config)
    _check_distill(config)
    _within("seeds", config.seeds, 1, 10_000)
    _within("seed", config.seed, 0, 2**31 - 1 - config.seeds)
    _within("teacher.seed", config.teacher.seed, 0, 2**31 - 1)
    _choice("data.residency", config.data.residency, ("auto", "device", "host"))
    _choice("compute_dtype", config.compute_dtype, ("float32", "bfloat16"))
    _within("evaluate.batch_size", config.evaluate.batch_size, 2)
    _within("evaluate.anchors", config.evaluate.anchors, 0)
    if not config.evaluate.anchors:
        config.evaluate.anchors = config.student.train.batch_size
    _within("evaluate.anchor_batches", config.evaluate.anchor_batches, 1)
    _within("evaluate.order_seed", config.evaluate.order_seed, 0)
    _within("evaluate.anchor_seed", config.evaluate.anchor_seed, 0)
    _choice("evaluate.reading", config.evaluate.reading, inference.READINGS)
    _within("checkpoint.every_seconds", config.checkpoint.every_seconds, 0)
    return FrozenConfigDict(config)


# The least and the most of the numbers of the `distill` section; temperature and rate must also be above zero.
_DISTILL_BOUNDS = {
    "ce_weight": (0, math.inf),
    "kd_weight": (0, math.inf),
    "weight": (0, math.inf),
    "distance_weight": (0, math.inf),
    "angle_weight": (0, math.inf),
    "beta": (0, math.inf),
    "warmup": (0, math.inf),
    "negatives": (1, 10_000_000),
    "momentum": (0, 1),
    "feature_dim": (1, 100_000),
    "probability": (0, 1),
    "pretrain_epochs": (1, 1_000_000),
}


def _check_distill(config: ConfigDict) -> None:
    for field, value in config.distill.items():
        if field in _DISTILL_BOUNDS:
            _within(f"distill.{field}", value, *_DISTILL_BOUNDS[field])
        elif field in ("temperature", "pretrain_learning_rate"):
            _above_zero(f"distill.{field}", value)
    distiller = distillers.create(distillers.METHODS[config.method].distiller, config.distill)
    if config.student.kind == "graph":
        missing = sorted(set(distiller.student) - {"logits", "pooled"})
        if missing or distiller.second_view is not None:
            what = f"the student's {', '.join(missing)}" if missing else "two views of each image"
            raise UserError(
                f"the method {config.method} needs {what}, which a graph student has not: set student.kind to cnn"
            )


def _resolve_train(section: str, train: ConfigDict) -> None:
    _choice(f"{section}.recipe", train.recipe, list(RECIPES))
    for field, value in RECIPES[train.recipe].items():
        if train[field] is None:
            train[field] = value
    _choice(f"{section}.optimizer", train.optimizer, ("sgd", "adamw"))
    _choice(f"{section}.schedule", train.schedule, ("constant", "step", "cosine"))
    _choice(f"{section}.head_update", train.head_update, ("auto", "rows", "dense"))
    _choice(f"{section}.epoch", train.epoch, ("last", "best"))
    _within(f"{section}.epochs", train.epochs, 1, 1_000_000)
    _within(f"{section}.batch_size", train.batch_size, 2)
    _above_zero(f"{section}.learning_rate", train.learning_rate)
    _within(f"{section}.momentum", train.momentum, 0, 0.9999)
    _within(f"{section}.weight_decay", train.weight_decay, 0)
    _within(f"{section}.milestone_factor", train.milestone_factor, 0)
    _within(f"{section}.chunk_steps", train.chunk_steps, 1)
    for part in train.milestones:
        _within(f"{section}.milestones", part, 0, 1)
    exact = train.optimizer == "sgd" and train.schedule != "cosine"
    if train.head_update == "rows" and not exact:
        raise UserError(
            f"{section}.head_update is rows, which is exact for sgd with a constant or stepped rate alone: "
            f"found {train.optimizer}, {train.schedule}; choose dense"
        )
    if train.head_update == "auto":
        train.head_update = "rows" if exact else "dense"


def _resolve_student(config: ConfigDict) -> None:
    student = config.student
    _choice("student.graph", student.graph, gnn.GRAPHS)
    if student.backbone not in BACKBONES:
        networks.create(student.backbone, 2)
    if student.backbone == "pair":
        student.backbone = student.network
    if student.backbone == "teacher" and student.train.augment:
        raise UserError(
            "student.backbone is teacher, whose features are stored once: set student.train.augment to False"
        )
    for field in ("stem_widths", "head_widths"):
        if not student[field]:
            raise UserError(f"student.{field} is empty: give at least one width")
        for width in student[field]:
            _within(f"student.{field}", width, 1, 100_000)
    _within("student.hidden", student.hidden, 1, 1_000_000)
    _within("student.threshold", student.threshold, 0)
    _within("student.sparsity", student.sparsity, 1)
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
      UserError: a batch is larger than the data, or too small for the sparsity.
    """
    train, test = len(dataset.train), len(dataset.test)
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
    if config.student.kind == "graph" and config.student.graph in gnn.SPARSE_GRAPHS:
        per_batch = test // -(-test // config.evaluate.batch_size)
        if config.student.sparsity + 1 > per_batch:
            raise UserError(
                f"student.sparsity is {config.student.sparsity}, but {test} test images make batches of {per_batch}: "
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
    """Names a teacher: the data set's fingerprint and every field that changes its weights."""
    return storage.fingerprint(
        {"format": FORMAT, "data": data, "compute_dtype": config.compute_dtype, "teacher": _what(config.teacher)}
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
            "format": FORMAT,
            "data": data,
            "compute_dtype": config.compute_dtype,
            "seed": config.seed,
            "method": config.method,
            "distill": plain(config.distill),
            "student": fields,
            "teacher": teacher_fingerprint(config, data) if needs_teacher(config) else None,
        }
    )
