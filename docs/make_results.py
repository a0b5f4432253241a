"""Generates the tables and sentences of docs/results.md, and the pages results/*/results.md, from the records.

`make docs` runs it:

    python docs/make_results.py
"""

import dataclasses
import functools
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import generated
from generated import RESULTS

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.report import formats, names, notes, settings
from cnn2gnn_jax.report.cells import Cell, Table
from cnn2gnn_jax.report.names import BATCH_BY_BATCH, CLASS_SORTED, ONE_BY_ONE, PROTOCOLS, Protocol
from cnn2gnn_jax.report.observations import Observation, accuracy, difference, grouped, observe, select
from cnn2gnn_jax.report.statistics import is_uniform
from cnn2gnn_jax.report.tables import all_tables

# For each folder with a single run: its title on the page, its config file, and the word after the colon.
RUNS = {
    "digits": ("digits (`make demo`)", "digits", ""),
    "cifar100-smoke": ("CIFAR-100, `:smoke`", "cifar100", "smoke"),
    "mini_imagenet-smoke": ("Mini-ImageNet at 32x32, `:smoke`", "mini_imagenet", "smoke"),
    "image_folder": ("a folder of 1,000 pictures, 10 classes", "image_folder", ""),
}
# For each data set: the title of its table of methods.
METHODS = {"digits": "Table 1: digits", "reduced CIFAR-100": "CIFAR-100, reduced"}
MECHANISMS = [protocol for protocol in PROTOCOLS if not protocol.is_audit]


@functools.cache
def results(folder: str) -> dict[str, Any]:
    """The contents of `results.json` of a single run."""
    return json.loads((RESULTS / folder / "results.json").read_text())


def entry(folder: str, graph: str, protocol: Protocol) -> dict[str, Any] | None:
    """The accuracy of a single run with this graph setting under this protocol; None if it is not recorded."""
    entries = (entry for entry in results(folder)["accuracies"] if entry["graph"] == graph and protocol.has(entry))
    return next(entries, None)


def folders() -> list[str]:
    """The folders of the recorded sweeps."""
    return [path.parent.name for path in sorted(RESULTS.glob("*/results.jsonl"))]


@functools.cache
def sweeps() -> dict[str, list[Table]]:
    """The tables of each recorded sweep, by folder."""
    return {folder: all_tables(generated.recorded(folder)) for folder in folders()}


def runs() -> str:
    """The table of single runs, with a row for each run."""
    protocols = names.recorded_protocols(entry for folder in RUNS for entry in results(folder)["accuracies"])
    header = ["run", "recipes of teacher and student; batch size; s", "teacher"]
    header += [f"*audit: {protocol.name}*" if protocol.is_audit else protocol.title for protocol in protocols]
    rows, uniform_runs = [], []
    for folder, (title, name, word) in RUNS.items():
        teacher, recipe = results(folder)["teacher"], results(folder)["student"]["recipe"]
        student = configs.resolve(importlib.import_module(f"cnn2gnn_jax.configs.{name}").get_config(word)).student
        learned = {protocol: entry(folder, "learned", protocol) for protocol in protocols}
        uniform_runs += [
            f"{title}, {protocol.name}"
            for protocol, accuracy_entry in learned.items()
            if accuracy_entry and is_uniform(accuracy_entry)
        ]
        rows.append(
            [
                title,
                f"`{teacher['recipe']}`, `{recipe}`; {student.train.batch_size}; {student.sparsity}",
                f"{teacher['network']} {teacher['accuracy']:.2f}",
                *(f"{accuracy_entry['accuracy']:.2f}" if accuracy_entry else "" for accuracy_entry in learned.values()),
                f"{entry(folder, 'off', ONE_BY_ONE)['accuracy']:.2f}",
            ]
        )
    lines = formats.markdown_lines([*header, "the same student, graph off"], rows, left=2)
    if uniform_runs:
        lines += ["", f"{notes.UNIFORM} This was so for: {'; '.join(uniform_runs)}."]
    return "\n".join(lines)


def section() -> str:
    """The generated part of the page of results, between the two marks."""
    sections = [runs()]
    for folder, tables in sweeps().items():
        for table in tables:
            if table.kind in ("methods", "ablation", "settings"):
                sections.append(table_section(table, folder))
    return "\n\n".join([*sections, findings()])


def table_section(table: Table, folder: str) -> str:
    """A table with a link to all tables of its sweep.

    A table of settings is folded, and its columns with graph diagnostics are left out.
    """
    link = f"\nAll tables of this sweep: [results/{folder}](../results/{folder}/results.md)."
    if table.kind != "settings":
        return formats.markdown(table, level=3) + link
    rows = {
        heading: {name: cell for name, cell in row.items() if name not in settings.DIAGNOSTICS}
        for heading, row in table.rows.items()
    }
    shown = dataclasses.replace(table, rows=rows)
    heading, _, rest = (formats.markdown(shown, level=3) + link).partition("\n\n")
    return f"{heading}\n\n<details><summary>{len(rows)} settings</summary>\n\n{rest}\n\n</details>"


