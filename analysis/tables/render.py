"""One table as Markdown, LaTeX, HTML or terminal text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import chain
from textwrap import wrap

import pandas as pd

from bench.records.inputs import csv_cell

LONG = 40  # characters of a text cell beyond which it is broken into lines in HTML
HEAD = 14  # characters of a heading in LaTeX beyond which it is broken into lines
NARROW = 6  # least width of a text column on a terminal


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
        caption: what a reader must know to read the cells; under the table, before the notes, where there is a title.
        title: one short sentence above the table; without one, the caption stands there.
        files: names of files beside the report that hold the same table, to link to.
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
    title: str = ""
    files: Sequence[str] = ()

    @property
    def above(self) -> str:
        return self.title or self.caption

    @property
    def below(self) -> list[str]:
        return [note for note in (self.caption if self.title else "", *self.notes) if note]

    def is_text(self, column: int) -> bool:
        return column < self.n_text or (self.last_is_text and column == len(self.header) - 1)

    def columns(self, keep: Sequence[int]) -> Table:
        """The same table with some of its columns."""
        return replace(
            self,
            header=[self.header[i] for i in keep],
            rows=[[row[i] for i in keep] for row in self.rows],
            n_text=sum(i < self.n_text for i in keep),
            last_is_text=self.last_is_text and len(self.header) - 1 in keep,
        )


def markdown(table: Table) -> str:
    """GitHub's pipe table, the title or else the caption above, the rest below."""

    def line(words: Sequence[str]) -> str:
        safe = (word.replace("|", r"\|").replace("<", "&lt;") for word in words)  # no tags of our readers' making
        return f"| {' | '.join(safe)} |"

    def word(cell: Cell) -> str:
        return f"**{cell.text}** {cell.small}".strip() if cell.bold else cell.plain

    rules = ["---" if table.is_text(i) else "---:" for i in range(len(table.header))]
    body = [line(table.header), line(rules), *(line([word(cell) for cell in row]) for row in table.rows)]
    return "\n\n".join([table.above, "\n".join(body), *table.below]) + "\n"


def html(table: Table) -> str:
    """A figure with title or caption above and links to its files below.

    The heads of the columns are buttons that sort by them (`analysis.html.SCRIPT`); tables wider than the page scroll
    sideways, with the first column in place.
    """

    def text(cell: Cell) -> str:
        word = escape(cell.text).replace("/", "/<wbr>")
        word = word if " " in cell.text else word.replace("_", "_<wbr>")
        small = f" <small>{escape(cell.small)}</small>" if cell.small else ""
        return (f"<b>{word}</b>" if cell.bold else word) + small

    def kind(i: int, cell: Cell) -> str:
        return f' class="t{" long" if len(cell.text) > LONG else ""}"' if table.is_text(i) else ""

    def head(i: int, word: str) -> str:
        return f'<th scope="col"{kind(i, Cell(""))}><button type="button">{text(Cell(word))}</button></th>'

    def row(i: int, cells: Sequence[Cell]) -> str:
        css = ' class="data"' if i < table.rule_after else ""
        first = f'<th scope="row"{kind(0, cells[0])}>{text(cells[0])}</th>'
        return f"<tr{css}>{first}{''.join(f'<td{kind(j, c)}>{text(c)}</td>' for j, c in enumerate(cells) if j)}</tr>"

    heads = "".join(head(i, word) for i, word in enumerate(table.header))
    body = "\n".join(row(i, cells) for i, cells in enumerate(table.rows))
    links = ", ".join(f"<a href='{escape(file)}'>{escape(file)}</a>" for file in table.files)
    below = [*([f"The same as files: {links}"] if links else []), *map(escape, table.below)]
    notes = "".join(f"<p class='note'>{note}</p>" for note in below)
    return (
        f"<figure><figcaption>{escape(table.above)}</figcaption>\n"
        f"<div class='wide' role='region' tabindex='0' aria-label='Table, may be scrolled sideways'>"
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        f"{notes}</figure>"
    )


