"""A transformer of crystals that sees fractional coordinates as they are: invariance under shifts is not built in.

    token_i = E(element_i) + W [sin|cos(2 pi k f_i), k = 1..K, each axis] + V cell,   adaLN-Zero blocks as in the DiT,
    frac noise_i = head(token_i),   cell noise = head'(mean_i token_i).
A description of the crystal, where the task gives one, adds the same features to each of its tokens. The sines make it
periodic in each fraction. Equivariant under permutations of sites, not under common shifts, so that what shift symmetry
is worth, and how a method gives it, can be told from a comparison.

`n_pair_harmonics` makes it a pairformer of the torus (`bench.backbones.pairformer`): attention has biases and values
of pairs, p_ij = sin|cos(2 pi k (f_i - f_j)), which shifts leave alone. Tokens still see the fractions, so that it can
learn invariance in few steps and is not made to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.backbones.dit import Block, TimeEmbedding, Trunk, modulate, xavier_linear, zero_linear
from bench.backbones.pairformer import PairAttention
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
from bench.nn.padded import slots_of
from bench.references import EQUIBENCH, Reference
from bench.registry import backbones
from bench.structures.prompts import WIDTH


@dataclass
class FractionsConfig:
    """Options of the transformer; a named size sets the first four."""

    width: int = 384
    depth: int = 12
    n_heads: int = 6
    n_harmonics: int = 16  # K
    n_pair_harmonics: int = 0  # of differences of fractions, in attention; 0: a plain transformer
    mlp_ratio: int = 4
    time_scale: float = 1000.0  # of the fastest time feature, rad


class PairTrunk(nn.Module):
    """Time embedding and blocks of the transformer with pairs."""

    def __init__(self, cfg: FractionsConfig) -> None:
        super().__init__()
        self.n_heads, self.orders, channels = cfg.n_heads, range(1, cfg.n_pair_harmonics + 1), 6 * cfg.n_pair_harmonics
        self.time = TimeEmbedding(cfg.width, cfg.time_scale)
        self.bias = zero_linear(channels, cfg.depth * cfg.n_heads, layer=Float32Linear)
        self.blocks = nn.ModuleList(
            Block(cfg.width, cfg.mlp_ratio, PairAttention(cfg.width, cfg.n_heads, channels)) for _ in range(cfg.depth)
        )

    def forward(self, tokens: Float[Tensor, "A H"], t: Float[Tensor, "B"], z: State) -> tuple[Tensor, Tensor]:
        """Tokens after the last block [A, H] and SiLU of the time embedding [B, H]."""
        slots = slots_of(z.layout)
        f = slots.pad(z.frac)
        p = harmonics((f[:, :, None] - f[:, None]).flatten(0, 2), self.orders).unflatten(0, (*f.shape[:2], f.shape[1]))
        bias = self.bias(p).masked_fill(~slots.filled[:, None, :, None], float("-inf")).permute(0, 3, 1, 2)
        tokens, c = tokens.to(t.dtype), F.silu(self.time(t))  # the residual stream is float32 also under autocast
        for block, of_block in zip(self.blocks, bias.split(self.n_heads, dim=1), strict=True):
            tokens = block(tokens, c, z.layout, of_block, p, slots)
        return tokens, c


@backbones.register("fractions", FractionsConfig)
class Fractions(nn.Module):
    """Transformer of crystals on fractions as they are (sines and cosines); not invariant under common shifts."""

    equivariant: ClassVar[bool] = False
    one_size: ClassVar[bool] = True  # so that tasks of molecules, whose states have no cell, refuse it
    contexts: ClassVar[frozenset[str]] = frozenset({COMPOSITION, DESCRIBED})
    references: ClassVar[tuple[Reference, ...]] = (EQUIBENCH,)
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 32, "depth": 2, "n_heads": 2, "n_harmonics": 4},
        "small": {"width": 96, "depth": 4, "n_heads": 4, "n_harmonics": 8},
        "medium": {"width": 192, "depth": 8, "n_heads": 6, "n_harmonics": 16},
        "large": {"width": 384, "depth": 12, "n_heads": 6, "n_harmonics": 16},
    }

    def __init__(self, cfg: FractionsConfig, channels: Mapping[str, int], context: str | None = None) -> None:
        super().__init__()
        require_crystals("fractions", dict(channels), context)
        if cfg.width % cfg.n_heads:
            raise ValueError(f"width {cfg.width} is not divisible by n_heads {cfg.n_heads}; choose a multiple")
        self.n_harmonics = cfg.n_harmonics
        self.elements = nn.Embedding(MAX_NUMBER, cfg.width)
        self.places = xavier_linear(6 * cfg.n_harmonics, cfg.width, layer=Float32Linear)
        self.lattice = xavier_linear(9, cfg.width, layer=Float32Linear)
        if cfg.n_pair_harmonics:
            self.trunk = PairTrunk(cfg)
        else:
            self.trunk = Trunk(cfg.width, cfg.depth, cfg.n_heads, cfg.mlp_ratio, cfg.time_scale)
        self.modulation = zero_linear(cfg.width, 2 * cfg.width)
        self.frac = zero_linear(cfg.width, 3, layer=Float32Linear)
        self.cell = zero_linear(cfg.width, 9, layer=Float32Linear)
        self.text = TextHead(WIDTH, cfg.width) if context == DESCRIBED else None

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: frac part [A, 3] and cell part [B, 9]; zero at initialisation."""
        waves = harmonics(z.frac, range(1, self.n_harmonics + 1))
        tokens = self.elements(numbers_of(z) - 1) + self.places(waves) + z.per_atom(self.lattice(z.cell))
        if self.text is not None:
            tokens = tokens + z.per_atom(self.text(z))
        tokens, c = self.trunk(tokens, t, z) if isinstance(self.trunk, PairTrunk) else self.trunk(tokens, t, z.layout)
        tokens = modulate(tokens, self.modulation(c).to(tokens.dtype), z.layout)
        return z.replace(frac=self.frac(tokens), cell=self.cell(z.mean_over_atoms(tokens)))
