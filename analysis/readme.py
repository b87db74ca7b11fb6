"""The README's section on the laptop study, copied from the published report, so that no number is typed by hand.

`python -m analysis.readme` replaces the text between the two marks; with `--check` it changes nothing and exits with 1
if the README is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.records.store import write_atomically

README = Path("README.md")
REPORT = Path("results/qm9_laptop/report")
BEGIN, END = "<!-- laptop:begin -->", "<!-- laptop:end -->"
FIGURES = {"pareto.png": "Quality against cost"}
NONE_YET = "No published results yet; `make ablation-qm9 publish readme` makes them."


def section(report: Path) -> str:
    """The published main table, the figure, and links to all reports; one line if nothing is published."""
    table = report / "main.md"
    if not table.is_file():
        return NONE_YET
    figures = [
        f"![{title}]({report.as_posix()}/{name})" for name, title in FIGURES.items() if (report / name).is_file()
    ]
    link = f"All tables, figures and the provenance of every run: [{report.as_posix()}]({report.as_posix()}/report.md)."
    others = [
        f"[{path.parents[1].name}]({path.as_posix()})"
        for path in sorted(report.parents[1].glob("*/report/report.md"))
        if path.parent != report
    ]
    link += f" Other studies: {', '.join(others)}." if others else ""
    return "\n\n".join([table.read_text().strip(), *figures, link])


def filled(text: str, content: str, begin_mark: str = BEGIN, end_mark: str = END) -> str:
    """A page's text with `content` between its marks.

    Raises:
        ValueError: the marks are not there, each once and in order.
    """
    before, begin, rest = text.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end or begin_mark in after or end_mark in after:
        raise ValueError(f"the page needs {begin_mark} and, after it, {end_mark}, each once")
    return f"{before}{begin_mark}\n{content}\n{end_mark}{after}"


def main(argv: list[str] | None = None) -> int:
    """Fill or check."""
    parser = argparse.ArgumentParser(prog="python -m analysis.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 when the README is out of date")
    args = parser.parse_args(argv)
    text = README.read_text()
    wanted = filled(text, section(REPORT))
    if text == wanted:
        return 0
    if args.check:
        sys.stderr.write(f"{README} does not show {REPORT}/main.md; run `make readme`\n")
        return 1
    write_atomically(README, wanted.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
