"""Tests of tuning: the fields of each arm are chosen on held-out images, and the report shows the choices."""

from cnn2gnn_jax import pipeline
from cnn2gnn_jax.report.tables import all_tables
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.sweeps import records, tuning
from tests.sweeps.conftest import TUNED, cells_of, run_sweep


def test_each_arm_is_tuned_on_held_out_images_and_tested_once(tmp_path, tuned_file, tuned_pipeline):
    cells, out = cells_of(tuned_file), tmp_path / "out"
    # Cells that differ in their seed share their candidates.
    assert len(cells) == 2 * 3 + 2 * 2
    assert [bool(cell.candidates) for cell in cells] == [False] * 3 + [True] + [False] * 3 + [True] * 3
    assert run_sweep(cells, out) == (10, 0, False)
    held_out = [run for run in tuned_pipeline if run[1] == "holdout"]
    assert held_out == [
        (method, "holdout", 0.2, 0, tuning.SEEDS, rate)
        for method in ("cnn2gnn", "cnn2gnn_off")
        for rate in (0.01, 0.02, 0.04)
    ]
    # The candidate that diverged is not chosen, and accuracies under other protocols are not used.
    assert [run for run in tuned_pipeline if run[1] == "test"] == [
        (method, "test", 0.0, seed, 1, {"cnn2gnn": 0.04, "cnn2gnn_off": 0.02}[method])
        for seed in (4, 5)
        for method in ("cnn2gnn", "cnn2gnn_off")
    ]
    stored = records.read(out)
    assert len(stored) == 4  # without the candidates
    mean = (tuning.SEEDS - 1) / 2
    assert stored[1]["tuned"] == {
        "fields": {"student.train.learning_rate": 0.02},
        "candidates": [
            {"fields": {"student.train.learning_rate": rate}, "accuracy": accuracy}
            for rate, accuracy in ((0.01, None), (0.02, 8.0 + mean), (0.04, 6.0 + mean))
        ],
        "images": 10,
        "seeds": tuning.SEEDS,
    }
    assert stored[1]["config"]["student.train.learning_rate"] == 0.02


def test_the_report_pairs_tuned_arms_and_tells_their_choices(tmp_path, docs_script, tuned_file, tuned_pipeline):
    run_sweep(cells_of(tuned_file), tmp_path / "out")
    settings, audit = all_tables(records.read(tmp_path / "out"))
    [(heading, row)] = settings.rows.items()
    assert heading == "plain"
    assert row["gain from the graph, one by one"].value == 10 and row["gain from the graph, one by one"].n == 2
    assert row["graph off"].value == 60
    assert row["chosen with the graph"].text == "learning_rate 0.04 (largest tried)"
    assert row["chosen with the graph off"].text == "learning_rate 0.02"
    [choice] = [note for note in settings.notes if "on 10 held-out training images" in note]
    assert "Tried: learning_rate 0.01, 0.02, 0.04." in choice
    [(heading, row)] = audit.rows.items()
    assert heading == "Worth, plain (n = 2)" and list(row.values())[3].value == 10
    made = docs_script("make_results.py")
    made["section"].__globals__.update(sweeps=lambda: {"tuned": [settings]}, findings=lambda: "")
    shown = made["section"]()
    assert "class-sorted (audit) | chosen with the graph | chosen with the graph off |" in shown
    assert "| learning_rate 0.04 (largest tried) | learning_rate 0.02 |" in shown


def test_tuning_continues_after_an_interruption_with_the_same_choice(tmp_path, tuned_file, tuned_pipeline):
    whole = tmp_path / "whole"
    run_sweep(cells_of(tuned_file), whole)
    expected = [(record["cell"], record["tuned"]) for record in records.read(whole)]
    runs = sorted(tuned_pipeline)
    tuned_pipeline.clear()
    for done in range(1, 11):  # each call runs one cell, as if it were then killed
        assert run_sweep(cells_of(tuned_file), tmp_path / "out", limit=1).done == done
    assert [(record["cell"], record["tuned"]) for record in records.read(tmp_path / "out")] == expected
    assert sorted(tuned_pipeline) == runs


def test_a_cell_waits_for_candidates_that_another_process_runs(tmp_path, tuned_file, tuned_pipeline, locked):
    cells, out = cells_of(tuned_file), tmp_path / "out"
    with locked(out, cells[0]):
        assert run_sweep(cells, out) == (7, 0, False)
    assert ("cnn2gnn", "test") not in {run[:2] for run in tuned_pipeline}
    assert run_sweep(cells, out) == (10, 0, False)


def test_a_cell_whose_candidate_is_finished_by_another_process_runs_at_the_end(
    tmp_path, tuned_file, monkeypatch, tuned_pipeline, locked
):
    cells, out, works = cells_of(tuned_file), tmp_path / "out", pipeline.run
    with locked(out, cells[0]) as other:

        def run(config, workdir, stage):
            other.kill()
            other.wait()
            return works(config, workdir, stage)

        monkeypatch.setattr(pipeline, "run", run)
        assert run_sweep(cells, out) == (10, 0, False)
    # The first candidate is run after all other cells that can run, and then the cells that choose from it.
    assert [run[1] for run in tuned_pipeline[-3:]] == ["holdout", "test", "test"]
    assert tuned_pipeline[-3][-1] == 0.01 and len(tuned_pipeline) == 10


def test_a_choice_among_candidates_that_all_diverged_is_a_failure(tmp_path, tuned_file, tuned_pipeline):
    tuned_file.write_text(TUNED.replace("(0.01, 0.02, 0.04)", "(0.01,)").replace("(4, 5)", "(4,)"))
    cells, out = cells_of(tuned_file), tmp_path / "out"
    assert run_sweep(cells, out) == (3, 1, False)
    failure = storage.read_json(out / "failures" / f"{cells[3].name}.json")
    assert failure["error"].startswith("all 1 candidates diverged, as the loss became nan at step 3")
