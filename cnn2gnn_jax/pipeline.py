"""The chain: images -> teacher -> teacher logits on disk -> student -> evaluation -> report.

A stage whose result is on disk is skipped. Results are found by fingerprint, a hash of the data set's fingerprint and
of every field that changes the result.
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
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import fit, tasks
from cnn2gnn_jax.training.fit import Job, Load
from cnn2gnn_jax.training.metrics import training_seconds
from cnn2gnn_jax.training.state import TrainState
from cnn2gnn_jax.training.task import Task

STAGES = ("teacher", "logits", "student", "evaluate", "report")


def run(config: ConfigDict, workdir: pathlib.Path | None = None, stage: str = STAGES[-1]) -> dict[str, Any] | None:
    """Runs the chain up to `stage`, and skips stages that are done.

    Args:
      config: the config, as a config file returns it.
      workdir: the folder of the run; None for `runs/<config.name>-<fingerprint>`.
      stage: the last stage, one of STAGES.

    Returns:
      The results, as in `results.json`; None if the chain ends before the evaluation, and in all processes but the
      first.

    Raises:
      UserError: the config is invalid, data is missing or damaged, or the workdir is in use or has another config.
    """
    if stage not in STAGES:
        raise UserError(f"stage {stage!r} is unknown: choose one of {', '.join(STAGES)}")
    current_run = runs.begin(config, workdir)
    with processes.first_holds(storage.lock(current_run.workdir / ".lock", wait=False)):
        processes.on_first(lambda: storage.remove_remains(current_run.workdir))
        processes.on_first(lambda: runs.record(current_run))
        counts = f"{len(current_run.dataset.train)} training and {len(current_run.dataset.test)} test images"
        log(f"{current_run.dataset.name}: {counts}; workdir {current_run.workdir}")
        return _run_stages(current_run, STAGES.index(stage))


def _run_stages(run: Run, last: int) -> dict[str, Any] | None:
    """Runs the stages up to the position `last` in STAGES; see `run`."""
    load_teacher = outputs = None
    if configs.needs_teacher(run.config) and run.config.teacher.logits_file:
        outputs = teachers.outputs_from_file(run)
    elif configs.needs_teacher(run.config):
        with processes.first_holds(storage.lock(run.teacher_folder / ".lock", wait=True)):
            processes.on_first(lambda: storage.remove_remains(run.teacher_folder))
            load_teacher = train_teacher(run)
            if last >= STAGES.index("logits"):
                outputs = teachers.computed_outputs(run, load_teacher)
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
    evaluations = [scoring.evaluate_student(run, task, load, inputs, teacher_logits) for task, load in students]
    results: dict[str, Any] = {}

    def write_results() -> None:
        predicted = np.concatenate([evaluation["predicted"] for evaluation in evaluations])
        results.update(_results(run, students[0][0], outputs, evaluations))
        results["predictions"] = storage.fingerprint(results["accuracies"])
        arrays = {"predicted": predicted, "labels": run.evaluated.labels.astype(predicted.dtype)}
        artifact.write(run.workdir / summary.PREDICTIONS, summary.KIND, results["predictions"], {}, arrays)
        storage.write_json(run.workdir / "results.json", results)
        if last >= STAGES.index("report"):
            report.write(run.workdir, results, run.dataset, run.evaluated, predicted)

    processes.on_first(write_results)
    return results or None


def train_teacher(run: Run) -> Load:
    """Trains the teacher, unless it is in the cache, and returns a function that reads its trained state."""
    folder = run.teacher_folder
    task = tasks.teacher_task(run.config, run.dataset)
    job = Job(task, f"teacher {run.config.teacher.network}", folder / "checkpoints", folder.name)
    [load] = _fit(run, [job], folder / "metrics.jsonl", teachers.images_by_split(run))
    return load


def train_students(
    run: Run, graph: str, load_teacher: Load | None, outputs: TeacherOutputs | None
) -> list[tuple[Task, Load]]:
    """Trains the students of all seeds with one graph setting, unless they are in the workdir.

    Students without convolutions train side by side. Others train one after another, which is faster for convolutions
    with different weights for each student.

    Args:
      run: the run.
      graph: the graph setting, one of `config.graph_settings`.
      load_teacher: reads the trained state of the teacher; None without a teacher.
      outputs: the teacher's outputs, or None.

    Returns:
      For each seed the task, and a function that reads the student's trained state.
    """
    student_tasks = tasks.student_tasks(run.config, run.dataset, graph)
    jobs = [
        Job(task, name, run.workdir / "checkpoints" / name, f"{run.fingerprint}/{name}")
        for task, name in ((task, tasks.student_name(task)) for task in student_tasks)
    ]
    inputs, teacher_arrays = teachers.student_inputs(run, outputs), {}
    if fields := tasks.stored_outputs(run.config, run.dataset):
        assert outputs is not None
        teacher_arrays = outputs.for_training(fields)
    teacher_in_step = load_teacher if student_tasks[0].teacher is not None else None
    groups = [jobs] if student_tasks[0].is_dense else [[job] for job in jobs]
    loads = [
        load
        for group in groups
        for load in _fit(run, group, run.workdir / "metrics.jsonl", inputs, teacher_arrays, teacher_in_step)
    ]
    return list(zip(student_tasks, loads, strict=True))


def _fit(
    run: Run,
    jobs: Sequence[Job],
    records: pathlib.Path,
    inputs: dict[str, np.ndarray],
    teacher_arrays: dict[str, np.ndarray] | None = None,
    load_teacher: Load | None = None,
) -> list[Load]:
    """Trains jobs on disk, see `fit.fit_on_disk`.

    Args:
      run: the run.
      jobs: the jobs.
      records: the JSON lines file for metrics.
      inputs: raw inputs by split, (N, ...) each.
      teacher_arrays: the teacher's stored outputs for the training images that the step reads, (N, ...) each.
      load_teacher: reads the trained state of the teacher that runs in the step; None without one.
    """

    def score(task: Task, state: TrainState) -> float:
        return scoring.held_out_accuracy(run, scoring.model_of(run, task, state, inputs["train"]), inputs["holdout"])

    tensorboard = run.workdir / "tensorboard" if run.config.tensorboard else None
    every_seconds, residency = run.config.checkpoint.every_seconds, run.config.data.residency
    return fit.fit_on_disk(
        jobs,
        lambda: {"input": inputs["train"], "label": run.dataset.train.labels, **(teacher_arrays or {})},
        score,
        fit.Setting(records, every_seconds, residency, tensorboard, run.devices),
        lambda: None if load_teacher is None else load_teacher().variables,
    )


def _results(
    run: Run, student: Task, outputs: TeacherOutputs | None, evaluations: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of `results.json`, without the fingerprint of the predictions."""
    inputs = teachers.student_inputs(run, outputs)["train"]
    records = [run.workdir / "metrics.jsonl"] + ([run.teacher_folder / "metrics.jsonl"] if outputs is not None else [])
    seconds = training_seconds(*records)
    seconds["evaluation"] = round(sum(evaluation["seconds"] for evaluation in evaluations), 3)
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
        "accuracies": [entry for evaluation in evaluations for entry in evaluation["accuracies"]],
        "inference_seconds": [seconds for evaluation in evaluations for seconds in evaluation["inference_seconds"]],
        "holdout_accuracies": [
            evaluation["holdout"] for evaluation in evaluations if evaluation["holdout"] is not None
        ],
        "training_set": [
            evaluation["training_set"] for evaluation in evaluations if evaluation["training_set"] is not None
        ],
        "examples": evaluations[0]["examples"],
        "seconds": seconds,
        "devices": run.devices.count,
        "versions": summary.versions(),
    }
