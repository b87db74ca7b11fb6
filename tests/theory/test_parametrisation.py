"""Parametrisations: at fixed z_t the noise, the clean state, the velocity and the score determine one another."""

from __future__ import annotations

import pytest
import torch
from support import generator, relative_error
from torch import Tensor

from bench.diffusion.parametrisation import LossWeight, Parametrisation
from bench.diffusion.paths import PathName
from bench.diffusion.process import DiffusionConfig, Process, squared_error
from bench.diffusion.sampler import Sampler, sample
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Centred, Euclidean, Spaces, Torus
from bench.geometry.state import State

NOISE, CLEAN, VELOCITY, SCORE, _ = Parametrisation  # the last, of a torus alone: tests/theory/test_crystals.py
SIZES = (5, 9, 3, 9, 12, 4)
MOLECULES = Spaces({"x": Centred(3), "h": Euclidean(2)})
CRYSTALS = Spaces({"frac": Torus(3)})
TABLES = (PathName.POLYNOMIAL, PathName.LINEAR_SIGMA, PathName.VARIANCE_EXPLODING)
# every pairing that a process takes
FITTING = [
    *((path, of) for path in TABLES for of in (NOISE, CLEAN, SCORE)),
    *((PathName.LINEAR, of) for of in (CLEAN, VELOCITY)),
]
PAIRINGS = pytest.mark.parametrize(("path", "of"), FITTING, ids=str)


def process_of(path: PathName, of: Parametrisation, spaces: Spaces = MOLECULES) -> Process:
    return Process(spaces, DiffusionConfig(path=path, parametrisation=of, n_levels=100))


def places(path: PathName) -> Tensor:
    """One for each molecule, from nearly the least noise to nearly the most."""
    if path is PathName.LINEAR:
        return torch.tensor([0.001, 0.2, 0.5, 0.7, 0.9, 0.999], dtype=torch.float64)
    return torch.tensor([1, 10, 40, 70, 90, 99])


def batch(process: Process, path: PathName) -> Noised:
    spaces, layout = process.spaces, Layout(SIZES)
    clean = spaces.wrap(spaces.noise(layout, generator(0), torch.float64))
    return process.noised(
        clean, spaces.noise(layout, generator(1), torch.float64), process.path.at(places(path), torch.float64)
    )


def another(both: Noised) -> State:
    """An expected noise that is not the noise drawn, as an average over an orbit is."""
    other = both.spaces.noise(both.clean.layout, generator(2), torch.float64)
    return both.noise.combine(other, lambda drawn, more: 0.9 * drawn + 0.3 * more)


def error(found: State, expected: State) -> float:
    return max(relative_error(found.parts[name], part) for name, part in expected.parts.items())


# ---------------------------------------------------------------------- round trips


@PAIRINGS
def test_noise_and_clean_state_come_back_from_what_is_regressed_on(path, of):
    """For the noise drawn and for any other expected noise, at every level, to 1e-9."""
    process = process_of(path, of)
    both = batch(process, path)
    for noise in (both.noise, another(both)):
        target = of.target(noise, both)
        assert error(of.noise(target, both.z_t, both.level), noise) < 1e-9
        assert error(of.clean(target, both.z_t, both.level), both.clean_of(noise)) < 1e-9
        z_t = process.noising(
            of.clean(target, both.z_t, both.level), of.noise(target, both.z_t, both.level), both.level
        )
        assert error(z_t, both.z_t) < 1e-9


@PAIRINGS
def test_a_target_read_as_another_parametrisation_is_refused(path, of):
    """Control: another reading of the same numbers gives other noise and another clean state, as does another level."""
    both = batch(process_of(path, of), path)
    target = of.target(another(both), both)
    for other in {of for fits, of in FITTING if fits is path} - {of}:
        assert error(other.noise(target, both.z_t, both.level), another(both)) > 1e-2
        assert error(other.clean(target, both.z_t, both.level), both.clean_of(another(both))) > 1e-2
    wrong = both.level[[1, 2, 3, 4, 5, 0]]
    errors = (
        error(of.noise(target, both.z_t, wrong), another(both)),
        error(of.clean(target, both.z_t, wrong), both.clean_of(another(both))),
    )
    assert max(errors) > 1e-2


def test_targets_are_what_their_names_say():
    """Noise, clean state, dz/dt along the path with its ends fixed, and the gradient of log p(z_t | x0)."""
    both = batch(process_of(PathName.POLYNOMIAL, NOISE), PathName.POLYNOMIAL)
    assert NOISE.target(both.noise, both) is both.noise
    assert CLEAN.target(both.noise, both) is both.clean
    z = {name: part.clone().requires_grad_() for name, part in both.z_t.parts.items()}
    log_p = both.spaces.log_likelihood(both.z_t.replace(**z), both.clean, both.level).sum()
    gradients = dict(zip(z, torch.autograd.grad(log_p, list(z.values())), strict=True))
    assert error(SCORE.target(both.noise, both), both.z_t.replace(**gradients)) < 1e-9
    assert error(both.noise, both.z_t.replace(**gradients)) > 1e-2  # control

    process = process_of(PathName.LINEAR, VELOCITY)
    both, step = batch(process, PathName.LINEAR), 1e-4
    ends = [process.path.at(places(PathName.LINEAR) + side * step, torch.float64) for side in (-1, 1)]
    before, after = (process.noising(both.clean, both.noise, level) for level in ends)
    velocity = before.combine(after, lambda a, b: (b - a) / (2 * step))
    assert error(VELOCITY.target(both.noise, both), velocity) < 1e-9
    assert error(VELOCITY.target(another(both), both), velocity) > 1e-2  # control


