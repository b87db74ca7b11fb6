"""docs/performance.md shows its records, and every number of its tables follows from them."""

from typing import Any

import pytest
from performance import performance
from performance.cell import ROOT

from bench.records.store import read_json
from bench.registry import methods
from bench.symmetry.contract import Method

MACHINE = {
    "device": "CPU: made up",
    "threads": 2,
    "float32_flops_per_second": 1e11,
    "bf16_flops_per_second": 4e11,
    "bytes_per_second": 1e10,
    "load": 0.1,
    "code": {"commit": "0123456789abcdef"},
    "torch": "2.0",
    "created": "2026-01-01",
}


def step(seconds: float, dtype: str = "float32", flops: float = 1e11) -> dict[str, Any]:
    return {
        "step_seconds": seconds,
        "step_seconds_quartiles": [0.9 * seconds, 1.1 * seconds],
        "forward_seconds": seconds / 3,
        "peak_memory_mb": 100 * seconds,
        "flops": flops,
        "bytes": 1e9,
        "dtype": dtype,
    }


def fake_measured(kind: str, **given: Any) -> dict[str, Any]:
    if kind == "peaks":
        return MACHINE
    if kind == "step":
        if given["backbone"] == "dit" and given["method"] == "symdiff" and given.get("bf16"):
            raise RuntimeError("no bf16 here")
        seconds = 40.0 if given.get("reference") else 2.0 if given.get("bf16") else 4.0
        flops = 5e11 if given.get("reference") else 1.1e11 if given["method"] == "symdiff" else 1e11
        return step(seconds, "bf16" if given.get("bf16") else "float32", flops)
    if kind == "paired":
        return {"ratios": {"float32": [9.0, 10.0, 12.0], "bf16": [19.0, 20.0, 20.0], "float32, plain": [7.0]}}
    if kind == "against":
        if given["bf16"]:
            raise RuntimeError("bf16 cannot take turns")
        return {"ratios": [1.05, 1.12, 1.2]}
    if kind == "sampling":
        return {"ratios": [11.0, 12.5, 13.0], "seconds": 10.0, "reference_seconds": 120.0, "molecules": 120, "steps": 2}
    if kind == "hooks":
        return {"augment": 0.01, "target": 0.03, "loss": 0.0}
    return {"seconds": 1.5, "molecules": 10, "atoms": 9.0, "peak_memory_mb": 5.0}


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(performance, "measured", fake_measured)
    return performance.measure("cpu", 2, None, compile_laptop=False, only=None)


def test_a_measurement_cut_short_has_its_cells_so_far(monkeypatch):
    monkeypatch.setattr(performance, "measured", fake_measured)
    seen: list[int] = []
    whole = performance.measure("cpu", 2, None, False, None, on_cell=lambda record: seen.append(len(record["cells"])))
    assert seen == [*range(1, len(whole["cells"]) + 1)]
    none = performance.measure("cpu", 2, None, False, None, seconds=-1)
    assert (none["machine"], none["cells"]) == (MACHINE, [])
    assert MACHINE["device"] in performance.page({"cpu": none})


def line(text: str, *cells: str) -> str:
    (found,) = [line for line in text.splitlines() if all(f"| {cell} |" in line for cell in cells)]
    return found


def test_page_is_that_of_its_records():
    assert performance.PAGE.read_text() == performance.rendered()


def test_floor_ratio_and_memory_follow_from_the_record(record):
    text = performance.page({"cpu": record})
    single = line(text, "edm on egnn", "published", "float32")
    # 100 GFLOP at 100 GFLOP/s take 1 s, which is 25 % of the speed; ten times faster, a tenth of the memory
    times = "4.000 (3.600, 4.400) | 1.333 | 25 % | 40.000 (36.000, 44.000) | 10.0x (9.0, 12.0) | 7.0x (7.0, 7.0)"
    assert f"| 100.0 | 1.00 | 1.000 | {times} | 400 | 4000 | 10.0x |" in single
    assert " | 20.0x (19.0, 20.0) |  | " in line(text, "edm on egnn", "published", "bf16")
    assert "| 1.00 | 12.5x (11.0, 13.0) |" in line(text, "edm on egnn", "published", "2", "12.00")


