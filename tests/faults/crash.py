"""Crash tests: runs are killed by SIGKILL at random moments of every stage, and restarted until they end.

    python -m tests.faults.crash --out=DIR [--kills=100] [--seed=0]

After each kill, every file under its final name must be intact. Each run is also stopped once by SIGTERM, which is not
counted. At its end, a run must have the results and weights of an uninterrupted run to the bit, no temporary files, and
no rewritten files of stages that were complete at a kill. The program appends a JSON line for each kill to
DIR/kills.jsonl and prints a table. Its exit code is 1 if a run did not survive a kill.
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

# The files of a complete stage, and their number. Each command writes results and report again.
DONE = {
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
STOPPED = 75  # the exit code after SIGTERM
METHODS = {
    "cnn2gnn": ["cache", "teacher", "logits", "student", "evaluation"],
    "ab": ["cache", "teacher", "logits", "pretraining", "student", "evaluation"],
    "training_set": ["cache", "teacher", "logits", "student", "evaluation"],
    "sweep": ["cache", "teacher", "logits", "sweep's 1st", "sweep's 2nd"],
}


def stage(out: pathlib.Path, method: str) -> str:
    """The first stage that is not complete."""
    return next((name for name in METHODS[method] if len(list(out.glob(DONE[name][0]))) < DONE[name][1]), LAST)


def complete(out: pathlib.Path, method: str) -> dict[str, tuple[int, ...]]:
    """The files of the complete stages, each with its inode, size and time, which change if it is written again."""
    files = {}
    for name in METHODS[method][: [*METHODS[method], LAST].index(stage(out, method))]:
        for path in out.glob(DONE[name][0]):
            folder = path.parent if path.suffix == ".json" else path
            for file in folder.rglob("*"):
                if file.is_file():
                    facts = file.stat()
                    files[str(file)] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return files


def broken_files(out: pathlib.Path) -> list[str]:
    """The damaged files under their final names, with the reason."""
    problems = []
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
                _ = [json.loads(line) for line in lines[:-1]]  # the last one may be incomplete; it is then ignored
        except Exception as error:
            problems.append(f"{path.relative_to(out)}: {error}")
    return problems


def unfinished(path: pathlib.Path) -> bool:
    """Whether a path is temporary, by its name."""
    return any(part.endswith(".partial") or "checkpoint-tmp" in part for part in path.parts)


def weights(out: pathlib.Path, log: pathlib.Path) -> str:
    """A hash of all trained weights, computed in a separate process because it starts JAX."""
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


def unbroken(out: pathlib.Path, method: str) -> dict[str, Any]:
    """The results of an uninterrupted run, the hash of its weights, and the seconds of each stage."""
    out.mkdir(parents=True)
    seconds: dict[str, float] = collections.defaultdict(float)
    runs.wait(runs.start(runs.command(out, method), out / "log.txt"))  # fills the compilation cache
    for folder in ("cache", "run"):
        shutil.rmtree(out / folder)
    process = runs.start(runs.command(out, method), out / "log.txt")
    before = time.monotonic()
    while not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        now = time.monotonic()
        seconds[stage(out, method)] += now - before
        before = now
        time.sleep(0.002)
    assert runs.wait(process) == 0, (out / "log.txt").read_text()
    return {
        "results": runs.outcome(out / "run"),
        "weights": weights(out, out / "log.txt"),
        "seconds": dict(seconds),
    }


def broken(out: pathlib.Path, method: str, whole: dict[str, Any], rng: random.Random, kills: int) -> list[dict]:
    """Kills a run at most once in each stage. Returns a record of each kill, with what was `wrong` after it."""
    out.mkdir(parents=True)
    log, records, before = out / "log.txt", [], {}
    aims = [*METHODS[method], LAST]
    moments = [(aims[3], signal.SIGTERM), *((aim, signal.SIGKILL) for aim in rng.sample(aims, min(kills, len(aims))))]
    for aim, signal_number in sorted(moments, key=lambda moment: aims.index(moment[0])):
        if aims.index(stage(out, method)) > aims.index(aim):
            continue  # the last process has passed this moment
        process = runs.start(runs.command(out, method), log)
        delay = rng.uniform(0, whole["seconds"][aim])
        while stage(out, method) != aim and not _ended(process):
            time.sleep(0.002)
        until = time.monotonic() + delay
        while time.monotonic() < until and not _ended(process):
            time.sleep(0.002)
        if not _ended(process):
            os.kill(process, signal_number)
        code = runs.wait(process)
        if code != -signal.SIGKILL:
            if code not in (0, -signal.SIGTERM, STOPPED):
                raise SystemExit(f"a run ended with code {code}:\n{log.read_text()}")
            continue  # it ended before this moment
        kill = {"method": method, "stage": stage(out, method), "after_seconds": round(delay, 3)}
        kill["wrong"] = broken_files(out)
        records.append(kill)
        before |= complete(out, method)
    code = runs.wait(runs.start(runs.command(out, method), log))
    wrong = [] if code == 0 else [f"ended with code {code}"]
    if code == 0:
        after = complete(out, method)
        wrong += [f"{path} was written again" for path, facts in before.items() if after.get(path, facts) != facts]
        wrong += [f"{path} was left" for path in out.rglob("*") if unfinished(path.relative_to(out))]
        wrong += broken_files(out)
        for path in out.rglob("metrics.jsonl"):
            steps = [(record["stage"], record["step"]) for record in read_records(path)]
            wrong += [] if len(set(steps)) == len(steps) else [f"{path} has steps twice"]
        wrong += [] if runs.outcome(out / "run") == whole["results"] else ["other results"]
        wrong += [] if weights(out, log) == whole["weights"] else ["other weights"]
    for record in records:
        record["wrong"] += wrong
    return records


def _ended(process: int) -> bool:
    return bool(os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def main() -> None:
    """Reads the command line and runs the crash tests."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crash", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()
    runs.prepare(args.out)
    rng, records = random.Random(args.seed), []
    whole = {method: unbroken(args.out / f"whole-{method}", method) for method in args.methods}
    trial = 0
    while len(records) < args.kills:
        method = args.methods[trial % len(args.methods)]
        out = args.out / f"trial-{trial}"
        new_records = broken(out, method, whole[method], rng, args.kills - len(records))
        with open(args.out / "kills.jsonl", "a") as file:
            file.writelines(json.dumps({"trial": trial, **record}) + "\n" for record in new_records)
        if not any(record["wrong"] for record in new_records):
            shutil.rmtree(out)
        records += new_records
        trial += 1
        print(f"{len(records)} of {args.kills} kills", file=sys.stderr, flush=True)
    print(f"{'killed in':12} {'kills':>6} {'survived':>9}")
    for name in [*DONE, LAST, "all"]:
        of_stage = [record for record in records if name in (record["stage"], "all")]
        print(f"{name:12} {len(of_stage):6} {sum(not record['wrong'] for record in of_stage):9}")
    for record in records:
        for what in record["wrong"]:
            print(f"{record['method']}, killed in {record['stage']}: {what}")
    sys.exit(any(record["wrong"] for record in records))


if __name__ == "__main__":
    main()