def test_score_on_a_torus_is_the_gradient_of_the_wrapped_normal():
    """And comes back as expected noise; a clean state is refused there."""
    both = batch(process_of(PathName.VARIANCE_EXPLODING, SCORE, CRYSTALS), PathName.VARIANCE_EXPLODING)
    frac = both.z_t.frac.clone().requires_grad_()
    log_p = both.spaces.log_likelihood(both.z_t.replace(frac=frac), both.clean, both.level)
    (gradient,) = torch.autograd.grad(log_p.sum(), frac)
    score = SCORE.target(both.noise, both)
    assert relative_error(score.frac, gradient) < 1e-9
    assert relative_error(both.noise.frac, gradient) > 1e-2  # control: the noise is no score
    assert error(SCORE.noise(score, both.z_t, both.level), both.noise) < 1e-9
    with pytest.raises(ValueError, match="does not exist on a torus"):
        CLEAN.target(another(both), both)


# ---------------------------------------------------------------------- errors and weights


def test_errors_of_the_clean_state_weighted_by_the_snr_are_those_of_the_noise():
    """|eps - eps'|^2 = (alpha / sigma)^2 |x0 - x0'|^2 at fixed z_t; without the weight it is not."""
    both = batch(process_of(PathName.POLYNOMIAL, CLEAN), PathName.POLYNOMIAL)
    in_noise = squared_error(another(both), both.noise)
    in_clean = squared_error(CLEAN.target(another(both), both), both.clean)
    assert relative_error(in_clean * LossWeight.SNR.of(both.level), in_noise) < 1e-9
    assert relative_error(in_clean * LossWeight.ONE.of(both.level), in_noise) > 0.1


@pytest.mark.parametrize("weight", list(LossWeight))
def test_loss_of_a_process_has_its_weight_and_denominator(weight):
    """Error times weight, over channels times the mean atom count; no level is a decoder's where there is none."""
    process = Process(
        MOLECULES, DiffusionConfig(parametrisation=CLEAN, n_levels=100, loss_weight=weight), mean_atoms=7.5
    )
    both = batch(process, PathName.POLYNOMIAL)
    error_of_each = squared_error(both.z_t, both.clean)
    loss = process.training_loss(error_of_each, both.z_t, both.clean, both)
    snr = (both.level.alpha / both.level.sigma).square()
    assert relative_error(loss * 5 * 7.5, error_of_each * (snr if weight is LossWeight.SNR else 1)) < 1e-9
    assert relative_error(loss * 5 * 7.5, error_of_each * (1 if weight is LossWeight.SNR else snr)) > 0.1


# ---------------------------------------------------------------------- sampling with each


@pytest.mark.parametrize(("path", "of"), [p for p in FITTING if p[0] is not PathName.VARIANCE_EXPLODING], ids=str)
@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_network_that_knows_the_data_samples_them(path, of, sampler):
    """The last estimate is x0 in every parametrisation and sampler that fits the path, and nothing else is; a sampler
    that does not fit is refused."""
    process, layout = process_of(path, of), Layout(SIZES)

    def drawn(x0: State) -> State:
        def predict(z_t: State, level: Level) -> State:
            noise = MOLECULES.displacement(z_t, x0, level)
            return of.target(noise, Noised(x0, noise, z_t, level, MOLECULES))

        return sample(process, predict, layout, 10, generator(4), sampler=sampler)

    x0 = MOLECULES.noise(layout, generator(3))
    refused = {
        Sampler.ANCESTRAL: path is PathName.LINEAR,
        Sampler.HEUN: path is not PathName.LINEAR,
        Sampler.PREDICTOR_CORRECTOR: True,  # which needs a task's step
    }
    if refused.get(sampler):
        with pytest.raises(ValueError, match=f"sampler '{sampler}' needs "):
            drawn(x0)
        return
    assert error(drawn(x0), x0) < 1e-4
    assert error(drawn(x0.map(lambda part: 1.1 * part)), x0) > 1e-2  # control


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("path", "of", "spaces", "line"),
    [
        (PathName.POLYNOMIAL, VELOCITY, MOLECULES, "'velocity' takes path 'linear', got 'polynomial'"),
        (PathName.LINEAR, NOISE, MOLECULES, "path 'linear' takes parametrisation 'velocity' or 'clean', got 'noise'"),
        (PathName.LINEAR, SCORE, MOLECULES, "path 'linear' takes parametrisation 'velocity' or 'clean', got 'score'"),
        (PathName.POLYNOMIAL, NOISE, CRYSTALS, "a torus takes path 'variance_exploding', got 'polynomial'"),
        (PathName.VARIANCE_EXPLODING, CLEAN, CRYSTALS, "'clean' does not exist on a torus"),
        (PathName.LINEAR, VELOCITY, CRYSTALS, "'velocity' does not exist on a torus"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(path, of, spaces, line):
    with pytest.raises(ValueError, match=line) as caught:
        process_of(path, of, spaces)
    assert "\n" not in str(caught.value)


def test_velocity_of_a_table_is_refused_where_it_is_asked():
    both = batch(process_of(PathName.POLYNOMIAL, NOISE), PathName.POLYNOMIAL)
    for ask in (
        lambda: VELOCITY.target(both.noise, both),
        lambda: VELOCITY.noise(both.z_t, both.z_t, both.level),
        lambda: VELOCITY.clean(both.z_t, both.z_t, both.level),
    ):
        with pytest.raises(ValueError, match="needs a path with derivatives; choose path 'linear'"):
            ask()
