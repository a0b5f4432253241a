"""The parts of `results.json` beside the accuracies: data set, networks, parameters, FLOPs, versions."""

import importlib.metadata
import pathlib
import platform
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import gnn, inference
from cnn2gnn_jax.run import Run
from cnn2gnn_jax.runtime import artifact
from cnn2gnn_jax.training.inputs import prepare_plain
from cnn2gnn_jax.training.state import TrainState, init_state
from cnn2gnn_jax.training.step import make_step
from cnn2gnn_jax.training.task import Task, with_labels_only

_PACKAGES = ("cnn2gnn_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# The folder beside results.json with `predicted`, (E, N), the predicted classes of the N evaluated images under each of
# the E accuracies, and their `labels`, (N,).
PREDICTIONS = "predictions"
KIND = artifact.Kind("predictions", format=1, remake="run the same command again")
NOT_INSTALLED = "not installed as a package"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute, and the kind of device."""
    version_by_name = {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    for package in _PACKAGES:
        try:
            version_by_name[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version_by_name[package] = NOT_INSTALLED
    return version_by_name


def correct(results: Mapping[str, Any], workdir: pathlib.Path) -> np.ndarray | None:
    """Which of the N evaluated images are classified correctly under each of the E accuracies, (E, N) bool.

    Args:
      results: the contents of a run's `results.json`.
      workdir: the run's folder.

    Returns:
      The array; None for results of an earlier version, which recorded no predictions.

    Raises:
      artifact.Refused: the predictions are missing, damaged or of other results.
    """
    if "predictions" not in results:
        return None
    arrays = artifact.read(workdir / PREDICTIONS, KIND, results["predictions"]).arrays
    return np.equal(arrays["predicted"], arrays["labels"])


def dataset(run: Run) -> dict[str, Any]:
    """The data set and the number of images in each split."""
    images = run.dataset
    return {
        "name": images.name,
        "fingerprint": images.fingerprint,
        "classes": list(images.classes),
        "image_shape": list(images.train.images.shape[1:]),
        "train_images": len(images.train),
        "test_images": len(images.test),
        "holdout_images": 0 if images.holdout is None else len(images.holdout),
        "evaluated": run.config.evaluate.split,
        "evaluated_images": len(run.evaluated),
    }


def teacher(config: Any, fingerprint: str, facts: Mapping[str, Any], costs: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher of a resolved config, with the accuracies in percent that are stored with its logits."""
    section = config.teacher
    if section.logits_file:
        return {
            "network": pathlib.Path(section.logits_file).name,
            "fingerprint": fingerprint,
            "train_accuracy": facts["train_accuracy"],
        }
    return {
        "network": section.network,
        "fingerprint": fingerprint,
        "recipe": section.train.recipe,
        "epoch": section.train.epoch,
        "accuracy": facts[f"{config.evaluate.split}_accuracy"],
        "train_accuracy": facts["train_accuracy"],
        **costs,
    }


def student(section: Any, costs: Mapping[str, Any]) -> dict[str, Any]:
    """The student of a resolved config section."""
    return {
        "kind": section.kind,
        "network": section.network if section.kind == "cnn" else f"graph over {section.backbone}",
        "recipe": section.train.recipe,
        "epoch": section.train.epoch,
        **costs,
    }


def _flops(function: Callable, *arguments: Any) -> float:
    """XLA's count of floating-point operations before optimisation; a multiply-add counts as two.

    The program is lowered for an accelerator, so that the count is the same on every device. There, a convolution of an
    image that is smaller than its kernel is a matrix product that includes the padding, so small images count slightly
    more operations.
    """
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    analysis = lowered.cost_analysis()
    return float(analysis["flops"]) if analysis and "flops" in analysis else float("nan")


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _shapes(task: Task, inputs: np.ndarray) -> tuple[TrainState, jax.ShapeDtypeStruct]:
    batch = jax.ShapeDtypeStruct((task.recipe.batch_size, *inputs.shape[1:]), inputs.dtype)
    labels_only = with_labels_only(task)
    state = jax.eval_shape(lambda: init_state(labels_only, batch, None))
    return state, batch


def _training_flops(task: Task, state: TrainState, inputs: jax.ShapeDtypeStruct) -> float:
    """FLOPs for one image in a training step with cross-entropy; a teacher in the step adds its inference."""
    size = inputs.shape[0]
    batch = {
        "input": inputs,
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((size,), bool),
    }
    return _flops(make_step(with_labels_only(task)), state, batch, None, 0) / size


def network_costs(task: Task, inputs: np.ndarray) -> dict[str, Any]:
    """The parameters of a CNN, and the FLOPs of inference and of training for one image.

    Args:
      task: the CNN's task.
      inputs: raw inputs, (N, ...); no value is read.
    """
    state, batch = _shapes(task, inputs)
    variables = state.variables

    def infer(variables: Any, images: jax.Array) -> jax.Array:
        outputs: Any = task.module.apply(variables, prepare_plain(task, images), train=False)
        return outputs.logits

    return {
        "parameters": _count(state.params["student"]),
        "inference_flops": _flops(infer, variables, batch) / batch.shape[0],
        "training_flops": _training_flops(task, state, batch),
    }


def student_costs(task: Task, inputs: np.ndarray, protocol: Any) -> dict[str, Any]:
    """The parameters of a student, and the FLOPs for one image of inference by each mechanism and of training.

    `head_table_parameters` counts the head's n_train rows, which training needs; inference needs those of the anchors.

    Args:
      task: the student's task.
      inputs: raw inputs, (N, ...); no value is read.
      protocol: the resolved section `evaluate` of the config.
    """
    if not isinstance(task.module, gnn.GraphStudent):
        return network_costs(task, inputs)
    module = task.module
    state, batch = _shapes(task, inputs)
    variables = state.variables
    table, rows = 0, None  # type: int, Any
    if task.has_head:
        width = module.head_widths[-1]
        table = task.rows * (width + 1)
        rows = jax.eval_shape(lambda: gnn.HeadRows(jnp.zeros((protocol.anchors, width)), jnp.zeros(protocol.anchors)))
    anchor_inputs = jax.ShapeDtypeStruct((protocol.anchors, *inputs.shape[1:]), inputs.dtype)
    test_inputs = jax.ShapeDtypeStruct((protocol.batch_size, *inputs.shape[1:]), inputs.dtype)
    columns = jax.eval_shape(
        lambda v, x, r: inference.anchors(module, v, prepare_plain(task, x), r), variables, anchor_inputs, rows
    )
    flops = {
        mechanism.__name__: _flops(
            lambda v, c, x, mechanism=mechanism: mechanism(module, v, c, prepare_plain(task, x)).logits,
            variables,
            columns,
            test_inputs,
        )
        / protocol.batch_size
        for mechanism in (inference.one_by_one, inference.batch_by_batch)
    }
    return {
        "parameters": _count(state.params["student"]),
        "head_table_parameters": table,
        "inference_flops": flops,
        "training_flops": _training_flops(task, state, batch),
    }
