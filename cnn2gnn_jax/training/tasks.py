"""The tasks of a config: the networks of its teacher and its students, and how they are trained."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from cnn2gnn_jax import distillers, gnn, networks
from cnn2gnn_jax.data import Dataset
from cnn2gnn_jax.distillers import Distiller, maps
from cnn2gnn_jax.run import Recorded
from cnn2gnn_jax.training.task import Task

Images = Dataset | Recorded  # the data set, or the facts about it that a workdir records


def teacher_module(config: FrozenConfigDict, classes: int) -> nn.Module:
    """The teacher's network."""
    return networks.create(config.teacher.network, classes, stem=config.teacher.stem, dtype=config.compute_dtype)


def student_module(config: FrozenConfigDict, classes: int, graph: str) -> nn.Module:
    """The student's network: a CNN, or a graph network with the graph setting `graph`."""
    student, dtype = config.student, config.compute_dtype
    if student.kind == "cnn":
        return networks.create(student.network, classes, stem=student.stem, dtype=dtype)
    return gnn.GraphStudent(
        num_classes=classes,
        backbone=gnn.create_backbone(
            student.backbone, stem_widths=student.stem_widths, image_stem=student.stem, dtype=dtype
        ),
        graph=graph,
        sparsity=student.sparsity,
        hidden=student.hidden,
        head_widths=student.head_widths,
        self_loops=student.self_loops,
        threshold=student.edge_threshold,
    )


def student_name(task: Task) -> str:
    """The name of a student in folders and records."""
    return named(task.module.graph if isinstance(task.module, gnn.GraphStudent) else None, task.seed)


def named(graph: str | None, seed: int) -> str:
    """The name of the student with a graph setting (None for a CNN) and a seed."""
    return f"graph_{graph}-seed{seed}" if graph else f"cnn-seed{seed}"


def takes_features(config: FrozenConfigDict) -> bool:
    """Whether the student's inputs are stored pooled features of the teacher instead of images."""
    return config.student.kind == "graph" and config.student.backbone == "teacher"


def teacher_task(config: FrozenConfigDict, images: Images) -> Task:
    """The teacher's task: cross-entropy on the labels."""
    module, labels_only = teacher_module(config, len(images.classes)), distillers.create("none", {})
    return _task(module, labels_only, config.teacher.train, images, config.teacher.seed)


def student_task(config: FrozenConfigDict, images: Images, graph: str, labels: np.ndarray | None = None) -> Task:
    """The task of the first student with a graph setting.

    Args:
      config: a resolved config.
      images: the data set, or the facts about it that a workdir records.
      graph: one of `config.graph_settings`; '' for a CNN student.
      labels: the labels of the training images, (N,), to train the student; None if it is only used.
    """
    student, module = config.student, student_module(config, len(images.classes), graph)
    task = _task(module, _distiller(config, labels), student.train, images, config.seed)
    if takes_features(config):
        task = dataclasses.replace(task, mean=(), std=())
    grouped = None if labels is None or not student.classes_per_batch else (labels, student.classes_per_batch)
    off_weight = 0.0 if graph in ("", "off") else student.graph_off_loss_weight
    return dataclasses.replace(task, grouped=grouped, off_weight=off_weight)


def student_tasks(config: FrozenConfigDict, dataset: Dataset, graph: str) -> list[Task]:
    """The tasks of the students of all seeds with the graph setting `graph`."""
    task = student_task(config, dataset, graph, dataset.train.labels)
    if task.distiller.teacher and not stored_outputs(config, dataset):
        task = dataclasses.replace(task, teacher=teacher_module(config, len(dataset.classes)))
    return [dataclasses.replace(task, seed=config.seed + k) for k in range(config.seeds)]


def _task(module: nn.Module, distiller: Distiller, recipe: Any, images: Images, seed: int) -> Task:
    return Task(
        module=module,
        distiller=distiller,
        stage=distiller.stages[-1],
        recipe=recipe,
        steps_per_epoch=images.train_images // recipe.batch_size,
        rows=images.train_images,
        seed=seed,
        mean=images.mean,
        std=images.std,
    )


def _distiller(config: FrozenConfigDict, labels: np.ndarray | None) -> Distiller:
    return distillers.create(distillers.METHODS[config.method].distiller, {**config.distill, "training_labels": labels})


def stored_outputs(config: FrozenConfigDict, dataset: Dataset) -> tuple[str, ...]:
    """The fields of the teacher's outputs that training reads from disk.

    They are all that the distiller needs. The tuple is empty where the teacher runs in the step: with augmentation, a
    second view, or a field that is not stored.
    """
    distiller = _distiller(config, dataset.train.labels)
    if config.student.train.augment or distiller.second_view is not None:
        return ()
    stored = {"logits", "pooled"}
    if distiller.attention:
        shape, classes = dataset.train.images.shape[1:], len(dataset.classes)
        student = _feature_shapes(student_module(config, classes, ""), shape)
        teacher = _feature_shapes(teacher_module(config, classes), shape)
        stored |= {"features"} if maps.teacher_maps_not_larger(student, teacher) else set()
    return distiller.teacher if set(distiller.teacher) <= stored else ()


@functools.lru_cache(maxsize=8)
def _feature_shapes(module: nn.Module, image_shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The shapes of a network's features of one image."""

    def features() -> Any:
        outputs: Any = module.init_with_output(jax.random.key(0), jnp.zeros((1, *image_shape)))[0]
        return outputs.features

    return jax.eval_shape(features)
