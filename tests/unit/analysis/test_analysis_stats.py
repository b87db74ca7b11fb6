"""Spread, intervals and comparisons against closed forms and simulation."""

import math

import numpy as np
import pytest
from fabricated_study import edit, edit_value, run_name, write_study
from scipy import stats as reference

from analysis.load import load
from analysis.stats import (
    Summary,
    best_group,
    covariance,
    critical_range,
    difference,
    half_width,
    interaction,
    least_effect,
    p_value,
    paired,
    per_molecule,
    power,
    references,
    seeds_needed,
    separated_from_best,
    shared_part,
    summarise,
)
from bench.records.items import write_items
from bench.records.values import Better


def summary(*values):
    return Summary(dict(enumerate(values)))


def test_spread_is_the_sample_standard_deviation():
    assert summary(1.0, 3.0).sd == pytest.approx(math.sqrt(2))
    assert summary(1.0, 3.0).mean == 2.0
    assert summary(1.0, 3.0).sd != pytest.approx(1.0)  # the population's would be 1
    assert math.isnan(summary(1.0).sd)
    assert math.isnan(summary().mean)


def crossed(rng, n_seeds, n=200, of_training=0.0, of_molecules=1.0, of_both=0.5):
    """Values [S, n] of trainings on molecules that all share, true mean 0."""
    a, b = of_training * rng.normal(size=(n_seeds, 1)), of_molecules * rng.normal(size=n)
    return a + b + of_both * rng.normal(size=(n_seeds, n))


def with_items(y, **more):
    return Summary(dict(enumerate(y.mean(1).tolist())), items=dict(enumerate(y)), n_molecules=y.shape[1], **more)


def test_what_trainings_share_does_not_shrink():
    y = crossed(np.random.default_rng(0), 4, n=20_000, of_molecules=1.0, of_both=0.5)
    found = with_items(y)
    half = 1.96 * math.sqrt((1 + 0.25 / 4) / 20_000)
    assert found.arms[0] == pytest.approx(half, rel=0.03)
    assert found.arms[0] != pytest.approx(1.96 * math.sqrt(1.25 / 4 / 20_000), rel=0.5)  # control: independent runs
    assert shared_part(found.covariance) == pytest.approx(1 / 20_000, rel=0.05)


def test_without_items_all_of_the_error_counts_as_shared():
    found = Summary({0: 1.0, 1: 3.0}, errors={0: 0.3, 1: 0.3})
    assert found.within == pytest.approx((2 - 1.96 * 0.3, 2 + 1.96 * 0.3), rel=1e-4)
    assert math.isnan(Summary({0: 1.0, 1: 3.0}, errors={0: 0.3}).within[0])
    alone = Summary({0: 1.0, 1: 3.0})  # nothing known of the molecules: over trainings alone
    assert alone.interval == pytest.approx((2 - 12.706, 2 + 12.706), rel=1e-3)
    assert found.interval[0] < -0.5


def test_items_of_other_molecules_are_not_combined():
    rng = np.random.default_rng(0)
    found = Summary({0: 0.0, 1: 0.0}, {0: 0.1, 1: 0.1}, {0: rng.normal(size=50), 1: rng.normal(size=60)})
    assert found.covariance == pytest.approx(np.full((2, 2), 0.01))
    a, b = (with_items(crossed(rng, 3, n=n)) for n in (50, 60))
    assert not paired(a, b).over_molecules
    assert paired(a, a).over_molecules


def test_molecules_not_measured_by_every_training_are_left_out():
    y = np.random.default_rng(0).normal(size=(2, 100))
    y[0, 3], y[1, 7] = np.nan, np.nan
    kept = np.delete(y, [3, 7], axis=1)
    assert covariance(y) == pytest.approx(np.cov(kept) / 98)
    assert covariance(y[:, :1]) is None


def test_ratio_of_sums_is_linearised():
    rng = np.random.default_rng(0)
    atoms = rng.integers(5, 15, size=400).astype(float)
    stable = rng.binomial(atoms.astype(int), 0.8)
    found = per_molecule(np.column_stack([stable, atoms]))
    assert found.mean() == pytest.approx(stable.sum() / atoms.sum())
    chosen = rng.integers(0, 400, size=(2000, 400))
    resampled = stable[chosen].sum(1) / atoms[chosen].sum(1)
    assert found.std() / 20 == pytest.approx(resampled.std(), rel=0.08)
    assert (stable / atoms).mean() != pytest.approx(found.mean(), abs=1e-6)  # control: the mean of ratios is another


