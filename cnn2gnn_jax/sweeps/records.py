"""The records of a sweep: a JSON object for each cell, small enough for a repository.

A folder holds either `records/<cell>.json` and `plans/<sweep>.json`, as `cnn2gnn_jax.sweep` writes them, or
`results.jsonl`, which `collect` makes from them: each line is a record with its places. Which evaluated images are
classified correctly is stored as packed bits, in `records/<cell>.npz` and, for all cells, in `correct.npz`.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.configs.base import FIELDS
from cnn2gnn_jax.evaluation import summary as run_results
from cnn2gnn_jax.runtime import fields, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training.metrics import read_records

KINDS = ("methods", "settings", "ablation", "curve")
"""Layouts of tables: methods by pairs (Tables 1 and 2), settings, the ablation (Table 3), accuracy against a value."""

_FORMAT = 1
_CORRECT = "correct.npz"
_POINTS = 20  # in a training curve


def write(
    out: pathlib.Path,
    cell: str,
    config: ConfigDict,
    results: Mapping[str, Any],
    metrics: pathlib.Path,
    tuned: Mapping[str, Any] | None = None,
) -> None:
    """Writes the record of a finished cell.

    Args:
      out: the sweep's folder.
      cell: the cell's name.
      config: its config.
      results: its results, as `pipeline.run` returns them.
      metrics: the JSON lines file of its training, in its workdir.
      tuned: the values chosen on held-out images, as `tuning.choose` returns them; None without a choice.
    """
    correct = run_results.correct(results, metrics.parent)
    dataset = {key: value for key, value in results["dataset"].items() if key != "classes"}
    dataset["classes"] = len(results["dataset"]["classes"])
    record = {
        "format": _FORMAT,
        "cell": cell,
        "config": {
            field: value
            for field, value in fields.flat(configs.plain(configs.resolve(config))).items()
            if value is not None and FIELDS[field].changes != fields.NOTHING
        },
        **{key: results[key] for key in ("method", "teacher", "student", "seconds", "devices", "versions")},
        "dataset": dataset,
        "accuracies": [
            _rounded({**entry, "seconds": seconds})
            for entry, seconds in zip(results["accuracies"], results["inference_seconds"], strict=True)
        ],
        "examples": [] if config.seed else _rounded(results["examples"]),
        "curves": _rounded(_curves(metrics)),
        **({} if tuned is None else {"tuned": tuned}),
    }
    if correct is not None:
        packed = np.packbits(correct, axis=1)
        _write_packed(_path(out, cell).with_suffix(".npz"), {cell: packed})
        record["correct_sha256"] = _sha256(packed)
    _write(out, cell, record)


def write_diverged(out: pathlib.Path, cell: str, error: str) -> None:
    """Writes the record of a candidate whose loss did not stay finite, so that it is not run again."""
    _write(out, cell, {"format": _FORMAT, "cell": cell, "diverged": error})


def _write(out: pathlib.Path, cell: str, record: dict[str, Any]) -> None:
    storage.write_text(_path(out, cell), json.dumps(storage.sealed(record)) + "\n")


def _path(out: pathlib.Path, cell: str) -> pathlib.Path:
    return out / "records" / f"{cell}.json"


def load(out: pathlib.Path, cell: str) -> dict[str, Any]:
    """Reads the record of a finished cell, without its places."""
    return storage.read_json(_path(out, cell))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _curves(metrics: pathlib.Path) -> dict[str, list[list[float]]]:
    """A few points (epoch, loss, accuracy) of the training curve of each stage."""
    stages: dict[str, list[list[float]]] = {}
    for record in read_records(metrics):
        if {"epoch", "loss", "accuracy"} <= set(record):
            stages.setdefault(record["stage"], []).append([record["epoch"], record["loss"], record["accuracy"]])
    return {name: [points[i * len(points) // _POINTS] for i in range(_POINTS)] + points[-1:]
            if len(points) > _POINTS else points for name, points in stages.items()}  # fmt: skip


def is_done(out: pathlib.Path, cell: str) -> bool:
    """Whether the cell has an intact record of this version."""
    try:
        path = _path(out, cell)
        if not path.exists() or (record := load(out, cell)).get("format") != _FORMAT:
            return False
        _packed(path.with_suffix(".npz"), record)
        return True
    except UserError:
        return False


def _sha256(packed: np.ndarray) -> str:
    return hashlib.sha256(f"{packed.dtype.str}{packed.shape}".encode() + packed.tobytes()).hexdigest()


def _write_packed(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    with storage.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _packed(path: pathlib.Path, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The packed bits of a record, by its cell; {} if it has none. Raises UserError if they are missing or damaged."""
    if not (sha256 := record.get("correct_sha256")):
        return {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            packed = arrays[record["cell"]]
        if _sha256(packed) != sha256:
            raise ValueError(f"{record['cell']} is not what was written")
    except Exception as error:  # NumPy and zipfile raise many types
        what = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({what}): delete it and run the same command again") from None
    return {record["cell"]: packed}


@contextlib.contextmanager
def _locked(out: pathlib.Path) -> Iterator[None]:
    """Locks plans and `results.jsonl` for writing, and removes temporary files of killed processes."""
    with storage.lock(out / ".lock", wait=True):
        for leftover in (*out.glob(".*.partial"), *(out / "plans").glob(".*.partial")):
            leftover.unlink()
        yield


def write_plan(out: pathlib.Path, title: str, cells: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
    """Writes the places of the cells of a sweep, in the order that tables follow."""
    with _locked(out):
        storage.write_json(out / "plans" / f"{title}.json", {"cells": cells})


def collect(out: pathlib.Path) -> None:
    """Writes `results.jsonl`: the records of all finished cells, with their places.

    Candidates have no places and are left out: their accuracies are in the record of the cell that chose.
    """
    places: dict[str, list[dict[str, Any]]] = {}
    for plan in sorted((out / "plans").glob("*.json")):
        for cell, cell_places in storage.read_json(plan)["cells"]:
            places.setdefault(cell, []).extend(cell_places)
    lines, arrays = [], {}  # type: list[str], dict[str, np.ndarray]
    for cell in places:
        if places[cell] and is_done(out, cell):
            record = load(out, cell)
            if "diverged" in record:
                continue
            arrays |= _packed(_path(out, cell).with_suffix(".npz"), record)
            lines.append(json.dumps({**record, "places": places[cell]}, allow_nan=False))
    with _locked(out):
        if arrays:
            _write_packed(out / _CORRECT, arrays)
        storage.write_text(out / "results.jsonl", "".join(line + "\n" for line in lines))


def read(out: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the records in a folder, with their places.

    An entry of `accuracies` has `correct`, (N,) bool, if `correct.npz` exists and has it.

    Raises:
      UserError: there are no records, they are of another version, or a file is damaged.
    """
    if (out / "records").is_dir():
        collect(out)
    path = out / "results.jsonl"
    recorded = read_records(path)
    if not recorded:
        raise UserError(f"{path} is missing or empty: run python -m cnn2gnn_jax.sweep with --out={out} first")
    for record in recorded:
        if record.get("format") != _FORMAT:
            raise UserError(f"{path} is of another version (format {record.get('format')}, expected {_FORMAT})")
        if (out / _CORRECT).exists():
            for packed in _packed(out / _CORRECT, record).values():
                for entry, bits in zip(record["accuracies"], packed, strict=True):
                    entry["correct"] = np.unpackbits(bits, count=record["dataset"]["evaluated_images"]).astype(bool)
    return recorded
