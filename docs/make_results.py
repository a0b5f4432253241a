"""Writes the figures and sentences of docs/results.md, and the tables under results/, from the records: `make docs`.

python docs/make_results.py
"""

import dataclasses
import functools
import importlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.report import formats, notes, records, tables, tuned
from cnn2gnn_jax.report.statistics import is_uniform
from cnn2gnn_jax.report.tables import Cell, Observation, Table

ROOT = pathlib.Path(__file__).parent.parent
README, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"
BEGIN, END = "<!-- made by docs/make_results.py -->", "<!-- end -->"
RUNS = {  # by folder: what it is called, its config and the word after the colon
    "digits": ("digits (`make demo`)", "digits", ""),
    "cifar100-smoke": ("CIFAR-100, `:smoke`", "cifar100", "smoke"),
    "mini_imagenet-smoke": ("Mini-ImageNet at 32x32, `:smoke`", "mini_imagenet", "smoke"),
    "image_folder": ("a folder of 1,000 pictures, 10 classes", "image_folder", ""),
}
# The columns of a table of settings that the README shows.
WORTH = {"one by one": "the graph is worth, one by one", "batch by batch": "the graph is worth, batch by batch"}
SHOWN = (
    *("one by one", "batch by batch", "graph off", *WORTH.values(), "class-sorted (audit)"),
    *tuned.COLUMNS,
)
METHODS = {"digits": "Table 1: digits", "reduced CIFAR-100": "CIFAR-100, reduced"}


def runs() -> str:
    """A row for each single run."""
    lines = [
        "| run | recipes of teacher and student, batch, s | teacher | one by one | batch by batch, shuffled "
        "| *audit: class-sorted* | the same, graph off |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    uniform = []
    for folder, (title, name, word) in RUNS.items():
        found = json.loads((RESULTS / folder / "results.json").read_text())
        student = configs.resolve(importlib.import_module(f"configs.{name}").get_config(word)).student
        by = {(e["graph"], e["mechanism"], e["batch_order"]): e for e in found["accuracies"]}
        recipes = f"`{found['teacher']['recipe']}`, `{found['student']['recipe']}`"
        cells = [f"{recipes}; {student.train.batch_size}; {student.sparsity}"]
        cells += [f"{found['teacher']['network']} {found['teacher']['accuracy']:.2f}"]
        for protocol in ("one by one", "batch by batch", "class-sorted"):
            entry = by["learned", *tables.PROTOCOLS[protocol]]
            cells.append(f"{entry['accuracy']:.2f}")
            if is_uniform(entry):
                uniform.append(f"{title}, {protocol}")
        cells.append(f"{by['off', 'one_by_one', None]['accuracy']:.2f}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", f"{notes.UNIFORM}: {'; '.join(uniform)}."] * bool(uniform))])


@functools.cache
def recorded() -> dict[str, list[dict[str, Any]]]:
    """The records of every sweep, by folder."""
    return {path.parent.name: records.read(path.parent) for path in sorted(RESULTS.glob("*/results.jsonl"))}


@functools.cache
def sweeps() -> dict[str, list[Table]]:
    """The tables of every recorded sweep, by folder."""
    return {folder: tables.every(found) for folder, found in recorded().items()}


def section() -> str:
    """What stands in the README between the marks."""
    parts = [runs()]
    for folder, found in sweeps().items():
        for table in found:
            if table.title.startswith("Audit") or "paired" in table.title or "Figure" in table.title:
                continue
            settings = tuple(table.columns[: len(tables.AUDIT)]) == tables.AUDIT
            if settings:
                keep = [k for k, name in enumerate(table.columns) if name in SHOWN]
                rows = [(heading, [cells[k] for k in keep]) for heading, cells in table.rows]
                table = dataclasses.replace(table, columns=[table.columns[k] for k in keep], rows=rows)
            text = formats.markdown(table, level=3)
            text += f"\nAll of it: [results/{folder}](../results/{folder}/results.md)."
            if settings:  # long tables, which open at a click
                heading, _, rest = text.partition("\n\n")
                text = f"{heading}\n\n<details><summary>{len(rows)} settings</summary>\n\n{rest}\n\n</details>"
            parts.append(text)
    return "\n\n".join([*parts, findings()])


# What they say ------------------------------------------------------------------------------------------------------