def test_a_rate_of_zero_has_an_interval():
    y = np.zeros((3, 1000))
    low, high = with_items(y, is_rate=True).within
    assert low == 0
    assert 0.003 < high < 0.005
    assert with_items(y, is_rate=True).interval[1] > 0.003
    assert with_items(y).within == (0, 0)  # control


def test_rates_stay_within_bounds_whatever_their_seeds():
    low, high = Summary({0: 0.9, 1: 1.0}, {0: 0.01, 1: 0.0}, is_rate=True, n_molecules=100).interval
    assert 0 < low < 0.95 < high <= 1


def test_interval_over_trainings_alone_equals_the_closed_form_for_two_pairs():
    # one degree of freedom is the Cauchy distribution: quantile tan(pi (p - 1/2)), p-value 1 - 2 atan(t) / pi
    found = difference([1.0, 3.0])
    half = math.tan(math.pi * 0.475) * 1.0
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert found.p == pytest.approx(1 - 2 * math.atan(2.0) / math.pi)


def test_interval_over_trainings_alone_equals_scipy():
    d = np.random.default_rng(0).normal(0.3, 1.0, size=7)
    found, test = difference(d.tolist()), reference.ttest_1samp(d, 0.0)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


@pytest.mark.parametrize("shared", [0.0, 0.3, 4.0])
def test_p_value_and_interval_agree(shared):
    for freedom in (1, 2, 6):
        half = half_width(1.0, shared, freedom)
        assert p_value(half * 1.001, 1.0, shared, freedom) < 0.05 < p_value(half * 0.999, 1.0, shared, freedom)


RATIOS = (0.0, 0.03, 0.2, 0.5, 0.8, 0.97, 1.0)  # share of the variance that shrinks with more trainings


def coverage(n_seeds, ratio, n_studies, rule=half_width):
    """Share of intervals that hold the true mean, both parts of the variance drawn as in a crossed study."""
    rng = np.random.default_rng(n_seeds)
    d, scatter = rng.normal(size=n_studies), rng.chisquare(n_seeds - 1, size=n_studies) / (n_seeds - 1)
    return np.mean([abs(x) <= rule(ratio * s, 1 - ratio, n_seeds - 1) for x, s in zip(d, scatter, strict=True)])


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_interval_covers_the_truth_at_any_ratio_of_its_parts(n_seeds):
    found = [coverage(n_seeds, ratio, 8000) for ratio in RATIOS]
    assert min(found) > 0.93
    assert max(found) < 0.97
    normal = [coverage(n_seeds, ratio, 2000, lambda b, s, _: 1.96 * math.sqrt(b + s)) for ratio in RATIOS]
    assert min(normal) < 0.9  # control
    seeds_alone = [coverage(n_seeds, ratio, 2000, lambda b, _, f: half_width(b, 0.0, f)) for ratio in RATIOS]
    assert min(seeds_alone) < 0.05  # control: what the former paired table printed


