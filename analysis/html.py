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
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a3a3a3; --rule: #3a3a3a; --tint: #1f2123; --page: #141516; }
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

.wide { overflow-x: auto; }
table {
  border-collapse: collapse; font-size: 0.77rem; line-height: 1.4; font-variant-numeric: tabular-nums;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink);
}
th, td { padding: 0.35rem 0.4rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; border-bottom: 1px solid var(--ink); }
th.t, td.t { text-align: left; }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
td small { display: block; color: var(--soft); font-size: 0.87em; }
tr.data td { border-bottom: 1px solid var(--ink); font-style: italic; }
tbody tr:nth-child(even) { background: var(--tint); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); padding-left: 0; }
tbody tr:nth-child(even) td:first-child { background: var(--tint); padding-left: 0; }
"""


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then a list, a table and a figure where there are any."""

    title: str
    paragraphs: Sequence[str] = ()
    bullets: Sequence[str] = ()
    table: Table | None = None
    figure: Path | None = None
    caption: str = ""


def markdown_page(title: str, lead: str, sections: Sequence[Section], out: Path) -> str:
    """The report as Markdown; figures are linked relative to `out`."""
    parts = [f"# {title}", lead]
    for section in sections:
        parts += [f"## {section.title}", *section.paragraphs]
        if section.bullets:
            parts.append("\n".join(f"- {bullet}" for bullet in section.bullets))
        if section.table is not None:
            parts.append(markdown(section.table).rstrip())
        if section.figure is not None:
            parts += [f"![{section.title}]({section.figure.relative_to(out)})", section.caption]
    return "\n\n".join(parts) + "\n"


def html_page(title: str, lead: str, partial: bool, sections: Sequence[Section]) -> str:
    """The report as one file: figures are embedded, nothing is fetched."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='{'partial' if partial else 'lead'}'>{'Partial: ' if partial else ''}{escape(lead)}</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
        if section.bullets:
            parts.append(f"<ul>{''.join(f'<li>{escape(bullet)}</li>' for bullet in section.bullets)}</ul>")
        if section.table is not None:
            parts.append(html(section.table))
        if section.figure is not None:
            picture = base64.b64encode(section.figure.read_bytes()).decode()
            parts.append(
                f"<figure><img alt='{escape(section.title)}' src='data:image/png;base64,{picture}'>"
                f"<figcaption>{escape(section.caption)}</figcaption></figure>"
            )
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    head += f"<title>{escape(title)}</title><style>{CSS}</style>"
    body = "\n".join(parts)
    return f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>\n{body}\n</body></html>\n"
