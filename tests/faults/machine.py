"""Runs under faults of the machine: a full disk, a limit on the size of files, and folders that cannot be written.

    python -m tests.faults.machine --out=DIR [--steps=12] [--only KIND ...]

The faults are real: a small tmpfs (needs root), RLIMIT_FSIZE, folders that another user may not write to, and a folder
that is mounted read-only (needs root). A run must end with exit code 74 or 2 and a one-line error, never by a signal or
with a traceback. Every file with its final name must be intact. Once the fault is gone, the same command must finish
the run with the results of a run without faults. The command appends a JSON line for each fault to DIR/machine.jsonl
and prints a table.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults import crash, runs

KINDS = ("disk full", "file size", "no permission", "read-only")
NOBODY = 65534  # the id of a user and a group without rights
METHOD = "cnn2gnn"
PAGE = 4096  # bytes
# Folders that are made read-only for the user, each with the stage that must be complete before.
FOLDERS = {
    "cache": "",
    "cache/teachers": "cache",
    "cache/teachers/*": "teacher",
    "run": "logits",
    "run/checkpoints": "logits",
    "run/evaluations": "student",
    "run/report": "student",
}


def error_lines(output: str) -> list[str]:
    """The lines of a run's output that report an error."""
    return [line for line in output.splitlines() if line.startswith("error: ")]


def wrong_ending(code: int, output: str) -> str:
    """What is wrong with the exit code and the output of a run under a fault; '' if nothing is."""
    if code not in (2, 74):
        return f"exit code {code}, expected 2 or 74: {output[-300:]}"
    if len(error_lines(output)) != 1 or "Traceback" in output:
        return f"expected a one-line error: {output[-600:]}"
    return ""


def attempt(out: pathlib.Path, prepare: Callable[[], None], expected: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Runs under a fault. Returns a record of the fault, and whether the run finished in spite of it.

    The keys of the record: `wrong` is what is wrong, or ''; `said` is the error line; `stage` is the unfinished stage.
    """
    log = out.with_suffix(".log")
    log.write_text("")
    try:
        code = runs.wait(runs.start(runs.command(out, METHOD), log, prepare))
    except TimeoutError as error:
        return {"wrong": str(error)}, False
    output = log.read_text()
    if code == 0:
        wrong = "" if runs.outcome(out / "run") == expected["results"] else "the results differ"
        return {"wrong": wrong, "said": ""}, True
    record = {
        "wrong": wrong_ending(code, output) or "; ".join(crash.broken_files(out)),
        "said": next(iter(error_lines(output)), "").replace(str(out), "DIR"),
        "stage": crash.stage(out, METHOD),
    }
    return record, False


def continued(out: pathlib.Path, prepare: Callable[[], None], expected: dict[str, Any]) -> str:
    """Runs the same command again without the fault, and returns what is wrong; '' if nothing is."""
    record, finished = attempt(out, prepare, expected)
    if not finished:
        return f"the run does not continue: {record['wrong'] or record['said']}"
    left = crash.unfinished_files(out)
    return record["wrong"] or (f"{left[0]} was left behind" if left else "")


@contextlib.contextmanager
def disk(out: pathlib.Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mounts a disk of `size` bytes at `out`. Yields a function that changes its size."""
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(out)], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(out)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def as_nobody() -> None:
    """Changes the user from root, who may write everywhere, to one who may not."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def check_python_of_nobody() -> None:
    """Ends the campaign if a user without rights cannot import the package, which the forked runs do in part."""
    imports = [sys.executable, "-c", "import cnn2gnn_jax.main"]
    try:
        subprocess.run(imports, preexec_fn=as_nobody, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: the user {NOBODY} cannot run {sys.executable} ({error}): use one that every user can read")


def disk_full(out: pathlib.Path, expected: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Yields records of runs on disks of increasing size, which fail at later and later writes."""
    for k in range(steps):
        size = int(expected["bytes"] * (k + 1) / (steps + 1)) // PAGE * PAGE
        with disk(out / f"disk-{k}", size) as resize:
            record, finished = attempt(out / f"disk-{k}", lambda: None, expected)
            if not finished:
                resize(1 << 30)
                record["wrong"] = record["wrong"] or continued(out / f"disk-{k}", lambda: None, expected)
            yield {"fault": f"a disk of {size:,} bytes", **record}


