"""The teacher's outputs on disk: logits, pooled features and attention maps.

They are computed once and verified whenever they are opened. A user can also provide the logits of another teacher in a
file.
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
    """Writes arrays to a verified folder. If it fails, nothing is written.

    Args:
      folder: the folder.
      fingerprint: the fingerprint of the teacher. `read` refuses arrays of another teacher.
      rows: the number of images of each split. It holds for the arrays called `<split>` or `<split>_<output>`.
      blocks: blocks of rows (b, ...) of the arrays by their names, in the order of the data set.
      facts: JSON values to store with the arrays.

    Raises:
      UserError: an output is not finite.
    """
    with storage.atomic_folder(folder) as temporary:
        arrays: dict[str, np.memmap] = {}
        written = collections.Counter[str]()
        for block in blocks:
            for name, values in block.items():
                if not np.isfinite(values).all():
                    raise UserError(
                        f"{folder.name}: the teacher's {name} outputs are not finite from image {written[name]} on: "
                        "train it with a lower learning rate or compute_dtype float32"
                    )
                if name not in arrays:
                    shape = (_count(name, rows), *values.shape[1:])
                    arrays[name] = storage.new_array(temporary / f"{name}.npy", values.dtype, shape)
                arrays[name][written[name] : written[name] + len(values)] = values
                written[name] += len(values)
        for name, array in arrays.items():
            assert written[name] == len(array), (name, written[name], len(array))
            array.flush()
        artifact.seal(temporary, KIND, fingerprint, facts)


def _count(name: str, rows: Mapping[str, int]) -> int | None:
    return next((n for split, n in rows.items() if name == split or name.startswith(f"{split}_")), None)


def read(
    folder: pathlib.Path, fingerprint: str, rows: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the arrays of a folder, memory-mapped, and the facts. The hash of each file is checked.

    Args:
      folder: the folder.
      fingerprint: the fingerprint of the teacher.
      rows: the number of images of each split, as in `write`.

    Raises:
      artifact.Refused: the arrays are missing or damaged, or belong to another version or another teacher.
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
    """Reads arrays as `read` does. If they are missing, damaged or outdated, they are computed and written first.

    All processes compute their share of the outputs. The first process writes them.

    Args:
      folder: the folder.
      fingerprint: the fingerprint of the teacher.
      rows: the number of images of each split, as in `write`.
      compute: returns the blocks and the facts to write.

    Raises:
      artifact.Foreign: the arrays belong to another teacher.
    """

    def make() -> None:
        blocks, facts = compute()
        if not processes.is_first():
            collections.deque(blocks, 0)  # takes part in the computation of the blocks, which the first process writes
        processes.on_first(lambda: write(folder, fingerprint, rows, blocks, facts))

    return _checked(folder, artifact.ensure(folder, KIND, fingerprint, make), rows)


def read_logits_file(path: str, labels: np.ndarray, classes: int) -> tuple[np.ndarray, float]:
    """Reads the user's file with a teacher's logits for the training images.

    Args:
      path: the path of an .npy file.
      labels: (N,), the labels in the order of the data set.
      classes: the number of classes C.

    Returns:
      The logits (N, C) float32, and their accuracy in percent.

    Raises:
      UserError: the file is not an array (N, C) of finite floats, or its accuracy is not better than chance, which
        suggests that its rows or columns are in another order.
    """
    what = f"teacher.logits_file={path}"
    expected = f"expected an .npy of {len(labels)} x {classes} floats"
    try:
        array = np.load(pathlib.Path(path).expanduser(), mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of NumPy's reader, many kinds
        raise UserError(f"{what} cannot be read ({' '.join(str(error).split())}): {expected}") from None
    if not isinstance(array, np.ndarray) or array.shape != (len(labels), classes) or array.dtype.kind != "f":
        actual = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{what} holds {actual}: {expected}, a row for each training image in the data set's order")
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
    margin = 3 * math.sqrt(chance * (1 - chance) / len(labels))  # three standard errors of guessing
    if accuracy <= chance + margin:
        raise UserError(
            f"{what} gives {100 * accuracy:.2f}% of the training images their class, no better than guessing "
            f"({100 * chance:.2f}%, by luck up to {100 * (chance + margin):.2f}%): "
            "are its rows in the data set's order, and its columns in the order of the classes?"
        )
    return logits, 100 * accuracy
