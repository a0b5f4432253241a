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
from cnn2gnn_jax import (
    data,
    distillers,
    evaluate,
    gnn,
    networks,
    parallel,
    processes,
    report,
    results,
    storage,
    teacher_logits,
    train,
)
from cnn2gnn_jax.data import Dataset
from cnn2gnn_jax.distillers import maps
from cnn2gnn_jax.errors import UserError
from cnn2gnn_jax.fit import Job, Load, fit_on_disk
from cnn2gnn_jax.metrics import say, training_seconds
from cnn2gnn_jax.task import Task
from cnn2gnn_jax.train import TrainState

STAGES = ("teacher", "logits", "student", "evaluate", "report")
EXAMPLES = 10  # test images whose neighbours are recorded


class Run(NamedTuple):
    """What every stage reads: the complete config, the data, the places on disk, and the devices."""

    config: FrozenConfigDict
    dataset: Dataset
    teacher_folder: pathlib.Path
    workdir: pathlib.Path
    fingerprint: str
    devices: parallel.Devices = parallel.ONE


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
    complete = configs.resolve(config)
    cache = pathlib.Path(complete.cache_dir).expanduser()
    if complete.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compilation"))
        # By default JAX keeps only what took a second, and a run compiles dozens of smaller programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    devices = parallel.create(complete.parallel)
    dataset = processes.first_before_others(lambda: data.load(complete.data, cache))
    configs.check_data(complete, dataset)
    fingerprint = configs.student_fingerprint(complete, dataset.fingerprint)
    folder = pathlib.Path("runs") / f"{complete.name}-{fingerprint}" if workdir is None else workdir
    _refuse_another(folder, fingerprint)
    teacher_folder = cache / "teachers" / configs.teacher_fingerprint(complete, dataset.fingerprint)
    with processes.first_holds(storage.lock(folder / ".lock", wait=False)):
        facts = {"fingerprint": fingerprint, "dataset_fingerprint": dataset.fingerprint, "config": complete.to_dict()}
        processes.on_first(lambda: storage.write_json(folder / "config.json", facts))
        say(f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images; workdir {folder}")
        return _stages(Run(complete, dataset, teacher_folder, folder, fingerprint, devices), STAGES.index(stage))


def _refuse_another(workdir: pathlib.Path, fingerprint: str) -> None:
    path = workdir / "config.json"
    if path.exists() and (found := storage.read_json(path).get("fingerprint")) != fingerprint:
        raise UserError(
            f"{workdir} holds a run of another config (fingerprint {found}, this one's is {fingerprint}): "
            "choose another --workdir, or none for one of its own"
        )


def _stages(run: Run, last: int) -> dict[str, Any] | None:
    load_teacher = cached = None
    if configs.needs_teacher(run.config):
        with processes.first_holds(storage.lock(run.teacher_folder / ".lock", wait=True)):
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
    entries = [evaluate_student(run, task, load, cached) for task, load in students]
    found: dict[str, Any] = {}

    def finish() -> None:
        found.update(_results(run, cached, entries))
        storage.write_json(run.workdir / "results.json", found)
        if last >= STAGES.index("report"):
            report.write(run.workdir, found, run.dataset)

    processes.on_first(finish)
    return found or None


# Teacher ------------------------------------------------------------------------------------------------------------


def _cnn(run: Run, section: Any) -> nn.Module:
    """The network of the config's section `teacher` or `student`."""
    return networks.create(section.network, len(run.dataset.classes), stem=section.stem, dtype=run.config.compute_dtype)


def teacher_task(run: Run) -> Task:
    """The teacher's training: cross-entropy on the labels."""
    config, dataset = run.config, run.dataset
    distiller = distillers.create("none", {})
    return Task(
        module=_cnn(run, config.teacher),
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
        logits, _ = evaluate.network_outputs(
            task.module, variables, dataset.holdout.images, task.mean, task.std, devices=run.devices
        )
        return evaluate.accuracy(logits, dataset.holdout.labels)

    [load] = _fit(
        run,
        [Job(task, f"teacher {run.config.teacher.network}", run.teacher_folder / "checkpoints")],
        records=run.teacher_folder / "metrics.jsonl",
        load_data=lambda: {"input": dataset.train.images, "label": dataset.train.labels},
        score=score,
    )
    return load


class CachedOutputs(NamedTuple):
    """The teacher's outputs on disk: arrays by split, and facts: `test_accuracy`, `train_accuracy`, `seconds`.

    The attention maps are those of the training images, by stage: `train_1`, `train_2`, ...
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
            logits[name], pooled[name] = evaluate.network_outputs(
                task.module, variables, split.images, task.mean, task.std, devices=run.devices
            )
            facts[f"{name}_accuracy"] = evaluate.accuracy(logits[name], split.labels)
        return logits, pooled, {**facts, "seconds": round(time.monotonic() - start, 3)}

    fingerprint = run.teacher_folder.name

    def attention_maps() -> tuple[teacher_logits.Blocks, dict[str, Any]]:
        say(f"computing the attention maps of teacher {run.config.teacher.network}")
        variables = load().variables
        batches = evaluate.attention_maps(
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
        shape = run.dataset.train.images.shape[1:]
        student, teacher = (_feature_shapes(_cnn(run, run.config[role]), shape) for role in ("student", "teacher"))
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
    student, classes, dtype = config.student, len(dataset.classes), config.compute_dtype
    features = student.kind == "graph" and student.backbone == "teacher"
    if student.kind == "cnn":
        module: nn.Module = _cnn(run, student)
    else:
        module = gnn.GraphStudent(
            num_classes=classes,
            backbone=gnn.create_backbone(
                student.backbone,
                stem_widths=student.stem_widths,
                image_stem=student.stem,
                dtype=dtype,
                axis_name=None,
            ),
            graph=graph,
            sparsity=student.sparsity,
            hidden=student.hidden,
            head_widths=student.head_widths,
            self_loops=student.self_loops,
            threshold=student.threshold,
        )
    distiller = _distiller(run)
    live = bool(distiller.teacher) and not _cached_fields(run)
    return Task(
        module=module,
        distiller=distiller,
        stage=distiller.stages[-1],
        recipe=student.train,
        steps_per_epoch=len(dataset.train) // student.train.batch_size,
        rows=len(dataset.train),
        seed=config.seed,
        mean=() if features else dataset.mean,
        std=() if features else dataset.std,
        teacher=teacher_task(run).module if live else None,
    )


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
        return _score(run, task, state, inputs["train"], inputs["holdout"], run.dataset.holdout.labels)

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
    jobs = [Job(task, student_name(task), run.workdir / "checkpoints" / student_name(task)) for task in tasks]
    groups = [jobs] if tasks[0].is_dense else [[job] for job in jobs]
    return list(zip(tasks, [load for group in groups for load in train_together(jobs=group)], strict=True))


def student_inputs(run: Run, cached: CachedOutputs | None) -> dict[str, np.ndarray]:
    """The raw inputs of the student by split: images, or the teacher's pooled features."""
    if run.config.student.kind == "graph" and run.config.student.backbone == "teacher":
        assert cached is not None and cached.pooled is not None
        return cached.pooled
    splits = {"train": run.dataset.train, "test": run.dataset.test, "holdout": run.dataset.holdout}
    return {name: split.images for name, split in splits.items() if split is not None}


def _score(
    run: Run, task: Task, state: TrainState, train_inputs: np.ndarray, inputs: np.ndarray, labels: np.ndarray
) -> float:
    variables = state.variables
    if not isinstance(task.module, gnn.GraphStudent):
        logits, _ = evaluate.network_outputs(task.module, variables, inputs, task.mean, task.std, devices=run.devices)
        return evaluate.accuracy(logits, labels)
    anchors, _ = _anchors(run, task, state, train_inputs)
    return evaluate.one_by_one_accuracy(
        task.module, variables, anchors, inputs, labels, task.mean, task.std, run.devices
    )


def _fit(run: Run, jobs: Sequence[Job], **arguments: Any) -> list[Load]:
    return fit_on_disk(
        jobs,
        every_seconds=run.config.checkpoint.every_seconds,
        residency=run.config.data.residency,
        tensorboard=run.workdir / "tensorboard" if run.config.tensorboard else None,
        devices=run.devices,
        **arguments,
    )


# Evaluation ---------------------------------------------------------------------------------------------------------


def _anchors(
    run: Run, task: Task, state: TrainState, train_inputs: np.ndarray
) -> tuple[evaluate.Anchors, list[np.ndarray]]:
    """The anchors of the protocol, and their training indices."""
    assert isinstance(task.module, gnn.GraphStudent)
    section = run.config.evaluate
    labels = run.dataset.train.labels
    indices = evaluate.anchor_sets(labels, section.anchors, section.anchor_batches, section.anchor_seed)
    columns = [
        evaluate.anchor_columns(
            task.module,
            state.variables,
            train_inputs[index],
            train.head_rows(task, state, index, run.devices),
            task.mean,
            task.std,
        )
        for index in indices
    ]
    return evaluate.Anchors(columns, [labels[index] for index in indices]), indices


def evaluate_student(run: Run, task: Task, load: Load, cached: CachedOutputs | None) -> dict[str, Any]:
    """A student's accuracies under every protocol, computed unless they are on disk."""
    path = run.workdir / "evaluations" / f"{student_name(task)}.json"
    fingerprint = storage.fingerprint([run.fingerprint, configs.plain(run.config.evaluate)])
    if processes.agreed(path.exists() and storage.read_json(path).get("fingerprint") == fingerprint):
        return storage.read_json(path)
    say(f"evaluating {student_name(task)}")
    start, state = time.monotonic(), load()
    inputs, dataset, section = student_inputs(run, cached), run.dataset, run.config.evaluate
    variables = state.variables
    common = {"method": run.config.method, "seed": task.seed, "epoch": task.recipe.epoch}
    entries: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    if isinstance(task.module, gnn.GraphStudent):
        anchors, indices = _anchors(run, task, state, inputs["train"])
        settings = [(task.module.graph, task.module)]
        if task.module.graph != "off":
            settings.append(("off_at_test", task.module.clone(graph="off")))
            if task.module.graph in gnn.SPARSE_GRAPHS:
                examples = evaluate.neighbor_examples(
                    task.module,
                    variables,
                    anchors.columns[0],
                    indices[0],
                    inputs["test"],
                    evaluate.one_of_each_class(dataset.test.labels, EXAMPLES),
                    task.mean,
                    task.std,
                )
        for graph, module in settings:
            found_entries = evaluate.graph_protocols(
                module,
                variables,
                anchors,
                inputs["test"],
                dataset.test.labels,
                task.mean,
                task.std,
                batch_size=section.batch_size,
                order_seed=section.order_seed,
                reading=section.reading,
                devices=run.devices,
            )
            entries += [{**common, "graph": graph, **entry} for entry in found_entries]
    else:
        logits, _ = evaluate.network_outputs(
            task.module, variables, inputs["test"], task.mean, task.std, devices=run.devices
        )
        accuracy = evaluate.accuracy(logits, dataset.test.labels)
        entries = [{**common, "graph": None, "mechanism": None, "batch_order": None, "accuracy": accuracy}]
    seconds = round(time.monotonic() - start, 3)
    result = {"fingerprint": fingerprint, "accuracies": entries, "examples": examples, "seconds": seconds}
    processes.on_first(lambda: storage.write_json(path, result))
    return result


def _results(run: Run, cached: CachedOutputs | None, evaluated: list[dict[str, Any]]) -> dict[str, Any]:
    student = student_tasks(run, configs.graph_settings(run.config)[0])[0]
    inputs = student_inputs(run, cached)["train"]
    records = [run.workdir / "metrics.jsonl"] + ([run.teacher_folder / "metrics.jsonl"] if cached is not None else [])
    seconds = training_seconds(*records)
    seconds["evaluation"] = round(sum(one["seconds"] for one in evaluated), 3)
    teacher = None
    if cached is not None:
        seconds["teacher logits"] = cached.facts["seconds"]
        costs = results.network_costs(teacher_task(run), run.dataset.train.images)
        teacher = results.teacher(run.config.teacher, run.teacher_folder.name, cached.facts, costs)
    return {
        "fingerprint": run.fingerprint,
        "method": run.config.method,
        "dataset": results.dataset(run.dataset),
        "teacher": teacher,
        "student": results.student(run.config.student, results.student_costs(student, inputs, run.config.evaluate)),
        "accuracies": [entry for one in evaluated for entry in one["accuracies"]],
        "examples": evaluated[0]["examples"],
        "seconds": seconds,
        "devices": run.devices.count,
        "versions": results.versions(),
    }
