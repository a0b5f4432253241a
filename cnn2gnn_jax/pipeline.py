"""The chain: images -> teacher -> teacher logits on disk -> student -> evaluation -> report.

Each stage finds its result by fingerprint and skips itself. A fingerprint covers the data set's fingerprint and every
field that changes the result.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import distillers, gnn, networks, report, teacher_logits
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.evaluation import protocols, scoring, summary
from cnn2gnn_jax.run import Run
from cnn2gnn_jax.runtime import artifact, processes, storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training.fit import Job, Load, fit_on_disk
from cnn2gnn_jax.training.metrics import training_seconds
from cnn2gnn_jax.training.state import TrainState
from cnn2gnn_jax.training.task import Task

STAGES = ("teacher", "logits", "student", "evaluate", "report")


def run(config: ConfigDict, workdir: pathlib.Path | None = None, stage: str = STAGES[-1]) -> dict[str, Any] | None:
    """Runs the chain up to `stage` and skips what is already done.

    Args:
      config: as a config file gives it.
      workdir: None for `runs/<config.name>-<fingerprint>`.
      stage: one of STAGES.

    Returns:
      The results if the chain ran to the evaluation, otherwise None; of several processes, to the first alone.

    Raises:
      UserError: wrong config, data missing or damaged, a workdir of another config or in use.
    """
    if stage not in STAGES:
        raise UserError(f"stage {stage!r} is unknown: choose one of {', '.join(STAGES)}")
    begun = runs.begin(config, workdir)
    with processes.first_holds(storage.lock(begun.workdir / ".lock", wait=False)):
        processes.on_first(lambda: storage.remove_remains(begun.workdir))
        processes.on_first(lambda: runs.record(begun))
        counts = f"{len(begun.dataset.train)} training and {len(begun.dataset.test)} test images"
        say(f"{begun.dataset.name}: {counts}; workdir {begun.workdir}")
        return _stages(begun, STAGES.index(stage))


def _stages(run: Run, last: int) -> dict[str, Any] | None:
    load_teacher = cached = None
    if configs.needs_teacher(run.config) and run.config.teacher.logits_file:
        cached = given_outputs(run)
    elif configs.needs_teacher(run.config):
        with processes.first_holds(storage.lock(run.teacher_folder / ".lock", wait=True)):
            processes.on_first(lambda: storage.remove_remains(run.teacher_folder))
            load_teacher = train_teacher(run)
            if last >= STAGES.index("logits"):
                cached = teacher_outputs(run, load_teacher)
    if last < STAGES.index("student"):
        return None
    students = [
        student
        for graph in configs.graph_settings(run.config)
        for student in train_students(run, student_tasks(run, graph), load_teacher, cached)
    ]
    if last < STAGES.index("evaluate"):
        return None
    inputs = student_inputs(run, cached)
    entries = [scoring.evaluate_student(run, task, student_name(task), load, inputs) for task, load in students]
    found: dict[str, Any] = {}

    def finish() -> None:
        predicted = np.concatenate([one["predicted"] for one in entries])
        found.update(_results(run, cached, entries))
        found["predictions"] = storage.fingerprint(found["accuracies"])
        arrays = {"predicted": predicted, "labels": run.evaluated.labels.astype(predicted.dtype)}
        artifact.write(run.workdir / summary.PREDICTIONS, summary.KIND, found["predictions"], {}, arrays)
        storage.write_json(run.workdir / "results.json", found)
        if last >= STAGES.index("report"):
            report.write(run.workdir, found, run.dataset, run.evaluated, predicted)

    processes.on_first(finish)
    return found or None


# Teacher ------------------------------------------------------------------------------------------------------------


def teacher_task(run: Run) -> Task:
    """The teacher's training: cross-entropy on the labels."""
    config, dataset = run.config, run.dataset
    distiller = distillers.create("none", {})
    return Task(
        module=teacher_module(config, len(dataset.classes)),
        distiller=distiller,
        stage=distiller.stages[0],
        recipe=config.teacher.train,
        steps_per_epoch=len(dataset.train) // config.teacher.train.batch_size,
        rows=len(dataset.train),
        seed=config.teacher.seed,
        mean=dataset.mean,
        std=dataset.std,
    )