@pytest.mark.slow
@pytest.mark.parametrize("of_training", [0.0, 0.02, 0.07, 0.5])
@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_intervals_cover_the_truth_in_crossed_studies(n_seeds, of_training):
    """Values made molecule by molecule, correlation 0.8 between trainings; within 2 points of 95 %.

    Control: the former rule, which took the molecules' part of each run for independent.
    """
    rng, n = np.random.default_rng(1), 4000
    within, full, former = [], [], []
    for _ in range(n):
        a, b, e = (rng.normal(size=size) for size in ((n_seeds, 1), 200, (n_seeds, 200)))
        y = of_training * a + b + 0.5 * e
        found = with_items(y)
        conditional = of_training * a.mean()  # true mean of these trained models over all molecules
        within.append(found.within[0] <= conditional <= found.within[1])
        full.append(found.interval[0] <= 0 <= found.interval[1])
        independent = 1.96 * math.sqrt(np.trace(found.covariance)) / n_seeds
        former.append(abs(found.mean - conditional) <= independent)
    assert np.mean(within) == pytest.approx(0.95, abs=0.02)
    assert np.mean(full) == pytest.approx(0.95, abs=0.02)
    assert np.mean(former) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_intervals_of_rates_cover_the_truth_in_crossed_studies(n_seeds):
    """Molecules that are stable or not, with probabilities of their own that trainings share; 3 % on average."""
    rng, held = np.random.default_rng(2), []
    for _ in range(3000):
        own = rng.beta(0.06, 1.94, size=400)
        y = (rng.random((n_seeds, 400)) < own).astype(float)
        low, high = with_items(y, is_rate=True).within
        held.append(low <= 0.03 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_one_pair_gives_a_difference_without_interval():
    found = difference([0.2])
    assert found.mean == 0.2
    assert math.isnan(found.low)
    assert math.isnan(found.p)
    assert math.isnan(difference([]).mean)


def test_equal_differences_say_nothing_of_their_scatter():
    for values in ([0.0, 0.0], [0.5, 0.5, 0.5], [0.3 - 0.1, 0.2, 0.2]):
        found = difference(values)
        assert math.isnan(found.low)
        assert math.isnan(found.p)
        assert not found.separated
    assert difference([0.5, 0.51, 0.5]).separated  # control


def test_two_seeds_alone_separate_nothing():
    assert difference([1.0, 1.0001]).low > 0
    assert not difference([1.0, 1.0001]).separated
    assert difference([1.0, 1.0001, 1.0002]).separated  # control


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


def alarms(n_seeds, n_studies, shift=0.0, of_molecules=1.0, rule=best_group, k=4):
    """Share of studies of k rows in which some row is called worse than the best; rows differ over molecules."""
    rng, n, found = np.random.default_rng(4), 100, 0
    for _ in range(n_studies):
        of_seed, of_row = rng.normal(size=n_seeds), of_molecules * rng.normal(size=(k, 1, n))
        y = 5 * of_seed[:, None] + 0.1 * rng.normal(size=(k, n_seeds, 1)) + of_row + rng.normal(size=(k, n_seeds, n))
        y[0] += shift
        found += bool(rule({(str(i), "x"): with_items(rows) for i, rows in enumerate(y)}, Better.HIGHER))
    return found / n_studies


def without_molecules(rows, better):
    """The bold rule on the values alone, which takes molecules that all seeds share for the truth."""
    return best_group({group: Summary(row.values) for group, row in rows.items()}, better)


def test_equal_rows_are_seldom_told_apart():
    assert alarms(3, 300) < 0.1
    assert alarms(3, 100, shift=2.0) > 0.9  # control: rows that do differ are
    assert alarms(3, 200, rule=without_molecules) > 0.1  # control: the former rule


@pytest.mark.slow
@pytest.mark.parametrize("of_molecules", [0.0, 1.0])
@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_equal_rows_are_told_apart_in_5_of_100_studies(n_seeds, of_molecules):
    """Type-I error of bold within 2 points of 5 %. Control: the former rule has more where seeds share molecules."""
    assert alarms(n_seeds, 3000, of_molecules=of_molecules) == pytest.approx(0.05, abs=0.02)
    if of_molecules:
        assert alarms(n_seeds, 500, of_molecules=of_molecules, rule=former_rule) > 0.08


def former_rule(rows, better):
    """Whether any t-test against the best rejects, pooled scatter over seeds, Holm's correction."""
    v = np.array([list(row.values.values()) for row in rows.values()])
    k, n = v.shape
    freedom, means = (k - 1) * (n - 1), v.mean(axis=1)
    residuals = v - means[:, None] - v.mean(axis=0) + v.mean()
    error = math.sqrt(np.sum(residuals**2) / freedom * 2 / n)
    return 2 * reference.t.sf((means.max() - means.min()) / error, freedom) * (k - 1) < 0.05


def test_interaction_of_rows_and_molecules_is_what_seeds_share():
    rng = np.random.default_rng(0)
    of_row, noise = rng.normal(size=(5, 1, 4000)), rng.normal(size=(5, 3, 4000))
    assert interaction(list(of_row + noise)) == pytest.approx(1 / 4000, rel=0.05)
    assert interaction(list(noise)) < 0.05 / 4000
    assert interaction([noise[0], None]) == 0.0
    assert interaction([noise[0], noise[1, :, :50]]) == 0.0


def test_critical_range_of_two_means_is_students():
    for freedom in (2, 10):
        assert critical_range(2, freedom) == pytest.approx(math.sqrt(2) * reference.t.ppf(0.975, freedom), rel=1e-4)
    assert critical_range(2, math.inf) == pytest.approx(math.sqrt(2) * 1.959964, rel=1e-4)


def test_rows_that_differ_by_the_same_on_every_seed_say_nothing_of_their_scatter():
    rows = {("a", "x"): summary(0.3, 0.5), ("b", "x"): summary(0.2, 0.4), ("c", "x"): summary(0.3, 0.5)}
    assert separated_from_best(rows, better=Better.HIGHER) == {}
    assert separated_from_best({**rows, ("d", "x"): summary(0.3, 0.501)}, better=Better.HIGHER) != {}  # control


def test_power_and_seeds_needed_agree_with_simulation():
    rng, n = np.random.default_rng(0), seeds_needed(1.0, 1.0, 0.0)
    assert n == 10  # of the tables: a paired t-test at an effect of one standard deviation
    assert power(1.0, 1.0, 0.0, n) > 0.8 > power(1.0, 1.0, 0.0, n - 1)
    assert least_effect(1.0, 0.0, n) == pytest.approx(1.0, abs=0.05)
    for effect, sd, shared, n in ((1.0, 1.0, 0.0, 10), (2.0, 1.0, 0.0, 4), (1.0, 1.0, 0.1, 8), (1.0, 0.2, 0.1, 3)):
        molecules, seeds = math.sqrt(shared) * rng.normal(size=6000), sd * rng.normal(size=(6000, n))
        d = effect + molecules[:, None] + seeds
        means, between = d.mean(1), d.var(1, ddof=1) / n
        rejected = np.mean([p_value(m, b, shared, n - 1) < 0.05 for m, b in zip(means, between, strict=True)])
        assert power(effect, sd, shared, n) == pytest.approx(rejected, abs=0.04)


def test_no_number_of_seeds_helps_where_molecules_are_too_few():
    assert seeds_needed(1.0, 0.1, 1.0) is None
    assert seeds_needed(0.0, 0.1, 0.0) is None
    assert seeds_needed(1.0, 0.1, 0.0) == 3  # control


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
    assert found.is_rate
    assert found.n_molecules == 1000
    assert found.arms[0] == pytest.approx(0.004, rel=0.02)
    assert summarise(study, ("bare", "dit small"), nll).arms[0] == pytest.approx(1.96 * 0.5, rel=1e-4)
    assert math.isnan(summarise(study, ("bare", "dit small"), column(study, "validity")).arms[0])
    assert summarise(study, ("strict", "egnn small"), atoms).n == 1  # the failed seed is no zero
    assert summarise(study, ("strict", "dit small"), atoms).n == 0


def test_items_of_a_study_are_read_and_damaged_ones_told(tmp_path):
    folder = write_study(tmp_path / "study")
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        path = folder / run_name("bare", "dit", seed)
        write_items(path / "test_items.npz", {"nll": rng.normal(size=60)})
        write_items(path / "sample_items.npz", {"atom_stability": np.tile([3.0, 4.0], (50, 1))})
    study = load(folder)
    assert not study.problems
    found = summarise(study, ("bare", "dit small"), column(study, "nll"))
    assert [len(items) for items in found.items.values()] == [60, 60]
    assert summarise(study, ("bare", "dit small"), column(study, "atom_stability")).n_molecules == 50
    (folder / run_name("bare", "dit", 0) / "test_items.npz").write_bytes(b"no zip")
    study = load(folder)
    assert len(study.problems) == 1
    assert "values of single molecules left out" in study.problems[0]
    assert len(summarise(study, ("bare", "dit small"), column(study, "nll")).items) == 1


def test_the_standard_error_goes_before_the_interval_and_a_cut_end_counts_for_nothing(tmp_path):
    folder = write_study(tmp_path / "study")
    for seed in (0, 1):
        edit_value(folder / run_name("bare", "dit", seed) / "eval.json", "validity", value=0.99, low=0.98, high=1.0)
        edit_value(folder / run_name("bare", "dit", seed) / "eval.json", "novelty", value=1.0, low=0.96, high=1.0)
    study = load(folder)
    assert summarise(study, ("bare", "dit small"), column(study, "nll")).errors == {0: 0.5, 1: 0.5}
    found = {
        name: summarise(study, ("bare", "dit small"), column(study, name)).errors[0] for name in ("validity", "novelty")
    }
    assert found == pytest.approx({"validity": 0.01 / 1.96, "novelty": 0.04 / 1.96}, rel=1e-3)  # not half of it


def test_reference_is_the_same_backbone_without_the_strategy(tmp_path):
    folder = write_study(tmp_path / "study")
    bare, turned, later = (("bare", "dit small"), ("turned", "dit small"), ("turned_later", "dit small"))
    strict = ("strict", "egnn small")
    assert references(load(folder)) == {turned: bare, later: bare}  # older records: the one that promises nothing
    assert references(load(folder), "turned") == {bare: turned, later: turned}
    assert references(load(folder), "strict/egnn small") == dict.fromkeys((bare, turned, later), strict)
    with pytest.raises(ValueError, match=r"no evaluated row 'bear'.*choose a method \(bare"):
        references(load(folder), "bear")
    for path in folder.glob("*/manifest.json"):
        edit(path, baseline=path.parent.name.startswith("turned-"))
    assert references(load(folder)) == {bare: turned, later: turned}
    edit(folder / run_name("turned_later", "dit", 0) / "manifest.json", backbone__size="tiny")
    narrower = ("turned_later", "dit tiny")  # a smaller network of the same kind, where it is the only row
    assert references(load(folder)) == {bare: turned, narrower: turned}
