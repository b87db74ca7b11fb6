"""A multilayer perceptron on the flattened state: no symmetry at all, not even of permutations.

For toys, whose states all have one size. A part named "frac" is periodic and enters as sines and cosines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.state import State
from bench.references import EQUIBENCH, Reference
from bench.registry import backbones

PERIODIC = "frac"
N_HARMONICS = 2  # of periodic coordinates


@dataclass
class MLPConfig:
    """Options: points per state, and width and depth, which a named size sets."""

    n_points: int = 1  # points of a state
    width: int = 128
    depth: int = 3
    n_times: int = 4  # cosines of t, besides t itself


@backbones.register("mlp", MLPConfig)
class MLP(nn.Module):
    """A multilayer perceptron on states of one size; no symmetry (for toys)."""

    equivariant: ClassVar[bool] = False
    one_size: ClassVar[bool] = True
    references: ClassVar[tuple[Reference, ...]] = (EQUIBENCH,)
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 32, "depth": 2},
        "small": {"width": 128, "depth": 3},
    }

    def __init__(self, cfg: MLPConfig, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.cfg, self.channels = cfg, dict(channels)
        n_in = sum(c * (2 * N_HARMONICS if name == PERIODIC else 1) for name, c in channels.items())
        widths = [cfg.n_points * n_in + 1 + cfg.n_times, *[cfg.width] * cfg.depth]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(cfg.width, cfg.n_points * sum(channels.values())))

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output of every part [A, C].

        Raises:
            ValueError: states of another number of points.
        """
        if z.layout.n_total != self.cfg.n_points * len(z) or z.layout.n_largest != self.cfg.n_points:
            raise ValueError(
                f"backbone 'mlp' was built for states of {self.cfg.n_points} points, got up to "
                f"{z.layout.n_largest}; set backbone.n_points"
            )
        k = math.pi * torch.arange(1, self.cfg.n_times + 1, device=t.device, dtype=t.dtype)
        parts = [
            self.harmonics(z.parts[name]) if name == PERIODIC else z.parts[name].reshape(len(z), -1)
            for name in self.channels
        ]
        out = self.layers(
            torch.cat([*(p.reshape(len(z), -1) for p in parts), t[:, None], (k * t[:, None]).cos()], dim=1)
        )
        rows = out.view(z.layout.n_total, -1).split(list(self.channels.values()), dim=1)
        return z.replace(**dict(zip(self.channels, rows, strict=True)))

    @staticmethod
    def harmonics(frac: Float[Tensor, "A C"]) -> Float[Tensor, "A K"]:
        turns = [2 * math.pi * k * frac for k in range(1, N_HARMONICS + 1)]
        return torch.cat([f(turn) for turn in turns for f in (torch.sin, torch.cos)], dim=1)
