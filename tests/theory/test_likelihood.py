"""The variational bound: oracle values for Gaussian data, its limits, and the decoder's feature term (spec 1.5)."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import (
    ELEMENTS,
    Z_MAX,
    core,
    drawn_times,
    generator,
    likelihood_values,
    model_of,
    relative_error,
    run_config,
    states,
    structures,
    subset,
    z_score,
)
from torch import Tensor

from bench.diffusion import likelihood
from bench.diffusion.likelihood import Times
from bench.diffusion.parametrisation import Predict
from bench.diffusion.process import Process, squared_error
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.state import State
from bench.measure.likelihood import per_molecule
from bench.records.values import Value
from bench.registry import measures
from bench.run.evaluate import subject_of
from bench.structures.dataset import DataSet
from bench.structures.structures import Structures
from bench.tasks.denovo import Denovo

# standard deviation of the data -> bound in nats per dimension at T = 1000, and the data's entropy
ORACLE = {0.5: (1.103939, 0.725791), 1.0: (1.801073, 1.418939), 2.0: (2.497228, 2.112086)}


def gaussian_denoiser(c: float) -> Predict:
    """Optimal noise estimate for positions N(0, c^2) on U and features that are zero."""

    def predict(z_t: State, level: Level) -> State:
        alpha, sigma = z_t.per_atom(level.alpha)[:, None], z_t.per_atom(level.sigma)[:, None]
        return State({"x": sigma * z_t.x / (alpha**2 * c**2 + sigma**2), "h": z_t.h / sigma}, z_t.layout)

    return predict


def total(terms: dict[str, Tensor]) -> Tensor:
    """The bound on positions: features are another test's."""
    return torch.stack([terms[name] for name in ("diffusion", "reconstruction", "prior", "constants")]).sum(0)


def quadrature_bound(c_data: float, c_denoiser: float) -> float:
    """The bound per dimension, exactly: each time 1..T once, expectations by a two-point rule.

    The error of a linear denoiser is quadratic in (x0, eps), so states with |x0|^2 = c^2 d and |eps|^2 = d and both
    signs of eps give its mean exactly.
    """
    task, n = core(), 5
    T, d = task.process.path.n_levels, 3 * (n - 1)
    layout = Layout([n] * (2 * T))

    def with_norm(seed: int, norm: float) -> Tensor:
        x = torch.randn(n, 3, generator=generator(seed), dtype=torch.float64)
        x = x - x.mean(0)
        return (x * norm / x.norm()).repeat(2 * T, 1)

    zero = torch.zeros(2 * T * n, task.n_features, dtype=torch.float64)
    x0 = State({"x": with_norm(0, c_data * d**0.5), "h": zero}, layout)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(T * n)[:, None]
    eps = State({"x": sign * with_norm(1, d**0.5), "h": zero}, layout)
    times = torch.arange(1, T + 1).repeat(2)
    return (
        total(likelihood.bound_terms(task.process, x0, gaussian_denoiser(c_denoiser), times, eps, eps)).mean().item()
        / d
    )


@pytest.mark.parametrize("c", ORACLE)
def test_bound_of_gaussian_data_has_the_oracle_value(c):
    """T3: 1.103939 / 1.801073 / 2.497228 nats per dimension for c = 0.5 / 1 / 2, summed over all times."""
    value, entropy = ORACLE[c]
    assert quadrature_bound(c, c) == pytest.approx(value, abs=1e-4)
    assert value > entropy


def test_bound_of_a_denoiser_that_is_not_optimal_is_larger():
    """T3: a denoiser for another width is told apart, and lies above."""
    assert quadrature_bound(1.0, 1.3) > ORACLE[1.0][0] + 1e-3
    assert quadrature_bound(1.0, 0.8) > ORACLE[1.0][0] + 1e-3


def drawn_bounds(c: float, n_draws: int, seed: int, times: Times, weighted: bool = True) -> Tensor:
    """`likelihood.bound` per dimension at random times and noise, of Gaussian data.

    Args:
        weighted: whether a time counts by its weight; False is a control.
    """
    task, n = core(), 3
    rng = generator(seed)
    noise = task.process.noise(Layout([n] * n_draws), rng, torch.float64)
    x0 = noise.replace(x=c * noise.x, h=torch.zeros_like(noise.h))
    drawn = drawn_times(task.process, n_draws, seed + 1, times)
    if not weighted:
        drawn = replace(drawn, weight=torch.ones_like(drawn.weight))
    terms = likelihood.bound(task.process, x0, gaussian_denoiser(c), drawn, generator(seed + 2))
    return total(terms) / (3 * (n - 1))