def test_what_a_kernel_costs_stands_beside_its_arithmetic(record):
    text = performance.kernels(record)
    assert "| 10.0 % | 12.0 % (8.5, 16.0) |" in line(text, "symdiff on dit", "plain", "published", "float32")
    assert "bf16 cannot take turns" in line(text, "symdiff on dit", "plain", "published", "bf16")


def test_hooks_are_shares_of_steps(record):
    for cell in record["cells"]:
        if cell["kind"] == "step" and cell["given"]["backbone"] == "egnn" and "result" in cell:
            cell["result"]["step_seconds"] *= 2
    line(performance.hooks(record), "haar | 10.00 | 30.00 | 0.00 | 0.5 % | 1.0 %")


def beyond_the_limit(record: dict[str, Any]) -> dict[str, list[float | None]]:
    """Methods with a target of their own whose hooks take more of a published step than they may, or were not timed."""
    own = {m for m in methods if methods[m].build.target is not Method.target}
    own -= {m for m in own if m.endswith("_as_released")}  # controls, of whose speed nothing is said
    found = {
        cell["given"]["method"]: performance.shares(record, cell)
        for cell in performance.of_kind(record, "hooks")
        if "result" in cell and cell["given"]["size"] == performance.PUBLISHED
    }
    kept = {
        m for m, of_step in found.items() if all(s is not None and s <= performance.MOST_OF_A_STEP for s in of_step)
    }
    return {m: found.get(m, []) for m in sorted(own - kept)}


def test_hooks_of_orbit_targets_keep_to_their_share_of_a_published_step():
    assert f"at most {100 * performance.MOST_OF_A_STEP:.0f} %" in performance.PAGE.read_text()
    path = performance.RECORDS / "cpu.json"
    if not path.exists():
        pytest.skip(f"nothing is measured: no {path.relative_to(ROOT)} (make performance)")
    assert beyond_the_limit(read_json(path)) == {}


def test_a_share_above_the_limit_and_a_hook_that_was_not_timed_are_noticed(record):
    assert beyond_the_limit(record) == {}
    named = {cell["given"]["method"]: cell for cell in performance.of_kind(record, "hooks")}
    named["orbit_rb"]["result"] = {"augment": 0.0, "target": 0.21, "loss": 0.0}  # of a step of 4 s
    named["target_symmetrisation"]["kind"] = "gone"
    assert beyond_the_limit(record) == {"orbit_rb": [0.0525, 0.0525], "target_symmetrisation": []}


def test_a_cell_that_failed_says_so_and_a_device_without_record_too(record):
    assert "no bf16 here" in line(performance.steps(record), "symdiff on dit", "published", "bf16")
    assert "## GPU\n\nnot measured" in performance.page({"cpu": record})


@pytest.mark.slow
def test_a_single_cell_really_runs(monkeypatch):
    """The smallest one, in a process of its own; a cell that cannot run is one line."""
    monkeypatch.delenv("QM9_DIR", raising=False)
    given = {"method": "edm", "backbone": "egnn", "size": "tiny", "batch": 2, "threads": 1}
    result = performance.measured("step", n_steps=1, reference=True, **given)
    assert result["step_seconds"] > 0
    assert result["compile"] == "eager"
    kinds = {"paired": {"n_steps": 1}, "against": {"other": "plain"}, "sampling": {"n_molecules": 2, "n_steps": 1}}
    for kind, more in kinds.items():
        ratios = performance.measured(kind, n_rounds=2, **more, **given)["ratios"]
        for of_one in ratios.values() if isinstance(ratios, dict) else [ratios]:
            assert len(of_one) == 2
            assert min(of_one) > 0
    with pytest.raises(RuntimeError, match="unknown backbone"):
        performance.measured("hooks", **{**given, "backbone": "nothing"})
