"""The contract that every method and backbone keeps, as functions that measure one error each.

A model is built at its smallest named size with random weights, none of them zero, and is shown synthetic molecules;
nothing is trained and no data set is read. `tests/contract` bounds these errors for every registered plug-in,
`equibench check FILE` (`bench.run.check`) for those of a file.

Errors are relative: max |a - b| / max |b|. Where a guarantee speaks of a law, |z| is the largest standard score among
low moments of two samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from bench.config.run import RunConfig, build, reason_to_skip, resolve
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.process import DiffusionConfig
from bench.geometry.groups import O3, SO3, RotationGroup, Translated
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.registry import Registry, backbones, datasets, methods, tasks
from bench.run.model import Model
from bench.run.train import training_loss
from bench.streams import Streams
from bench.structures.dataset import Facts
from bench.structures.structures import Structures
from bench.symmetry.contract import Method, Setting
from bench.tasks.contract import Task

ELEMENTS = (1, 6, 7, 8, 9)
MEAN_ATOMS = 7.5
FACTS = Facts(ELEMENTS, MEAN_ATOMS, dict.fromkeys(range(3, 13), 1))
TASK = "denovo"  # states with positions and features, which every method and molecular backbone accepts
SIZES = (5, 9, 3, 9, 12, 4)  # unsorted, one size twice
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
Z_MAX = 5.0  # of a Monte-Carlo mean

# (group, determinant of the test element): O(3) is tested with one element of each sign
ELEMENTS_OF_GROUPS: list[tuple[RotationGroup, int]] = [(O3(), 1), (O3(), -1), (SO3(), 1)]
GROUP_NAMES = ["O3 proper", "O3 improper", "SO3"]


# ---------------------------------------------------------------------- molecules


def structures(sizes: tuple[int, ...] | list[int] = SIZES, seed: int = 0, spacing: float = 0.9) -> Structures:
    """Random clouds of random elements, no two atoms closer than `spacing` angstrom."""
    rng = np.random.default_rng(seed)
    molecules = []
    for n in sizes:
        x = rng.normal(size=(1, 3))
        while len(x) < n:
            new = rng.normal(scale=0.9 * n ** (1 / 3), size=3)
            if np.linalg.norm(x - new, axis=1).min() > spacing:
                x = np.vstack([x, new])
        molecules.append((rng.choice(ELEMENTS, size=n), x.astype(np.float32)))
    return Structures.from_list(molecules)


def core(group: str = "O3", **options: Any) -> Any:
    """The task of molecules of `ELEMENTS`; `options` are those of the task or of its process."""
    entry = tasks[TASK]
    own = {key: options.pop(key) for key in list(options) if hasattr(entry.config, key)}
    return entry.build(entry.config(**own), DiffusionConfig(**options), group, FACTS)


def states(
    sizes: tuple[int, ...] | list[int] = SIZES, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[State, State, Level, State]:
    """Clean state, noise, one level per molecule (t > 0), noised state."""
    task = core()
    x0 = task.encode(structures(sizes, seed), dtype=dtype)
    rng = generator(seed)
    level = task.process.path.draw(len(x0), rng, lowest=1, dtype=dtype)
    eps = task.process.noise(x0.layout, rng, dtype)
    return x0, eps, level, task.process.noising(x0, eps, level)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthogonal(determinant: int, seed: int = 0) -> Tensor:
    """One element of O(3) with the wanted determinant [3, 3], float64."""
    Q = O3().haar(1, generator(seed), torch.float64)[0]
    return Q * (torch.linalg.det(Q) * determinant)


def turned(z: State, Q: Tensor) -> State:
    """Every molecule turned by one Q."""
    return z.rotate(Q.to(z.x.dtype).expand(len(z), 3, 3))


def subset(z: State, molecules: list[int]) -> State:
    """Some molecules of a batch, in the order given."""
    atoms = atoms_of(z.layout, molecules)
    return State({"x": z.x[atoms], "h": z.h[atoms]}, Layout(z.layout.sizes[molecules].tolist()))


def atoms_of(layout: Layout, molecules: list[int]) -> Tensor:
    """Indices of the atoms of some molecules."""
    ptr = layout.ptr.tolist()
    return torch.cat([torch.arange(ptr[i], ptr[i + 1]) for i in molecules])


def level_of(level: Level, molecules: list[int] | Tensor) -> Level:
    """The noise levels of some molecules."""
    return level[molecules]


def permutation(layout: Layout, seed: int = 0) -> Tensor:
    """A permutation of atoms [A] that stays within molecules."""
    ptr = layout.ptr.tolist()
    return torch.cat([a + torch.randperm(b - a, generator=generator(seed + a)) for a, b in pairwise(ptr)])


def permuted(z: State, order: Tensor) -> State:
    return z.replace(x=z.x[order], h=z.h[order])


# ---------------------------------------------------------------------- models


def plug_in(registry: Registry, name: str) -> dict[str, Any]:
    """A plug-in at its size 'tiny' where it names one, else with its default options."""
    size = {"size": "tiny"} if "tiny" in getattr(registry[name].build, "sizes", {}) else {}
    return {"name": name, **size}


def run_config(method: str, backbone: str, **train: Any) -> RunConfig:
    """The configuration of a pair; its data set is never read, so any that needs no options will do."""
    parts = {"method": plug_in(methods, method), "backbone": plug_in(backbones, backbone), "data": any_data_set()}
    return build(RunConfig, {"study": "contract", **parts, "train": train})


def any_data_set() -> dict[str, Any]:
    """A data set whose options all have defaults."""
    for name in datasets:
        try:
            datasets[name].config()
        except TypeError:
            continue
        return {"name": name}
    raise ValueError("no data set can be named without options")


def for_molecules() -> list[str]:
    """Backbones that take states of any size; the others are for toys."""
    return [name for name in backbones if not getattr(backbones[name].build, "one_size", False)]


def fitting_pairs() -> list[tuple[str, str]]:
    """Every registered method on every backbone that it accepts."""
    return [(m, b) for m in methods for b in backbones if reason_to_skip(run_config(m, b)) is None]


def model_of(
    method: str,
    backbone: str,
    group: RotationGroup | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> Model:
    """A tiny model with random weights, none of them zero: a network that starts with a zero head shows nothing.

    Args:
        group: O(3) by default.
        options: of the method.
    """
    cfg = run_config(method, backbone)
    if options:
        cfg.method = resolve(methods, {**cfg.method.to_plain(), **options}, "method")
    task: Task = core()
    channels = task.process.channels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = backbones[backbone].build(cfg.backbone.options, channels)
        built = methods[method].build(cfg.method.options, Setting(group or O3(), network, channels))
        model = Model(task, Denoiser(network, task.process.spaces), built)
    randomise(model, seed)
    return model.to(dtype)


@torch.no_grad()
def randomise(module: nn.Module, seed: int, scale: float = 0.5) -> None:
    """Add noise to every parameter: scale / sqrt(inputs) on matrices, 0.2 on vectors."""
    rng = generator(seed)
    for p in module.parameters():
        size = scale / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.2
        p.add_(size * torch.randn(p.shape, generator=rng, dtype=torch.float32).to(p.dtype))


# ---------------------------------------------------------------------- replaying random draws


@contextmanager
def recorded_draws() -> Iterator[list[Tensor]]:
    """Everything drawn through torch.randn, rand and randint, in order."""
    drawn: list[Tensor] = []

    def recording(make: Any) -> Any:
        def draw(*args: Any, **kwargs: Any) -> Tensor:
            drawn.append(make(*args, **kwargs))
            return drawn[-1]

        return draw

    with _patched(recording):
        yield drawn


class ForeignDrawError(AssertionError):
    """A draw whose shape fits neither atoms nor molecules."""


@contextmanager
def replayed_draws(
    drawn: list[Tensor],
    layout: Layout,
    molecules: Tensor | list[int],
    atoms: Tensor,
    n_shared: int | None = None,
) -> Iterator[None]:
    """Replay recorded draws for some molecules and atoms of `layout`, so that each keeps its own noise.

    A draw has a row per atom, or per molecule, or several rows for each molecule, one molecule after the other; or it
    has `n_shared` rows, which the whole batch uses.

    Raises:
        ForeignDrawError: any other draw, or a request for another shape than that of the molecules' recorded rows
            (the number of draws then depends on the batch).
    """
    left = iter(drawn)
    B, A = len(layout.sizes), layout.n_total

    def replaying(make: Any) -> Any:
        def draw(*args: Any, **kwargs: Any) -> Tensor:
            value = next(left, None)
            if value is None:
                raise ForeignDrawError("more is drawn for some molecules than for all of their batch")
            if len(value) == n_shared:
                return value
            if len(value) == A:
                value = value[atoms]
            elif len(value) % B == 0:
                value = value.unflatten(0, (B, -1))[molecules].flatten(0, 1)
            else:
                shape = tuple(value.shape)
                raise ForeignDrawError(f"a draw of shape {shape} belongs to neither {B} molecules nor {A} atoms")
            asked = make(*args, **{**kwargs, "generator": None}).shape
            if asked != value.shape:
                shapes = f"a draw of shape {tuple(asked)} is asked for, {tuple(value.shape)} belongs here"
                raise ForeignDrawError(shapes)
            return value

        return draw

    with _patched(replaying):
        yield


@contextmanager
def _patched(wrap: Any) -> Iterator[None]:
    with mock.patch.multiple(torch, **{name: wrap(getattr(torch, name)) for name in ("randn", "rand", "randint")}):
        yield


# ---------------------------------------------------------------------- errors in one number


def relative_error(a: State | Tensor, b: State | Tensor) -> float:
    """max |a - b| / max |b|; of states, the larger of the errors of positions and features."""
    if isinstance(a, State):
        assert isinstance(b, State)
        return max(relative_error(a.x, b.x), relative_error(a.h, b.h))
    assert isinstance(b, Tensor)
    assert b.abs().max() > 0, "the reference is zero, so nothing would be compared"
    return ((a - b).abs().max() / b.abs().max()).item()


def z_score(draws: Tensor, expected: Tensor | float = 0.0) -> float:
    """Largest |standard score| of the means over the first dimension; rounding errors count as zero."""
    return two_sample_z(draws, None, expected)


def two_sample_z(a: Tensor, b: Tensor | None, expected: Tensor | float = 0.0) -> float:
    """Largest |standard score| of mean(a) - mean(b) - expected over the entries of a draw."""
    a = a.double()
    difference, variance = a.mean(0) - expected, a.var(0) / len(a)
    scale = a.abs().mean(0)
    if b is not None:
        b = b.double()
        difference, variance = difference - b.mean(0), variance + b.var(0) / len(b)
        scale = scale + b.abs().mean(0)
    return (difference.abs() / (variance.sqrt() + 1e-6 * scale + 1e-12)).max().item()


# ---------------------------------------------------------------------- symmetry


def rotation_error(model: Model, dtype: torch.dtype, determinant: int) -> float:
    """|D(Q z) - Q D(z)| for one Q, with the method's draws fixed."""
    _, _, level, z_t = states(dtype=dtype)
    Q = orthogonal(determinant)
    here = model.predict(z_t, level, generator(1))
    return relative_error(model.predict(turned(z_t, Q), level, generator(1)), turned(here, Q))


