"""The chain: images -> teacher -> teacher logits on disk -> student -> evaluation -> report.

Each stage finds its result by fingerprint and skips itself. A fingerprint covers the data set's fingerprint and every
field that changes the result.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import report
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.evaluation import scoring, summary
from cnn2gnn_jax.evaluation import teacher as teachers
from cnn2gnn_jax.evaluation.teacher import TeacherOutputs
from cnn2gnn_jax.run import Run
from cnn2gnn_jax.runtime import artifact, processes, storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import fit, tasks
from cnn2gnn_jax.training.fit import Job, Load
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
    load_teacher = outputs = None
    if configs.needs_teacher(run.config) and run.config.teacher.logits_file:
        outputs = teachers.given_outputs(run)
    elif configs.needs_teacher(run.config):
        with processes.first_holds(storage.lock(run.teacher_folder / ".lock", wait=True)):
            processes.on_first(lambda: storage.remove_remains(run.teacher_folder))
            load_teacher = train_teacher(run)
            if last >= STAGES.index("logits"):
                outputs = teachers.own_outputs(run, load_teacher)
    if last < STAGES.index("student"):
        return None
    students = [
        student
        for graph in configs.graph_settings(run.config)
        for student in train_students(run, graph, load_teacher, outputs)
    ]
    if last < STAGES.index("evaluate"):
        return None
    inputs = teachers.student_inputs(run, outputs)
    teacher_logits = None if outputs is None else outputs.arrays["logits"]["train"]
    entries = [scoring.evaluate_student(run, task, load, inputs, teacher_logits) for task, load in students]
    found: dict[str, Any] = {}

    def finish() -> None:
        predicted = np.concatenate([one["predicted"] for one in entries])
        found.update(_results(run, students[0][0], outputs, entries))
        found["predictions"] = storage.fingerprint(found["accuracies"])
        arrays = {"predicted": predicted, "labels": run.evaluated.labels.astype(predicted.dtype)}
        artifact.write(run.workdir / summary.PREDICTIONS, summary.KIND, found["predictions"], {}, arrays)
        storage.write_json(run.workdir / "results.json", found)
        if last >= STAGES.index("report"):
            report.write(run.workdir, found, run.dataset, run.evaluated, predicted)

    processes.on_first(finish)
    return found or None


def train_teacher(run: Run) -> Load:
    """Trains the teacher unless it is in the cache."""
    folder = run.teacher_folder
    task = tasks.teacher_task(run.config, run.dataset)
    job = Job(task, f"teacher {run.config.teacher.network}", folder / "checkpoints", folder.name)
    [load] = _fit(run, [job], folder / "metrics.jsonl", teachers.images_by_split(run))
    return load


def train_students(
    run: Run, graph: str, load_teacher: Load | None, outputs: TeacherOutputs | None
) -> list[tuple[Task, Load]]:
    """Trains the students of all seeds with the graph setting `graph`, those that are not in the workdir.

    Dense ones train side by side. Convolutions with weights of their own for each student are slower together than one
    after another.
    """
    own_tasks = tasks.student_tasks(run.config, run.dataset, graph)
    jobs = [
        Job(task, name, run.workdir / "checkpoints" / name, f"{run.fingerprint}/{name}")
        for task, name in ((task, tasks.student_name(task)) for task in own_tasks)
    ]
    inputs, stored = teachers.student_inputs(run, outputs), {}
    if fields := tasks.stored_outputs(run.config, run.dataset):
        assert outputs is not None
        stored = outputs.for_training(fields)
    live = load_teacher if own_tasks[0].teacher is not None else None
    groups = [jobs] if own_tasks[0].is_dense else [[job] for job in jobs]
    loads = [load for group in groups for load in _fit(run, group, run.workdir / "metrics.jsonl", inputs, stored, live)]
    return list(zip(own_tasks, loads, strict=True))


def _fit(
    run: Run,
    jobs: Sequence[Job],
    records: pathlib.Path,
    inputs: dict[str, np.ndarray],
    stored: dict[str, np.ndarray] | None = None,
    load_teacher: Load | None = None,
) -> list[Load]:
    """Trains jobs on the raw `inputs` of the training images and the `stored` outputs of the teacher for these."""

    def score(task: Task, state: TrainState) -> float:
        return scoring.held_out_accuracy(run, scoring.model_of(run, task, state, inputs["train"]), inputs["holdout"])

    tensorboard = run.workdir / "tensorboard" if run.config.tensorboard else None
    every_seconds, residency = run.config.checkpoint.every_seconds, run.config.data.residency
    return fit.fit_on_disk(
        jobs,
        lambda: {"input": inputs["train"], "label": run.dataset.train.labels, **(stored or {})},
        score,
        fit.Setting(records, every_seconds, residency, tensorboard, run.devices),
        lambda: None if load_teacher is None else load_teacher().variables,
    )


def _results(
    run: Run, student: Task, outputs: TeacherOutputs | None, evaluated: list[dict[str, Any]]
) -> dict[str, Any]:
    inputs = teachers.student_inputs(run, outputs)["train"]
    records = [run.workdir / "metrics.jsonl"] + ([run.teacher_folder / "metrics.jsonl"] if outputs is not None else [])
    seconds = training_seconds(*records)
    seconds["evaluation"] = round(sum(one["seconds"] for one in evaluated), 3)
    teacher = None
    if outputs is not None:
        costs: dict[str, Any] = {}
        if not run.config.teacher.logits_file:
            seconds["teacher logits"] = outputs.facts["seconds"]
            costs = summary.network_costs(tasks.teacher_task(run.config, run.dataset), run.dataset.train.images)
        teacher = summary.teacher(run.config, run.teacher_folder.name, outputs.facts, costs)
    return {
        "fingerprint": run.fingerprint,
        "method": run.config.method,
        "dataset": summary.dataset(run),
        "teacher": teacher,
        "student": summary.student(run.config.student, summary.student_costs(student, inputs, run.config.evaluate)),
        "accuracies": [entry for one in evaluated for entry in one["accuracies"]],
        "inference_seconds": [seconds for one in evaluated for seconds in one["inference_seconds"]],
        "holdout_accuracies": [one["holdout"] for one in evaluated if one["holdout"] is not None],
        "training_set": [one["training_set"] for one in evaluated if one["training_set"] is not None],
        "examples": evaluated[0]["examples"],
        "seconds": seconds,
        "devices": run.devices.count,
        "versions": summary.versions(),
    }
