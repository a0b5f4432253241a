"""Timing that a busy machine disturbs little: what is compared takes turns, and ratios are of medians."""

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
    """One line of the table.

    what: what is compared with what, and the setting.
    ratio: of the first to the second.
    target: what the ratio should be, as text; empty without one.
    detail: the bare figures behind the ratio.
    """

    what: str
    ratio: float
    target: str
    detail: str


def take_turns(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each function over `rounds` turns, after one that compiles; its result is waited for."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def milliseconds(seconds: Mapping[str, float], per: int = 1) -> str:
    """Medians as text, each over `per` units."""
    return ", ".join(f"{name} {1000 * value / per:.3g} ms" for name, value in seconds.items())


def machine() -> str:
    """The machine and the versions, in words."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions().items())
    return f"{models[0] if models else platform.processor()}, {cores} cores; {versions}."
