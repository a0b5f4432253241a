"""Tables of a sweep's records: what stands in each cell, whatever it is written in."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cnn2gnn_jax.report import notes, paper, tuned
from cnn2gnn_jax.report.statistics import Correct, is_uniform, paired, summarize

PROTOCOLS = {
    "batch by batch": ("batch_by_batch", "shuffled"),
    "one by one": ("one_by_one", None),
    "class-sorted": ("batch_by_batch", "class_sorted"),
}
METHODS = {
    "teacher": "Teacher",
    "kd": "KD",
    "fitnets": "FitNets",
    "at": "AT",
    "sp": "SP",
    "vid": "VID",
    "rkd": "RKD",
    "pkt": "PKT",
    "ab": "AB",
    "ft": "FT",
    "crd": "CRD",
    "ccd": "CCD",
    "dkd": "DKD",
    "gnn": "GNN",
    "cnn2gnn": "CNN2GNN",
    "ce": "CNN student, labels alone",
    "kd_tau48": "CNN student, KD at τ = 48",
}
_GRAPHS = {"inner_product": "InGNN", "euclidean": "EucGNN", "learned": ""}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    text: mean and deviation, or a difference and its interval, as written.
    value: the mean, by which it is sorted.
    deviation: over the seeds, of a mean.
    interval, over: of a difference, and what it is over, as `statistics.Difference`.
    n: the seeds, None where they are not told.
    paper: the paper's figure.
    rank: 1 for the best of its column, 2 for the second, 0 otherwise.
    arrow: whether it is above (1) or below (-1) KD.
    """

    text: str
    value: float | None = None
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    over: str = ""
    n: int | None = None
    paper: float | None = None
    rank: int = 0
    arrow: int = 0

    @property
    def beside(self) -> str:
        """The paper's figure and the difference from it, or ''."""
        if self.paper is None or self.value is None:
            return ""
        return f"{self.paper:.2f}, {self.value - self.paper:+.2f}"


EMPTY = Cell("")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: `rows` are a heading and a cell for each column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    notes: Sequence[str] = ()


class Observation(NamedTuple):
    """An accuracy of one student, and where it stands."""

    place: Mapping[str, Any]
    record: Mapping[str, Any]
    entry: Mapping[str, Any]


