"""Tests with real errors of the machine: full disks, limits on the size of files, and folders that cannot be written.

    python -m tests.faults.machine --out=DIR [--steps=12] [--only KIND ...]

The faults are a small tmpfs (as root), RLIMIT_FSIZE, folders without write permission, and folders that are mounted
read-only (as root). Each run must end with code 74 or 2 and a one-line error, never by a signal or with a traceback. It
must leave every file under its final name intact. Once the fault is gone, the same command must end with the results of
a run without faults. The program appends a JSON line for each fault to DIR/machine.jsonl and prints a table.
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
NOBODY = 65534
METHOD = "cnn2gnn"
# Folders that lose their write permission, and the stage that must be complete before.
FOLDERS = {
    "cache": "",
    "cache/teachers": "cache",
    "cache/teachers/*": "teacher",
    "run": "logits",
    "run/checkpoints": "logits",
    "run/evaluations": "student",
    "run/report": "student",
}


def verdict(code: int, output: str) -> str:
    """What is wrong with the exit code and the printed output of a run; '' for nothing."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    if code not in (2, 74):
        return f"ended with code {code}: {output[-300:]}"
    if len(lines) != 1 or "Traceback" in output:
        return f"no clear line: {output[-600:]}"
    return ""


def attempt(out: pathlib.Path, prepare: Callable[[], None], whole: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Runs under a fault. Returns the record of the fault, and whether the run succeeded in spite of it."""
    log = out.with_suffix(".log")
    log.write_text("")
    try:
        code = runs.wait(runs.start(runs.command(out, METHOD), log, prepare))
    except TimeoutError as error:
        return {"wrong": str(error)}, False
    output = log.read_text()
    if code == 0:
        wrong = "" if runs.outcome(out / "run") == whole["results"] else "other results"
        return {"wrong": wrong, "said": ""}, True
    record = {
        "wrong": verdict(code, output) or "; ".join(crash.broken_files(out)),
        "said": next((line for line in output.splitlines() if line.startswith("error: ")), "").replace(str(out), "DIR"),
        "stage": crash.stage(out, METHOD),
    }
    return record, False


def mended(out: pathlib.Path, prepare: Callable[[], None], whole: dict[str, Any]) -> str:
    """Runs the same command without the fault. Returns what is wrong then; '' for nothing."""
    record, ended = attempt(out, prepare, whole)
    left = [str(path) for path in out.rglob("*") if crash.unfinished(path.relative_to(out))]
    if not ended:
        return f"does not go on: {record['wrong'] or record['said']}"
    return record["wrong"] or (f"left {left[0]}" if left else "")


@contextlib.contextmanager
def disk(out: pathlib.Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mounts a disk of `size` bytes at `out`, and yields a function that changes its size."""
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(out)], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(out)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def as_nobody() -> None:
    """Becomes another user, since root can write everywhere."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def disk_full(out: pathlib.Path, whole: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Tries disks of growing size, so that the run fails at one write after the other."""
    for k in range(steps):
        size = int(whole["bytes"] * (k + 1) / (steps + 1)) // 4096 * 4096
        with disk(out / f"disk-{k}", size) as resize:
            record, ended = attempt(out / f"disk-{k}", lambda: None, whole)
            if not ended:
                resize(1 << 30)
                record["wrong"] = record["wrong"] or mended(out / f"disk-{k}", lambda: None, whole)
            yield {"fault": f"a disk of {size:,} bytes", **record}


def file_size(out: pathlib.Path, whole: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Tries limits on the size of files, from one below all files to one below the largest."""
    sizes = sorted(set(whole["sizes"]))
    for k in range(steps):
        size = max(sizes[k * (len(sizes) - 1) // steps] - 1, 1)
        folder = out / f"size-{k}"
        folder.mkdir(parents=True)

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        record, ended = attempt(folder, limit, whole)
        if not ended:
            record["wrong"] = record["wrong"] or mended(folder, lambda: None, whole)
        yield {"fault": f"files of {size:,} bytes", **record}
        shutil.rmtree(folder)


def no_permission(out: pathlib.Path, whole: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Removes the write permission of each of FOLDERS."""
    for k, (pattern, stages) in enumerate(list(FOLDERS.items())[:steps]):
        folder = out / f"right-{k}"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        if stages:
            # The files of the stages before the fault.
            shutil.copytree(out / "whole" / stages, folder, dirs_exist_ok=True)
        (folder / pattern.partition("*")[0]).mkdir(parents=True, exist_ok=True)
        taken = list(folder.glob(pattern))
        if os.getuid() == 0:
            for path in folder.rglob("*"):
                os.chown(path, NOBODY, NOBODY)
        for path in taken:
            path.chmod(0o555)
        record, ended = attempt(folder, as_nobody, whole)
        for path in taken:
            path.chmod(0o755)
        record["wrong"] = record["wrong"] or ("was not refused" if ended else mended(folder, as_nobody, whole))
        yield {"fault": f"no right to write {pattern}", **record}
        shutil.rmtree(folder)


def read_only(out: pathlib.Path, whole: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
    """Tries read-only disks, empty and with the files of each stage."""
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
                record, ended = attempt(folder, lambda: None, whole)
            finally:
                for place in ("cache", "run"):
                    subprocess.run(["umount", str(folder / place)], check=True)
            record["wrong"] = record["wrong"] or ("was not refused" if ended else mended(folder, lambda: None, whole))
            yield {"fault": f"a read-only disk with {stages or 'nothing'} on it", **record}


FAULTS = dict(zip(KINDS, (disk_full, file_size, no_permission, read_only), strict=True))
NEEDS_ROOT = ("disk full", "read-only")


def unbroken(out: pathlib.Path) -> dict[str, Any]:
    """The results of a run without faults, its size on disk, and the sizes of its files.

    A copy of its folders after each stage is kept under `out`.
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
    # Each file takes whole pages of a disk.
    size_on_disk = sum(-(-size // 4096) * 4096 for size in sizes)
    return {"results": runs.outcome(place / "run"), "sizes": sizes, "bytes": size_on_disk}


def main() -> None:
    """Reads the command line and runs the tests."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.machine", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=12, help="the most faults of each kind")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    out = args.out.absolute()
    runs.prepare(out)
    whole = unbroken(out)
    counts: dict[str, collections.Counter[str]] = {}
    failed = []
    for kind in args.only:
        if kind in NEEDS_ROOT and os.getuid():
            print(f"{kind}: skipped, since it needs root")
            continue
        counts[kind] = collections.Counter()
        for record in FAULTS[kind](out, whole, args.steps):
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
