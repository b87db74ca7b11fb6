"""GDM: plain message passing on coordinates and features, EDM's baseline without equivariance.

Hoogeboom et al., Equivariant diffusion for molecule generation in 3D (arXiv:2203.17003), section 5: the same diffusion
with a graph network that sees positions as features. In the released code: `EGNN_dynamics_QM9` in mode 'gnn_dynamics'.
Equivariant under permutations, not under rotations or translations: no distance is an input.

A block, with h_i^0 = W [x_i, h_i, t] + b and [v_i, f_i, dropped] = W' h_i^L + b':
    m_ij = SiLU(W2 SiLU(W1 [h_i, h_j])),  a_ij = sigmoid(w m_ij + b)
    h_i <- h_i + W4 SiLU(W3 [h_i, sum_j a_ij m_ij])
The sum includes j = i: the released code hands this network no mask of pairs. For the same reason it sums over padded
atoms, so that its outputs depend on padding; here there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.backbones.egnn import MessagePassing
from bench.geometry.state import State
from bench.nn.linear import Float32Linear, answer, features_of
from bench.nn.pairs import Pairs, pairs_of
from bench.references import HOOGEBOOM_2022, Reference
from bench.registry import backbones


@dataclass
class GDMConfig:
    """Options of the GDM network; a named size sets both."""

    width: int = 256
    depth: int = 9


class Block(MessagePassing):
    """One GDM block."""

    def __init__(self, width: int) -> None:
        super().__init__(width, n_distances=0)

    def forward(self, h: Float[Tensor, "A H"], pairs: Pairs) -> Float[Tensor, "A H"]:
        return self.update(h, None, pairs)


@backbones.register("gdm", GDMConfig)
class GDM(nn.Module):
    """Message passing on coordinates as features (EDM's baseline GDM); not rotation-equivariant."""

    equivariant: ClassVar[bool] = False
    references: ClassVar[tuple[Reference, ...]] = (HOOGEBOOM_2022,)  # its GDM
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 16, "depth": 2},
        "small": {"width": 64, "depth": 4},
        "medium": {"width": 128, "depth": 6},
        "published": {"width": 256, "depth": 9},
    }

    def __init__(self, cfg: GDMConfig, channels: Mapping[str, int]) -> None:
        super().__init__()
        n_outputs = channels["x"] + channels.get("h", 0)
        self.embedding = Float32Linear(n_outputs + 1, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg.width) for _ in range(cfg.depth))
        # the published network also reads out the time channel and discards it; the row is kept so that weights load
        self.readout = Float32Linear(cfg.width, n_outputs + 1)

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: x part [A, D] and features [A, F]."""
        pairs = pairs_of(z.layout, include_self=True)
        h = self.embedding(torch.cat([z.x, features_of(z), z.per_atom(t)[:, None]], dim=1))
        for block in self.blocks:
            h = block(h, pairs)
        out, D = self.readout(h), z.x.shape[1]
        return answer(z, out[:, :D], out[:, D:-1])
