"""Tables of a sweep: means, ranks, arrows and paired differences of records made by hand."""

import csv
import io

import numpy as np
import pytest
from scipy import stats

from cnn2gnn_jax.report import formats, plots, tables
from cnn2gnn_jax.report.statistics import paired, summarize


def record(row, accuracies, name="Table", train_images=100, teacher="t", **student):
    """One with an accuracy for each seed."""
    return {
        "places": [{"kind": "methods", "name": name, "row": row, "column": "pair"}],
        "dataset": {"name": "digits", "evaluated": "test", "evaluated_images": 50, "train_images": train_images,
                    "classes": 10},
        "teacher": {"fingerprint": teacher, "accuracy": 60.0},
        "student": {"recipe": "paper", "epoch": "last", **student},
        "accuracies": [
            {"seed": seed, "graph": None, "mechanism": None, "batch_order": None, "accuracy": accuracy}
            for seed, accuracy in accuracies.items()
        ],
        "method": row,
        "curves": {},
    }  # fmt: skip


@pytest.fixture
def made():
    records = [
        record("kd", {0: 50.0, 1: 52.0, 2: 54.0}),
        record("rkd", {0: 50.0001, 1: 52.0001, 2: 53.9999}),  # the same but for rounding
        record("sp", {0: 60.0, 1: 62.0, 2: 64.0}, train_images=20, teacher="u"),
        record("at", {2: 53.0}),  # above KD's mean, below KD of the same seed
        record("vid", {0: 40.0, 1: 41.0, 2: 39.0}),
    ]
    return tables.methods(tables.observations(records, "methods"), "Table")


def cells(table):
    return {heading: line[0] for heading, line in table.rows}


def test_statistics_against_scipy():
    ours, theirs = {0: 3.0, 1: 5.0, 2: 9.0, 7: 1.0}, {0: 1.0, 1: 4.0, 2: 5.0, 8: 1.0}
    found = paired(ours, theirs)
    expected = stats.ttest_rel([3.0, 5.0, 9.0], [1.0, 4.0, 5.0]).confidence_interval(0.95)
    assert found.n == 3 and found.mean == pytest.approx(7 / 3)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert paired({0: 1.0}, {1: 1.0}) is None and paired({0: 2.0}, {0: 1.0}).interval is None
    values = [3.0, 5.0, 9.0]
    assert summarize(values)[:2] == pytest.approx((np.mean(values), stats.tstd(values)))
    assert summarize([]) is None and str(summarize([1.0])) == "1.00"


def test_ranks_and_arrows_are_of_what_is_written(made):
    found = cells(made[0])
    assert {name: cell.rank for name, cell in found.items() if cell.rank} == {"SP": 1, "AT": 2}
    assert {name: cell.arrow for name, cell in found.items() if cell.arrow} == {"SP": 1, "AT": -1, "VID": -1}
    assert found["RKD"].text == found["KD"].text == "52.00 ± 2.00"


def test_cells_with_fewer_seeds_say_so(made):
    table, differences = made
    assert cells(table)["AT"].text == "53.00 (n = 1)" and cells(differences)["AT"].text == "-1.00 (n = 1)"
    assert cells(differences)["SP"].text == "+10.00 [+10.00, +10.00]" and "KD" not in cells(differences)
    assert "over 3 seeds, where no other n is told, of the difference" in differences.notes[0]


def test_a_caption_tells_all_that_its_records_are_of(made):
    assert "50 test images of digits (20 to 100 training images, 10 classes)" in made[0].notes[0]
    assert "Recipe paper, last epoch" in made[0].notes[0] and made[0].notes[0].endswith(", 2 teachers.")


def test_the_formats_hold_the_same_figures(made):
    table = tables.Table("A_B", ["pair"], [("SP", [tables.Cell("62.00", 62.0, 2.0, n=3, paper=60.5, rank=1, arrow=1)])])
    assert "| SP | **62.00** ↑ (60.50, +1.50) |" in formats.markdown(table)
    assert r"SP & \textbf{62.00} $\uparrow$ {\scriptsize (60.50, +1.50)} \\" in formats.latex(table)
    [row] = csv.DictReader(io.StringIO(formats.comma_separated(table)))
    assert row == {
        "": "SP",
        "pair": "62.00",
        "pair: mean": "62.0000",
        "pair: deviation": "2.0000",
        "pair: paper": "60.5000",
        "pair: less the paper's": "1.5000",
        "pair: n": "3",
        "pair: rank": "1",
        "pair: against KD": "1",
    }
    for made_table in made:
        rows = list(csv.DictReader(io.StringIO(formats.comma_separated(made_table))))
        for values, (heading, line) in zip(rows, made_table.rows, strict=True):
            assert values[""] == heading and values["pair"] == line[0].text
            assert float(values["pair: mean"]) == pytest.approx(line[0].value, abs=1e-4)


def test_training_curves_are_of_the_first_student_and_may_be_missing():
    whole = record("kd", {0: 50.0, 1: 51.0})
    whole["curves"] = {"cnn-seed0": [[1, 2.0, 40.0], [2, 1.0, 50.0]], "cnn-seed1": [[1, 9.0, 1.0], [2, 9.0, 1.0]]}
    figure = plots.training([record("sp", {0: 60.0}), whole], "Table", "pair")
    [line] = figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.5])
