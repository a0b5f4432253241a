"""Tables as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Iterable

from cnn2gnn_jax.report.tables import EMPTY, Cell, Table

ARROWS = {1: "↑", -1: "↓", 0: ""}
_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "±": r"$\pm$",
    "τ": r"$\tau$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def markdown(table: Table, level: int = 2) -> str:
    """The table under a heading, its notes below it."""
    lines = [f"{'#' * level} {table.title}", "", _line(["", *table.columns]), "|---|" + "---:|" * len(table.columns)]
    lines += [_line([_escaped(heading), *map(_in_markdown, cells)]) for heading, cells in table.rows]
    for note in table.notes:
        lines += ["", _escaped(note)]
    return "\n".join([*lines, ""])


def document(tables: Iterable[Table]) -> str:
    """A Markdown document of tables."""
    return "\n".join(["# Results", "", *map(markdown, tables)])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("_", r"\_")


def _in_markdown(cell: Cell) -> str:
    text = {1: f"**{cell.text}**", 2: f"<u>{cell.text}</u>"}.get(cell.rank, cell.text)
    return " ".join(filter(None, (text, ARROWS[cell.arrow], f"({cell.beside})" if cell.beside else "")))


def latex(table: Table) -> str:
    r"""A `table` environment; needs \usepackage{booktabs}."""
    head = " & ".join(_in_latex(text) for text in ["", *table.columns])
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_in_latex(table.title)}. {_in_latex(' '.join(table.notes))}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
    ]
    for heading, cells in table.rows:
        lines.append(" & ".join([_in_latex(heading), *map(_cell_in_latex, cells)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _cell_in_latex(cell: Cell) -> str:
    text = _in_latex(cell.text)
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank, text)
    beside = rf"{{\scriptsize ({_in_latex(cell.beside)})}}" if cell.beside else ""
    return " ".join(filter(None, (text, _in_latex(ARROWS[cell.arrow]), beside)))


def comma_separated(table: Table) -> str:
    """CSV: of each cell its text and the numbers, as far as the table has them."""
    every = [_numbers(cell) for _, cells in table.rows for cell in cells]
    kept = [name for name in _numbers(EMPTY) if any(numbers[name] for numbers in every)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for column in table.columns for name in (column, *(f"{column}: {kind}" for kind in kept))]
    writer.writerow(["", *names])
    for heading, cells in table.rows:
        values = [(cell.text, *(_numbers(cell)[name] for name in kept)) for cell in cells]
        writer.writerow([heading, *(text for texts in values for text in texts)])
    return out.getvalue()


def _numbers(cell: Cell) -> dict[str, str]:
    """The numbers of a cell by name, '' for none."""
    low, high = cell.interval or (None, None)
    less = None if cell.paper is None or cell.value is None else cell.value - cell.paper
    exact = {"mean": cell.value, "deviation": cell.deviation, "low": low, "high": high, "paper": cell.paper}
    numbers = {
        name: "" if value is None else f"{value:.4f}" for name, value in (exact | {"less the paper's": less}).items()
    }
    return numbers | {
        "over": cell.over,
        "n": str(cell.n or ""),
        "rank": str(cell.rank or ""),
        "against KD": str(cell.arrow or ""),
    }