def train_teacher(run: Run) -> Load:
    """Trains the teacher unless it is in the cache."""
    task, dataset = teacher_task(run), run.dataset

    def score(task: Task, state: TrainState) -> float:
        assert dataset.holdout is not None
        variables = state.variables
        logits, _ = protocols.network_outputs(
            task.module, variables, dataset.holdout.images, task.mean, task.std, devices=run.devices
        )
        return protocols.accuracy(logits, dataset.holdout.labels)

    [load] = _fit(
        run,
        [
            Job(
                task,
                f"teacher {run.config.teacher.network}",
                run.teacher_folder / "checkpoints",
                run.teacher_folder.name,
            )
        ],
        records=run.teacher_folder / "metrics.jsonl",
        load_data=lambda: {"input": dataset.train.images, "label": dataset.train.labels},
        score=score,
    )
    return load


class CachedOutputs(NamedTuple):
    """The teacher's outputs on disk: arrays by split, and facts: `test_accuracy`, `train_accuracy`, `seconds`.

    The attention maps are those of the training images, by stage: `train_1`, `train_2`, ...
    Logits that were given are of the training images alone, and of facts there is only the accuracy on these.
    """

    logits: dict[str, np.ndarray]
    pooled: dict[str, np.ndarray] | None
    attention: dict[str, np.ndarray] | None
    facts: dict[str, Any]


def teacher_outputs(run: Run, load: Load) -> CachedOutputs:
    """The teacher's logits, and what else of it is needed, computed unless they are on disk."""
    splits = {"train": run.dataset.train, "test": run.dataset.test}
    if run.dataset.holdout is not None:
        splits["holdout"] = run.dataset.holdout
    rows = {name: len(split) for name, split in splits.items()}
    task = teacher_task(run)

    @functools.cache
    def compute() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
        say(f"computing the outputs of teacher {run.config.teacher.network}")
        start, state = time.monotonic(), load()
        variables = state.variables
        logits, pooled, facts = {}, {}, {}
        for name, split in splits.items():
            logits[name], pooled[name] = protocols.network_outputs(
                task.module, variables, split.images, task.mean, task.std, devices=run.devices
            )
            facts[f"{name}_accuracy"] = protocols.accuracy(logits[name], split.labels)
        return logits, pooled, {**facts, "seconds": round(time.monotonic() - start, 3)}

    fingerprint = run.teacher_folder.name

    def attention_maps() -> tuple[teacher_logits.Blocks, dict[str, Any]]:
        say(f"computing the attention maps of teacher {run.config.teacher.network}")
        variables = load().variables
        batches = protocols.attention_maps(
            task.module, variables, splits["train"].images, task.mean, task.std, devices=run.devices
        )
        return ({f"train_{i}": array for i, array in enumerate(batch, 1)} for batch in batches), {}

    logits, facts = teacher_logits.ensure(
        run.teacher_folder / "teacher_logits", fingerprint, rows, lambda: ([compute()[0]], compute()[2])
    )
    pooled = attention = None
    fields = _cached_fields(run)
    if "pooled" in fields or run.config.student.backbone == "teacher":
        pooled, _ = teacher_logits.ensure(
            run.teacher_folder / "teacher_pooled", fingerprint, rows, lambda: ([compute()[1]], compute()[2])
        )
    if "features" in fields:
        attention, _ = teacher_logits.ensure(
            run.teacher_folder / "teacher_attention", fingerprint, rows, attention_maps
        )
    return CachedOutputs(logits, pooled, attention, facts)


def given_outputs(run: Run) -> CachedOutputs:
    """The logits of `teacher.logits_file`."""
    file, train = run.config.teacher.logits_file, run.dataset.train
    logits, accuracy = teacher_logits.given(file, train.labels, len(run.dataset.classes))
    say(f"teacher: the logits of {file}, {accuracy:.2f}% right on the training images")
    return CachedOutputs({"train": logits}, None, None, {"train_accuracy": accuracy})


