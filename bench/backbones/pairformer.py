"""Pairformer: a transformer over atoms whose attention sees the geometry of every pair; not rotation-equivariant.

The kind of network that present generators without equivariance use: pair biases on attention as in AlphaFold 3
(Abramson et al., 2024), and values of pairs. With r_ij = x_i - x_j, d_ij = |r_ij|, u_ij = r_ij / d_ij, Gaussians g_k:

    p_ij = [g_k(d_ij), g_k(d_ij) u_ij],  token_i = Linear([x_i, h_i])
    a_ij = softmax_j(q_i k_j / sqrt(d) + w g(d_ij))          w of each block and head
    head = [sum_j a_ij v_j, sum_j a_ij p_ij]
    block: adaLN-Zero around this attention and around a SwiGLU MLP, as in the DiT
The DiT differs in its view of the geometry alone: one sum of distance embeddings per token. Directions u_ij enter as
they are, in the frame of the coordinates. Tokens are real atoms only; attention runs on padded molecules. Where a task
gives bond graphs or chains, embeddings of the atoms are added to the tokens, and those of bond and topological
distance, or of the separation along the chain, to the logits of attention, for each block and head. The tokens of
stereocentres also see their hand in the positions (`bench.nn.graph.handedness`).

Two options; Proteina (Geffner et al., 2025) has the like of both. `qk_norm` normalises q_i and k_j over the channels of
each head, with learned scales and shifts (Dehghani et al., 2023); it bounds the part of the logits that does not come
from pairs. `n_registers` adds learned tokens without a position to each molecule (Darcet et al., 2024): all tokens
attend to all, a pair with a register has no bias and no values p, and registers are dropped before the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.backbones.dit import EPS, Block, TimeEmbedding, modulate, xavier_linear, zero_linear
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.nn.chain import CHAIN
from bench.nn.context import embedding_of
from bench.nn.graph import GRAPH, handedness
from bench.nn.linear import Float32Linear, answer, features_of
from bench.nn.padded import Slots, slots_of
from bench.references import Reference
from bench.registry import backbones

# nearest and farthest centres of distance features, in scaled units: of molecules in angstrom, of chains in nanometres
OF_MOLECULES = (0.4, 12.0)
OF_CHAINS = (0.1, 5.0)


@dataclass
class PairformerConfig:
    """Options of the pairformer; a named size sets the first four."""

    width: int = 384
    depth: int = 12
    n_heads: int = 6
    n_gaussians: int = 32  # of a distance; a head reads four times as many pair channels
    mlp_ratio: int = 4
    time_scale: float = 1.0  # of the fastest time feature, rad, as in the DiT
    qk_norm: bool = False  # LayerNorm of queries and keys, in each head
    n_registers: int = 0  # learned tokens without a position, in each molecule


class PairFeatures(nn.Module):
    """Gaussians of the distances of all pairs, and the unit vectors weighted with them.

    Centres are spaced evenly in log d, each as wide as the distance to the next: bond lengths need a finer scale than
    the diameter of a molecule.
    """

    centres: Tensor
    widths: Tensor

    def __init__(self, n_gaussians: int, nearest: float, farthest: float) -> None:
        super().__init__()
        ratio = (farthest / nearest) ** (1 / (n_gaussians - 1))
        centres = nearest * ratio ** torch.arange(n_gaussians, dtype=torch.float64)
        self.register_buffer("centres", centres.float(), persistent=False)
        self.register_buffer("widths", (centres * (ratio - 1)).float(), persistent=False)

    def forward(self, x: Float[Tensor, "B N D"]) -> tuple[Float[Tensor, "B N N K"], Float[Tensor, "B N N C"]]:
        """g(d_ij), and p_ij with C = (1 + D) K channels."""
        r = x[:, :, None] - x[:, None]
        d = (r.square().sum(3, keepdim=True) + 1e-12).sqrt()
        g = torch.exp(-0.5 * ((d - self.centres) / self.widths).square())
        return g, torch.cat([g, (g[..., None] * (r / d)[..., None, :]).flatten(3)], dim=3)


class PairAttention(nn.Module):
    """Multi-head self-attention within molecules, with biases and values of pairs."""

    def __init__(self, width: int, n_heads: int, n_pair_channels: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = xavier_linear(width, 3 * width)
        self.out = xavier_linear(width + n_heads * n_pair_channels, width)
        of_head = width // n_heads
        self.q_norm, self.k_norm = (nn.LayerNorm(of_head, EPS) if qk_norm else nn.Identity() for _ in range(2))

    def forward(
        self,
        tokens: Float[Tensor, "A H"],
        bias: Float[Tensor, "B heads N N"],
        p: Float[Tensor, "B N N C"],
        slots: Slots,
    ) -> Float[Tensor, "A H"]:
        """bias: minus infinity for empty slots j."""
        q, k, v = slots.pad(self.qkv(tokens)).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        a = torch.softmax(q @ k.mT * k.shape[3] ** -0.5 + bias, dim=3).to(v.dtype)
        of_atoms, of_pairs = (a @ v).transpose(1, 2), a.transpose(1, 2) @ p.to(v.dtype)  # [B, N, heads, ...]
        return self.out(slots.unpad(torch.cat([of_atoms.flatten(2), of_pairs.flatten(2)], dim=2)))


class Registers(nn.Module):
    """Learned tokens without a position, before the atoms of each molecule."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.n = n
        self.tokens = nn.Parameter(0.02 * torch.randn(n * width))  # a vector: for Muon it is no hidden matrix

    def joined(self, layout: Layout) -> tuple[Layout, Int[Tensor, "A"]]:
        """Layout of registers and atoms, and the place of each atom in it; cached."""
        if ("registers", self.n) not in layout.memo:
            place = torch.arange(layout.n_total, device=layout.device) + self.n * (layout.molecule + 1)
            layout.memo["registers", self.n] = Layout(layout.sizes + self.n, layout.device), place
        return layout.memo["registers", self.n]

    def before(self, tokens: Float[Tensor, "A H"], layout: Layout) -> Float[Tensor, "A_and_registers H"]:
        joined, place = self.joined(layout)
        own = self.tokens.to(tokens.dtype).view(self.n, -1).repeat(len(layout.sizes), 1)
        first = torch.arange(self.n, device=layout.device).repeat(len(layout.sizes))
        first = first + joined.ptr[:-1].repeat_interleave(self.n)
        out = tokens.new_empty(joined.n_total, tokens.shape[1])
        return out.index_copy(0, first, own).index_copy(0, place, tokens)

    def pad(self, pairs: Float[Tensor, "B N N C"]) -> Float[Tensor, "B N_and_n N_and_n C"]:
        """Zeros for pairs with a register."""
        return F.pad(pairs, (0, 0, self.n, 0, self.n, 0))


