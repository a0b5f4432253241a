"""Training curves, and the paper's Figures 4 and 6 (accuracy against a value) and 5 (accuracy against FLOPs)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from cnn2gnn_jax.report import names
from cnn2gnn_jax.report.observations import Observation, accuracy, grouped, protocols, select

_COLORS = ("#0b57d0", "#b3261e", "#1a7f37", "#8430ce", "#b06000", "#00838f")
_STYLES = ("-", "--", ":", "-.")
_NAME_WIDTH = 0.33  # the width of a name in Figure 5, as a fraction of the range of log FLOPs

Curve = Sequence[tuple[float, float, float]]
"""Points (epoch, loss, accuracy in percent); NaN where a value is not recorded."""


def _style_axis(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def training(curves: Mapping[str, Curve], final: Mapping[str, float], split: str, loss: str = "loss") -> Figure:
    """Plots loss and accuracy on the training batches against the epoch.

    Metrics are recorded on training batches alone, so the evaluated accuracy has no curve: a dot shows it at the end.

    Args:
      curves: a line for each name.
      final: accuracy in percent on the evaluated images after training, by the names of `curves`.
      split: the evaluated split, `test` or `holdout`.
      loss: the label of the axis of the loss.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for number, (name, curve) in enumerate(curves.items(), 1):
        epochs, losses, accuracies = zip(*curve, strict=True)
        style: dict[str, Any] = {"lw": 1.1, "color": f"C{number % 10}", "ls": "-" if number <= 10 else "--"}
        axes[0].plot(epochs, losses, **style)
        axes[1].plot(epochs, accuracies, label=name, **style)
        if name in final:
            axes[1].plot(epochs[-1], final[name], "o", ms=5, color=style["color"], clip_on=False)
    for axis, label in zip(axes, (f"training {loss}", "accuracy (%)"), strict=True):
        axis.set(xlabel="epoch", ylabel=label)
        _style_axis(axis)
    title = f"lines: training batches; dots: {split} images after training" if final else "training batches"
    axes[1].set_title(title, fontsize=9)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def training_of_run(records: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Figure:
    """Plots the training curves of a run, a line for each stage of each student.

    Args:
      records: the lines of its `metrics.jsonl`.
      results: the contents of its `results.json`.
    """
    curves: dict[str, list[tuple[float, float, float]]] = {}
    last_stages: dict[str, str] = {}
    for record in records:
        title = names.stage_title(record["stage"], results["method"])
        point = (record["epoch"], record.get("loss", float("nan")), record.get("accuracy", float("nan")))
        curves.setdefault(title, []).append(point)
        last_stages[record["stage"].split(" ")[0]] = title
    accuracies = _final_accuracies(results["accuracies"])
    final = {title: accuracies[student] for student, title in last_stages.items() if student in accuracies}
    return training(curves, final, results["dataset"]["evaluated"])


def training_of_rows(records: Sequence[Mapping[str, Any]], name: str, column: str) -> Figure:
    """Plots the training curves of the first seed of every row in a column of a sweep's table."""
    curves: dict[str, Curve] = {}
    final: dict[str, float] = {}
    split = ""
    for record in records:
        for place in record["places"]:
            if (place["name"], place.get("column")) != (name, column) or names.row_title(place["row"]) in curves:
                continue
            curve = _first_curve(record)
            if curve:
                initial, title = max(curve[0][1], 1e-9), names.row_title(place["row"])
                curves[title] = [(epoch, loss / initial, accuracy) for epoch, loss, accuracy in curve]
                final[title] = _final_accuracies(record["accuracies"])[names.student(record["accuracies"][0])]
                split = record["dataset"]["evaluated"]
    return training(curves, final, split, "loss, relative to its first value")


def _final_accuracies(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The accuracy of each student after training, by its name; one by one for graph students."""
    return {
        names.student(entry): entry["accuracy"]
        for entry in entries
        if entry["mechanism"] in (None, "one_by_one") and entry["graph"] != "off_at_test"
    }


def _first_curve(record: Mapping[str, Any]) -> Curve:
    """The curve of the last training stage of a record's first student; empty where none is recorded."""
    student = names.student(record["accuracies"][0])
    own = [curve for stage, curve in record["curves"].items() if stage.split(" ")[0] == student]
    return own[-1] if own else ()


def values(observations: Sequence[Observation]) -> Figure:
    """Plots accuracy against a value: a panel for each data set, a color for each pair, a style for each protocol.

    Error bars are standard deviations over seeds.
    """
    name, panels = observations[0].place["name"], grouped(observations, "panel")
    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    for axis, (panel, group) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        learned = select(group, graph="learned")
        plotted = [protocol for protocol in protocols(learned) if not protocol.is_audit]
        for (line, own), color in zip(grouped(learned, "line").items(), _COLORS * 9, strict=False):
            for protocol, style in zip(plotted, _STYLES, strict=False):
                by_x = sorted(grouped(select(own, protocol), "x").items())
                points = [(x, cell.value, cell.deviation or 0) for x, cell in ((x, accuracy(at_x)) for x, at_x in by_x)]
                style_options = {"fmt": f"o{style}", "color": color, "capsize": 3, "ms": 4, "lw": 1.3}
                axis.errorbar(*zip(*points, strict=True), label=f"{line}, {protocol.name}", **style_options)
        xs = sorted(grouped(learned, "x"))
        if len(xs) > 1 and xs[-1] / xs[0] >= 32:
            axis.set_xscale("log", base=2)
        axis.set_xticks(xs, [f"{x:g}" for x in xs])
        axis.set_xticks([], minor=True)
        axis.set(xlabel=name.partition(", ")[2] or name, ylabel="accuracy (%)", title=panel)
        _style_axis(axis)
        axis.legend(frameon=False, fontsize=8)
    return figure


_Point = tuple[str, float, float, str]
"""Name, FLOPs, accuracy in percent, and color."""


def flops(observations: Sequence[Observation]) -> Figure:
    """Plots Figure 5: accuracy against the FLOPs to classify one image, for a teacher and its students."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    points = _points(observations)
    for _, count, value, color in points:
        axis.scatter(count, value, s=26, color=color, zorder=3)
    _label(axis, points)
    axis.set_xscale("log")
    place = observations[0].place
    title = f"{place['name']}, {place['column']}"
    axis.set(xlabel="FLOPs to classify one image", ylabel="accuracy (%)", title=title)
    axis.margins(x=0.25, y=0.1)
    _style_axis(axis)
    return figure


def _points(observations: Sequence[Observation]) -> list[_Point]:
    points: list[_Point] = []
    teachers = [item.record["teacher"] for item in observations if item.record["teacher"]]
    if teachers and "inference_flops" in teachers[-1]:
        teacher = teachers[-1]
        points.append((f"teacher {teacher['network']}", teacher["inference_flops"], teacher["accuracy"], "#444444"))
    for row, own in grouped(observations, "row").items():
        title, cost = names.row_title(row), own[0].record["student"]["inference_flops"]
        groups = {title: (own, cost, _COLORS[0])}
        if isinstance(cost, dict):
            learned = select(own, graph="learned")
            groups = {
                f"{title}, {protocol.name}": (select(learned, protocol), cost[protocol.mechanism], color)
                for protocol, color in zip(protocols(learned), _COLORS[1:], strict=False)
                if not protocol.is_audit and protocol.mechanism in cost
            }
        for name, (group, count, color) in groups.items():
            value = accuracy(group).value
            assert value is not None
            points.append((name, count, value, color))
    return points


def _label(axis: Any, points: Sequence[_Point]) -> None:
    """Writes names beside the points; a name that would cover another one is moved down and linked by a line."""
    accuracies = [value for _, _, value, _ in points]
    line_height = max(max(accuracies) - min(accuracies), 1e-9) / 24
    line = {"arrowstyle": "-", "lw": 0.4, "color": "#999999", "relpos": (0, 0.5)}
    counts = [count for _, count, _, _ in points]
    name_width = _NAME_WIDTH * math.log(max(counts) / min(counts))
    placed: list[tuple[float, float]] = []
    for name, x, y, color in sorted(points, key=lambda point: -point[2]):
        level = y
        while covered := [
            other
            for other_x, other in placed
            if abs(math.log(other_x / x)) <= name_width and abs(other - level) < 0.999 * line_height
        ]:
            level = min(covered) - line_height
        placed.append((x, level))
        arrow = line if level < y else None
        axis.annotate(name, (x, y), (x * 1.12, level), fontsize=7, color=color, va="center", arrowprops=arrow)
