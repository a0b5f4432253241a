"""The table of a run, for the terminal and in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnn2gnn_jax.report import formats, names
from cnn2gnn_jax.report.statistics import is_uniform, summarize


def terminal(results: Mapping[str, Any]) -> str:
    """The table for the terminal, with what the graph does."""
    parts = [formats.aligned(_header(results), _rows(results))]
    if diagnostics := _diagnostics(results):
        parts.append("What the graph does:\n" + "\n".join(f"  {line}" for line in diagnostics))
    return "\n\n".join([*parts, "\n".join(_notes(results))])


def markdown(results: Mapping[str, Any], highlights: Sequence[str]) -> str:
    """The same in Markdown, with what to look at, costs and times."""
    lines = ["# Results", "", *formats.markdown_lines(_header(results), _rows(results))]
    if diagnostics := _diagnostics(results):
        lines += ["", "## What the graph does", "", *_listed(diagnostics)]
    lines += ["", *(note.replace("*", r"\*") for note in _notes(results))]
    lines += ["", "## What to look at", "", *_listed(highlights), "", "## Costs", "", *_costs(results)]
    if table_parameters := results["student"].get("head_table_parameters"):
        lines += ["", f"In training the graph head has {table_parameters:,} more, one row for each training image."]
    lines += ["", "## Seconds", "", *_listed(f"{stage}: {value:g}" for stage, value in results["seconds"].items())]
    lines += ["", "Versions: " + ", ".join(f"{name} {value}" for name, value in results["versions"].items()), ""]
    return "\n".join(lines)


def _listed(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _header(results: Mapping[str, Any]) -> list[str]:
    if results["student"]["kind"] != "graph":
        return ["", "accuracy"]
    protocols = names.recorded_protocols(results["accuracies"])
    return ["", *(protocol.title + "*" * protocol.is_audit for protocol in protocols)]


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    entries, rows = results["accuracies"], []
    protocols = names.recorded_protocols(entries)
    if teacher := results["teacher"]:
        # Of given logits there are none for the test images.
        accuracy = f"{teacher['accuracy']:.2f}" if "accuracy" in teacher else ""
        rows.append([f"teacher {teacher['network']}", accuracy, *[""] * (len(protocols) - 1)])
    for graph in dict.fromkeys(entry["graph"] for entry in entries):
        own = [entry for entry in entries if entry["graph"] == graph]
        groups = [own] if graph is None else [[entry for entry in own if protocol.has(entry)] for protocol in protocols]
        accuracies = [str(summarize([entry["accuracy"] for entry in group]) or "") for group in groups]
        name = f"{results['method']} student, {results['student']['network']}"
        rows.append([name if graph is None else f"{name}, {names.GRAPHS[graph]}", *accuracies])
    return rows


def _diagnostics(results: Mapping[str, Any]) -> list[str]:
    entries = results["accuracies"]
    return [
        f"{protocol.title}: {_diagnosed(entry)}"
        for entry in entries
        if names.has_graph(entry) and entry["seed"] == entries[0]["seed"]
        for protocol in names.recorded_protocols([entry])
    ]


def _diagnosed(entry: Mapping[str, Any]) -> str:
    facts = entry["diagnostics"]
    in_training = facts.get("self_weight_in_training")
    parts = [
        f"weight on self {facts['self_weight']:.2f}"
        + ("" if in_training is None else f" ({in_training:.2f} in training)"),
        f"neighbours of the same class {100 * facts['label_agreement']:.0f}% "
        f"(by chance {100 * facts['label_agreement_chance']:.0f}%)",
        f"effective neighbours {facts['effective_neighbors']:.1f}",
    ]
    if "distinct_anchors" in facts:
        parts.append(f"distinct anchors a batch {facts['distinct_anchors']:.1f}")
    return ", ".join(parts) + is_uniform(entry) * (
        "; one training image is the nearest of (almost) every whole batch, so that this graph weighs all images of "
        "the batch alike: it contains no learned structure"
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
            f"{teacher['train_accuracy']:.2f}% right on the training images."
        )
    if student["kind"] == "graph":
        notes.append(
            "*Class-sorted batches leak labels through the graph: an audit, not an accuracy. "
            "What the graph is worth is its row less the row trained and tested with A = I."
        )
    return notes


def _costs(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for network in filter(None, (results["teacher"], results["student"])):
        flops = network.get("inference_flops", {})
        for mechanism, count in (flops if isinstance(flops, dict) else {"": flops}).items():
            name = f"{network['network']} {mechanism.replace('_', ' ')}".strip()
            rows.append([name, f"{network['parameters']:,}", f"{count:,.0f}"])
    return formats.markdown_lines(["network", "parameters", "FLOPs to classify one image"], rows)
