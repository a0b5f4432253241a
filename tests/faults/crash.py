"""Kills runs by SIGKILL at random moments of every stage, and starts them again until they finish.

    python -m tests.faults.crash --out=DIR [--kills=100] [--seed=0]

After each kill, every file with its final name must be intact. Each run is also stopped once by SIGTERM, which does not
count as a kill. The finished run must have exactly the results and weights of an uninterrupted run. It must leave no
unfinished files behind, and it must not rewrite files that were complete at a kill.
The command appends a JSON line for each kill to DIR/kills.jsonl and prints a table. The exit code is 1 if a run did not
survive a kill.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from typing import Any

import numpy as np
from PIL import Image

from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.training.metrics import read_records
from tests.faults import runs

# For each stage: which files or folders exist once it is complete, and how many of them. Each command writes the
# results and the report again, so they are not listed.
COMPLETED = {
    "cache": ("cache/datasets/*/manifest.json", 1),
    "teacher": ("cache/teachers/*/checkpoints/train/last/step_8", 1),
    "logits": ("cache/teachers/*/teacher_logits/manifest.json", 1),
    "pretraining": ("run/checkpoints/*/pretrain/last/step_4", 1),
    "student": ("run/checkpoints/*/train/last/step_8", 1),
    "evaluation": ("run/evaluations/*/manifest.json", 1),
    "sweep's 1st": ("run/records/*.json", 1),
    "sweep's 2nd": ("run/records/*.json", 2),
}
LAST = "report"
STOPPED_BY_SIGTERM = 75  # the exit code
# The stages of each method, and of a sweep. The report follows them.
METHODS = {
    "cnn2gnn": ["cache", "teacher", "logits", "student", "evaluation"],
    "ab": ["cache", "teacher", "logits", "pretraining", "student", "evaluation"],
    "training_set": ["cache", "teacher", "logits", "student", "evaluation"],
    "sweep": ["cache", "teacher", "logits", "sweep's 1st", "sweep's 2nd"],
}


def stage(out: pathlib.Path, method: str) -> str:
    """The first stage that is not complete."""
    return next(
        (name for name in METHODS[method] if len(list(out.glob(COMPLETED[name][0]))) < COMPLETED[name][1]), LAST
    )


def complete(out: pathlib.Path, method: str) -> dict[str, tuple[int, ...]]:
    """The files of all complete stages, each with its inode, size and time, which change if it is written again."""
    files = {}
    for name in METHODS[method][: [*METHODS[method], LAST].index(stage(out, method))]:
        for path in out.glob(COMPLETED[name][0]):
            folder = path.parent if path.suffix == ".json" else path
            for file in folder.rglob("*"):
                if file.is_file():
                    status = file.stat()
                    files[str(file)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return files


def broken_files(out: pathlib.Path) -> list[str]:
    """The files with their final names that are damaged, each with the error."""
    broken = []
    for path in sorted(out.rglob("*")):
        if not path.is_file() or unfinished(path.relative_to(out)):
            continue
        try:
            if path.name == artifact.MANIFEST:
                manifest = storage.read_json(path)
                artifact.read(path.parent, artifact.Kind(manifest["kind"], manifest["format"], ""))
            elif path.suffix == ".json":
                storage.read_json(path)
            elif path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    _ = {name: arrays[name] for name in arrays}
            elif path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
            elif path.name == "metrics.jsonl":
                lines = path.read_text().split("\n")
                _ = [json.loads(line) for line in lines[:-1]]  # the last line may be truncated; readers skip it then
        except Exception as error:
            broken.append(f"{path.relative_to(out)}: {error}")
    return broken


def unfinished(path: pathlib.Path) -> bool:
    """Whether the name of a file or folder marks it as incomplete."""
    return any(part.endswith(".partial") or "checkpoint-tmp" in part for part in path.parts)


def unfinished_files(out: pathlib.Path) -> list[pathlib.Path]:
    """The files and folders under `out` that are marked as incomplete."""
    return [path for path in out.rglob("*") if unfinished(path.relative_to(out))]


def weights(out: pathlib.Path, log: pathlib.Path) -> str:
    """A hash of all trained weights. It is computed in a separate process, since it starts JAX."""
    target = out / "weights.txt"

    def restore() -> None:
        import jax

        from cnn2gnn_jax.training.checkpoint import Checkpoints

        digest = hashlib.sha256()
        for folder in sorted(out.glob("cache/**/last") if (out / "run" / "cells").exists() else out.glob("*/**/last")):
            owner = storage.read_json(next(folder.glob("step_*/manifest.json")))["fingerprint"]
            with Checkpoints(folder, owner) as checkpoints:
                tree = checkpoints.restore_as_saved()
            digest.update(f"{folder.relative_to(out).parts[-3:]} {checkpoints.newest()}".encode())
            for leaf in jax.tree.leaves(tree):
                digest.update(np.ascontiguousarray(leaf).tobytes())
        target.write_text(digest.hexdigest())
        os._exit(0)

    assert runs.wait(runs.start([], log, restore)) == 0, log.read_text()
    return target.read_text()


def uninterrupted(out: pathlib.Path, method: str) -> dict[str, Any]:
    """The results of an uninterrupted run, the hash of its weights, and the seconds of each stage."""
    out.mkdir(parents=True)
    seconds: dict[str, float] = collections.defaultdict(float)
    runs.wait(runs.start(runs.command(out, method), out / "log.txt"))  # fills the compilation cache
    for folder in ("cache", "run"):
        shutil.rmtree(out / folder)
    process = runs.start(runs.command(out, method), out / "log.txt")
    last = time.monotonic()
    while not _ended(process):
        now = time.monotonic()
        seconds[stage(out, method)] += now - last
        last = now
        time.sleep(0.002)
    assert runs.wait(process) == 0, (out / "log.txt").read_text()
    return {
        "results": runs.outcome(out / "run"),
        "weights": weights(out, out / "log.txt"),
        "seconds": dict(seconds),
    }


def interrupted(out: pathlib.Path, method: str, expected: dict[str, Any], rng: random.Random, kills: int) -> list[dict]:
    """Kills a run up to once in each stage, and returns a record of each kill with the errors that it caused."""
    out.mkdir(parents=True)
    log, records, complete_at_kills = out / "log.txt", [], {}
    stages = [*METHODS[method], LAST]
    killed_stages = rng.sample(stages, min(kills, len(stages)))
    signals = [(stages[3], signal.SIGTERM), *((name, signal.SIGKILL) for name in killed_stages)]
    for target, number in sorted(signals, key=lambda item: stages.index(item[0])):
        if stages.index(stage(out, method)) > stages.index(target):
            continue  # the last process already completed this stage
        process = runs.start(runs.command(out, method), log)
        delay = rng.uniform(0, expected["seconds"][target])
        while stage(out, method) != target and not _ended(process):
            time.sleep(0.002)
        until = time.monotonic() + delay
        while time.monotonic() < until and not _ended(process):
            time.sleep(0.002)
        if not _ended(process):
            os.kill(process, number)
        code = runs.wait(process)
        if code != -signal.SIGKILL:
            if code not in (0, -signal.SIGTERM, STOPPED_BY_SIGTERM):
                raise SystemExit(f"a run ended with code {code}:\n{log.read_text()}")
            continue  # the run ended, or was stopped by SIGTERM, before a kill
        record = {"method": method, "stage": stage(out, method), "after_seconds": round(delay, 3)}
        records.append(record | {"wrong": broken_files(out)})
        complete_at_kills |= complete(out, method)
    code = runs.wait(runs.start(runs.command(out, method), log))
    errors = errors_at_the_end(out, method, expected, complete_at_kills) if code == 0 else [f"exit code {code}"]
    for record in records:
        record["wrong"] += errors
    return records


def errors_at_the_end(
    out: pathlib.Path, method: str, expected: dict[str, Any], complete_at_kills: dict[str, tuple[int, ...]]
) -> list[str]:
    """What is wrong with the files, results and weights of a finished run that was killed before."""
    at_end = complete(out, method)
    errors = [f"{path} was rewritten" for path, file in complete_at_kills.items() if at_end.get(path, file) != file]
    errors += [f"{path} was left behind" for path in unfinished_files(out)]
    errors += broken_files(out)
    for path in out.rglob("metrics.jsonl"):
        steps = [(record["stage"], record["step"]) for record in read_records(path)]
        errors += [] if len(set(steps)) == len(steps) else [f"{path} has a step twice"]
    errors += [] if runs.outcome(out / "run") == expected["results"] else ["the results differ"]
    errors += [] if weights(out, out / "log.txt") == expected["weights"] else ["the weights differ"]
    return errors


def _ended(process: int) -> bool:
    """Whether a process has ended; `runs.wait` still gets its exit code."""
    return bool(os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def main() -> None:
    """Parses the command line and kills runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crash", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the runs and of kills.jsonl")
    parser.add_argument("--kills", type=int, default=100, help="the number of kills in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()
    runs.prepare(args.out)
    rng, records = random.Random(args.seed), []
    expected = {method: uninterrupted(args.out / f"whole-{method}", method) for method in args.methods}
    trial = 0
    while len(records) < args.kills:
        method = args.methods[trial % len(args.methods)]
        out = args.out / f"trial-{trial}"
        new_records = interrupted(out, method, expected[method], rng, args.kills - len(records))
        with open(args.out / "kills.jsonl", "a") as file:
            file.writelines(json.dumps({"trial": trial, **record}) + "\n" for record in new_records)
        if not any(record["wrong"] for record in new_records):
            shutil.rmtree(out)
        records += new_records
        trial += 1
        print(f"{len(records)} of {args.kills} kills", file=sys.stderr, flush=True)
    print(f"{'killed in':12} {'kills':>6} {'survived':>9}")
    for name in [*COMPLETED, LAST, "all"]:
        of_stage = [record for record in records if name in (record["stage"], "all")]
        print(f"{name:12} {len(of_stage):6} {sum(not record['wrong'] for record in of_stage):9}")
    for record in records:
        for error in record["wrong"]:
            print(f"{record['method']}, killed in {record['stage']}: {error}")
    sys.exit(any(record["wrong"] for record in records))


if __name__ == "__main__":
    main()
