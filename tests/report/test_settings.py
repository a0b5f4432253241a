"""Tests of the tables of graph students: what intervals are over, what the graphs do, and the audit."""

import numpy as np
import pytest

from cnn2gnn_jax.report import notes
from cnn2gnn_jax.report.observations import difference, observe
from cnn2gnn_jax.report.settings import DISTINCT_ANCHORS, SELF_WEIGHT, audit
from tests.report.conftest import column, graph_record, settings, worth


def test_intervals_are_over_seeds_and_images_where_predictions_are_recorded_and_a_note_explains_it():
    with_predictions, without_predictions = (
        settings(*(graph_record(seed, correct=keeps) for seed in range(3))) for keeps in (True, False)
    )
    assert worth(with_predictions).over == "seeds and images" and worth(without_predictions).over == "seeds alone"
    assert worth(with_predictions).value == pytest.approx(worth(without_predictions).value)
    assert np.ptp(worth(with_predictions).interval) > np.ptp(worth(without_predictions).interval)
    assert (
        notes.INTERVALS["seeds and images"] in with_predictions.notes
        and notes.INTERVALS["seeds alone"] not in with_predictions.notes
    )
    assert notes.INTERVALS["seeds alone"] in without_predictions.notes
    assert "over seeds alone: the records hold no predictions" in notes.INTERVALS["seeds alone"]
    table = settings(graph_record(0, correct=True))
    assert worth(table).over == "images alone" and notes.INTERVALS["images alone"] in table.notes
    # One seed without predictions has no interval, and so no note explains intervals.
    assert worth(settings(graph_record(0))).interval is None and len(settings(graph_record(0)).notes) == 1


def test_in_a_table_of_both_kinds_the_narrower_intervals_are_marked():
    with_predictions = [graph_record(seed, correct=True) for seed in range(3)]
    without_predictions = [graph_record(seed) for seed in range(3)]
    for record in without_predictions:
        record["places"] = [{**record["places"][0], "setting": "earlier"}]
    table = settings(*with_predictions, *without_predictions)
    first, second = column(table, "gain from the graph, one by one").values()
    assert first.text.endswith("]") and second.text.endswith("] (seeds alone)")
    assert {notes.INTERVALS[kind] for kind in ("seeds and images", "seeds alone")} <= set(table.notes)


def test_images_of_another_data_set_are_not_paired():
    ours, theirs = (observe([graph_record(0, correct=True)], "settings") for _ in range(2))
    assert difference(ours[:1], theirs[3:4]).over == "images alone"
    theirs[3].record["dataset"]["fingerprint"] = "another"
    assert difference(ours[:1], theirs[3:4]).interval is None


def test_the_self_weight_is_shown_with_that_in_training():
    [without] = column(settings(graph_record(0)), SELF_WEIGHT).values()
    [with_training] = column(settings(graph_record(0, training=0.553)), SELF_WEIGHT).values()
    assert (without.text, with_training.text) == ("0.67", "0.67 (0.55 in training)")


@pytest.mark.parametrize("make", [settings, lambda *records: audit(records)])
def test_a_graph_with_one_anchor_a_batch_is_named_uniform(make):
    some = make(graph_record(0, (1.0, 9.0)), graph_record(1, (1.4, 1.0)), graph_record(2, (1.6, 9.0)))
    [cell] = column(some, DISTINCT_ANCHORS).values()
    assert cell.text == "1.3, uniform in 2 of 3"
    [note] = [note for note in some.notes if note.startswith(notes.UNIFORM)]
    assert "no learned structure" in note and "in shuffled batches" in note and "(2 of 3 students)" in note
    assert "in class-sorted batches" in note and "(1 of 3 students)" in note
    [every] = column(make(graph_record(0, (1.0, 9.0))), DISTINCT_ANCHORS).values()
    assert every.text == "1.0, uniform"
    none = make(graph_record(0))
    [cell] = column(none, DISTINCT_ANCHORS).values()
    assert cell.text == "9.0" and not any(note.startswith("Uniform") for note in none.notes)


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
        assert audit([record]).notes[0].endswith(f"In these records, such a batch holds images of {expected}.")
    record["dataset"]["evaluated_images"] = 99
    record["config"] = {"evaluate.batch_size": 50}
    assert audit([record]).notes[0].endswith("2 to 3 classes.")
