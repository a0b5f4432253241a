"""Tests that a folder is read as it was written or refused with a reason, even if two processes write it at once."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError

KIND = artifact.Kind("a bank", format=3, remake="bank again")
ARRAYS = {
    "keys": np.arange(12.0, dtype=np.float32).reshape(4, 3),
    "labels": np.array([0, 1, 1, 0], np.int32),
    "files": np.array(["a/1.png", "b/é.png", "c", ""]),
    "none": np.zeros((0, 5), np.uint8),
    "scalar": np.float64(2.5),
}
FACTS = {"width": 3, "names": ["é", "x\n"], "rate": 1e-7, "nothing": None}


@pytest.fixture
def folder(tmp_path):
    artifact.write(tmp_path / "bank", KIND, "abc", FACTS, ARRAYS)
    return tmp_path / "bank"


def manifest_of(folder):
    return storage.read_json(folder / artifact.MANIFEST)


def change(folder, **fields):
    """Changes a manifest and renews its seal, as if the manifest had been written like this."""
    storage.write_json(folder / artifact.MANIFEST, manifest_of(folder) | fields)


def test_arrays_are_read_as_memory_maps(folder):
    opened = artifact.read(folder, KIND, "abc")
    assert opened.fingerprint == "abc" and opened.facts == FACTS and opened.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        array_read = opened.arrays[name]
        assert isinstance(array_read, np.memmap) and not array_read.flags.writeable
        assert array_read.dtype == array.dtype and array_read.shape == array.shape
        np.testing.assert_array_equal(array_read, array)
    assert artifact.read(folder, KIND).facts == FACTS  # any fingerprint is accepted
    assert [path.name for path in folder.parent.iterdir()] == ["bank"]


def test_the_manifest_lists_the_files(folder):
    manifest = manifest_of(folder)
    assert {name: manifest[name] for name in ("kind", "format", "fingerprint")} == {
        "kind": "a bank",
        "format": 3,
        "fingerprint": "abc",
    }
    assert manifest["program"].startswith("cnn2gnn_jax ")
    assert manifest["files"]["keys.npy"] == {
        "sha256": storage.sha256(folder / "keys.npy"),
        "shape": [4, 3],
        "dtype": "float32",
    }


def test_existing_files_are_sealed_in_place_and_unlisted_ones_may_change(tmp_path):
    (tmp_path / "step" / "state" / "d").mkdir(parents=True)
    (tmp_path / "step" / "state" / "d" / "x").write_bytes(b"x")
    (tmp_path / "step" / "later").write_text("1")
    artifact.seal(tmp_path / "step", KIND, "abc", {}, unlisted=("later",))
    (tmp_path / "step" / "later").write_text("2")
    opened = artifact.read(tmp_path / "step", KIND, "abc")
    assert opened.files.keys() == {"state/d/x"} and not opened.arrays
    (tmp_path / "step" / "state" / "d" / "x").write_bytes(b"y")
    with pytest.raises(artifact.Damaged, match=r"step is damaged \(state/d/x is not what was written\)"):
        artifact.read(tmp_path / "step", KIND, "abc")


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit(folder, **fields):
    """Changes a manifest but keeps its old seal."""
    path = folder / artifact.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def without(folder, name):
    manifest = manifest_of(folder)
    del manifest[name]
    storage.write_json(folder / artifact.MANIFEST, manifest)


def without_seal(folder):
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest_of(folder)))


def list_as(folder, name, **facts):
    files = manifest_of(folder)["files"]
    change(folder, files=files | {name: files.get(name, {}) | facts})


def pickled(folder):
    np.save(folder / "keys.npy", np.array([{}], object), allow_pickle=True)
    list_as(folder, "keys.npy", sha256=storage.sha256(folder / "keys.npy"))


def another_array(folder):
    np.save(folder / "keys.npy", ARRAYS["keys"].astype(np.float64))
    list_as(folder, "keys.npy", sha256=storage.sha256(folder / "keys.npy"))


DAMAGE = {
    "flipped": (lambda folder: flip(folder / "keys.npy"), r"keys\.npy is not what was written"),
    "flipped header": (lambda folder: flip(folder / "keys.npy", 40), r"keys\.npy"),
    "truncated": (
        lambda folder: (folder / "keys.npy").write_bytes((folder / "keys.npy").read_bytes()[:-1]),
        r"keys\.npy: mmap length is greater than file size",
    ),
    "no header": (lambda folder: (folder / "keys.npy").write_bytes(b"\x93NUMPY"), r"keys\.npy: "),
    "emptied": (lambda folder: (folder / "labels.npy").write_bytes(b""), r"labels\.npy: "),
    "removed": (lambda folder: (folder / "labels.npy").unlink(), r"labels\.npy is missing"),
    "swapped": (lambda folder: shutil.copy(folder / "keys.npy", folder / "labels.npy"), r"labels\.npy is not"),
    "a folder": (lambda folder: ((folder / "keys.npy").unlink(), (folder / "keys.npy").mkdir()), "keys.npy is missing"),
    "no manifest": (lambda folder: (folder / artifact.MANIFEST).unlink(), r"manifest\.json is missing"),
    "nothing in it": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), r"manifest\.json is missing"),
    "no JSON": (lambda folder: (folder / artifact.MANIFEST).write_bytes(b"\xff{"), r"manifest\.json: "),
    "half a manifest": (
        lambda folder: (folder / artifact.MANIFEST).write_text((folder / artifact.MANIFEST).read_text()[:-9]),
        r"manifest\.json: ",
    ),
    "deep": (lambda folder: (folder / artifact.MANIFEST).write_text("[" * 100_000), r"manifest\.json: "),
    "a list": (lambda folder: (folder / artifact.MANIFEST).write_text("[]"), "no JSON object"),
    "not a number": (lambda folder: edit(folder, facts={"width": float("nan")}), r"manifest\.json: "),
    "other facts": (lambda folder: edit(folder, facts={"width": 4}), "it is not what was written"),
    "other hash": (lambda folder: edit(folder, files={}), "it is not what was written"),
    "other format": (lambda folder: edit(folder, format=4), "it is not what was written"),
    "no seal": (without_seal, "it has no seal"),
    "no files": (lambda folder: without(folder, "files"), r"manifest\.json lacks 'files'"),
    "no facts": (lambda folder: change(folder, facts=[1]), "no facts or files"),
    "no fingerprint": (lambda folder: without(folder, "fingerprint"), "lacks 'fingerprint'"),
    "no hash": (lambda folder: change(folder, files={"keys.npy": {}}), "lacks 'sha256'"),
    "a number for a file": (lambda folder: change(folder, files={"keys.npy": 3}), "is damaged"),
    "another shape": (
        lambda folder: list_as(folder, "keys.npy", shape=[3, 4]),
        r"keys\.npy is float32\[4, 3\], unlike",
    ),
    "another dtype": (
        lambda folder: list_as(folder, "keys.npy", dtype="int32"),
        r"keys\.npy is float32\[4, 3\], unlike",
    ),
    "another array": (another_array, r"keys\.npy is float64\[4, 3\], unlike"),
    "a pickle": (pickled, "Python objects"),
    "no array": (lambda folder: list_as(folder, "x", sha256=storage.sha256(folder / "keys.npy")), "x is missing"),
    "a file outside": (
        lambda folder: list_as(folder, "../x", sha256=storage.sha256(folder / "keys.npy")),
        r"\.\./x is missing",
    ),
    "a file elsewhere": (lambda folder: list_as(folder, "/etc/passwd", sha256=""), "/etc/passwd is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_detected_and_the_error_says_what_to_do(folder, damage):
    action, message = DAMAGE[damage]
    shutil.copy(folder / "keys.npy", folder.parent / "x")  # a file outside the folder
    action(folder)
    with pytest.raises(artifact.Damaged, match=message) as raised:
        artifact.read(folder, KIND, "abc")
    text = str(raised.value)
    assert text.startswith(f"{folder} is damaged (") and text.endswith("): delete it and bank again")
    assert "\n" not in text and isinstance(raised.value, UserError)


def test_every_byte_of_the_manifest_counts(folder):
    path = folder / artifact.MANIFEST
    content = path.read_bytes()
    for place in range(0, len(content) - 1, 7):  # the last byte is a newline
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            opened = artifact.read(folder, KIND, "abc")
        except artifact.Refused:
            continue
        # The change replaced white space by other white space, or wrote the same number in another way.
        assert opened.facts == FACTS and opened.fingerprint == "abc"


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        artifact.write(tmp_path / "bank", KIND, "abc", {}, {"keys": np.array([Trap()], object)})
    assert not list(tmp_path.iterdir())
    artifact.write(tmp_path / "bank", KIND, "abc", {}, ARRAYS)
    for content in (pickle.dumps(Trap()), None):
        if content is None:
            np.save(tmp_path / "bank" / "keys.npy", np.array([Trap()], object), allow_pickle=True)
        else:
            (tmp_path / "bank" / "keys.npy").write_bytes(content)
        list_as(tmp_path / "bank", "keys.npy", sha256=storage.sha256(tmp_path / "bank" / "keys.npy"))
        with pytest.raises(artifact.Damaged):
            artifact.read(tmp_path / "bank", KIND, "abc")
    assert not (tmp_path / "sprung").exists()


def test_a_folder_that_does_not_exist_is_missing(tmp_path):
    with pytest.raises(artifact.Missing, match="bank is missing: bank again"):
        artifact.read(tmp_path / "bank", KIND, "abc")


def test_another_format_is_outdated_and_the_error_names_both_versions(folder):
    change(folder, format=2, program="cnn2gnn_jax 0.0.9")
    flip(folder / "keys.npy")  # the format is checked before the files
    with pytest.raises(
        artifact.Outdated,
        match=r"bank was written by another version of this program \(cnn2gnn_jax 0.0.9, format 2; this one is "
        r"cnn2gnn_jax .*, format 3\): delete it and bank again",
    ):
        artifact.read(folder, KIND, "abc")
    storage.write_json(folder / artifact.MANIFEST, {"version": 1, "arrays": {}})  # of a version without these fields
    with pytest.raises(artifact.Outdated, match=r"\(format None; this one"):
        artifact.read(folder, KIND, "abc")


def test_another_fingerprint_or_kind_is_refused(folder):
    with pytest.raises(
        artifact.Foreign, match="holds a bank with the fingerprint abc, expected xyz: delete it and bank"
    ):
        artifact.read(folder, KIND, "xyz")
    with pytest.raises(artifact.Foreign, match="holds a bank, expected a data set"):
        artifact.read(folder, KIND._replace(name="a data set"), "abc")
    assert artifact.read(folder, KIND, "abc")


def test_a_manifest_is_read_without_its_files(folder):
    (folder / "keys.npy").unlink()
    assert artifact.read_manifest(folder, KIND, "abc")["facts"] == FACTS
    with pytest.raises(artifact.Foreign) as raised:
        artifact.read_manifest(folder, KIND, "xyz")
    assert raised.value.manifest["facts"] == FACTS


def test_facts_of_another_type_are_damage_but_errors_of_the_system_are_not(folder):
    for wrong in (
        lambda: FACTS["no such fact"],
        lambda: FACTS["width"]["x"],
        lambda: int("x"),
        lambda: os.stat("/nowhere"),
    ):
        with pytest.raises(artifact.Damaged), artifact.intact(folder, KIND):
            wrong()
    for error in (UserError("x"), PermissionError(13, "x"), MemoryError()):
        with pytest.raises(type(error)), artifact.intact(folder, KIND):
            raise error


def test_an_interrupted_write_leaves_the_old_folder(folder):
    class Breaks:
        def items(self):
            yield "keys", np.zeros(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.write(folder, KIND, "abc", {}, Breaks())
    with pytest.raises(ValueError, match="Out of range float values"):
        artifact.write(folder, KIND, "abc", {"loss": float("nan")}, {})
    assert artifact.read(folder, KIND, "abc").facts == FACTS
    assert [path.name for path in folder.parent.iterdir()] == ["bank"]


def test_ensure_makes_a_folder_once_and_again_if_it_cannot_be_used(tmp_path, capsys):
    folder, made = tmp_path / "bank", []

    def ensure(fingerprint="abc", replaces=False):
        def make():
            made.append(fingerprint)
            artifact.write(folder, KIND, fingerprint, FACTS, ARRAYS)

        return artifact.ensure(folder, KIND, fingerprint, make, replaces)

    for _ in range(2):
        np.testing.assert_array_equal(ensure().arrays["keys"], ARRAYS["keys"])
    assert len(made) == 1 and capsys.readouterr().err == ""
    flip(folder / "keys.npy")
    np.testing.assert_array_equal(ensure().arrays["keys"], ARRAYS["keys"])
    assert capsys.readouterr().err == f"made anew: {folder} is damaged (keys.npy is not what was written)\n"
    change(folder, format=2)
    assert ensure() and "made anew" in (log := capsys.readouterr().err) and "damaged" not in log
    with pytest.raises(artifact.Foreign):
        ensure("xyz")
    assert len(made) == 3
    assert ensure("xyz", replaces=True).fingerprint == "xyz" and capsys.readouterr().err == ""
    assert len(made) == 4


WRITE = """
import pathlib, sys, numpy as np
from cnn2gnn_jax.runtime import artifact
kind = artifact.Kind("a bank", format=3, remake="bank again")
for k in range(int(sys.argv[2]), int(sys.argv[2]) + 100_000, 2):
    artifact.write(pathlib.Path(sys.argv[1]), kind, "abc", {"k": k}, {"keys": np.full(100_000, k)})
    if k < 2: print(k, flush=True)
