"""Starts runs of the tiny pipeline in forked processes, which do not have to import JAX again."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from matplotlib import font_manager

from cnn2gnn_jax import main, sweep
from cnn2gnn_jax.data import digits
from cnn2gnn_jax.runtime import command_line, storage

CONFIG = pathlib.Path(__file__).with_name("tiny.py")
# The entries of the results that may differ in a resumed run.
_TIMES = ("seconds", "inference_seconds")
# For each started process: the process that writes its output to the log.
_WRITERS: dict[int, subprocess.Popen] = {}


def prepare(out: pathlib.Path) -> None:
    """Prepares this process to start runs on the CPU.

    Compiled programs are cached in `out`, unless JAX has a compilation cache already. Data and fonts are loaded here,
    so that the forked processes do not load them again.
    """
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(out.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    digits.load()
    font_manager.findfont("sans")


def command(out: pathlib.Path, method: str, *flags: str) -> list[str]:
    """The flags of a run, or of a sweep if `method` is `sweep`. Its cache and its workdir are in `out`."""
    if method == "sweep":
        sweep_file = f"--sweep={CONFIG.with_name('tiny_sweep.py')}"
        return [sweep_file, f"--out={out / 'run'}", f"--config.cache_dir={out / 'cache'}", *flags]
    return [f"--config={CONFIG}:{method}", f"--workdir={out / 'run'}", f"--config.cache_dir={out / 'cache'}", *flags]


def start(flags: Sequence[str], log: pathlib.Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Starts `python -m cnn2gnn_jax.main`, or `cnn2gnn_jax.sweep`, in a new process and returns its id.

    Args:
      flags: the command-line flags.
      log: the file to which the output is appended. The output goes through a pipe to another process that writes the
        file, so that limits and permissions of the run do not affect it.
      prepare: a function that the new process calls first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "ab") as file:
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, start_new_session=True)
    assert writer.stdin is not None
    process = os.fork()
    if process:
        writer.stdin.close()
        _WRITERS[process] = writer
        return process
    code = 1
    try:
        os.dup2(writer.stdin.fileno(), 1)
        os.dup2(writer.stdin.fileno(), 2)
        os.close(writer.stdin.fileno())
        prepare()
        sys.argv = ["cnn2gnn_jax", *flags]
        if flags[0].startswith("--sweep"):
            command_line.run(sweep.main)
        else:
            main.run()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, seconds: float = 900) -> int:
    """Waits for a started process and returns its exit code, which is negative for a signal.

    Raises:
      TimeoutError: the process took longer than `seconds`. It is killed.
    """
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            _WRITERS.pop(process).wait()
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            _WRITERS.pop(process).wait()
            raise TimeoutError(f"a run hung for {seconds:.0f} seconds")
        time.sleep(0.005)


def outcome(workdir: pathlib.Path) -> dict:
    """The results of a finished run, or the records of a finished sweep by cell, without times."""
    if not (workdir / "results.jsonl").exists():
        return without_times(storage.read_json(workdir / "results.json"))
    cells = map(json.loads, (workdir / "results.jsonl").read_text().splitlines())
    return {cell["cell"]: without_times(cell) for cell in cells}


def without_times(results: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the times from the results of a run or from a record of a sweep."""
    plain = {name: value for name, value in results.items() if name not in _TIMES}
    return plain | {"accuracies": [{**entry, "seconds": None} for entry in results["accuracies"]]}