# Student ------------------------------------------------------------------------------------------------------------


def _distiller(run: Run) -> distillers.Distiller:
    hyper = {**run.config.distill, "training_labels": run.dataset.train.labels}
    return distillers.create(distillers.METHODS[run.config.method].distiller, hyper)


def _cached_fields(run: Run) -> tuple[str, ...]:
    """The teacher's outputs that the student's training reads from disk: those it needs, if no augmentation changes
    what the teacher sees and nothing else is needed."""
    distiller = _distiller(run)
    if run.config.student.train.augment or distiller.second_view is not None:
        return ()
    stored = {"logits", "pooled"}
    if distiller.attention:
        shape, classes = run.dataset.train.images.shape[1:], len(run.dataset.classes)
        student = _feature_shapes(student_module(run.config, classes, ""), shape)
        teacher = _feature_shapes(teacher_module(run.config, classes), shape)
        stored |= {"features"} if maps.none_larger(student, teacher) else set()
    return distiller.teacher if set(distiller.teacher) <= stored else ()


@functools.lru_cache(maxsize=8)
def _feature_shapes(module: nn.Module, image_shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The shapes of a network's features of one image."""

    def features() -> Any:
        outputs: Any = module.init_with_output(jax.random.key(0), jnp.zeros((1, *image_shape)))[0]
        return outputs.features

    return jax.eval_shape(features)


def student_tasks(run: Run, graph: str) -> list[Task]:
    """The training of the students of all seeds with the graph setting `graph` ('' for a CNN student)."""
    first = _student_task(run, graph)
    return [dataclasses.replace(first, seed=first.seed + k) for k in range(run.config.seeds)]


def _student_task(run: Run, graph: str) -> Task:
    config, dataset = run.config, run.dataset
    student = config.student
    features = student.kind == "graph" and student.backbone == "teacher"
    distiller = _distiller(run)
    live = bool(distiller.teacher) and not _cached_fields(run)
    return Task(
        module=student_module(config, len(dataset.classes), graph),
        distiller=distiller,
        stage=distiller.stages[-1],
        recipe=student.train,
        steps_per_epoch=len(dataset.train) // student.train.batch_size,
        rows=len(dataset.train),
        seed=config.seed,
        mean=() if features else dataset.mean,
        std=() if features else dataset.std,
        grouped=(dataset.train.labels, student.classes_per_batch) if student.classes_per_batch else None,
        off_weight=0.0 if graph in ("", "off") else student.off_weight,
        teacher=teacher_task(run).module if live else None,
    )


def student_module(config: FrozenConfigDict, classes: int, graph: str) -> nn.Module:
    """The student's network: a CNN, or a graph network with the graph setting `graph`."""
    student, dtype = config.student, config.compute_dtype
    if student.kind == "cnn":
        return networks.create(student.network, classes, stem=student.stem, dtype=dtype)
    return gnn.GraphStudent(
        num_classes=classes,
        backbone=gnn.create_backbone(
            student.backbone,
            stem_widths=student.stem_widths,
            image_stem=student.stem,
            dtype=dtype,
        ),
        graph=graph,
        sparsity=student.sparsity,
        hidden=student.hidden,
        head_widths=student.head_widths,
        self_loops=student.self_loops,
        threshold=student.threshold,
    )


def teacher_module(config: FrozenConfigDict, classes: int) -> nn.Module:
    """The teacher's network."""
    return networks.create(config.teacher.network, classes, stem=config.teacher.stem, dtype=config.compute_dtype)


def student_name(task: Task) -> str:
    """The name of a student's folder and records."""
    kind = f"graph_{task.module.graph}" if isinstance(task.module, gnn.GraphStudent) else "cnn"
    return f"{kind}-seed{task.seed}"


def train_students(
    run: Run, tasks: Sequence[Task], load_teacher: Load | None, cached: CachedOutputs | None
) -> list[tuple[Task, Load]]:
    """Trains students that differ in their seed, those that are not in the workdir.

    Dense ones train side by side. Convolutions with weights of their own for each student are slower together than one
    after another.
    """
    inputs = student_inputs(run, cached)

    def teacher_variables() -> Any:
        if tasks[0].teacher is None:
            return None
        assert load_teacher is not None
        return load_teacher().variables

    def score(task: Task, state: TrainState) -> float:
        assert run.dataset.holdout is not None
        return scoring.held_out_accuracy(
            run, task, state, inputs["train"], inputs["holdout"], run.dataset.holdout.labels
        )

    outputs: dict[str, np.ndarray] = {}
    for field in _cached_fields(run):
        assert cached is not None
        if field == "features":
            assert cached.attention is not None
            outputs |= {name.replace("train_", "teacher_features"): array for name, array in cached.attention.items()}
        else:
            outputs[f"teacher_{field}"] = getattr(cached, field)["train"]
    train_together = functools.partial(
        _fit,
        run,
        records=run.workdir / "metrics.jsonl",
        load_data=lambda: {"input": inputs["train"], "label": run.dataset.train.labels, **outputs},
        teacher_variables=teacher_variables,
        score=score,
    )
    jobs = [
        Job(task, name, run.workdir / "checkpoints" / name, f"{run.fingerprint}/{name}")
        for task, name in ((task, student_name(task)) for task in tasks)
    ]
    groups = [jobs] if tasks[0].is_dense else [[job] for job in jobs]
    return list(zip(tasks, [load for group in groups for load in train_together(jobs=group)], strict=True))


def student_inputs(run: Run, cached: CachedOutputs | None) -> dict[str, np.ndarray]:
    """The raw inputs of the student by split: images, or the teacher's pooled features."""
    if run.config.student.kind == "graph" and run.config.student.backbone == "teacher":
        assert cached is not None and cached.pooled is not None
        return cached.pooled
    splits = {"train": run.dataset.train, "test": run.dataset.test, "holdout": run.dataset.holdout}
    return {name: split.images for name, split in splits.items() if split is not None}


def _fit(run: Run, jobs: Sequence[Job], **arguments: Any) -> list[Load]:
    return fit_on_disk(
        jobs,
        every_seconds=run.config.checkpoint.every_seconds,
        residency=run.config.data.residency,
        tensorboard=run.workdir / "tensorboard" if run.config.tensorboard else None,
        devices=run.devices,
        **arguments,
    )


# Results --------------------------------------------------------------------------------------------------------------


def _results(run: Run, cached: CachedOutputs | None, evaluated: list[dict[str, Any]]) -> dict[str, Any]:
    student = student_tasks(run, configs.graph_settings(run.config)[0])[0]
    inputs = student_inputs(run, cached)["train"]
    records = [run.workdir / "metrics.jsonl"] + ([run.teacher_folder / "metrics.jsonl"] if cached is not None else [])
    seconds = training_seconds(*records)
    seconds["evaluation"] = round(sum(one["seconds"] for one in evaluated), 3)
    teacher = None
    if cached is not None:
        costs: dict[str, Any] = {}
        if not run.config.teacher.logits_file:
            seconds["teacher logits"] = cached.facts["seconds"]
            costs = summary.network_costs(teacher_task(run), run.dataset.train.images)
        teacher = summary.teacher(run.config, run.teacher_folder.name, cached.facts, costs)
    return {
        "fingerprint": run.fingerprint,
        "method": run.config.method,
        "dataset": summary.dataset(run),
        "teacher": teacher,
        "student": summary.student(run.config.student, summary.student_costs(student, inputs, run.config.evaluate)),
        "accuracies": [entry for one in evaluated for entry in one["accuracies"]],
        "inference_seconds": [seconds for one in evaluated for seconds in one["inference_seconds"]],
        "holdout_accuracies": [one["holdout"] for one in evaluated if one["holdout"] is not None],
        "examples": evaluated[0]["examples"],
        "seconds": seconds,
        "devices": run.devices.count,
        "versions": summary.versions(),
    }
