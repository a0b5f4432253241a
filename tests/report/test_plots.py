"""Figures of records made by hand."""

import numpy as np

from cnn2gnn_jax.report import plots
from tests.report.conftest import record


def test_training_curves_are_of_the_first_student_and_may_be_missing():
    whole = record("kd", {0: 50.0, 1: 51.0})
    whole["curves"] = {"cnn-seed0": [[1, 2.0, 40.0], [2, 1.0, 50.0]], "cnn-seed1": [[1, 9.0, 1.0], [2, 9.0, 1.0]]}
    figure = plots.training_of_rows([record("sp", {0: 60.0}), whole], "Table", "pair")
    [line] = figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.5])
