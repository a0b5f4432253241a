"""Tests of the published hyperparameters of each method, and of its stages and the parameters that they train."""

import jax
import jax.numpy as jnp
import pytest

from cnn2gnn_jax import distillers, networks
from cnn2gnn_jax.distillers import strong_view
from cnn2gnn_jax.runtime.errors import UserError

FIXED = {
    "kd": {"temperature": 4, "ce_weight": 0.1, "kd_weight": 0.9, "tau_squared": True},
    "fitnets": {"ce_weight": 1, "weight": 100},
    "at": {"ce_weight": 1, "weight": 1000},
    "sp": {"ce_weight": 1, "weight": 3000},
    "vid": {"ce_weight": 1, "weight": 1},
    "rkd": {"ce_weight": 1, "weight": 1, "distance_weight": 25, "angle_weight": 50},
    "pkt": {"ce_weight": 1, "weight": 30000},
    "ab": {"pretrain_epochs": 30, "pretrain_learning_rate": 0.05},
    "ft": {"ce_weight": 1, "weight": 200, "pretrain_epochs": 30},
    "crd": {
        "ce_weight": 1,
        "weight": 0.8,
        "negatives": 16384,
        "temperature": 0.07,
        "momentum": 0.5,
        "feature_dim": 128,
    },
    "ccd": {"ce_weight": 1, "weight": 1, "temperature": 4},
    "dkd": {"ce_weight": 1, "weight": 1, "temperature": 4, "warmup": 20},
}
BY_SETTING = {"ft": {"pretrain_learning_rate"}, "ccd": {"policy", "probability"}, "dkd": {"beta"}}


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("pair", networks.PAIRS)
def test_values_that_hold_for_every_pair(method, pair):
    hyper = distillers.hyperparameters(method, *networks.parse_pair(pair))
    assert {name: value for name, value in hyper.items() if name not in BY_SETTING.get(method, ())} == FIXED[method]
    assert set(hyper) == set(FIXED[method]) | BY_SETTING.get(method, set())


def test_every_row_of_the_tables_is_there():
    assert set(FIXED) | {"cnn2gnn", "cnn2gnn_off", "gnn", "ce", "kd_tau48"} == set(distillers.METHODS)


def test_the_controls_differ_from_the_graph_student_only_in_student_and_graph():
    graph, off, cnn = (distillers.METHODS[name] for name in ("cnn2gnn", "cnn2gnn_off", "kd_tau48"))
    assert graph.hyper == {"temperature": 48, "ce_weight": 1, "kd_weight": 1, "tau_squared": True}
    assert off == graph._replace(graph="off", title=off.title)
    assert cnn == graph._replace(student="cnn", title=cnn.title)


@pytest.mark.parametrize(
    ("pair", "beta"),
    [
        ("resnet34-resnet18", 8),
        ("resnet152-resnet18", 8),
        ("vgg13-vgg8", 6),
        ("vgg16-vgg8", 8),
        ("vgg19-vgg8", 8),
        ("wrn_40_2-wrn_16_2", 6),
        ("wrn_40_2-wrn_40_1", 6),
        ("wrn_40_2-vgg8", 8),
    ],
)
def test_beta_of_dkd(pair, beta):
    assert distillers.hyperparameters("dkd", *networks.parse_pair(pair))["beta"] == beta


@pytest.mark.parametrize(
    ("student", "rate"),
    [("resnet18", 0.05), ("vgg8", 0.05), ("wrn_16_2", 0.01), ("wrn_40_1", 0.01), ("resnet8", 0.01), ("resnet32", 0.01)],
)
def test_pretrain_learning_rate_of_ft(student, rate):
    assert distillers.hyperparameters("ft", "resnet34", student)["pretrain_learning_rate"] == rate


