"""All tables of a sweep. The tables of the ablation and of the points of figures are also defined here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cnn2gnn_jax.report import methods, names, notes, paper, settings
from cnn2gnn_jax.report.cells import Cell, Table
from cnn2gnn_jax.report.observations import Observation, accuracy, grouped, mean, observe, protocols, select


def all_tables(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """All tables: methods and their differences, the ablation, the points of figures, the settings, and the audit."""

    def tables_of_kind(kind: str, function: Callable[[Sequence[Observation]], Any]) -> list[Any]:
        return [function(observations) for observations in grouped(observe(records, kind), "name").values()]

    tables = [table for pair in tables_of_kind("methods", methods.tables) for table in pair]
    tables += (
        tables_of_kind("ablation", ablation)
        + tables_of_kind("curve", points)
        + tables_of_kind("settings", settings.table)
    )
    audit = settings.audit(records)
    return tables if audit is None else [*tables, audit]


def ablation(observations: Sequence[Observation]) -> Table:
    """Table 3, accuracy and time: the ablation's graphs batch by batch, and the learned graph under each protocol."""
    learned = select(observations, graph="learned")
    groups = {
        title: select(observations, names.BATCH_BY_BATCH, graph) for graph, title in names.PAPERS_GRAPHS.items()
    } | {
        protocol.name.capitalize(): select(learned, protocol)
        for protocol in protocols(learned)
        if not protocol.is_audit
    }
    rows: dict[str, dict[str, Cell]] = {heading: {} for heading in groups}
    for column in grouped(observations, "column"):
        for heading, group in groups.items():
            own, (published, _) = select(group, column=column), paper.ABLATION.get((heading, column), (None, None))
            rows[heading] |= {
                f"{column}: accuracy": accuracy(own, published),
                f"{column}: training, s": mean(map(_training_seconds, own), "{:.2f}"),
                f"{column}: inference, s": mean((observation.entry["seconds"] for observation in own), "{:.2f}"),
            }
    remark = (
        "The times are the seconds to train the student and the seconds to classify all test images once, without "
        "compilation. The paper gives a single time and does not say which of the two it is: on CIFAR-100, 4999 s one "
        "by one and 2797 s batch by batch, a ratio of 1.79."
    )
    return notes.captioned(observations, rows, [remark, *notes.uniform([("Batch by batch", learned)])])


def _training_seconds(observation: Observation) -> float:
    stages, student = observation.record["seconds"], names.student(observation.entry)
    return sum(seconds for stage, seconds in stages.items() if stage.split(" ")[0] == student)


def points(observations: Sequence[Observation]) -> Table:
    """The points of a figure, with a row for each line and value, and a column for each protocol."""
    columns = names.published_first(protocols(observations))
    places = sorted({tuple(observation.place[key] for key in ("panel", "line", "x")) for observation in observations})
    groups = {
        f"{panel}, {line}, {x}": select(observations, None, names.ON, panel=panel, line=line, x=x)
        for panel, line, x in places
    }
    rows = {
        heading: {protocol.column: accuracy(select(group, protocol)) for protocol in columns}
        for heading, group in groups.items()
    }
    return notes.captioned(observations, rows, notes.uniform(groups.items()))
