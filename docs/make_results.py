"""Writes the figures and sentences of docs/results.md, and the tables under results/, from the records: `make docs`.

python docs/make_results.py
"""

import dataclasses
import functools
import importlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.report import formats, names, notes, settings
from cnn2gnn_jax.report.cells import Cell, Table
from cnn2gnn_jax.report.names import BATCH_BY_BATCH, CLASS_SORTED, ONE_BY_ONE, PROTOCOLS, Protocol
from cnn2gnn_jax.report.observations import Observation, accuracy, difference, grouped, observe, select
from cnn2gnn_jax.report.statistics import is_uniform
from cnn2gnn_jax.report.tables import all_tables
from cnn2gnn_jax.sweeps import records

ROOT = pathlib.Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"
BEGIN, END = "<!-- made by docs/make_results.py -->", "<!-- end -->"
RUNS = {  # by folder: what it is called, its config and the word after the colon
    "digits": ("digits (`make demo`)", "digits", ""),
    "cifar100-smoke": ("CIFAR-100, `:smoke`", "cifar100", "smoke"),
    "mini_imagenet-smoke": ("Mini-ImageNet at 32x32, `:smoke`", "mini_imagenet", "smoke"),
    "image_folder": ("a folder of 1,000 pictures, 10 classes", "image_folder", ""),
}
METHODS = {"digits": "Table 1: digits", "reduced CIFAR-100": "CIFAR-100, reduced"}
MECHANISMS = [protocol for protocol in PROTOCOLS if not protocol.is_audit]


@functools.cache
def results(folder: str) -> dict[str, Any]:
    """What a single run has recorded."""
    return json.loads((RESULTS / folder / "results.json").read_text())


def entry(folder: str, graph: str, protocol: Protocol) -> dict[str, Any] | None:
    """The accuracy of a single run with a graph setting under a protocol, None where it has none."""
    entries = (entry for entry in results(folder)["accuracies"] if entry["graph"] == graph and protocol.has(entry))
    return next(entries, None)


@functools.cache
def recorded() -> dict[str, list[dict[str, Any]]]:
    """The records of every sweep, by folder."""
    return {path.parent.name: records.read(path.parent) for path in sorted(RESULTS.glob("*/results.jsonl"))}


@functools.cache
def sweeps() -> dict[str, list[Table]]:
    """The tables of every recorded sweep, by folder."""
    return {folder: all_tables(lines) for folder, lines in recorded().items()}


def runs() -> str:
    """A row for each single run."""
    protocols = names.recorded_protocols(entry for folder in RUNS for entry in results(folder)["accuracies"])
    header = ["run", "recipes of teacher and student, batch, s", "teacher"]
    header += [f"*audit: {protocol.name}*" if protocol.is_audit else protocol.title for protocol in protocols]
    rows, uniform = [], []
    for folder, (title, name, word) in RUNS.items():
        teacher, recipe = results(folder)["teacher"], results(folder)["student"]["recipe"]
        student = configs.resolve(importlib.import_module(f"cnn2gnn_jax.configs.{name}").get_config(word)).student
        learned = {protocol: entry(folder, "learned", protocol) for protocol in protocols}
        uniform += [f"{title}, {protocol.name}" for protocol, own in learned.items() if own and is_uniform(own)]
        rows.append(
            [
                title,
                f"`{teacher['recipe']}`, `{recipe}`; {student.train.batch_size}; {student.sparsity}",
                f"{teacher['network']} {teacher['accuracy']:.2f}",
                *(f"{own['accuracy']:.2f}" if own else "" for own in learned.values()),
                f"{entry(folder, 'off', ONE_BY_ONE)['accuracy']:.2f}",
            ]
        )
    lines = formats.markdown_lines([*header, "the same, graph off"], rows, left=2)
    return "\n".join([*lines, *(["", f"{notes.UNIFORM}: {'; '.join(uniform)}."] * bool(uniform))])


def section() -> str:
    """What stands on the page of results between the marks."""
    parts = [runs()]
    for folder, tables in sweeps().items():
        for table in tables:
            if table.kind in ("methods", "ablation", "settings"):
                parts.append(part(table, folder))
    return "\n\n".join([*parts, findings()])


def part(table: Table, folder: str) -> str:
    """A table, and where all of it is; a long one opens at a click, without what its graphs do."""
    link = f"\nAll of it: [results/{folder}](../results/{folder}/results.md)."
    if table.kind != "settings":
        return formats.markdown(table, level=3) + link
    rows = {
        heading: {name: cell for name, cell in row.items() if name not in settings.DIAGNOSTICS}
        for heading, row in table.rows.items()
    }
    shown = dataclasses.replace(table, rows=rows)
    heading, _, rest = (formats.markdown(shown, level=3) + link).partition("\n\n")
    return f"{heading}\n\n<details><summary>{len(rows)} settings</summary>\n\n{rest}\n\n</details>"


