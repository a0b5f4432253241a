"""Chooses the student of a run that classifies new images: the student with the graph, or the one without a graph.

A run trains both (`evaluate.graph_off`) and records the accuracy of each.
"""

from typing import NamedTuple

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.training import bank as banks

CHOICES = ("learned", "off", "best")
"""`learned`: the student with the graph that the config names. `off`: the student trained without a graph (A = I).
`best`: the one of these two with the higher accuracy on held-out training images."""
HELP = (
    "which student: learned, the one with the graph of the config (the default); off, the one trained without a graph; "
    "best, the one with the higher accuracy on held-out training images (data.holdout)"
)
HELD_OUT, TEST = "held-out training images", "test images"


def setting(recorded: runs.Recorded, choice: str) -> str:
    """The graph setting of the student that `choice` of CHOICES asks for.

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
    compared = compare(recorded)
    if compared is not None and compared.images == HELD_OUT:
        return max(settings, key=lambda setting: compared.accuracies[setting])
    if recorded.config.data.holdout:
        raise UserError(
            f"--graph=best: {recorded.workdir / 'results.json'} has no accuracies on held-out training images: "
            "run the run's own command again, which records them"
        )
    raise UserError(
        f"--graph=best chooses by held-out training images, and the run in {recorded.workdir} has none: train with "
        "--config.data.holdout=0.1 in a new workdir, or choose --graph=learned or --graph=off"
    )


class Comparison(NamedTuple):
    """The accuracies of the first student of each graph setting.

    images: HELD_OUT or TEST, the images on which they were measured.
    accuracies: in percent, by graph setting.
    """

    images: str
    accuracies: dict[str, float]


def compare(recorded: runs.Recorded, with_training_set: bool = True) -> Comparison | None:
    """Compares the students with and without a graph by the accuracies in `results.json`.

    Args:
      recorded: the run.
      with_training_set: whether an accuracy on held-out images is that of the training-set graph if this one is
        higher. All other accuracies are one by one.

    Returns:
      The accuracies on held-out training images, or on test images if no images were held out. None if the run has one
      student, or no results.

    Raises:
      UserError: `results.json` is damaged.
    """
    settings = configs.graph_settings(recorded.config)
    path = recorded.workdir / "results.json"
    if len(settings) < 2 or not path.is_file():
        return None
    results = storage.read_json(path)
    if results.get("fingerprint") != recorded.fingerprint:
        return None
    one_by_one = [entry for entry in results["accuracies"] if entry["mechanism"] == "one_by_one"]
    for images, entries in ((HELD_OUT, results.get("holdout_accuracies", [])), (TEST, one_by_one)):
        accuracies = {entry["graph"]: entry["accuracy"] for entry in entries if entry["seed"] == recorded.config.seed}
        if images == HELD_OUT and with_training_set:
            for entry in results.get("training_set", []):
                graph, accuracy = entry["graph"], entry.get("accuracy_two_fold")
                is_first = entry["seed"] == recorded.config.seed and graph in accuracies
                if is_first and banks.is_better(accuracy, accuracies[graph]):
                    accuracies[graph] = accuracy
        if accuracies.keys() >= set(settings):
            return Comparison(images, {setting: accuracies[setting] for setting in settings})
    return None


def warn_of_better(recorded: runs.Recorded, graph: str | None, with_training_set: bool = True) -> None:
    """Logs a warning if the student with the setting `graph` is less accurate than the other student of the run.

    The arguments `recorded` and `with_training_set` are those of `compare`.
    """
    try:
        compared = compare(recorded, with_training_set)
    except UserError as error:
        log(f"warning: the students with and without a graph are not compared: {error}")
        return
    if compared is None or graph is None:
        return
    [other] = [setting for setting in compared.accuracies if setting != graph]
    accuracy, other_accuracy = compared.accuracies[graph], compared.accuracies[other]
    if accuracy < other_accuracy:
        flag = "off" if other == "off" else "learned"
        where = "" if compared.images == HELD_OUT else " (by results.json; nothing was held out)"
        log(
            f"warning: the {_student_title(graph)} has {accuracy:.2f}% of the {compared.images} right, "
            f"the {_student_title(other)} {other_accuracy:.2f}%{where}: --graph={flag} serves the better one"
        )


def _student_title(graph: str) -> str:
    return "student without a graph" if graph == "off" else f"student with the graph {graph}"