_TEX = {"\\": r"\textbackslash{}", "–": "--", "−": "$-$", "±": r"$\pm$", "≤": r"$\le$", "†": r"$^\dagger$"}
_TEX |= {
    "≥": r"$\ge$",
    "⁶": "$^6$",
    "µ": r"$\mu$",
    "‡": r"$^\ddagger$",
    "§": r"$^\S$",
    "¶": r"$^\P$",
    "²": "$^2$",
    "³": "$^3$",
    "|": r"\textbar{}",
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
    """One floating table of stacked panels, none wider than the text, with a note below.

    The caption is the title of the first panel, or the first sentence of its caption, so that it takes two lines at
    most; what else is told is the note.
    """

    def row(cells: Sequence[Cell]) -> str:
        words = [(f"\\textbf{{{tex(c.text)}}} {tex(c.small)}" if c.bold else tex(c.plain)).strip() for c in cells]
        # A row that begins with [ would be read as an argument of the line break before it.
        return " & ".join(f"{{{word}}}" if word.startswith("[") else word for word in words) + r" \\"

    def heading(word: str, flush: str) -> str:
        lines = r" \\ ".join(tex(line) for line in wrap(word, HEAD, break_long_words=False))
        return f"\\begin{{tabular}}[b]{{@{{}}{flush}@{{}}}}{lines}\\end{{tabular}}"

    blocks = []
    for panel in panels:
        spec = "".join("l" if panel.is_text(i) else "r" for i in range(len(panel.header)))
        lines = [row(cells) for cells in panel.rows]
        if panel.rule_after:
            lines.insert(panel.rule_after, r"\midrule")
        header = " & ".join(map(heading, panel.header, spec)) + r" \\"
        begin = [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            f"\\begin{{tabular}}{{@{{}}{spec}@{{}}}}",
            r"\toprule",
            header,
            r"\midrule",
        ]
        blocks.append("\n".join([*begin, *lines, r"\bottomrule", r"\end{tabular}}"]))
    first = panels[0]
    title, _, rest = (first.title, "", "") if first.title else first.caption.partition(". ")
    stacked = "\n\n\\medskip\n".join(blocks)
    told = [note for panel in panels for note in (panel.below if panel.title else panel.notes)]
    note = tex(" ".join(filter(None, [rest, *told])))
    head = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table*}[t]",
        "\\centering\\footnotesize",
        f"\\caption{{{tex(title.rstrip('.'))}.}}",
        f"\\label{{{label}}}",
        "\\smallskip",
        "\\setlength{\\tabcolsep}{4pt}",
    ]
    below = ["", "\\smallskip", f"\\parbox{{\\linewidth}}{{\\scriptsize\\raggedright {note}}}"] if note else []
    return "\n".join([*head, stacked, *below, "\\end{table*}"]) + "\n"


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
    """Aligned plain text. To keep within `width` columns headers and, where needed, cells of text are broken into
    lines, at spaces and underscores where there are any; nothing is cut."""
    widths = natural_widths(table)
    texts = [i for i in range(len(widths)) if table.is_text(i)]
    while sum(widths) + 2 * (len(widths) - 1) > width and texts and max(widths[i] for i in texts) > NARROW:
        widths[max(texts, key=lambda i: widths[i])] -= 1

    flush_left = [table.is_text(i) for i in range(len(widths))]

    def line(words: Sequence[str]) -> str:
        padded = (c.ljust(w) if left else c.rjust(w) for c, w, left in zip(words, widths, flush_left, strict=True))
        return "  ".join(padded).rstrip()

    def lines(words: Sequence[str], from_below: bool = False) -> list[str]:
        broken = [_broken(word, w) for word, w in zip(words, widths, strict=True)]
        height = max(map(len, broken))
        fill = [[""] * (height - len(part)) for part in broken]
        parts = [empty + part if from_below else part + empty for part, empty in zip(broken, fill, strict=True)]
        return [line(row) for row in zip(*parts, strict=True)]

    rule = ["-" * (sum(widths) + 2 * (len(widths) - 1))]
    body = [lines([cell.plain for cell in row]) for row in table.rows]
    top = [*body[: table.rule_after], rule] if table.rule_after else []
    return "\n".join(chain(lines(table.header, from_below=True), rule, *top, *body[table.rule_after :]))


def _broken(word: str, width: int) -> list[str]:
    """A word as lines of at most `width`: the text of the lines, put together, is the word but for spaces."""
    lines = [""]
    for part in re.findall(r"[^\s_/]*[_/]+|[^\s_/]+|\s+", word):
        if len(lines[-1] + part.rstrip()) > width and lines[-1]:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += part if lines[-1] else part.lstrip()
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]