def translated_error(
    make: Callable[[RotationGroup], Model], dtype: torch.dtype, group: RotationGroup, determinant: int
) -> float:
    """|D(Q z; draws Q R) - Q D(z; draws R)|, where `make(group)` builds the model: 'in law' as an identity."""
    _, _, level, z_t = states(dtype=dtype)
    Q = orthogonal(determinant)
    here = make(group).predict(z_t, level, generator(1))
    there = make(Translated(group, Q)).predict(turned(z_t, Q), level, generator(1))
    return relative_error(there, turned(here, Q))


@torch.no_grad()
def law_z(model: Model, n_draws: int, determinant: int, chunk: int = 5000) -> float:
    """|z| between the law of eps_hat at Q z and of Q eps_hat at z: means and second moments, independent draws."""
    n = 4
    _, _, level, z_t = states([n], seed=6, dtype=torch.float32)
    Q = orthogonal(determinant, seed=2)

    def statistics(z: State, back: Tensor, seed: int) -> Tensor:
        """Draws in the frame of z_t: positions, products of two of them, features."""
        rng, rows = generator(seed), []
        copies = State({"x": z.x.repeat(chunk, 1), "h": z.h.repeat(chunk, 1)}, Layout([n] * chunk))
        levels = level_of(level, torch.zeros(chunk, dtype=torch.long))
        for _ in range(n_draws // chunk):
            out = turned(model.predict(copies, levels, rng), back)
            x = out.x.reshape(chunk, 3 * n)
            i, j = torch.triu_indices(3 * n, 3 * n)
            rows.append(torch.cat([x, x[:, i] * x[:, j], out.h.reshape(chunk, -1)], dim=1))
        return torch.cat(rows)

    return two_sample_z(statistics(z_t, torch.eye(3), 1), statistics(turned(z_t, Q), Q.T, 2))


def law_change(
    method: Method, n_draws: int, i: int, determinants: tuple[int, ...] = (1, -1), n_batches: int = 1
) -> float:
    """|z| of the change of the law of (z_t, target) when both are turned by one Q, over low moments.

    One oriented molecule is drawn n times. First and second moments of (z_t, T), and bounded functions of them, are
    compared between (z_t, T) and (Q z_t, Q T); they agree for every Q only where the law is invariant, and then the
    minimiser of the loss, the mean of T given z_t, is equivariant. Of several batches the means are scored, as the
    molecules of one may share draws.
    """
    task = core()
    one = structures([4], seed=3)
    x0 = task.encode(one, dtype=torch.float64)
    x = x0.x * torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64)  # far from isotropic
    copies = State({"x": x.repeat(n_draws, 1), "h": x0.h.repeat(n_draws, 1)}, Layout([4] * n_draws))
    level = task.process.path.at(torch.full((n_draws,), i), torch.float64)

    def moments(z: State, T: State) -> Tensor:
        z_x, T_x = z.x.view(n_draws, 12), T.x.view(n_draws, 12)
        products = torch.cat([z_x[:, :, None] * T_x[:, None], T_x[:, :, None] * T_x[:, None]], dim=1).flatten(1)
        return torch.cat([z_x, T_x, products, torch.tanh(3 * z_x) * torch.tanh(T_x).roll(1, 1)], dim=1)

    changes = []
    for batch in range(n_batches):
        augmented = method.augment(copies, generator(11 + 10 * batch))
        eps = task.process.noise(copies.layout, generator(12 + 10 * batch), torch.float64)
        noised = task.process.noised(augmented, eps, level)
        z_t = noised.z_t
        target = noised.clean_of(method.target(noised, generator(13 + 10 * batch)))
        here = moments(z_t, target)
        turns = (orthogonal(determinant, seed=5) for determinant in determinants)
        change = torch.cat([moments(turned(z_t, Q), turned(target, Q)) - here for Q in turns], dim=1)
        changes.append(change if n_batches == 1 else change.mean(0, keepdim=True))
    return z_score(torch.cat(changes))


