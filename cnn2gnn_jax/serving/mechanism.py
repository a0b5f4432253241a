"""Chooses the mechanism that classifies new images: one of the paper's, or the training-set graph (see `neighbors`).

By default the training-set graph is chosen if it is more accurate on held-out images than the student alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cnn2gnn_jax import run as runs
from cnn2gnn_jax.inference import MECHANISMS, TRAINING_SET
from cnn2gnn_jax.runtime import artifact
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving.trained import Trained
from cnn2gnn_jax.training import bank as banks
from cnn2gnn_jax.training.tasks import named

AUTO = "auto"
CHOICES = (AUTO, *MECHANISMS, TRAINING_SET)
HELP = (
    "how new images are linked: one_by_one, to the anchors; batch_by_batch, to each other; training_set, to the "
    "nearest of all training images; auto, training_set if it is more accurate on held-out training images than the "
    "student alone, otherwise one_by_one"
)


class Served(NamedTuple):
    """A student and the mechanism by which it classifies.

    student: the student, with its bank if the mechanism is the training-set graph.
    mechanism: one of CHOICES except auto.
    reason: why it was chosen, as text for the user.
    """

    student: Trained
    mechanism: str
    reason: str


def choose(student: Trained, choice: str = AUTO) -> Served:
    """Returns the mechanism for `choice`, one of CHOICES.

    Raises:
      UserError: the training-set graph is requested and the run has none; or its bank is damaged or outdated.
    """
    if choice in MECHANISMS:
        return Served(student, choice, "as asked")
    recorded = student.recorded
    if "training_set" not in recorded.config.evaluate:
        if choice == AUTO:
            return Served(student, MECHANISMS[0], "the run has no training-set graph")
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
        if choice == AUTO:
            return Served(student, MECHANISMS[0], f"the run is not evaluated yet: {error.reason}")
        raise
    with_bank = student._replace(bank=stored._replace(bank=jax.tree.map(jnp.asarray, stored.bank)))
    if stored.accuracy is None or stored.accuracy_alone is None or stored.held_out is None:
        if choice == AUTO:
            reason = "no images were held out to tell whether the training-set graph is better"
            return Served(student, MECHANISMS[0], reason)
        return Served(with_bank, choice, "as asked; no images were held out to tell whether it is better")
    compared = (
        f"{stored.accuracy:.2f}% of {len(stored.held_out.labels)} held-out training images are right with the "
        f"training-set graph, {stored.accuracy_alone:.2f}% by the student alone"
    )
    if choice == AUTO and not banks.is_better(stored.accuracy, stored.accuracy_alone):
        return Served(student, MECHANISMS[0], compared)
    return Served(with_bank, TRAINING_SET, compared if choice == AUTO else f"as asked; {compared}")
