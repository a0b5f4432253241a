"""Records of a run: JSON lines, TensorBoard events, and progress on the terminal."""

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
import tqdm

from cnn2gnn_jax import storage
from cnn2gnn_jax.errors import UserError

_LINE_SECONDS = 10.0  # between progress lines where there is no terminal


def say(text: str) -> None:
    """Prints a line of progress."""
    tqdm.tqdm.write(text, file=sys.stderr)


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a JSON lines file; a last line that a killed process left unfinished is dropped.

    Raises:
      UserError: another line is no JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(f"{path}, line {number}, is damaged ({error}): delete that file and run again") from None
        records.append(record)
    return records


def training_seconds(path: pathlib.Path) -> dict[str, float]:
    """Seconds of training by stage from the records, over all restarts, compilation included."""
    seconds: dict[str, float] = {}
    for record in read_records(path):
        seconds[record["stage"]] = seconds.get(record["stage"], 0.0) + record["seconds"]
    return {stage: round(value, 3) for stage, value in seconds.items()}


class Recorder:
    """Writes the metrics of one training stage; a context manager.

    Args:
      path: the JSON lines file, which several stages may share.
      stage: its name in the records.
      start: the steps already taken; later records of the stage, left by a killed process, are dropped.
      total: the steps of the stage.
      steps_per_epoch: to tell the epoch.
      batch_size: to tell images a second.
      tensorboard: a folder for TensorBoard events, None for none.
    """

    def __init__(
        self,
        path: pathlib.Path,
        stage: str,
        start: int,
        total: int,
        steps_per_epoch: int,
        batch_size: int,
        tensorboard: pathlib.Path | None = None,
    ) -> None:
        kept = [r for r in read_records(path) if r.get("stage") != stage or r.get("step", 0) <= start]
        storage.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._path, self._stage, self._steps_per_epoch, self._batch_size = path, stage, steps_per_epoch, batch_size
        self._events = None
        if tensorboard is not None:
            self._events = tensorboardX.SummaryWriter(str(tensorboard), purge_step=start + 1)
        self._total, self._step = total, start
        self._bar = tqdm.tqdm(
            total=total, initial=start, desc=stage, unit="step", file=sys.stderr, disable=not sys.stderr.isatty()
        )
        self._clock = self._line_at = time.monotonic()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()
        if self._events is not None:
            self._events.close()

    def chunk(self, first: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Records the means over the K steps that began with step `first`; metrics are (K,) each.

        Raises:
          UserError: the loss of a step is not finite.
        """
        steps = len(metrics["loss"])
        broken = np.flatnonzero(~np.isfinite(metrics["loss"]))
        if len(broken):
            raise UserError(
                f"{self._stage}: the loss became {metrics['loss'][broken[0]]} at step {first + int(broken[0])}: "
                "try a lower learning rate, or delete this stage's checkpoints to start again"
            )
        now = time.monotonic()
        seconds, self._clock, self._step = now - self._clock, now, first + steps
        means = {name: float(np.mean(np.asarray(values, np.float64))) for name, values in metrics.items()}
        record = {
            "stage": self._stage,
            "step": self._step,
            "epoch": self._step / self._steps_per_epoch,
            **{name: value for name, value in means.items() if math.isfinite(value)},
            "seconds": round(seconds, 4),
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in means.items():
                self._events.add_scalar(f"{self._stage}/{name}", value, self._step)
        self._show(steps, means, seconds, now)

    def _show(self, steps: int, means: Mapping[str, float], seconds: float, now: float) -> None:
        self._bar.update(steps)
        rate = steps * self._batch_size / max(seconds, 1e-9)
        text = f"loss {means['loss']:.3f}, accuracy {means['accuracy']:.1f}%, {rate:.0f} images/s"
        self._bar.set_postfix_str(text)
        done = self._step >= self._total
        if self._bar.disable and (done or now - self._line_at >= _LINE_SECONDS):
            self._line_at = now
            left = (self._total - self._step) * seconds / steps
            say(f"{self._stage}: step {self._step}/{self._total}, {text}" + ("" if done else f", {left:.0f} s left"))
