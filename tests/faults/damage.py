"""Damages files that the program reads again: truncates, flips, empties, removes and swaps them, in each byte range.

    python -m tests.faults.damage --out=DIR [--ranges=32] [--seed=0]

Each damaged file is read as the program reads it. The program must refuse it with a one-line `UserError`, or read the
same content as from the intact file. Then a file of each kind is damaged in a finished run, and the run is started
again. It must finish with the same results, or refuse the file in one line. The command appends a JSON line for each
kind to DIR/damage.jsonl and prints a table.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import pathlib
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from cnn2gnn_jax import pipeline
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.data import cache, teacher_logits
from cnn2gnn_jax.evaluation import scoring
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle, trained
from cnn2gnn_jax.training.checkpoint import Checkpoints
from tests.faults import tiny
from tests.faults.runs import without_times

OUTCOMES = ("refused", "unchanged", "used", "crashed")
TRUNCATIONS = (0.01, 0.25, 0.5, 0.75, 0.99)  # fractions of the bytes that are kept


class Kind(NamedTuple):
    """A kind of files: their folder, the function that reads it, and the same folder of another run, or None."""

    folder: pathlib.Path
    read: Callable[[pathlib.Path], Any]
    other: pathlib.Path | None


def kinds(cache_dir: pathlib.Path, workdir: pathlib.Path, others: tuple[pathlib.Path, pathlib.Path] | None) -> dict:
    """The kinds of files of a finished run.

    Args:
      cache_dir: the cache of the run.
      workdir: the workdir of the run, with a bundle.
      others: the cache and the workdir of another run, whose files are swapped in; None for no swaps.
    """

    def kind(pattern: str, read: Callable[[pathlib.Path], Any], place: int = 1) -> Kind:
        folder, *other = (next(both[place].glob(pattern)) if pattern else both[place] for both in pairs)
        return Kind(folder, read, other[0] if other else None)

    def logits(folder: pathlib.Path) -> Any:
        return teacher_logits.read(folder, logits_manifest["fingerprint"], rows)

    def checkpoint(owner: str) -> Callable[[pathlib.Path], Any]:
        def read(folder: pathlib.Path) -> Any:
            with Checkpoints(folder, owner) as checkpoints:
                return checkpoints.restore_as_saved()

        return read

    def evaluation(folder: pathlib.Path) -> Any:
        expected = storage.read_json(workdir / "evaluations" / student / artifact.MANIFEST)
        return artifact.read(folder / student, scoring.KIND, expected["fingerprint"])

    pairs = [(cache_dir, workdir), *([others] if others else [])]
    logits_manifest = storage.read_json(next(cache_dir.glob("teachers/*/teacher_logits/manifest.json")))
    rows = {name.removesuffix(".npy"): array["shape"][0] for name, array in logits_manifest["files"].items()}
    student = next(workdir.glob("checkpoints/*")).name
    owner = f"{runs.read(workdir).fingerprint}/{student}"
    return {
        "data cache": kind("datasets/*/", lambda folder: dataclasses.asdict(cache.read(folder)), 0),
        "logits": kind("teachers/*/teacher_logits", logits, 0),
        "teacher checkpoint": kind("teachers/*/checkpoints/train/last", checkpoint(logits_manifest["fingerprint"]), 0),
        "student checkpoint": kind("checkpoints/*/train/last", checkpoint(owner)),
        "run": kind("", trained.open_student),
        "results": kind("", lambda folder: storage.read_json(folder / "results.json"))._replace(other=None),
        "evaluation": kind("evaluations", evaluation),
        "bundle": kind("bundle", lambda folder: bundle.read(folder)[1:]),
    }


# The damaged files of a kind whose folder also holds other files. The reader of results does not check which run
# wrote them, so the results of another run are not swapped in.
FILES = {
    "run": tuple(f"run/{file}" for file in ("manifest.json", "index.npy", "labels.npy", "images.npy")),
    "results": ("results.json",),
}


def damages(content: bytes, other: bytes | None, ranges: int, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Yields ways to damage a file: a name, and the new content, or None to remove the file."""
    yield "removed", None
    yield "emptied", b""
    for part in TRUNCATIONS:
        if content:
            yield "truncated", content[: min(int(part * len(content)), len(content) - 1)]
    for k in range(min(ranges, len(content))):
        begin, end = k * len(content) // ranges, max((k + 1) * len(content) // ranges, k * len(content) // ranges + 1)
        flipped = bytearray(content)
        place = rng.randrange(begin, min(end, len(content)))
        flipped[place] ^= rng.randrange(1, 256)
        yield "flipped", bytes(flipped)
        if k % 4 == 0:
            yield "zeroed", content[:begin] + bytes(len(content[begin:end])) + content[end:]
    if other is not None and other != content:
        yield "swapped", other


def digest(value: Any) -> str:
    """A hash of a pytree of arrays and other values."""
    hashed = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        hashed.update(jax.tree_util.keystr(path).encode())
        array = np.asarray(leaf)
        hashed.update(repr((array.shape, str(array.dtype))).encode())
        hashed.update(array.tobytes() if array.dtype != object else repr(leaf).encode())
    return hashed.hexdigest()


