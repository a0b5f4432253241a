"""The functions that the fuzzer tests: all that read files from users or from other programs, with valid inputs."""

import io
import json
import pathlib
import shutil
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cnn2gnn_jax import config
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.configs import digits
from cnn2gnn_jax.data import binary, cache, image_folders, images, teacher_logits
from cnn2gnn_jax.data.builders import mini_imagenet
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.serving import bundle
from cnn2gnn_jax.training import checkpoint
from cnn2gnn_jax.training.metrics import read_records


class Parser(NamedTuple):
    """A function that reads an input, and valid inputs, which the fuzzer changes.

    An input is the bytes of a file, or the JSON object of a manifest.
    """

    read: Callable[[Any], Any]
    valid: list[Any]


def parsers(folder: pathlib.Path) -> dict[str, Parser]:
    """All parsers by name. Those that read files write them under `folder`."""
    return {
        **_binary_parsers(folder / "archive"),
        **_image_parsers(folder / "images"),
        **_logits_parsers(folder / "logits"),
        **_artifact_parsers(folder / "artifacts"),
        **_run_parsers(folder / "runs"),
        **_text_parsers(folder / "texts"),
    }


def _in_file(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Callable[[bytes], Any]:
    """A function that writes bytes to `path` and reads them with `read`."""

    def write_and_read(content: bytes) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return read(path)

    return write_and_read


def _manifest(folder: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Parser:
    """The parser of the manifest in a folder. It writes each input with a valid seal, then reads the folder."""
    path = folder / artifact.MANIFEST

    def write_and_read(value: Any) -> Any:
        path.write_text(json.dumps(storage.sealed(value)))
        return read(folder)

    return Parser(write_and_read, [storage.read_json(path)])


def _binary_parsers(folder: pathlib.Path) -> dict[str, Parser]:
    rng = np.random.default_rng(0)
    cifar10 = np.concatenate([np.full((3, 1), 3), rng.integers(0, 256, (3, 3072))], 1).astype(np.uint8).tobytes()
    cifar100 = np.concatenate([np.full((2, 2), 3), rng.integers(0, 256, (2, 3072))], 1).astype(np.uint8).tobytes()
    stl10 = rng.integers(0, 256, (2, 27648), np.uint8).tobytes() + bytes([1, 10])

    def read_archive(path: pathlib.Path) -> Any:
        return binary.read_files(path, "set", ("a", "b"))

    return {
        "CIFAR-10": Parser(lambda content: binary.cifar(content, 1, 10, "x.bin"), [cifar10]),
        "CIFAR-100": Parser(lambda content: binary.cifar(content, 2, 100, "x.bin"), [cifar100]),
        "STL-10": Parser(lambda content: binary.stl10(content[:-2], content[-2:], "x.bin"), [stl10]),
        "class names": Parser(lambda content: binary.class_names(content, 3, "names.txt"), [b"a\nb\nc\n"]),
        "archive": Parser(_in_file(folder / "x.tar", read_archive), [_archive(""), _archive("gz"), _archive("bz2")]),
    }


def _archive(compression: str) -> bytes:
    """A tar archive that also has members with unsafe paths and a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as file:
        for name, content in (("set/a", b"A" * 3000), ("set/b", b"B" * 10), ("../set/a", b"C"), ("/set/b", b"D")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("set/c")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return out.getvalue()


def _image_parsers(folder: pathlib.Path) -> dict[str, Parser]:
    rows = [f"n{k // 7:08d}{k:08d}.jpg,n{k // 7:08d}" for k in range(21)]
    encodings: list[tuple[str, str, dict[str, Any]]] = [
        *(("PNG", mode, {}) for mode in ("RGB", "P", "LA", "1")),
        *(("JPEG", "RGB", {}), ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {})),
        *(("BMP", "RGB", {}), ("BMP", "P", {}), ("WEBP", "RGB", {}), ("WEBP", "RGB", {"lossless": True})),
    ]

    def read_lists(content: bytes) -> Any:
        (folder / "lists").mkdir(parents=True, exist_ok=True)
        (folder / "lists" / "train.csv").write_bytes(content)
        for name in ("val.csv", "test.csv"):
            (folder / "lists" / name).write_bytes(b"filename,label\n")
        return mini_imagenet.files_by_class(folder / "lists")

    def decode(content: bytes) -> Any:
        return images.decode(content, "x.png"), images.decode(content, "x.png", channels=1, size=8)

    return {
        "Mini-ImageNet csv": Parser(read_lists, ["\n".join(["filename,label", *rows]).encode()]),
        "image": Parser(decode, [_encoded(file_format, mode, **options) for file_format, mode, options in encodings]),
        "folder of images": Parser(
            lambda name: _scan_folder(folder / "pictures", name),
            [b"a/b.png", b".a/b.png", b"a/b.txt", b"train/a/b.png"],
        ),
    }


def _encoded(file_format: str, mode: str, **options: Any) -> bytes:
    """A random image in this format and mode of Pillow."""
    out, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, file_format, **options)
    return out.getvalue()


def _scan_folder(folder: pathlib.Path, name: bytes) -> Any:
    """Scans a folder of images with a file of this name, beside a class z with one image."""
    shutil.rmtree(folder, ignore_errors=True)
    names = name.decode("utf-8", "surrogateescape").replace("\0", "").split("/")
    path = folder.joinpath(*[part[:100] for part in names if part not in ("", ".", "..")][:3])
    (folder / "z").mkdir(parents=True)
    (folder / "z" / "z.png").write_bytes(b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path not in (folder, folder / "z"):
        path.write_bytes(b"")
    return image_folders.scan(folder)


def _logits_parsers(folder: pathlib.Path) -> dict[str, Parser]:
    labels = np.repeat(np.arange(4), 25)
    logits = np.eye(4)[labels].astype(np.float32)
    arrays, rows = {"train": logits, "test": logits[:10]}, {"train": 100, "test": 10}
    teacher_logits.write(folder / "cached", "abc", rows, [arrays], {"test_accuracy": 50.0})

    def read_file(path: pathlib.Path) -> Any:
        return teacher_logits.read_logits_file(str(path), labels, 4)

    valid = [_npy(logits), _npy(logits.astype(np.float16)), _npy(np.array([{}]), allow_pickle=True)]
    return {
        "logits .npy": Parser(_in_file(folder / "x.npy", read_file), valid),
        "logits manifest": _manifest(folder / "cached", lambda path: teacher_logits.read(path, "abc", rows)),
    }


def _npy(array: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def _artifact_parsers(folder: pathlib.Path) -> dict[str, Parser]:
    split = cache.Examples(4, [(np.full((3, 3, 1), 60 * k, np.uint8), k % 2, str(k)) for k in range(4)])
    cache.write(folder / "cache", "x", ("a", "b"), {"train": split, "test": split}, {"key": "0", "path": ""})
    (folder / "bundle").mkdir(parents=True)
    module = bundle.serialize(lambda batch: batch[:, 0, :2, 0], (8, 8, 1))
    (folder / "bundle" / bundle.MODEL).write_bytes(module)
    facts = {"classes": ["a", "b"], "image_shape": [8, 8, 1], "mean": [0.5], "std": [0.2], "platforms": ["cpu"]}
    artifact.seal(folder / "bundle", bundle.KIND, "0" * 16, facts)
    (folder / "step" / "state").mkdir(parents=True)
    (folder / "step" / "state" / "x").write_bytes(b"x")
    artifact.seal(folder / "step", checkpoint.KIND, "me", {})
    return {
        "cache manifest": _manifest(folder / "cache", cache.read),
        "bundle manifest": _manifest(folder / "bundle", bundle.read),
        "checkpoint manifest": _manifest(folder / "step", lambda path: artifact.read(path, checkpoint.KIND, "me")),
    }


def _run_parsers(folder: pathlib.Path) -> dict[str, Parser]:
    smoke = digits.get_config("smoke")
    smoke.method = "gnn"
    anchors = {
        "index": np.zeros((1, 4), int),
        "labels": np.zeros((1, 4), int),
        "images": np.zeros((1, 4, 8, 8, 1), np.uint8),
    }
    facts = {
        "teacher_folder": "/nowhere",
        "dataset_fingerprint": "0" * 16,
        "dataset": {"classes": list("ab"), "image_shape": [8, 8, 1], "train_images": 100, "mean": [0.5], "std": [0.2]},
        "config": json.loads(json.dumps(config.resolve(smoke).to_dict())),
    }
    for workdir in ("with_manifest", "with_anchors"):
        artifact.write(folder / workdir / runs.RECORD, runs.KIND, "0" * 16, facts, anchors)

    def read_anchors(content: bytes) -> Any:
        record = folder / "with_anchors" / runs.RECORD
        (record / "images.npy").write_bytes(content)
        manifest = storage.read_json(record / artifact.MANIFEST)
        manifest["files"]["images.npy"]["sha256"] = storage.sha256(record / "images.npy")
        storage.write_json(record / artifact.MANIFEST, manifest)
        return runs.read(folder / "with_anchors")

    return {
        "run manifest": _manifest(folder / "with_manifest" / runs.RECORD, lambda path: runs.read(path.parent)),
        "anchors .npy": Parser(read_anchors, [_npy(anchors["images"])]),
    }


def _text_parsers(folder: pathlib.Path) -> dict[str, Parser]:
    records = b'{"stage": "a", "step": 1, "loss": 0.5}\n{"stage": "a", "step": 2, "loss": 0.25}\n'
    nested = {"dataset": {"classes": list("ab"), "image_shape": [8, 8, 1], "mean": [0.5]}, "path": "/x", "seal": "x"}
    valid = [json.dumps(nested).encode(), b'{"a": [1, 2.5, "x"]}']
    return {
        "any JSON": Parser(_in_file(folder / "x.json", storage.read_json), valid),
        "metrics.jsonl": Parser(_in_file(folder / "x.jsonl", read_records), [records]),
    }
