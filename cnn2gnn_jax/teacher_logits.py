"""The teacher's logits (pooled features, attention maps) on disk: computed once, verified whenever they are opened."""

import collections
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from cnn2gnn_jax import processes, storage
from cnn2gnn_jax.errors import UserError

MANIFEST = "manifest.json"


Blocks = Iterable[Mapping[str, np.ndarray]]


def write(
    folder: pathlib.Path, fingerprint: str, rows: Mapping[str, int], blocks: Blocks, facts: Mapping[str, Any]
) -> None:
    """Writes arrays as `<name>.npy` with a manifest of shapes, dtypes, hashes; the whole folder or nothing.

    Args:
      folder: where to.
      fingerprint: of the teacher; `read` refuses arrays of another.
      rows: the images of the arrays whose name is the key or begins with `<key>_`.
      blocks: rows of the arrays by name, (b, ...) each, one block after the other in the order of the data set.
      facts: JSON values to keep in the manifest.
    """
    with storage.atomic_folder(folder) as beside:
        arrays: dict[str, np.memmap] = {}
        written = collections.Counter[str]()
        for block in blocks:
            for name, part in block.items():
                if name not in arrays:
                    shape = (_count(name, rows), *part.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(beside / f"{name}.npy", "w+", part.dtype, shape)
                arrays[name][written[name] : written[name] + len(part)] = part
                written[name] += len(part)
        files = {}
        for name, array in arrays.items():
            assert written[name] == len(array), (name, written[name], len(array))
            array.flush()
            files[name] = {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "sha256": storage.sha256(beside / f"{name}.npy"),
            }
        manifest = {"fingerprint": fingerprint, "arrays": files, **facts}
        storage.write_json(beside / MANIFEST, manifest)


def _count(name: str, rows: Mapping[str, int]) -> int | None:
    return next((n for split, n in rows.items() if name == split or name.startswith(f"{split}_")), None)


def read(
    folder: pathlib.Path, fingerprint: str, rows: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a folder, memory-mapped, after each file's hash and shape were checked; and the manifest.

    Args:
      folder: as given to `write`.
      fingerprint: the teacher that is expected.
      rows: as given to `write`.

    Raises:
      UserError: an array is missing, damaged, of another teacher or of other data.
    """
    again = f"delete {folder} and run the same command again"
    manifest = storage.read_json(folder / MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        raise UserError(
            f"{folder} holds the logits of teacher {manifest.get('fingerprint')}, expected {fingerprint}: {again}"
        )
    files = manifest.get("arrays")
    if not isinstance(files, dict):
        raise UserError(f"{folder / MANIFEST} is damaged (no arrays): {again}")
    arrays = {}
    for name, facts in files.items():
        path = folder / f"{name}.npy"
        try:
            expected, shape, dtype = facts["sha256"], tuple(facts["shape"]), facts["dtype"]
        except (KeyError, TypeError):
            raise UserError(f"{folder / MANIFEST} is damaged (array {name}): {again}") from None
        if not path.is_file():
            raise UserError(f"{path} is missing: {again}")
        if storage.sha256(path) != expected:
            raise UserError(f"{path} is damaged (its sha256 is not the manifest's): {again}")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        count = _count(name, rows)
        if array.shape != shape or str(array.dtype) != dtype or array.shape[0] != count:
            raise UserError(
                f"{path} holds {array.dtype}{list(array.shape)}, "
                f"expected {dtype}{list(shape)} for {count} images: {again}"
            )
        arrays[name] = array
    return arrays, manifest


def ensure(
    folder: pathlib.Path,
    fingerprint: str,
    rows: Mapping[str, int],
    compute: Callable[[], tuple[Blocks, dict[str, Any]]],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of `read` and the facts beside them, after `compute` and `write` where the folder is missing.

    All processes compute, each its share, and the first one writes.
    """
    if not processes.agreed((folder / MANIFEST).exists()):
        blocks, facts = compute()
        if not processes.is_first():
            collections.deque(blocks, 0)  # computed here too, step by step with the first process, which writes them
        processes.on_first(lambda: write(folder, fingerprint, rows, blocks, facts))
    return read(folder, fingerprint, rows)