# Findings -----------------------------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """Sentences that are computed from the records, their title, and the cells of the differences that they quote."""

    title: str
    text: str
    cells: Sequence[Cell] = ()


def findings() -> str:
    """The section with the findings, and how the intervals of each finding are computed."""
    everything = [
        distillation(),
        gain_in_methods(),
        class_sorted(),
        *gain_in_settings(),
        open_choices(),
        ablation(),
    ]
    lead = (
        "These sentences are computed from the same records as the tables above. Differences are in percentage "
        "points, each with its 95% interval in brackets. A student is called better or worse only if this "
        "interval excludes zero."
    )
    lines = ["### Findings", "", lead, "", *(f"- **{finding.title}**: {finding.text}" for finding in everything)]
    for kind, note in notes.INTERVALS.items():
        titles = [finding.title for finding in everything if any(cell.over == kind for cell in finding.cells)]
        if titles:
            lines += ["", f"{note} This applies to: {'; '.join(titles)}."]
    return "\n".join(lines)


def by_verdict(differences: Mapping[str, Cell]) -> dict[str, list[str]]:
    """Sorts the names of differences by whether their interval is above zero, below zero, or includes zero."""
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for name, cell in differences.items():
        low, high = cell.interval or (0, 0)
        verdicts["better" if low > 0 else "worse" if high < 0 else "unclear"].append(name)
    return verdicts


def observations_of_row(title: str, row: str, graph: str, protocol: Protocol) -> list[Observation]:
    """The accuracies of a row in the table of methods with this title, graph setting and protocol."""
    all_records = [record for folder in folders() for record in generated.recorded(folder)]
    return select(observe(all_records, "methods"), protocol, graph, name=title, row=row)


def with_mark(cell: Cell, observations: Sequence[Observation]) -> Cell:
    """The cell, with a mark if the graph is a uniform average of the batch for some of its students."""
    count = sum(is_uniform(observation.entry) for observation in observations)
    mark = f" (uniform graph for {count} of {len(observations)} students)" if count else ""
    return dataclasses.replace(cell, text=cell.text + mark)


def capitalized(text: str) -> str:
    """The text with its first letter in upper case and the others as they are."""
    return text[:1].upper() + text[1:]


Arm = tuple[str, str, Protocol]
"""A row of the table of methods, a graph setting and a protocol."""


def under_protocols(count: int, total: int) -> str:
    """For how many of all protocols a verdict holds, as `under 1 of 3 protocols`."""
    return f"under each of the {total} protocols" if count == total else f"under {count} of {total} protocols"


def compare(arms: Mapping[str, tuple[Arm, Arm]], better: str, worse: str) -> tuple[str, str, list[Cell]]:
    """Compares two arms on each data set, under each of several protocols.

    Args:
      arms: for each protocol's name, the two arms. The difference is the first minus the second.
      better: the words for a difference whose interval is above zero, without the number of protocols.
      worse: the words for a difference whose interval is below zero.

    Returns:
      A sentence with the verdict on each data set, the text of all differences, and their cells.
    """
    verdicts, figures, cells = [], [], []
    for name, title in METHODS.items():
        groups = {key: [observations_of_row(title, *arm) for arm in pair] for key, pair in arms.items()}
        differences = {key: with_mark(difference(*pair), pair[0]) for key, pair in groups.items() if all(pair)}
        clear = [
            f"{words} {under_protocols(len(keys), len(differences))}"
            for words, keys in zip((better, worse), by_verdict(differences).values(), strict=False)
            if keys
        ]
        verdicts.append(f"On {name}, {' and '.join(clear) or 'every interval includes zero'}.")
        figures.append(f"on {name}, " + ", ".join(f"{key} {cell.text}" for key, cell in differences.items()))
        cells += differences.values()
    return " ".join(verdicts), "; ".join(figures), cells


def distillation() -> Finding:
    """The accuracy of CNN2GNN minus that of GNN."""
    arms = {protocol.name: ("learned", protocol) for protocol in MECHANISMS} | {"graph off": ("off", ONE_BY_ONE)}
    pairs = {name: (("cnn2gnn", *arm), ("gnn", *arm)) for name, arm in arms.items()}
    verdict, figures, cells = compare(pairs, "CNN2GNN is better than GNN", "GNN is better than CNN2GNN")
    text = f"{verdict} The accuracy of CNN2GNN minus that of GNN: {figures}."
    return Finding("What distillation adds to the graph student", text, cells)