def findings() -> str:
    """What the records say, in sentences whose figures and verdicts are made of them."""
    used: list[Cell] = []
    parts = [distillation(used), worth_in_methods(used), class_sorted(), *worth_in_settings(used)]
    parts += [choices(used), ablation()]
    told = [note for kind, note in notes.INTERVALS.items() if any(cell.over == kind for cell in used)]
    lead = (
        "At these sizes, a laptop's, the teachers are small and weak, so the levels are far below the paper's; what is "
        "compared is trained and tested alike. Differences are in points, with 95% intervals."
    )
    return "\n".join(["### What they say", "", lead, "", *(f"- {part}" for part in parts), "", " ".join(told)])


def place(cell: Cell) -> str:
    """Where a difference lies: ahead or behind if its interval leaves out zero, otherwise open."""
    if cell.interval is None or cell.interval[0] <= 0 <= cell.interval[1]:
        return "open"
    return "ahead" if cell.interval[0] > 0 else "behind"


def escaped(text: str) -> str:
    """A heading as Markdown."""
    return text.replace("_", r"\_")


def listed(texts: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def of_method(title: str, row: str, protocol: str, graph: str) -> list[Observation]:
    """The accuracies of a row of a table of methods, under a protocol and a graph setting."""
    return [
        one
        for found in recorded().values()
        for one in tables.observations(found, "methods")
        if (one.place["name"], one.place["row"]) == (title, row) and tables.is_protocol(one, protocol, [graph])
    ]


def uniform(seen: Sequence[Observation]) -> str:
    """A mark of accuracies whose graph is a uniform average of the batch."""
    count = sum(is_uniform(one.entry) for one in seen)
    return f" (uniform in {count} of {len(seen)})" if count else ""


def against(title: str, ours: tuple[str, str], theirs: tuple[str, str], used: list[Cell]) -> dict[str, Cell]:
    """The difference of two rows, each with a graph setting, one by one and batch by batch."""
    cells = {}
    for protocol in WORTH:
        (row, graph), other = ours, of_method(title, theirs[0], protocol, theirs[1])
        mine = of_method(title, row, protocol, graph)
        cell = tables.difference(mine, other)
        cells[protocol] = dataclasses.replace(cell, text=cell.text + uniform(mine))
    used += cells.values()
    return cells


def verdict(by_data: Mapping[str, Sequence[Cell]], ahead: str, behind: str) -> str:
    """In how many of the protocols of each data set the interval leaves out zero, on either side."""
    parts = []
    for name, cells in by_data.items():
        sides = [place(cell) for cell in cells]
        certain = [
            f"{words} in {sides.count(side)} of {len(cells)} protocols"
            for side, words in (("ahead", ahead), ("behind", behind))
            if side in sides
        ]
        parts.append(f"on {name} {listed(certain) if certain else 'every interval includes zero'}")
    return ", ".join(parts)


def distillation(used: list[Cell]) -> str:
    """CNN2GNN less GNN."""
    found = {}
    for name, title in METHODS.items():
        cells = against(title, ("cnn2gnn", "learned"), ("gnn", "learned"), used)
        off = against(title, ("cnn2gnn", "off"), ("gnn", "off"), used)["one by one"]
        found[name] = {**cells, "graph off": off}
    said = verdict({name: list(cells.values()) for name, cells in found.items()}, "CNN2GNN is ahead", "GNN is ahead")
    figures = "; ".join(
        f"{name}: " + ", ".join(f"{protocol} {cell.text}" for protocol, cell in cells.items())
        for name, cells in found.items()
    )
    return f"**What distillation adds to the graph student**: {said}. CNN2GNN less GNN, {figures}."


def worth_in_methods(used: list[Cell]) -> str:
    """The learned graph in the paper's setting."""
    found = {name: against(title, ("cnn2gnn", "learned"), ("cnn2gnn", "off"), used) for name, title in METHODS.items()}
    said = verdict({name: list(cells.values()) for name, cells in found.items()}, "it gains", "it costs")
    figures = "; ".join(
        f"{name}: " + ", ".join(f"{protocol} {cell.text}" for protocol, cell in cells.items())
        for name, cells in found.items()
    )
    rows = [
        (heading, dict(zip(tables.AUDIT, cells, strict=True)))
        for table in sweeps()["sweep-cifar100-reduced"]
        if tuple(table.columns) == tables.AUDIT and not table.title.startswith("Audit")
        for heading, cells in table.rows
    ]
    audited = "; ".join(
        f"{heading}: neighbours of the same class {cells['neighbours of the same class'].text} (by chance "
        f"{cells['by chance'].text}), distinct anchors a batch {cells['distinct anchors a batch'].text}"
        for heading, cells in rows
    )
    return (
        f"**What the learned graph is worth in the paper's setting** (`cnn2gnn`, s = 50): {said}. CNN2GNN less the "
        f"same student trained and tested without a graph, {figures}. {single_runs()} What the graph did on reduced "
        f"CIFAR-100, by node features: {audited}."
    )


def single_runs() -> str:
    """What the graph is worth in each single run, one by one."""
    figures = []
    for folder, (title, _, _) in RUNS.items():
        entries = json.loads((RESULTS / folder / "results.json").read_text())["accuracies"]
        by = {entry["graph"]: round(entry["accuracy"], 2) for entry in entries if entry["mechanism"] == "one_by_one"}
        figures.append(f"{title} {by['learned'] - by['off']:+.2f}")
    return f"In the first table, of one seed a row and the settings told there, one by one: {'; '.join(figures)}."


def class_sorted() -> str:
    """What class-sorted test batches would hide."""
    arms = [
        of_method(METHODS["reduced CIFAR-100"], "cnn2gnn", protocol, graph)
        for protocol, graph in (("class-sorted", "learned"), ("batch by batch", "learned"), ("one by one", "off"))
    ]
    sorted_, shuffled, off = (tables.accuracy(arm).text + uniform(arm) for arm in arms)
    return (
        "**What class-sorted test batches would hide**: in them the CNN2GNN student of reduced CIFAR-100 has "
        f"{sorted_}, in shuffled ones {shuffled}, and without a graph {off}; nothing else has changed."
    )


def worth_in_settings(used: list[Cell]) -> list[str]:
    """Where a graph pays: of each table of settings how many are ahead, and the best."""
    parts = []
    for table in (table for found in sweeps().values() for table in found):
        if not table.title.startswith("What the graph is worth"):
            continue
        said = []
        for protocol, column in WORTH.items():
            cells = {heading: line[tables.AUDIT.index(column)] for heading, line in table.rows}
            used += cells.values()
            sides = [place(cell) for cell in cells.values()]
            best = max(cells, key=lambda heading: cells[heading].value if cells[heading].value is not None else -1e9)
            said.append(
                f"{protocol}, it gains in {sides.count('ahead')} of {len(cells)} settings, costs in "
                f"{sides.count('behind')} and is undecided in {sides.count('open')}; the best is "
                f"{cells[best].text} ({escaped(best)})"
            )
        parts.append(
            f"**{table.title}**: {'; '.join(said)}. Of so many 95% intervals "
            "a few leave out zero by chance, and the best of many looks better than it is."
        )
    return parts


def choices(used: list[Cell]) -> str:
    """The settings that the paper leaves open, against the default."""
    rows: dict[str, list[Observation]] = {}
    for one in tables.observations(recorded()["sweep-choices"], "settings"):
        if one.entry["graph"] not in ("off", "off_at_test"):
            rows.setdefault(one.place["setting"], []).append(one)
    (default, first), *others = rows.items()
    parts = []
    for protocol in WORTH:
        of_first = [one for one in first if tables.is_protocol(one, protocol)]
        cells = {}
        for name, every in others:
            mine = [one for one in every if tables.is_protocol(one, protocol)]
            cell = tables.difference(mine, of_first)
            cells[name] = dataclasses.replace(cell, text=cell.text + uniform(mine))
        used += cells.values()
        by = {side: [name for name in cells if place(cells[name]) == side] for side in ("ahead", "behind", "open")}
        texts = [
            f"{words}: {', '.join(f'{escaped(name)} {cells[name].text}' for name in by[side])}"
            for side, words in (("ahead", "better"), ("behind", "worse"))
            if by[side]
        ]
        texts += [f"no clear difference: {', '.join(map(escaped, by['open']))}"] * bool(by["open"])
        parts.append(f"{protocol.capitalize()}, {'; '.join(texts)}.")
    return f"**What the paper leaves open**, on held-out training images, against the {default}. {' '.join(parts)}"


def ablation() -> str:
    """Table 3 on digits."""
    [table] = [table for found in sweeps().values() for table in found if table.title == "Table 3: digits"]
    figures = [f"{heading} {cells[0].text} in {cells[2].text} s" for heading, cells in table.rows]
    return f"**Table 3 on digits**, with the seconds to classify all test images: {'; '.join(figures)}."


def readme(text: str) -> str:
    """The README with its figures made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for name, found in sweeps().items():
        (RESULTS / name / "results.md").write_text(formats.document(found), encoding="utf-8")
        print(RESULTS / name / "results.md")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(README)
