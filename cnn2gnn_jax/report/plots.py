"""Figures of a sweep's records: 4 and 6 (accuracy against a value), 5 (against FLOPs), and training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from cnn2gnn_jax.report.statistics import summarize
from cnn2gnn_jax.report.tables import Observation, by_seed, is_protocol, row_title

_STYLES = {"one by one": "-", "batch by batch": "--"}
_COLORS = ("#0b57d0", "#b3261e", "#1a7f37", "#8430ce", "#b06000", "#00838f")


def _bare(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def curve(seen: Sequence[Observation], name: str) -> Figure:
    """Accuracy against a value: a panel for each data set, a colour for each pair, a line style for each mechanism."""
    seen = [one for one in seen if one.place["name"] == name]
    panels = list(dict.fromkeys(one.place["panel"] for one in seen))
    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        here = [one for one in seen if one.place["panel"] == panel]
        for line, color in zip(dict.fromkeys(one.place["line"] for one in here), _COLORS * 9, strict=False):
            for protocol, style in _STYLES.items():
                mine = [
                    one for one in here
                    if one.place["line"] == line and one.entry["graph"] == "learned" and is_protocol(one, protocol)
                ]  # fmt: skip
                xs = sorted({one.place["x"] for one in mine})
                found = [summarize(list(by_seed(o for o in mine if o.place["x"] == x).values())) for x in xs]
                means = [one.mean for one in found if one]
                errors = [one.deviation or 0 for one in found if one]
                label = f"{line}, {protocol}"
                axis.errorbar(xs, means, errors, fmt=f"o{style}", color=color, capsize=3, ms=4, lw=1.3, label=label)
        if len(xs) > 1 and xs[-1] / xs[0] >= 32:
            axis.set_xscale("log", base=2)
        axis.set_xticks(xs, [f"{x:g}" for x in xs])
        axis.set_xticks([], minor=True)
        axis.set(xlabel=name.partition(", ")[2] or name, ylabel="accuracy (%)", title=panel)
        _bare(axis)
        axis.legend(frameon=False, fontsize=8)
    return figure


def flops(seen: Sequence[Observation], name: str, column: str) -> Figure:
    """Figure 5: accuracy against the FLOPs to classify one image, for a pair's teacher and every row of its table."""
    seen = [one for one in seen if (one.place["name"], one.place["column"]) == (name, column)]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    spots: list[tuple[str, float, float, str]] = []
    teacher = seen[0].record["teacher"] or {}
    for one in seen:
        teacher = one.record["teacher"] or teacher
    if "inference_flops" in teacher:
        spots.append((f"teacher {teacher['network']}", teacher["inference_flops"], teacher["accuracy"], "#444444"))
    for row in dict.fromkeys(one.place["row"] for one in seen):
        mine = [one for one in seen if one.place["row"] == row]
        title = row_title(row)
        cost = mine[0].record["student"]["inference_flops"]
        if not isinstance(cost, dict):
            found = summarize(list(by_seed(mine).values()))
            assert found is not None
            spots.append((title, cost, found.mean, _COLORS[0]))
            continue
        for protocol, color in zip(_STYLES, _COLORS[1:3], strict=True):
            found = summarize(
                list(by_seed(o for o in mine if is_protocol(o, protocol) and o.entry["graph"] == "learned").values())
            )
            if found is not None:
                spots.append((f"{title}, {protocol}", cost[protocol.replace(" ", "_")], found.mean, color))
    for _, x, y, color in spots:
        axis.scatter(x, y, s=26, color=color, zorder=3)
    _label(axis, spots)
    axis.set_xscale("log")
    axis.set(xlabel="FLOPs to classify one image", ylabel="accuracy (%)", title=f"{name}, {column}")
    axis.margins(x=0.25, y=0.1)
    _bare(axis)
    return figure


def _label(axis: Any, spots: Sequence[tuple[str, float, float, str]]) -> None:
    """Names beside the spots, one under another where spots share their FLOPs."""
    low, high = min(y for _, _, y, _ in spots), max(y for _, _, y, _ in spots)
    least = max(high - low, 1e-9) / 24
    for x in dict.fromkeys(x for _, x, _, _ in spots):
        level = float("inf")
        for name, _, y, color in sorted((s for s in spots if s[1] == x), key=lambda s: -s[2]):
            level = min(level - least, y)
            axis.annotate(
                name,
                (x, y),
                (x * 1.12, level),
                fontsize=7,
                color=color,
                va="center",
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#999999", "relpos": (0, 0.5)}
                if level < y
                else None,
            )


def _stage(record: Mapping[str, Any]) -> str | None:
    """The stage in which the first student of a record was trained to its end, with its graph, if it has curves."""
    first = record["accuracies"][0]
    name = f"graph_{first['graph']}-seed{first['seed']}" if first["graph"] else f"cnn-seed{first['seed']}"
    mine = [stage for stage in record["curves"] if stage.split(" ")[0] == name]
    return mine[-1] if mine else None


def training(records: Sequence[dict[str, Any]], name: str, column: str) -> Figure:
    """Loss and training accuracy against the epoch, of the first seed of every row of a table."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    shown: set[str] = set()
    for record in records:
        for place in record["places"]:
            if (place["name"], place.get("column")) != (name, column) or place["row"] in shown:
                continue
            stage = _stage(record)
            if stage is None:
                continue
            shown.add(place["row"])
            epochs, losses, accuracies = zip(*record["curves"][stage], strict=True)
            heading = row_title(place["row"])
            style: dict[str, Any] = {"lw": 1.1, "color": f"C{len(shown) % 10}", "ls": "-" if len(shown) <= 10 else "--"}
            axes[0].plot(epochs, [loss / max(losses[0], 1e-9) for loss in losses], **style)
            axes[1].plot(epochs, accuracies, label=heading, **style)
    axes[0].set(xlabel="epoch", ylabel="loss over its first")
    axes[1].set(xlabel="epoch", ylabel="training accuracy (%)")
    for axis in axes:
        _bare(axis)
    axes[1].legend(frameon=False, fontsize=7, ncols=2)
    return figure
