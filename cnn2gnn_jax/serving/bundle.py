"""A serving bundle: a folder with a student, its anchors and its bank (if it has one) as one StableHLO module.

    BUNDLE/manifest.json      hashes of the files, and `facts`: classes, image_shape, mean, std, graph, mechanism,
                              platforms, bytes, measurements, and the settings and accuracies of the training-set graph
    BUNDLE/model.stablehlo    maps uint8 images (b, H, W, C), for any b, to class probabilities (b, classes) float32

A program that uses a bundle needs JAX and flatbuffers, but not this package; docs/serve_a_bundle.md has an example.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from cnn2gnn_jax import inference
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import trained
from cnn2gnn_jax.serving.trained import Trained
from cnn2gnn_jax.training import bank as banks

KIND = artifact.Kind("a bundle", format=2, remake="export it again")
PLATFORMS = ("cpu", "cuda")
MODEL = "model.stablehlo"
MAX_BANK_BYTES = 3 * 2**29  # the module, which contains the bank, must be smaller than 2^31 bytes


class Bundle(NamedTuple):
    """An opened bundle.

    call: maps images (b, H, W, C) uint8 to class probabilities (b, classes).
    classes: the class names, by label.
    image_shape: (H, W, C).
    facts: the facts of the manifest.
    """

    call: Callable[[Any], jax.Array]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    facts: dict[str, Any]


def serialize(function: Callable[[jax.Array], jax.Array], image_shape: tuple[int, int, int]) -> bytes:
    """Serializes a function of uint8 images (b, H, W, C), for any b, as a StableHLO module for PLATFORMS."""
    [size] = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8)
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())


def check_replaceable(folder: pathlib.Path) -> None:
    """Raises UserError if the path exists and is not a bundle. Only a bundle may be replaced."""
    if folder.exists() and (
        not folder.is_dir() or not {path.name for path in folder.iterdir()} <= {MODEL, artifact.MANIFEST}
    ):
        raise UserError(f"{folder} exists and is not a bundle: choose another --out")


def write(folder: pathlib.Path, student: Trained, module: bytes, facts: dict[str, Any]) -> None:
    """Writes a bundle. If writing is interrupted, the folder is left as it was.

    Args:
      folder: the folder of the bundle; see `check_replaceable`.
      student: the student.
      module: the student's module, see `serialize_student`.
      facts: further facts for the manifest.

    Raises:
      UserError: the folder exists and is not a bundle.
    """
    check_replaceable(folder)
    recorded = student.recorded
    with storage.atomic_folder(folder) as temporary:
        (temporary / MODEL).write_bytes(module)
        student_facts = {
            "classes": list(recorded.classes),
            "image_shape": list(recorded.image_shape),
            "mean": list(recorded.mean),
            "std": list(recorded.std),
            "graph": student.model.graph,
            "mechanism": _mechanism(student),
            "platforms": list(PLATFORMS),
            "bytes": len(module),
        }
        artifact.seal(temporary, KIND, recorded.fingerprint, {**student_facts, **facts})


def read(folder: pathlib.Path) -> Bundle:
    """Checks the hash of a bundle's module and opens the bundle.

    Raises:
      UserError: the folder is not a bundle, or the bundle is damaged, of another version, or for other platforms.
    """
    if not (folder / artifact.MANIFEST).is_file():
        raise UserError(f"{folder} is not a bundle (it has no {artifact.MANIFEST}): make one with cnn2gnn_jax.export")
    record = artifact.read(folder, KIND)
    with artifact.intact(folder, KIND):
        classes, image_shape = tuple(record.facts["classes"]), tuple(record.facts["image_shape"])
        platforms, _ = record.facts["platforms"], record.files[MODEL]
        _check_types(classes, image_shape, platforms)
    if (platform := jax.default_backend().replace("gpu", "cuda")) not in platforms:
        raise UserError(f"{folder} is for {', '.join(platforms)}, but JAX runs on {platform}: set JAX_PLATFORMS=cpu")
    try:
        module = export.deserialize(bytearray((folder / MODEL).read_bytes()))
    except Exception as error:  # JAX raises errors of many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / MODEL} cannot be read by JAX {jax.__version__} ({reason}): {KIND.remake}"
        ) from error
    return Bundle(module.call, classes, image_shape, record.facts)


def _check_types(classes: tuple, image_shape: tuple, platforms: Any) -> None:
    if not all(isinstance(name, str) for name in classes):
        raise TypeError("classes are not all strings")
    if len(image_shape) != 3 or not all(isinstance(side, int) and side > 0 for side in image_shape):
        raise TypeError("image_shape is not three positive integers")
    if not isinstance(platforms, list) or not all(isinstance(name, str) for name in platforms):
        raise TypeError("platforms are not a list of strings")


def serialize_student(student: Trained) -> bytes:
    """Serializes a student. It predicts with the training-set graph if it has a bank, otherwise one by one.

    Raises:
      UserError: the bank is larger than MAX_BANK_BYTES.
    """
    if student.bank is not None and (size := banks.size(student.bank.bank)) > MAX_BANK_BYTES:
        raise UserError(
            f"the bank has {size:,} bytes, but a bundle holds at most {MAX_BANK_BYTES:,}: keep fewer images with --bank"
        )

    def probabilities(images: jax.Array) -> jax.Array:
        return trained.predict(student, images, _mechanism(student)).probabilities

    return serialize(probabilities, student.recorded.image_shape)


def _mechanism(student: Trained) -> str:
    return inference.ONE_BY_ONE if student.bank is None else inference.TRAINING_SET
