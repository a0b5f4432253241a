"""Stored logits are opened only if every byte and every fact is as it was written."""

import json

import numpy as np
import pytest

from cnn2gnn_jax import teacher_logits
from cnn2gnn_jax.errors import UserError

ROWS = {"train": 7, "test": 3}


@pytest.fixture
def folder(tmp_path):
    arrays = {name: np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32) for name, rows in ROWS.items()}
    teacher_logits.write(tmp_path / "logits", "abc", ROWS, [arrays], {"test_accuracy": 50.0})
    return tmp_path / "logits"


def test_what_was_written_is_read_from_a_memory_map(folder):
    arrays, facts = teacher_logits.read(folder, "abc", ROWS)
    assert isinstance(arrays["train"], np.memmap)
    assert {name: array.shape for name, array in arrays.items()} == {"train": (7, 4), "test": (3, 4)}
    assert facts["test_accuracy"] == 50.0


def test_arrays_written_block_after_block_are_whole(tmp_path):
    whole = {f"train_{k}": np.random.default_rng(k).normal(size=(7, k, 2)).astype(np.float32) for k in (1, 2)}
    blocks = ({name: array[rows] for name, array in whole.items()} for rows in (slice(0, 3), slice(3, 6), slice(6, 7)))
    teacher_logits.write(tmp_path / "maps", "abc", {"train": 7}, blocks, {})
    found, _ = teacher_logits.read(tmp_path / "maps", "abc", {"train": 7})
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_breaks_off_between_blocks_leaves_nothing(tmp_path):
    def blocks():
        yield {"train": np.zeros((3, 2), np.float32)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_logits.write(tmp_path / "maps", "abc", {"train": 7}, blocks(), {})
    assert not list(tmp_path.iterdir())


def test_they_are_computed_once(folder):
    def never():
        raise AssertionError

    arrays, _ = teacher_logits.ensure(folder, "abc", ROWS, never)
    assert set(arrays) == set(ROWS)


@pytest.mark.parametrize("name", ["train.npy", "test.npy"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "swap", "pickle"])
def test_damage_is_found_and_named(folder, name, damage):
    path, other = folder / name, folder / ("test.npy" if name == "train.npy" else "train.npy")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "remove":
        path.unlink()
    elif damage == "swap":
        path.write_bytes(other.read_bytes())
    else:
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=name):
        teacher_logits.read(folder, "abc", ROWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "xyz"}, "teacher xyz, expected abc"),
        ({"arrays": None}, "damaged"),
        ({"arrays": {"train": {}}}, "damaged"),
        ({"arrays": {"train": 3}}, "damaged"),
    ],
)
def test_another_manifest_is_refused(folder, change, message):
    path = folder / teacher_logits.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        teacher_logits.read(folder, "abc", ROWS)


def test_arrays_of_other_data_are_refused(folder):
    with pytest.raises(UserError, match="for 8 images"):
        teacher_logits.read(folder, "abc", {"train": 8, "test": 3})
