"""Spread, intervals and comparisons against closed forms and simulation."""

import math

import numpy as np
import pytest
from fabricated_study import edit_value, run_name, write_study
from scipy import stats as reference

from analysis.load import load
from analysis.stats import (
    Summary,
    best_group,
    combined_half_width,
    holm,
    paired,
    reference_for,
    reference_group,
    separated_from_best,
    summarise,
    t_interval,
)
from bench.records.values import Better


def summary(*values):
    return Summary(dict(enumerate(values)))


def test_spread_is_the_sample_standard_deviation():
    assert summary(1.0, 3.0).sd == pytest.approx(math.sqrt(2))
    assert summary(1.0, 3.0).mean == 2.0
    assert summary(1.0, 3.0).sd != pytest.approx(1.0)  # the population's would be 1
    assert math.isnan(summary(1.0).sd)
    assert math.isnan(summary().mean)


def test_sampling_half_width_of_a_mean_shrinks_with_the_root_of_runs():
    assert combined_half_width([0.3]) == pytest.approx(0.3)
    assert combined_half_width([0.3] * 4) == pytest.approx(0.15)
    assert combined_half_width([3.0, 4.0]) == pytest.approx(2.5)
    assert math.isnan(combined_half_width([0.3, float("nan")]))


def test_t_interval_equals_the_closed_form_for_two_pairs():
    # one degree of freedom is the Cauchy distribution: quantile tan(pi (p - 1/2)), p-value 1 - 2 atan(t) / pi
    found = t_interval([1.0, 3.0])
    half = math.tan(math.pi * 0.475) * 1.0
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert found.p == pytest.approx(1 - 2 * math.atan(2.0) / math.pi)


def test_t_interval_equals_scipy():
    d = np.random.default_rng(0).normal(0.3, 1.0, size=7)
    found, test = t_interval(d), reference.ttest_1samp(d, 0.0)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def covered(factor: float) -> float:
    """Share of 95 % intervals, stretched by a factor, that hold the true mean, three pairs each."""
    draws = np.random.default_rng(1).normal(size=(4000, 3))
    intervals = [t_interval(row) for row in draws]
    return float(np.mean([abs(i.mean) <= factor * (i.high - i.low) / 2 for i in intervals]))


def test_t_interval_holds_the_truth_95_times_in_100():
    assert covered(1.0) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))
    # control: normal intervals, as often printed for three seeds, do not
    assert covered(1.96 / 4.303) < 0.85


def test_one_pair_gives_a_difference_without_interval():
    found = t_interval([0.2])
    assert found.mean == 0.2
    assert math.isnan(found.low)
    assert math.isnan(found.p)
    assert math.isnan(t_interval([]).mean)


def test_equal_differences_have_no_width():
    assert t_interval([0.0, 0.0]).p == 1.0
    assert t_interval([0.5, 0.5]).p == 0.0


def test_comparison_uses_common_seeds_alone():
    a, b = Summary({0: 1.0, 1: 2.0, 5: 100.0}), Summary({0: 0.5, 1: 1.0, 7: -100.0})
    assert paired(a, b).n == 2
    assert paired(a, b).mean == pytest.approx(0.75)


def test_pairing_removes_what_seeds_share():
    shared = np.random.default_rng(2).normal(0, 10, size=5)
    a, b = summary(*(shared + 1 + 0.1 * np.arange(5))), summary(*shared)
    assert paired(a, b).p < 0.01
    shuffled = summary(*np.roll(shared, 1))  # control: the same numbers with seeds mixed up
    assert paired(a, shuffled).p > 0.05


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    adjusted = holm([0.01, float("nan"), 0.02])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert holm([]) == []


ROWS = {
    ("a", "x"): summary(0.90, 0.91, 0.92),
    ("b", "x"): summary(0.905, 0.90, 0.925),
    ("c", "x"): summary(0.50, 0.512, 0.522),
}


def test_a_tie_is_not_a_win():
    assert best_group(ROWS, better=Better.HIGHER) == {("a", "x"), ("b", "x")}
    assert best_group(ROWS, better=Better.LOWER) == {("c", "x")}


def test_nothing_is_marked_when_seeds_separate_nothing():
    tie = {group: ROWS[group] for group in list(ROWS)[:2]}
    assert best_group(tie, better=Better.HIGHER) == set()


def test_one_seed_says_nothing():
    rows = {("a", "x"): summary(0.9), ("b", "x"): summary(0.1)}
    assert separated_from_best(rows, better=Better.HIGHER) == {}
    assert best_group(rows, better=Better.HIGHER) == set()


def test_rows_of_one_seed_are_not_marked_with_the_best():
    rows = {**ROWS, ("d", "x"): summary(0.99)}
    assert best_group(rows, better=Better.HIGHER) == best_group(ROWS, better=Better.HIGHER)


