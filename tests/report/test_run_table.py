"""The table of a run."""

from cnn2gnn_jax.report import run_table
from tests.report.conftest import graph_record


def test_a_runs_own_table_names_a_uniform_graph_and_the_weight_on_self_in_training():
    record = graph_record(0, (1.2, 1.6), training=0.553)
    for entry in record["accuracies"]:
        entry["diagnostics"] |= {"effective_neighbors": 20.0}
    results = record | {"student": record["student"] | {"kind": "graph", "network": "graph over stem"},
                        "teacher": None, "seconds": {}, "versions": {}}  # fmt: skip
    for page in (run_table.terminal(results), run_table.markdown(results, [])):
        by = {line.strip(" -").partition(":")[0]: line for line in page.splitlines() if "weight on self" in line}
        assert len(by) == 3 and all("weight on self 0.67 (0.55 in training)" in line for line in by.values())
        assert "no learned structure" in by["batch by batch, shuffled"]
        assert "no learned structure" not in by["batch by batch, class-sorted"] + by["one by one"]
