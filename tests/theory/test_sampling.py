"""Ancestral sampling against Gaussian data, whose exact denoiser and exact law at every step are known (spec 1.6)."""

from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support import (
    ELEMENTS,
    ELEMENTS_OF_GROUPS,
    FACTS,
    GROUP_NAMES,
    Z_MAX,
    atoms_of,
    core,
    covering,
    fitting_pairs,
    generator,
    model_of,
    orthogonal,
    recorded_draws,
    relative_error,
    replayed_draws,
    run_config,
    z_score,
)

from bench.backbones import e3
from bench.config.run import SampleConfig
from bench.diffusion.parametrisation import Predict
from bench.diffusion.paths import polynomial_2, time_grid
from bench.diffusion.process import Process
from bench.diffusion.sampler import Sampler, reverse_coefficients, sample
from bench.geometry.groups import O3, SO3, RotationGroup, Translated
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.registry import methods
from bench.run.contract import for_molecules
from bench.run.model import Model
from bench.run.sample import in_order, sample_prompt
from bench.run.train import training_loss
from bench.streams import MoleculeGenerator, Streams, draw
from bench.structures.structures import Structures
from bench.symmetry.contract import Guarantee


def gaussian_denoiser(c: float) -> Predict:
    """Optimal noise estimate for positions and features N(0, c^2)."""

    def predict(z_t: State, level: Level) -> State:
        alpha, sigma = z_t.per_atom(level.alpha)[:, None], z_t.per_atom(level.sigma)[:, None]
        k = sigma / (alpha**2 * c**2 + sigma**2)
        return State({"x": k * z_t.x, "h": k * z_t.h}, z_t.layout)

    return predict


def exact_variance(c: float, n_steps: int) -> tuple[float, float]:
    """Variances of sampled positions and features by recursion over the steps, from the posterior q(z_s | z_t, x0_hat).

    With x0_hat = E[x0 | z_t] the posterior mean is a z_t + b x0_hat; written from Bayes' rule and the schedule's
    definition, not from the sampler's formula.
    """
    gamma = polynomial_2(1000)
    alpha2, sigma2 = 1 / (1 + np.exp(gamma)), 1 / (1 + np.exp(-gamma))
    variance = 1.0
    grid = time_grid(1000, n_steps)
    for t, s in pairwise(grid):
        ratio = np.sqrt(alpha2[t] / alpha2[s])
        noise = sigma2[t] - ratio**2 * sigma2[s]
        posterior = 1 / (1 / sigma2[s] + ratio**2 / noise)
        x0_hat = np.sqrt(alpha2[t]) * c**2 / (alpha2[t] * c**2 + sigma2[t])
        mean = posterior * (ratio / noise + np.sqrt(alpha2[s]) * x0_hat / sigma2[s])
        variance = mean**2 * variance + posterior
    keep = (1 - sigma2[0] / (alpha2[0] * c**2 + sigma2[0])) / np.sqrt(alpha2[0])
    return keep**2 * variance + sigma2[0] / alpha2[0], variance


