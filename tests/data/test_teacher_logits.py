"""Tests that stored outputs of a teacher are read only if they are unchanged, and tests of the user's logits file."""

import numpy as np
import pytest

from cnn2gnn_jax.data import teacher_logits
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError

ROWS = {"train": 7, "test": 3}


@pytest.fixture
def folder(tmp_path):
    arrays = {name: np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32) for name, rows in ROWS.items()}
    teacher_logits.write(tmp_path / "logits", "abc", ROWS, [arrays], {"test_accuracy": 50.0})
    return tmp_path / "logits"


def test_written_arrays_are_read_as_memory_maps(folder):
    arrays, facts = teacher_logits.read(folder, "abc", ROWS)
    assert isinstance(arrays["train"], np.memmap)
    assert {name: array.shape for name, array in arrays.items()} == {"train": (7, 4), "test": (3, 4)}
    assert facts["test_accuracy"] == 50.0


def test_arrays_written_in_blocks_are_complete(tmp_path):
    whole = {f"train_{k}": np.random.default_rng(k).normal(size=(7, k, 2)).astype(np.float32) for k in (1, 2)}
    blocks = ({name: array[rows] for name, array in whole.items()} for rows in (slice(0, 3), slice(3, 6), slice(6, 7)))
    teacher_logits.write(tmp_path / "maps", "abc", {"train": 7}, blocks, {})
    loaded, _ = teacher_logits.read(tmp_path / "maps", "abc", {"train": 7})
    for name, array in whole.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_an_error_between_blocks_leaves_nothing(tmp_path):
    def blocks():
        yield {"train": np.zeros((3, 2), np.float32)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_logits.write(tmp_path / "maps", "abc", {"train": 7}, blocks(), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_not_stored(tmp_path, bad):
    blocks = ({"train": np.full((1, 2), value, np.float32)} for value in (0, 1, bad))
    with pytest.raises(UserError, match="train outputs are not finite from image 2 on"):
        teacher_logits.write(tmp_path / "logits", "abc", {"train": 3}, blocks, {})
    assert not list(tmp_path.iterdir())


def test_outputs_are_computed_once(folder):
    def never():
        raise AssertionError

    arrays, _ = teacher_logits.ensure(folder, "abc", ROWS, never)
    assert set(arrays) == set(ROWS)


@pytest.mark.parametrize("name", ["train.npy", "test.npy"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "swap", "pickle"])
def test_damage_is_reported(folder, name, damage):
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
        ({"fingerprint": "xyz"}, "outputs of a teacher with the fingerprint xyz, expected abc"),
        ({"files": None}, "damaged"),
        ({"files": {"train.npy": {}}}, "damaged"),
        ({"files": {"train.npy": 3}}, "damaged"),
    ],
)
def test_another_manifest_is_refused(folder, change, message):
    path = folder / artifact.MANIFEST
    storage.write_json(path, storage.read_json(path) | change)
    with pytest.raises(UserError, match=message):
        teacher_logits.read(folder, "abc", ROWS)


def test_outputs_of_another_format_are_computed_again(folder, capsys):
    path = folder / artifact.MANIFEST
    storage.write_json(path, storage.read_json(path) | {"format": 0})
    with pytest.raises(
        artifact.Outdated, match=r"by another version of this program \(.*format 0; this one is .*, format 2\)"
    ):
        teacher_logits.read(folder, "abc", ROWS)
    arrays = {name: np.ones((rows, 4), np.float32) for name, rows in ROWS.items()}
    loaded, _ = teacher_logits.ensure(folder, "abc", ROWS, lambda: ([arrays], {}))
    assert loaded["train"][0, 0] == 1
    log = capsys.readouterr().err
    assert "made anew: " in log and "format 0" in log and "damaged" not in log


def test_arrays_of_other_data_are_refused(folder):
    with pytest.raises(UserError, match="for 8 images"):
        teacher_logits.read(folder, "abc", {"train": 8, "test": 3})


LABELS = np.repeat(np.arange(4), 25)
GOOD = np.eye(4)[LABELS] + np.random.default_rng(0).normal(size=(100, 4)) / 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_a_logits_file_is_read_as_float32(tmp_path, dtype):
    np.save(tmp_path / "x.npy", GOOD.astype(dtype))
    logits, accuracy = teacher_logits.read_logits_file(str(tmp_path / "x.npy"), LABELS, 4)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, GOOD, rtol=2e-3, atol=1e-3)
    assert accuracy == 100 * np.mean(GOOD.argmax(1) == LABELS)


def with_value(value):
    changed = GOOD.copy()
    changed[7, 2] = value
    return changed


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (GOOD[:-1], r"float64\[99, 4\]: expected an .npy of 100 x 4 floats"),
        (GOOD.T, r"float64\[4, 100\]"),
        (GOOD.astype(int), r"int64\[100, 4\]"),
        (GOOD + 0j, "complex128"),
        (GOOD.astype(object), "cannot be read .*Python objects"),
        (with_value(np.nan), "row 7 is not finite in float32, and 1 rows in all"),
        (with_value(1e300), "row 7 is not finite"),
        (np.random.default_rng(1).permutation(GOOD), "no better than guessing .*in the data set's order"),
        (-GOOD, "no better than guessing"),
        (np.zeros((100, 4)), "gives 25.00% .*no better than guessing"),
    ],
)
def test_a_logits_file_that_cannot_be_right_is_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message) as raised:
        teacher_logits.read_logits_file(str(tmp_path / "x.npy"), LABELS, 4)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_not_an_array_is_refused(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        teacher_logits.read_logits_file(str(tmp_path / "x.npy"), LABELS, 4)


def test_an_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", GOOD)
    with pytest.raises(UserError, match="holds an archive"):
        teacher_logits.read_logits_file(str(tmp_path / "x.npz"), LABELS, 4)
