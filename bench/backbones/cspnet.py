"""CSPNet: message passing on differences of fractional coordinates, the network of DiffCSP.

Jiao et al., Crystal structure prediction by joint equivariant diffusion (arXiv:2309.04475), section 4.3. With rows of
the cell L as lattice vectors, f the fractions and psi(d) = sin|cos(2 pi k d), k = 0..K-1, for each axis, a block is

    m_ij = MLP [h_i, h_j, L L^T, psi(f_j - f_i)],   h_i <- h_i + MLP [h_i, mean_j m_ij]      h normed first; i = j too
and at the end
    frac noise_i = W_f h_i,   cell noise = (W_L mean_i h_i) L,   W_L mean h read as a 3 x 3 matrix.

With a description of the crystal, [h, text, t] enters in place of [h, t] at the start, as in TGDMat.

Exact, at any weights: common shifts of the fractions and whole turns of each change nothing; sites permute; a rotation
of the cell, L -> L Q, turns its noise alike, since L L^T stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.state import State
from bench.nn.composition import (
    COMPOSITION,
    DESCRIBED,
    MAX_NUMBER,
    TextHead,
    harmonics,
    numbers_of,
    require_crystals,
)
from bench.nn.linear import Float32Linear
from bench.nn.pairs import Pairs, differences, pair_linear, pairs_of, sum_over_partners
from bench.references import JIAO_2023, Reference
from bench.registry import backbones
from bench.structures.prompts import WIDTH

N_TIMES, N_TEXT = 256, 256  # features of t, and of a description


@dataclass
class CSPNetConfig:
    """Options of CSPNet; a named size sets all."""

    width: int = 512
    depth: int = 6
    n_harmonics: int = 128  # K


def time_features(t: Float[Tensor, "B"]) -> Float[Tensor, "B T"]:
    """sin|cos of the published index 1..1000 of a level, at frequencies 10000^(-k/127), k = 0..127."""
    k = torch.arange(N_TIMES // 2, device=t.device, dtype=t.dtype)
    angle = (1 + 999 * t)[:, None] * torch.exp(-math.log(10000) * k / (N_TIMES // 2 - 1))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def two_layers(n_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


class Block(nn.Module):
    """One block; `given` is what does not change from block to block."""

    def __init__(self, width: int, n_given: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.message_in = nn.Linear(2 * width + n_given, width)
        self.message_out = nn.Linear(width, width)
        self.update = two_layers(2 * width, width)

    def forward(self, h: Float[Tensor, "A H"], given: Float[Tensor, "P G"], pairs: Pairs) -> Float[Tensor, "A H"]:
        normed = self.norm(h)
        message = F.silu(self.message_out(F.silu(pair_linear(self.message_in, normed, given, pairs))))
        n_atoms = pairs.layout.n_atoms.to(h.dtype).index_select(0, pairs.layout.molecule)[:, None]
        return h + self.update(torch.cat([normed, sum_over_partners(message, pairs) / n_atoms], dim=1))


@backbones.register("cspnet", CSPNetConfig)
class CSPNet(nn.Module):
    """Message passing on differences of fractions (the network of DiffCSP): invariant under common shifts."""

    equivariant: ClassVar[bool] = True  # under the shifts of a torus, the group of its task
    one_size: ClassVar[bool] = True  # so that tasks of molecules, whose states have no cell, refuse it
    contexts: ClassVar[frozenset[str]] = frozenset({COMPOSITION, DESCRIBED})
    references: ClassVar[tuple[Reference, ...]] = (JIAO_2023,)
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 32, "depth": 2, "n_harmonics": 4},
        "small": {"width": 96, "depth": 4, "n_harmonics": 16},
        "medium": {"width": 256, "depth": 6, "n_harmonics": 64},
        "published": {"width": 512, "depth": 6, "n_harmonics": 128},
    }

    def __init__(self, cfg: CSPNetConfig, channels: Mapping[str, int], context: str | None = None) -> None:
        super().__init__()
        require_crystals("cspnet", dict(channels), context)
        self.n_harmonics = cfg.n_harmonics
        self.elements = nn.Embedding(MAX_NUMBER, cfg.width)
        self.text = TextHead(WIDTH, N_TEXT) if context == DESCRIBED else None
        n_given = N_TIMES if self.text is None else N_TEXT + N_TIMES
        self.embedding = Float32Linear(cfg.width + n_given, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg.width, 9 + 6 * cfg.n_harmonics) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width)
        self.frac = Float32Linear(cfg.width, 3, bias=False)
        self.cell = Float32Linear(cfg.width, 9, bias=False)

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: frac part [A, 3] and cell part [B, 9]."""
        pairs, L = pairs_of(z.layout, include_self=True), z.cell.unflatten(1, (3, 3))
        gram = (L[:, :, None] * L[:, None]).sum(3).flatten(1)  # no matrix product, which autocast would round to bf16
        waves = harmonics(-differences(z.frac, pairs), range(self.n_harmonics))
        given = torch.cat([z.per_atom(gram).index_select(0, pairs.i), waves], dim=1)
        of_crystal = [time_features(t)] if self.text is None else [self.text(z), time_features(t)]
        features = [self.elements(numbers_of(z) - 1), *(z.per_atom(some) for some in of_crystal)]
        h = self.embedding(torch.cat(features, dim=1))
        for block in self.blocks:
            h = block(h, given, pairs)
        h = self.norm(h)
        M = self.cell(z.mean_over_atoms(h)).unflatten(1, (3, 3))
        return z.replace(frac=self.frac(h), cell=(M[..., None] * L[:, None]).sum(2).flatten(1))
