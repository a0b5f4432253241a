"""What to look at in the results of a run, in words: each line is drawn from its figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnn2gnn_jax.report.statistics import paired


def what_to_look_at(
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
    if first["graph"] in (None, "off"):
        return []
    lines = []
    of = [
        {
            entry["seed"]: (entry["accuracy"], images)
            for entry, images in zip(results["accuracies"], correct, strict=True)
            if (entry["graph"], entry["mechanism"]) == (graph, first["mechanism"])
        }
        for graph in (first["graph"], "off")
    ]
    (on, off), (on_images, off_images) = ([{s: pair[k] for s, pair in arm.items()} for arm in of] for k in (0, 1))
    worth = paired(on, off, (on_images, off_images))
    if worth is not None:
        lines.append(
            f"The graph: one by one it is worth {worth} points (against {np.mean(list(off.values())):.2f}% of the same "
            f"student trained and tested without; 95% interval over {worth.over}, of {worth.n} "
            f"seed{'s' * (worth.n != 1)})."
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
    kind = f"graph_{first['graph']}" if first["graph"] else "cnn"
    stage = f"{kind}-seed{first['seed']}"
    mine = [r["accuracy"] for r in records if r["stage"].split(" ")[0] == stage and "accuracy" in r]
    if not mine:
        return []
    line = f"curves.png: at its end the student had {mine[-1]:.1f}% of its training batches right"
    gap = mine[-1] - first["accuracy"]
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
