"""Writes the tables and the figure of docs/verdict.md, and the tables of docs/reproduction.md, from the records.

python docs/make_full_size.py
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import generated
from generated import DOCS, RESULTS, recorded
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnn2gnn_jax import networks
from cnn2gnn_jax.distillers import METHODS
from cnn2gnn_jax.report import formats, paper
from cnn2gnn_jax.report.names import BATCH_BY_BATCH, CLASS_SORTED, ONE_BY_ONE, TRAINING_SET, is_plain, row_title
from cnn2gnn_jax.report.observations import Observation, accuracy, difference, grouped, observe, select
from cnn2gnn_jax.report.statistics import summarize
from cnn2gnn_jax.report.tables import all_tables

DATA = {"cifar100": "CIFAR-100", "mini_imagenet": "Mini-ImageNet"}
PUBLISHED = {"cifar100": "Table 1: CIFAR-100", "mini_imagenet": "Table 2: Mini-ImageNet"}
FEATURES = ("teacher", "pixels", "stem")
OFF = "no graph"
ARMS = {
    "batch by batch": (BATCH_BY_BATCH, "learned"),
    "one by one": (ONE_BY_ONE, "learned"),
    "*class-sorted*": (CLASS_SORTED, "learned"),
    OFF: (ONE_BY_ONE, "off"),
    "training set": (TRAINING_SET, "off"),
}
"""Columns: protocol and graph setting."""
TRAINED_WITHOUT_GRAPH = {
    "cnn2gnn_off, teacher": "distilled",
    "gnn, off, teacher": "labels alone",
    "cnn2gnn_off, teacher, wide": "distilled, 4,096 hidden units",
}
"""Titles of the students that are trained without a graph, by row of the sweep `full_training_set`."""
COLORS = {"cifar100": "#0b57d0", "mini_imagenet": "#b3261e"}

Row = Mapping[str, Any]


def study(name: str, data: str) -> tuple[Row, list[Row]]:
    """The line about the student, and the rows of a study; empty where it is not recorded."""
    path = RESULTS / f"study-{data}" / f"{name}.jsonl"
    if not path.exists():
        return {}, []
    first, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return first, rows


def mean(values: Iterable[float]) -> str:
    """The mean with the standard deviation."""
    return str(summarize(list(values)) or "")


def students(data: str) -> list[list[str]]:
    """The rows of the table of students with the training-set graph: graph students, then CNNs."""
    lines = []
    for sweep in ("training-set", "baselines"):
        observations = observe(recorded(f"sweep-full-{sweep}-{data}"), "methods")
        for row, group in grouped(observations, "row").items():
            alone = [observation for observation in group if is_plain(observation.entry)]
            with_graph = select(group, TRAINING_SET)
            if with_graph:
                record = group[0].record
                name = TRAINED_WITHOUT_GRAPH.get(row) or f"{record['student']['network']}, {row_title(row)}"
                texts = [accuracy(alone).text, accuracy(with_graph).text, difference(with_graph, alone).text]
                lines.append(
                    [DATA[data], name, f"{record['teacher']['accuracy']:.2f}" if record["teacher"] else "", *texts]
                )
    return lines


Students = Mapping[tuple[str, str], Sequence[Observation]]
"""Graph students by method and node features."""


def graph_students(data: str) -> Students:
    """The students of the sweep `full_students`; empty where it is not recorded."""
    groups = grouped(observe(recorded(f"sweep-full-students-{data}"), "methods"), "row")
    rows = {(m, f): m if f == "stem" else f"{m}, {f}" for f in FEATURES for m in ("gnn", "cnn2gnn")}
    return {key: groups[row] for key, row in rows.items() if row in groups}


def published(data: str, row: str) -> str:
    """The paper's figure for its first pair of networks, and the range of all pairs."""
    values = [paper.METHODS[PUBLISHED[data]][row, pair] for pair in networks.PAIRS]
    return f"{values[0]:.2f} ({min(values):.2f} to {max(values):.2f})"