@pytest.mark.parametrize("times", Times)
def test_bound_at_random_times_is_unbiased(times):
    """T3: the Monte-Carlo path of the bound has the oracle's mean, |z| < 5, at uniform and importance-sampled times;
    a value 20 % off is refused."""
    draws = drawn_bounds(1.0, 200_000, seed=4, times=times)
    assert z_score(draws, ORACLE[1.0][0]) < Z_MAX
    assert z_score(draws, 1.2 * ORACLE[1.0][0]) > Z_MAX


def test_importance_sampled_times_without_their_weights_are_refused():
    """T3: the same draws, each counted alike, have another mean; uniform times have no need of weights."""
    assert z_score(drawn_bounds(1.0, 20_000, 4, Times.IMPORTANCE, weighted=False), ORACLE[1.0][0]) > Z_MAX
    assert drawn_times(core().process, 100, 0, Times.UNIFORM).weight.sub(1).abs().max() < 1e-12


@pytest.mark.parametrize("times", Times)
def test_weighted_mean_over_all_times_is_the_plain_one(times):
    """T3: sum_i p(i) w(i) f(i) = mean_i f(i), each time once, for the terms of a network; no weight exceeds 1 / 0.2."""
    task = core(n_levels=40)
    path, model = task.process.path, model_of("plain", "egnn")
    x0 = task.encode(structures([5] * 40), dtype=torch.float64)
    eps = task.process.noise(x0.layout, generator(1), torch.float64)
    every = torch.arange(1, 41)
    terms = likelihood.bound_terms(task.process, x0, model.denoiser, every, eps, eps)["diffusion"]
    p = likelihood.time_probabilities(path, times)
    middle = p.cumsum(0) - 0.5 * p
    drawn = likelihood.times_at(path, times, middle)
    assert drawn.i.tolist() == every.tolist()
    assert (p * drawn.weight * terms).sum().item() == pytest.approx(terms.mean().item(), rel=1e-12)
    assert drawn.weight.max() <= 1 / likelihood.UNIFORM_SHARE + 1e-9
    assert (terms.mean() - (p * terms).sum()).abs() > 1e-3 * terms.mean() or times is Times.UNIFORM  # control


def test_stratified_numbers_are_uniform_and_one_in_each_part():
    """T3: u of one molecule over many passes is uniform, and parts do not go with molecules."""
    many = torch.stack([likelihood.stratified(8, generator(seed)) for seed in range(4000)])
    assert torch.equal((8 * many).floor().sort(1).values, torch.arange(8.0, dtype=torch.float64).expand(4000, 8))
    for moment in (1, 2):
        assert z_score(many[:, 0] ** moment, 1 / (moment + 1)) < Z_MAX
    assert z_score((many[:, 0] - 0.5) * (many[:, 1] - 0.5), -1 / 12 / 7 * (1 - 1 / 64)) < Z_MAX  # of any two, slightly
    assert z_score(many[:, 0] ** 2, 0.3) > Z_MAX


def spread(times: Times, stratify: bool, n: int = 200, n_repeats: int = 100) -> float:
    """Standard deviation of the mean bound of n molecules."""
    task = core()
    x0 = task.process.noise(Layout([3] * n), generator(0), torch.float64)
    x0 = x0.replace(h=torch.zeros_like(x0.h))
    means = []
    for seed in range(n_repeats):
        rng = generator(seed)
        u = likelihood.stratified(n, rng) if stratify else torch.rand(n, generator=rng, dtype=torch.float64)
        drawn = likelihood.times_at(task.process.path, times, u)
        means.append(total(likelihood.bound(task.process, x0, gaussian_denoiser(0.02), drawn, rng)).mean())
    return torch.stack(means).std().item()


def test_importance_sampling_and_stratification_lower_the_variance():
    """Of a denoiser that errs at little noise most, as trained ones do: by far, and by some more."""
    uniform, importance = spread(Times.UNIFORM, False), spread(Times.IMPORTANCE, False)
    assert importance < uniform / 2
    assert spread(Times.UNIFORM, True) < 0.9 * uniform


