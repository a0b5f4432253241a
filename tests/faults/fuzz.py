"""Fuzz tests of all functions that read files of other origin.

    python -m tests.faults.fuzz --out=DIR [--inputs=120000] [--seed=0] [--only NAME ...]

Valid inputs are changed at random: bytes are flipped, removed, repeated, spliced or inserted; values of JSON are
replaced and the object is sealed again, so that the checks behind the seal are reached. Within a minute, a parser must
accept an input or refuse it with a one-line UserError; anything else is a crash. Crashing inputs are kept in DIR. The
program appends a JSON line for each parser to DIR/fuzz.jsonl and prints a table.
"""

import argparse
import collections
import contextlib
import copy
import io
import json
import pathlib
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from cnn2gnn_jax import config
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.configs import digits
from cnn2gnn_jax.data import binary, cache, image_folders, images, teacher_logits
from cnn2gnn_jax.data.builders import mini_imagenet
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle
from cnn2gnn_jax.training import checkpoint
from cnn2gnn_jax.training.metrics import read_records

SECONDS = 60  # after which a parser counts as hanging
WORDS = (
    *(
        b"",
        b"\0",
        b'"',
        b",",
        b"\n",
        b"\r\n",
        b"..",
        b"../",
        b"/etc/passwd",
        b"=1+1",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"e",
    ),
    *(
        b"9" * 40,
        b"-1",
        b"1e999",
        b"NaN",
        b"null",
        b"[" * 2000,
        b"{",
        b"}",
        b"\x93NUMPY",
        b"O",
        b"|O",
        b"<f4",
        b"PK\x03\x04",
    ),
    *(
        b"(10000000000,)",
        b"True",
        b"\xff" * 8,
        bytes(64),
        b"\x7f\xff\xff\xff",
        b"\x80",
        "ä".encode(),
        b"filename,label\n",
    ),
)
VALUES = (
    *(None, True, False, -1, 0, 1, 10**30, 1.5, 1e308, "", "x", "../x", "/", "\0", "ä" * 300, [], {}, [[]], [None]),
    *([1, 2, 3], {"a": 1}, [0] * 50, "NaN", "float32", [8, 8, 1], [-1, 8, 1], [10**9, 10**9, 3]),
)


class Parser(NamedTuple):
    """A function that reads an input, and valid inputs from which others are made."""

    read: Callable[[Any], Any]
    good: list[Any]


