"""The crash campaign: runs killed by SIGKILL at random moments of every stage, and started again until they end.

    python -m tests.faults.crash --out=DIR [--kills=100] [--seed=0]

After each kill every file that is in its place must be whole. Between its kills a run is also stopped once by SIGTERM,
which is not counted. At its end it must have the unbroken one's results and weights to the bit, must have left nothing
unfinished behind, and must not have touched what was complete at a kill.
Appends a JSON line for each kill to DIR/kills.jsonl and prints a table; ends with code 1 if a kill was not survived.
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

# What is there once a stage is complete, and how many. Results and report are made anew by each command.
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
    """The files of the stages that are complete, with what would change if they were written again."""
    found = {}
    for name in METHODS[method][: [*METHODS[method], LAST].index(stage(out, method))]:
        for path in out.glob(DONE[name][0]):
            folder = path.parent if path.suffix == ".json" else path
            for file in folder.rglob("*"):
                if file.is_file():
                    facts = file.stat()
                    found[str(file)] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return found


def broken_files(out: pathlib.Path) -> list[str]:
    """What is not whole of the files that are in their place."""
    found = []
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
                _ = [json.loads(line) for line in lines[:-1]]  # the last one may be cut, and is then not read
        except Exception as error:
            found.append(f"{path.relative_to(out)}: {error}")
    return found


def unfinished(path: pathlib.Path) -> bool:
    """Whether a name says that what it names is not complete."""
    return any(part.endswith(".partial") or "checkpoint-tmp" in part for part in path.parts)


def weights(out: pathlib.Path, log: pathlib.Path) -> str:
    """A hash of all that was trained, taken in a process of its own since it starts JAX."""
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
    """The results of a run that is left alone, the hash of its weights, and the seconds that each stage takes."""
    out.mkdir(parents=True)
    seconds: dict[str, float] = collections.defaultdict(float)
    runs.wait(runs.start(runs.command(out, method), out / "log.txt"))  # compiles what is then found compiled
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
    """Kills a run up to once in each stage, and says of each kill whether all was as it must be."""
    out.mkdir(parents=True)
    log, records, before = out / "log.txt", [], {}
    aims = [*METHODS[method], LAST]
    moments = [(aims[3], signal.SIGTERM), *((aim, signal.SIGKILL) for aim in rng.sample(aims, min(kills, len(aims))))]
    for aim, how in sorted(moments, key=lambda moment: aims.index(moment[0])):
        if aims.index(stage(out, method)) > aims.index(aim):
            continue  # the last process got further than the moment drawn
        process = runs.start(runs.command(out, method), log)
        delay = rng.uniform(0, whole["seconds"][aim])
        while stage(out, method) != aim and not _ended(process):
            time.sleep(0.002)
        until = time.monotonic() + delay
        while time.monotonic() < until and not _ended(process):
            time.sleep(0.002)
        if not _ended(process):
            os.kill(process, how)
        code = runs.wait(process)
        if code != -signal.SIGKILL:
            if code not in (0, -signal.SIGTERM, STOPPED):
                raise SystemExit(f"a run ended with code {code}:\n{log.read_text()}")
            continue  # it was faster than the moment drawn
        found = {"method": method, "stage": stage(out, method), "after_seconds": round(delay, 3)}
        found["wrong"] = broken_files(out)
        records.append(found)
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
    """Reads the command line and runs the campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crash", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args()
    runs.prepare(given.out)
    rng, records = random.Random(given.seed), []
    whole = {method: unbroken(given.out / f"whole-{method}", method) for method in given.methods}
    trial = 0
    while len(records) < given.kills:
        method = given.methods[trial % len(given.methods)]
        out = given.out / f"trial-{trial}"
        found = broken(out, method, whole[method], rng, given.kills - len(records))
        with open(given.out / "kills.jsonl", "a") as file:
            file.writelines(json.dumps({"trial": trial, **record}) + "\n" for record in found)
        if not any(record["wrong"] for record in found):
            shutil.rmtree(out)
        records += found
        trial += 1
        print(f"{len(records)} of {given.kills} kills", file=sys.stderr, flush=True)
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
