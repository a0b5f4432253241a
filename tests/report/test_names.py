"""Tests of names: one list defines the protocols, and rows, students and graph settings have names."""

import types

import pytest

from cnn2gnn_jax import gnn
from cnn2gnn_jax.report import names, plots, run_table
from cnn2gnn_jax.report.observations import observe
from cnn2gnn_jax.report.tables import all_tables
from cnn2gnn_jax.training import tasks
from tests.report.conftest import graph_record

PLACES = [
    {"kind": "methods", "name": "Methods", "row": "cnn2gnn", "column": "pair"},
    {"kind": "ablation", "name": "Ablation", "row": "learned", "column": "digits"},
    {"kind": "curve", "name": "Curve, s", "panel": "digits", "line": "pair", "x": 10},
    {"kind": "settings", "name": "Settings", "setting": "stem"},
]


def recorded():
    """Returns a record that is in every kind of table, with the student's costs under each protocol but the audit."""
    record = graph_record(0)
    for entry in record["accuracies"]:
        entry["seconds"] = 1.0
        entry["diagnostics"]["effective_neighbors"] = 20.0
    costs = {"kind": "graph", "network": "graph over stem", "parameters": 7}
    flops = {"one_by_one": 3.0, "batch_by_batch": 2.0}
    student = record["student"] | costs | {"inference_flops": flops}
    return record | {"places": PLACES, "student": student, "teacher": None, "seconds": {}, "versions": {}}


def with_training_set(record):
    """Returns the record with added accuracies under the training-set graph."""
    entries = [e | {"mechanism": "training_set"} for e in record["accuracies"] if e["mechanism"] == "one_by_one"]
    student = record["student"] | {"inference_flops": record["student"]["inference_flops"] | {"training_set": 9.0}}
    return record | {"accuracies": [*record["accuracies"], *entries], "student": student}


def shown(record):
    """Returns all names in the tables and figures of a record, by table or figure."""
    tables = {table.kind: [*table.columns, *table.rows] for table in all_tables([record])}
    figures = {
        "figure of values": plots.values(observe([record], "curve")).axes[0].get_legend_handles_labels()[1],
        "figure of FLOPs": [text.get_text() for text in plots.flops(observe([record], "methods")).axes[0].texts],
    }
    header = run_table.terminal(record).splitlines()[0].split("  ")
    return tables | figures | {"terminal": [text.strip() for text in header if text.strip()]}


SETTINGS = {
    "training set",
    "gain from the graph, training set",
    "graph off, training set",
    "gain from the graph, training set, graph off",
}
EXPECTED = {
    "methods": {"CNN2GNN, training set", "CNN2GNN, graph off, training set"},
    "ablation": {"Training set"},
    "curve": {"training set"},
    "settings": SETTINGS,
    "audit": SETTINGS,
    "figure of values": {"pair, training set"},
    "figure of FLOPs": {"CNN2GNN, training set"},
    "terminal": {"training set"},
}


def test_an_entry_of_protocols_adds_it_to_every_table_and_figure_with_its_records(monkeypatch):
    record, protocols = recorded(), names.PROTOCOLS
    monkeypatch.setattr(names, "PROTOCOLS", tuple(each for each in protocols if each != names.TRAINING_SET))
    before, unknown = shown(record), shown(with_training_set(record))
    monkeypatch.setattr(names, "PROTOCOLS", protocols)
    assert shown(record) == before == unknown
    after = shown(with_training_set(record))
    assert after.keys() == before.keys() == EXPECTED.keys()
    for where, headings in after.items():
        assert set(headings) - set(before[where]) == EXPECTED[where], where
        assert [heading for heading in headings if heading not in EXPECTED[where]] == before[where], where


def test_every_graph_setting_has_a_name():
    assert set(names.GRAPHS) == {*gnn.GRAPHS, "off_at_test"}


def test_a_row_is_named_by_its_method_or_graph():
    titles = {
        "cnn2gnn": "CNN2GNN",
        "cnn2gnn, pixels": "CNN2GNN, pixels",
        "inner_product": "InGNN",
        "learned": "learned",
    }
    assert {row: names.row_title(row) for row in titles} == titles


@pytest.mark.parametrize("graph", [*gnn.GRAPHS, None])
def test_a_student_has_the_name_that_the_pipeline_gives_it(graph):
    module = gnn.GraphStudent(num_classes=2, backbone=gnn.Flatten(), graph=graph) if graph else object()
    task = types.SimpleNamespace(module=module, seed=3)
    assert names.student({"graph": graph, "seed": 3}) == tasks.student_name(task)


def test_counts_and_ranges_in_words():
    assert [names.plural(count, "seed") for count in (0, 1, 2, "1")] == ["0 seeds", "1 seed", "2 seeds", "1 seed"]
    assert names.span({5, 3, 4}) == "3 to 5" and names.span(iter([7, 7])) == "7"
