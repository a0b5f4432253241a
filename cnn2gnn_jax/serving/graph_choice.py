"""Which student of a run answers for new images: the one with the run's own graph, or the one trained without a graph.

A run trains both (`evaluate.graph_off`) and records how many images each has right, so that they can be compared.
"""

from typing import NamedTuple

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError

CHOICES = ("learned", "off", "best")
"""`learned`: the student with the graph that the config names. `off`: the one that was trained without a graph (A = I).
`best`: the one of these two that has more held-out training images right."""
HELP = (
    "which student: learned, the one with the run's own graph (the default); off, the one trained without a graph; "
    "best, the one of these that has more held-out training images right (data.holdout)"
)
HELD_OUT, TEST = "held-out training images", "test images"


def setting(recorded: runs.Recorded, choice: str) -> str:
    """The graph setting of the student that `choice` of CHOICES asks for.

    Raises:
      UserError: the run has no such student, or nothing to choose it by.
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
    """Accuracies in percent by graph setting of a run's first students, and the images they are of."""

    images: str
    accuracies: dict[str, float]


def compare(recorded: runs.Recorded, with_training_set: bool = True) -> Comparison | None:
    """The student with the config's own graph beside the one without a graph, as results.json has them.

    On held-out training images where it has these accuracies, otherwise on test images. The accuracies are one by one;
    on held-out images those of the training-set graph take their place where they are higher, if `with_training_set`.
    None where there is but one student, or no results of this run.

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
    one_by_one = [entry for entry in results["accuracies"] if entry["mechanism"] == "one_by_one"]
    for images, entries in ((HELD_OUT, results.get("holdout_accuracies", [])), (TEST, one_by_one)):
        of_first = {entry["graph"]: entry["accuracy"] for entry in entries if entry["seed"] == recorded.config.seed}
        if images == HELD_OUT and with_training_set:
            for entry in results.get("training_set", []):
                if entry["seed"] == recorded.config.seed and entry["graph"] in of_first:
                    with_graph = entry.get("accuracy_two_fold")  # None where its settings were given
                    of_first[entry["graph"]] = max(of_first[entry["graph"]], with_graph or 0)
        if of_first.keys() >= set(settings):
            return Comparison(images, {setting: of_first[setting] for setting in settings})
    return None


def warn_of_better(recorded: runs.Recorded, graph: str | None, with_training_set: bool = True) -> None:
    """Says so in one line where the student with the setting `graph` is worse than the run's other one.

    The accuracies are those of `compare`.
    """
    try:
        compared = compare(recorded, with_training_set)
    except UserError as error:
        log(f"warning: the students with and without a graph are not compared: {error}")
        return
    if compared is None or graph is None:
        return
    [other] = [setting for setting in compared.accuracies if setting != graph]
    served, better = compared.accuracies[graph], compared.accuracies[other]
    if served < better:
        flag = "off" if other == "off" else "learned"
        where = "" if compared.images == HELD_OUT else " (by results.json; nothing was held out)"
        log(
            f"warning: the {_named(graph)} has {served:.2f}% of the {compared.images} right, "
            f"the {_named(other)} {better:.2f}%{where}: --graph={flag} serves the better one"
        )


def _named(graph: str) -> str:
    return "student without a graph" if graph == "off" else f"student with the graph {graph}"