def sampled_squares(
    c: float, n_molecules: int, n_steps: int, predict: Predict | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of sampled positions (unit variance on U) and features, one row per molecule of two atoms."""
    layout = Layout([2] * n_molecules)
    state = sample(core().process, predict or gaussian_denoiser(c), layout, n_steps, generator(0))
    # two atoms: U is spanned by (x_1 - x_2) / sqrt 2
    difference = (state.x[0::2] - state.x[1::2]) / 2**0.5
    return difference.square(), state.h.view(n_molecules, -1).square()


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n_steps", [1, 7, 40])
def test_few_steps_have_the_variance_of_the_recursion(c, n_steps):
    """T37: every step's coefficients, by the exact variance after n steps, |z| < 5."""
    positions, features = sampled_squares(c, 4000, n_steps)
    of_positions, of_features = exact_variance(c, n_steps)
    assert z_score(positions.mean(1), of_positions) < Z_MAX
    assert z_score(features.mean(1), of_features) < Z_MAX


def test_wrong_coefficients_are_noticed():
    """T37: the same comparison refuses a denoiser 10 % off, and the variance of another number of steps."""
    off = gaussian_denoiser(1.0)

    def wrong(z: State, level: Level) -> State:
        eps_hat = off(z, level)
        return State({"x": 1.1 * eps_hat.x, "h": 1.1 * eps_hat.h}, z.layout)

    of_positions, _ = exact_variance(1.0, 40)
    assert z_score(sampled_squares(1.0, 4000, 40, wrong)[0].mean(1), of_positions) > Z_MAX
    assert z_score(sampled_squares(0.5, 4000, 40)[0].mean(1), exact_variance(0.5, 7)[0]) > Z_MAX


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_recursion_over_all_levels_gives_the_data_back(c):
    """T37: with T = 1000 steps the exact variance is c^2 within 2 %; with 20 steps it is not."""
    assert exact_variance(c, 1000)[0] == pytest.approx(c**2, rel=0.02)
    assert c == 1.0 or exact_variance(c, 20)[0] != pytest.approx(c**2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("c", [0.5, 2.0])
def test_samples_of_the_exact_denoiser_have_the_variance_of_the_data(c):
    """T37: 2e4 samples, T = 1000 steps: variance within 2 % of c^2, for positions and features."""
    for squares in sampled_squares(c, 20_000, 1000):
        assert squares.mean().item() == pytest.approx(c**2, rel=0.02)
        assert squares.mean().item() != pytest.approx(1.05 * c**2, rel=0.02)


def test_time_grid_is_even_and_ends_at_zero():
    assert time_grid(1000, 1000) == list(range(1000, -1, -1))
    assert time_grid(1000, 4) == [1000, 750, 500, 250, 0]
    for n_steps in (3, 7, 999):
        grid = time_grid(1000, n_steps)
        assert (grid[0], grid[-1], len(grid)) == (1000, 0, n_steps + 1)
        assert {a - b for a, b in pairwise(grid)} <= {1000 // n_steps, -(-1000 // n_steps)}
    for n_steps in (0, 1001):
        with pytest.raises(ValueError, match=r"1\.\.1000"):
            time_grid(1000, n_steps)


def test_sampling_calls_the_network_once_a_step_and_once_more():
    calls, steps = [], []
    predict = gaussian_denoiser(1.0)

    def counted(z: State, level: Level) -> State:
        calls.append(round(level.t[0].item() * 1000))
        return predict(z, level)

    sample(core().process, counted, Layout([3]), 4, generator(0), lambda: steps.append(1))
    assert calls == [1000, 750, 500, 250, 0]
    assert len(steps) == 5


# ---------------------------------------------------------------------- what a sample depends on


@pytest.mark.parametrize("method", ["plain", "symdiff"])
def test_samples_are_a_function_of_the_seed(method):
    """T37: equal seeds give equal samples bit for bit, whatever torch's global generator holds; other seeds do not."""
    model = model_of(method, "dit", dtype=torch.float32)
    (prompt,) = model.task.prompts(6, 6, seed=3)

    def of_seed(seed: int) -> Structures:
        return sample_prompt(model, prompt, SampleConfig(n_steps=5, seed=seed))

    first = of_seed(3)
    torch.manual_seed(123)
    again = of_seed(3)
    assert np.array_equal(first.positions, again.positions)
    assert np.array_equal(first.numbers, again.numbers)
    assert not np.array_equal(first.positions, of_seed(4).positions)


@pytest.mark.parametrize("method", ["plain", "symdiff", "frames", "orbit_average", "symdiff_haar"])
@pytest.mark.parametrize("sampler", [Sampler.ANCESTRAL, Sampler.EULER])
def test_a_molecule_is_the_same_whatever_their_number_and_batch(method, sampler):
    """T37: sizes exactly, positions to rounding. Controls: one stream for the batch, and another seed, move it."""
    model = model_of(method, "dit", dtype=torch.float32)

    def first_five(n: int, batch_size: int, seed: int = 3) -> Structures:
        prompts = model.task.prompts(n, batch_size, seed)
        settings = SampleConfig(n_steps=5, seed=seed, sampler=sampler)
        parts = [sample_prompt(model, prompt, settings) for prompt in prompts]
        return in_order(prompts, parts).select(np.arange(5))

    wanted = first_five(5, 5)
    for n, batch_size in ((5, 1), (5, 2), (12, 12), (12, 5)):
        other = first_five(n, batch_size)
        assert np.array_equal(other.numbers, wanted.numbers)
        assert np.allclose(other.positions, wanted.positions, atol=1e-3)
    assert not np.array_equal(first_five(5, 5, seed=4).n_atoms, wanted.n_atoms)
    with mock.patch.object(MoleculeGenerator, "rows", return_value=None):
        shared = first_five(12, 12), first_five(5, 5)
    assert not np.allclose(shared[0].positions, shared[1].positions, atol=1e-1)


def sampled(model, layout: Layout) -> State:
    method_rng = generator(2)
    return sample(model.process, lambda z, level: model.predict(z, level, method_rng), layout, 6, generator(1))


@pytest.mark.parametrize(("method", "backbone"), [("edm", "egnn"), ("plain", "dit"), ("symdiff", "dit")])
def test_a_sample_ignores_the_rest_of_its_batch(method, backbone):
    """T37: with the noise of each molecule fixed, a molecule alone comes out as in its batch."""
    model, layout = model_of(method, backbone, dtype=torch.float32), Layout([5, 8, 3, 8])
    with recorded_draws() as drawn:
        together = sampled(model, layout)
    for i in range(4):
        atoms = atoms_of(layout, [i])
        with replayed_draws(drawn, layout, [i], atoms):
            alone = sampled(model, Layout([int(layout.sizes[i])]))
        assert relative_error(alone, together.replace(x=together.x[atoms], h=together.h[atoms])) < 1e-4
        assert relative_error(sampled(model, Layout([int(layout.sizes[i])])), alone) > 1e-2  # other noise


def test_samples_have_no_centre_of_mass():
    """T7: a denoiser with a bias moves nothing but the last step's own; unprojected, its steps would add up."""

    def biased(z: State, level: Level) -> State:
        return z.replace(x=z.x + 0.01)

    process, layout = core().process, Layout([4, 9])
    state = sample(process, biased, layout, 50, generator(0))
    assert state.mean_over_atoms(state.x).abs().max() < 1e-4
    grid = torch.tensor(time_grid(1000, 50))
    assert sum(0.01 * step.remove for step in reverse_coefficients(process.path, grid[1:], grid[:-1])) > 1e-2
    unbiased = sample(process, gaussian_denoiser(1.0), layout, 50, generator(0))
    assert unbiased.mean_over_atoms(unbiased.x).abs().max() < 1e-6


def turned_sample_error(method: str, translated: bool, inner: RotationGroup, determinant: int) -> float:
    """|sample from turned noise and translated draws - turned sample|: invariance of what is generated, pathwise."""
    Q = orthogonal(determinant, seed=9)
    layout = Layout([5, 7])

    class PlainNoise(Process):
        def noise(
            self, layout: Layout, rng: torch.Generator, dtype: torch.dtype = torch.float32, context: Any = None
        ) -> State:
            return super().noise(layout, rng, torch.float64, context)

    class TurnedNoise(Process):
        """Control of the experiment: the same noise, turned."""

        def noise(
            self, layout: Layout, rng: torch.Generator, dtype: torch.dtype = torch.float32, context: Any = None
        ) -> State:
            eps = super().noise(layout, rng, torch.float64, context)
            return eps.rotate(Q.expand(len(eps), 3, 3))

    out = []
    for kind, group in ((PlainNoise, inner), (TurnedNoise, Translated(inner, Q) if translated else inner)):
        model = model_of(method, "dit", group)
        model.process.__class__ = kind
        rng = generator(2)

        def predict(z: State, level: Level, model=model, rng=rng) -> State:
            return model.predict(z, level.to(dtype=torch.float64), rng)

        out.append(sample(model.process, predict, layout, 5, generator(1)))
    return relative_error(out[1], out[0].rotate(Q.expand(2, 3, 3)))


@pytest.mark.parametrize(("group", "determinant"), ELEMENTS_OF_GROUPS, ids=GROUP_NAMES)
@pytest.mark.parametrize("method", ["symdiff", "symdiff_haar"])
def test_stochastic_symmetrisation_carries_through_the_whole_sampler(method, group, determinant):
    """T15: turned noise and translated draws give the turned sample; untranslated draws, or plain DiT, do not."""
    assert turned_sample_error(method, True, group, determinant) < 1e-5
    assert turned_sample_error(method, False, group, determinant) > 1e-2
    assert turned_sample_error("plain", True, group, determinant) > 1e-2


# ---------------------------------------------------------------------- before training


def untrained_samples(backbone: str) -> State:
    """20 steps from the weights that a run starts with, for molecules of QM9's sizes and beyond."""
    model = Model.build(run_config("plain", backbone), FACTS)
    rng = generator(2)
    return sample(model.process, lambda z, level: model.predict(z, level, rng), Layout([3, 18, 29] * 4), 20, rng)


@pytest.mark.parametrize("backbone", for_molecules())
def test_untrained_networks_sample_finite_positions(backbone):
    """The first steps multiply what the network errs by, so its answer must not grow like a power of its input."""
    state = untrained_samples(backbone)
    assert torch.isfinite(state.x).all()
    assert torch.isfinite(state.h).all()


def test_blocks_without_a_norm_overflow_in_sampling(monkeypatch):
    """Control: the e3 network whose blocks multiply unbounded features gives no finite positions."""
    monkeypatch.setattr(e3, "normalise", lambda h: h)
    assert not torch.isfinite(untrained_samples("e3").x).any()


# ---------------------------------------------------------------------- the law of samples in a fixed frame


def anisotropy_z(model: Model, n: int = 2000, n_steps: int = 20) -> float:
    """Largest |z| of fixed-frame statistics of n sampled molecules of three atoms, 0 where their law is invariant.

    The statistics are differences x_d^2 - x_{d+1}^2 and products x_d x_{d+1} of the first atom, bounded so that no
    single sample decides.
    """
    layout, rng = Layout([3] * n), generator(2)
    state = sample(model.process, lambda z, level: model.predict(z, level, rng), layout, n_steps, generator(1))
    x = state.x[::3]
    x = x / (1 + x.square().sum(1, keepdim=True)).sqrt()
    return z_score(torch.cat([x.square() - x.square().roll(1, dims=1), x * x.roll(1, dims=1)], dim=1))


INVARIANT = [(m, b) for m, b in fitting_pairs() if methods[m].build.guarantee in (Guarantee.EXACT, Guarantee.IN_LAW)]


@pytest.mark.parametrize(
    ("method", "backbone", "group"),
    [
        *(pytest.param(*pair.values, O3(), marks=pair.marks) for pair in covering(INVARIANT)),
        ("symdiff", "dit", SO3()),
        ("frames", "dit", SO3()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_samples_of_an_untrained_network_have_no_orientation(method, backbone, group):
    """T20: 2e3 systems of three atoms, random weights, 20 steps: fixed-frame statistics are 0 within |z| < 5, for
    every method whose guarantee is exact or in law."""
    assert anisotropy_z(model_of(method, backbone, group, dtype=torch.float32)) < Z_MAX


def test_samples_of_a_network_without_symmetry_have_an_orientation():
    """T20: plain DiT with the same random weights fails the same comparison over twice as many."""
    assert anisotropy_z(model_of("plain", "dit", dtype=torch.float32), n=4000) > Z_MAX


def trained_on_a_line(method: str, n_steps: int = 60) -> Model:
    """A few steps on one molecule of three atoms that lies along the first axis."""
    model = model_of(method, "dit", dtype=torch.float32)
    B = 64
    x = torch.tensor([[1.5, 0, 0], [-1.5, 0, 0], [0, 0, 0]]).repeat(B, 1)
    x0 = State({"x": x, "h": torch.eye(len(ELEMENTS) + 1)[:3].repeat(B, 1) / 4}, Layout([3] * B))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(n_steps):
        optimiser.zero_grad()
        training_loss(model, x0, Streams(0).at(step)).mean().backward()
        optimiser.step()
    return model


def test_training_on_oriented_data_orients_samples_of_a_network_without_symmetry(record_property):
    """T20: after 60 steps on molecules along one axis, samples of plain DiT know that axis, those of SymDiff do not.

    What SymDiff as released does is printed at the end, not required: nothing promises either outcome.
    """
    z = {m: anisotropy_z(trained_on_a_line(m)) for m in ("plain", "symdiff", "symdiff_as_released")}
    scores = ", ".join(f"{m} {value:.1f}" for m, value in z.items())
    record_property("scores", f"samples, largest |z| of fixed-frame statistics after training on a line: {scores}")
    assert z["symdiff"] < Z_MAX < z["plain"]


def test_draws_of_a_molecule_do_not_depend_on_the_sizes_of_others():
    """Four rows per molecule of 3 and 5 atoms are as many rows as atoms. Control: a row per atom is cut otherwise."""

    def second(per_atom: bool) -> torch.Tensor:
        return draw(torch.randn, (8, 2), MoleculeGenerator([1, 2], [3, 5]), per_atom=per_atom)[-4:]

    alone = draw(torch.randn, (4, 2), MoleculeGenerator([2], [5]))
    assert torch.equal(second(per_atom=False), alone)
    assert not torch.equal(second(per_atom=True), alone)
