"""The bank of a trained student on disk: the training images as columns of the training-set graph."""

import pathlib

import numpy as np

from cnn2gnn_jax.neighbors import Bank, Settings
from cnn2gnn_jax.runtime import artifact

BANK = "bank"  # the folder in a workdir, with a folder for each student
KIND = artifact.Kind("the bank of a student", format=1, remake="run the run's own command again")
_ARRAYS = ("keys", "labels", "signals", "mean", "scale")


def save(folder: pathlib.Path, bank: Bank, fingerprint: str) -> None:
    """Writes a bank; `fingerprint` is that of the run."""
    arrays = {name: np.asarray(getattr(bank, name)) for name in _ARRAYS}
    # NumPy's files have no bfloat16; float32 holds its numbers.
    arrays = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()
    }
    artifact.write(folder, KIND, fingerprint, {"settings": bank.settings._asdict()}, arrays)


def read(folder: pathlib.Path, fingerprint: str) -> Bank:
    """What `save` has written.

    Raises:
      UserError: there is no bank, it is another run's, or damaged.
    """
    kept = artifact.read(folder, KIND, fingerprint)
    with artifact.intact(folder, KIND):
        return Bank(**{name: kept.arrays[name] for name in _ARRAYS}, settings=Settings(**kept.facts["settings"]))
