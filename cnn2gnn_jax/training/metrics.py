"""Metrics of training: JSON lines, TensorBoard events, and progress on the terminal."""

import functools
import itertools
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import Diverged, UserError
from cnn2gnn_jax.training.task import Task

_LINE_SECONDS = 10.0  # between progress lines where there is no terminal


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the records of a JSON lines file; an incomplete last line, from a killed process, is dropped.

    Raises:
      UserError: another line is not a JSON object, or has changed since it was written.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = storage.unsealed(json.loads(line.decode()))
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise UserError(f"{path}, line {number}, is damaged ({error}): delete that file and run again") from None
        records.append(record)
    return records


@functools.cache
def _compilations() -> list[float]:
    """A list to which the seconds of each compilation of this process are appended, from the first call on."""
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return durations


def training_seconds(*paths: pathlib.Path) -> dict[str, float]:
    """The seconds of training by stage, over all restarts; `compilation` is separate, and the sum over all stages."""
    seconds: dict[str, float] = {}
    compilation = 0.0
    for record in itertools.chain.from_iterable(map(read_records, paths)):
        compiling = record.get("compile_seconds", 0.0)
        compilation += compiling
        seconds[record["stage"]] = seconds.get(record["stage"], 0.0) + record["seconds"] - compiling
    return {stage: round(value, 3) for stage, value in {**seconds, "compilation": compilation}.items()}


def last_epoch_mean(path: pathlib.Path, stage: str, field: str) -> dict[str, float]:
    """Returns `{"<field>_in_training": mean}` over the steps of a stage's last recorded epoch; {} without a record."""
    records = [record for record in read_records(path) if record["stage"] == stage and field in record]
    if not records:
        return {}
    steps = np.diff([0, *(record["step"] for record in records)])  # a record is a mean over steps
    last = [k for k, record in enumerate(records) if record["epoch"] > records[-1]["epoch"] - 1]  # ends with an epoch
    return {f"{field}_in_training": float(np.average([records[k][field] for k in last], weights=steps[last]))}


def not_finite(stage: str, what: str, step: int, saved: int) -> Diverged:
    """The error for numbers that are not finite; `saved` is the step of the last checkpoint, 0 without one."""
    checkpoint = f"its last checkpoint, of step {saved}, is good" if saved else "it has no checkpoint yet"
    return Diverged(
        f"{stage}: {what} at step {step}; {checkpoint}: try a lower learning rate, a larger batch or compute_dtype "
        "float32, and look at the images and logits that are trained on"
    )


class Recorder:
    """Records the metrics of one training stage, or of several that run side by side; a context manager.

    Args:
      path: the JSON lines file, which other stages may share; None in a process that only checks the loss.
      stages: the names of the stages in the records.
      start: the number of steps already taken; later records of these stages, from a killed process, are dropped.
      task: the task at this stage.
      tensorboard: the folder for TensorBoard events, or None.
    """

    def __init__(
        self,
        path: pathlib.Path | None,
        stages: Sequence[str],
        start: int,
        task: Task,
        tensorboard: pathlib.Path | None = None,
    ) -> None:
        self._writes, self._path = path is not None, path or pathlib.Path(os.devnull)
        if path is not None:
            records = [r for r in read_records(path) if r.get("stage") not in stages or r.get("step", 0) <= start]
            storage.write_text(path, "".join(json.dumps(storage.sealed(record)) + "\n" for record in records))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._stages, self._task = stages, task
        self._title = stages[0] + (f" and {len(stages) - 1} beside it" if len(stages) > 1 else "")
        self._events, self._events_path = None, tensorboard or pathlib.Path(os.devnull)
        if tensorboard is not None and self._writes:
            tensorboard.mkdir(parents=True, exist_ok=True)
            # SummaryWriter is not used: on a full disk its thread dies, and closing it waits forever.
            self._events = EventsWriter(str(tensorboard / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
            self._events.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))
        self._step = start
        self._bar = tqdm.tqdm(
            total=task.total_steps,
            initial=start,
            desc=self._title,
            unit="step",
            file=sys.stderr,
            disable=not (self._writes and sys.stderr.isatty()),
        )
        self._clock = self._line_at = time.monotonic()
        self._compiled = sum(_compilations())

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        with storage.naming(self._path):
            self._file.close()
        if self._events is not None:
            with storage.naming(self._events_path):
                self._events.close()

    def chunk(self, first: int, metrics: Mapping[str, np.ndarray], saved: int = 0) -> None:
        """Records the means over the K steps that begin with step `first`; the stages share the time.

        Args:
          first: the first step.
          metrics: (K,) each, or (stages, K) for several stages.
          saved: the step of the last checkpoint, for the error message; 0 without one.

        Raises:
          UserError: the loss of a step is not finite.
        """
        metrics = {name: np.reshape(values, (len(self._stages), -1)) for name, values in metrics.items()}
        for stage, losses in zip(self._stages, metrics["loss"], strict=True):
            not_finite_at = np.flatnonzero(~np.isfinite(losses))
            if len(not_finite_at):
                k = int(not_finite_at[0])
                raise not_finite(stage, f"the loss became {losses[k]}", first + k, saved)
        steps = metrics["loss"].shape[1]
        now, compiled = time.monotonic(), sum(_compilations())
        seconds, compiling = now - self._clock, compiled - self._compiled
        self._clock, self._compiled, self._step = now, compiled, first + steps
        means = {name: values.astype(np.float64).mean(axis=1).tolist() for name, values in metrics.items()}
        for k, stage in enumerate(self._stages):
            own = {name: values[k] for name, values in means.items()}
            record = {
                "stage": stage,
                "step": self._step,
                "epoch": self._step / self._task.steps_per_epoch,
                **{name: value for name, value in own.items() if math.isfinite(value)},
                "seconds": round(seconds / len(self._stages), 4),
                "compile_seconds": round(compiling / len(self._stages), 4),  # part of `seconds`
            }
            self._file.write(json.dumps(storage.sealed(record)) + "\n")
            if self._events is not None:
                values = [Summary.Value(tag=f"{stage}/{name}", simple_value=value) for name, value in own.items()]
                event = Event(wall_time=time.time(), step=self._step, summary=Summary(value=values))
                with storage.naming(self._events_path):
                    self._events.write_event(event)
        with storage.naming(self._path):
            self._file.flush()
        self._show(steps, {name: float(np.mean(values)) for name, values in means.items()}, seconds, now)

    def _show(self, steps: int, means: Mapping[str, float], seconds: float, now: float) -> None:
        self._bar.update(steps)
        rate = steps * len(self._stages) * self._task.recipe.batch_size / max(seconds, 1e-9)
        text = f"loss {means['loss']:.3f}, accuracy {means['accuracy']:.1f}%, {rate:.0f} images/s"
        self._bar.set_postfix_str(text)
        done = self._step >= self._task.total_steps
        if self._bar.disable and (done or now - self._line_at >= _LINE_SECONDS):
            self._line_at = now
            seconds_left = (self._task.total_steps - self._step) * seconds / steps
            log(
                f"{self._title}: step {self._step}/{self._task.total_steps}, {text}"
                + ("" if done else f", {seconds_left:.0f} s left")
            )
