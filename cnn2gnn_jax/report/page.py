"""A self-contained HTML page of sortable tables and figures."""

import base64
import html
import pathlib
from collections.abc import Sequence

from cnn2gnn_jax.report import formats
from cnn2gnn_jax.report.cells import Table

Section = Table | tuple[str, pathlib.Path, str]
"""A table, or a figure: its title, its PNG and its description. If the PNG does not exist, only the text is shown."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #5d5e66; --line: #d9dae0; --back: #fff; --head: #f4f5f9;
  --best: #0b57d0; --up: #1a7f37; --down: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4ea; --soft: #a5a6b0; --line: #3a3b43; --back: #17181c;
  --head: #22232a; --best: #8ab4f8; --up: #6dd58c; --down: #f2b8b5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem 1.25rem 4rem; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.2rem 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
p { max-width: 46rem; }
.note, nav { color: var(--soft); font-size: .9rem; }
nav ul { columns: 18rem; padding-left: 1.1rem; }
a { color: var(--best); }
.table { overflow-x: auto; width: fit-content; max-width: 100%; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th, thead th:first-child { text-align: left; font-weight: 500; min-width: min(14rem, 38vw); position: sticky;
  left: 0; background: var(--back); border-right: 1px solid var(--line); }
thead th, thead th:first-child { background: var(--head); font-weight: 600; vertical-align: bottom; }
thead button { all: unset; cursor: pointer; }
thead button:focus-visible { outline: 2px solid var(--best); }
thead th[aria-sort=ascending] button::after { content: " ▲"; font-size: .7em; }
thead th[aria-sort=descending] button::after { content: " ▼"; font-size: .7em; }
td { white-space: nowrap; }
td small { display: block; color: var(--soft); }
.up { color: var(--up); } .down { color: var(--down); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: .5rem; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; }
"""
_SCRIPT = """
document.querySelectorAll("thead button").forEach(button => button.addEventListener("click", () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") !== "descending";
  head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => { const cell = row.cells[column], text = cell.dataset.value;
    return column === 0 ? cell.textContent : text === "" ? -Infinity : parseFloat(text); };
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b); return (x < y ? 1 : x > y ? -1 : 0) * (down ? 1 : -1); });
  body.append(...rows);
}));
"""


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """Formats the page.

    Args:
      title: the heading.
      lead: paragraphs below the heading.
      sections: tables and figures; a list of links to them precedes the first one.
    """
    names = [section.title if isinstance(section, Table) else section[0] for section in sections]
    links = "".join(f'<li><a href="#s{k}">{html.escape(name)}</a></li>' for k, name in enumerate(names))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(text)}</p>" for text in lead),
        f"<nav><ul>{links}</ul></nav>",
    ]
    for k, section in enumerate(sections):
        body = formats.html_table(section) if isinstance(section, Table) else _figure(*section)
        parts.append(f'<section id="s{k}"><h2>{html.escape(names[k])}</h2>{body}</section>')
    return "\n".join([*parts, f"<script>{_SCRIPT}</script></body></html>", ""])


def _figure(title: str, path: pathlib.Path, description: str) -> str:
    caption = f"<figcaption>{html.escape(description)}</figcaption>"
    if not path.exists():
        return f"<figure>{caption}</figure>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">{caption}</figure>'
