"""Highlights of results: sentences whose figures and verdicts are computed from the records."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnn2gnn_jax.report import names
from cnn2gnn_jax.report.cells import Cell
from cnn2gnn_jax.report.observations import Observation, accuracy, difference, grouped, observe, protocols, select


def of_records(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each table of methods or settings, on what the learned graph is worth in it.

    Args:
      records: the records of a sweep, as `sweeps.records.read` returns them.
    """
    sentences = []
    for kind, key in (("methods", "column"), ("settings", "setting")):
        for name, observations in grouped(observe(records, kind), "name").items():
            students = select(observations, row="cnn2gnn") if kind == "methods" else observations
            verdicts = _verdicts([*grouped(students, key).values()])
            off = grouped(select(observations, graph="off"), "row" if kind == "methods" else key)
            if verdicts := verdicts + _training_set_verdicts([*off.values()]):
                sentences.append(f"Finding for {name}: {'; '.join(verdicts)}.")
    if sentences:
        sentences.append(
            "In these findings, a difference is the accuracy with the graph minus that of the same student trained "
            "and tested without a graph; the verdict is clear where the 95% interval excludes zero."
        )
    return sentences


def _verdicts(groups: Sequence[Sequence[Observation]]) -> list[str]:
    """For each protocol, a phrase on whether the learned graph gains or costs accuracy, over all groups."""
    verdicts: list[str] = []
    recorded = protocols(observation for group in groups for observation in group)
    for protocol in names.published_first(recorded):
        cells = [
            difference(select(group, protocol, "learned"), select(group, names.ONE_BY_ONE, "off")) for group in groups
        ]
        cells = [cell for cell in cells if cell.value is not None]
        if cells and not protocol.is_audit:
            subject = "it" if verdicts else "the learned graph"
            verdicts.append(f"{protocol.phrase}, {subject} {_verdict(cells)}")
    return verdicts


def _training_set_verdicts(groups: Sequence[Sequence[Observation]]) -> list[str]:
    """A phrase on whether the graph over the training set helps students that were trained without a graph."""
    cells = [difference(select(group, names.TRAINING_SET), select(group, names.ONE_BY_ONE)) for group in groups]
    cells = [cell for cell in cells if cell.value is not None]
    if not cells:
        return []
    return [f"the graph over the training set, added to a student without a graph, {_verdict(cells)}"]


def _verdict(cells: Sequence[Cell]) -> str:
    intervals = [cell.interval or (-math.inf, math.inf) for cell in cells]
    counts = {"gains accuracy": sum(low > 0 for low, _ in intervals),
              "costs accuracy": sum(high < 0 for _, high in intervals)}  # fmt: skip
    decided = {verb: count for verb, count in counts.items() if count}
    if len(cells) == 1:
        return f"{next(iter(decided), 'makes no clear difference')} ({cells[0].text} points)"
    mean = statistics.fmean(cell.value for cell in cells if cell.value is not None)
    verdict = " and ".join(f"{verb} in {count}" for verb, count in decided.items())
    verdict = f"{verdict or 'makes no clear difference in any'} of {len(cells)} comparisons"
    return f"{verdict} (mean difference {mean:+.2f} points)"


