"""Tests of every method with every pair of the paper's tables. They compute only shapes, by `jax.eval_shape`."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax import distillers, networks
from cnn2gnn_jax.distillers.base import LossInputs
from cnn2gnn_jax.runtime.errors import UserError

METHODS = [name for name, method in distillers.METHODS.items() if method.student == "cnn"]
LABELS = np.arange(500, dtype=np.int32) % 100
BATCH = 4


@functools.cache
def shapes(network, rows=BATCH):
    module = networks.create(network, 100)
    images = jax.ShapeDtypeStruct((rows, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], images)


def create(method, teacher="resnet34", student="resnet18"):
    hyper = distillers.hyperparameters(method, teacher, student)
    return distillers.create(distillers.METHODS[method].distiller, hyper | {"training_labels": LABELS})


def only(fields, outputs):
    """Returns the outputs with only the fields that a method asks for."""
    nothing = networks.Outputs(None, (), (), None)
    return nothing._replace(**{name: getattr(outputs, name) for name in fields})


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", [*networks.PAIRS, "resnet32-resnet8", "resnet34-wrn_16_2", "wrn_40_2-vgg8"])
def test_every_method_works_with_every_pair(pair, method):
    teacher_name, student_name = networks.parse_pair(pair)
    distiller = create(method, teacher_name, student_name)
    rows = BATCH if distiller.second_view is None else 2 * BATCH
    student = only(distiller.student, shapes(student_name, rows))
    teacher = only(distiller.teacher, shapes(teacher_name, rows)) if distiller.teacher else None
    one_image = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), teacher)
    params, memory = jax.eval_shape(distiller.init, jax.random.key(0), student, one_image)
    integers = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    batch = {"label": integers, "index": integers, "mask": jax.ShapeDtypeStruct((BATCH,), bool)}
    for stage in distiller.stages:

        def gradients(params, memory, inputs, loss=stage.loss):
            def scalar(params, student):
                value, new, metrics = loss(params, memory, inputs._replace(student=student))
                return value, (new, metrics)

            return jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)(params, inputs.student)

        inputs = LossInputs(student, teacher, batch, jnp.int32(0), jax.random.key(0))
        (loss, (new, metrics)), (to_params, to_student) = jax.eval_shape(gradients, params, memory, inputs)
        assert loss.shape == () and loss.dtype == jnp.float32
        assert all(metric.shape == () for metric in metrics.values())
        assert (new, to_params, to_student) == (memory, params, student)


# The number of parameters that each method adds for ResNet34-ResNet18 with 100 classes and 32x32 images. It is computed
# by hand from the widths 64, 128, 256 and 512, which both networks have.
ADDED = {
    "fitnets": (128 * 128 + 128) + 2 * 128,
    "vid": sum(3 * c * c + c for c in (64, 128, 256, 512)),
    "ft": (512 * 512 + 512 * 256 + 256 * 256) * 9 + 2 * 256 + 512  # encoder
    + (256 * 256 + 256 * 512 + 512 * 512) * 9 + 2 * 512 + 256  # decoder
    + (512 * 512 + 512 * 256 + 256 * 256) * 9 + 3 * (512 + 256 + 256),  # translator, with BatchNorm
    "crd": 2 * (512 * 128 + 128),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_added_parameters(method):
    distiller = create(method)
    params, memory = jax.eval_shape(distiller.init, jax.random.key(0), shapes("resnet18"), shapes("resnet34"))
    assert count(params) == ADDED.get(method, 0)
    remembered = {"fitnets": 2 * 128, "ft": 2 * (512 + 256 + 256), "crd": 2 * 500 * 128 + 3}
    assert count(memory) == remembered.get(method, 0)


@pytest.mark.parametrize("method", ["fitnets", "at", "sp", "vid", "ab", "ft"])
def test_a_graph_student_without_feature_maps_is_refused(method):
    student = only(("logits", "pooled"), shapes("resnet18"))
    with pytest.raises(UserError, match=f"{method} .*student gives 0 such maps.*kd, dkd"):
        create(method).init(jax.random.key(0), student, shapes("resnet34"))


@pytest.mark.parametrize("method", ["rkd", "pkt", "crd", "ccd", "dkd", "kd"])
def test_a_graph_student_learns_from_logits_and_pooled_features(method):
    distiller = create(method)
    assert set(distiller.student) <= {"logits", "pooled"} >= set(distiller.teacher)


def test_crd_needs_two_classes():
    hyper = distillers.hyperparameters("crd", "vgg13", "vgg8") | {"training_labels": np.zeros(9, int)}
    with pytest.raises(UserError, match="one class"):
        distillers.create("crd", hyper).init(jax.random.key(0), shapes("vgg8"), shapes("vgg13"))


@pytest.mark.parametrize("method", ["fitnets", "at", "sp", "vid", "ab", "ft"])
def test_half_precision_maps_give_float32_parameters_and_losses(method):
    def narrow(outputs):
        half = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), (outputs.features, outputs.preactivations)
        )
        return outputs._replace(features=half[0], preactivations=half[1])

    distiller = create(method)
    student, teacher = narrow(shapes("vgg8")), narrow(shapes("resnet34"))
    params, memory = jax.eval_shape(distiller.init, jax.random.key(0), student, teacher)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, memory))} <= {jnp.dtype(jnp.float32)}
    integers = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    batch = {"label": integers, "index": integers, "mask": jax.ShapeDtypeStruct((BATCH,), bool)}
    for stage in distiller.stages:
        inputs = LossInputs(student, teacher, batch, jnp.int32(0), jax.random.key(0))
        loss, new, metrics = jax.eval_shape(stage.loss, params, memory, inputs)
        assert {leaf.dtype for leaf in jax.tree.leaves((loss, metrics))} == {jnp.dtype(jnp.float32)}
        assert new == memory