# What they say ------------------------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """A sentence or more that is made of the records, and the differences that stand in it."""

    text: str
    cells: Sequence[Cell] = ()


def findings() -> str:
    """What the records say, in sentences whose figures and verdicts are made of them."""
    parts = [distillation(), worth_in_methods(), class_sorted(), *worth_in_settings(), choices_of_ours(), ablation()]
    kinds = {cell.over for part in parts for cell in part.cells}
    intervals = " ".join(note for kind, note in notes.INTERVALS.items() if kind in kinds)
    lead = (
        "At these sizes, a laptop's, the teachers are small and weak, so the levels are far below the paper's; what is "
        "compared is trained and tested alike. Differences are in points, with 95% intervals."
    )
    return "\n".join(["### What they say", "", lead, "", *(f"- {part.text}" for part in parts), "", intervals])


def by_side(differences: Mapping[str, Cell]) -> dict[str, list[str]]:
    """The names of the differences that are ahead or behind, as their interval leaves out zero, and of those open."""
    sides: dict[str, list[str]] = {"ahead": [], "behind": [], "open": []}
    for name, cell in differences.items():
        low, high = cell.interval or (0, 0)
        sides["ahead" if low > 0 else "behind" if high < 0 else "open"].append(name)
    return sides


def of_method(title: str, row: str, graph: str, protocol: Protocol) -> list[Observation]:
    """The accuracies of a row of a table of methods, with a graph setting and under a protocol."""
    lines = [line for sweep in recorded().values() for line in sweep]
    return select(observe(lines, "methods"), protocol, graph, name=title, row=row)


def with_mark(cell: Cell, observations: Sequence[Observation]) -> Cell:
    """The cell, with a mark where the graph of its accuracies is a uniform average of the batch."""
    count = sum(is_uniform(observation.entry) for observation in observations)
    mark = f" (uniform in {count} of {len(observations)})" if count else ""
    return dataclasses.replace(cell, text=cell.text + mark)


Arm = tuple[str, str, Protocol]
"""Row, graph setting and protocol."""


def compare(arms: Mapping[str, tuple[Arm, Arm]], ahead: str, behind: str) -> tuple[str, Finding]:
    """Of each data set in how many comparisons the interval leaves out zero, on either side; then all differences."""
    verdicts, figures, cells = [], [], []
    for name, title in METHODS.items():
        groups = {key: [of_method(title, *arm) for arm in pair] for key, pair in arms.items()}
        differences = {key: with_mark(difference(*pair), pair[0]) for key, pair in groups.items() if all(pair)}
        sides = by_side(differences)
        certain = [
            f"{verdict} in {len(sides[place])} of {len(differences)} protocols"
            for place, verdict in (("ahead", ahead), ("behind", behind))
            if sides[place]
        ]
        verdicts.append(f"on {name} {' and '.join(certain) or 'every interval includes zero'}")
        figures.append(f"{name}: " + ", ".join(f"{key} {cell.text}" for key, cell in differences.items()))
        cells += differences.values()
    return ", ".join(verdicts), Finding("; ".join(figures), cells)


def distillation() -> Finding:
    """CNN2GNN less GNN."""
    arms = {protocol.name: ("learned", protocol) for protocol in MECHANISMS} | {"graph off": ("off", ONE_BY_ONE)}
    said, figures = compare(
        {name: (("cnn2gnn", *arm), ("gnn", *arm)) for name, arm in arms.items()}, "CNN2GNN is ahead", "GNN is ahead"
    )
    text = f"**What distillation adds to the graph student**: {said}. CNN2GNN less GNN, {figures.text}."
    return Finding(text, figures.cells)


