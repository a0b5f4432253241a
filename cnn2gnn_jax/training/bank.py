"""Writes and reads the bank of a trained student: the training images as columns of the training-set graph.

With the bank are stored the file names of its images, and the student's logits and features for the held-out images.
So `predict` can name the neighbors of an image, and `export` can choose a smaller bank, without the data set.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from cnn2gnn_jax.neighbors import Bank, Settings
from cnn2gnn_jax.runtime import artifact

BANK = "bank"  # The folder in a workdir. It has a folder for each student.
KIND = artifact.Kind("the bank of a student", format=2, remake="run the run's own command again")
_ARRAYS = ("keys", "labels", "signals", "mean", "scale")


class HeldOut(NamedTuple):
    """M held-out images.

    logits: (M, C), the student's own logits; see `TrainedModel.logits_and_features`.
    features: (M, K), the student's features in the bank's space.
    labels: (M,), the classes.
    """

    logits: np.ndarray
    features: np.ndarray
    labels: np.ndarray


class StoredBank(NamedTuple):
    """A bank, and facts about it. Fields about held-out images are None if the run held out no images.

    bank: the N training images.
    files: the file of each image of an image folder, as in `data.Split`; None for other data sets.
    held_out: the held-out images.
    accuracy: the accuracy on the held-out images with the graph, in percent; `choice.Choice.accuracy_two_fold`.
    accuracy_alone: the accuracy on the held-out images without the graph, in percent.
    """

    bank: Bank
    files: tuple[str, ...] | None
    held_out: HeldOut | None
    accuracy: float | None
    accuracy_alone: float | None


def save(folder: pathlib.Path, stored: StoredBank, fingerprint: str) -> None:
    """Writes a bank.

    Args:
      folder: the folder to write.
      stored: the bank.
      fingerprint: the fingerprint of the run's evaluation; see `run.evaluation_fingerprint`.
    """
    arrays = {name: np.asarray(getattr(stored.bank, name)) for name in _ARRAYS}
    # NumPy's files cannot store bfloat16. float32 can represent all its numbers.
    arrays = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()
    }
    if stored.files is not None:
        # No file name contains a zero byte. As in `os.fsdecode`, a name need not be valid UTF-8.
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
    """Reads a bank that `save` has written.

    Raises:
      artifact.Refused: there is no bank, or it belongs to another evaluation, or it is damaged.
    """
    kept = artifact.read(folder, KIND, fingerprint)
    arrays, facts = kept.arrays, kept.facts
    with artifact.intact(folder, KIND):
        bank = Bank(**{name: arrays[name] for name in _ARRAYS}, settings=Settings(**facts["settings"]))
        files = held_out = None
        if "files" in arrays:
            files = tuple(arrays["files"].tobytes().decode("utf-8", "surrogateescape").split("\0"))
        if "held_out_labels" in arrays:
            held_out = HeldOut(**{name: arrays[f"held_out_{name}"] for name in HeldOut._fields})
        return StoredBank(bank, files, held_out, facts["accuracy"], facts["accuracy_alone"])


def size(bank: Bank) -> int:
    """The size of a bank in a bundle, in bytes. Labels as signals take one number for each image."""
    signals = bank.labels if bank.settings.signal == "labels" else bank.signals
    return sum(int(array.nbytes) for array in (bank.keys, signals, bank.mean, bank.scale))
