"""Line and scatter plots: training curves, and Figures 4 and 6 (accuracy against a value) and 5 (against FLOPs)."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from cnn2gnn_jax.report import names
from cnn2gnn_jax.report.observations import Observation, accuracy, grouped, protocols, select

_COLORS = ("#0b57d0", "#b3261e", "#1a7f37", "#8430ce", "#b06000", "#00838f")
_STYLES = ("-", "--", ":", "-.")

Curve = Sequence[tuple[float, float, float]]
"""Epoch, loss and accuracy in percent of some steps; NaN where there is none."""


def _bare(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def training(curves: Mapping[str, Curve], loss: str = "loss") -> Figure:
    """Loss and accuracy on the training batches against the epoch, a line for each name."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for number, (name, curve) in enumerate(curves.items(), 1):
        epochs, losses, accuracies = zip(*curve, strict=True)
        style: dict[str, Any] = {"lw": 1.1, "color": f"C{number % 10}", "ls": "-" if number <= 10 else "--"}
        axes[0].plot(epochs, losses, **style)
        axes[1].plot(epochs, accuracies, label=name, **style)
    for axis, label in zip(axes, (loss, "training accuracy (%)"), strict=True):
        axis.set(xlabel="epoch", ylabel=label)
        _bare(axis)
    axes[1].legend(frameon=False, fontsize=7, ncols=2)
    return figure


def training_of_run(records: Sequence[Mapping[str, Any]]) -> Figure:
    """The training curves of a run's metrics, a line for each stage."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for record in records:
        point = (record["epoch"], record.get("loss", float("nan")), record.get("accuracy", float("nan")))
        curves.setdefault(record["stage"], []).append(point)
    return training(curves)


def training_of_rows(records: Sequence[Mapping[str, Any]], name: str, column: str) -> Figure:
    """The training curves of the first seed of every row of a sweep's table."""
    curves: dict[str, Curve] = {}
    for record in records:
        for place in record["places"]:
            if (place["name"], place.get("column")) != (name, column) or names.row_title(place["row"]) in curves:
                continue
            curve = _first_curve(record)
            if curve:
                first = max(curve[0][1], 1e-9)
                curves[names.row_title(place["row"])] = [(epoch, loss / first, right) for epoch, loss, right in curve]
    return training(curves, "loss over its first")


def _first_curve(record: Mapping[str, Any]) -> Curve:
    """The last stage of a record's first student; empty where no curve of it is kept."""
    student = names.student(record["accuracies"][0])
    own = [curve for stage, curve in record["curves"].items() if stage.split(" ")[0] == student]
    return own[-1] if own else ()


def values(observations: Sequence[Observation]) -> Figure:
    """Accuracy against a value: a panel for each data set, a colour for each pair, a line style for each mechanism."""
    name, panels = observations[0].place["name"], grouped(observations, "panel")
    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    for axis, (panel, group) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        learned = select(group, graph="learned")
        shown = [protocol for protocol in protocols(learned) if not protocol.is_audit]
        for (line, own), color in zip(grouped(learned, "line").items(), _COLORS * 9, strict=False):
            for protocol, style in zip(shown, _STYLES, strict=False):
                by_x = sorted(grouped(select(own, protocol), "x").items())
                points = [(x, cell.value, cell.deviation or 0) for x, cell in ((x, accuracy(at_x)) for x, at_x in by_x)]
                look = {"fmt": f"o{style}", "color": color, "capsize": 3, "ms": 4, "lw": 1.3}
                axis.errorbar(*zip(*points, strict=True), label=f"{line}, {protocol.name}", **look)
        xs = sorted(grouped(learned, "x"))
        if len(xs) > 1 and xs[-1] / xs[0] >= 32:
            axis.set_xscale("log", base=2)
        axis.set_xticks(xs, [f"{x:g}" for x in xs])
        axis.set_xticks([], minor=True)
        axis.set(xlabel=name.partition(", ")[2] or name, ylabel="accuracy (%)", title=panel)
        _bare(axis)
        axis.legend(frameon=False, fontsize=8)
    return figure


_Spot = tuple[str, float, float, str]
"""Name, FLOPs, accuracy and colour."""


def flops(observations: Sequence[Observation]) -> Figure:
    """Figure 5: accuracy against the FLOPs to classify one image, for a pair's teacher and every row of its table."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    spots = _spots(observations)
    for _, count, value, color in spots:
        axis.scatter(count, value, s=26, color=color, zorder=3)
    _label(axis, spots)
    axis.set_xscale("log")
    place = observations[0].place
    title = f"{place['name']}, {place['column']}"
    axis.set(xlabel="FLOPs to classify one image", ylabel="accuracy (%)", title=title)
    axis.margins(x=0.25, y=0.1)
    _bare(axis)
    return figure


def _spots(observations: Sequence[Observation]) -> list[_Spot]:
    spots: list[_Spot] = []
    teachers = [item.record["teacher"] for item in observations if item.record["teacher"]]
    if teachers and "inference_flops" in teachers[-1]:
        teacher = teachers[-1]
        spots.append((f"teacher {teacher['network']}", teacher["inference_flops"], teacher["accuracy"], "#444444"))
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
            spots.append((name, count, value, color))
    return spots


def _label(axis: Any, spots: Sequence[_Spot]) -> None:
    """Names beside the spots, one under another where spots share their FLOPs."""
    accuracies = [value for _, _, value, _ in spots]
    least = max(max(accuracies) - min(accuracies), 1e-9) / 24
    line = {"arrowstyle": "-", "lw": 0.4, "color": "#999999", "relpos": (0, 0.5)}
    levels: dict[float, float] = {count: float("inf") for _, count, _, _ in spots}
    for name, x, y, color in sorted(spots, key=lambda spot: (list(levels).index(spot[1]), -spot[2])):
        level = levels[x] = min(levels[x] - least, y)
        arrow = line if level < y else None
        axis.annotate(name, (x, y), (x * 1.12, level), fontsize=7, color=color, va="center", arrowprops=arrow)
