"""A serving bundle: a verified folder with a student, its anchors and its bank, if it has one, as one StableHLO module.

    BUNDLE/manifest.json      `facts`: classes, image_shape, normalisation, graph (of a graph student), mechanism,
                              platforms, bytes; for the training-set graph its settings and its accuracy by size
    BUNDLE/model.stablehlo    uint8 images (b, H, W, C), any b, to class probabilities (b, classes) float32

A bundle needs JAX and flatbuffers, but not this package; docs/serve_a_bundle.md shows how to use it.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from cnn2gnn_jax.inference import MECHANISMS, TRAINING_SET
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import trained
from cnn2gnn_jax.serving.trained import Trained
from cnn2gnn_jax.training import bank as banks

KIND = artifact.Kind("a bundle", format=2, remake="export it again")
PLATFORMS = ("cpu", "cuda")
MODEL = "model.stablehlo"
LARGEST_BANK = 3 * 2**29  # bytes; the serialised module must be smaller than 2^31 bytes


class Bundle(NamedTuple):
    """An open bundle.

    call: maps images (b, H, W, C) uint8 to class probabilities (b, classes).
    classes: the name of label k at position k.
    image_shape: (H, W, C).
    facts: the facts of its manifest.
    """

    call: Callable[[Any], jax.Array]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    facts: dict[str, Any]


def serialize(function: Callable[[jax.Array], jax.Array], image_shape: tuple[int, int, int]) -> bytes:
    """Serialises a function of uint8 images (b, H, W, C), for any b, as a StableHLO module for PLATFORMS."""
    [size] = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8)
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())


def check_free(folder: pathlib.Path) -> None:
    """Raises UserError if the folder exists and is not a bundle; a bundle may be replaced."""
    if folder.exists() and (
        not folder.is_dir() or not {path.name for path in folder.iterdir()} <= {MODEL, artifact.MANIFEST}
    ):
        raise UserError(f"{folder} exists and is not a bundle: choose another --out")


def write(folder: pathlib.Path, student: Trained, module: bytes, facts: dict[str, Any]) -> None:
    """Writes a bundle atomically.

    Args:
      folder: the folder of the bundle; see `check_free`.
      student: the student.
      module: its serialised module, as `of_student` returns it.
      facts: further facts for the manifest.

    Raises:
      UserError: the folder exists and is not a bundle.
    """
    check_free(folder)
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
    """Opens a bundle, and verifies the hash of its module.

    Raises:
      UserError: the folder is not a bundle, or the bundle is damaged, of another version or for other platforms.
    """
    if not (folder / artifact.MANIFEST).is_file():
        raise UserError(f"{folder} is not a bundle (it has no {artifact.MANIFEST}): make one with cnn2gnn_jax.export")
    stored = artifact.read(folder, KIND)
    with artifact.intact(folder, KIND):
        classes, image_shape = tuple(stored.facts["classes"]), tuple(stored.facts["image_shape"])
        platforms, _ = stored.facts["platforms"], stored.files[MODEL]
        _check_types(classes, image_shape, platforms)
    if (platform := jax.default_backend().replace("gpu", "cuda")) not in platforms:
        raise UserError(f"{folder} is for {', '.join(platforms)}, but JAX runs on {platform}: set JAX_PLATFORMS=cpu")
    try:
        module = export.deserialize(bytearray((folder / MODEL).read_bytes()))
    except Exception as error:  # JAX raises many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / MODEL} cannot be read by JAX {jax.__version__} ({reason}): {KIND.remake}"
        ) from error
    return Bundle(module.call, classes, image_shape, stored.facts)


def _check_types(classes: tuple, image_shape: tuple, platforms: Any) -> None:
    if not all(isinstance(name, str) for name in classes):
        raise TypeError("classes are not names")
    if len(image_shape) != 3 or not all(isinstance(side, int) and side > 0 for side in image_shape):
        raise TypeError("image_shape is not a shape")
    if not isinstance(platforms, list) or not all(isinstance(name, str) for name in platforms):
        raise TypeError("platforms are not names")


def of_student(student: Trained) -> bytes:
    """Serialises a student: with a bank it answers by the training-set graph, otherwise one by one.

    Raises:
      UserError: the bank is too large for a module.
    """
    if student.bank is not None and (size := banks.size(student.bank.bank)) > LARGEST_BANK:
        raise UserError(
            f"the bank has {size:,} bytes, and a bundle takes up to {LARGEST_BANK:,}: keep fewer images by --bank"
        )

    def probabilities(images: jax.Array) -> jax.Array:
        return trained.answer(student, images, _mechanism(student)).probabilities

    return serialize(probabilities, student.recorded.image_shape)


def _mechanism(student: Trained) -> str:
    return MECHANISMS[0] if student.bank is None else TRAINING_SET