def file_size(out: pathlib.Path, expected: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Yields records of runs with increasing limits on file size, from below the smallest to below the largest file."""
    sizes = sorted(set(expected["sizes"]))
    for k in range(steps):
        size = max(sizes[k * (len(sizes) - 1) // steps] - 1, 1)
        folder = out / f"size-{k}"
        folder.mkdir(parents=True)

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        record, finished = attempt(folder, limit, expected)
        if not finished:
            record["wrong"] = record["wrong"] or continued(folder, lambda: None, expected)
        yield {"fault": f"files of {size:,} bytes", **record}
        shutil.rmtree(folder)


def no_permission(out: pathlib.Path, expected: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Yields records of runs with folders that they may not write to."""
    check_python_of_nobody()
    for k, (pattern, stages) in enumerate(list(FOLDERS.items())[:steps]):
        folder = out / f"right-{k}"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        if stages:
            # The run continues from the stages before the fault.
            shutil.copytree(out / "whole" / stages, folder, dirs_exist_ok=True)
        (folder / pattern.partition("*")[0]).mkdir(parents=True, exist_ok=True)
        read_only_folders = list(folder.glob(pattern))
        if os.getuid() == 0:
            for path in folder.rglob("*"):
                os.chown(path, NOBODY, NOBODY)
        for path in read_only_folders:
            path.chmod(0o555)
        record, finished = attempt(folder, as_nobody, expected)
        for path in read_only_folders:
            path.chmod(0o755)
        record["wrong"] = record["wrong"] or (
            "no error was reported" if finished else continued(folder, as_nobody, expected)
        )
        yield {"fault": f"no permission to write {pattern}", **record}
        shutil.rmtree(folder)


def read_only(out: pathlib.Path, expected: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Yields records of runs on a read-only disk: an empty one, and one with the files up to each stage."""
    for k, stages in enumerate(["", "cache", "teacher", "logits", "student"][:steps]):
        folder = out / f"read-only-{k}"
        with disk(folder, 1 << 30):
            if stages:
                shutil.copytree(out / "whole" / stages, folder, dirs_exist_ok=True)
            for place in ("cache", "run"):
                (folder / place).mkdir(exist_ok=True)
                subprocess.run(["mount", "--bind", str(folder / place), str(folder / place)], check=True)
                subprocess.run(["mount", "-o", "remount,bind,ro", str(folder / place)], check=True)
            try:
                record, finished = attempt(folder, lambda: None, expected)
            finally:
                for place in ("cache", "run"):
                    subprocess.run(["umount", str(folder / place)], check=True)
            record["wrong"] = record["wrong"] or (
                "no error was reported" if finished else continued(folder, lambda: None, expected)
            )
            yield {"fault": f"a read-only disk with {stages or 'nothing'} on it", **record}


FAULTS = dict(zip(KINDS, (disk_full, file_size, no_permission, read_only), strict=True))
NEEDS_ROOT = ("disk full", "read-only")


def without_faults(out: pathlib.Path) -> dict[str, Any]:
    """The results of a run without faults, its bytes on the disk, and the sizes of its files.

    Copies of its folders after each stage are kept under `out`.
    """
    place = out / "whole" / "run"
    place.mkdir(parents=True)
    for stages in ("cache", "teacher", "logits", "student", "report"):
        flag = "teacher" if stages == "cache" else stages
        code = runs.wait(runs.start(runs.command(place, METHOD, f"--stage={flag}"), place / "log.txt"))
        assert code == 0, (place / "log.txt").read_text()
        shutil.copytree(place, out / "whole" / stages)
        if stages == "cache":
            shutil.rmtree(out / "whole" / stages / "cache" / "teachers")
    sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
    # On a disk, each file takes whole pages.
    size_on_disk = sum(-(-size // PAGE) * PAGE for size in sizes)
    return {"results": runs.outcome(place / "run"), "sizes": sizes, "bytes": size_on_disk}


def main() -> None:
    """Parses the command line and runs under each fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.machine", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the runs and of machine.jsonl")
    parser.add_argument("--steps", type=int, default=12, help="the largest number of faults of each kind")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    out = args.out.absolute()
    runs.prepare(out)
    expected = without_faults(out)
    counts: dict[str, collections.Counter[str]] = {}
    failed = []
    for kind in args.only:
        if kind in NEEDS_ROOT and os.getuid():
            print(f"{kind}: skipped, since it needs root")
            continue
        counts[kind] = collections.Counter()
        for record in FAULTS[kind](out, expected, args.steps):
            outcome = "wrong" if record["wrong"] else "refused in one line" if record["said"] else "did not matter"
            counts[kind][outcome] += 1
            with open(out / "machine.jsonl", "a") as file:
                file.write(json.dumps({"kind": kind, **record}) + "\n")
            if record["wrong"]:
                failed.append(f"{kind}, {record['fault']}: {record['wrong']}")
    outcomes = ("refused in one line", "did not matter", "wrong")
    print(f"{'fault':14}" + "".join(f"{outcome:>21}" for outcome in outcomes))
    for kind, count in counts.items():
        print(f"{kind:14}" + "".join(f"{count[outcome]:21}" for outcome in outcomes))
    print("\n".join(failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
