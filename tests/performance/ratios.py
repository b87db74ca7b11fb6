"""The table of ratios and peak memories that ends `make perf`."""

from typing import Any

ROWS: list[tuple[str, ...]] = []
HEADER = ("what", "case", "seconds", "reference", "ratio", "peak MiB", "reference")


def compared(benchmark: Any, case: str, seconds: float, other: float | None = None, **memory: float) -> None:
    """Keep a line of the table, and the ratio with the benchmark's own record.

    Args:
        seconds: of ours.
        other: of the reference in the same run, where there is one.
        memory: `ours` and `reference`, peaks in MiB of processes of their own.
    """
    ratio = None if other is None else other / seconds
    benchmark.extra_info.update({"ratio": ratio, **{f"peak_mb_{name}": peak for name, peak in memory.items()}})
    row = [benchmark.group, case, f"{seconds:.4f}"]
    row += ["" if other is None else f"{other:.4f}", "" if ratio is None else f"{ratio:.2f}"]
    row += [f"{memory[name]:.0f}" if name in memory else "" for name in ("ours", "reference")]
    ROWS.append(tuple(row))
