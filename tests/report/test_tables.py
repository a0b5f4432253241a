"""Tables of a sweep: means, ranks, arrows and paired differences of records made by hand."""

import csv
import io

import numpy as np
import pytest
from scipy import stats

from cnn2gnn_jax.report import formats, notes, plots, tables, text
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
    assert "over 3 seeds, unless n is given, of the difference" in differences.notes[0]


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


def graph_record(seed, distinct=(9.0, 9.0), correct=None, training=None):
    """A student with a graph and the same without: one by one, and batch by batch in both orders."""
    rng = np.random.default_rng(seed)
    accuracies = []
    for graph, better in (("learned", 0.1), ("off", 0.0)):
        for (mechanism, order), anchors in zip(tables.PROTOCOLS.values(), (distinct[0], 9.0, distinct[1]), strict=True):
            right = rng.random(50) < 0.5 + better
            facts = {"self_weight": 0.6667, "label_agreement": 0.3, "label_agreement_chance": 0.1}
            facts |= {"distinct_anchors": anchors} if graph == "learned" else {}
            facts |= {"self_weight_in_training": training} if graph == "learned" and training else {}
            accuracies.append({
                "seed": seed, "graph": graph, "mechanism": mechanism, "batch_order": order, "diagnostics": facts,
                "accuracy": 100 * right.mean(), **({"correct": right} if correct else {}),
            })  # fmt: skip
    base = record("cnn2gnn", {})
    places = [{"kind": "settings", "name": "Settings", "setting": "stem"}]
    return base | {"accuracies": accuracies, "places": places, "config": {"evaluate.batch_size": 25}}


def settings(*records):
    return tables.settings(tables.observations(records, "settings"), "Settings")


def worth(table):
    return table.rows[0][1][tables.AUDIT.index("the graph is worth, one by one")]


def test_intervals_are_over_seeds_and_images_where_predictions_are_kept_and_a_note_says_so():
    kept, lacking = (settings(*(graph_record(seed, correct=keeps) for seed in range(3))) for keeps in (True, False))
    assert worth(kept).over == "seeds and images" and worth(lacking).over == "seeds alone"
    assert worth(kept).value == pytest.approx(worth(lacking).value)
    assert np.ptp(worth(kept).interval) > np.ptp(worth(lacking).interval)
    assert notes.INTERVALS["seeds and images"] in kept.notes and notes.INTERVALS["seeds alone"] not in kept.notes
    assert notes.INTERVALS["seeds alone"] in lacking.notes
    assert "over seeds alone: this record keeps no predictions" in notes.INTERVALS["seeds alone"]
    one = settings(graph_record(0, correct=True))
    assert worth(one).over == "images alone" and notes.INTERVALS["images alone"] in one.notes
    # Of one seed without predictions there is no interval, and so nothing to say of it.
    assert worth(settings(graph_record(0))).interval is None and len(settings(graph_record(0)).notes) == 1


def test_the_csv_says_what_an_interval_is_over():
    table = settings(*(graph_record(seed, correct=True) for seed in range(2)))
    [row] = csv.DictReader(io.StringIO(formats.comma_separated(table)))
    assert row["the graph is worth, one by one: over"] == "seeds and images" and row["one by one: over"] == ""
    low, high = (float(row[f"the graph is worth, one by one: {name}"]) for name in ("low", "high"))
    assert (low, high) == pytest.approx(worth(table).interval, abs=1e-4)


def test_a_runs_own_table_names_a_uniform_graph_and_the_weight_on_self_in_training():
    record = graph_record(0, (1.2, 1.6), training=0.553)
    for entry in record["accuracies"]:
        entry["diagnostics"] |= {"effective_neighbors": 20.0}
    results = record | {"student": record["student"] | {"kind": "graph", "network": "graph over stem"},
                        "teacher": None, "seconds": {}, "versions": {}}  # fmt: skip
    for page in (text.table(results), text.markdown(results, [])):
        by = {line.strip(" -").partition(":")[0]: line for line in page.splitlines() if "weight on self" in line}
        assert len(by) == 3 and all("weight on self 0.67 (0.55 in training)" in line for line in by.values())
        assert "no learned structure" in by["batch by batch, shuffled"]
        assert "no learned structure" not in by["batch by batch, class-sorted"] + by["one by one"]


def test_in_a_table_of_both_kinds_the_narrower_intervals_are_marked():
    kept = [graph_record(seed, correct=True) for seed in range(3)]
    lacking = [graph_record(seed) for seed in range(3)]
    for one in lacking:
        one["places"] = [{**one["places"][0], "setting": "earlier"}]
    table = settings(*kept, *lacking)
    first, second = (cells[tables.AUDIT.index("the graph is worth, one by one")] for _, cells in table.rows)
    assert first.text.endswith("]") and second.text.endswith("] (seeds alone)")
    assert {notes.INTERVALS[kind] for kind in ("seeds and images", "seeds alone")} <= set(table.notes)


def test_images_of_another_data_set_are_not_paired():
    ours, theirs = (tables.observations([graph_record(0, correct=True)], "settings") for _ in range(2))
    assert tables.difference(ours[:1], theirs[3:4]).over == "images alone"
    theirs[3].record["dataset"]["fingerprint"] = "another"
    assert tables.difference(ours[:1], theirs[3:4]).interval is None


def test_the_weight_on_self_has_that_of_training_beside_it():
    place = tables.AUDIT.index("weight on self")
    assert settings(graph_record(0)).rows[0][1][place].text == "0.67"
    assert settings(graph_record(0, training=0.553)).rows[0][1][place].text == "0.67 (0.55 in training)"


@pytest.mark.parametrize("make", [settings, lambda *records: tables.audit(records)])
def test_a_graph_with_one_anchor_a_batch_is_named_uniform(make):
    place = tables.AUDIT.index("distinct anchors a batch")
    some = make(graph_record(0, (1.0, 9.0)), graph_record(1, (1.4, 1.0)), graph_record(2, (1.6, 9.0)))
    [(_, cells)] = some.rows
    assert cells[place].text == "1.3, uniform in 2 of 3"
    [note] = [note for note in some.notes if note.startswith(notes.UNIFORM)]
    assert "no learned structure" in note and "in shuffled batches" in note and "(2 of 3 students)" in note
    assert "in class-sorted batches" in note and "(1 of 3 students)" in note
    assert make(graph_record(0, (1.0, 9.0))).rows[0][1][place].text == "1.0, uniform"
    none = make(graph_record(0))
    assert none.rows[0][1][place].text == "9.0" and not any(note.startswith("Uniform") for note in none.notes)


def test_the_audit_tells_how_many_classes_a_class_sorted_batch_holds():
    record = graph_record(0)
    record["dataset"] |= {"evaluated_images": 100, "classes": 4}
    for size, expected in (
        (25, "1 class"),
        (50, "2 classes"),
        (40, "2 to 3 classes"),
        (10, "1 to 2 classes"),
        (5, "1 class"),
        (100, "4 classes"),
    ):
        record["config"] = {"evaluate.batch_size": size}
        assert tables.audit([record]).notes[0].endswith(f"Here such a batch holds images of {expected}.")
    record["dataset"]["evaluated_images"] = 99
    record["config"] = {"evaluate.batch_size": 50}
    assert tables.audit([record]).notes[0].endswith("2 to 3 classes.")