@pytest.mark.parametrize(
    ("data", "policy", "probability"),
    [
        ("cifar10", "cifar10", 0.5),
        ("cifar100", "cifar100", 0.3),
        ("stl10", "cifar100", 0.3),
        ("mini_imagenet", "cifar100", 0.3),
        ("digits", "cifar100", 0.3),
    ],
)
def test_strong_view_of_ccd(data, policy, probability):
    hyper = distillers.hyperparameters("ccd", "vgg13", "vgg8", data)
    assert (hyper["policy"], hyper["probability"]) == (policy, probability)


def test_policies_are_the_published_ones():
    assert dict(strong_view.POLICIES["cifar100"]) == {
        "autocontrast": 0, "contrast": 0.3, "posterize": 8, "solarize": 142, "translate_y": 0.403, "shear_x": 0.167,
        "brightness": 0.3, "shear_y": 0, "translate_x": 0.05, "sharpness": 0.5, "invert": 0, "color": 0.4,
        "equalize": 0, "rotate": 10,
    }  # fmt: skip
    assert dict(strong_view.POLICIES["cifar10"]) == {
        "invert": 0, "rotate": 6.7, "shear_y": 0.267, "posterize": 4, "autocontrast": 0, "color": 0.3,
        "sharpness": 0.9, "equalize": 0, "contrast": 0.7, "translate_y": 0.151, "brightness": 0.6, "solarize": 199,
        "translate_x": 0.151, "shear_x": 0.267,
    }  # fmt: skip


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="crd, dkd"):
        distillers.create("cdr", {})
    hyper = distillers.hyperparameters("ccd", "vgg13", "vgg8") | {"policy": "svhn"}
    with pytest.raises(UserError, match="cifar100, cifar10"):
        distillers.create("ccd", hyper)


def create(method):
    return distillers.create(method, distillers.hyperparameters(method, "resnet34", "wrn_16_2"))


@pytest.mark.parametrize("method", ["none", "kd", "fitnets", "at", "sp", "vid", "rkd", "pkt", "crd", "ccd", "dkd"])
def test_methods_with_one_stage_train_all_parameters_with_the_recipe(method):
    hyper = {} if method == "none" else distillers.hyperparameters(method, "resnet34", "wrn_16_2")
    (stage,) = distillers.create(method, hyper).stages
    assert (stage.name, stage.epochs, stage.learning_rate) == ("train", None, None)
    assert stage.trains(("student", "classifier", "kernel")) and stage.trains(("distiller", "regressor"))


@pytest.mark.parametrize(("method", "rate"), [("ab", 0.05), ("ft", 0.01)])
def test_methods_with_two_stages(method, rate):
    pretrain, train = create(method).stages
    assert (pretrain.name, pretrain.epochs, pretrain.learning_rate) == ("pretrain", 30, rate)
    assert (train.name, train.epochs, train.learning_rate) == ("train", None, None)


@pytest.mark.parametrize(
    ("method", "path", "trained"),
    [
        ("ab", ("student", "stem_conv", "kernel"), (True, True)),
        ("ab", ("student", "classifier", "kernel"), (False, True)),
        ("ab", ("distiller", "stage1", "conv", "kernel"), (True, False)),
        ("ft", ("student", "stem_conv", "kernel"), (False, True)),
        ("ft", ("student", "classifier", "bias"), (False, True)),
        ("ft", ("distiller", "paraphraser", "encoder0", "kernel"), (True, False)),
        ("ft", ("distiller", "translator", "conv0", "kernel"), (False, True)),
    ],
)
def test_parameters_that_each_stage_trains(method, path, trained):
    assert tuple(stage.trains(path) for stage in create(method).stages) == trained


@pytest.mark.parametrize("network", ["resnet18", "vgg8", "wrn_16_2"])
def test_the_linear_layer_that_ab_leaves_out_has_this_name_in_every_family(network):
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = jax.eval_shape(networks.create(network, 10).init, jax.random.key(0), images)["params"]
    assert "classifier" in params
