"""Toys: small problems with a known distribution, against which samples, targets and denoisers are tested exactly.

The distribution is that of g x, with x a shape of the training set (`bench.data.toys`) and g uniform on the task's
group. A sample is compared with the nearest element of the nearest orbit; points with equal numbers may be permuted.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.diffusion.process import DiffusionConfig, Process
from bench.geometry.groups import O3, SO2, SO3, Group, Permutations, Sign
from bench.geometry.layout import Layout
from bench.geometry.spaces import Centred, Euclidean, Space, Spaces, Torus
from bench.geometry.state import State
from bench.geometry.torus import TorusShift
from bench.records.values import Better, Kind, Value
from bench.references import EQUIBENCH, JIAO_2023, TONG_2025
from bench.registry import tasks
from bench.streams import Stream, seed_of
from bench.structures.dataset import DataSet, Facts
from bench.structures.structures import Structures
from bench.tasks.contract import Evaluation, Task

MAX_PERMUTATIONS = 24  # of points, tried when a sample is compared with an orbit


@dataclass
class ToyOptions:
    """Options: none; the shapes are those of the data set."""


@dataclass(frozen=True)
class Nearest:
    """The nearest element of an orbit to each of S samples.

    Attributes:
        distance: root mean square over points [S].
        where: coordinates of the group element, chosen to have zero mean under the Haar measure, flattened [S, K].
    """

    distance: Float[Tensor, "S"]
    where: Float[Tensor, "S K"]


class ToyTask(Task):
    """Base class of the toys; states have one part and one size.

    Class attributes:
        part: name of the part.
    """

    part: ClassVar[str] = "x"
    references = (EQUIBENCH,)
    one_size: ClassVar[bool] = True

    def __init__(self, cfg: ToyOptions, diffusion: DiffusionConfig, group: str, facts: Facts) -> None:
        del cfg
        if len(facts.sizes) != 1:
            raise ValueError(f"a toy has shapes of one size, got {sorted(facts.sizes)} points; choose data 'toys'")
        self.facts = facts
        self.n_points = next(iter(facts.sizes))
        self.group: Group = self.chosen_group(group)
        self.space = self.make_space()
        self.process = Process(Spaces({self.part: self.space}), diffusion, facts.mean_atoms)
        identical = len(facts.elements) == 1
        if not identical and len(facts.elements) != self.n_points:
            raise ValueError(
                f"a toy's points are all alike or all different, got {self.n_points} points of "
                f"{len(facts.elements)} elements; choose data 'toys'"
            )
        self.numbers = np.full(self.n_points, facts.elements[0]) if identical else np.asarray(facts.elements)

    @abstractmethod
    def make_space(self) -> Space:
        """The space of the part."""

    @abstractmethod
    def nearest(self, x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"]) -> Nearest:
        """Nearest elements of the orbit of a shape."""

    def extra_values(self, x: Float[Tensor, "S N C"]) -> list[Value]:
        """Further values of one toy."""
        del x
        return []

    def encode(
        self, structures: Structures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        layout = Layout(structures.n_atoms, device)
        x = torch.from_numpy(np.ascontiguousarray(structures.positions[:, : self.space.channels])).to(device, dtype)
        return State({self.part: self.space.wrap(x, layout)}, layout)

    def decode(self, state: State) -> Structures:
        x = state.parts[self.part].cpu().numpy()
        numbers = np.tile(self.numbers, len(state)).astype(np.int64)
        return Structures(numbers, np.pad(x, ((0, 0), (0, 3 - x.shape[1]))), state.ptr.cpu().numpy())

    def points(self, structures: Structures) -> Float[Tensor, "S N C"]:
        x = self.encode(structures, dtype=torch.float64).parts[self.part]
        return x.view(len(structures), self.n_points, -1)

    def evaluate(self, samples: Structures, data: DataSet, cache: Path) -> Evaluation:
        """Distance to the nearest element of an orbit, share of each shape, uniformity over the group; and the same for
        equally many exact draws from the distribution."""
        del cache
        samples = samples.select(samples.is_finite())
        rng = torch.Generator().manual_seed(seed_of(0, Stream.SAMPLING, len(samples)))
        many = data.test.select(np.arange(len(samples)) % len(data.test))
        clean = self.encode(many, dtype=torch.float64)
        exact = self.group.act(self.group.haar(len(clean), rng, torch.float64), clean).parts[self.part]
        shapes = self.points(data.train.distinct()[0])
        return Evaluation(
            self.values(self.points(samples), shapes), self.values(exact.view(len(samples), self.n_points, -1), shapes)
        )

    def values(self, x: Float[Tensor, "S N C"], shapes: Float[Tensor, "M N C"]) -> list[Value]:
        """Values of samples, against the shapes."""
        found = [self.nearest_of_like_points(x, shape) for shape in shapes]
        distance = torch.stack([near.distance for near in found])
        best, which = distance.min(0)
        where = torch.stack([near.where for near in found]).gather(
            0, which[None, :, None].expand(1, -1, found[0].where.shape[1])
        )[0]
        spread = (best.std() / len(best) ** 0.5).item() if len(best) > 1 else None
        about_rmsd = "mean over samples of the root mean square distance of their points to the nearest g x"
        about_anisotropy = "norm of the mean group element of the samples; 0 where they are uniform on the orbit"
        lower, beside = Better.LOWER, Kind.DIAGNOSTIC
        made = [
            Value("rmsd", "Distance to the law", best.mean().item(), "", lower, sem=spread, definition=about_rmsd),
            Value("rmsd_median", "Distance to the law, median", best.median().item(), "", lower, beside),
            Value("anisotropy", "Anisotropy", where.mean(0).norm().item(), "", lower, definition=about_anisotropy),
        ]
        if len(shapes) > 1:
            made += [
                Value(
                    "share",
                    "Share of a shape",
                    (which == m).double().mean().item(),
                    "fraction",
                    at={"shape": str(m + 1)},
                )
                for m in range(len(shapes))
            ]
        return made + self.extra_values(x)

    def nearest_of_like_points(self, x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"]) -> Nearest:
        """`nearest`, minimised over permutations of points with equal numbers."""
        orders = exchanges(self.numbers)
        found = [self.nearest(x, shape[order]) for order in orders]
        distance, which = torch.stack([near.distance for near in found]).min(0)
        where = torch.stack([near.where for near in found])[which, torch.arange(len(x))]
        return Nearest(distance, where)


def exchanges(numbers: np.ndarray) -> list[Int[Tensor, "N"]]:
    """Permutations of points with equal numbers; the identity alone if there are too many to list."""
    n = len(numbers)
    if len(set(numbers.tolist())) == n or math.factorial(n) > MAX_PERMUTATIONS:
        return [torch.arange(n)]
    orders = (list(order) for order in itertools.permutations(range(n)))
    return [torch.tensor(order) for order in orders if np.array_equal(numbers[order], numbers)]


def procrustes(x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"], proper: bool) -> Nearest:
    """Orthogonal matrix R [S, C, C] that brings R shape nearest to x (Kabsch 1976); `proper`: with det R = 1."""
    U, _, Vh = torch.linalg.svd(torch.einsum("sni,nj->sij", x, shape))
    if proper:
        U = torch.cat([U[..., :-1], U[..., -1:] * torch.linalg.det(U @ Vh)[:, None, None]], dim=-1)
    R = U @ Vh
    difference = x - torch.einsum("sij,nj->sni", R, shape)
    return Nearest(difference.square().sum(2).mean(1).sqrt(), R.flatten(1))


@tasks.register("sign_flip", ToyOptions)
class SignFlip(ToyTask):
    """A point on the line and its mirror image (1D toy of Orbit Diffusion)."""

    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {"sign": Sign}
    references = (TONG_2025,)

    def make_space(self) -> Space:
        return Euclidean(1)

    def nearest(self, x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"]) -> Nearest:
        return procrustes(x, shape, proper=False)

    def extra_values(self, x: Float[Tensor, "S N C"]) -> list[Value]:
        """Wasserstein distance to equally many points at -1 and +1, as published, and the share of positive samples."""
        line = x[:, 0, 0].sort().values
        law = torch.ones_like(line)
        law[: len(line) // 2] = -1
        w2 = (line - law).square().mean().sqrt().item()
        # the same against as many points at -1 as there are negative samples: the published evaluation starts half of
        # the samples from positive noise and half from negative noise, which imposes the balance
        balanced = (line - line.sign()).square().mean().sqrt().item()
        about_w2 = "between the samples and half of them at either sign, chance included"
        about_balanced = "root mean square of x - sign x: W2 with the balance of signs imposed, as published"
        share, lower = (line > 0).double().mean().item(), Better.LOWER
        return [
            Value("w2", "W2", w2, "", lower, Kind.DIAGNOSTIC, definition=about_w2),
            Value("w2_balanced", "W2, signs balanced", balanced, "", lower, definition=about_balanced),
            Value("balance", "Share of positive samples", share, "fraction", kind=Kind.DIAGNOSTIC),
        ]


@tasks.register("planar", ToyOptions)
class Planar(ToyTask):
    """Fixed clouds of points in the plane, rotated by a uniform angle."""

    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {"SO2": SO2}

    def make_space(self) -> Space:
        return Centred(2)

    def nearest(self, x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"]) -> Nearest:
        return procrustes(x, shape, proper=True)


@tasks.register("rigid", ToyOptions)
class Rigid(ToyTask):
    """A fixed cloud of points in space, rotated (SO3) or rotated and reflected (O3)."""

    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {"SO3": SO3, "O3": O3}

    def make_space(self) -> Space:
        return Centred(3)

    def nearest(self, x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"]) -> Nearest:
        return procrustes(x, shape, proper=isinstance(self.group, SO3))


@tasks.register("identical_points", ToyOptions)
class IdenticalPoints(ToyTask):
    """Identical points at fixed places of the plane, in any order."""

    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {"permutations": partial(Permutations, 2)}

    def __init__(self, cfg: ToyOptions, diffusion: DiffusionConfig, group: str, facts: Facts) -> None:
        super().__init__(cfg, diffusion, group, facts)
        self.group = Permutations(self.n_points)

    def make_space(self) -> Space:
        return Centred(2)

    def nearest_of_like_points(self, x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"]) -> Nearest:
        return self.nearest(x, shape)

    def nearest(self, x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"]) -> Nearest:
        orders = torch.tensor(list(itertools.permutations(range(self.n_points))))
        each = (x[:, None] - shape[orders][None]).square().sum(3).mean(2).sqrt()
        distance, which = each.min(1)
        matrices = torch.eye(self.n_points, dtype=x.dtype)[orders]
        return Nearest(distance, (matrices - matrices.mean(0)).flatten(1)[which])


@tasks.register("torus_pair", ToyOptions)
class TorusPair(ToyTask):
    """Two atoms in a periodic cell at a fixed difference, shifted together."""

    part: ClassVar[str] = "frac"
    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {"torus": TorusShift}
    references = (JIAO_2023,)

    def make_space(self) -> Space:
        return Torus(3)

    def nearest(self, x: Float[Tensor, "S N C"], shape: Float[Tensor, "N C"]) -> Nearest:
        """The shift is the circular mean of the differences, which is the nearest one for two atoms."""
        turn = 2 * math.pi * (x - shape)
        shift = torch.atan2(turn.sin().mean(1), turn.cos().mean(1)) / (2 * math.pi)
        off = x - shape - shift[:, None]
        off = off - off.round()
        where = torch.cat([(2 * math.pi * shift).cos(), (2 * math.pi * shift).sin()], dim=1)
        return Nearest(off.square().sum(2).mean(1).sqrt(), where)