def knowing(x0: State) -> Predict:
    """A network that knows the clean data and so returns the true noise."""

    def predict(z_t: State, level: Level) -> State:
        alpha, sigma = z_t.per_atom(level.alpha)[:, None], z_t.per_atom(level.sigma)[:, None]
        return z_t.combine(x0, lambda z, clean: (z - alpha * clean) / sigma)

    return predict


def test_perfect_network_leaves_prior_and_constants_alone():
    """T4: diffusion and reconstruction terms vanish, C0 = 3 (N-1) (gamma_0 / 2 + 0.918939)."""
    task, (x0, _, _, _) = core(), states()
    terms = likelihood.bound(task.process, x0, knowing(x0), drawn_times(task.process, len(x0), 0), generator(1))
    assert terms["diffusion"].abs().max() < 1e-9
    assert terms["reconstruction"].abs().max() < 1e-9
    expected = 3 * (x0.n_atoms.double() - 1) * (0.5 * -11.512915464924779 + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(terms["constants"], expected, rtol=1e-9, atol=0)


def test_imperfect_network_does_not():
    """T4: the terms that vanish above do not for a network that returns zero."""
    task, (x0, _, _, _) = core(), states()
    times = drawn_times(task.process, len(x0), 0)
    terms = likelihood.bound(task.process, x0, lambda z, level: z.replace(x=0 * z.x, h=0 * z.h), times, generator(1))
    assert (terms["diffusion"] > 1).all()
    assert (terms["reconstruction"] > 0.1).all()


def test_kl_of_the_prior_is_that_of_two_gaussians():
    """T4: KL_T against torch.distributions, position by position on 3(N-1) dimensions and features on N F."""
    task, (x0, _, _, _) = core(), states(sizes=(6,))
    level = task.process.path.at(torch.tensor([1000]), torch.float64)
    unit = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)

    def kl(mean: Tensor) -> Tensor:
        return torch.distributions.kl_divergence(torch.distributions.Normal(mean, level.sigma), unit).sum()

    # an orthonormal basis of U: the first N - 1 right singular vectors of the projection
    basis = torch.linalg.svd(torch.eye(6, dtype=torch.float64) - 1 / 6)[2][:5]
    expected = kl(level.alpha * (basis @ x0.x)) + kl(level.alpha * x0.h)
    # sigma_T^2 - 1 - log sigma_T^2 is a small difference of numbers near one
    torch.testing.assert_close(likelihood.prior_kl(task.process, x0)[0], expected, rtol=1e-6, atol=1e-12)


def exact_features(task: Denovo, shift: float = 0.0) -> Tensor:
    """-log p(h | z_0) per atom where z_0 = alpha_0 h, and z_0's charge off by `shift`."""
    x0 = states()[0]
    level = task.process.path.at(torch.zeros(len(x0), dtype=torch.int64), torch.float64)
    z_0 = task.process.noising(x0, x0.replace(x=0 * x0.x, h=0 * x0.h), level)
    h = z_0.h.clone()
    h[:, -1] += shift / task.cfg.scale_charge
    return -task.process.decoder.feature_log_likelihood(x0, z_0.replace(h=h), level) / x0.n_atoms


def test_exact_features_cost_nothing():
    """T5: -log p(cat) - log p(int) < 1e-6 per atom for z_0 = alpha_0 h."""
    assert exact_features(core()).abs().max() < 1e-6


def test_features_off_by_one_cost_the_floor():
    """T5: a charge one off costs -log 1e-10 per atom, a wrong element likewise."""
    torch.testing.assert_close(
        exact_features(core(), shift=1.0), torch.full((6,), -math.log(1e-10), dtype=torch.float64)
    )
    task, x0 = core(), states()[0]
    level = task.process.path.at(torch.zeros(len(x0), dtype=torch.int64), torch.float64)
    wrong = x0.replace(h=torch.cat([x0.h[:, :5].roll(1, dims=1), x0.h[:, 5:]], dim=1))
    cost = -task.process.decoder.feature_log_likelihood(x0, wrong, level) / x0.n_atoms
    torch.testing.assert_close(cost, torch.full((6,), -math.log(1e-10), dtype=torch.float64), rtol=1e-6, atol=0)


def test_an_undecided_element_costs_its_share():
    """T5: with all one-hot channels alike the categorical term is -log(1 / n_elements): probabilities sum to one."""
    task, x0 = core(include_charges=False), states(sizes=(3,))[0]
    x0 = x0.replace(h=x0.h[:, :5])
    level = task.process.path.at(torch.tensor([0]), torch.float64)
    cost = -task.process.decoder.feature_log_likelihood(x0, x0.replace(h=torch.zeros_like(x0.h)), level)
    torch.testing.assert_close(cost, torch.tensor([3 * math.log(5)], dtype=torch.float64))


