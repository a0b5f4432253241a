"""Tests of the benchmarks: the order in which functions are timed, the compared loops, and the page of results."""

import subprocess
import sys

import numpy as np

from benchmarks import __main__ as program
from benchmarks import loop, timing
from benchmarks.timing import Row


def test_functions_run_alternately_and_the_first_turn_is_not_counted(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def takes(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds.pop(0)

        return run

    actual = timing.take_turns({"a": takes("a", [100, 1, 9, 2]), "b": takes("b", [50, 3, 5, 4])}, rounds=3)
    assert order == ["a", "b"] * 4
    assert actual == {"a": 2, "b": 4}


def test_a_page_holds_command_machine_and_ratios():
    text = "\n".join(program.table([Row("this : that", 1.234, "at most 2", "5 ms, 4 ms")], ["loop"]))
    assert "`python -m benchmarks loop`" in text
    assert "| this : that | 1.23 | at most 2 | 5 ms, 4 ms |" in text
    assert "jax" in text


def test_a_plain_loop_takes_the_steps_of_a_chunk():
    """Tests that both loops in the comparison do the same work: their last losses are equal."""
    losses = [float(np.ravel(make(5_000, 4)())[-1]) for make in (loop.chunked, lambda *a: loop.looped(*a, donate=True))]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_an_unknown_benchmark_is_refused_by_name():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no benchmark is called nope" in done.stderr