"""


def writer(folder, first):
    """Starts a process that writes the folder repeatedly, with every second number from `first` on."""
    command = [sys.executable, "-c", WRITE, str(folder), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_folder_is_complete_or_absent_after_a_kill_at_any_moment(tmp_path):
    folder = tmp_path / "bank"
    for trial in range(4):
        process = writer(folder, 0)
        assert process.stdout.readline()
        time.sleep(0.005 + 0.013 * trial)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if folder.exists():  # then it must be complete
            opened = artifact.read(folder, KIND, "abc")
            assert np.all(opened.arrays["keys"] == opened.facts["k"])
    artifact.write(folder, KIND, "abc", {"k": 0}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["bank"]  # remains of killed processes are removed


def test_two_writers_take_turns(tmp_path):
    folder = tmp_path / "bank"
    writers = [writer(folder, first) for first in range(2)]
    assert all(process.stdout.readline() for process in writers)
    seen, until = set(), time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < until:  # until both were seen to write
        try:
            opened = artifact.read(folder, KIND, "abc")
        except artifact.Refused:
            continue  # it is being replaced at this moment
        assert np.all(opened.arrays["keys"] == opened.facts["k"])
        seen.add(opened.facts["k"] % 2)
    for process in writers:
        assert process.poll() is None, process.stderr.read()
        process.kill()
        process.communicate()
    assert len(seen) == 2
