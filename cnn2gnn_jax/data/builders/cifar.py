"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from their binary version."""

import pathlib

import numpy as np

from cnn2gnn_jax.data import binary
from cnn2gnn_jax.data.builders.arrays import ArraysBuilder


class Cifar10(ArraysBuilder, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10: 50,000 training and 10,000 test images."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put cifar-10-binary.tar.gz, or the folder unpacked from it, into manual_dir."
    SIDE = 32
    CLASSES = 10
    FOLDER = "cifar-10-batches-bin"
    NAMES_FILE = "batches.meta.txt"
    LABEL_BYTES = 1
    TRAIN_FILES: tuple[str, ...] = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    TEST_FILES: tuple[str, ...] = ("test_batch.bin",)

    def _read(self, files: dict[str, bytes], path: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        names = self.TRAIN_FILES if split == "train" else self.TEST_FILES
        parts = [
            self._checked(name, path, binary.cifar(files[name], self.LABEL_BYTES, self.CLASSES, f"{path}: {name}"))
            for name in names
        ]
        pixels, labels = zip(*parts, strict=True)
        return np.concatenate(pixels), np.concatenate(labels)


class Cifar100(Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100 with its 100 fine classes: 50,000 training and 10,000 test images."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put cifar-100-binary.tar.gz, or the folder unpacked from it, into manual_dir."
    CLASSES = 100
    FOLDER = "cifar-100-binary"
    NAMES_FILE = "fine_label_names.txt"
    LABEL_BYTES = 2
    TRAIN_FILES = ("train.bin",)
    TEST_FILES = ("test.bin",)
