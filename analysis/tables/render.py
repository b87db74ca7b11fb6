"""One table as Markdown, LaTeX, HTML or terminal text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from textwrap import wrap

import pandas as pd

from bench.records.inputs import csv_cell


@dataclass(frozen=True)
class Cell:
    """Text of a cell; `small` follows in a lesser weight (spread, interval); `bold` marks the best group."""

    text: str
    small: str = ""
    bold: bool = False

    @property
    def plain(self) -> str:
        return f"{self.text} {self.small}".strip()


@dataclass(frozen=True)
class Table:
    """Header, rows of cells and a caption.

    Attributes:
        n_text: number of leading text columns, set flush left; the others are set flush right.
        last_is_text: whether the last column is text too.
        rule_after: number of leading rows set apart by a rule (the data row).
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    n_text: int = 1
    last_is_text: bool = False
    rule_after: int = 0
    notes: Sequence[str] = field(default_factory=tuple)

    def is_text(self, column: int) -> bool:
        return column < self.n_text or (self.last_is_text and column == len(self.header) - 1)

    def columns(self, keep: Sequence[int]) -> Table:
        """The same table with some of its columns."""
        return Table(
            [self.header[i] for i in keep],
            [[row[i] for i in keep] for row in self.rows],
            self.caption,
            sum(i < self.n_text for i in keep),
            self.last_is_text and len(self.header) - 1 in keep,
            self.rule_after,
            self.notes,
        )


def markdown(table: Table) -> str:
    """GitHub's pipe table, the caption above, notes below."""

    def line(words: Sequence[str]) -> str:
        safe = (word.replace("|", r"\|").replace("<", "&lt;") for word in words)  # no tags of our readers' making
        return f"| {' | '.join(safe)} |"

    def word(cell: Cell) -> str:
        return f"**{cell.text}** {cell.small}".strip() if cell.bold else cell.plain

    rules = ["---" if table.is_text(i) else "---:" for i in range(len(table.header))]
    body = [line(table.header), line(rules), *(line([word(cell) for cell in row]) for row in table.rows)]
    return "\n\n".join([table.caption, "\n".join(body), *table.notes]) + "\n"


def html(table: Table) -> str:
    """A figure with caption above; wide tables scroll sideways within it."""

    def row(cells: Sequence[Cell], tag: str, css: str = "") -> str:
        out = []
        for i, cell in enumerate(cells):
            kind = f' class="t{" long" if len(cell.text) > 40 else ""}"' if table.is_text(i) else ""
            text = escape(cell.text).replace("/", "/<wbr>")
            text = f"<b>{text}</b>" if cell.bold else text
            small = f" <small>{escape(cell.small)}</small>" if cell.small else ""
            out.append(f"<{tag}{kind}>{text}{small}</{tag}>")
        return f"<tr{css}>{''.join(out)}</tr>"

    head = row([Cell(word) for word in table.header], "th")
    body = "\n".join(
        row(cells, "td", ' class="data"' if i < table.rule_after else "") for i, cells in enumerate(table.rows)
    )
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in table.notes)
    return (
        f"<figure><figcaption>{escape(table.caption)}</figcaption>\n<div class='wide'><table><thead>{head}</thead>\n"
        f"<tbody>{body}</tbody></table></div>{notes}</figure>"
    )


_TEX = {"\\": r"\textbackslash{}", "–": "--", "−": "$-$", "±": r"$\pm$", "≤": r"$\le$", "†": r"$^\dagger$"}
_TEX |= {
    "≥": r"$\ge$",
    "⁶": "$^6$",
    "µ": r"$\mu$",
    "‡": r"$^\ddagger$",
    "§": r"$^\S$",
    "³": "$^3$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "Å": r"\AA{}",
    "α": r"$\alpha$",
}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "\N{NO-BREAK SPACE}": "~",
    "^": r"\textasciicircum{}",
}


def tex(text: str) -> str:
    """Plain text as LaTeX."""
    return "".join(_TEX.get(character, character) for character in text)


def latex(panels: Sequence[Table], label: str) -> str:
    """One floating table of stacked panels, each as wide as the text; caption and notes are those of the first."""

    def row(cells: Sequence[Cell]) -> str:
        words = [(f"\\textbf{{{tex(c.text)}}} {tex(c.small)}" if c.bold else tex(c.plain)).strip() for c in cells]
        return " & ".join(words) + r" \\"

    blocks = []
    for panel in panels:
        spec = "".join("l" if panel.is_text(i) else "r" for i in range(len(panel.header)))
        lines = [row(cells) for cells in panel.rows]
        if panel.rule_after:
            lines.insert(panel.rule_after, r"\midrule")
        header = row([Cell(word) for word in panel.header])
        begin = [
            r"\resizebox{\textwidth}{!}{%",
            f"\\begin{{tabular}}{{@{{}}{spec}@{{}}}}",
            r"\toprule",
            header,
            r"\midrule",
        ]
        blocks.append("\n".join([*begin, *lines, r"\bottomrule", r"\end{tabular}}"]))
    first = panels[0]
    caption = tex(" ".join([first.caption, *first.notes]))
    stacked = "\n\n\\medskip\n".join(blocks)
    head = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table*}[t]",
        "\\centering\\footnotesize",
        f"\\caption{{{caption}}}",
        f"\\label{{{label}}}",
    ]
    return "\n".join([*head, stacked, "\\end{table*}"]) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """A frame as CSV."""
    return frame.map(csv_cell).to_csv(index=False, lineterminator="\n")


def natural_widths(table: Table) -> list[int]:
    """Width of each column as plain text, in characters: its widest cell or the longest word of its header."""
    cells = [[cell.plain for cell in row] for row in table.rows]
    return [
        max([len(row[i]) for row in cells] + [len(word) for word in header.split()] + [1])
        for i, header in enumerate(table.header)
    ]


def text(table: Table, width: int = 120) -> str:
    """Aligned plain text of at most `width` columns; headers are wrapped, and where needed the widest text column is
    truncated with an ellipsis."""
    widths = natural_widths(table)
    texts = [i for i in range(len(widths)) if table.is_text(i)]
    while sum(widths) + 2 * (len(widths) - 1) > width and texts and max(widths[i] for i in texts) > 6:
        widths[max(texts, key=lambda i: widths[i])] -= 1

    def line(row: Sequence[str]) -> str:
        shown = [word if len(word) <= w else word[: w - 1] + "…" for word, w in zip(row, widths, strict=True)]
        left = [table.is_text(i) for i in range(len(widths))]
        padded = (c.ljust(w) if flush else c.rjust(w) for c, w, flush in zip(shown, widths, left, strict=True))
        return "  ".join(padded).rstrip()

    wrapped = [wrap(word, w) for word, w in zip(table.header, widths, strict=True)]
    height = max(len(lines) for lines in wrapped)
    header = [line(row) for row in zip(*([""] * (height - len(lines)) + lines for lines in wrapped), strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [line([cell.plain for cell in row]) for row in table.rows]
    top = [*body[: table.rule_after], rule] if table.rule_after else []
    return "\n".join([*header, rule, *top, *body[table.rule_after :]])
