"""The table of `make growth` is that of its record."""

from typing import Any

import pytest

from bench.run.scaling import fits
from performance import growth
from performance.growth import LIMIT_GIB, section


def row(atoms: int, **changes: Any) -> dict[str, Any]:
    """A cell whose step grows with the square of the atoms, and its memory with the atoms."""
    cell = {"method": "haar", "backbone": "pairformer", "axis": "atoms", "value": atoms, "parameters": 620297}
    cell |= {"step_seconds": 1e-4 * atoms**2, "step_memory_mb": 2.0 * atoms, "sampling_seconds": 1e-3 * atoms}
    cell |= {"peak_memory_mb": 500.0, "sampling_peak_memory_mb": 400.0, "sampling_steps": 50, "batch": 2, "load": 1.0}
    cell |= {"device": "CPU", "threads": 1, "versions": {"torch": "2"}, "code": {"commit": "0123456789abcdef"}}
    return cell | changes


def shown(rows: list[dict[str, Any]]) -> str:
    return section({"rows": rows, "fits": fits(rows)})


def test_the_largest_size_and_the_exponents_are_shown():
    page = shown([row(n) for n in (23, 46, 92, 181)])
    assert "1 of 1 methods stay within 24 GiB" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| haar")]
    assert "| 620 297 | 3.28 | 362 | 0.2 | 500 |" in line
    assert [word.split()[0] for word in line.split("|")[7:10]] == ["2.00", "1.00", "1.00"]


def test_a_record_without_any_cell_is_not_written(monkeypatch: pytest.MonkeyPatch):
    """Control: one good cell is enough."""
    rows = [{"method": "haar", "backbone": "pairformer", "axis": "atoms", "value": 23, "error": "no memory"}]
    monkeypatch.setattr(growth, "sweep", lambda *_: {"rows": rows})
    with pytest.raises(SystemExit, match="no cell could be measured: no memory; nothing is written"):
        growth.measure(["haar"], 1, 1, 1, "cpu")
    rows.append(row(46))
    assert growth.measure(["haar"], 1, 1, 1, "cpu")["rows"] == rows


def test_a_method_beyond_the_limit_is_not_counted_within_it():
    rows = [row(n, peak_memory_mb=1024.0 * LIMIT_GIB + 1) for n in (23, 46, 92, 181)]
    assert "0 of 1 methods stay within 24 GiB" in shown(rows)
