"""EquiNet: the network of the one-dimensional toy of Orbit Diffusion, odd in x for any weights.

D(x, t) = f(x, t) - f(-x, t), f: Linear 2-10, tanh, Linear 10-5, tanh, Linear 5-1, 91 parameters. Source: published code
of Tong et al. (arXiv:2502.09890), 1D-toy/main.py, whose time embedding is constructed and unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.state import State
from bench.references import TONG_2025, Reference
from bench.registry import backbones


@dataclass
class EquiNetConfig:
    """Options: none, the network has one size."""


@backbones.register("equinet", EquiNetConfig)
class EquiNet(nn.Module):
    """A network of 91 parameters for points on a line, odd in x (toy of Orbit Diffusion)."""

    equivariant: ClassVar[bool] = True
    one_size: ClassVar[bool] = True
    references: ClassVar[tuple[Reference, ...]] = (TONG_2025,)
    sizes: ClassVar[dict[str, dict[str, int]]] = {"published": {}}

    def __init__(self, cfg: EquiNetConfig, channels: Mapping[str, int]) -> None:
        del cfg
        super().__init__()
        if dict(channels) != {"x": 1}:
            raise ValueError(f"backbone 'equinet' takes points on a line, x of 1 column, got {dict(channels)}")
        self.f = nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output x [A, 1]."""
        time = z.per_atom(t)[:, None]
        both = torch.cat([torch.cat([z.x, time], dim=1), torch.cat([-z.x, time], dim=1)])
        plus, minus = self.f(both).chunk(2)
        return z.replace(x=plus - minus)