# ---------------------------------------------------------------------- permutations, batches, gradients


def permutation_error(model: Model, dtype: torch.dtype = torch.float64) -> float:
    """|D(pi z) - pi D(z)|, with atom-wise draws permuted too."""
    _, _, level, z_t = states(dtype=dtype)
    order = permutation(z_t.layout)
    with recorded_draws() as drawn:
        here = model.predict(z_t, level, generator(1))
    with replayed_draws(drawn, z_t.layout, list(range(len(z_t))), order):
        there = model.predict(permuted(z_t, order), level, generator(1))
    return relative_error(there, permuted(here, order))


def batch_error(model: Model, molecules: list[int], dtype: torch.dtype = torch.float64) -> float:
    """|prediction within a batch - prediction for a selection of it|, each molecule keeping its draws."""
    _, _, level, z_t = states(dtype=dtype)
    atoms = atoms_of(z_t.layout, molecules)
    with recorded_draws() as drawn:
        here = model.predict(z_t, level, generator(1))
    with replayed_draws(drawn, z_t.layout, molecules, atoms):
        there = model.predict(subset(z_t, molecules), level_of(level, molecules), generator(1))
    return relative_error(there, here.replace(x=here.x[atoms], h=here.h[atoms]))


def batch_loss_error(model: Model, dtype: torch.dtype = torch.float64) -> float:
    """Largest |loss of a molecule alone - its loss within a batch| / the latter, each molecule keeping its draws."""
    x0 = states(dtype=dtype)[0]
    with recorded_draws() as drawn:
        together = training_loss(model, x0, Streams(0).at(0))
    errors = []
    for i in range(len(x0)):
        with replayed_draws(drawn, x0.layout, [i], atoms_of(x0.layout, [i])):
            alone = training_loss(model, subset(x0, [i]), Streams(0).at(0))
        errors.append(relative_error(alone, together[i : i + 1]))
    return max(errors)


