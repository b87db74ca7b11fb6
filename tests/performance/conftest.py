"""Ends `make perf` with the table of ratios."""

from typing import Any

from performance.ratios import HEADER, ROWS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    rows = [HEADER, *ROWS]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    terminalreporter.section("ours against the padded reference in this run (ratio above 1: ours is faster)")
    for row in rows:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
