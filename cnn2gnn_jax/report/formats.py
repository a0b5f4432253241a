"""Tables for a terminal, and as Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
from collections.abc import Iterable, Sequence

from cnn2gnn_jax.report.cells import EMPTY, Cell, Table

_ARROWS = {1: "↑", -1: "↓", 0: ""}
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


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal, the first column to the left."""
    rows = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def markdown_lines(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """A table of Markdown texts, the first `left` columns to the left."""
    rule = "|" + "---|" * left + "---:|" * (len(header) - left)
    return [_line(header), rule, *map(_line, rows)]


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def markdown(table: Table, level: int = 2) -> str:
    """The table under a heading, its notes below it."""
    rows = [[escaped(heading), *map(_markdown_cell, cells.values())] for heading, cells in table.rows.items()]
    lines = [f"{'#' * level} {table.title}", "", *markdown_lines(["", *table.columns], rows)]
    for note in table.notes:
        lines += ["", escaped(note)]
    return "\n".join([*lines, ""])


def document(tables: Iterable[Table]) -> str:
    """A Markdown document of tables."""
    return "\n".join(["# Results", "", *map(markdown, tables)])


def escaped(text: str) -> str:
    """A text as Markdown."""
    return text.replace("|", r"\|").replace("_", r"\_")


def _markdown_cell(cell: Cell) -> str:
    text = {1: f"**{cell.text}**", 2: f"<u>{cell.text}</u>"}.get(cell.rank, cell.text)
    return " ".join(filter(None, (text, _ARROWS[cell.arrow], f"({cell.beside})" if cell.beside else "")))


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
    for heading, cells in table.rows.items():
        lines.append(" & ".join([_in_latex(heading), *map(_latex_cell, cells.values())]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _latex_cell(cell: Cell) -> str:
    text = _in_latex(cell.text)
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank, text)
    beside = rf"{{\scriptsize ({_in_latex(cell.beside)})}}" if cell.beside else ""
    return " ".join(filter(None, (text, _in_latex(_ARROWS[cell.arrow]), beside)))


def comma_separated(table: Table) -> str:
    """CSV: of each cell its text and the numbers, as far as the table has them."""
    every = [_numbers(cell) for cells in table.rows.values() for cell in cells.values()]
    kept = [name for name in _numbers(EMPTY) if any(numbers[name] for numbers in every)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for column in table.columns for name in (column, *(f"{column}: {kind}" for kind in kept))]
    writer.writerow(["", *names])
    for heading, cells in table.rows.items():
        values = [(cell.text, *(_numbers(cell)[name] for name in kept)) for cell in cells.values()]
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


def html_table(table: Table) -> str:
    """A table whose columns are headed by buttons, its notes below it."""
    head = "".join(f'<th scope="col"><button>{html.escape(name)}</button></th>' for name in ["", *table.columns])
    rows = "".join(
        f'<tr><th scope="row">{html.escape(heading)}</th>{"".join(map(_html_cell, cells.values()))}</tr>'
        for heading, cells in table.rows.items()
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}'


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    text = {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(cell.rank, text)
    if cell.arrow:
        text += f' <span class="{"up" if cell.arrow > 0 else "down"}">{_ARROWS[cell.arrow]}</span>'
    if cell.beside:
        text += f"<small>{html.escape(cell.beside)}</small>"
    return f'<td data-value="{"" if cell.value is None else cell.value}">{text}</td>'
