"""Tests of the sweep command: a real sweep that two processes share, its report, and the flags."""

import csv
import json
import pathlib
import subprocess
import sys

import pytest

from cnn2gnn_jax import sweep
from cnn2gnn_jax.report.__main__ import write as write_report
from cnn2gnn_jax.runtime import processes
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import records
from tests.sweeps.conftest import SWEEP

ROOT = pathlib.Path(__file__).parents[2]


def test_a_real_sweep_shared_by_two_processes_and_its_report(tmp_path, file, cache):
    file.write_text(SWEEP.replace("range(2)", "range(1)").replace(', "gnn")', ")"))
    command = [sys.executable, "-m", "cnn2gnn_jax.sweep", f"--sweep={file}", f"--out={tmp_path / 'out'}"]
    command += [f"--config.cache_dir={cache}"]
    workers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    text = "".join(errors)
    assert text.count("evaluating graph_learned-seed0") == text.count("evaluating cnn-seed0") == 1  # each cell once
    page = write_report(tmp_path / "out", cache).read_text()
    assert "<script" in page and "http:" not in page and "https:" not in page
    for phrase in ("CNN2GNN, batch by batch", "CNN2GNN, graph off", "Figure 3", "Figure 5", "audit of how much"):
        assert phrase in page, phrase
    recorded = records.read(tmp_path / "out")
    [accuracy] = [
        entry["accuracy"] for record in recorded for entry in record["accuracies"] if record["method"] == "kd"
    ]
    with open(tmp_path / "out/report/table_tiny.csv", newline="") as opened:
        rows = {row[0]: row for row in csv.reader(opened)}
    assert float(rows["KD"][2]) == pytest.approx(accuracy, abs=1e-3)
    assert json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[0])["places"]
    for record in recorded:
        for entry in record["accuracies"]:
            assert entry["correct"].shape == (record["dataset"]["evaluated_images"],)
            assert 100 * entry["correct"].mean() == pytest.approx(entry["accuracy"], abs=1e-4)
    # The tables made from only results.jsonl and correct.npz are the same.
    whole, alone = (tmp_path / "out/report/results.md").read_text(), tmp_path / "alone"
    alone.mkdir()
    for name in ("results.jsonl", "correct.npz"):
        (alone / name).write_bytes((tmp_path / "out" / name).read_bytes())
    write_report(alone, cache)
    assert (alone / "report/results.md").read_text() == whole
    assert "of a single seed are over images alone" in whole
    # Without the predictions, a single seed has no interval.
    (alone / "correct.npz").unlink()
    write_report(alone, cache)
    assert "over images alone" not in (alone / "report/results.md").read_text()


def test_the_command_runs_a_shard_and_lists_it(tmp_path, file, fake_pipeline, monkeypatch, capsys):
    monkeypatch.setattr(processes, "install_signal_handlers", lambda: None)

    def command(*flags):
        monkeypatch.setattr(sys, "argv", ["sweep", f"--sweep={file}", f"--out={tmp_path / 'out'}", *flags])
        sweep.main()
        return capsys.readouterr().out.splitlines()

    listed = [command("--dry_run", f"--shard={k}/2") for k in (1, 2)]
    assert [[line.split("  ")[1] for line in lines] for lines in listed] == [["-"] * 4, ["-"] * 2]
    assert sorted([*listed[0], *listed[1]]) == sorted(command("--dry_run"))
    assert not (tmp_path / "out").exists()
    assert command("--shard=2/2")[0] == "2 of 2 cells of shard 2/2 done, 0 failed, 0 left"
    assert [line.split("  ")[1] for line in command("--dry_run", "--shard=2/2")] == ["done"] * 2
    assert command("--shard=3/3", "--cells=1")[0] == "1 of 1 cells of shard 3/3 done, 0 failed, 0 left"
    assert command("--cells=1")[0] == "3 of 6 cells done, 0 failed, 3 left"
    assert command("--shard=7/7")[0] == "0 of 0 cells of shard 7/7 done, 0 failed, 0 left"
    assert command()[0] == "6 of 6 cells done, 0 failed, 0 left" and len(fake_pipeline) == 6
    listed = command("--dry_run", "--config.student.hidden=8", "--config.seeds=2")
    assert len(listed) == 6 and [line.split("  ")[1] for line in listed] == ["-"] * 6  # the fields apply to every cell
    for wrong, message in (
        ("--config.student.hiden=8", "there is no field config.student.hiden: did you mean config.student.hidden"),
        ("--config.sparsity=8", "there is no field config.sparsity: did you mean config.student.sparsity"),
        ("--config.data.name.first=1", "there is no field config.data.name.first"),
        ("--config.student=1", "config.student is a section: set one of its fields"),
        ("--config.student.hidden=many", "--config.student.hidden=many: expected a value of type int"),
        ("--config.student.hidden=__import__('os')", "expected a value of type int"),
        ("--config.student.hidden=0", "student.hidden is 0"),
        ("--minutes=-1", "expected 0, for no limit, or more"),
    ):
        with pytest.raises(UserError) as refused:
            command("--dry_run", wrong)
        assert message in str(refused.value) and "\n" not in str(refused.value)
    for wrong in ("0/3", "4/3", "a/b"):
        with pytest.raises(UserError, match=f"--shard={wrong}: expected K/N with K from 1 to N"):
            command(f"--shard={wrong}")
