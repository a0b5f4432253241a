"""Claims: one owner at a time, whatever happens to owners."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from cnn2gnn_jax.sweeps.claims import Claims

ROOT = pathlib.Path(__file__).parents[2]


def hold(claims, name="cell"):
    return claims.hold(name, lambda: None)


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_claim_has_one_owner_and_is_free_afterwards(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    with hold(first) as mine:
        assert mine and first.held() == 1
        with hold(second) as theirs:
            assert not theirs
        with hold(second, "another") as theirs:
            assert theirs and second.held() == 2
    with hold(second) as theirs:
        assert theirs
    assert list(tmp_path.iterdir()) == []


def test_an_error_frees_the_claim(tmp_path):
    with pytest.raises(RuntimeError), hold(Claims(tmp_path)):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_renewed_and_a_silent_one_taken_over(tmp_path):
    lost = threading.Event()
    claims = Claims(tmp_path, renew_seconds=0.05)
    with claims.hold("cell", lost.set) as mine:
        assert mine
        age(tmp_path / "cell", 400)
        deadline = time.monotonic() + 10
        while time.time() - (tmp_path / "cell").stat().st_mtime > 300 and time.monotonic() < deadline:
            time.sleep(0.01)
        with hold(Claims(tmp_path)) as theirs:
            assert not theirs  # renewed in time
    assert not lost.is_set()

    with Claims(tmp_path, renew_seconds=0.5).hold("cell", lost.set):
        age(tmp_path / "cell", 400)
        with hold(Claims(tmp_path)) as theirs:
            assert theirs
            assert lost.wait(10)  # the silent owner is told
    assert list(tmp_path.iterdir()) == []


def test_a_claim_outlives_a_folder_that_is_away_and_is_taken_back(tmp_path, monkeypatch):
    lost, failed, touch = threading.Event(), threading.Event(), os.utime

    def away(path, *arguments):
        if not failed.is_set():
            failed.set()
            raise OSError(5, "Input/output error")
        touch(path, *arguments)

    monkeypatch.setattr(os, "utime", away)
    with Claims(tmp_path, renew_seconds=0.02).hold("cell", lost.set):
        assert failed.wait(10)
        (tmp_path / "cell").unlink()  # by one that found its owner alive after all
        deadline = time.monotonic() + 10
        while not (tmp_path / "cell").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "cell").exists() and not lost.is_set()
    assert list(tmp_path.iterdir()) == []


_RACE = """
import pathlib, sys, time
from cnn2gnn_jax.sweeps.claims import Claims
claims, order = Claims(pathlib.Path(sys.argv[1]) / "claims"), pathlib.Path(sys.argv[1]) / "order"
while time.time() < float(sys.argv[2]):
    pass
for k in range(200):
    with claims.hold(f"cell{k}", lambda: None) as mine:
        if mine and not (order / f"{k}").exists():
            with open(order / f"{k}", "x") as file:  # fails if two do the same piece
                file.write(sys.argv[3])
"""


def test_processes_that_race_for_stale_claims_do_each_piece_once(tmp_path):
    (tmp_path / "order").mkdir()
    Claims(tmp_path / "claims")
    for k in range(0, 200, 2):
        (tmp_path / "claims" / f"cell{k}").write_text("a process that was killed")
        age(tmp_path / "claims" / f"cell{k}", 301)
    start = str(time.time() + 1.5)
    racers = [
        subprocess.Popen([sys.executable, "-c", _RACE, str(tmp_path), start, str(n)], cwd=ROOT, stderr=subprocess.PIPE)
        for n in range(4)
    ]
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors.decode()
    assert len(list((tmp_path / "order").iterdir())) == 200
    assert list((tmp_path / "claims").iterdir()) == []


def test_the_claim_of_a_process_that_was_killed_here_is_taken_over_at_once(tmp_path):
    program = (
        "import pathlib, sys, time\nfrom cnn2gnn_jax.sweeps.claims import Claims\n"
        "with Claims(pathlib.Path(sys.argv[1])).hold('cell', lambda: None): print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout.readline() == "held\n"
    with hold(Claims(tmp_path)) as mine:
        assert not mine
    owner.kill()
    owner.communicate()
    with hold(Claims(tmp_path)) as mine:
        assert mine
