"""Timing that is robust on a busy machine: compared functions run alternately, and ratios are those of medians."""

import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from cnn2gnn_jax.evaluation import summary


class Row(NamedTuple):
    """A row of the table.

    what: the two things that are compared, and the setting.
    ratio: the ratio of the first to the second.
    target: the ratio that is aimed at, as text; empty without one.
    detail: the measurements from which the ratio is computed.
    """

    what: str
    ratio: float
    target: str
    detail: str


def take_turns(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Runs functions alternately, and returns the median seconds of each over `rounds` turns.

    A first turn, which compiles, is not counted. The time includes waiting for the result.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def milliseconds(seconds: Mapping[str, float], per: int = 1) -> str:
    """Formats medians in milliseconds, each divided by `per`."""
    return ", ".join(f"{name} {1000 * value / per:.3g} ms" for name, value in seconds.items())


def machine() -> str:
    """A description of the machine, with versions."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions().items())
    return f"{models[0] if models else platform.processor()}, {cores} cores; {versions}."