@pytest.mark.parametrize("times", Times)
def test_times_of_the_bound_occur_as_often_as_their_weights_say(times):
    """T3: each of 1..T with probability 1 / (T weight), neither 0 nor beyond; the reconstruction term is asked at 0."""
    task, n = core(n_levels=10), 20_000
    x0 = task.encode(structures([1] * n))
    seen: list[Tensor] = []

    def predict(z_t: State, level: Level) -> State:
        seen.append((10 * level.t).round().long())
        return z_t

    drawn = drawn_times(task.process, n, 0, times)
    likelihood.bound(task.process, x0, predict, drawn, generator(1))
    assert torch.equal(seen[0], drawn.i)
    assert set(drawn.i.tolist()) == set(range(1, 11))
    for i in range(1, 11):
        expected = n / (10 * drawn.weight[drawn.i == i][0].item())
        assert abs((drawn.i == i).sum().item() - expected) < 2  # stratified: hardly by chance
    assert not seen[1].any()


def data_set(train_sizes: list[int]) -> DataSet:
    test = structures([6] * 4, seed=2)
    return DataSet("synthetic", "synthetic", "tests", ELEMENTS, structures(train_sizes, seed=1), test, test)


def test_size_distribution_enters_the_likelihood_as_it_is():
    """T6: a uniform histogram over m sizes adds log m to the NLL, exactly; a skewed one something else."""
    model = model_of("plain", "egnn", dtype=torch.float32)

    def measured(train_sizes: list[int]) -> dict[str, float]:
        return {name: v.value for name, v in likelihood_values(model, data_set(train_sizes)).items() if v.value}

    certain, uniform, skewed = measured([6, 6]), measured([3, 4, 5, 6]), measured([3, 3, 3, 6, 6])
    assert uniform["nll"] - certain["nll"] == pytest.approx(math.log(4), rel=1e-9)
    assert skewed["nll"] - certain["nll"] == pytest.approx(math.log(5 / 2), rel=1e-9)
    terms = [value for name, value in certain.items() if name.startswith("nll_")]
    assert certain["nll"] == pytest.approx(sum(terms), rel=1e-9)


def test_items_are_free_of_what_the_times_add_and_keep_the_mean():
    """Of draws whose size is that of their time, and of draws that have nothing to do with it."""
    rng = np.random.default_rng(0)
    u = np.stack([likelihood.stratified(500, generator(seed)).numpy() for seed in range(4)])
    noise = rng.normal(size=u.shape)
    steep = per_molecule({"diffusion": 1000 * np.floor(20 * u), "features": noise}, u)
    flat = per_molecule({"diffusion": 0 * u, "features": noise}, u)
    assert steep.mean() == pytest.approx((1000 * np.floor(20 * u) + noise).mean(), rel=1e-12)
    assert steep.std() == pytest.approx(flat.std(), rel=1e-9)
    assert flat.std() == pytest.approx(0.5, rel=0.1)
    assert (1000 * np.floor(20 * u)).mean(0).std() > 1000  # control: as the draws are


def test_sizes_that_training_lacks_are_counted_and_left_out():
    """The mean is over the other molecules, whose times and noise stay; without any there is no value."""
    model = model_of("plain", "egnn", dtype=torch.float32)
    test = structures([6, 4, 5, 6, 3], seed=2)

    def measured(train_sizes: list[int]) -> dict[str, Value]:
        train = structures(train_sizes, seed=1)
        data = DataSet("synthetic", "synthetic", "tests", ELEMENTS, train, test, test)
        return likelihood_values(model, data)

    every, some, none = measured([3, 4, 5, 6]), measured([3, 4, 6, 6]), measured([8, 9])
    of_every, of_some = np.array(every["nll"].items), np.array(some["nll"].items)
    assert np.isnan(of_some).tolist() == [False, False, True, False, False]
    assert not np.isnan(of_every).any()
    assert some["nll"].value == pytest.approx(np.nanmean(of_some))
    assert some["nll"].definition == (
        "variational bound on 4 test molecules, 5 times each; 1 of sizes that training lacks are left out"
    )
    assert "left out" not in every["nll"].definition
    assert (none["nll"].value, set(none)) == (None, {"nll"})