def worth_in_methods() -> Finding:
    """The learned graph in the paper's setting."""
    off = ("cnn2gnn", "off", ONE_BY_ONE)
    arms = {protocol.name: (("cnn2gnn", "learned", protocol), off) for protocol in MECHANISMS}
    said, figures = compare(arms, "it gains", "it costs")
    single = [f"{title} {worth_of_run(folder):+.2f}" for folder, (title, _, _) in RUNS.items()]
    [table] = [table for table in sweeps()["sweep-cifar100-reduced"] if table.kind == "settings"]
    audited = [
        f"{heading}: {settings.AGREEMENT} {row[settings.AGREEMENT].text} ({settings.CHANCE} "
        f"{row[settings.CHANCE].text}), {settings.DISTINCT_ANCHORS} {row[settings.DISTINCT_ANCHORS].text}"
        for heading, row in table.rows.items()
    ]
    return Finding(
        f"**What the learned graph is worth in the paper's setting** (`cnn2gnn`, s = 50): {said}. CNN2GNN less the "
        f"same student trained and tested without a graph, {figures.text}. In the first table, of one seed a row and "
        f"the settings told there, one by one: {'; '.join(single)}. What the graph did on reduced CIFAR-100, by node "
        f"features: {'; '.join(audited)}.",
        figures.cells,
    )


def worth_of_run(folder: str) -> float:
    """What the graph is worth in a single run, one by one, in points."""
    learned, off = (round(entry(folder, graph, ONE_BY_ONE)["accuracy"], 2) for graph in ("learned", "off"))
    return learned - off


def class_sorted() -> Finding:
    """What class-sorted test batches would hide."""
    arms = [
        of_method(METHODS["reduced CIFAR-100"], "cnn2gnn", graph, protocol)
        for graph, protocol in (("learned", CLASS_SORTED), ("learned", BATCH_BY_BATCH), ("off", ONE_BY_ONE))
    ]
    sorted_, shuffled, off = (with_mark(accuracy(arm), arm).text for arm in arms)
    return Finding(
        "**What class-sorted test batches would hide**: in them the CNN2GNN student of reduced CIFAR-100 has "
        f"{sorted_}, in shuffled ones {shuffled}, and without a graph {off}; nothing else has changed."
    )


def worth_in_settings() -> list[Finding]:
    """Where a graph pays: of each table of settings how many rows are ahead, and the best."""
    parts = []
    for table in (table for tables in sweeps().values() for table in tables):
        if not table.title.startswith("What the graph is worth"):
            continue
        said, used = [], []
        for protocol in (protocol for protocol in MECHANISMS if protocol.worth in table.columns):
            cells = {heading: row[protocol.worth] for heading, row in table.rows.items()}
            used += cells.values()
            ahead, behind, undecided = by_side(cells).values()
            best = max(cells, key=lambda heading: -math.inf if cells[heading].value is None else cells[heading].value)
            said.append(
                f"{protocol.name}, it gains in {len(ahead)} of {len(cells)} settings, costs in {len(behind)} and is "
                f"undecided in {len(undecided)}; the best is {cells[best].text} ({formats.escaped(best)})"
            )
        text = (
            f"**{table.title}**: {'; '.join(said)}. Of so many 95% intervals "
            "a few leave out zero by chance, and the best of many looks better than it is."
        )
        parts.append(Finding(text, used))
    return parts


def choices_of_ours() -> Finding:
    """The settings that the paper leaves open, against the default."""
    observations = select(observe(recorded()["sweep-choices"], "settings"), graph=names.ON)
    (default, ours), *others = grouped(observations, "setting").items()
    parts, used = [], []
    for protocol in (protocol for protocol in MECHANISMS if select(ours, protocol)):
        groups = {formats.escaped(name): select(group, protocol) for name, group in others}
        cells = {name: with_mark(difference(group, select(ours, protocol)), group) for name, group in groups.items()}
        used += cells.values()
        ahead, behind, undecided = by_side(cells).values()
        texts = [
            f"{verdict}: {', '.join(f'{name} {cells[name].text}' for name in side)}"
            for side, verdict in ((ahead, "better"), (behind, "worse"))
            if side
        ]
        texts += [f"no clear difference: {', '.join(undecided)}"] * bool(undecided)
        parts.append(f"{protocol.name.capitalize()}, {'; '.join(texts)}.")
    text = f"**What the paper leaves open**, on held-out training images, against the {default}. {' '.join(parts)}"
    return Finding(text, used)


def ablation() -> Finding:
    """Table 3 on digits."""
    [table] = [table for tables in sweeps().values() for table in tables if table.title == "Table 3: digits"]
    figures = [
        f"{heading} {row['digits: accuracy'].text} in {row['digits: inference, s'].text} s"
        for heading, row in table.rows.items()
    ]
    return Finding(f"**Table 3 on digits**, with the seconds to classify all test images: {'; '.join(figures)}.")


def page(text: str) -> str:
    """The page with its figures made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for name, tables in sweeps().items():
        (RESULTS / name / "results.md").write_text(formats.document(tables), encoding="utf-8")
        print(RESULTS / name / "results.md")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