def gain_in_methods() -> Finding:
    """The gain from the learned graph in the paper's setting, and what the graph does there."""
    off = ("cnn2gnn", "off", ONE_BY_ONE)
    arms = {protocol.name: (("cnn2gnn", "learned", protocol), off) for protocol in MECHANISMS}
    verdict, figures, cells = compare(arms, "the graph raises accuracy", "the graph lowers accuracy")
    single_runs = [f"{title} {gain_of_run(folder):+.2f}" for folder, (title, _, _) in RUNS.items()]
    [table] = [table for table in sweeps()["sweep-cifar100-reduced"] if table.kind == "settings"]
    diagnostics = [
        f"with the node features `{heading}`, {row[settings.AGREEMENT].text} ({row[settings.CHANCE].text}) and "
        f"{row[settings.DISTINCT_ANCHORS].text}"
        for heading, row in table.rows.items()
    ]
    text = (
        f"{verdict} The accuracy of `cnn2gnn` (s = 50) minus that of the same student trained and tested without a "
        f"graph: {figures}. The same difference one by one in the single runs of the first table, which have one seed "
        f"each: {'; '.join(single_runs)}. On reduced CIFAR-100, the weight on neighbors of the same class (in "
        f"parentheses, the weight expected by chance) and the number of distinct anchors per batch were: "
        f"{'; '.join(diagnostics)}."
    )
    return Finding("What the learned graph is worth in the paper's setting", text, cells)


def gain_of_run(folder: str) -> float:
    """The gain from the graph in a single run, one by one, in percentage points."""
    learned, off = (round(entry(folder, graph, ONE_BY_ONE)["accuracy"], 2) for graph in ("learned", "off"))
    return learned - off


def class_sorted() -> Finding:
    """What class-sorted test batches would hide."""
    arms = [
        observations_of_row(METHODS["reduced CIFAR-100"], "cnn2gnn", graph, protocol)
        for graph, protocol in (("learned", CLASS_SORTED), ("learned", BATCH_BY_BATCH), ("off", ONE_BY_ONE))
    ]
    sorted_, shuffled, off = (with_mark(accuracy(arm), arm).text for arm in arms)
    text = (
        f"On reduced CIFAR-100, the CNN2GNN student has an accuracy of {sorted_} in class-sorted test batches, and the "
        f"same student has {shuffled} in shuffled ones. Only the order of the test images differs. The student trained "
        f"and tested without a graph has {off}."
    )
    return Finding("What class-sorted test batches would hide", text)


def gain_in_settings() -> list[Finding]:
    """For each table of settings of the graph, how many settings gain accuracy, and the best setting."""
    gains = []
    for table in (table for tables in sweeps().values() for table in tables):
        if not table.title.startswith("What the graph is worth"):
            continue
        sentences: list[str] = []
        quoted: list[Cell] = []
        for protocol in (protocol for protocol in MECHANISMS if protocol.worth in table.columns):
            cells = {heading: row[protocol.worth] for heading, row in table.rows.items()}
            quoted += cells.values()
            better, worse, unclear = by_verdict(cells).values()
            best = max(cells, key=lambda heading: -math.inf if cells[heading].value is None else cells[heading].value)
            sentences.append(
                f"{capitalized(protocol.name)}, the graph raises accuracy in {len(better)} of {len(cells)} settings, "
                f"lowers it in {len(worse)}, and makes no clear difference in {len(unclear)}. The largest difference "
                f"is {cells[best].text} ({formats.escaped(best)})."
            )
        text = (
            f"{' '.join(sentences)} With this many 95% intervals, a few exclude zero by chance, and the best of many "
            "settings looks better than it is."
        )
        gains.append(Finding(table.title, text, quoted))
    return gains


def open_choices() -> Finding:
    """The settings that the paper leaves open, compared with the default."""
    observations = select(observe(generated.recorded("sweep-choices"), "settings"), graph=names.ON)
    (default, default_observations), *others = grouped(observations, "setting").items()
    sentences: list[str] = []
    quoted: list[Cell] = []
    for protocol in (protocol for protocol in MECHANISMS if select(default_observations, protocol)):
        reference = select(default_observations, protocol)
        groups = {formats.escaped(name): select(group, protocol) for name, group in others}
        cells = {name: with_mark(difference(group, reference), group) for name, group in groups.items()}
        quoted += cells.values()
        better, worse, unclear = by_verdict(cells).values()
        texts = [
            f"{words}: {'; '.join(f'{name} {cells[name].text}' for name in headings)}"
            for headings, words in ((better, "these are better"), (worse, "these are worse"))
            if headings
        ]
        texts += [f"these make no clear difference: {'; '.join(unclear)}"] * bool(unclear)
        first, *more = texts
        sentences.append(" ".join(f"{capitalized(text)}." for text in (f"{protocol.name}, {first}", *more)))
    text = f"The other settings are compared with the {default}, on held-out training images. {' '.join(sentences)}"
    return Finding("What the paper leaves open", text, quoted)


def ablation() -> Finding:
    """Table 3 on digits."""
    [table] = [table for tables in sweeps().values() for table in tables if table.title == "Table 3: digits"]
    figures = [
        f"{heading} {row['digits: accuracy'].text} ({row['digits: inference, s'].text} s)"
        for heading, row in table.rows.items()
    ]
    return Finding("Table 3 on digits", f"Accuracy, and the time to classify all test images: {'; '.join(figures)}.")


if __name__ == "__main__":
    for name, tables in sweeps().items():
        (RESULTS / name / "results.md").write_text(formats.document(tables), encoding="utf-8")
        print(RESULTS / name / "results.md")
    generated.write("results", section())