def test_all_runs_have_the_same_times_and_noise():
    """Of one seed and data set, whatever the network and its draws: differences of runs are paired; another seed has
    others, and so have the passes of a run."""

    def asked(backbone: str, method: str, seed: int = 0) -> list[Tensor]:
        model = model_of(method, backbone, dtype=torch.float32)
        data = data_set([3, 4, 5, 6])
        subject = replace(subject_of(run_config("plain", "egnn"), model, data), seed=seed)
        seen: list[Tensor] = []

        def predict(z_t: State, level: Level, rng: torch.Generator) -> State:
            seen.append(torch.cat([z_t.x.flatten(), z_t.h.flatten(), level.t]))
            return model.predict(z_t, level, rng)

        entry = measures["likelihood"]
        entry.build(replace(subject, predict=predict), entry.config(n_passes=2))
        return seen

    first, second = asked("egnn", "plain"), asked("dit", "symdiff")
    assert len(first) == len(second) == 6  # two of each pass, and two that find out whether predictions are stochastic
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[4])
    assert not torch.equal(first[0], asked("egnn", "plain", seed=1)[0])


def carbon(sizes: Any, seed: int) -> Structures:
    """Molecules of carbon with positions drawn from N(0, 1)."""
    rng = np.random.default_rng(seed)
    return Structures.from_list([(np.full(n, 6), rng.normal(size=(n, 3)).astype(np.float32)) for n in sizes])


@pytest.mark.slow
def test_the_standard_error_covers():
    """Test molecules and times are drawn anew 400 times: 95 % intervals hold the exact bound within 3 points of 95 %
    of the time; intervals of half the width do not."""
    exact = {n: 3 * (n - 1) * quadrature_bound(1.0, 1.3) + math.log(2) for n in (3, 8)}
    model, entry = model_of("plain", "egnn", dtype=torch.float32), measures["likelihood"]
    one = model.task.encode(carbon([1], 0))

    def predict(z_t: State, level: Level, rng: torch.Generator) -> State:
        alpha, sigma = z_t.per_atom(level.alpha)[:, None], z_t.per_atom(level.sigma)[:, None]
        return gaussian_denoiser(1.3)(z_t, level).replace(h=(z_t.h - alpha * one.h) / sigma)

    deviations = []
    for seed in range(400):
        test = carbon(np.random.default_rng(seed).choice([3, 8], 120), seed)
        data = DataSet("carbon", "carbon", "tests", ELEMENTS, carbon([3, 8], 0), test, test)
        subject = subject_of(run_config("plain", "egnn"), model, data)
        nll = entry.build(replace(subject, seed=seed, predict=predict), entry.config(n_passes=2))[0]
        assert nll.value is not None
        assert nll.sem is not None
        deviations.append(abs(nll.value - (exact[3] + exact[8]) / 2) / nll.sem)
    assert abs(np.mean(np.array(deviations) < 1.96) - 0.95) < 0.03
    assert np.mean(np.array(deviations) < 0.98) < 0.8  # control


def test_terms_of_a_molecule_ignore_the_rest_of_the_batch():
    """T9: every term of the bound is the same alone and in company; the times of another molecule change it."""
    task, (x0, eps, _, _) = core(), states()
    eps_0 = task.process.noise(x0.layout, generator(3), torch.float64)
    model, times = model_of("plain", "egnn"), torch.tensor([1000, 1, 500, 20, 999, 300])
    together = likelihood.bound_terms(task.process, x0, model.denoiser, times, eps, eps_0)
    for i in range(len(x0)):
        alone = likelihood.bound_terms(
            task.process, subset(x0, [i]), model.denoiser, times[i : i + 1], subset(eps, [i]), subset(eps_0, [i])
        )
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][i : i + 1], rtol=1e-9, atol=1e-12)
    exchanged = likelihood.bound_terms(task.process, x0, model.denoiser, times.flip(0), eps, eps_0)
    assert relative_error(exchanged["diffusion"], together["diffusion"]) > 0.1


