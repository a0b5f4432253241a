"""Formats of tables: terminal, Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
import itertools
import textwrap
from collections.abc import Iterable, Sequence

from cnn2gnn_jax.report.cells import EMPTY, Cell, Table

_ARROWS = {1: "↑", -1: "↓", 0: ""}
_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "τ": r"$\tau$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
TERMINAL_WIDTH = 99
# With these widths, a table with the accuracies under every protocol fits the terminal.
_MIN_HEADING_WIDTH, _COLUMN_WIDTH = 34, 15


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a table for a terminal. The first column is aligned left, and long texts are wrapped."""
    rows = [header, *rows]
    columns = [
        [_wrapped(text, _COLUMN_WIDTH) for text in column] for column in zip(*(row[1:] for row in rows), strict=True)
    ]
    widths = [max(len(line) for lines in column for line in lines) for column in columns]
    heading_width = max(_MIN_HEADING_WIDTH, TERMINAL_WIDTH - sum(widths) - 2 * len(widths))
    headings = [_wrapped(row[0], heading_width, indent="  ") for row in rows]
    first_width = max(len(line) for lines in headings for line in lines)
    blocks = [
        [
            "  ".join([heading.ljust(first_width), *map(str.rjust, texts, widths)])
            for heading, *texts in itertools.zip_longest(*cells, fillvalue="")
        ]
        for cells in zip(headings, *columns, strict=True)
    ]
    blocks.insert(1, ["-" * len(blocks[0][0])])
    return "\n".join(line.rstrip() for lines in blocks for line in lines)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent) or [""]


def markdown_lines(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Formats a Markdown table; the first `left` columns are aligned left."""
    rule = "|" + "---|" * left + "---:|" * (len(header) - left)
    return [_line(header), rule, *map(_line, rows)]


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def markdown(table: Table, level: int = 2) -> str:
    """Formats a table as Markdown, with its title as a heading and its notes below."""
    rows = [[escaped(heading), *map(_markdown_cell, cells.values())] for heading, cells in table.rows.items()]
    lines = [f"{'#' * level} {table.title}", "", *markdown_lines(["", *table.columns], rows)]
    for note in table.notes:
        lines += ["", escaped(note)]
    return "\n".join([*lines, ""])


def document(tables: Iterable[Table]) -> str:
    """Joins tables into a Markdown document."""
    return "\n".join(["# Results", "", *map(markdown, tables)])


def escaped(text: str) -> str:
    """Escapes a text for Markdown."""
    return text.replace("|", r"\|").replace("_", r"\_")


def _markdown_cell(cell: Cell) -> str:
    text = {1: f"**{cell.text}**", 2: f"<u>{cell.text}</u>"}.get(cell.rank, cell.text)
    return " ".join(filter(None, (text, _ARROWS[cell.arrow], f"({cell.comparison})" if cell.comparison else "")))


def latex(table: Table) -> str:
    r"""Formats a table as a LaTeX `table` environment, which needs \usepackage{booktabs}."""
    head = " & ".join(_escaped_for_latex(text) for text in ["", *table.columns])
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped_for_latex(table.title)}. {_escaped_for_latex(' '.join(table.notes))}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
    ]
    for heading, cells in table.rows.items():
        lines.append(" & ".join([_escaped_for_latex(heading), *map(_latex_cell, cells.values())]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _escaped_for_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_cell(cell: Cell) -> str:
    text = _escaped_for_latex(cell.text)
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank, text)
    comparison = rf"{{\scriptsize ({_escaped_for_latex(cell.comparison)})}}" if cell.comparison else ""
    return " ".join(filter(None, (text, _escaped_for_latex(_ARROWS[cell.arrow]), comparison)))


def comma_separated(table: Table) -> str:
    """Formats a table as CSV: for each column its text, and each kind of number that any cell has."""
    all_numbers = [_numbers(cell) for cells in table.rows.values() for cell in cells.values()]
    kinds = [kind for kind in _numbers(EMPTY) if any(numbers[kind] for numbers in all_numbers)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for column in table.columns for name in (column, *(f"{column}: {kind}" for kind in kinds))]
    writer.writerow(["", *names])
    for heading, cells in table.rows.items():
        values = [(cell.text, *(_numbers(cell)[kind] for kind in kinds)) for cell in cells.values()]
        writer.writerow([heading, *(text for texts in values for text in texts)])
    return out.getvalue()


def _numbers(cell: Cell) -> dict[str, str]:
    """The numbers of a cell by their kind, '' where it has none."""
    low, high = cell.interval or (None, None)
    difference = None if cell.paper is None or cell.value is None else cell.value - cell.paper
    exact = {"mean": cell.value, "deviation": cell.deviation, "low": low, "high": high, "paper": cell.paper}
    numbers = {
        kind: "" if value is None else f"{value:.4f}"
        for kind, value in (exact | {"minus the paper's": difference}).items()
    }
    return numbers | {
        "over": cell.over,
        "n": str(cell.n or ""),
        "rank": str(cell.rank or ""),
        "against KD": str(cell.arrow or ""),
    }


def html_table(table: Table) -> str:
    """Formats a table as HTML: a click on a column heading sorts the rows. The notes are below the table."""
    head = "".join(f'<th scope="col"><button>{html.escape(name)}</button></th>' for name in ["", *table.columns])
    rows = "".join(
        f'<tr><th scope="row">{html.escape(heading)}</th>{"".join(map(_html_cell, cells.values()))}</tr>'
        for heading, cells in table.rows.items()
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}'


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    text = {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(cell.rank, text)
    if cell.arrow:
        text += f' <span class="{"up" if cell.arrow > 0 else "down"}">{_ARROWS[cell.arrow]}</span>'
    if cell.comparison:
        text += f"<small>{html.escape(cell.comparison)}</small>"
    return f'<td data-value="{"" if cell.value is None else cell.value}">{text}</td>'
