"""Chooses the mechanism that predicts for new images: one of the paper's, or the training-set graph (`neighbors`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cnn2gnn_jax import run as runs
from cnn2gnn_jax.inference import BATCH_BY_BATCH, ONE_BY_ONE, TRAINING_SET
from cnn2gnn_jax.runtime import artifact
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import graph_choice
from cnn2gnn_jax.serving.trained import Trained
from cnn2gnn_jax.training import bank as banks
from cnn2gnn_jax.training.tasks import named

AUTO = "auto"
CHOICES = (AUTO, ONE_BY_ONE, BATCH_BY_BATCH, TRAINING_SET)
HELP = (
    "how new images are linked: one_by_one, to the anchors; batch_by_batch, to each other; training_set, to the "
    "nearest of all training images; auto, as training_set if this classifies more held-out training images correctly "
    "than the student alone, otherwise as one_by_one"
)


class Served(NamedTuple):
    """A student and the mechanism that it predicts with.

    student: the student, with its bank if the mechanism is training_set.
    mechanism: one of CHOICES except auto.
    reason: why this mechanism was chosen, to be printed.
    """

    student: Trained
    mechanism: str
    reason: str


def choose(student: Trained, choice: str = AUTO) -> Served:
    """Chooses the mechanism of a student; `choice` is one of CHOICES.

    Raises:
      UserError: training_set is requested, but the run has no training-set graph; or the bank is damaged, or belongs to
        an evaluation with other settings.
    """
    if choice in (ONE_BY_ONE, BATCH_BY_BATCH):
        return Served(student, choice, "as requested")
    is_auto, recorded = choice == AUTO, student.recorded
    if "training_set" not in recorded.config.evaluate:
        if is_auto:
            return Served(student, ONE_BY_ONE, "the run has no training-set graph")
        holdout = "" if recorded.config.data.holdout else " --config.data.holdout=0.1 in a new workdir"
        raise UserError(
            f"--mechanism={choice}: the run in {recorded.workdir} has no training-set graph "
            "(evaluate.training_set.enabled is False): run its own command again with "
            f"--config.evaluate.training_set.enabled=True{holdout}"
        )
    folder = recorded.workdir / banks.BANK / named(student.model.graph, recorded.config.seed)
    try:
        stored = banks.read(folder, runs.evaluation_fingerprint(recorded))
    except artifact.Missing as error:
        if is_auto:
            return Served(student, ONE_BY_ONE, f"the run is not evaluated yet: {error.reason}")
        raise
    if stored.held_out is None or stored.accuracy is None or stored.accuracy_alone is None:
        is_better, comparison = False, "no images were held out to compare the training-set graph with the student"
    else:
        is_better = graph_choice.is_training_set_better(stored.accuracy, stored.accuracy_alone)
        comparison = (
            f"{stored.accuracy:.2f}% of {len(stored.held_out.labels)} held-out training images are right with the "
            f"training-set graph, {stored.accuracy_alone:.2f}% by the student alone"
        )
    if is_auto and not is_better:
        return Served(student, ONE_BY_ONE, comparison)
    with_bank = student._replace(bank=stored._replace(bank=jax.tree.map(jnp.asarray, stored.bank)))
    return Served(with_bank, TRAINING_SET, comparison if is_auto else f"as requested; {comparison}")
