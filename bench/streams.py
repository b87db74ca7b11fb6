"""Named random streams: every draw is a function of (seed, stream, step), so nothing but the step needs saving.

Two methods with one seed see the same initial weights, batches, times and noise, because each concern has a stream of
its own and a method's own draws (`method`) never shift the others. Resuming at a step is exact for the same reason.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch


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


@dataclass(frozen=True)
class Streams:
    """All streams of a run."""

    seed: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is immutable

    def at(self, step: int, share: int = 0) -> StepStreams:
        return StepStreams(self.seed, step, self.device, share)
