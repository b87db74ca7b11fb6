"""Denoiser D(z_t, level): a backbone whose output is projected onto the space of each part."""

from __future__ import annotations

from torch import nn

from bench.geometry.noised import Level
from bench.geometry.spaces import Spaces
from bench.geometry.state import State


class Denoiser(nn.Module):
    """D(z_t, level) = P backbone(z_t, t), with P the projection onto each part's space (zero centre of mass).

    Attributes:
        n_calls: network calls so far, for the costs per step and per molecule in records.
    """

    def __init__(self, backbone: nn.Module, spaces: Spaces) -> None:
        super().__init__()
        self.backbone, self.spaces = backbone, spaces
        self.n_calls = 0

    def forward(self, z_t: State, level: Level) -> State:
        self.n_calls += 1
        # under autocast the output may be bf16; everything after it is in the precision of z_t
        return self.spaces.project(self.backbone(z_t, level.t).to(dtype=z_t.dtype))
