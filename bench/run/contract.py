"""The contract that every method and backbone keeps, as checks that measure one error each.

A model is built at its smallest named size with random weights, none of them zero, and is shown molecules made up here;
nothing is trained and no data set is read. `tests/contract` calls these checks on every registered plug-in, and
`equibench check FILE` on those of a stranger (`check`).

Errors are relative: max |a - b| / max |b|. Where a guarantee speaks of a law, |z| is the largest standard score among
low moments of two samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
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
from bench.registry import Entry, Registry, backbones, datasets, methods, tasks
from bench.run.model import Model
from bench.run.train import training_loss
from bench.streams import Streams
from bench.structures.dataset import Facts
from bench.structures.structures import Structures
from bench.symmetry.contract import Guarantee, Method, Setting
from bench.tasks.contract import Task

ELEMENTS = (1, 6, 7, 8, 9)
MEAN_ATOMS = 7.5
FACTS = Facts(ELEMENTS, MEAN_ATOMS, dict.fromkeys(range(3, 13), 1))
TASK = "denovo"  # whose states have positions and features, which every method and backbone of molecules takes
SIZES = (5, 9, 3, 9, 12, 4)  # unsorted, one size twice
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
Z_MAX = 5.0  # of a Monte-Carlo mean

# of each group an element, and for O(3) one of either sign: what a guarantee over the group has to hold for
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
    """The task of molecules of `ELEMENTS`; options of it or of its process."""
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
    """The configuration that a pair is built from; the data set, which nothing here reads, is whichever needs none."""
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
        cfg.method = resolve(methods, {**cfg.method.to_dict(), **options}, "method")
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


# ---------------------------------------------------------------------- draws that follow atoms and molecules


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
    """A draw whose shape says that it belongs to neither atoms nor molecules."""


@contextmanager
def replayed_draws(
    drawn: list[Tensor],
    layout: Layout,
    molecules: Tensor | list[int],
    atoms: Tensor,
    n_shared: int | None = None,
) -> Iterator[None]:
    """The recorded draws again, for the given molecules and atoms of `layout`: noise follows what it belongs to.

    A draw has a row per atom, or per molecule, or several rows for each molecule, one molecule after the other; or it
    has `n_shared` rows, which the whole batch uses.

    Raises:
        ForeignDrawError: any other draw, or another shape is asked for than the one that belongs to the molecules
            (their draws then depend on their batch in number).
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
    """max |a - b| / max |b|; of molecules, the larger of that of positions and that of features."""
    if isinstance(a, State):
        assert isinstance(b, State)
        return max(relative_error(a.x, b.x), relative_error(a.h, b.h))
    assert isinstance(b, Tensor)
    assert b.abs().max() > 0, "the reference is zero, so nothing would be compared"
    return ((a - b).abs().max() / b.abs().max()).item()


def z_score(draws: Tensor, expected: Tensor | float = 0.0) -> float:
    """Largest |standard score| of the means over the first dimension; rounding counts as no deviation."""
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
    """|D(Q z) - Q D(z)| for one Q, draws of the method fixed."""
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
    """|D(pi z) - pi D(z)|, atom-wise draws permuted along."""
    _, _, level, z_t = states(dtype=dtype)
    order = permutation(z_t.layout)
    with recorded_draws() as drawn:
        here = model.predict(z_t, level, generator(1))
    with replayed_draws(drawn, z_t.layout, list(range(len(z_t))), order):
        there = model.predict(permuted(z_t, order), level, generator(1))
    return relative_error(there, permuted(here, order))


def batch_error(model: Model, molecules: list[int], dtype: torch.dtype = torch.float64) -> float:
    """|prediction within a batch - prediction for a selection of it|, draws following their molecules."""
    _, _, level, z_t = states(dtype=dtype)
    atoms = atoms_of(z_t.layout, molecules)
    with recorded_draws() as drawn:
        here = model.predict(z_t, level, generator(1))
    with replayed_draws(drawn, z_t.layout, molecules, atoms):
        there = model.predict(subset(z_t, molecules), level_of(level, molecules), generator(1))
    return relative_error(there, here.replace(x=here.x[atoms], h=here.h[atoms]))


def batch_loss_error(model: Model, dtype: torch.dtype = torch.float64) -> float:
    """Largest |loss of a molecule alone - its loss within a batch| / the latter, every draw following its molecule."""
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
    """Names of weights whose gradient is not finite, and of those that get none or zero from the loss."""

    not_finite: frozenset[str]
    idle: frozenset[str]


def gradients(model: Model, dtype: torch.dtype = torch.float32) -> Gradients:
    """Of one training loss."""
    model.zero_grad()
    training_loss(model, states(dtype=dtype)[0], Streams(0).at(0)).mean().backward()
    named = dict(model.named_parameters())
    return Gradients(
        frozenset(name for name, p in named.items() if p.grad is not None and not p.grad.isfinite().all()),
        frozenset(name for name, p in named.items() if p.grad is None or not p.grad.any()),
    )


