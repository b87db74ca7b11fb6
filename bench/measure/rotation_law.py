"""The law of the frame in which a method asks its network: whether it leaves the Haar measure, and what that is worth.

A method R k(R^-1 z_t) draws R given z_t (`bench.symmetry.symmetrise.InFrame`). Its own law is held beside three others,
drawn in the same way: Haar, whose values are the floor, the identity, a single element, and PCA frames. Statistics and
their values under the Haar measure: `bench.geometry.rotation_laws`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bench.diffusion import likelihood
from bench.diffusion.likelihood import Times, stratified, times_at
from bench.diffusion.paths import TablePath, VariancePreserving
from bench.diffusion.sampler import Sampler, sample
from bench.geometry.axes import principal_axes
from bench.geometry.groups import RotationGroup
from bench.geometry.noised import Level, Noised
from bench.geometry.rotation_laws import (
    angle_test,
    between_pairs,
    moments,
    order,
    parity,
    shared_moments,
    spectrum,
    turn,
)
from bench.geometry.state import State
from bench.measure.contract import Subject, mean_and_sem
from bench.records.values import Kind, Value
from bench.references import ZHANG_2024
from bench.registry import measures
from bench.streams import StepStreams, Streams
from bench.symmetry.frames import pca_frame
from bench.symmetry.symmetrise import InFrame, symmetrised

PLACE = 30_000_000  # of random draws; those of a level and of the parts below are at fixed distances from it
OVER_MOLECULES, TRAJECTORIES, BOUNDS = 1_000_000, 2_000_000, 3_000_000

OWN, HAAR, IDENTITY, PCA = "own", "Haar", "identity", "PCA frame"
AT_EACH_TIME = (OWN, HAAR)  # laws with a value at each time; of the others the mean over times is enough
COLUMNS = {"spectrum": "rank", "axes": "axis"}  # quantities with several columns -> the number in `at` that tells them

Law = Callable[[State, Level, torch.Generator], Tensor]
Found = dict[str, dict[str, Tensor]]  # quantity -> law -> a number per molecule [B], one in all [1], or [*, columns]

ABOUT = {
    "first": ("First moment of R given z_t", "|E R|^2 / 3, unbiased: Haar 0, a single element 1, PCA frames 0"),
    "second": (
        "Second moment of R given z_t",
        "(|E R (x) R|^2 - 1) / 8, unbiased: Haar 0, a single element 1, PCA frames 1/4",
    ),
    "parity": (
        "Sign of det R given z_t",
        "(E det R)^2, unbiased: 0 where both are as likely, 1 where one occurs alone",
    ),
    "spectrum": (
        "Second-moment eigenvalue of R given z_t",
        "of E vec(R) vec(R)^T, by rank: Haar 1/3, which finitely many draws spread as the values of Haar show",
    ),
    "angle": ("Angle law of R given z_t", "Kolmogorov-Smirnov distance of the angle between two draws from Haar's law"),
    "angle_p": ("Angle law of R given z_t, p-value", "that the angle between two draws has Haar's law"),
    "axes": (
        "Order of principal axes in the frame",
        "nematic order parameter of the axes of z_t, seen from the frame, by rank: Haar 0, PCA frames 1",
    ),
    "input_turned": (
        "Use of the orientation of z_t by R",
        "|R - R'|^2 / 6 between draws at z_t and at z_t turned, same random numbers: 0 where R ignores it, 1 where R "
        "and R' are as good as independent",
    ),
    "input_renoised": (
        "Use of the noise in z_t by R",
        "|R - R'|^2 / 6 between draws at z_t and at the same molecule noised anew, same random numbers",
    ),
    "marginal_first": ("First moment of R over molecules", "|E R|^2 / 3 over molecules as they are stored: Haar 0"),
    "marginal_second": (
        "Second moment of R over molecules",
        "(|E R (x) R|^2 - 1) / 8 over molecules as they are stored: Haar 0",
    ),
    "marginal_angle_p": (
        "Angle law of R over molecules, p-value",
        "that the angle of R has Haar's law; one draw for each molecule as it is stored",
    ),
    "trajectory_first": ("First moment of R along sampling", "|E R|^2 / 3 at one state that the sampler passes"),
    "trajectory_second": (
        "Second moment of R along sampling",
        "(|E R (x) R|^2 - 1) / 8 at one state that the sampler passes",
    ),
    "kept_first": (
        "First moment of R kept in a sampling step",
        "<E R, E R'> / 3 at the states before and after a step: that of one state where the law stays",
    ),
    "kept_second": (
        "Second moment of R kept in a sampling step",
        "(<E R (x) R, E R' (x) R'> - 1) / 8 at the states before and after a step: that of one state where the law "
        "stays",
    ),
    "swap_loss": (
        "Error of the noise, frames of a law",
        "mean square error per degree of freedom where the network is asked in frames of this law",
    ),
    "swap_excess": ("Excess error, frames of a law", "over that in the method's own frames: same molecules and noise"),
    "swap_nll": ("Excess NLL, frames of a law", "single-draw bound over that in the method's own frames, same noise"),
    "p": (
        "Law of R given z_t, p-value",
        "that it is Haar at all noise levels: the smallest p-value of the angle law, times their number",
    ),
}


@dataclass
class RotationLawConfig:
    """Options: how much is drawn."""

    n_levels: int = 5  # steps between noise levels from one end of the path to the other
    n_molecules: int = 64  # test molecules, with one state of each at each level
    n_draws: int = 64  # of R for each state
    n_swapped: int = 256  # test molecules of predictions in other frames, and of the law of R over molecules
    n_trajectories: int = 16  # samples along which the law is followed; 0: none
    n_steps: int = 25  # of their sampler

    def __post_init__(self) -> None:
        least = {"n_levels": 2, "n_molecules": 2, "n_draws": 2, "n_swapped": 2, "n_trajectories": 0, "n_steps": 2}
        for key, smallest in least.items():
            if getattr(self, key) < smallest:
                raise ValueError(f"'{key}' of rotation_law is {getattr(self, key)}, expected at least {smallest}")


@measures.register("rotation_law", RotationLawConfig, references=(ZHANG_2024,))
@torch.no_grad()
def measure(subject: Subject, cfg: RotationLawConfig) -> list[Value]:
    """Moments, angles and axes of the frames that a method draws, beside Haar's; predictions in frames of other laws.

    Raises:
        ValueError: the method draws no frame, the group is not one of rotations in space, or there is one molecule.
    """
    laws, process, at_times = laws_of(subject), subject.process, dict[float, Found]()
    for i, place in enumerate(process.path.grid(cfg.n_levels, subject.device)):
        level = process.path.at(place.expand(1))
        if level.sigma.item() == 0 or level.alpha.item() == 0:
            continue  # an end of the linear path, where one of the two estimates does not exist
        given, over = given_state(subject, cfg, laws, place, i), over_molecules(subject, cfg, laws, place, i)
        at_times[round(level.t.item(), 6)] = given | over
    values = [v for t, found in at_times.items() for v in values_of(found, t=t)]
    if cfg.n_trajectories:
        values += [v for t, found in along_trajectories(subject, cfg, laws).items() for v in values_of(found, t=t)]
    values += values_of(over_times(list(at_times.values())))
    if likelihood.has_bound(process):
        values += values_of({"swap_nll": excess_nll(subject, cfg, laws)})
    return values


def laws_of(subject: Subject) -> dict[str, Law]:
    """The method's own law of frames, and those that it is held against.

    Raises:
        ValueError: it has none.
    """
    method, group = subject.method, subject.group
    problem = ""
    if not isinstance(method, InFrame) or type(method).predict is not InFrame.predict:
        problem = f"a method that asks its network in one frame that it draws (InFrame), got {type(method).__name__}"
    elif not isinstance(group, RotationGroup):
        problem = f"rotations in space, got {type(group).__name__}"
    elif len(subject.data.test) < 2:
        problem = f"at least 2 test structures, got {len(subject.data.test)}"
    if problem:
        raise ValueError(f"measure 'rotation_law' takes {problem}; leave it out (measures.rotation_law=null)")
    assert isinstance(method, InFrame)
    assert isinstance(group, RotationGroup)
    return {
        OWN: method.frame,
        HAAR: lambda z_t, _, rng: group.haar(len(z_t), rng, z_t.dtype),
        IDENTITY: lambda z_t, *_: group.identity(len(z_t), z_t.layout.device, z_t.dtype),
        PCA: lambda z_t, _, rng: pca_frame(group, z_t, rng),
    }


# ---------------------------------------------------------------------- what is measured


def given_state(subject: Subject, cfg: RotationLawConfig, laws: dict[str, Law], place: Tensor, i: int) -> Found:
    """The law of R given one state of each molecule, at one level."""
    where = PLACE + 10 * i
    noised = noised_states(subject, cfg.n_molecules, place, streams(subject, where))
    z_t, level = noised.z_t, noised.level
    again = noised_states(subject, cfg.n_molecules, place, streams(subject, where + 1))
    Q = subject.group.haar(len(z_t), streams(subject, where).data, z_t.dtype)
    x = z_t.x.double()
    axes = principal_axes(z_t.sum_over_atoms(x[:, :, None] * x[:, None, :]))
    improper = isinstance(subject.group, RotationGroup) and not subject.group.proper
    found: Found = {}

    def add(law: str, **numbers: Tensor | float) -> None:
        for name, each in numbers.items():
            found.setdefault(name, {})[law] = torch.as_tensor(each)

    for name, law in laws.items():
        R = draws(subject, law, z_t, level, cfg.n_draws, where)
        strength, test = moments(R), angle_test(between_pairs(R))
        add(name, first=strength.first, second=strength.second, spectrum=spectrum(R), axes=order(axes, R))
        add(name, angle=test.distance, angle_p=test.p)
        if improper:
            add(name, parity=parity(R))
        if name == OWN:
            for key, state in {"input_turned": z_t.rotate(Q), "input_renoised": again.z_t}.items():
                add(name, **{key: turn(R, draws(subject, law, state, level, cfg.n_draws, where)).mean(0)})
    return found


def over_molecules(subject: Subject, cfg: RotationLawConfig, laws: dict[str, Law], place: Tensor, i: int) -> Found:
    """The law of R over molecules in their stored orientation, and errors of predictions in frames of each law."""
    where, process = PLACE + OVER_MOLECULES + i, subject.process
    noised = noised_states(subject, cfg.n_swapped, place, streams(subject, where))
    z_t, level = noised.z_t, noised.level
    dims = process.spaces.dimension(z_t.layout)
    found: Found = {"marginal_first": {}, "marginal_second": {}, "marginal_angle_p": {}, "swap_loss": {}}
    for name, law in laws.items():
        subject.on_batch()
        R = law(z_t, level, streams(subject, where).method)
        output = symmetrised(subject.group, R, subject.denoiser, z_t, level)
        error = process.parametrisation.noise(output, z_t, level).combine(noised.noise, torch.sub)
        found["swap_loss"][name] = error.squared_norm() / dims
        if name in AT_EACH_TIME:
            first, second = moments(R[:, None])  # molecules are the draws of one law
            found["marginal_first"][name], found["marginal_second"][name] = first, second
            found["marginal_angle_p"][name] = torch.tensor(angle_test(R).p)
    return found


def along_trajectories(subject: Subject, cfg: RotationLawConfig, laws: dict[str, Law]) -> dict[float, Found]:
    """How strong the law of R is at the states that the sampler passes, and how much of it a step keeps; by time."""
    process, own = subject.process, streams(subject, PLACE + TRAJECTORIES)
    path, found, before = process.path, dict[float, Found](), dict[str, Tensor]()
    clean = clean_states(subject, cfg.n_trajectories)

    def predict(z_t: State, level: Level) -> State:
        here: Found = {"trajectory_first": {}, "trajectory_second": {}, "kept_first": {}, "kept_second": {}}
        for name in AT_EACH_TIME:
            R = draws(subject, laws[name], z_t, level, cfg.n_draws, PLACE + TRAJECTORIES + len(found) + 1)
            here["trajectory_first"][name], here["trajectory_second"][name] = moments(R)
            if name in before:
                here["kept_first"][name], here["kept_second"][name] = shared_moments(before[name], R)
            before[name] = R
        found[round(level.t[0].item(), 6)] = here
        return subject.predict(z_t, level, own.method)

    table = isinstance(path, TablePath)
    sampler = Sampler.ANCESTRAL if table else Sampler.EULER
    n_steps = min(cfg.n_steps, path.last) if isinstance(path, TablePath) else cfg.n_steps
    sample(process, predict, clean.layout, n_steps, own.sampling, sampler=sampler, context=clean.context)
    return found


def excess_nll(subject: Subject, cfg: RotationLawConfig, laws: dict[str, Law]) -> dict[str, Tensor]:
    """Bound of -log p with frames of each law, less that with the method's own [B], nats per molecule."""
    process, where = subject.process, PLACE + BOUNDS
    assert isinstance(process.path, VariancePreserving)
    clean = clean_states(subject, cfg.n_swapped)
    times = times_at(process.path, Times.IMPORTANCE, stratified(len(clean), streams(subject, where).time))

    def bound(law: Law) -> Tensor:
        subject.on_batch()
        rng = streams(subject, where)

        def predict(z_t: State, level: Level) -> State:
            return symmetrised(subject.group, law(z_t, level, rng.method), subject.denoiser, z_t, level)

        return torch.stack(list(likelihood.bound(process, clean, predict, times, rng.noise).values())).sum(0)

    bounds = {name: bound(law) for name, law in laws.items()}
    return {name: each - bounds[OWN] for name, each in bounds.items() if name != OWN}


