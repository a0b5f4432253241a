"""Tests of the recipe `fast`, whose learning rate rises to a peak and then falls to 0, also in very few steps."""

import types

import jax
import numpy as np
import pytest

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import distillers, gnn
from cnn2gnn_jax.configs import base
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.recipes import RECIPES
from cnn2gnn_jax.training.state import init_state
from cnn2gnn_jax.training.task import Task, learning_rate

BATCH = 12


def task(steps, epochs=1):
    """Returns a task with `steps` steps per epoch and the recipe `fast`, as a config resolves it."""
    config = base.get_config()
    config.student.train.recipe = "fast"
    train = configs.resolve(config).student.train.to_dict()
    recipe = types.SimpleNamespace(**train | {"epochs": epochs, "batch_size": BATCH})
    labels = distillers.create("none", {})
    module = gnn.GraphStudent(3, gnn.Flatten(), sparsity=4, hidden=8, head_widths=(10, 6))
    return Task(module, labels, labels.stages[0], recipe, steps, steps * BATCH, seed=5, mean=(0.4,), std=(0.3,))


class NeverSaves:
    def due(self, step):
        return False


def test_the_recipe_fast_is_filled_in_and_updates_the_head_densely():
    config = base.get_config()
    config.teacher.train.recipe = config.student.train.recipe = "fast"
    complete = configs.resolve(config)
    for train in (complete.teacher.train, complete.student.train):
        assert {name: train[name] for name in RECIPES["fast"]} == RECIPES["fast"]
        assert train.schedule == "one_cycle" and train.head_update == "dense"
    config.student.train.head_update = "rows"
    with pytest.raises(
        configs.UserError, match="exact for sgd with a constant or stepped rate alone: found sgd, one_c"
    ):
        configs.resolve(config)


def test_the_rate_rises_to_its_peak_and_falls_to_0_at_the_end():
    this = task(10, epochs=20)
    rates = np.array([float(learning_rate(this)(step)) for step in range(this.total_steps + 1)])
    peak = int(np.argmax(rates))
    assert peak == this.total_steps // 5 and rates[peak] == pytest.approx(this.recipe.learning_rate)
    assert rates[0] == pytest.approx(rates[peak] / 25)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()
    assert 0 <= rates[-1] < 1e-5 * rates[peak]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_training_of_few_steps_stays_finite_and_moves_the_head(steps):
    this, losses = task(steps), []
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * BATCH, 8, 8, 1), np.uint8)
    data = {"input": images, "label": np.arange(steps * BATCH, dtype=np.int32) % 3}
    start = init_state(this, data["input"], None)
    before = jax.device_get(start.params)
    assert start.table is None and before["table"].kernel.shape[0] == steps * BATCH
    state = loop.fit(
        [this], start, loop.TrainingData(data), lambda _, metrics: losses.extend(metrics["loss"]), NeverSaves()
    )
    assert len(losses) == steps and np.isfinite(losses).all()
    for new in jax.tree.leaves(state.params):
        assert np.isfinite(new).all()
    assert not np.array_equal(state.params["table"].kernel, before["table"].kernel)
