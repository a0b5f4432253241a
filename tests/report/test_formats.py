"""Tests of tables as Markdown, LaTeX and CSV."""

import csv
import io

import pytest

from cnn2gnn_jax.report import formats
from cnn2gnn_jax.report.cells import Cell, Table
from tests.report.conftest import graph_record, settings, worth


def test_all_formats_have_the_same_figures(made):
    table = Table("A_B", {"SP": {"pair": Cell("62.00", 62.0, 2.0, n=3, paper=60.5, rank=1, arrow=1)}})
    assert "| SP | **62.00** ↑ (60.50, +1.50) |" in formats.markdown(table)
    assert r"SP & \textbf{62.00} $\uparrow$ {\scriptsize (60.50, +1.50)} \\" in formats.latex(table)
    [row] = csv.DictReader(io.StringIO(formats.comma_separated(table)))
    assert row == {
        "": "SP",
        "pair": "62.00",
        "pair: mean": "62.0000",
        "pair: deviation": "2.0000",
        "pair: paper": "60.5000",
        "pair: minus the paper's": "1.5000",
        "pair: n": "3",
        "pair: rank": "1",
        "pair: against KD": "1",
    }
    for made_table in made:
        rows = list(csv.DictReader(io.StringIO(formats.comma_separated(made_table))))
        for values, (heading, line) in zip(rows, made_table.rows.items(), strict=True):
            assert values[""] == heading and values["pair"] == line["pair"].text
            assert float(values["pair: mean"]) == pytest.approx(line["pair"].value, abs=1e-4)


def test_the_csv_names_what_an_interval_is_over():
    table = settings(*(graph_record(seed, correct=True) for seed in range(2)))
    [row] = csv.DictReader(io.StringIO(formats.comma_separated(table)))
    assert row["gain from the graph, one by one: over"] == "seeds and images" and row["one by one: over"] == ""
    low, high = (float(row[f"gain from the graph, one by one: {name}"]) for name in ("low", "high"))
    assert (low, high) == pytest.approx(worth(table).interval, abs=1e-4)