def beside_the_paper(data: str) -> list[list[str]]:
    """The rows of the table of our figures beside the paper's."""
    students = graph_students(data)
    if not students:
        return []
    [first, *_] = students.values()
    teacher = [f"{first[0].record['teacher']['accuracy']:.2f}", *[""] * (len(ARMS) - 1)]
    lines = [[f"{DATA[data]}: teacher", "", published(data, "teacher"), *teacher]]
    for (method, features), group in students.items():
        texts = (accuracy(select(group, *arm)).text for arm in ARMS.values())
        lines.append([f"{DATA[data]}: {METHODS[method].title}", features, published(data, method), *texts])
    return lines


def changes(data: str) -> list[list[str]]:
    """The rows of the table of what distillation, the mechanism and the order of the test images change, in points."""
    students, lines = graph_students(data), []
    for features in FEATURES:
        if ("gnn", features) in students and ("cnn2gnn", features) in students:
            gnn, cnn2gnn = (
                {name: select(students[method, features], *arm) for name, arm in ARMS.items()}
                for method in ("gnn", "cnn2gnn")
            )
            shuffled, sorted_ = "batch by batch", "*class-sorted*"
            pairs = (
                (cnn2gnn[shuffled], gnn[shuffled]),
                (cnn2gnn[sorted_], gnn[sorted_]),
                (cnn2gnn[shuffled], cnn2gnn["one by one"]),
                (cnn2gnn[sorted_], cnn2gnn[shuffled]),
                (cnn2gnn["one by one"], cnn2gnn[OFF]),
                (cnn2gnn["training set"], cnn2gnn[OFF]),
            )
            lines.append([DATA[data], features, *(difference(*pair).text for pair in pairs)])
    return lines


CHANGES = (
    "CNN2GNN - GNN, batch by batch",
    "CNN2GNN - GNN, class-sorted",
    "batch by batch - one by one",
    "class-sorted - shuffled",
    "one by one - no graph",
    "training set - no graph",
)


def by_value(rows: Sequence[Row], kind: str, key: str) -> dict[Any, list[Row]]:
    """The rows of a kind by the value of a key."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if row["study"] == kind:
            groups.setdefault(row[key], []).append(row)
    return groups


def by_size(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The rows of the study of the bank by its number of images. The last bank is the whole one."""
    [chosen] = [row for row in rows if row["study"] == "chosen"]
    return by_value(rows, "images", "images") | {chosen["images"]: [chosen]}


def needs(data: str) -> list[str]:
    """What the bank of a student needs, as paragraphs and tables."""
    first, rows = study("bank", data)
    if not rows:
        return []
    without, sizes = first["accuracy_without_graph"], by_size(rows)
    sparsities = by_value(rows, "sparsity", "sparsity")
    spaces = [[row["space"], row["signal"], *_figures(row)] for row in rows if row["study"] == "space"]
    labels = [
        [str(count), *(f"{row['accuracy']:.2f}" for row in group)]
        for count, group in by_value(rows, "labels", "labels_per_class").items()
    ]
    return [
        f"### {DATA[data]}: what the graph needs",
        f"One student (`cnn2gnn_off` over the teacher's features), {without:.2f}% without a graph; its teacher has "
        f"{first['accuracy_of_teacher']:.2f}%.",
        *_table(
            ["training images", "accuracy"], [[f"{n:,}", mean(r["accuracy"] for r in g)] for n, g in sizes.items()]
        ),
        *_table(["s", "accuracy"], [[str(s), f"{group[0]['accuracy']:.2f}"] for s, group in sparsities.items()]),
        *_table(["distances", "signal", "held out", "test", "neighbors alone"], spaces, 2),
        *_table(["labels of a class", "others left out", "others with the teacher's probabilities"], labels),
    ]


def _figures(row: Row) -> list[str]:
    return [f"{row[name]:.2f}" for name in ("holdout_accuracy", "accuracy", "accuracy_of_neighbors")]


def _table(header: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    return ["\n".join(formats.markdown_lines(header, rows, left))] if rows else []


ARM_TITLES = {
    "retrieved": "nothing: the graph is added afterwards",
    "metric": "the distances",
    "joint": "the distances, together with the student",
    "neighbor features": "the student, on its neighbors' features too",
}
"""What the arms of the studies train of the graph."""


def trained(data: str) -> list[list[str]]:
    """The rows of the table of trained graphs."""
    rows = [
        {**row, "arm": ARM_TITLES[row["arm"]] if "arm" in row else "the teacher in place of the student"}
        for name in ("trained_graph", "neighbor_features")
        for row in study(name, data)[1]
        # The student `alone` of the second study is the student `retrieved` of the first.
        if row["study"] in ("teacher", "trained graph", "neighbor features") and row.get("arm") != "alone"
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["space"]), []).append(row)
    names = ("accuracy_without_graph", "accuracy_of_neighbors", "holdout_accuracy", "accuracy")
    return [
        [DATA[data], arm, space, *(mean(row[name] for row in group) for name in names)]
        for (arm, space), group in groups.items()
    ]