def over_times(at_times: list[Found]) -> Found:
    """Means over times of what has all laws, the excess error, and one p-value for all times."""
    whole: Found = {}
    for name in ("first", "second", "axes", "swap_loss"):
        columns = {law: [found[name][law] for found in at_times] for law in at_times[0][name]}
        whole[f"{name}_mean"] = {law: torch.stack(each).mean(0) for law, each in columns.items()}
    loss = whole["swap_loss_mean"]
    whole["swap_excess"] = {law: each - loss[OWN] for law, each in loss.items() if law != OWN}
    smallest = torch.stack([found["angle_p"][OWN] for found in at_times]).min()
    return whole | {"p": {OWN: (len(at_times) * smallest).clamp_max(1)}}


# ---------------------------------------------------------------------- states, draws, values


def streams(subject: Subject, where: int) -> StepStreams:
    """Generators at one place, as new: the same numbers whenever they are asked for."""
    return Streams(subject.seed, subject.device).at(where)


def clean_states(subject: Subject, n: int) -> State:
    """The first n test structures of a fixed permutation, or all."""
    chosen = np.random.default_rng(0).permutation(len(subject.data.test))[:n]
    return subject.encode(subject.data.test.select(np.sort(chosen)), subject.device)


def noised_states(subject: Subject, n: int, place: Tensor, rng: StepStreams) -> Noised:
    """n test structures as they are stored, noised to one level."""
    process, clean = subject.process, clean_states(subject, n)
    noise = process.noise(clean.layout, rng.noise, clean.dtype, clean.context)
    return process.noised(clean, noise, process.path.at(place.expand(len(clean)), clean.dtype))


