"""Tests of the table of a run."""

import pytest

from cnn2gnn_jax.report import formats, run_table
from tests.report.conftest import graph_record, record


def run_results(base):
    """Returns the results of a run, made from a record of a sweep."""
    for entry in base["accuracies"]:
        if "diagnostics" in entry:
            entry["diagnostics"] |= {"effective_neighbors": 20.0}
    student = {"kind": "graph" if base["method"] == "cnn2gnn" else "cnn", "network": "graph over stem"}
    return base | {"student": base["student"] | student, "teacher": None, "seconds": {}, "versions": {}}


def unwrapped(text):
    """Joins continuation lines, which are indented more, to the line before."""
    return text.replace("\n    ", " ")


def test_the_run_table_names_a_uniform_graph_and_the_self_weight_in_training():
    results = run_results(graph_record(0, (1.2, 1.6), training=0.553))
    for page in (unwrapped(run_table.terminal(results)), run_table.markdown(results, [])):
        by = {line.strip(" -").partition(":")[0]: line for line in page.splitlines() if "weight on self" in line}
        assert len(by) == 3 and all("weight on self 0.67 (0.55 in training)" in line for line in by.values())
        assert "no learned structure" in by["batch by batch, shuffled"]
        assert "no learned structure" not in by["batch by batch, class-sorted"] + by["one by one"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_terminal_output_is_under_100_columns_wide_for_all_protocols(seeds):
    results = run_results(graph_record(0))
    entries = [{**entry, "mechanism": "training_set"} for entry in results["accuracies"] if not entry["batch_order"]]
    results["accuracies"] = [
        {**entry, "seed": seed, "accuracy": entry["accuracy"] + seed}
        for seed in range(seeds)
        for entry in [*results["accuracies"], *entries]
    ]
    results["method"] = "a_method_with_an_unusually_long_name_of_its_own"
    results["student"]["network"] = "graph over a_network_with_an_unusually_long_name_without_any_space_in_it"
    results["teacher"] = {"network": "resnet" * 12, "accuracy": 61.2}
    lines = run_table.terminal(results).splitlines()
    assert max(map(len, lines)) < 100
    assert "training set" in lines[0] and any("class-sorted*" in line for line in lines[:3])


def test_the_run_table_in_latex_has_the_accuracies_of_the_terminal():
    results = run_results(graph_record(0))
    table = run_table.table(results)
    latex = formats.latex(table)
    assert latex.startswith(r"\begin{table}") and "Results on digits" in latex
    assert len(table.rows) == 2 and table.columns[0] == "one by one"
    for cells in table.rows.values():
        for cell in cells.values():
            assert f"& {cell.text}" in latex and cell.text in run_table.terminal(results)


def test_a_cnn_has_one_column():
    results = run_results(record("kd", {0: 50.0, 1: 52.0}))
    assert run_table.table(results).rows["KD, graph over stem"]["accuracy"].text == "51.00 ± 1.41"


def test_a_cnn_with_the_training_set_graph_has_a_column_for_each():
    base = record("kd", {0: 50.0, 1: 52.0})
    facts = {"label_agreement": 0.4, "label_agreement_chance": 0.1, "effective_neighbors": 8.0}
    facts |= {"self_weight": 0.0, "accuracy_of_neighbors": 48.0, "recall": 0.987}
    base["accuracies"] += [
        {**entry, "mechanism": "training_set", "accuracy": entry["accuracy"] + 4, "diagnostics": facts}
        for entry in base["accuracies"]
    ]
    results = run_results(base)
    row = run_table.table(results).rows["KD, graph over stem"]
    assert {column: cell.text for column, cell in row.items()} == {
        "accuracy": "51.00 ± 1.41", "training set": "55.00 ± 1.41",
    }  # fmt: skip
    [line] = [line for line in run_table.markdown(results, []).splitlines() if "effective neighbors" in line]
    assert line == (
        "- training set: neighbors of the same class 40% (by chance 10%), effective neighbors 20.0, "
        "accuracy of the neighbors alone 48.00%, 98.7% of the nearest training images found"
    )