def drift(z: State) -> float:
    """Largest |sum_n x_n| of a molecule over the largest |x|."""
    return (z.sum_over_atoms(z.x).abs().max() / z.x.abs().max()).item()


def centre_of_mass_drift(model: Model, dtype: torch.dtype) -> float:
    """The largest drift among the states, targets and predictions of a training step."""
    x0 = model.method.augment(states(dtype=dtype)[0], generator(1))
    level = states(dtype=dtype)[2]
    noised = model.process.noised(x0, model.process.noise(x0.layout, generator(2), dtype), level)
    target = model.method.target(noised, generator(3))
    prediction = model.predict(noised.z_t, level, generator(4))
    return max(drift(z) for z in (x0, noised.noise, noised.z_t, target, prediction))


@dataclass(frozen=True)
class Gradients:
    """Names of the weights whose gradient is not finite, and of those whose gradient is missing or zero."""

    not_finite: frozenset[str]
    idle: frozenset[str]


def gradients(model: Model, dtype: torch.dtype = torch.float32) -> Gradients:
    """Gradients of one training loss."""
    model.zero_grad()
    training_loss(model, states(dtype=dtype)[0], Streams(0).at(0)).mean().backward()
    named = dict(model.named_parameters())
    return Gradients(
        frozenset(name for name, p in named.items() if p.grad is not None and not p.grad.isfinite().all()),
        frozenset(name for name, p in named.items() if p.grad is None or not p.grad.any()),
    )


def coincident_gradients_are_finite(model: Model) -> bool:
    """Whether gradients are finite in float32 for coincident atoms, where the distance has no derivative."""
    _, _, level, z_t = states(dtype=torch.float32)
    x = z_t.x.clone()
    x[1] = x[0]
    z = z_t.replace(x=x.requires_grad_())
    out = model.predict(z, level, generator(0))
    (out.x.sum() + out.h.square().sum()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return x.grad is not None and all(bool(g.isfinite().all()) for g in (x.grad, *grads))
