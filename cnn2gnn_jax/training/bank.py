"""Stores the bank of a trained student: the training images as columns of the training-set graph.

The names of the image files are stored with it, so that `predict` can name the neighbours without the data set. So are
the logits and features of the held-out images, so that `export` can choose a smaller bank.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from cnn2gnn_jax.neighbors import Bank, Settings
from cnn2gnn_jax.runtime import artifact

BANK = "bank"  # the folder in a workdir, with a folder for each student
KIND = artifact.Kind("the bank of a student", format=2, remake="run the run's own command again")
_ARRAYS = ("keys", "labels", "signals", "mean", "scale")


class HeldOut(NamedTuple):
    """The logits and features of a student for M held-out images.

    logits: (M, C), see `TrainedModel.logits_and_features`.
    features: (M, K), in the bank's space.
    labels: (M,), the classes.
    """

    logits: np.ndarray
    features: np.ndarray
    labels: np.ndarray


class StoredBank(NamedTuple):
    """A bank and its accuracy on held-out images.

    bank: N training images.
    files: (N,), the files of the images as in `data.Split`; None if the data set is not an image folder.
    held_out: the held-out images; None if there are none.
    accuracy: the two-fold accuracy with the graph on the held-out images, in percent: its settings are chosen on one
      half and evaluated on the other, and vice versa. None without held-out images.
    accuracy_alone: the accuracy of the student alone on the held-out images, in percent; None without them.
    """

    bank: Bank
    files: tuple[str, ...] | None
    held_out: HeldOut | None
    accuracy: float | None
    accuracy_alone: float | None


def save(folder: pathlib.Path, stored: StoredBank, fingerprint: str) -> None:
    """Writes a bank under a fingerprint, see `run.evaluation_fingerprint`."""
    arrays = {name: np.asarray(getattr(stored.bank, name)) for name in _ARRAYS}
    # NumPy files cannot store bfloat16; float32 stores the same values.
    arrays = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()
    }
    if stored.files is not None:
        # File names contain no zero bytes. As in `os.fsdecode`, a name need not be valid UTF-8.
        names = "\0".join(stored.files).encode("utf-8", "surrogateescape")
        arrays["files"] = np.frombuffer(names, np.uint8)
    if stored.held_out is not None:
        arrays |= {f"held_out_{name}": array for name, array in stored.held_out._asdict().items()}
    facts = {
        "settings": stored.bank.settings._asdict(),
        "accuracy": stored.accuracy,
        "accuracy_alone": stored.accuracy_alone,
    }
    artifact.write(folder, KIND, fingerprint, facts, arrays)


def read(folder: pathlib.Path, fingerprint: str) -> StoredBank:
    """Reads what `save` has written.

    Raises:
      artifact.Refused: the bank is missing or damaged, or has another fingerprint.
    """
    stored = artifact.read(folder, KIND, fingerprint)
    arrays, facts = stored.arrays, stored.facts
    with artifact.intact(folder, KIND):
        bank = Bank(**{name: arrays[name] for name in _ARRAYS}, settings=Settings(**facts["settings"]))
        files = held_out = None
        if "files" in arrays:
            files = tuple(arrays["files"].tobytes().decode("utf-8", "surrogateescape").split("\0"))
        if "held_out_labels" in arrays:
            held_out = HeldOut(**{name: arrays[f"held_out_{name}"] for name in HeldOut._fields})
        return StoredBank(bank, files, held_out, facts["accuracy"], facts["accuracy_alone"])


def is_better(accuracy: float | None, accuracy_alone: float) -> bool:
    """Whether the training-set graph is chosen over the student alone: by its two-fold accuracy on held-out images.

    Args:
      accuracy: the two-fold accuracy with the graph; None if it is unknown.
      accuracy_alone: the accuracy of the student alone.
    """
    return accuracy is not None and accuracy > accuracy_alone


def size(bank: Bank) -> int:
    """The size of a bank in a bundle, in bytes. Signals that are labels are stored as one number for each image."""
    signals = bank.labels if bank.settings.signal == "labels" else bank.signals
    return sum(int(array.nbytes) for array in (bank.keys, signals, bank.mean, bank.scale))
