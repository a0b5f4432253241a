"""Starts runs of the tiny pipeline in forked processes, which need not import JAX again."""

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
# The only results that may differ in a resumed run.
_TIMES = ("seconds", "inference_seconds")
_WRITERS: dict[int, subprocess.Popen] = {}  # of the output of each process


def prepare(out: pathlib.Path) -> None:
    """Prepares this process to start runs on one CPU. Compiled programs are kept in JAX's cache folder, or in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(out.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    digits.load()
    font_manager.findfont("sans")


def command(out: pathlib.Path, method: str, *flags: str) -> list[str]:
    """The flags of a run under `out`, which holds its cache and its workdir; `method` may be `sweep`."""
    if method == "sweep":
        sweep_file = f"--sweep={CONFIG.with_name('tiny_sweep.py')}"
        return [sweep_file, f"--out={out / 'run'}", f"--config.cache_dir={out / 'cache'}", *flags]
    return [f"--config={CONFIG}:{method}", f"--workdir={out / 'run'}", f"--config.cache_dir={out / 'cache'}", *flags]


def start(flags: Sequence[str], log: pathlib.Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Starts `python -m cnn2gnn_jax.main` or `.sweep` with these flags in a new process, and returns its id.

    The process calls `prepare` first. Its output is appended to `log` through a pipe, to which limits on the size of
    files do not apply.
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
    """Waits for a process and returns its exit code, negative for a signal. A process that takes too long is killed."""
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
    """The results of a finished run or sweep, without times."""
    if not (workdir / "results.jsonl").exists():
        return without_times(storage.read_json(workdir / "results.json"))
    cells = map(json.loads, (workdir / "results.jsonl").read_text().splitlines())
    return {cell["cell"]: without_times(cell) for cell in cells}


def without_times(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a run, or the record of a cell of a sweep, without times."""
    plain = {name: value for name, value in results.items() if name not in _TIMES}
    return plain | {"accuracies": [{**entry, "seconds": None} for entry in results["accuracies"]]}
