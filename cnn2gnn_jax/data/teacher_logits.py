"""The teacher's logits (pooled features, attention maps) on disk: computed once, verified whenever they are opened.

Or logits of a teacher from elsewhere, in a file of the user's.
"""

import collections
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from cnn2gnn_jax.runtime import artifact, processes, storage
from cnn2gnn_jax.runtime.errors import UserError

KIND = artifact.Kind("outputs of a teacher", format=2, remake="run the same command again")

Blocks = Iterable[Mapping[str, np.ndarray]]


def write(
    folder: pathlib.Path, fingerprint: str, rows: Mapping[str, int], blocks: Blocks, facts: Mapping[str, Any]
) -> None:
    """Writes arrays as a verified folder, the whole or nothing.

    Args:
      folder: where to.
      fingerprint: of the teacher; `read` refuses arrays of another.
      rows: the images of the arrays whose name is the key or begins with `<key>_`.
      blocks: rows of the arrays by name, (b, ...) each, one block after the other in the order of the data set.
      facts: JSON values to keep beside them.

    Raises:
      UserError: a number is not finite.
    """
    with storage.atomic_folder(folder) as beside:
        arrays: dict[str, np.memmap] = {}
        written = collections.Counter[str]()
        for block in blocks:
            for name, part in block.items():
                if not np.isfinite(part).all():
                    raise UserError(
                        f"{folder.name}: the teacher's {name} outputs are not finite from image {written[name]} on: "
                        "train it with a lower learning rate or compute_dtype float32"
                    )
                if name not in arrays:
                    shape = (_count(name, rows), *part.shape[1:])
                    arrays[name] = storage.new_array(beside / f"{name}.npy", part.dtype, shape)
                arrays[name][written[name] : written[name] + len(part)] = part
                written[name] += len(part)
        for name, array in arrays.items():
            assert written[name] == len(array), (name, written[name], len(array))
            array.flush()
        artifact.seal(beside, KIND, fingerprint, facts)


def _count(name: str, rows: Mapping[str, int]) -> int | None:
    return next((n for split, n in rows.items() if name == split or name.startswith(f"{split}_")), None)


def read(
    folder: pathlib.Path, fingerprint: str, rows: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a folder, memory-mapped, and the facts beside them, after each file was hashed.

    Args:
      folder: as given to `write`.
      fingerprint: the teacher that is expected.
      rows: as given to `write`.

    Raises:
      artifact.Refused: they are missing, damaged, of another version or of another teacher.
    """
    return _checked(folder, artifact.read(folder, KIND, fingerprint), rows)


def _checked(
    folder: pathlib.Path, kept: artifact.Artifact, rows: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with artifact.intact(folder, KIND):
        for name, array in kept.arrays.items():
            if array.shape[:1] != (count := _count(name, rows),):
                raise ValueError(f"{name}.npy is {array.dtype}{list(array.shape)}, expected a row for {count} images")
    return kept.arrays, kept.facts


def ensure(
    folder: pathlib.Path,
    fingerprint: str,
    rows: Mapping[str, int],
    compute: Callable[[], tuple[Blocks, dict[str, Any]]],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `read` gives, after `compute` and `write` where it is missing, damaged or of another format.

    All processes compute, each its share, and the first one writes.

    Raises:
      artifact.Foreign: they are of another teacher.
    """

    def make() -> None:
        blocks, facts = compute()
        if not processes.is_first():
            collections.deque(blocks, 0)  # computed here too, step by step with the first process, which writes them
        processes.on_first(lambda: write(folder, fingerprint, rows, blocks, facts))

    return _checked(folder, artifact.ensure(folder, KIND, fingerprint, make), rows)


def given(path: str, labels: np.ndarray, classes: int) -> tuple[np.ndarray, float]:
    """Logits from elsewhere for the training images, (N, C) float32, and their accuracy in percent.

    Args:
      path: an .npy file.
      labels: (N,), in the order of the data set.
      classes: C.

    Raises:
      UserError: it is no array of (N, C) finite real numbers, or no better at the labels than chance, as it would be in
        another order.
    """
    what = f"teacher.logits_file={path}"
    expected = f"expected an .npy of {len(labels)} x {classes} floats"
    try:
        array = np.load(pathlib.Path(path).expanduser(), mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of NumPy's reader, many kinds
        raise UserError(f"{what} cannot be read ({' '.join(str(error).split())}): {expected}") from None
    if not isinstance(array, np.ndarray) or array.shape != (len(labels), classes) or array.dtype.kind != "f":
        found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{what} holds {found}: {expected}, a row for each training image in the data set's order")
    with np.errstate(over="ignore"):
        logits = np.array(array, np.float32)
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise UserError(
            f"{what}: row {row} is not finite in float32, and {int(np.sum(~finite))} rows in all: {expected}"
        )
    accuracy = float(np.mean(np.argmax(logits, axis=1) == labels))
    chance = float(np.bincount(labels).max() / len(labels))
    luck = 3 * math.sqrt(chance * (1 - chance) / len(labels))  # three standard errors of guessing
    if accuracy <= chance + luck:
        raise UserError(
            f"{what} gives {100 * accuracy:.2f}% of the training images their class, no better than guessing "
            f"({100 * chance:.2f}%, by luck up to {100 * (chance + luck):.2f}%): are its rows in the data set's order, "
            "and its columns in the order of the classes?"
        )
    return logits, 100 * accuracy