def test_two_rows_are_compared_by_the_paired_t_test():
    rng = np.random.default_rng(3)
    for _ in range(20):
        shared = rng.normal(size=4)
        a, b = shared + rng.normal(0.8, 0.5, size=4), shared + rng.normal(0, 0.5, size=4)
        verdicts = separated_from_best({("a", "x"): summary(*a), ("b", "x"): summary(*b)}, better=Better.HIGHER)
        assert any(verdicts.values()) == (reference.ttest_rel(a, b).pvalue < 0.05)


def test_a_row_below_a_worse_one_is_worse_too():
    # control: with a scatter of its own for each pair, 'b' (differences 0.2, 0.6) would tie and 'c' would not
    rows = {("a", "x"): summary(0.9, 0.9), ("b", "x"): summary(0.7, 0.3), ("c", "x"): summary(0.6, 0.601)}
    assert paired(rows["a", "x"], rows["b", "x"]).p > 0.05 > paired(rows["a", "x"], rows["c", "x"]).p
    worse = separated_from_best(rows, better=Better.HIGHER)
    assert worse["b", "x"] or not worse["c", "x"]


def false_alarms(shift: float) -> float:
    """Share of studies of four rows and three seeds in which some row is called worse than the best."""
    rng = np.random.default_rng(4)
    offsets = np.array([shift, 0, 0, 0])[:, None]
    found = 0
    for _ in range(600):
        v = rng.normal(size=(4, 3)) + 5 * rng.normal(size=3) + offsets
        found += bool(best_group({(str(i), "x"): summary(*row) for i, row in enumerate(v)}, better=Better.HIGHER))
    return found / 600


def test_equal_rows_are_seldom_told_apart():
    # at most 15 %: the best is chosen on the same data, which lifts the nominal 5 %
    assert false_alarms(shift=0.0) < 0.15
    assert false_alarms(shift=8.0) > 0.9  # control: rows that do differ are


def test_rows_that_differ_by_the_same_on_every_seed_are_told_apart():
    rows = {("a", "x"): summary(0.3, 0.5), ("b", "x"): summary(0.2, 0.4), ("c", "x"): summary(0.3, 0.5)}
    assert separated_from_best(rows, better=Better.HIGHER) == {("a", "x"): False, ("b", "x"): True, ("c", "x"): False}


def test_rows_without_a_direction_or_of_differing_bounds_are_not_ranked():
    assert best_group(ROWS, Better.NEITHER) == set()
    group = ("b", "x")
    bounded = {**ROWS, group: Summary(ROWS[group].values, upper_bound=True)}
    assert best_group(bounded, Better.HIGHER) == set() != best_group(ROWS, Better.HIGHER)
    every = {group: Summary(summary.values, upper_bound=True) for group, summary in ROWS.items()}
    assert best_group(every, Better.HIGHER) == best_group(ROWS, Better.HIGHER)


def column(study, name):
    return next(known for known in study.columns if known.name == name)


def test_summary_of_a_study(tmp_path):
    study = load(write_study(tmp_path / "study"))
    atoms, nll = column(study, "atom_stability"), column(study, "nll")
    found = summarise(study, ("bare", "dit small"), atoms)
    assert found.values == {0: 0.70, 1: 0.72}
    assert found.sampling == pytest.approx(0.004 / math.sqrt(2))
    assert summarise(study, ("bare", "dit small"), nll).sampling == pytest.approx(1.96 * 0.5 / math.sqrt(2))
    assert math.isnan(summarise(study, ("bare", "dit small"), column(study, "validity")).sampling)
    assert summarise(study, ("strict", "egnn small"), atoms).n == 1  # the failed seed is no zero
    assert summarise(study, ("strict", "dit small"), atoms).n == 0


def test_an_interval_of_its_own_goes_before_the_standard_error(tmp_path):
    folder = write_study(tmp_path / "study")
    for seed in (0, 1):
        edit_value(folder / run_name("bare", "dit", seed) / "eval.json", "nll", low=-40.0, high=-34.0)
    study = load(folder)
    assert summarise(study, ("bare", "dit small"), column(study, "nll")).sampling == pytest.approx(3 / math.sqrt(2))


def test_reference_is_the_method_that_promises_nothing(tmp_path):
    study = load(write_study(tmp_path / "study"))
    assert reference_group(study) == ("bare", "dit small")
    assert reference_group(study, "turned") == ("turned", "dit small")
    with pytest.raises(ValueError, match=r"no method 'bear'.*choose from bare"):
        reference_group(study, "bear")


def test_rows_are_compared_on_their_own_backbone_where_they_can_be():
    groups = [("bare", "dit"), ("bare", "egnn"), ("strict", "egnn"), ("strict", "e3")]
    assert reference_for(("strict", "egnn"), groups[0], groups) == ("bare", "egnn")
    assert reference_for(("strict", "e3"), groups[0], groups) == ("bare", "dit")