@backbones.register("pairformer", PairformerConfig)
class Pairformer(nn.Module):
    """Diffusion transformer with pair biases and pair values; not rotation-equivariant."""

    equivariant: ClassVar[bool] = False
    contexts: ClassVar[frozenset[str]] = frozenset({GRAPH, CHAIN})
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "abramson2024accurate",
            "Accurate structure prediction of biomolecular interactions with AlphaFold 3",
            ("Abramson, Josh", "Adler, Jonas", "Dunger, Jack", "{others}"),
            2024,
            doi="10.1038/s41586-024-07487-w",
        ),
    )
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 32, "depth": 2, "n_heads": 2, "n_gaussians": 8},
        "small": {"width": 96, "depth": 4, "n_heads": 4, "n_gaussians": 16},
        "medium": {"width": 192, "depth": 8, "n_heads": 6, "n_gaussians": 24},
        "large": {"width": 384, "depth": 12, "n_heads": 6, "n_gaussians": 32},
    }

    def __init__(self, cfg: PairformerConfig, channels: Mapping[str, int], context: str | None = None) -> None:
        super().__init__()
        if cfg.width % cfg.n_heads:
            raise ValueError(f"width {cfg.width} is not divisible by n_heads {cfg.n_heads}; choose a multiple")
        if cfg.n_gaussians < 2:
            raise ValueError(f"n_gaussians is {cfg.n_gaussians}, expected at least 2")
        if cfg.n_registers < 0:
            raise ValueError(f"n_registers is {cfg.n_registers}, expected at least 0")
        D = channels["x"]
        n_inputs = D + channels.get("h", 0)
        self.n_heads = cfg.n_heads
        self.embedding = xavier_linear(n_inputs, cfg.width, layer=Float32Linear)
        self.pair_features = PairFeatures(cfg.n_gaussians, *(OF_CHAINS if context == CHAIN else OF_MOLECULES))
        # biases of all blocks are one product, since the geometry is the same for all
        self.bias = zero_linear(cfg.n_gaussians, cfg.depth * cfg.n_heads, layer=Float32Linear)
        self.time = TimeEmbedding(cfg.width, cfg.time_scale)
        self.blocks = nn.ModuleList(
            Block(
                cfg.width,
                cfg.mlp_ratio,
                PairAttention(cfg.width, cfg.n_heads, (1 + D) * cfg.n_gaussians, cfg.qk_norm),
            )
            for _ in range(cfg.depth)
        )
        self.modulation = zero_linear(cfg.width, 2 * cfg.width)
        self.head = zero_linear(cfg.width, n_inputs, layer=Float32Linear)
        self.graph = embedding_of(context, cfg.width, cfg.depth * cfg.n_heads, pair_std=0.0)
        self.hands = xavier_linear(10, cfg.width, layer=Float32Linear) if context == GRAPH else None
        self.registers = Registers(cfg.n_registers, cfg.width) if cfg.n_registers else None

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: x part [A, D] and features [A, F]; zero at initialisation."""
        layout, D = z.layout, z.x.shape[1]
        slots = slots_of(layout)
        g, p = self.pair_features(slots.pad(z.x))
        tokens, c = self.embedding(torch.cat([z.x, features_of(z)], dim=1)), F.silu(self.time(t))
        bias = self.bias(g)
        if self.graph is not None:
            tokens = tokens + self.graph.atoms(z)
            bias = bias + self.graph.padded_pairs(z)
        if self.hands is not None:
            tokens = tokens + self.hands(handedness(z)).to(tokens.dtype)
        joined, atoms = layout, None
        if self.registers is not None:
            joined, atoms = self.registers.joined(layout)
            tokens, bias, p = self.registers.before(tokens, layout), self.registers.pad(bias), self.registers.pad(p)
            slots = slots_of(joined)
        bias = bias.masked_fill(~slots.filled[:, None, :, None], float("-inf"))
        for block, of_block in zip(self.blocks, bias.permute(0, 3, 1, 2).split(self.n_heads, dim=1), strict=True):
            tokens = block(tokens, c, joined, of_block, p, slots)
        if atoms is not None:
            tokens = tokens.index_select(0, atoms)
        out = self.head(modulate(tokens, self.modulation(c).to(tokens.dtype), layout))
        return answer(z, out[:, :D], out[:, D:])
