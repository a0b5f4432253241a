"""The table of a run."""

from collections.abc import Iterable, Sequence
from typing import Any

from cnn2gnn_jax.report.statistics import is_uniform, summarize

_GRAPHS = {
    "learned": "learned graph (Eq. 3)",
    "off": "graph off: trained and tested with A = I",
    "off_at_test": "the same weights, graph off at test",
    "inner_product": "inner-product graph (InGNN)",
    "euclidean": "Euclidean graph (EucGNN)",
    "euclidean_sparse": "Eq. 3 on Euclidean distances",
}
PROTOCOLS = (("one_by_one", None), ("batch_by_batch", "shuffled"), ("batch_by_batch", "class_sorted"))
_HEADER = ("", "one by one", "batch by batch, shuffled", "batch by batch, class-sorted*")


def _mean_and_deviation(values: Iterable[float]) -> str:
    return str(summarize(list(values)) or "")


def _rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if teacher := results["teacher"]:
        # Of given logits there are none for the test images.
        accuracy = f"{teacher['accuracy']:.2f}" if "accuracy" in teacher else ""
        rows.append((f"teacher {teacher['network']}", accuracy, "", ""))
    entries = results["accuracies"]
    for graph in dict.fromkeys(entry["graph"] for entry in entries):
        mine = [entry for entry in entries if entry["graph"] == graph]
        name = f"{results['method']} student, {results['student']['network']}"
        if graph is None:
            rows.append((name, _mean_and_deviation(entry["accuracy"] for entry in mine), "", ""))
            continue
        cells = [
            _mean_and_deviation(e["accuracy"] for e in mine if (e["mechanism"], e["batch_order"]) == protocol)
            for protocol in PROTOCOLS
        ]
        rows.append((f"{name}, {_GRAPHS[graph]}", *cells))
    return rows


def _diagnostics(results: dict[str, Any]) -> list[str]:
    lines = []
    for entry in results["accuracies"]:
        if entry["graph"] in (None, "off", "off_at_test") or entry["seed"] != results["accuracies"][0]["seed"]:
            continue
        facts = entry["diagnostics"]
        order = f", {entry['batch_order'].replace('_', '-')}" if entry["batch_order"] else ""
        training = facts.get("self_weight_in_training")
        line = (
            f"{entry['mechanism'].replace('_', ' ')}{order}: weight on self {facts['self_weight']:.2f}"
            + (f" ({training:.2f} in training), " if training is not None else ", ")
            + f"neighbours of the same class {100 * facts['label_agreement']:.0f}% "
            f"(by chance {100 * facts['label_agreement_chance']:.0f}%), "
            f"effective neighbours {facts['effective_neighbors']:.1f}"
        )
        if "distinct_anchors" in facts:
            line += f", distinct anchors a batch {facts['distinct_anchors']:.1f}"
        if is_uniform(entry):
            line += (
                "; one training image is the nearest of (almost) every whole batch, so that this graph weighs all "
                "images of the batch alike: it contains no learned structure"
            )
        lines.append(line)
    return lines


def _notes(results: dict[str, Any]) -> list[str]:
    seeds = sorted({entry["seed"] for entry in results["accuracies"]})
    student = results["student"]
    images = f"{results['dataset']['evaluated_images']} {results['dataset']['evaluated']} images"
    notes = [
        f"Accuracy in percent on all {images} of {results['dataset']['name']}; "
        f"recipe {student['recipe']}, {student['epoch']} epoch, seeds {', '.join(map(str, seeds))}."
    ]
    if results["teacher"] and "accuracy" not in results["teacher"]:
        notes.append(
            f"The teacher's logits are those of {results['teacher']['network']}, "
            f"{results['teacher']['train_accuracy']:.2f}% right on the training images."
        )
    if student["kind"] == "graph":
        notes.append(
            "*Class-sorted batches leak labels through the graph: an audit, not an accuracy. "
            "What the graph is worth is its row less the row trained and tested with A = I."
        )
    return notes


def table(results: dict[str, Any]) -> str:
    """The table for the terminal."""
    rows = _rows(results)
    header = _HEADER if results["student"]["kind"] == "graph" else ("", "accuracy", "", "")
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    lines.insert(1, "-" * len(lines[0]))
    parts = ["\n".join(line.rstrip() for line in lines)]
    if found := _diagnostics(results):
        parts.append("What the graph does:\n" + "\n".join(f"  {line}" for line in found))
    parts.append("\n".join(_notes(results)))
    return "\n\n".join(parts)


def markdown(results: dict[str, Any], look: Sequence[str]) -> str:
    """The same in Markdown, with what to look at, costs and times."""
    header = _HEADER if results["student"]["kind"] == "graph" else ("", "accuracy", "", "")
    lines = ["# Results", "", "| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(results)]
    if found := _diagnostics(results):
        lines += ["", "## What the graph does", "", *(f"- {line}" for line in found)]
    lines += [
        "",
        *(note.replace("*", r"\*") for note in _notes(results)),
        "",
        "## What to look at",
        "",
        *(f"- {line}" for line in look),
        "",
        "## Costs",
        "",
        "| network | parameters | FLOPs to classify one image |",
        "|---|---:|---:|",
    ]
    for network in filter(None, (results["teacher"], results["student"])):
        if "inference_flops" not in network:
            continue
        flops = network["inference_flops"]
        flops = flops if isinstance(flops, dict) else {"": flops}
        for mechanism, count in flops.items():
            name = f"{network['network']} {mechanism.replace('_', ' ')}".strip()
            lines.append(f"| {name} | {network['parameters']:,} | {count:,.0f} |")
    if table_parameters := results["student"].get("head_table_parameters"):
        lines += ["", f"In training the graph head has {table_parameters:,} more, one row for each training image."]
    lines += ["", "## Seconds", "", *(f"- {stage}: {value:g}" for stage, value in results["seconds"].items())]
    lines += ["", "Versions: " + ", ".join(f"{name} {value}" for name, value in results["versions"].items()), ""]
    return "\n".join(lines)
