"""Sections of a report as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from analysis.tables.render import Table, html, markdown

# Restrained, readable on a phone, light and dark.
CSS = """
:root {
  color-scheme: light dark;
  --ink: #1a1a1a; --soft: #5c5c5c; --rule: #d9d9d9; --tint: #f5f6f7; --page: #fff; --warn: #d55e00;
  --link: #0057a3;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a3a3a3; --rule: #3a3a3a; --tint: #1f2123; --page: #141516; --link: #7fbfff; }
}
* { box-sizing: border-box; }
body {
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  color: var(--ink); background: var(--page); max-width: 84rem; margin: 0 auto; padding: 1.5rem 1.1rem 4rem;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 0.7rem; padding-top: 0.8rem; border-top: 1px solid var(--rule); }
p, li, figcaption { max-width: 52rem; overflow-wrap: break-word; }
ul { padding-left: 1.2rem; }
li { margin: 0.35rem 0; }
.lead { color: var(--soft); margin-top: 0; }
.partial { border-left: 4px solid var(--warn); background: var(--tint); padding: 0.5rem 0.8rem; }

figure { margin: 1rem 0; }
figcaption, .note { color: var(--soft); font-size: 0.85rem; margin: 0.6rem 0; }
img { width: 52rem; max-width: 100%; height: auto; background: #fff; border-radius: 4px; display: block; }

.wide { overflow-x: auto; max-width: 100%; }
.wide:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
a { color: var(--link); }
table {
  border-collapse: separate; border-spacing: 0;
  font-size: 0.77rem; line-height: 1.4; font-variant-numeric: tabular-nums;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink);
}
th, td { padding: 0.35rem 0.4rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { font-weight: inherit; }
th.t, td.t { text-align: left; }
thead th { padding: 0; vertical-align: bottom; border-bottom: 1px solid var(--ink); }
thead button {
  all: unset; box-sizing: border-box; display: block; width: 100%; padding: 0.35rem 0.4rem; font-weight: 600;
  white-space: normal; cursor: pointer;
}
thead button:hover { text-decoration: underline; }
thead button:focus-visible { outline: 2px solid var(--link); outline-offset: -2px; }
th[aria-sort="ascending"] button::after { content: " ▲"; }
th[aria-sort="descending"] button::after { content: " ▼"; }
td.long, th.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
td small { display: block; color: var(--soft); font-size: 0.87em; }
tr.data > * { border-bottom: 1px solid var(--ink); font-style: italic; }
tr > th:first-child { position: sticky; left: 0; background: var(--page); }
tbody tr > th:first-child { border-right: 1px solid var(--rule); padding-left: 0; }
tbody tr:nth-child(even) > * { background: var(--tint); }
thead th:first-child button { padding-left: 0; }
@media (max-width: 40rem) {
  body { padding: 1rem 0.9rem 3rem; }
  tr > th:first-child { white-space: normal; max-width: 8rem; min-width: 0; }
  td.long { min-width: 11rem; }
}
@media print { .wide { overflow: visible; } }
"""

# Sorting by a column: numbers by the first number of a cell, words by their order, empty cells (a dash) last. The rows
# of the data set itself stay on top. A second click turns the order round.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const plain = text => text.replace(/\\u2212/g, "-").replace(/\\u00a0/g, "");
  const number = text => parseFloat(plain(text).replace(/^[^0-9.-]+/, ""));
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const words = head.classList.contains("t");
    const key = row => {
      const text = row.cells[column].textContent.trim();
      return text === "\u2013" || text === "" ? null : words ? text : number(text);
    };
    const rows = [...body.rows].filter(row => !row.classList.contains("data")).map(row => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return (words ? a.localeCompare(b, "en", {numeric: true}) : a - b) * (up ? 1 : -1);
    });
    for (const [, row] of rows) body.append(row);
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }));
}
"""


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then a list, tables and a figure where there are any."""

    title: str
    paragraphs: Sequence[str] = ()
    bullets: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figure: Path | None = None
    caption: str = ""


def markdown_page(title: str, lead: str, sections: Sequence[Section], out: Path) -> str:
    """The report as Markdown; figures are linked relative to `out`."""
    parts = [f"# {title}", lead]
    for section in sections:
        parts += [f"## {section.title}", *section.paragraphs]
        if section.bullets:
            parts.append("\n".join(f"- {bullet}" for bullet in section.bullets))
        parts += [markdown(table).rstrip() for table in section.tables]
        if section.figure is not None:
            parts += [f"![{section.title}]({section.figure.relative_to(out)})", section.caption]
    return "\n\n".join(parts) + "\n"


def html_page(title: str, lead: str, partial: bool, sections: Sequence[Section]) -> str:
    """The report as one file: figures, styles and the script that sorts tables are in it, nothing is fetched."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='{'partial' if partial else 'lead'}'>{'Partial: ' if partial else ''}{escape(lead)} "
        "Tables are sorted by a click on the heading of a column.</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
        if section.bullets:
            parts.append(f"<ul>{''.join(f'<li>{escape(bullet)}</li>' for bullet in section.bullets)}</ul>")
        parts += [html(table) for table in section.tables]
        if section.figure is not None:
            picture = base64.b64encode(section.figure.read_bytes()).decode()
            parts.append(
                f"<figure><img alt='{escape(section.title)}' src='data:image/png;base64,{picture}'>"
                f"<figcaption>{escape(section.caption)}</figcaption></figure>"
            )
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    head += f"<title>{escape(title)}</title><style>{CSS}</style>"
    body = "\n".join(parts)
    page = f"<html lang='en'><head>{head}</head>\n<body>\n{body}\n<script>{SCRIPT}</script>\n</body></html>"
    return f"<!doctype html>\n{page}\n"
