"""Tests of the figures of records made by hand."""

import numpy as np

from cnn2gnn_jax.report import figures, plots
from tests.report.conftest import graph_record, record


def test_training_curves_are_of_the_first_student_and_may_be_missing():
    whole = record("kd", {0: 50.0, 1: 51.0})
    whole["curves"] = {"cnn-seed0": [[1, 2.0, 40.0], [2, 1.0, 50.0]], "cnn-seed1": [[1, 9.0, 1.0], [2, 9.0, 1.0]]}
    figure = plots.training_of_rows([record("sp", {0: 60.0}), whole], "Table", "pair")
    [line] = figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.5])


def test_a_runs_legend_is_in_plain_words_and_dots_are_the_recorded_test_accuracies():
    results = graph_record(0)
    stages = ["graph_learned-seed0 pretrain", "graph_learned-seed0 train", "graph_off-seed0"]
    lines = [{"stage": stage, "epoch": 1.0, "loss": 2.0, "accuracy": 40.0} for stage in stages]
    _, axis = plots.training_of_run(lines, results).axes
    titles = {
        "CNN2GNN, learned graph, seed 0, stage pretrain",
        "CNN2GNN, learned graph, seed 0, stage train",
        "CNN2GNN, graph off, seed 0",
    }
    assert set(axis.get_legend_handles_labels()[1]) == titles
    assert "test images after training" in axis.get_title()
    dots = [line.get_ydata()[0] for line in axis.lines if line.get_marker() == "o"]
    expected = [e["accuracy"] for e in results["accuracies"] if e["mechanism"] == "one_by_one"]
    assert len(dots) == 2 and sorted(dots) == sorted(expected)


def test_every_figure_is_also_a_pdf_and_the_same_each_time(tmp_path):
    counts = figures.confusion_counts(np.array([0, 1, 1], np.uint8), np.array([0, 0, 1], np.uint8), 2)
    contents = []
    for name in ("first.png", "second.png"):
        figure = figures.confusion(counts, ["ant", "bee $"])
        assert figure.axes[0].get_xlabel() == "predicted class"
        figures.save(figure, tmp_path / name)
        contents.append((tmp_path / name).with_suffix(".pdf").read_bytes())
    assert contents[0] == contents[1] and contents[0].startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.pdf", "first.png", "second.pdf", "second.png"]


def test_many_classes_do_not_overflow_the_confusion_counts():
    labels = np.array([199, 3], np.uint8)
    counts = figures.confusion_counts(labels, np.array([198, 3], np.uint8), 200)
    assert counts[199, 198] == counts[3, 3] == 1 and counts.sum() == 2