def every(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """All tables of the records: methods, the ablation, the points of figures, settings, the audit."""
    found: list[Table] = []
    for kind, make in (("methods", methods), ("ablation", ablation), ("curve", points), ("settings", settings)):
        seen = observations(records, kind)
        for name in names(seen):
            made = make(seen, name)
            found += made if isinstance(made, list) else [made]
    return [*found, *filter(None, [audit(records)])]


def row_title(row: str) -> str:
    """The heading of a row: a method, perhaps with a comma and more."""
    method, _, rest = row.partition(", ")
    return METHODS.get(method, method) + (f", {rest}" if rest else "")


def observations(records: Iterable[Mapping[str, Any]], kind: str) -> list[Observation]:
    """Every accuracy of the records that stand in tables or figures of a kind."""
    return [
        Observation(place, record, entry)
        for record in records
        for place in record["places"]
        if place["kind"] == kind
        for entry in record["accuracies"]
    ]


def names(seen: Sequence[Observation]) -> list[str]:
    """The names of the tables or figures, in the records' order."""
    return list(dict.fromkeys(one.place["name"] for one in seen))


def by_seed(seen: Iterable[Observation]) -> dict[int, float]:
    return {one.entry["seed"]: one.entry["accuracy"] for one in seen}


def _correct(seen: Sequence[Observation]) -> Correct | None:
    """What the students of one row have right, None where a record keeps no predictions."""
    kept = {one.entry["seed"]: one.entry["correct"] for one in seen if "correct" in one.entry}
    return kept if len(kept) == len(by_seed(seen)) else None


def is_protocol(one: Observation, protocol: str, graph: Sequence[str] | None = None) -> bool:
    """Whether an accuracy is of a protocol and, if given, of one of some graph settings."""
    entry = one.entry
    return (entry["mechanism"], entry["batch_order"]) == PROTOCOLS[protocol] and (
        graph is None or entry["graph"] in graph
    )


def _is_graph(one: Observation) -> bool:
    return one.entry["graph"] is not None


def _is_on(one: Observation) -> bool:
    return one.entry["graph"] not in (None, "off", "off_at_test")


def accuracy(seen: Sequence[Observation], published: float | None = None) -> Cell:
    """Mean and deviation over the seeds."""
    found = summarize(list(by_seed(seen).values()))
    if found is None:
        return EMPTY
    return Cell(str(found), found.mean, deviation=found.deviation, n=found.n, paper=published)


def _rows(seen: Sequence[Observation]) -> list[tuple[str, str, Callable[[Observation], bool]]]:
    """The rows of a table of methods: heading, row of the paper's table or '', and which accuracies are in it."""

    def belongs(row: str, protocol: str | None, graph_on: bool) -> Callable[[Observation], bool]:
        def check(one: Observation) -> bool:
            if one.place["row"] != row or protocol is None:
                return one.place["row"] == row
            return is_protocol(one, protocol) and (_is_on(one) if graph_on else one.entry["graph"] == "off")

        return check

    found: list[tuple[str, str, Callable[[Observation], bool]]] = []
    present = list(dict.fromkeys(one.place["row"] for one in seen))
    for row in sorted(present, key=_order):
        heading = row_title(row)
        mine = [one for one in seen if one.place["row"] == row]
        if not any(map(_is_graph, mine)):
            found.append((heading, row, belongs(row, None, True)))
            continue
        found.append((f"{heading}, batch by batch", row, belongs(row, "batch by batch", True)))
        found.append((f"{heading}, one by one", "", belongs(row, "one by one", True)))
        if any(one.entry["graph"] == "off" for one in mine):
            found.append((f"{heading}, graph off", "", belongs(row, "one by one", False)))
    return found


def _order(row: str) -> tuple[int, str]:
    method = row.partition(", ")[0]
    return (list(METHODS).index(method) if method in METHODS else len(METHODS), row)


def _teacher(seen: Sequence[Observation]) -> dict[str, float]:
    """Test accuracy by teacher."""
    teachers = (one.record["teacher"] for one in seen)
    return {teacher["fingerprint"]: teacher["accuracy"] for teacher in teachers if teacher and "accuracy" in teacher}


def methods(seen: Sequence[Observation], name: str) -> list[Table]:
    """A table in the manner of Tables 1 and 2, and the paired differences to KD."""
    seen = [one for one in seen if one.place["name"] == name]
    columns = list(dict.fromkeys(one.place["column"] for one in seen))
    published, rows = paper.METHODS.get(name, {}), _rows(seen)
    grid: list[list[Cell]] = []
    for _, row, belongs in rows:
        mine = [[one for one in seen if one.place["column"] == column and belongs(one)] for column in columns]
        grid.append([accuracy(m, published.get((row, column))) for m, column in zip(mine, columns, strict=True)])
    to_kd = [
        [
            difference(
                [one for one in seen if one.place["column"] == column and belongs(one)],
                [one for one in seen if one.place["column"] == column and one.place["row"] == "kd"],
            )
            for column in columns
        ]
        for _, _, belongs in rows
    ]
    grid = [
        [
            dataclasses.replace(cell, rank=_rank(cell, [other[c] for other in grid]), arrow=_sign(to_kd[r][c]))
            for c, cell in enumerate(line)
        ]
        for r, line in enumerate(grid)
    ]
    teachers: list[Cell] = []
    for column in columns:
        found = summarize(list(_teacher([one for one in seen if one.place["column"] == column]).values()))
        value = published.get(("teacher", column))
        teachers.append(EMPTY if found is None else Cell(str(found), found.mean, found.deviation, paper=value))
    headings = [heading for heading, _, _ in rows]
    body, seeds = _counted(list(zip(headings, grid, strict=True)))
    remarks = [
        _caption(seen, seeds),
        "Bold is best and underlined second of a column's students; arrows are against KD of the same seeds. "
        + _PAPER * bool(published),
        *notes.uniform((heading, [one for one in seen if belongs(one)]) for heading, _, belongs in rows),
    ]
    tables = [Table(name, columns, [(METHODS["teacher"], teachers), *body], remarks)]
    if any(row == "kd" for _, row, _ in rows):
        lines = [(title, line) for title, (_, row, _), line in zip(headings, rows, to_kd, strict=True) if row != "kd"]
        body, seeds = _counted(lines)
        body, over = notes.intervals(body)
        note = f"Mean over {seeds} of the difference to KD of the same seed, in points."
        tables.append(Table(f"{name}: paired difference to KD", columns, body, [note, *over]))
    return tables


_PAPER = "In brackets the paper's figure (ten runs; its batch order is not told) and ours less it."


def _shown(value: float) -> float:
    """A mean as it is written: what differs in less is a tie."""
    return round(value, 2)


def _rank(cell: Cell, column: Sequence[Cell]) -> int:
    values = sorted({_shown(other.value) for other in column if other.value is not None}, reverse=True)
    return values.index(_shown(cell.value)) + 1 if cell.value is not None and _shown(cell.value) in values[:2] else 0


def _sign(cell: Cell) -> int:
    return 0 if cell.value is None else (_shown(cell.value) > 0) - (_shown(cell.value) < 0)


def difference(ours: Sequence[Observation], theirs: Sequence[Observation]) -> Cell:
    """Ours less theirs of the same seeds, with an interval; over images too where both keep predictions of the same."""
    images = {
        (one.record["dataset"].get("fingerprint"), one.record["dataset"]["evaluated"]) for one in [*ours, *theirs]
    }
    a, b = _correct(ours), _correct(theirs)
    found = paired(
        by_seed(ours), by_seed(theirs), (a, b) if a is not None and b is not None and len(images) == 1 else None
    )
    if found is None:
        return EMPTY
    return Cell(str(found), found.mean, interval=found.interval, over=found.over, n=found.n)


Rows = Sequence[tuple[str, Sequence[Cell]]]


def _counted(rows: Rows) -> tuple[list[tuple[str, list[Cell]]], str]:
    """The rows with the seeds of those cells that have fewer than others, and the seeds of the others in words."""
    most = max((cell.n or 0 for _, line in rows for cell in line), default=0)
    counted = [
        (
            heading,
            [
                dataclasses.replace(cell, text=f"{cell.text} (n = {cell.n})") if cell.n and cell.n < most else cell
                for cell in line
            ],
        )
        for heading, line in rows
    ]
    fewer = any(cell.n and cell.n < most for _, line in rows for cell in line)
    return counted, f"{most} seed{'s' * (most != 1)}" + ", unless n is given," * fewer


def _caption(seen: Sequence[Observation], seeds: str) -> str:
    """What was trained on, what was evaluated on, and how, of all records of a table."""
    datasets: dict[str, set[int]] = {}
    for dataset in (one.record["dataset"] for one in seen):
        images = f"{dataset['evaluated_images']} {dataset['evaluated']} images of {dataset['name']}"
        datasets.setdefault(f"{images} ({{}} training images, {dataset['classes']} classes)", set()).add(
            dataset["train_images"]
        )
    where = [text.format(_range(images)) for text, images in datasets.items()]
    recipes, epochs = (sorted({one.record["student"][key] for one in seen}) for key in ("recipe", "epoch"))
    teachers = len(_teacher(seen))
    return (
        f"Accuracy in percent on {'; '.join(where)}. Recipe {' and '.join(recipes)}, {' and '.join(epochs)} epoch; "
        f"mean and deviation over {seeds}" + f", {teachers} teacher{'s' * (teachers != 1)}" * bool(teachers) + "."
    )


def _range(values: Iterable[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


AUDIT = (
    "one by one",
    "batch by batch",
    "graph off",
    "the graph is worth, one by one",
    "the graph is worth, batch by batch",
    "class-sorted (audit)",
    "neighbours of the same class",
    "by chance",
    "weight on self",
    "distinct anchors a batch",
)


def _audited(mine: Sequence[Observation]) -> list[Cell]:
    """A graph student under every protocol."""
    on = {name: [one for one in mine if _is_on(one) and is_protocol(one, name)] for name in PROTOCOLS}
    off = [one for one in mine if is_protocol(one, "one by one", ["off"])]

    def diagnostic(name: str, protocol: str, scale: float, unit: str, digits: int, beside: str = "") -> Cell:
        values = [one.entry["diagnostics"].get(name) for one in on[protocol]]
        found = summarize([scale * value for value in values if value is not None])
        if found is None:
            return EMPTY
        return Cell(f"{found.mean:.{digits}f}{unit}{beside}", found.mean, found.deviation)

    in_training = diagnostic("self_weight_in_training", "one by one", 1, "", 2)
    uniform, students = sum(is_uniform(one.entry) for one in on["batch by batch"]), len(on["batch by batch"])
    share = "" if uniform == students else f" in {uniform} of {students}"

    return [
        accuracy(on["one by one"]),
        accuracy(on["batch by batch"]),
        accuracy(off),
        difference(on["one by one"], off),
        difference(on["batch by batch"], off),
        accuracy(on["class-sorted"]),
        diagnostic("label_agreement", "one by one", 100, "%", 1),
        diagnostic("label_agreement_chance", "one by one", 100, "%", 1),
        diagnostic("self_weight", "one by one", 1, "", 2, in_training.text and f" ({in_training.text} in training)"),
        diagnostic("distinct_anchors", "batch by batch", 1, "", 1, f", uniform{share}" if uniform else ""),
    ]


def settings(seen: Sequence[Observation], name: str) -> Table:
    """A row for each setting, under every protocol.

    The control, with the graph off, is of the same records or of one of its own at the same place.
    """
    seen = [one for one in seen if one.place["name"] == name]
    groups: dict[str, list[Observation]] = {}
    for one in seen:
        groups.setdefault(one.place["setting"], []).append(one)
    body, seeds = _counted([(setting, _audited(group)) for setting, group in groups.items()])
    body, over = notes.intervals(body)
    remarks = [_caption(seen, seeds), *over, *notes.uniform(list(groups.items()))]
    if not any("tuned" in one.record for one in seen):
        return Table(name, AUDIT, body, remarks)
    body = [(setting, [*cells, *_chosen(groups[setting])]) for setting, cells in body]
    return Table(name, (*AUDIT, *tuned.COLUMNS), body, [*remarks, tuned.note(one.record for one in seen)])


def _chosen(group: Sequence[Observation]) -> list[Cell]:
    """What the students with the graph and those without it have chosen on held-out images."""
    off = [one.record for one in group if one.entry["graph"] == "off"]
    on = [one.record for one in group if _is_on(one)]
    return [Cell(tuned.chosen(records)) for records in (on, off)]


def audit(records: Iterable[Mapping[str, Any]]) -> Table | None:
    """Every graph student of the records, whatever table it stands in; None if there is none."""
    groups: dict[str, list[Observation]] = {}
    for record in records:
        for entry in record["accuracies"]:
            if entry["graph"] is None:
                continue
            # A control of its own belongs to every student beside which it stands.
            for place in record["places"][: None if record["method"] == "cnn2gnn_off" else 1]:
                heading = ", ".join(_word(key, place[key]) for key in _IN_ORDER if key in place)
                groups.setdefault(heading, []).append(Observation(place, record, entry))
    if not groups:
        return None
    # Its rows are of several tables, so each heading tells its seeds.
    body = []
    for name, mine in groups.items():
        cells = _audited(mine)
        body.append((f"{name} (n = {max(cell.n or 0 for cell in cells)})", cells))
    body, over = notes.intervals(body)
    remarks = [notes.AUDIT + notes.classes_a_batch(groups.values()), *over, *notes.uniform(groups.items())]
    return Table("Audit of the graph students", AUDIT, body, remarks)


_IN_ORDER = ("name", "row", "setting", "panel", "column", "line", "x")


def _word(key: str, value: Any) -> str:
    if key == "row":
        return _GRAPHS.get(value) or row_title(value)
    return f"at {value}" if key == "x" else str(value)


def ablation(seen: Sequence[Observation], name: str) -> Table:
    """Table 3: the ablation's graphs and both mechanisms; accuracy and time."""
    seen = [one for one in seen if one.place["name"] == name]
    data = list(dict.fromkeys(one.place["column"] for one in seen))
    rows = {
        "InGNN": ("inner_product", "batch by batch"),
        "EucGNN": ("euclidean", "batch by batch"),
        "One by one": ("learned", "one by one"),
        "Batch by batch": ("learned", "batch by batch"),
    }
    body: list[tuple[str, list[Cell]]] = []
    for heading, (graph, protocol) in rows.items():
        line: list[Cell] = []
        for column in data:
            mine = [one for one in seen if one.place["column"] == column and is_protocol(one, protocol, [graph])]
            published = paper.ABLATION.get((heading, column))
            line.append(accuracy(mine, published[0] if published else None))
            training = summarize([_training_seconds(one) for one in mine])
            inference = summarize([one.entry["seconds"] for one in mine])
            line += [Cell(f"{found.mean:.2f}", found.mean) if found else EMPTY for found in (training, inference)]
        body.append((heading, line))
    counted, seeds = _counted(body)
    columns = [f"{column}: {what}" for column in data for what in ("accuracy", "training, s", "inference, s")]
    remarks = [
        _caption(seen, seeds),
        "Seconds without compilation, of training the student and of classifying all test images once. The paper gives "
        "one time, without saying of what: on CIFAR-100 4999 s one by one and 2797 s batch by batch, a ratio of 1.79.",
        *notes.uniform([("Batch by batch", [one for one in seen if one.entry["graph"] == "learned"])]),
    ]
    return Table(name, columns, counted, remarks)


def _training_seconds(one: Observation) -> float:
    stages = one.record["seconds"]
    mine = f"graph_{one.entry['graph']}-seed{one.entry['seed']}"
    return sum(value for stage, value in stages.items() if stage.split(" ")[0] == mine)


def points(seen: Sequence[Observation], name: str) -> Table:
    """The points of a figure: a row for each line and value, the protocols in columns."""
    seen = [one for one in seen if one.place["name"] == name]
    places = sorted({(o.place["panel"], o.place["line"], o.place["x"]) for o in seen})
    groups, body = [], []
    for panel, line, x in places:
        mine = [o for o in seen if (o.place["panel"], o.place["line"], o.place["x"]) == (panel, line, x) and _is_on(o)]
        groups.append((f"{panel}, {line}, {x}", mine))
        cells = [accuracy([one for one in mine if is_protocol(one, protocol)]) for protocol in PROTOCOLS]
        body.append((f"{panel}, {line}, {x}", cells))
    counted, seeds = _counted(body)
    columns = ["batch by batch", "one by one", "class-sorted (audit)"]
    return Table(name, columns, counted, [_caption(seen, seeds), *notes.uniform(groups)])
