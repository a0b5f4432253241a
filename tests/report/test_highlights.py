"""Tests of the findings that are computed from records made by hand."""

import pytest

from cnn2gnn_jax.report import highlights
from cnn2gnn_jax.report.page import page
from cnn2gnn_jax.report.tables import all_tables
from tests.report.conftest import graph_record


def sweep_records(one_by_one, training_set):
    """Returns records of three seeds. Two accuracies with the graph differ from those without it by given points."""
    records = []
    for seed in range(3):
        record = graph_record(seed)
        accuracies = {("learned", "one_by_one"): 70 + one_by_one, ("learned", "batch_by_batch"): 60.0}
        entries = []
        for entry in record["accuracies"]:
            value = accuracies.get((entry["graph"], entry["mechanism"]), 70.0)
            entries.append(entry | {"accuracy": value + 0.01 * seed * (entry["graph"] == "learned")})
        first = next(entry for entry in entries if entry["graph"] == "learned")
        entries.append(first | {"mechanism": "training_set", "batch_order": None, "accuracy": 70 + training_set})
        places = [{"kind": "methods", "name": "Table 1", "row": "cnn2gnn", "column": "pair"}]
        records.append(record | {"accuracies": entries, "places": places})
    return records


def test_the_finding_follows_the_records_and_names_the_papers_protocol_first():
    [finding, explanation] = highlights.of_records(sweep_records(0.0, 2.0))
    paper, one_by_one, training_set = finding.split("; ")
    assert paper.startswith(
        "Finding for Table 1: under the paper's protocol (batch by batch), the learned graph costs accuracy (-9.99 ["
    )
    assert "one by one, it makes no clear difference (+0.01 [" in one_by_one
    assert "over the training set, it gains accuracy (+2.00 [" in training_set
    assert "class-sorted" not in finding and "excludes zero" in explanation
    [opposite, _] = highlights.of_records(sweep_records(3.0, -2.0))
    assert "one by one, it gains accuracy (+3.01 [" in opposite
    assert "over the training set, it costs accuracy (-2.00 [" in opposite


def test_several_settings_are_counted_and_the_figure_is_their_mean():
    records = []
    for setting, difference in (("stem", -4.0), ("teacher", 2.0), ("pixels", -6.0)):
        for record in sweep_records(difference, 0.0):
            records.append(record | {"places": [{"kind": "settings", "name": "Features", "setting": setting}]})
    [finding, _] = highlights.of_records(records)
    assert (
        "one by one, it gains accuracy in 1 and costs accuracy in 2 of 3 comparisons (mean difference -2.66" in finding
    )


def with_training_set(record, graph, gain):
    """Returns the record with added accuracies over the training set for the students of one graph setting."""
    entries = [entry for entry in record["accuracies"] if (entry["graph"], entry["mechanism"]) == (graph, "one_by_one")]
    added = [e | {"mechanism": "training_set", "accuracy": e["accuracy"] + gain} for e in entries]
    return record | {"accuracies": [*record["accuracies"], *added]}


def test_a_student_without_a_graph_gains_by_the_training_set():
    records = [
        with_training_set(record, "off", 1.5) | {"places": [record["places"][0] | {"row": "cnn2gnn_off"}]}
        for record in sweep_records(0.0, 0.0)
    ]
    [finding, _] = highlights.of_records(records)
    assert finding.startswith(
        "Finding for Table 1: the graph over the training set, added to a student without a graph, gains accuracy "
        "(+1.50 ["
    )
    [table, *_] = all_tables(records)
    [pair] = table.columns
    assert table.rows["CNN2GNN without a graph, graph off"][pair].value == pytest.approx(70)
    assert table.rows["CNN2GNN without a graph, graph off, training set"][pair].value == pytest.approx(71.5)
    audit = all_tables(records)[-1]
    [row] = audit.rows.values()
    assert row["graph off, training set"].value == pytest.approx(71.5)
    assert row["gain from the graph, training set, graph off"].value == pytest.approx(1.5)


def test_records_without_a_control_make_no_finding():
    record = graph_record(0)
    alone = record | {"accuracies": [entry for entry in record["accuracies"] if entry["graph"] != "off"]}
    assert highlights.of_records([alone]) == []


def test_the_first_lines_of_the_page_are_the_findings():
    text = page("Results", highlights.of_records(sweep_records(0.0, 2.0)), [])
    assert text.index("Finding for Table 1") < text.index("<nav>")


def test_one_seed_without_predictions_decides_nothing():
    [finding, _] = highlights.of_records([graph_record(0)])
    assert all("makes no clear difference" in part for part in finding.split("; "))
