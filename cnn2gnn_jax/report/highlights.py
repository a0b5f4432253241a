"""What to look at in the results of a run: each line is made of its figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnn2gnn_jax.report import names
from cnn2gnn_jax.report.observations import Observation, accuracy, difference, select


def of_run(
    results: Mapping[str, Any], records: Sequence[Mapping[str, Any]], counts: np.ndarray, correct: np.ndarray
) -> list[str]:
    """A line for each thing, the most telling first.

    Args:
      results: of the run.
      records: of its training.
      counts: (C, C), how many test images of class i the first student took for class j.
      correct: (E, N), which of the N test images each of the E accuracies has right.
    """
    first = results["accuracies"][0]
    images, split = results["dataset"]["evaluated_images"], results["dataset"]["evaluated"]
    share = first["accuracy"] / 100
    error = 100 * math.sqrt(share * (1 - share) / images)
    lines = [
        f"Accuracy: {first['accuracy']:.2f}% of {images} {split} images, guessing gives {100 / len(counts):.2f}%. By "
        f"the chance of these images alone it could be {2 * error:.1f} points more or less (two standard errors)."
    ]
    lines += _graph(results, first, correct)
    teacher = results["teacher"]
    if teacher and "accuracy" in teacher and teacher["accuracy"] < first["accuracy"]:
        lines.append(
            f"The teacher ({teacher['accuracy']:.2f}%) is behind its student: it has little to teach; train it longer "
            "(teacher.train.epochs) or choose a larger one (teacher.network)."
        )
    lines += _training(records, first)
    lines += _confusions(results["dataset"]["classes"], counts)
    return lines


def _graph(results: Mapping[str, Any], first: Mapping[str, Any], correct: np.ndarray) -> list[str]:
    if not names.has_graph(first):
        return []
    lines = []
    observations = [
        Observation({}, results, entry | {"correct": images})
        for entry, images in zip(results["accuracies"], correct, strict=True)
    ]
    on, off = (select(observations, names.ONE_BY_ONE, graph) for graph in (first["graph"], "off"))
    worth = difference(on, off)
    if worth.n is not None:
        lines.append(
            f"The graph: one by one it is worth {worth.text} points (against {accuracy(off).value:.2f}% of the same "
            f"student trained and tested without; 95% interval over {worth.over}, of {names.plural(worth.n, 'seed')})."
        )
    facts = first["diagnostics"]
    agreement, chance = 100 * facts["label_agreement"], 100 * facts["label_agreement_chance"]
    verdict = "it finds the class" if agreement > min(2 * chance, (100 + chance) / 2) else "hardly better than chance"
    where = (
        "neighbors.png: images and what they are linked to, green where the class is the same:"
        if results["examples"]
        else "The graph links images to those of their class by"
    )
    lines.append(f"{where} {agreement:.0f}% of the weight on others, {chance:.0f}% by chance ({verdict}).")
    return lines


def _training(records: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> list[str]:
    student = names.student(first)
    accuracies = [r["accuracy"] for r in records if r["stage"].split(" ")[0] == student and "accuracy" in r]
    if not accuracies:
        return []
    line = f"curves.png: at its end the student had {accuracies[-1]:.1f}% of its training batches right"
    gap = accuracies[-1] - first["accuracy"]
    if gap > 20:
        return [
            f"{line}, {gap:.0f} points more than of the test images: it knows them by heart; more images help most."
        ]
    return [f"{line}; where the loss still falls, more epochs help."]


def _confusions(classes: Sequence[str], counts: np.ndarray) -> list[str]:
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    if not wrong.any():
        return ["confusion.png: no test image was mistaken."]
    i, j = (int(k) for k in np.unravel_index(np.argmax(wrong), wrong.shape))
    totals = counts.sum(axis=1)
    recall = np.where(totals > 0, np.diag(counts) / np.maximum(totals, 1), np.inf)
    worst = int(np.argmin(recall))
    return [
        f"confusion.png: the most frequent mistake is {classes[i]} taken for {classes[j]} "
        f"({wrong[i, j]} of {totals[i]}); the hardest class is {classes[worst]} "
        f"({counts[worst, worst]} of {totals[worst]} right)."
    ]