def inject(
    name: str, kind: Kind, place: pathlib.Path, ranges: int, rng: random.Random
) -> tuple[collections.Counter, list]:
    """Damages each file of a kind, in a copy at `place`. Returns counts by (damage, outcome), and the errors."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    errors = []
    files = [kind.folder / file for file in FILES[name]] if name in FILES else sorted(kind.folder.rglob("*"))
    files = [file for file in files if file.is_file() and file.name != ".lock"]
    shutil.rmtree(place, ignore_errors=True)
    for file in files:
        target = place / file.relative_to(kind.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if name in FILES:
        (place / "checkpoints").symlink_to(kind.folder / "checkpoints")
    steps = sorted(place.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    for step in steps[:-1]:  # no earlier checkpoint is left to fall back to
        shutil.rmtree(step)
    intact = digest(kind.read(place))
    for file in files:
        target = place / file.relative_to(kind.folder)
        if not target.exists():
            continue
        other_file = kind.other / file.relative_to(kind.folder) if kind.other else None
        other = other_file.read_bytes() if other_file is not None and other_file.is_file() else None
        content = target.read_bytes()
        for damage, changed in damages(content, other, ranges, rng):
            target.unlink(missing_ok=True)
            if changed is not None:
                target.write_bytes(changed)
            try:
                outcome = "unchanged" if digest(kind.read(place)) == intact else "used"
                text = ""
            except (UserError, FileNotFoundError) as error:
                outcome, text = ("refused", "") if "\n" not in str(error) else ("crashed", str(error))
            except Exception as error:
                outcome, text = "crashed", f"{type(error).__name__}: {error}"
            counts[damage, outcome] += 1
            if outcome in ("used", "crashed"):
                errors.append(f"{name}, {target.relative_to(place)} {damage}: {outcome} {text[:300]}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return counts, errors


def finished(out: pathlib.Path, teacher_seed: int) -> tuple[Any, dict[str, Any]]:
    """Finishes a tiny run under `out` and exports its bundle. Returns its config and its results."""
    config = tiny.get_config()
    config.cache_dir, config.teacher.seed, config.tensorboard = str(out / "cache"), teacher_seed, False
    results = pipeline.run(config, out / "run")
    assert results is not None
    student = trained.open_student(out / "run")
    bundle.write(out / "run" / "bundle", student, bundle.serialize_student(student), {})
    return config, results


def started_again(out: pathlib.Path, config: Any, results: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Damages a file of each kind in place and runs again. Yields the kind, the outcome, and an error or ''."""
    for name, kind in kinds(out / "cache", out / "run", None).items():
        if name == "bundle":
            continue  # no run reads it
        last = max(kind.folder.glob("step_*"), key=lambda path: int(path.name[5:]), default=kind.folder)
        file = max(
            [kind.folder / path for path in FILES[name]] if name in FILES else last.rglob("*"),
            key=lambda path: path.stat().st_size if path.is_file() else -1,
        )
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        try:
            again = pipeline.run(config, out / "run")
            assert again is not None
        except UserError as error:
            yield name, "refused", "" if "\n" not in str(error) else str(error)
            continue
        same = without_times(again) == without_times(results)
        yield name, "rebuilt", "" if same else "the results differ"


def main() -> None:
    """Parses the command line and damages the files of each kind."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.damage", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the runs and of damage.jsonl")
    parser.add_argument(
        "--ranges", type=int, default=32, help="the number of byte ranges of each file; one byte of each is changed"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out, rng, all_errors = args.out.absolute(), random.Random(args.seed), []
    config, results = finished(out, 0)
    finished(out / "other", 1)
    total: collections.Counter[str] = collections.Counter()
    print(f"{'damaged':20}{'faults':>8}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    damaged_kinds = kinds(out / "cache", out / "run", (out / "other" / "cache", out / "other" / "run"))
    with open(out / "damage.jsonl", "a") as file:
        for name, kind in damaged_kinds.items():
            counts, errors = inject(name, kind, out / "damaged", args.ranges, rng)
            all_errors += errors
            by_outcome = collections.Counter[str]()
            for (_, outcome), count in counts.items():
                by_outcome[outcome] += count
            total += by_outcome
            print(f"{name:20}{counts.total():8}" + "".join(f"{by_outcome[o]:11}" for o in OUTCOMES), flush=True)
            facts = {f"{damage} {outcome}": count for (damage, outcome), count in sorted(counts.items())}
            file.write(json.dumps({"kind": name, "faults": counts.total(), **facts}) + "\n")
        print(f"{'all':20}{total.total():8}" + "".join(f"{total[outcome]:11}" for outcome in OUTCOMES))
        for name, outcome, error in started_again(out, config, results):
            print(f"started again with a damaged {name}: {outcome}")
            file.write(json.dumps({"started again with a damaged": name, "outcome": outcome}) + "\n")
            all_errors += [f"{name}: {error}"] if error else []
    print("\n".join(all_errors))
    sys.exit(bool(all_errors))


if __name__ == "__main__":
    main()
