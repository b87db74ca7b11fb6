"""Named random streams: every draw is a function of (seed, stream, step), so nothing but the step needs saving.

Two methods with one seed see the same initial weights, batches, times and noise, because each concern has a stream of
its own and a method's own draws (`method`) never shift the others. Resuming at a step is exact for the same reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Stream(StrEnum):
    """The concerns that draw at random."""

    INIT = "init"
    DATA = "data"
    NOISE = "noise"
    TIME = "time"
    METHOD = "method"
    SAMPLING = "sampling"


def seed_of(seed: int, stream: Stream | str, step: int, share: int = 0) -> int:
    """63-bit seed of one (seed, stream, step); collisions are those of a random function.

    Args:
        share: index of the micro-batch or rank, where a batch is split.
    """
    name = f"{seed}/{stream}/{step}" if share == 0 else f"{seed}/{stream}/{step}/{share}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class StepStreams:
    """The random generators of one step, each created on first use."""

    seed: int
    step: int
    device: torch.device
    share: int = 0

    def generator(self, stream: Stream | str) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(seed_of(self.seed, stream, self.step, self.share))

    @cached_property
    def data(self) -> torch.Generator:
        return self.generator(Stream.DATA)

    @cached_property
    def noise(self) -> torch.Generator:
        return self.generator(Stream.NOISE)

    @cached_property
    def time(self) -> torch.Generator:
        return self.generator(Stream.TIME)

    @cached_property
    def method(self) -> torch.Generator:
        return self.generator(Stream.METHOD)

    @cached_property
    def sampling(self) -> torch.Generator:
        return self.generator(Stream.SAMPLING)

    def with_noise_of(self, other: StepStreams) -> StepStreams:
        """The same streams, but for the noise: so the noise can be held while all else is redrawn."""
        made = replace(self)
        vars(made)[Stream.NOISE.value] = other.noise
        return made


@dataclass(frozen=True)
class Streams:
    """All streams of a run."""

    seed: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is immutable

    def at(self, step: int, share: int = 0) -> StepStreams:
        return StepStreams(self.seed, step, self.device, share)


class MoleculeGenerator(torch.Generator):
    """A generator per molecule of a batch, for `draw`: what a molecule draws depends on its own seed alone.

    The generators are those of the CPU, so that a molecule draws the same on every device. What asks this object itself
    for numbers, as a plug-in may, gets valid ones that depend on the batch.
    """

    def __new__(cls, seeds: Sequence[int], sizes: Sequence[int], device: torch.device | str = "cpu"):
        del seeds, sizes
        return super().__new__(cls, device)  # pyright: ignore[reportCallIssue] - the stub knows no __new__

    def __init__(self, seeds: Sequence[int], sizes: Sequence[int], device: torch.device | str = "cpu") -> None:
        """
        Args:
            seeds: of each molecule [B].
            sizes: atoms of each molecule [B].
        """
        del device
        self.sizes = list(sizes)
        self.own = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.manual_seed(seeds[0])

    def rows(self, n: int, per_atom: bool) -> list[int] | None:
        """How many of n rows belong to each molecule: a row per atom, or equally many per molecule; None: neither."""
        if per_atom:
            return self.sizes if n == sum(self.sizes) else None
        return [n // len(self.own)] * len(self.own) if n and n % len(self.own) == 0 else None


def draw(
    fill: Callable[..., Tensor], shape: Sequence[int], rng: torch.Generator, per_atom: bool = False, **options: Any
) -> Tensor:
    """Random numbers on the generator's device; rows of a `MoleculeGenerator` come from the streams of the molecules.

    Args:
        fill: torch.randn, torch.rand or partial(torch.randint, low, high).
        shape: a row per molecule, or equally many for each, one molecule after the other.
        per_atom: a row per atom instead; the number of rows alone does not always tell.
        options: dtype.
    """
    if not isinstance(rng, MoleculeGenerator) or (rows := rng.rows(shape[0], per_atom)) is None:
        return fill(shape, generator=rng, device=rng.device, **options)
    own = zip(rows, rng.own, strict=True)
    return torch.cat([fill((n, *shape[1:]), generator=g, **options) for n, g in own]).to(rng.device, non_blocking=True)
