"""Writes the README's figures, and the tables under results/, from the records there; `make docs` runs it.

python docs/make_results.py
"""

import dataclasses
import json
import pathlib

from cnn2gnn_jax.report import formats, records, tables, tuned
from cnn2gnn_jax.report.tables import Table

ROOT = pathlib.Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "results"
BEGIN, END = "<!-- made by docs/make_results.py -->", "<!-- end -->"
RUNS = {
    "digits": "digits (`make demo`)",
    "cifar100-smoke": "CIFAR-100, `:smoke`",
    "mini_imagenet-smoke": "Mini-ImageNet at 32x32, `:smoke`",
    "image_folder": "a folder of 1,000 pictures, 10 classes",
}
# The columns of a table of settings that the README shows.
SHOWN = (
    *("one by one", "batch by batch", "graph off"),
    *("the graph is worth, one by one", "the graph is worth, batch by batch", "class-sorted (audit)"),
    *tuned.COLUMNS,
)


def runs() -> str:
    """A row for each single run."""
    lines = [
        "| run | teacher | one by one | batch by batch, shuffled | *audit: class-sorted* | the same, graph off |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for folder, title in RUNS.items():
        found = json.loads((RESULTS / folder / "results.json").read_text())
        by = {(e["graph"], e["mechanism"], e["batch_order"]): e["accuracy"] for e in found["accuracies"]}
        protocols = [*tables.PROTOCOLS.values()]
        learned = {protocol: by["learned", *protocol] for protocol in protocols}
        cells = [f"{found['teacher']['network']} {found['teacher']['accuracy']:.2f}"]
        cells += [f"{learned[protocols[k]]:.2f}" for k in (1, 0, 2)] + [f"{by['off', 'one_by_one', None]:.2f}"]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sweeps() -> dict[str, list[Table]]:
    """The tables of every recorded sweep, by folder."""
    return {
        path.parent.name: tables.every(records.read(path.parent)) for path in sorted(RESULTS.glob("*/results.jsonl"))
    }


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
            text = formats.markdown(table, level=3) + f"\nAll of it: [results/{folder}](results/{folder}/results.md)."
            if settings:  # long tables, which open at a click
                heading, _, rest = text.partition("\n\n")
                text = f"{heading}\n\n<details><summary>{len(rows)} settings</summary>\n\n{rest}\n\n</details>"
            parts.append(text)
    return "\n\n".join(parts)


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