def changed(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Changes content at a few random places."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(result) + 1)
        length = rng.choice((1, 2, 4, 16, 256))
        match rng.randrange(8):
            case 0 | 1 if result:
                result[at % len(result)] ^= 1 << rng.randrange(8)
            case 2 if result:
                result[at % len(result)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 3:
                del result[at : at + length]
            case 4:
                result[at:at] = result[at : at + length] * rng.choice((1, 2, 50))
            case 5:
                result[at : at + rng.choice((0, length))] = rng.choice(WORDS)
            case 6:
                del result[at:]
            case 7:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                result[at:] = other[cut : cut + 100_000]
    return bytes(result)


def changed_json(value: Any, rng: random.Random) -> Any:
    """Replaces a few values or keys of a JSON object at random."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.85:
                place = place[key]
                continue
            if rng.random() < 0.2:
                del place[key]
            elif isinstance(place, dict) and rng.random() < 0.1:
                place[str(rng.choice(VALUES))] = place.pop(key)
            else:
                place[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return value


def encoded(file_format: str, mode: str = "RGB", **options: Any) -> bytes:
    out, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, file_format, **options)
    return out.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def archive(compression: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as made:
        for name, content in (("set/a", b"A" * 3000), ("set/b", b"B" * 10), ("../set/a", b"C"), ("/set/b", b"D")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("set/c")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    return out.getvalue()


def parsers(place: pathlib.Path) -> dict[str, Parser]:
    """The parsers by name; `place` is a folder for the files that they read."""

    def in_file(name: str, read: Callable[[pathlib.Path], Any]) -> Callable[[bytes], Any]:
        path = place / name

        def write_and_read(content: bytes) -> Any:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            return read(path)

        return write_and_read

    def sealed(name: str, read: Callable[[pathlib.Path], Any]) -> Callable[[Any], Any]:
        path = place / name

        def write_and_read(value: Any) -> Any:
            path.write_text(json.dumps(storage.sealed(value)))
            return read(path)

        return write_and_read

    def manifest(folder: str, read: Callable[[pathlib.Path], Any]) -> Parser:
        name = f"{folder}/{artifact.MANIFEST}"
        return Parser(sealed(name, read), [storage.read_json(place / name)])

    rng = np.random.default_rng(0)
    cifar = np.concatenate([np.full((3, 1), 3), rng.integers(0, 256, (3, 3072))], 1).astype(np.uint8).tobytes()
    cifar100 = np.concatenate([np.full((2, 2), 3), rng.integers(0, 256, (2, 3072))], 1).astype(np.uint8).tobytes()
    stl10 = rng.integers(0, 256, (2, 27648), np.uint8).tobytes() + bytes([1, 10])
    rows = [f"n{k // 7:08d}{k:08d}.jpg,n{k // 7:08d}" for k in range(21)]
    lists = "\n".join(["filename,label", *rows]).encode()
    labels = np.repeat(np.arange(4), 25)
    logits = np.eye(4)[labels].astype(np.float32)

    arrays = {"train": logits, "test": logits[:10]}
    teacher_logits.write(place / "logits", "abc", {"train": 100, "test": 10}, [arrays], {"test_accuracy": 50.0})

    def read_logits(path: pathlib.Path) -> Any:
        return teacher_logits.read(path.parent, "abc", {"train": 100, "test": 10})

    split = cache.Examples(4, [(np.full((3, 3, 1), 60 * k, np.uint8), k % 2, str(k)) for k in range(4)])
    cache.write(place / "cache", "x", ("a", "b"), {"train": split, "test": split}, {"key": "0", "path": ""})
    (place / "bundle").mkdir()
    module = bundle.serialize(lambda images: images[:, 0, :2, 0], (8, 8, 1))
    (place / "bundle" / bundle.MODEL).write_bytes(module)
    facts = {"classes": ["a", "b"], "image_shape": [8, 8, 1], "mean": [0.5], "std": [0.2], "platforms": ["cpu"]}
    artifact.seal(place / "bundle", bundle.KIND, "0" * 16, facts)
    (place / "step" / "state").mkdir(parents=True)
    (place / "step" / "state" / "x").write_bytes(b"x")
    artifact.seal(place / "step", checkpoint.KIND, "me", {})

    smoke = digits.get_config("smoke")
    smoke.method = "gnn"
    complete = config.resolve(smoke).to_dict()
    anchors = {
        "index": np.zeros((1, 4), int),
        "labels": np.zeros((1, 4), int),
        "images": np.zeros((1, 4, 8, 8, 1), np.uint8),
    }
    facts = {
        "teacher_folder": "/nowhere",
        "dataset_fingerprint": "0" * 16,
        "dataset": {"classes": list("ab"), "image_shape": [8, 8, 1], "train_images": 100, "mean": [0.5], "std": [0.2]},
        "config": json.loads(json.dumps(complete)),
    }
    for workdir in ("workdir", "other"):
        artifact.write(place / workdir / runs.RECORD, runs.KIND, "0" * 16, facts, anchors)

    def read_anchors(content: bytes) -> Any:
        record = place / "other" / runs.RECORD
        (record / "images.npy").write_bytes(content)
        manifest = storage.read_json(record / artifact.MANIFEST)
        manifest["files"]["images.npy"]["sha256"] = storage.sha256(record / "images.npy")
        storage.write_json(record / artifact.MANIFEST, manifest)
        return runs.read(place / "other")

    def read_step(path: pathlib.Path) -> Any:
        return artifact.read(path.parent, checkpoint.KIND, "me")

    def read_lists(content: bytes) -> Any:
        (place / "lists").mkdir(exist_ok=True)
        (place / "lists" / "train.csv").write_bytes(content)
        for name in ("val.csv", "test.csv"):
            (place / "lists" / name).write_bytes(b"filename,label\n")
        return mini_imagenet.files_by_class(place / "lists")

    def read_folder(name: bytes) -> Any:
        # A folder of images with one class and one file of that name, beside a class z.
        folder = place / "pictures"
        shutil.rmtree(folder, ignore_errors=True)
        parts = [
            part[:100]
            for part in name.decode("utf-8", "surrogateescape").replace("\0", "").split("/")
            if part not in ("", ".", "..")
        ]
        path = folder.joinpath(*parts[:3]) if parts else folder
        (folder / "z").mkdir(parents=True)
        (folder / "z" / "z.png").write_bytes(b"")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path not in (folder, folder / "z"):
            path.write_bytes(b"")
        return image_folders.scan(folder)

    def decode(content: bytes) -> Any:
        return images.decode(content, "x.png"), images.decode(content, "x.png", channels=1, size=8)

    records = b'{"stage": "a", "step": 1, "loss": 0.5}\n{"stage": "a", "step": 2, "loss": 0.25}\n'
    everything = [encoded("PNG"), encoded("PNG", "P"), encoded("PNG", "LA"), encoded("PNG", "1")]
    everything += [
        encoded("JPEG"),
        encoded("JPEG", "L", progressive=True),
        encoded("JPEG", "CMYK"),
        encoded("BMP"),
        encoded("BMP", "P"),
        encoded("WEBP"),
        encoded("WEBP", lossless=True),
    ]
    return {
        "CIFAR-10": Parser(lambda x: binary.cifar(x, 1, 10, "x.bin"), [cifar]),
        "CIFAR-100": Parser(lambda x: binary.cifar(x, 2, 100, "x.bin"), [cifar100]),
        "STL-10": Parser(lambda x: binary.stl10(x[:-2], x[-2:], "x.bin"), [stl10]),
        "class names": Parser(lambda x: binary.class_names(x, 3, "names.txt"), [b"a\nb\nc\n"]),
        "archive": Parser(
            in_file("x.tar", lambda path: binary.read_files(path, "set", ("a", "b"))),
            [archive(""), archive("gz"), archive("bz2")],
        ),
        "Mini-ImageNet csv": Parser(read_lists, [lists]),
        "image": Parser(decode, everything),
        "folder of images": Parser(read_folder, [b"a/b.png", b".a/b.png", b"a/b.txt", b"train/a/b.png"]),
        "logits .npy": Parser(
            in_file("x.npy", lambda path: teacher_logits.read_logits_file(str(path), labels, 4)),
            [npy(logits), npy(logits.astype(np.float16)), npy(np.array([{}]), allow_pickle=True)],
        ),
        "logits manifest": manifest("logits", read_logits),
        "cache manifest": manifest("cache", lambda path: cache.read(path.parent)),
        "bundle manifest": manifest("bundle", lambda path: bundle.read(path.parent)),
        "run manifest": manifest("workdir/run", lambda path: runs.read(path.parent.parent)),
        "anchors .npy": Parser(read_anchors, [npy(anchors["images"])]),
        "checkpoint manifest": manifest("step", read_step),
        "any JSON": Parser(
            in_file("x.json", storage.read_json), [json.dumps({**facts, "seal": "x"}).encode(), b'{"a": [1, 2.5, "x"]}']
        ),
        "metrics.jsonl": Parser(in_file("x.jsonl", read_records), [records]),
    }


def fuzz(
    name: str, parser: Parser, count: int, seed: int, out: pathlib.Path
) -> tuple[collections.Counter[str], list[str]]:
    """Feeds a parser `count` inputs. Returns the counts of accepted, refused and crashing ones, and the crashes."""
    rng, counts, crashes = random.Random(f"{name} {seed}"), collections.Counter[str](), {}
    taken = 0
    for value in parser.good:
        with contextlib.suppress(UserError):
            parser.read(value)
            taken += 1
    assert taken, f"{name}: none of the good inputs is taken"
    for k in range(count):
        good = rng.choice(parser.good)
        value = changed_json(good, rng) if isinstance(good, dict) else changed(good, parser.good, rng)
        signal.alarm(SECONDS)
        try:
            parser.read(value)
            counts["taken"] += 1
        except (UserError, OSError) as error:  # `main` prints an OSError in one line
            if "\n" in str(error) or not str(error):
                counts["crashed"] += 1
                crashes.setdefault(f"refused in several lines: {error}"[:200], value)
            else:
                counts["refused"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts["crashed"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            crashes.setdefault(f"{type(error).__name__} at {where.filename}:{where.lineno}", (value, error, k))
        finally:
            signal.alarm(0)
    for k, (what, value) in enumerate(crashes.items()):
        (out / f"crash-{name.replace(' ', '-').replace('/', '-')}-{k}.txt").write_text(f"{what}\n{value!r}\n")
    return counts, [
        f"{name}: {what}: {value[1] if isinstance(value, tuple) else ''}"[:300] for what, value in crashes.items()
    ]


class _Hang(BaseException):
    """A parser took too long. It is a BaseException, so that no parser catches it."""


def _hangs(*_: object) -> None:
    raise _Hang


def run(
    out: pathlib.Path, inputs: int, seed: int, only: list[str] | None = None
) -> tuple[dict[str, collections.Counter[str]], list[str]]:
    """Fuzzes all parsers, or those named in `only`, with `inputs` inputs in all. Returns counts and crashes."""
    out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity(logging.ERROR)
    before = signal.signal(signal.SIGALRM, _hangs)
    counts, crashes = {}, []
    try:
        memory = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None
        with tempfile.TemporaryDirectory(dir=memory) as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as the program does where it decodes images
            chosen = parsers(pathlib.Path(place))
            names = only or list(chosen)
            for name in names:
                counts[name], new = fuzz(name, chosen[name], -(-inputs // len(names)), seed, out)
                crashes += new
    finally:
        signal.signal(signal.SIGALRM, before)
    return counts, crashes


def main() -> None:
    """Reads the command line and runs the fuzz tests."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--inputs", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    args = parser.parse_args()
    counts_by_parser, crashes = run(args.out, args.inputs, args.seed, args.only)
    outcomes = ("taken", "refused", "crashed")
    print(f"{'parser':20}{'inputs':>9}" + "".join(f"{outcome:>10}" for outcome in outcomes))
    for name, counts in [*counts_by_parser.items(), ("all", sum(counts_by_parser.values(), collections.Counter()))]:
        print(f"{name:20}{counts.total():9}" + "".join(f"{counts[outcome]:10}" for outcome in outcomes))
    with open(args.out / "fuzz.jsonl", "a") as file:
        for name, counts in counts_by_parser.items():
            row = {"parser": name, "inputs": counts.total(), **{outcome: counts[outcome] for outcome in outcomes}}
            file.write(json.dumps(row) + "\n")
    print("\n".join(crashes))
    sys.exit(bool(crashes))


if __name__ == "__main__":
    main()
