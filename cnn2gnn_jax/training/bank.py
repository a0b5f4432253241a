"""The bank of a trained student on disk: the training images as columns of the training-set graph.

Beside the bank lie the files of its images, and what the student makes of the held-out images, so that `predict` can
name the neighbours and `export` can choose a smaller bank without the data set.
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
    """What a student makes of M held-out images.

    logits: (M, C), its own answers, see `TrainedModel.logits_and_features`.
    features: (M, K), in the bank's space.
    labels: (M,).
    """

    logits: np.ndarray
    features: np.ndarray
    labels: np.ndarray


class StoredBank(NamedTuple):
    """A bank with what is known of it.

    bank: its N training images.
    files: of an image folder the file of each, as `data.Split` has them; None for other data sets.
    held_out: None where the run held out no images.
    accuracy: percent of the held-out images that are right with the graph, where its settings were chosen on one half
      of them and read on the other, both ways; None where none were held out.
    accuracy_alone: percent of the held-out images that are right by the student alone.
    """

    bank: Bank
    files: tuple[str, ...] | None
    held_out: HeldOut | None
    accuracy: float | None
    accuracy_alone: float | None


def save(folder: pathlib.Path, stored: StoredBank, fingerprint: str) -> None:
    """Writes a bank; `fingerprint` is that of the run's evaluation, see `run.evaluation_fingerprint`."""
    arrays = {name: np.asarray(getattr(stored.bank, name)) for name in _ARRAYS}
    # NumPy's files have no bfloat16; float32 holds its numbers.
    arrays = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()
    }
    if stored.files is not None:
        # No name holds a zero byte. As in `os.fsdecode`, a name need not be valid UTF-8.
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
    """What `save` has written.

    Raises:
      artifact.Refused: there is no bank, it is another evaluation's, or damaged.
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
    """The bytes that a bank takes up in a bundle: where the signals are labels, a number for each image holds them."""
    signals = bank.labels if bank.settings.signal == "labels" else bank.signals
    return sum(int(array.nbytes) for array in (bank.keys, signals, bank.mean, bank.scale))
