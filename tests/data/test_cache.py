import json
import shutil

import numpy as np
import pytest

from cnn2gnn_jax.data import cache
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError

CLASSES = ("cat", "dog", "ox")


def examples(images, labels) -> cache.Examples:
    return cache.Examples(
        len(labels),
        ((im, int(k), f"image {i}") for i, (im, k) in enumerate(zip(images, labels, strict=True))),
        named_by_file=True,
    )


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        split: (rng.integers(0, 256, (n, 5, 4, 3), np.uint8), rng.integers(0, 3, n).astype(np.int32))
        for split, n in (("train", 1500), ("test", 7))
    }


@pytest.fixture
def folder(tmp_path, arrays):
    cache.write(
        tmp_path / "x",
        "x",
        CLASSES,
        {split: examples(*pair) for split, pair in arrays.items()},
        {"key": "0", "path": ""},
    )
    return tmp_path / "x"


def test_written_arrays_are_read_back(folder, arrays):
    loaded = cache.read(folder)
    for split, (images, labels) in arrays.items():
        np.testing.assert_array_equal(loaded.images[split], images)
        np.testing.assert_array_equal(loaded.labels[split], labels)
        assert isinstance(loaded.images[split], np.memmap) and not loaded.images[split].flags.writeable
        assert loaded.labels[split].dtype == np.int32
        assert loaded.files[split] == tuple(f"image {i}" for i in range(len(labels)))
    assert loaded.facts["classes"] == list(CLASSES)
    pixels = arrays["train"][0] / 255
    np.testing.assert_allclose(loaded.facts["mean"], pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(loaded.facts["std"], pixels.std((0, 1, 2)), rtol=1e-12)


def test_an_empty_folder_is_reported_as_missing(tmp_path):
    with pytest.raises(artifact.Missing):
        cache.read(tmp_path / "absent")


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(manifest, **changes):
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def list_without(folder, name, **changes):
    """Removes a file from the manifest and renews its seal, as if the manifest had been written like this."""
    manifest = storage.read_json(folder / "manifest.json")
    del manifest["files"][name]
    storage.write_json(folder / "manifest.json", manifest | changes)


DAMAGE = {
    "flipped bit": lambda folder: flip_a_byte(folder / "train_images.npy"),
    "flipped label": lambda folder: flip_a_byte(folder / "test_labels.npy"),
    "truncated": lambda folder: (folder / "test_images.npy").write_bytes(
        (folder / "test_images.npy").read_bytes()[:-9]
    ),
    "empty": lambda folder: (folder / "train_labels.npy").write_bytes(b""),
    "pickle": lambda folder: np.save(folder / "train_labels.npy", np.array([{}], object), allow_pickle=True),
    "no array": lambda folder: (folder / "train_labels.npy").unlink(),
    "other file": lambda folder: flip_a_byte(folder / "train_files.json"),
    "no files": lambda folder: (folder / "test_files.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "not a number": lambda folder: (folder / "manifest.json").write_text('{"version": 1, "mean": [NaN]}'),
    "garbage": lambda folder: (folder / "manifest.json").write_bytes(b"\xff{"),
    "list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "no arrays": lambda folder: edit(folder / "manifest.json", files=None),
    "other mean": lambda folder: edit(folder / "manifest.json", facts={"mean": [0.5, 0.5, 0.5]}),
    "other layout": lambda folder: edit(folder / "manifest.json", format=cache.KIND.format + 1),
    "lists no array": lambda folder: list_without(folder, "test_labels.npy"),
    "lists no facts": lambda folder: list_without(folder, "train_files.json", facts=None),
    "nothing in it": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(folder, damage):
    DAMAGE[damage](folder)
    with pytest.raises(artifact.Damaged):
        cache.read(folder)


def test_another_version_is_not_reported_as_damage(folder):
    manifest = storage.read_json(folder / "manifest.json")
    storage.write_json(folder / "manifest.json", manifest | {"format": cache.KIND.format + 1})
    with pytest.raises(artifact.Outdated):
        cache.read(folder)


def test_both_splits_must_have_images_of_one_shape(tmp_path, arrays):
    images, labels = arrays["test"]
    splits = {"train": examples(*arrays["train"]), "test": examples(images[:, :, :3], labels)}
    with pytest.raises(UserError, match="image 0 is 3x5, images before it are 4x5"):
        cache.write(tmp_path / "x", "x", CLASSES, splits, {})


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (([], []), "x: train has no images"),
        (
            ([np.zeros((4, 4, 3), np.uint8), np.zeros((6, 5, 3), np.uint8)], [0, 1]),
            "image 1 is 5x6, .* 4x4: set data.im",
        ),
        (([np.zeros((4, 4, 3), np.uint8)], [3]), "image 0 has label 3, expected 0 to 2"),
        (([np.zeros((4, 4, 3), np.uint8)], [-1]), "image 0 has label -1, expected 0 to 2"),
    ],
)
def test_an_invalid_data_set_is_refused_and_nothing_is_written(tmp_path, arrays, train, message):
    splits = {"train": examples(*train), "test": examples(*arrays["test"])}
    with pytest.raises(UserError, match=message):
        cache.write(tmp_path / "x", "x", CLASSES, splits, {})
    assert not list(tmp_path.iterdir())
