"""The table of a run, for the terminal and in Markdown."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnn2gnn_jax.report import formats, names
from cnn2gnn_jax.report.cells import EMPTY, Cell, Table
from cnn2gnn_jax.report.statistics import is_uniform, summarize


def table(results: Mapping[str, Any]) -> Table:
    """The accuracies in a run's `results.json`: a row for each student, a column for each protocol.

    The accuracy of a CNN student alone, without the training-set graph, is in a column of its own.
    """
    entries = results["accuracies"]
    protocols: list[names.Protocol | None] = [None] if any(entry["mechanism"] is None for entry in entries) else []
    protocols += names.recorded_protocols(entries)
    columns = ["accuracy" if protocol is None else protocol.title + "*" * protocol.is_audit for protocol in protocols]
    rows: dict[str, dict[str, Cell]] = {}
    if teacher := results["teacher"]:
        # A file of logits (`teacher.logits_file`) covers only the training images, so it gives no test accuracy.
        accuracy = Cell(f"{teacher['accuracy']:.2f}", teacher["accuracy"]) if "accuracy" in teacher else EMPTY
        rows[f"teacher {teacher['network']}"] = dict.fromkeys(columns, EMPTY) | {columns[0]: accuracy}
    student = f"{names.row_title(results['method'])}, {results['student']['network']}"
    for graph in dict.fromkeys(entry["graph"] for entry in entries):
        own = [entry for entry in entries if entry["graph"] == graph]
        groups = [
            [entry for entry in own if (entry["mechanism"] is None if protocol is None else protocol.has(entry))]
            for protocol in protocols
        ]
        heading = student if graph is None else f"{student}, {names.GRAPHS[graph]}"
        rows[heading] = dict(zip(columns, map(_mean_accuracy, groups), strict=True))
    return Table(f"Results on {results['dataset']['name']}", rows, _notes(results), "run")


def _mean_accuracy(entries: Sequence[Mapping[str, Any]]) -> Cell:
    summary = summarize([entry["accuracy"] for entry in entries])
    return EMPTY if summary is None else Cell(str(summary), summary.mean, summary.deviation, n=summary.n)


def terminal(results: Mapping[str, Any]) -> str:
    """Formats the table for the terminal, followed by the diagnostics of the graph. No line exceeds 99 characters."""
    parts = [formats.aligned(*_texts(table(results)))]
    if diagnostics := _diagnostics(results):
        parts.append("\n".join(["What the graph does:", *(_filled(line, "  ") for line in diagnostics)]))
    return "\n\n".join([*parts, "\n".join(map(_filled, _notes(results)))])


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, formats.TERMINAL_WIDTH, initial_indent=indent, subsequent_indent=2 * indent, break_on_hyphens=False
    )


def markdown(results: Mapping[str, Any], highlights: Sequence[str]) -> str:
    """Formats the table as Markdown, followed by the highlights, costs and times.

    Args:
      results: the contents of `results.json`.
      highlights: sentences, as `highlights.of_run` returns them.
    """
    lines = ["# Results", "", *formats.markdown_lines(*_texts(table(results)))]
    if diagnostics := _diagnostics(results):
        lines += ["", "## What the graph does", "", *_listed(diagnostics)]
    lines += ["", *(note.replace("*", r"\*") for note in _notes(results))]
    lines += ["", "## What to look at", "", *_listed(highlights), "", "## Costs", "", *_costs(results)]
    if table_parameters := results["student"].get("head_table_parameters"):
        lines += [
            "",
            f"During training, the graph head has {table_parameters:,} more parameters, one row for each "
            "training image.",
        ]
    lines += [
        "",
        "## Seconds",
        "",
        *_listed(f"{stage}: {value:g}" for stage, value in sorted(results["seconds"].items())),
    ]
    lines += [
        "",
        "Versions: " + ", ".join(f"{name} {value}" for name, value in sorted(results["versions"].items())),
        "",
    ]
    return "\n".join(lines)


def _texts(accuracies: Table) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table."""
    rows = [[heading, *(cell.text for cell in cells.values())] for heading, cells in accuracies.rows.items()]
    return ["", *accuracies.columns], rows


def _listed(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _diagnostics(results: Mapping[str, Any]) -> list[str]:
    entries = results["accuracies"]
    return [
        f"{protocol.title}{', graph off' * (entry['graph'] == 'off')}: {_diagnostics_text(entry)}"
        for entry in entries
        if entry["seed"] == entries[0]["seed"] and (names.has_graph(entry) or names.TRAINING_SET.has(entry))
        for protocol in names.recorded_protocols([entry])
    ]


def _diagnostics_text(entry: Mapping[str, Any]) -> str:
    facts, parts = entry["diagnostics"], []
    if not names.TRAINING_SET.has(entry):
        in_training = facts.get("self_weight_in_training")
        parts.append(
            f"weight on self {facts['self_weight']:.2f}"
            + ("" if in_training is None else f" ({in_training:.2f} in training)")
        )
    parts += [
        f"neighbors of the same class {100 * facts['label_agreement']:.0f}% "
        f"(by chance {100 * facts['label_agreement_chance']:.0f}%)",
        f"effective neighbors {facts['effective_neighbors']:.1f}",
    ]
    if "accuracy_of_neighbors" in facts:
        parts.append(f"accuracy of the neighbors alone {facts['accuracy_of_neighbors']:.2f}%")
    if "recall" in facts:
        parts.append(f"{100 * facts['recall']:.1f}% of the nearest training images found")
    if "distinct_anchors" in facts:
        parts.append(f"distinct anchors per batch {facts['distinct_anchors']:.1f}")
    return ", ".join(parts) + is_uniform(entry) * (
        ". In almost every batch, all images have the same nearest training image. The graph then gives all images of "
        "the batch the same weight and contains no learned structure"
    )


def _notes(results: Mapping[str, Any]) -> list[str]:
    seeds = sorted({entry["seed"] for entry in results["accuracies"]})
    student, teacher, dataset = results["student"], results["teacher"], results["dataset"]
    notes = [
        f"Accuracy in percent on all {dataset['evaluated_images']} {dataset['evaluated']} images of {dataset['name']}; "
        f"recipe {student['recipe']}, {student['epoch']} epoch, seeds {', '.join(map(str, seeds))}."
    ]
    if teacher and "accuracy" not in teacher:
        notes.append(
            f"The teacher's logits are those of {teacher['network']}, "
            f"{teacher['train_accuracy']:.2f}% correct on the training images."
        )
    if student["kind"] == "graph":
        notes.append(
            "*Class-sorted batches leak labels through the graph: this is an audit, not an accuracy. "
            "What the graph is worth is its row minus the row of the student trained and tested with A = I."
        )
    return notes


def _costs(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for network in filter(None, (results["teacher"], results["student"])):
        flops = network.get("inference_flops", {})
        for mechanism, count in sorted((flops if isinstance(flops, dict) else {"": flops}).items()):
            name = f"{network['network']} {mechanism.replace('_', ' ')}".strip()
            rows.append([name, f"{network['parameters']:,}", f"{count:,.0f}"])
    return formats.markdown_lines(["network", "parameters", "FLOPs to classify one image"], rows)