def of_run(
    results: Mapping[str, Any], records: Sequence[Mapping[str, Any]], counts: np.ndarray, correct: np.ndarray
) -> list[str]:
    """Sentences on a run's results, the most important first.

    Args:
      results: the contents of its `results.json`.
      records: the lines of its `metrics.jsonl`.
      counts: the confusion matrix of the first student, (C, C): test images of true class i and predicted class j.
      correct: which of the N test images each of the E accuracies has right, (E, N) bool.
    """
    first = results["accuracies"][0]
    images, split = results["dataset"]["evaluated_images"], results["dataset"]["evaluated"]
    fraction = first["accuracy"] / 100
    standard_error = 100 * math.sqrt(fraction * (1 - fraction) / images)
    lines = [
        f"Accuracy: {first['accuracy']:.2f}% of {images} {split} images; guessing gives {100 / len(counts):.2f}%. "
        f"With another sample of {images} images it could be {2 * standard_error:.1f} points higher or lower (two "
        "standard errors)."
    ]
    lines += _graph(results, first, correct)
    teacher = results["teacher"]
    if teacher and "accuracy" in teacher and teacher["accuracy"] < first["accuracy"]:
        lines.append(
            f"The teacher ({teacher['accuracy']:.2f}%) is less accurate than its student, so it has little to teach: "
            "train it longer (teacher.train.epochs) or choose a larger one (teacher.network)."
        )
    lines += _training(records, first)
    lines += _confusions(results["dataset"]["classes"], counts)
    return lines


def _graph(results: Mapping[str, Any], first: Mapping[str, Any], correct: np.ndarray) -> list[str]:
    if not names.has_graph(first):
        return []
    observations = [
        Observation({}, results, entry | {"correct": images})
        for entry, images in zip(results["accuracies"], correct, strict=True)
    ]
    lines = _worth(observations, first["graph"])
    facts = first["diagnostics"]
    agreement, chance = 100 * facts["label_agreement"], 100 * facts["label_agreement_chance"]
    is_clear = agreement > min(2 * chance, (100 + chance) / 2)
    verdict = "the graph finds the class" if is_clear else "hardly better than chance"
    lines.append(
        "neighbors.png shows test images and their neighbors. A green frame marks a neighbor of the same class. "
        * bool(results["examples"])
        + f"Neighbors of the same class have {agreement:.0f}% of the weight on other images; {chance:.0f}% is expected "
        f"by chance ({verdict})."
    )
    return lines


def _worth(observations: Sequence[Observation], graph: str) -> list[str]:
    """What the graph is worth under each protocol, against the student trained and tested without it."""
    off = select(observations, names.ONE_BY_ONE, "off")
    plain = [protocol for protocol in protocols(observations) if not protocol.is_audit]
    cells = {protocol: difference(select(observations, protocol, graph), off) for protocol in plain}
    cells = {protocol: cell for protocol, cell in cells.items() if cell.n is not None}
    if not cells:
        return []
    texts = ", ".join(f"{protocol.phrase} {cell.text}" for protocol, cell in cells.items())
    cell = next(iter(cells.values()))
    return [
        f"What the graph is worth, in points: {texts}. The same student trained and tested without a graph has "
        f"{accuracy(off).value:.2f}%; 95% intervals are over {cell.over}, for {names.plural(cell.n or 0, 'seed')}."
    ]


def _training(records: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> list[str]:
    student = names.student(first)
    accuracies = [r["accuracy"] for r in records if r["stage"].split(" ")[0] == student and "accuracy" in r]
    if not accuracies:
        return []
    line = f"curves.png: the student ends with {accuracies[-1]:.1f}% accuracy on its training batches"
    gap = accuracies[-1] - first["accuracy"]
    if gap > 20:
        return [
            f"{line}, {gap:.0f} points more than on the evaluated images. It overfits, so more training "
            "images will help most."
        ]
    return [f"{line}. If the loss is still falling at the end, train for more epochs."]


def _confusions(classes: Sequence[str], counts: np.ndarray) -> list[str]:
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    if not wrong.any():
        return ["confusion.png: every image is classified correctly."]
    i, j = (int(k) for k in np.unravel_index(np.argmax(wrong), wrong.shape))
    totals = counts.sum(axis=1)
    recall = np.where(totals > 0, np.diag(counts) / np.maximum(totals, 1), np.inf)
    worst = int(np.argmin(recall))
    return [
        f"confusion.png: the most frequent error is {classes[i]} predicted as {classes[j]} "
        f"({wrong[i, j]} of {totals[i]}); the hardest class is {classes[worst]} "
        f"({counts[worst, worst]} of {totals[worst]} correct)."
    ]
