"""Chooses the student of a run that predicts for new images: the one with the run's graph, or the one without a graph.

A run trains both if `evaluate.graph_off` is True, and records the accuracies of both, so that they can be compared.
"""

from typing import NamedTuple

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.inference import ONE_BY_ONE
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError

CHOICES = ("learned", "off", "best")
"""`learned`: the student with the graph that the config names. `off`: the student that was trained without a graph
(A = I). `best`: the one of the two that classifies more held-out training images correctly."""
HELP = (
    "which student to use: learned, the one with the run's graph (the default); off, the one trained without a graph; "
    "best, the one of the two that classifies more held-out training images correctly (data.holdout)"
)
HELD_OUT, TEST = "held-out training images", "test images"


def setting(recorded: runs.Recorded, choice: str) -> str:
    """The graph setting of the student that `choice`, one of CHOICES, selects.

    Raises:
      UserError: the run has no such student, or no accuracies to choose it by.
    """
    settings = configs.graph_settings(recorded.config)
    if choice == "learned" or settings == ["off"]:
        return settings[0]
    if settings == [""]:
        raise UserError(f"{recorded.workdir} holds a CNN, which has no graph: leave --graph={choice} out")
    if "off" not in settings:
        raise UserError(
            f"--graph={choice}: the run in {recorded.workdir} trained no student without a graph "
            "(evaluate.graph_off is False): run its own command again with --config.evaluate.graph_off=True"
        )
    if choice == "off":
        return "off"
    comparison = compare(recorded)
    if comparison is not None and comparison.images == HELD_OUT:
        return max(settings, key=lambda setting: comparison.accuracies[setting])
    if recorded.config.data.holdout:
        raise UserError(
            f"--graph=best: {recorded.workdir / 'results.json'} has no accuracies on held-out training images: "
            "run the run's own command again, which records them"
        )
    raise UserError(
        f"--graph=best chooses by held-out training images, and the run in {recorded.workdir} has none: train with "
        "--config.data.holdout=0.1 in a new workdir, or choose --graph=learned or --graph=off"
    )


def is_training_set_better(accuracy: float | None, accuracy_alone: float | None) -> bool:
    """Whether the training-set graph is used by default.

    Args:
      accuracy: the two-fold accuracy on held-out images with the training-set graph; None if it was not measured.
      accuracy_alone: the accuracy of the student alone on the same images; None if it was not measured.
    """
    return accuracy is not None and accuracy_alone is not None and accuracy > accuracy_alone


class Comparison(NamedTuple):
    """The accuracies of a run's first students.

    images: the images they are measured on, HELD_OUT or TEST.
    accuracies: in percent, by graph setting.
    """

    images: str
    accuracies: dict[str, float]


def compare(recorded: runs.Recorded, with_training_set: bool = True) -> Comparison | None:
    """Compares the student with the config's graph and the student without a graph, as recorded in results.json.

    The accuracies are those on held-out training images if they are recorded, otherwise those on test images. All are
    measured one by one. If `with_training_set`, an accuracy on held-out images is replaced by that of the training-set
    graph where this is better.

    Returns:
      None if there is only one student, or there are no results of this run.

    Raises:
      UserError: results.json is damaged.
    """
    settings = configs.graph_settings(recorded.config)
    path = recorded.workdir / "results.json"
    if len(settings) < 2 or not path.is_file():
        return None
    results = storage.read_json(path)
    if results.get("fingerprint") != recorded.fingerprint:
        return None

    def first_students(entries: list[dict]) -> list[dict]:
        return [entry for entry in entries if entry["seed"] == recorded.config.seed]

    held_out = {entry["graph"]: entry["accuracy"] for entry in first_students(results.get("holdout_accuracies", []))}
    for entry in first_students(results.get("training_set", [])) if with_training_set else []:
        accuracy = entry.get("accuracy_two_fold")  # None if no images were held out
        if is_training_set_better(accuracy, held_out.get(entry["graph"])):
            held_out[entry["graph"]] = accuracy
    one_by_one = [entry for entry in first_students(results["accuracies"]) if entry["mechanism"] == ONE_BY_ONE]
    test = {entry["graph"]: entry["accuracy"] for entry in one_by_one}
    for images, accuracies in ((HELD_OUT, held_out), (TEST, test)):
        if accuracies.keys() >= set(settings):
            return Comparison(images, {setting: accuracies[setting] for setting in settings})
    return None


def warn_of_better(recorded: runs.Recorded, graph: str | None, with_training_set: bool = True) -> None:
    """Warns if `compare` finds the run's other student more accurate than the one with the graph setting `graph`."""
    try:
        comparison = compare(recorded, with_training_set)
    except UserError as error:
        log(f"warning: the students with and without a graph are not compared: {error}")
        return
    if comparison is None or graph is None:
        return
    [other] = [setting for setting in comparison.accuracies if setting != graph]
    accuracy, other_accuracy = comparison.accuracies[graph], comparison.accuracies[other]
    if accuracy < other_accuracy:
        flag = "off" if other == "off" else "learned"
        source = "" if comparison.images == HELD_OUT else " (according to results.json; no images were held out)"
        log(
            f"warning: the {_description(graph)} classifies {accuracy:.2f}% of the {comparison.images} correctly, "
            f"the {_description(other)} {other_accuracy:.2f}%{source}: --graph={flag} uses the better one"
        )


def _description(graph: str) -> str:
    return "student without a graph" if graph == "off" else f"student with the graph {graph}"
