"""Denoiser: a backbone with the parametrisation around it, D(z_t, level) -> estimate of the noise eps.

The only published parametrisation for these models is eps (arXiv:2203.17003), and it is the one whose training error
is safe in float32 at sigma = 0.003. The estimate of x0 is affine in it, x0_hat = (z_t - sigma eps_hat) / alpha.
"""

from __future__ import annotations

from torch import nn

from bench.diffusion.schedule import NoiseLevel
from bench.geometry.state import State


class Denoiser(nn.Module):
    """eps_hat = [P backbone_x(z_t, t), backbone_h(z_t, t)] with P the projection onto zero centre of mass.

    Attributes:
        n_calls: network calls so far; a cost that records state per step and per molecule.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.n_calls = 0

    def forward(self, z_t: State, level: NoiseLevel) -> State:
        self.n_calls += 1
        # under autocast a network answers in bf16; what is done with its answer is not
        return self.backbone(z_t, level.t).to(dtype=z_t.x.dtype).centred()