@pytest.mark.parametrize("i", [0, 400])
def test_a_batch_of_one_has_the_loss_that_it_has_in_a_batch(i):
    """T39: one molecule alone, at t = 0 and t > 0; with `edm_compat` the same comparison fails."""
    x0, eps, _, _ = states()
    model = model_of("plain", "dit")

    def difference(process: Process) -> float:
        def loss(x0: State, eps: State) -> Tensor:
            level = process.path.at(torch.full((len(x0),), i), torch.float64)
            both = process.noised(x0, eps, level)
            eps_hat = model.denoiser(both.z_t, level)
            return process.training_loss(squared_error(eps_hat, eps), eps_hat, eps, both)

        together = loss(x0, eps)
        alone = torch.cat([loss(subset(x0, [k]), subset(eps, [k])) for k in range(len(x0))])
        assert alone.shape == (len(x0),)
        return relative_error(alone, together)

    assert difference(core().process) < 1e-9
    assert difference(core(edm_compat=True).process) > 1e-3


def test_loss_weighs_each_atom_alike():
    """T39: the loss is the error over (3 + F) times the data's mean atom count, at t = 0 too."""
    task, (x0, eps, _, z_t) = core(), states()
    eps_hat = z_t
    for i in (0, 700):
        level = task.process.path.at(torch.full((len(x0),), i), torch.float64)
        error = squared_error(eps_hat, eps)
        at_zero = 0.5 * x0.sum_over_atoms(
            (eps_hat.x - eps.x).square().sum(1)
        ) - task.process.decoder.feature_log_likelihood(x0, z_t, level)
        both = Noised(x0, eps, z_t, level, task.process.spaces)
        loss = task.process.training_loss(error, eps_hat, eps, both)
        torch.testing.assert_close(loss * (3 + task.n_features) * task.process.mean_atoms, error if i else at_zero)


def test_noise_has_unit_covariance_on_the_centre_of_mass_free_space():
    """T7: E eps_i . eps_j = 3 (delta_ij - 1/N), trace 3(N-1); unprojected noise is refused."""
    n, n_draws = 4, 50_000
    eps = core().process.noise(Layout([n] * n_draws), generator(0), torch.float64)
    projection = torch.eye(n, dtype=torch.float64) - 1 / n

    def deviation(x: Tensor) -> float:
        x = x.view(n_draws, n, 3)
        return max(
            z_score(torch.einsum("bik,bjk->bij", x, x), 3 * projection), z_score(x.square().sum((1, 2)), 3.0 * (n - 1))
        )

    assert deviation(eps.x) < Z_MAX
    assert deviation(torch.randn(n * n_draws, 3, generator=generator(1), dtype=torch.float64)) > Z_MAX
    assert eps.sum_over_atoms(eps.x).abs().max() < 1e-12
    assert z_score(eps.h.square(), 1.0) < Z_MAX


@pytest.mark.parametrize("include_charges", [True, False])
def test_every_element_can_be_sampled(include_charges):
    """T38: random final states decode to every element, with and without a charge channel."""
    task = core(include_charges=include_charges)
    noise = task.process.noise(Layout([20] * 20), generator(0))
    assert set(task.decode(noise).numbers) == set(ELEMENTS)
    # control: the published slice, which takes the last channel for a charge whether or not there is one
    assert noise.h[:, :-1].argmax(1).max() == (4 if include_charges else 3)


def test_encoding_and_decoding_are_inverse():
    """T38: real molecules survive encode and decode, with or without a charge channel; unknown elements are refused."""
    real = structures()
    for include_charges in (True, False):
        task = core(include_charges=include_charges)
        state = task.encode(real)
        back = task.decode(state)
        assert np.array_equal(back.numbers, real.numbers)
        assert np.array_equal(back.ptr, real.ptr)
        shift = torch.from_numpy(real.positions) - torch.from_numpy(back.positions)
        assert (shift - state.per_atom(state.mean_over_atoms(shift))).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"\[16\] are not among"):
        core().encode(Structures.from_list([(np.array([6, 16]), np.eye(3, dtype=np.float32)[:2])]))


def test_noise_target_of_another_x0_keeps_the_state():
    """The noise that goes with a target T gives the same z_t: alpha T + sigma eps' = alpha x0 + sigma eps."""
    task, (x0, eps, level, z_t) = core(), states()
    T = x0.replace(x=x0.centre(x0.x.roll(1, dims=0)))
    both = task.process.noised(x0, eps, level)
    same = task.process.noising(T, both.noise_of(T), level)
    assert relative_error(same, z_t) < 1e-9
    assert relative_error(task.process.noising(T, eps, level), z_t) > 1e-2
    assert both.noise_of(x0) is both.noise
    assert torch.equal(both.noise.x, eps.x)
    assert relative_error(both.clean_of(both.noise_of(T)), T) < 1e-9
    assert both.clean_of(both.noise) is x0
