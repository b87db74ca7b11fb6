"""A plain transformer of crystals that sees fractional coordinates as they are: nothing about shifts is built in.

    token_i = E(element_i) + W [sin|cos(2 pi k f_i), k = 1..K, each axis] + V cell,   adaLN-Zero blocks as in the DiT,
    frac noise_i = head(token_i),   cell noise = head'(mean_i token_i).
A description of the crystal, where the task gives one, adds the same features to each of its tokens. The sines make it
periodic in each fraction. Equivariant under permutations of sites, not under common shifts, so that what shift symmetry
is worth, and how a method gives it, can be told from a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from bench.backbones.dit import Trunk, modulate, xavier_linear, zero_linear
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
    mlp_ratio: int = 4
    time_scale: float = 1000.0  # of the fastest time feature, rad


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
        tokens, c = self.trunk(tokens, t, z.layout)
        tokens = modulate(tokens, self.modulation(c).to(tokens.dtype), z.layout)
        return z.replace(frac=self.frac(tokens), cell=self.cell(z.mean_over_atoms(tokens)))