MARKERS = {
    "batch by batch": ("s", "#b3261e", "the paper's graph, batch by batch"),
    "one by one": ("D", "#e8710a", "the paper's graph, one by one"),
    OFF: ("o", "0.35", "no graph"),
    "training set": ("^", "#0b57d0", "the training-set graph"),
}


def figure() -> Figure:
    """Accuracies of students with each graph, and accuracies against the number of training images in the graph."""
    result = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = result.subplots(1, 2, width_ratios=(3, 2))
    _students_plot(left)
    for data, color in COLORS.items():
        first, rows = study("bank", data)
        if rows:
            sizes = by_size(rows)
            for key, style in (("accuracy", "o-"), ("accuracy_of_neighbors", "o:")):
                means = [summarize([row[key] for row in group]).mean for group in sizes.values()]
                label = "student and neighbors" if key == "accuracy" else "neighbors alone"
                right.plot(list(sizes), means, style, ms=3, color=color, label=f"{DATA[data]}: {label}")
            right.axhline(first["accuracy_without_graph"], color=color, lw=0.8, ls="--")
    right.set(xscale="log", xlabel="training images in the graph", ylabel="test accuracy in percent")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return result


def _students_plot(axes: Axes) -> None:
    rows = [(data, *key, group) for data in DATA for key, group in graph_students(data).items()][::-1]
    names = [
        f"{DATA[data]}: {METHODS[method].title}, {features}{' features' * (features == 'teacher')}"
        for data, method, features, _ in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    for name, (marker, color, label) in MARKERS.items():
        values = [accuracy(select(group, *ARMS[name])).value for *_, group in rows]
        axes.plot(values, range(len(rows)), marker, color=color, label=label, ms=6)
    for data in {row[0]: None for row in rows}:
        places = [place for place, row in enumerate(rows) if row[0] == data]
        teacher = rows[places[0]][-1][0].record["teacher"]["accuracy"]
        label = "the teacher" if data == rows[-1][0] else None
        axes.vlines(teacher, places[0] - 0.4, places[-1] + 0.4, colors="0.6", linestyles="--", label=label)
    axes.set_xlabel("test accuracy in percent")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3)


def verdict() -> str:
    """The tables of docs/verdict.md."""
    gains = [line for data in DATA for line in students(data)]
    arms = [line for data in DATA for line in trained(data)]
    parts = [
        "## The graph over the training set, on all training images",
        *_table(["data", "student", "teacher", "without a graph", "with the training-set graph", "gain"], gains, 2),
        *(part for data in DATA for part in needs(data)),
        "## Does it pay to train this graph?" if arms else "",
        *_table(
            [
                "data",
                "trained of the graph",
                "distances",
                "without the graph",
                "neighbors alone",
                "held out",
                "with the graph",
            ],
            arms,
            3,
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def reproduction() -> str:
    """The tables of docs/reproduction.md."""
    ours = [line for data in DATA for line in beside_the_paper(data)]
    parts = [*_table(["", "node features", "paper", *ARMS], ours, 2)]
    parts += _table(["data", "node features", *CHANGES], [line for data in DATA for line in changes(data)], 2)
    for data in DATA:
        tables = all_tables(recorded(f"sweep-full-figures-{data}"))
        # A sweep that was stopped may have a figure of one point.
        figures = [t for t in tables if t.kind == "ablation" or (t.kind == "curve" and len(t.rows) > 1)]
        parts += [formats.markdown(table, level=3) for table in figures]
    return "\n\n".join(parts)


SECTIONS = {"verdict": verdict, "reproduction": reproduction}


if __name__ == "__main__":
    figure().savefig(DOCS / "verdict.png", dpi=150)
    for name, section in SECTIONS.items():
        generated.write(name, section())
