"""Tests that files are either complete or absent, and that a lock has one owner at a time."""

import subprocess
import sys
import threading
import time

import pytest

from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError


def test_fingerprints_depend_on_values_but_not_on_the_order_of_keys():
    assert storage.fingerprint({"a": 1, "b": [2, 3]}) == storage.fingerprint({"b": [2, 3], "a": 1})
    values = [{"a": 1}, {"a": 2}, {"a": 1.5}, {"a": "1"}, {"b": 1}, {"a": [1]}, {"a": None}]
    assert len({storage.fingerprint(value) for value in values}) == len(values)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    storage.write_json(path, {"old": True})

    def fail():
        with storage.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert storage.read_json(path) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_atomically_and_leftovers_are_removed(tmp_path):
    folder = tmp_path / "arrays"
    remains = tmp_path / ".arrays.killed.partial"
    remains.mkdir()
    for text in ("first", "second"):
        with storage.atomic_folder(folder) as temporary:
            (temporary / text).write_text(text)
            assert not (folder / text).exists()
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert not remains.exists()

    def fail():
        with storage.atomic_folder(folder) as temporary:
            (temporary / "third").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["arrays"]


def test_changed_json_is_refused_by_name_and_json_without_a_seal_is_read(tmp_path):
    path = tmp_path / "facts.json"
    value = {"accuracy": 71.25, "1": [None, True, "é"], "seconds": 1e-7}
    storage.write_json(path, value)
    assert storage.read_json(path) == value
    path.write_text(path.read_text().replace("71.25", "71.75"))
    with pytest.raises(UserError, match=r"facts\.json is damaged \(it is not what was written"):
        storage.read_json(path)
    path.write_text('{"accuracy": 71.75}')
    assert storage.read_json(path) == {"accuracy": 71.75}


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"a": }', "\x00", "[" * 100_000])
def test_damaged_json_is_named(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        storage.read_json(path)


def test_a_lock_without_keep_removes_its_file_and_passes_to_a_waiting_process(tmp_path):
    path, events = tmp_path / ".lock", []

    def wait():
        with storage.lock(path, wait=True, keep=False):
            events.append("second")
            assert path.exists()

    with storage.lock(path, wait=True, keep=False):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        with pytest.raises(UserError, match="in use by process"), storage.lock(path, wait=False):
            pass
        events.append("first")
    waiting.join(10)
    assert events == ["first", "second"] and not path.exists()


def test_a_lock_refuses_another_process_with_its_owner_and_ends_with_it(tmp_path):
    path = tmp_path / "run" / ".lock"
    hold = (
        "import sys, pathlib; from cnn2gnn_jax.runtime import storage\n"
        "with storage.lock(pathlib.Path(sys.argv[1]), wait=False): print('held', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {owner.pid}"), storage.lock(path, wait=False):
            pass
    finally:
        owner.kill()
        owner.communicate()
    with storage.lock(path, wait=False):
        pass
