"""STL-10 (Coates, Ng and Lee, 2011) from its binary version: the labeled images only."""

import pathlib

import numpy as np

from cnn2gnn_jax.data import binary
from cnn2gnn_jax.data.builders.arrays import ArraysBuilder


class Stl10(ArraysBuilder, skip_registration=True):  # type: ignore[call-arg]
    """STL-10: 5,000 training and 8,000 test images. The unlabeled images are not read."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put stl10_binary.tar.gz, or the folder unpacked from it, into manual_dir."
    SIDE = 96
    CLASSES = 10
    FOLDER = "stl10_binary"
    NAMES_FILE = "class_names.txt"

    def _read(self, files: dict[str, bytes], path: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        file = f"{split}_X.bin"
        return self._checked(file, path, binary.stl10(files[file], files[f"{split}_y.bin"], f"{path}: {file}"))