def coincident_gradients_are_finite(model: Model) -> bool:
    """Of positions and weights of a float32 model, where two atoms in one place have no derivative of distance."""
    _, _, level, z_t = states(dtype=torch.float32)
    x = z_t.x.clone()
    x[1] = x[0]
    z = z_t.replace(x=x.requires_grad_())
    out = model.predict(z, level, generator(0))
    (out.x.sum() + out.h.square().sum()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return x.grad is not None and all(bool(g.isfinite().all()) for g in (x.grad, *grads))


# ---------------------------------------------------------------------- a stranger's plug-in


@dataclass(frozen=True)
class Check:
    """One line of a report.

    Attributes:
        subject: 'METHOD on BACKBONE'.
        what: the property.
        found: what was measured, in words; `passed` whether that is within bounds, None where nothing was promised.
    """

    subject: str
    what: str
    found: str
    passed: bool | None

    def __str__(self) -> str:
        mark = {True: "pass", False: "FAIL", None: "info"}[self.passed]
        return f"{mark}  {self.subject:32} {self.what:50} {self.found}"


def check(registry: Registry, entry: Entry) -> Iterator[Check]:
    """The battery on one registered method, over every backbone that it fits, or backbone, under every method."""
    pairs = [pair for pair in fitting_pairs() if entry.name == pair[0 if registry is methods else 1]]
    yield Check(entry.name, "is cited", f"{len(entry.references)} references", len(entry.references) > 0)
    if not pairs:
        yield Check(entry.name, "fits", f"no {'backbone' if registry is methods else 'method'}", False)
    if registry is backbones:
        yield from _declared_equivariance(entry)
    for method, backbone in pairs:
        subject = f"{method} on {backbone}"
        for what, measure in _battery(method, backbone):
            yield _guarded(subject, what, measure)
        yield from _guarantee(method, backbone)
    if registry is methods and pairs and entry.build.guarantee in (Guarantee.AT_OPTIMUM, Guarantee.NONE):
        yield _guarded(entry.name, "law of (z_t, target) invariant", partial(_law_of_targets, *pairs[0]))


Outcome = tuple[str, bool | None]


def _guarded(subject: str, what: str, measure: Callable[[], Outcome]) -> Check:
    """A check that raises has failed, with its error."""
    try:
        return Check(subject, what, *measure())
    except Exception as error:  # of a stranger's code
        return Check(subject, what, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", False)


def _below(error: float, limit: float) -> Outcome:
    return f"error {error:.1e}, allowed {limit:.0e}", error < limit


def _battery(method: str, backbone: str) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """What every pair owes, whatever it promises of rotations."""
    for dtype, limit in TOLERANCE.items():
        precision = str(dtype).removeprefix("torch.")

        def measured(error: Callable[[Model], float], dtype: torch.dtype = dtype, limit: float = limit) -> Outcome:
            return _below(error(model_of(method, backbone, dtype=dtype)), limit)

        errors: dict[str, Callable[[Model], float]] = {
            "permutes with atoms": partial(permutation_error, dtype=dtype),
            "prediction ignores the rest of the batch": partial(_worst_batch_error, dtype=dtype),
            "loss ignores the rest of the batch": partial(batch_loss_error, dtype=dtype),
            "no centre of mass": partial(centre_of_mass_drift, dtype=dtype),
        }
        for what, error in errors.items():
            yield f"{what}, {precision}", partial(measured, error)
        if methods[method].build.weights_of is None:  # else it trains nothing
            yield f"finite gradients, {precision}", partial(_gradients_outcome, method, backbone, dtype)
    yield "finite gradients, two atoms in one place", partial(_coincident_outcome, method, backbone)


def _worst_batch_error(model: Model, dtype: torch.dtype) -> float:
    return max(batch_error(model, molecules, dtype) for molecules in ([2], [4, 0], [5, 4, 3, 2, 1, 0]))


def _gradients_outcome(method: str, backbone: str, dtype: torch.dtype) -> Outcome:
    model = model_of(method, backbone, dtype=dtype)
    found, total = gradients(model, dtype), len(list(model.parameters()))
    if found.not_finite:
        return f"not finite: {', '.join(sorted(found.not_finite)[:3])}", False
    return f"{total} arrays, {len(found.idle)} of them without a gradient", len(found.idle) < total


def _coincident_outcome(method: str, backbone: str) -> Outcome:
    finite = coincident_gradients_are_finite(model_of(method, backbone, dtype=torch.float32))
    return "finite" if finite else "not finite: a distance of zero has no derivative", finite


def _declared_equivariance(entry: Entry) -> Iterator[Check]:
    """`equivariant` of a backbone against what the bare network does."""
    bare = next((m for m in methods if _is_bare(m) and (m, entry.name) in fitting_pairs()), None)
    if bare is None:
        return
    for dtype, limit in TOLERANCE.items():
        for determinant in (1, -1):
            what = f"turns with its input, det Q = {determinant:+d}, {str(dtype).removeprefix('torch.')}"
            yield _guarded(entry.name, what, partial(_as_declared, bare, entry, determinant, dtype, limit))


def _as_declared(bare: str, backbone: Entry, determinant: int, dtype: torch.dtype, limit: float) -> Outcome:
    error = rotation_error(model_of(bare, backbone.name, dtype=dtype), dtype, determinant)
    if backbone.build.equivariant:
        return _below(error, limit)
    hint = ": it could declare `equivariant = True`" if error < limit else ", nothing promised"
    return f"error {error:.1e}{hint}", None


def _is_bare(method: str) -> bool:
    """Whether a method leaves every hook alone."""
    build = methods[method].build
    return all(getattr(build, hook) is getattr(Method, hook) for hook in ("augment", "target", "predict", "loss"))


class _Counting(O3):
    """Counts how often group elements are drawn."""

    n_calls = 0

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        self.n_calls += 1
        return super().haar(n, rng, dtype)


def _guarantee(method: str, backbone: str) -> Iterator[Check]:
    """The declared guarantee, by the sharpest test that applies to it."""
    guarantee, subject = methods[method].build.guarantee, f"{method} on {backbone}"
    equivariant = backbones[backbone].build.equivariant
    if guarantee is Guarantee.EXACT or (equivariant and methods[method].build.predict is Method.predict):
        for (group, determinant), name in zip(ELEMENTS_OF_GROUPS, GROUP_NAMES, strict=True):
            for dtype, limit in TOLERANCE.items():
                what = f"exact, {name}, {str(dtype).removeprefix('torch.')}"
                yield _guarded(subject, what, partial(_exact, method, backbone, group, determinant, dtype, limit))
    elif guarantee is Guarantee.IN_LAW:
        if _draws_from_group(method, backbone):
            for (group, determinant), name in zip(ELEMENTS_OF_GROUPS, GROUP_NAMES, strict=True):
                for dtype, limit in TOLERANCE.items():
                    what = f"in law, draws turned along, {name}, {str(dtype).removeprefix('torch.')}"
                    yield _guarded(subject, what, partial(_in_law, method, backbone, group, determinant, dtype, limit))
        else:  # its draws cannot be turned along, as none came from `self.group.haar`: statistics alone are left
            for determinant in (1, -1):
                what = f"in law, 20 000 draws, det Q = {determinant:+d}"
                yield _guarded(subject, what, partial(_in_law_statistically, method, backbone, determinant))
    else:
        yield _guarded(subject, "turns with its input at random weights", partial(_not_promised, method, backbone))


def _draws_from_group(method: str, backbone: str) -> bool:
    """Whether a prediction draws from `self.group.haar`."""
    counting = _Counting()
    _, _, level, z_t = states()
    with suppress(Exception):  # which the checks themselves report
        model_of(method, backbone, counting).predict(z_t, level, generator(1))
    return counting.n_calls > 0


def _exact(
    method: str, backbone: str, group: RotationGroup, determinant: int, dtype: torch.dtype, limit: float
) -> Outcome:
    return _below(rotation_error(model_of(method, backbone, group, dtype), dtype, determinant), limit)


def _in_law(
    method: str, backbone: str, group: RotationGroup, determinant: int, dtype: torch.dtype, limit: float
) -> Outcome:
    def make(group: RotationGroup) -> Model:
        return model_of(method, backbone, group, dtype)

    return _below(translated_error(make, dtype, group, determinant), limit)


def _in_law_statistically(method: str, backbone: str, determinant: int) -> Outcome:
    z = law_z(model_of(method, backbone, dtype=torch.float32), 20_000, determinant)
    return f"|z| {z:.1f}, allowed {Z_MAX:g}; with draws from self.group.haar the test would be sharp", z < Z_MAX


def _not_promised(method: str, backbone: str) -> Outcome:
    error = max(rotation_error(model_of(method, backbone), torch.float64, determinant) for determinant in (1, -1))
    return f"error {error:.1e}, nothing promised of the weights", None


def _law_of_targets(method: str, backbone: str) -> Outcome:
    """|z| over levels and groups; a failure only where 'at optimum' is declared."""
    z = max(
        law_change(model_of(method, backbone, group).method, 10_000, i, determinants)
        for group, determinants in ((O3(), (1, -1)), (SO3(), (1,)))
        for i in (200, 700)
    )
    promised = methods[method].build.guarantee is Guarantee.AT_OPTIMUM
    return f"|z| {z:.1f}, allowed {Z_MAX:g}{'' if promised else ', nothing promised'}", z < Z_MAX if promised else None


WORTH = {
    Guarantee.EXACT: "exact: the prediction turns with its input at any weights, to rounding",
    Guarantee.IN_LAW: "in law: predictions at Q z and Q times those at z have one distribution, at any weights; "
    "single predictions do not turn with their input",
    Guarantee.AT_OPTIMUM: "at optimum: the minimiser of the training loss is equivariant; a trained network is "
    "approximately, by as much as it has learned",
    Guarantee.NONE: "none: nothing is promised; on an equivariant backbone predictions turn with their input where "
    "`predict` is left alone",
}
