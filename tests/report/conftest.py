"""Fixtures and helpers: records made by hand, and their tables."""

import numpy as np
import pytest

from cnn2gnn_jax.report import methods
from cnn2gnn_jax.report import settings as settings_tables
from cnn2gnn_jax.report.names import BATCH_BY_BATCH, CLASS_SORTED, ONE_BY_ONE
from cnn2gnn_jax.report.observations import observe


def record(row, accuracies, name="Table", train_images=100, teacher="t", **student):
    """Returns a record with an accuracy for each seed."""
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
        record("rkd", {0: 50.0001, 1: 52.0001, 2: 53.9999}),  # equal to KD up to rounding
        record("sp", {0: 60.0, 1: 62.0, 2: 64.0}, train_images=20, teacher="u"),
        record("at", {2: 53.0}),  # above the mean of KD, but below KD with the same seed
        record("vid", {0: 40.0, 1: 41.0, 2: 39.0}),
    ]
    return methods.tables(observe(records, "methods"))


def column(table, name):
    """Returns the cells of a column by the heading of their row."""
    return {heading: cells[name] for heading, cells in table.rows.items()}


def cells(table):
    return column(table, "pair")


def graph_record(seed, distinct=(9.0, 9.0), correct=None, training=None):
    """Returns a record of a student with and without a graph: one by one, and batch by batch in both orders."""
    rng = np.random.default_rng(seed)
    accuracies = []
    anchors_by_protocol = {BATCH_BY_BATCH: distinct[0], ONE_BY_ONE: 9.0, CLASS_SORTED: distinct[1]}
    for graph, better in (("learned", 0.1), ("off", 0.0)):
        for protocol, anchors in anchors_by_protocol.items():
            right = rng.random(50) < 0.5 + better
            facts = {"self_weight": 0.6667, "label_agreement": 0.3, "label_agreement_chance": 0.1}
            facts |= {"distinct_anchors": anchors} if graph == "learned" else {}
            facts |= {"self_weight_in_training": training} if graph == "learned" and training else {}
            accuracies.append({
                "seed": seed, "graph": graph, "mechanism": protocol.mechanism,
                "batch_order": protocol.batch_order, "diagnostics": facts,
                "accuracy": 100 * right.mean(), **({"correct": right} if correct else {}),
            })  # fmt: skip
    base = record("cnn2gnn", {})
    places = [{"kind": "settings", "name": "Settings", "setting": "stem"}]
    return base | {"accuracies": accuracies, "places": places, "config": {"evaluate.batch_size": 25}}


def settings(*records):
    return settings_tables.table(observe(records, "settings"))


def worth(table):
    return table.rows["stem"]["gain from the graph, one by one"]
