"""What the tests of the core share: small synthetic molecules, models with random weights, and errors in one number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from bench.config.run import RunConfig, build, options_of, reason_to_skip
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.process import DiffusionConfig
from bench.geometry.groups import O3, SO3, Group
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Centred, Euclidean, Spaces
from bench.geometry.state import State
from bench.records.values import Value
from bench.registry import Registry, backbones, measures, methods
from bench.run.evaluate import subject_of
from bench.run.model import Model
from bench.structures.dataset import DataSet, Facts
from bench.structures.structures import Structures
from bench.symmetry.contract import Setting
from bench.tasks.denovo import Denovo, DenovoConfig

ELEMENTS = (1, 6, 7, 8, 9)
MEAN_ATOMS = 7.5
FACTS = Facts(ELEMENTS, MEAN_ATOMS, dict.fromkeys(range(3, 13), 1))
SIZES = (5, 9, 3, 9, 12, 4)  # unsorted, one size twice
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
Z_MAX = 5.0  # of a Monte-Carlo mean


# of each group an element, and for O(3) one of either sign: what a guarantee over the group has to hold for
ELEMENTS_OF_GROUPS = [(O3(), 1), (O3(), -1), (SO3(), 1)]
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


def core(group: str = "O3", **options: Any) -> Denovo:
    """De novo generation of molecules of `ELEMENTS`; options of the task or of its process."""
    own = {key: options.pop(key) for key in list(options) if hasattr(DenovoConfig, key)}
    return Denovo(DenovoConfig(**own), DiffusionConfig(**options), group, FACTS)


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


def noised(clean: State, z_t: State, level: Level) -> Noised:
    """Two states as the hooks of a method see them: the noise is what lies between them."""
    spaces = Spaces({"x": Centred(3), "h": Euclidean(clean.h.shape[1])})
    return Noised(clean, spaces.displacement(z_t, clean, level), z_t, level, spaces)


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
    return State(
        {"x": z.x[atoms_of(z.layout, molecules)], "h": z.h[atoms_of(z.layout, molecules)]},
        sublayout(z.layout, molecules),
    )


def sublayout(layout: Layout, molecules: list[int]) -> Layout:
    return Layout(layout.sizes[molecules].tolist())


def atoms_of(layout: Layout, molecules: list[int]) -> Tensor:
    ptr = layout.ptr.tolist()
    return torch.cat([torch.arange(ptr[i], ptr[i + 1]) for i in molecules])


def level_of(level: Level, molecules: list[int]) -> Level:
    return level[molecules]


def permutation(layout: Layout, seed: int = 0) -> Tensor:
    """A permutation of atoms [A] that stays within molecules."""
    ptr = layout.ptr.tolist()
    return torch.cat([a + torch.randperm(b - a, generator=generator(seed + a)) for a, b in pairwise(ptr)])


def permuted(z: State, order: Tensor) -> State:
    return z.replace(x=z.x[order], h=z.h[order])


# ---------------------------------------------------------------------- models


def fitting_pairs() -> list[tuple[str, str]]:
    """Every registered method on every backbone that it accepts."""
    return [(m, b) for m in methods for b in backbones if reason_to_skip(run_config(m, b)) is None]


def likelihood_values(model: Model, data: DataSet, **options: Any) -> dict[str, Value]:
    """What the measure `likelihood` finds of a model, by name."""
    entry = measures["likelihood"]
    subject = subject_of(run_config("plain", "egnn"), model, data)
    return {value.name: value for value in entry.build(subject, entry.config(**options))}


def plug_in(registry: Registry, name: str) -> dict[str, Any]:
    """A plug-in at its size 'tiny' where it names one, else with its default options."""
    size = {"size": "tiny"} if "tiny" in getattr(registry[name].build, "sizes", {}) else {}
    return {"name": name, **size}


def run_config(method: str, backbone: str, **train: Any) -> RunConfig:
    return build(
        RunConfig,
        {
            "study": "tests",
            "method": plug_in(methods, method),
            "backbone": plug_in(backbones, backbone),
            "data": {"name": "mini"},
            "train": train,
        },
    )


def model_of(
    method: str,
    backbone: str,
    group: Group | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> Model:
    """A tiny model with random weights, none of them zero: a network that starts with a zero head shows nothing.

    Further arguments are options of the method.
    """
    cfg = run_config(method, backbone)
    cfg.method.update(options)
    task = core()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = backbones[backbone].build(options_of(backbones, cfg.backbone), task.process.channels)
        setting = Setting(group or O3(), network, task.process.channels)
        denoiser = Denoiser(network, task.process.spaces)
        model = Model(task, denoiser, methods[method].build(options_of(methods, cfg.method), setting))
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

    Raises AssertionError for any other draw, and where another shape is asked for than the one that belongs to the
    molecules (their draws then depend on their batch in number).
    """
    left = iter(drawn)
    B, A = len(layout.sizes), layout.n_total

    def replaying(make: Any) -> Any:
        def draw(*args: Any, **kwargs: Any) -> Tensor:
            value = next(left)
            if len(value) == n_shared:
                return value
            if len(value) == A:
                value = value[atoms]
            else:
                assert len(value) % B == 0, (
                    f"a draw of shape {tuple(value.shape)} belongs to neither {B} molecules nor {A} atoms"
                )
                value = value.unflatten(0, (B, -1))[molecules].flatten(0, 1)
            asked = make(*args, **{**kwargs, "generator": None}).shape
            assert asked == value.shape, (
                f"a draw of shape {tuple(asked)} is asked for, {tuple(value.shape)} belongs here"
            )
            return value

        return draw

    with _patched(replaying):
        yield


@contextmanager
def _patched(wrap: Any) -> Iterator[None]:
    with mock.patch.multiple(torch, **{name: wrap(getattr(torch, name)) for name in ("randn", "rand", "randint")}):
        yield


# ---------------------------------------------------------------------- errors in one number


def with_another_term(source: Path, right: str, wrong: str, folder: Path) -> Path:
    """A copy of a C file, with the headers beside it, in which one term is another: a control."""
    text = source.read_text()
    assert right in text
    for header in source.parent.glob("*.h"):
        (folder / header.name).write_text(header.read_text())
    changed = folder / source.name
    changed.write_text(text.replace(right, wrong))
    return changed


def relative_error(a: State | Tensor, b: State | Tensor) -> float:
    """max |a - b| / max |b|; of molecules, the larger of that of positions and that of features."""
    if isinstance(a, State) and isinstance(b, State):
        return max(relative_error(a.x, b.x), relative_error(a.h, b.h))
    assert isinstance(a, Tensor)
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
