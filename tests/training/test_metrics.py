"""Tests that records survive a killed process, and that a loss that is not finite stops the run."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training.metrics import Recorder, read_records, training_seconds

TASK = types.SimpleNamespace(total_steps=20, steps_per_epoch=10, recipe=types.SimpleNamespace(batch_size=5))


def recorder(path, stage="student", start=0, **arguments):
    return Recorder(path, [stage], start, TASK, **arguments)


def chunk(loss):
    return {"loss": np.array(loss), "accuracy": np.full(len(loss), 50.0)}


def test_a_record_holds_the_means_of_its_chunk(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with recorder(path) as records:
        records.chunk(0, chunk([1.0, 2.0]))
        records.chunk(2, chunk([5.0]))
    first, second = read_records(path)
    assert (first["step"], first["epoch"], first["loss"], first["accuracy"]) == (2, 0.2, 1.5, 50.0)
    assert (second["step"], second["loss"]) == (3, 5.0)
    assert training_seconds(path) == {"student": round(first["seconds"] + second["seconds"], 3), "compilation": 0}


def test_stages_side_by_side_have_records_of_their_own_and_share_the_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Recorder(path, ["a", "b"], 0, TASK) as records:
        records.chunk(0, {"loss": np.array([[1.0, 2.0], [3.0, 5.0]]), "accuracy": np.full((2, 2), 50.0)})
        with pytest.raises(UserError, match="b: .* at step 3"):
            records.chunk(2, {"loss": np.array([[1.0, 2.0], [3.0, np.nan]]), "accuracy": np.full((2, 2), 50.0)})
    first, second = read_records(path)
    assert (first["stage"], first["step"], first["loss"]) == ("a", 2, 1.5)
    assert (second["stage"], second["step"], second["loss"]) == ("b", 2, 4.0)
    assert first["seconds"] == second["seconds"]


def test_compilation_is_recorded_separately_from_training(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with recorder(path) as records:
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(np.ones((40, 40)))
        records.chunk(0, chunk([1.0]))
    [record] = read_records(path)
    assert 0 < record["compile_seconds"] <= record["seconds"]
    actual = training_seconds(path)
    assert actual["compilation"] == round(record["compile_seconds"], 3)
    assert actual["student"] == pytest.approx(record["seconds"] - record["compile_seconds"], abs=1e-3)


def test_after_a_restart_the_stages_later_records_are_dropped_and_others_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with recorder(path, "teacher") as records:
        records.chunk(0, chunk([1.0] * 20))
    with recorder(path) as records:
        records.chunk(0, chunk([1.0] * 4))
        records.chunk(4, chunk([1.0] * 4))
    with open(path, "a") as file:
        file.write('{"stage": "student", "st')  # an incomplete line, as a killed process leaves it
    with recorder(path, start=4) as records:
        records.chunk(4, chunk([3.0] * 4))
    actual = [(r["stage"], r["step"], r["loss"]) for r in read_records(path)]
    assert actual == [("teacher", 20, 1.0), ("student", 4, 1.0), ("student", 8, 3.0)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path, bad):
    with recorder(tmp_path / "m.jsonl") as records, pytest.raises(UserError, match="at step 12"):
        records.chunk(10, chunk([1.0, 1.0, bad, 1.0]))


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"a": '])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"stage": "a"}) + f"\n{line}\n" + json.dumps({"stage": "b"}) + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_records(path)


def test_a_line_that_has_changed_is_named(tmp_path):
    with recorder(tmp_path / "m.jsonl") as records:
        records.chunk(0, chunk([1.0] * 10))
        records.chunk(10, chunk([2.0] * 10))
    whole = (tmp_path / "m.jsonl").read_bytes()
    for place in range(whole.index(b"\n")):
        (tmp_path / "m.jsonl").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="line 1, is damaged"):
            read_records(tmp_path / "m.jsonl")


def test_tensorboard_events_are_written(tmp_path):
    with recorder(tmp_path / "m.jsonl", tensorboard=tmp_path / "events") as records:
        records.chunk(0, chunk([1.0]))
    assert any(path.stat().st_size > 0 for path in (tmp_path / "events").iterdir())


def test_progress_is_plain_lines_without_a_terminal(tmp_path, capsys):
    with recorder(tmp_path / "m.jsonl") as records:
        records.chunk(0, chunk([1.0] * 20))
    error = capsys.readouterr().err
    assert "student: step 20/20, loss 1.000, accuracy 50.0%" in error
    assert "\r" not in error
