"""Tests that every field of configs/base.py refuses invalid values, with a one-line error that names the field."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.configs import base
from cnn2gnn_jax.data import Dataset, Split
from cnn2gnn_jax.runtime import fields
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.runtime.fields import EVALUATION, NOTHING, TRAINING

HUGE_INT, HUGE = 10**15, 1e30

# Valid and invalid values of each number. Together they include a negative one, zero, and a huge one.
NUMBERS = {
    "seed": ([0, 7], [-1, HUGE_INT]),
    "seeds": ([1, 10], [-1, 0, HUGE_INT]),
    "checkpoint.every_seconds": ([0.0, 60.0, 1e12], [-1.0]),
    "data.holdout": ([0.0, 0.1], [-0.1, 1.0, HUGE]),
    "data.holdout_seed": ([0, 3], [-1, HUGE_INT]),
    "data.split_seed": ([0, 3], [-1, HUGE_INT]),
    "data.test_fraction": ([0.1, 0.5], [-0.1, 0.0, 1.0, HUGE]),
    "data.image_size": ([0, 32], [-1, HUGE_INT]),
    "data.classes": ([0, 2, HUGE_INT], [-1, 1]),  # `data.load` refuses too large values; see tests/data
    "data.limit": ([0, 50, HUGE_INT], [-1]),
    "evaluate.anchor_batches": ([1, 3], [-1, 0, HUGE_INT]),
    "evaluate.anchor_seed": ([0, 3], [-1, HUGE_INT]),
    "evaluate.anchors": ([0, 100, 200], [-1, 1, HUGE_INT]),
    "evaluate.batch_size": ([60, 200, HUGE_INT], [-1, 0, 1, 50]),
    "evaluate.order_seed": ([0, 3], [-1, HUGE_INT]),
    "parallel.devices": ([0, 1, 8], [-1, HUGE_INT]),
    "student.hidden": ([1, 256], [-1, 0, HUGE_INT]),
    "student.sparsity": ([1, 99], [-1, 0, 100, HUGE_INT]),
    "student.classes_per_batch": ([0, 1, 10], [-1, 11, 101, HUGE_INT]),
    "student.graph_off_loss_weight": ([0.0, 1.0], [-1.0, HUGE]),
    "student.edge_threshold": ([0.0, 0.5], [-0.1, HUGE]),
    "teacher.seed": ([0, 3], [-1, HUGE_INT]),
    "distill.angle_weight": ([0.0, 50.0], [-1.0, HUGE]),
    "distill.beta": ([0.0, 8.0], [-1.0, HUGE]),
    "distill.ce_weight": ([0.0, 1.0], [-1.0, HUGE]),
    "distill.distance_weight": ([0.0, 25.0], [-1.0, HUGE]),
    "distill.feature_dim": ([1, 128], [-1, 0, HUGE_INT]),
    "distill.kd_weight": ([0.0, 1.0], [-1.0, HUGE]),
    "distill.momentum": ([0.0, 0.5], [-0.1, 1.1, HUGE]),
    "distill.negatives": ([1, 16384], [-1, 0, HUGE_INT]),
    "distill.pretrain_epochs": ([1, 30], [-1, 0, HUGE_INT]),
    "distill.pretrain_learning_rate": ([0.01], [-0.1, 0.0, HUGE]),
    "distill.probability": ([0.0, 0.5, 1.0], [-0.1, 1.1, HUGE]),
    "distill.temperature": ([0.07, 48.0], [-1.0, 0.0, HUGE]),
    "distill.warmup": ([0, 20], [-1, HUGE_INT]),
    "distill.weight": ([0.0, 30000.0], [-1.0, HUGE]),
}
TRAIN = {
    "batch_size": ([60, 100], [-1, 0, 1, HUGE_INT]),
    "chunk_steps": ([1, 50], [-1, 0, HUGE_INT]),
    "epochs": ([1, 200], [-1, 0, HUGE_INT]),
    "learning_rate": ([0.01], [-0.1, 0.0, HUGE]),
    "milestone_factor": ([0.0, 0.1, 1.0], [-0.1, HUGE]),
    "momentum": ([0.0, 0.9], [-0.1, 1.0, HUGE]),
    "weight_decay": ([0.0, 5e-4], [-0.1, HUGE]),
}
NUMBERS["evaluate.training_set.recall"] = ([0.5, 1.0], [0.0, -1.0, 1.01, HUGE])
NUMBERS |= {f"{role}.train.{field}": values for role in ("teacher", "student") for field, values in TRAIN.items()}

# Invalid values of strings with a few allowed values, and of tuples.
WORDS = {
    "compute_dtype": ["float16", ""],
    "data.residency": ["disk", ""],
    "distill.policy": ["imagenet", ""],
    "evaluate.split": ["train", "", "holdout"],  # holdout is invalid because nothing is held out
    "evaluate.mechanism2_graph": ["other", ""],
    "method": ["svm", ""],
    "parallel.backend": ["mpi", ""],
    "student.backbone": ["resnet7", ""],
    "student.graph": ["knn", ""],
    "student.kind": ["mlp", ""],
    "student.network": ["resnet19", ""],
    "student.stem": ["imagenet", ""],
    "teacher.network": ["vgg7", ""],
    "teacher.stem": ["imagenet", ""],
    "student.head_widths": [(), (0,), (-1,), (10**9,)],
    "student.stem_widths": [(), (0,), (-1,), (10**9,)],
    "evaluate.training_set.epsilons": [(), (0.0,), (-0.1,), (HUGE,)],
    "evaluate.training_set.key_type": ["int8", ""],
    "evaluate.training_set.signals": [(), ("pixels",)],
    "evaluate.training_set.spaces": [(), ("pixels",)],
    "evaluate.training_set.sparsities": [(), (0,), (-1,)],
    "evaluate.training_set.weights": [(), (-0.1,), (HUGE,)],
}
for _role in ("teacher", "student"):
    WORDS |= {
        f"{_role}.train.epoch": ["first", ""],
        f"{_role}.train.head_update": ["lazy", ""],
        f"{_role}.train.milestones": [(-0.1,), (1.5,), (math.nan,)],
        f"{_role}.train.optimizer": ["lion", ""],
        f"{_role}.train.recipe": ["tian", ""],
        f"{_role}.train.schedule": ["linear", ""],
    }

ANYTHING = {  # booleans and free text; tests/data checks that an unknown data.name is refused
    *("compilation_cache", "tensorboard", "evaluate.graph_off", "student.self_loops", "distill.tau_squared"),
    *("parallel.seeds", "parallel.shard_head"),
    *("teacher.train.augment", "student.train.augment", "name", "cache_dir", "data.manual_dir", "data.name"),
    *("data.skip_unreadable", "teacher.logits_file", "evaluate.training_set.enabled"),
}

METHODS = {  # fields of `distill` and a method that uses them; cnn2gnn uses the other fields
    "angle_weight": "rkd",
    "beta": "dkd",
    "distance_weight": "rkd",
    "feature_dim": "crd",
    "momentum": "crd",
    "negatives": "crd",
    "policy": "ccd",
    "pretrain_epochs": "ft",
    "pretrain_learning_rate": "ab",
    "probability": "ccd",
    "warmup": "dkd",
    "weight": "at",
}
WRONG_TYPES = {int: ["three", 1.5, (1,)], float: ["three", (1.0,)], bool: ["yes", 2.5], str: [3, True], tuple: ["a", 3]}


def types(config, prefix=""):
    """Yields the path and the type of each field."""
    for name in config:
        kind = config.get_type(name)
        if kind is ConfigDict:
            yield from types(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name, kind


FIELDS = dict(types(base.get_config()))


def config_of(field, value):
    config = base.get_config()
    section, _, name = field.rpartition(".")
    if section == "distill":
        config.method = METHODS.get(name, "cnn2gnn")
    config.update_from_flattened_dict({field: value})
    return config


@pytest.fixture(scope="module")
def dataset():
    def split(count):
        return Split(np.zeros((count, 8, 8, 3), np.uint8), np.arange(count) % 10, np.arange(count))

    classes = tuple("0123456789")
    return Dataset("digits", classes, split(1000), split(400), None, (0.5,) * 3, (0.25,) * 3, "fingerprint")


def check(config, dataset):
    configs.check_data(configs.resolve(config), dataset)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.limit", -1, "data.limit is -1: it must be 0 (all) or at least 1"),
        ("data.image_size", -2, "data.image_size is -2: it must be 0 (as published) or between 1 and 4096"),
        ("data.classes", 1, "data.classes is 1: it must be 0 (all) or at least 2"),
        ("data.holdout", -0.1, "data.holdout is -0.1: it must be 0 (none) or above 0 and below 1"),
        ("data.holdout", 1.0, "data.holdout is 1.0: it must be 0 (none) or above 0 and below 1"),
        ("data.holdout", math.nan, "data.holdout is nan: it must be 0 (none) or above 0 and below 1"),
        ("student.head_widths", (8, "a"), "student.head_widths is 'a': it must be between 1 and 100000"),
        ("student.graph", "knn", "student.graph is 'knn': choose one of learned, off, inner_product, euclidean, "),
    ],
)
def test_an_error_states_the_value_and_the_allowed_ones(field, value, message):
    with pytest.raises(UserError) as refused:
        configs.resolve(config_of(field, value))
    assert str(refused.value).startswith(message)


def test_an_unknown_field_in_a_config_file_is_refused():
    config = base.get_config()
    config.student.sparcity = 3
    with pytest.raises(
        UserError, match="there is no field config.student.sparcity: did you mean config.student.sparsi"
    ):
        configs.resolve(config)


@pytest.mark.parametrize(("old", "new"), fields.RENAMED.items())
def test_a_renamed_field_in_a_config_file_is_refused_with_its_new_name(old, new):
    assert old not in base.FIELDS and new in base.FIELDS
    config = base.get_config()
    section, _, name = old.rpartition(".")
    with config.unlocked():
        setattr(config[section], name, base.FIELDS[new].default)
    with pytest.raises(UserError, match=f"{old} is now called {new}: use the new name"):
        configs.resolve(config)


def test_a_field_follows_its_line_in_fields():
    """Tests that the type, the default and the fingerprint of a field agree with its line in configs/base.py."""
    for field, line in base.FIELDS.items():
        default_is_type = isinstance(line.default, type)
        assert FIELDS[field] is (line.default if default_is_type else type(line.default)), field
        assert line.description and line.changes in (TRAINING, EVALUATION, NOTHING), field
        if not default_is_type and line.allowed is not None:
            fields.check(fields.to_config({field: line}), base.FIELDS)  # the default is allowed
    other = {
        "name": "x",
        "cache_dir": "x",
        "data.manual_dir": "x",
        "data.residency": "host",
        "evaluate.training_set.recall": 0.9,
        "parallel.backend": "pmap",
    }
    for field, line in base.FIELDS.items():
        if line.changes == TRAINING or field.endswith("recipe"):
            continue
        value = other.get(field)
        if FIELDS[field] is bool:
            value = not line.default
        elif value is None and FIELDS[field] in (int, float):
            value = line.default + 150  # anchors and batches stay larger than the sparsity
        elif FIELDS[field] is tuple:
            value = line.default[:1]
        elif value is None:
            values = {"split": "holdout", "mechanism2_graph": "test_rows", "training_set.key_type": "float32"}
            value = values[field.removeprefix("evaluate.")]
        changed = base.get_config()
        of_training_set = field.startswith("evaluate.training_set.")
        changed.data.holdout = 0.1 if field == "evaluate.split" or of_training_set else 0.0
        changed.evaluate.training_set.enabled = of_training_set and field != "evaluate.training_set.enabled"
        before = configs.resolve(changed)
        changed.update_from_flattened_dict({field: value})
        after = configs.resolve(changed)
        assert configs.student_fingerprint(before, "d") == configs.student_fingerprint(after, "d"), field
        same = configs.cell_fingerprint(before) == configs.cell_fingerprint(after)
        assert same == (line.changes == NOTHING), field


def test_fingerprints_do_not_change_so_that_caches_stay_valid(monkeypatch):
    monkeypatch.setattr(configs, "STUDENT_FORMAT", 3)
    monkeypatch.setattr(configs, "TEACHER_FORMAT", 2)
    config = configs.resolve(base.get_config())
    assert configs.student_fingerprint(config, "data") == "29028cf4f7511c7a"
    assert configs.teacher_fingerprint(config, "data") == "347eafe163e31839"
    assert configs.cell_fingerprint(config) == "0fb05b316b28c7bb"


def test_every_field_has_a_test():
    assert set(NUMBERS) | set(WORDS) | ANYTHING == set(FIELDS)
    assert {field for field, kind in FIELDS.items() if kind in (int, float)} == set(NUMBERS)
    for field, (sense, nonsense) in NUMBERS.items():
        values = [*sense, *nonsense]
        assert min(values) < 0 and 0 in values and max(values) >= 1e12, field


@pytest.mark.parametrize(("field", "value"), [(f, value) for f, (sense, _) in NUMBERS.items() for value in sense])
def test_a_valid_number_is_accepted(field, value, dataset):
    check(config_of(field, value), dataset)


BAD = [(f, value) for f, (_, nonsense) in NUMBERS.items() for value in nonsense]
BAD += [(f, value) for f in NUMBERS if FIELDS[f] is float for value in (math.nan, math.inf, -math.inf)]
BAD += [(f, value) for f, values in WORDS.items() for value in values]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_an_invalid_value_is_refused_in_one_line_that_names_the_field(field, value, dataset):
    with pytest.raises(UserError) as refused:
        check(config_of(field, value), dataset)
    message = str(refused.value)
    assert "\n" not in message
    assert field.rpartition(".")[2] in message or repr(value) in message, message


@pytest.mark.parametrize(("field", "kind"), FIELDS.items())
def test_a_wrong_type_is_refused(field, kind):
    for value in WRONG_TYPES[kind]:
        with pytest.raises((TypeError, ValueError)):
            config_of(field, value)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_an_epoch_chosen_on_the_images_that_are_reported_on_is_refused(role):
    values = {"data.holdout": 0.1, f"{role}.train.epoch": "best"}

    def resolved(**more):
        config = base.get_config()
        config.update_from_flattened_dict({**values, **more})
        return configs.resolve(config)

    assert resolved()[role].train.epoch == "best"
    with pytest.raises(UserError, match=f"evaluate.split is holdout, but {role}.train.epoch is best") as refused:
        resolved(**{"evaluate.split": "holdout"})
    assert "set it to last, or evaluate.split to test" in str(refused.value) and "\n" not in str(refused.value)
    # A run without a teacher does not choose an epoch of the teacher, so the value is allowed.
    if role == "teacher":
        assert resolved(**{"evaluate.split": "holdout", "method": "gnn"}).method == "gnn"
        with pytest.raises(UserError, match="teacher.train.epoch is best"):
            resolved(**{"evaluate.split": "holdout", "method": "gnn", "student.backbone": "teacher"})


def test_a_training_set_graph_chosen_on_the_images_that_are_reported_on_is_refused():
    config = base.get_config()
    config.data.holdout, config.evaluate.split, config.evaluate.training_set.enabled = 0.1, "holdout", True
    with pytest.raises(UserError, match=r"training_set.spaces has several values.*split is holdout.*set it to test"):
        configs.resolve(config)
    section = config.evaluate.training_set
    section.spaces, section.signals, section.sparsities = ("hidden",), ("labels",), (5,)
    section.weights, section.epsilons = (1.0,), (0.1,)
    assert configs.resolve(config).evaluate.split == "holdout"
    section.weights = (1.0, 2.0)
    with pytest.raises(UserError, match="training_set.weights has several values"):
        configs.resolve(config)
    config.evaluate.split = "test"
    assert configs.resolve(config).evaluate.training_set.weights == (1.0, 2.0)
