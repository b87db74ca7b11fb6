"""Metrics of crystals: what matches and what does not, validity, losses, and the rows to read against."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from crystal_examples import examples

from bench.metrics import crystals as metrics
from bench.metrics.crystal_rows import Row, exchange, row_samples
from bench.metrics.crystals import evaluate_crystals, judge, to_list
from bench.metrics.pool import Lost
from bench.registry import datasets
from bench.structures.lattices import crystals, fractions_of
from bench.structures.structures import Structures

pytest.importorskip("pymatgen.core")
pytest.importorskip("smact")


def moved(made: Structures, shift: np.ndarray | float = 0.0, scale: float = 1.0) -> Structures:
    assert made.cells is not None
    return crystals(made.numbers, fractions_of(made) + shift, made.cells * scale, made.ptr)


def values(samples: Structures, test: Structures) -> dict[str, float | None]:
    return {value.name: value.value for value in evaluate_crystals(samples, test, n_workers=1)}


def test_a_crystal_matches_itself_wherever_its_origin_is():
    test = examples(["SrTiO3", "KNbO3", "NaCl"])
    found = values(moved(test, np.array([0.1, 0.2, 0.3])), test)
    assert found["match_rate"] == found["match_rate_valid"] == found["plausible"] == found["balanced"] == 1
    assert found["rmse"] == pytest.approx(0, abs=1e-6)
    assert found["volume_error"] == pytest.approx(0, abs=1e-9)
    assert found["lost"] == 0
    rng = np.random.default_rng(0)
    random = values(moved(test, rng.random((12, 3))), test)  # control: sites anywhere
    assert (random["match_rate"] or 0) < 1
    assert random["rmse"] != found["rmse"]
    larger = values(moved(test, scale=1.1), test)
    assert larger["volume_error"] == pytest.approx(0.331, abs=1e-6)
    assert larger["match_rate"] == 1  # the matcher scales volumes
    assert (larger["density_w1"] or 0) > 0.1


def test_small_displacements_cost_rmse_alone():
    test = examples(["SrTiO3", "KNbO3"])
    noise = np.random.default_rng(1).normal(size=(10, 3)) * 0.02
    found = values(moved(test, noise), test)
    assert found["match_rate"] == 1
    assert 0.005 < (found["rmse"] or 0) < 0.1


def test_what_is_not_valid_does_not_match_with_the_filter():
    """Sites nearer than 0.5 angstrom, and compositions whose charges do not balance; the plain rate is another."""
    test = examples(["SrTiO3"])
    close = fractions_of(test)
    close[4] = close[3] + [0.05, 0.0, 0.0]
    assert test.cells is not None
    clash = values(crystals(test.numbers, close, test.cells, test.ptr), test)
    assert clash["plausible"] == clash["match_rate_valid"] == 0
    argon = dataclasses.replace(examples(["NaCl"]), numbers=np.array([11, 18]))  # which no charge balances
    judged = [judge((one, one)) for made in (argon, test) for one in to_list(made)]
    found = [one for one in judged if isinstance(one, metrics.Judged)]
    assert [one.balanced for one in found] == [False, True]
    assert all(one.distance is not None for one in found)
    assert [one.valid for one in found] == [one.balanced for one in found]


def test_flat_cells_are_no_crystals():
    test = examples(["SrTiO3", "NaCl"])
    assert test.cells is not None
    flat = test.cells.copy()
    flat[0, 2] = flat[0, 1]
    found = values(dataclasses.replace(test, cells=flat), test)
    assert found["match_rate"] == found["plausible"] == 0.5


@pytest.mark.parametrize("part", ["positions", "cells"])
def test_samples_that_are_not_finite_match_nothing(part: str):
    """Their volumes count in no mean. Control: the crystal beside them matches."""
    test = examples(["SrTiO3", "NaCl"])
    assert test.cells is not None
    broken = {"positions": test.positions.copy(), "cells": test.cells.copy()}[part]
    broken[0] = np.nan
    found = values(dataclasses.replace(test, **{part: broken}), test)
    assert found["match_rate"] == found["plausible"] == 0.5
    assert found["lost"] == found["volume_error"] == found["volume_w1"] == found["length_w1"] == 0


def test_cells_too_long_for_a_match_are_no_match(monkeypatch: pytest.MonkeyPatch):
    """Nothing is tried; control: a cell twice as long is tried. What pymatgen cannot compare is lost."""
    test = examples(["SrTiO3", "NaCl"])
    assert test.cells is not None
    found = values(dataclasses.replace(test, cells=test.cells * [[[1, 1, 1e7]], [[1, 1, 2]]]), test)
    assert found["too_long"] == 0.5
    assert found["lost"] == found["match_rate"] == 0
    huge = dataclasses.replace(test, cells=test.cells * 2)
    one, other = (to_list(some)[0] for some in (huge, test))
    from pymatgen.analysis.structure_matcher import StructureMatcher

    assert isinstance(judge((one, other)), metrics.Judged)

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(StructureMatcher, "get_rms_dist", fails)
    assert judge((one, other)) is Lost.CRASH


def test_cached_values_depend_on_both_packages(monkeypatch: pytest.MonkeyPatch):
    """Control: not on others."""
    before = metrics.version()
    for package, changes in (("pymatgen-core", True), ("smact", True), ("numpy", False)):
        with monkeypatch.context() as patch:
            real = metrics.metadata.version
            patch.setattr(metrics.metadata, "version", lambda name, p=package, r=real: "0" if name == p else r(name))
            assert (metrics.version() != before) == changes


def test_samples_must_be_those_of_the_test_crystals():
    test = examples(["SrTiO3", "NaCl"])
    with pytest.raises(ValueError, match="differ in composition or order"):
        evaluate_crystals(examples(["KNbO3", "NaCl"]), test)
    with pytest.raises(ValueError, match="molecules have no cells"):
        evaluate_crystals(dataclasses.replace(test, cells=None), test)


def test_lost_comparisons_count_as_no_match(monkeypatch: pytest.MonkeyPatch):
    test = examples(["SrTiO3", "NaCl"])
    found = metrics.judged(test, test, 1)
    monkeypatch.setattr(metrics, "judged", lambda *_: [Lost.TIMEOUT, found[1]])
    values = {value.name: value.value for value in evaluate_crystals(test, test)}
    assert values["lost"] == 1
    assert values["match_rate"] == values["plausible"] == 0.5


# ---------------------------------------------------------------------- rows


def test_exchanged_metals_change_places_and_others_stay():
    order = exchange(np.array([38, 22, 8, 8, 8]))
    assert order.tolist() == [1, 0, 2, 3, 4]
    assert exchange(np.array([11, 17])).tolist() == [0, 1]
    assert exchange(np.array([3, 3, 22, 8, 8])).tolist() == [0, 1, 2, 3, 4]  # two of one, one of the next


def test_rows_keep_what_they_promise():
    test = examples(["SrTiO3", "KNbO3"] * 20)
    rows = {row: row_samples(row, test, test, seed=1) for row in Row}
    assert rows[Row.DATA] is test
    for row in (Row.EXCHANGED, Row.PERMUTED, Row.RANDOM):
        assert np.array_equal(rows[row].numbers, test.numbers)
        assert not np.allclose(rows[row].positions, test.positions)
    changed = (np.abs(rows[Row.EXCHANGED].positions - test.positions) > 0.1).any(1).reshape(40, 5).any(1)
    assert abs(changed.sum() - 20) < 5 * (40 * 0.25) ** 0.5
    assert not changed.all()


@pytest.mark.slow
@pytest.mark.skipif("CRYSTALS_DIR" not in os.environ, reason="set CRYSTALS_DIR to a folder with Perov-5")
def test_chance_of_the_two_sites_is_worth_more_than_half_of_perov_5():
    """The guess was one half: right geometry, A and B at random. It is more, for some of the exchanged match; control:
    the data themselves."""
    entry = datasets["crystals"]
    test = entry.build(entry.config(of="perov5", n_train=10)).test.select(np.arange(200))
    exchanged = values(row_samples(Row.EXCHANGED, test, test), test)["match_rate"]
    assert exchanged == pytest.approx(0.6, abs=5 * 0.5 / 200**0.5)
    assert exchanged < values(test, test)["match_rate"] == 1