def draws(subject: Subject, law: Law, z_t: State, level: Level, n_draws: int, where: int) -> Float[Tensor, "K B 3 3"]:
    """K independent draws of R given each state; at one place the same random numbers for other states."""
    rng, drawn = streams(subject, where).method, []
    for _ in range(n_draws):
        subject.on_batch()
        drawn.append(law(z_t, level, rng))
    return torch.stack(drawn)


def values_of(found: Found, **at: float) -> list[Value]:
    """A value for each law, or each of its columns; the standard error is over molecules."""
    values = []
    for name, of_laws in found.items():
        stem = name.removesuffix("_mean")
        label, definition = ABOUT[stem]
        more: dict[str, Any] = {"kind": Kind.DIAGNOSTIC, "definition": definition}
        if name != stem:
            label += ", mean over times"
        if name == "swap_nll":
            more["unit"] = "nats/molecule"
        for law, numbers in of_laws.items():
            if at and law not in AT_EACH_TIME:
                continue
            each = np.atleast_1d(numbers.double().cpu().numpy())
            for i in range(each.shape[-1]) if stem in COLUMNS else (None,):
                mean, sem = mean_and_sem(np.atleast_1d(each if i is None else each[..., i]))
                position = {**at, **({} if i is None else {COLUMNS[stem]: i + 1.0}), "rotation": law}
                values.append(Value(f"rotation_law_{name}", label, mean, sem=sem or None, at=position, **more))
    return values
