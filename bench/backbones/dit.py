"""DiT: diffusion transformer over atoms with a Gaussian pair embedding, the network of SymDiff.

Peebles & Xie, Scalable diffusion models with transformers (arXiv:2212.09748); as used by Zhang et al., SymDiff
(arXiv:2410.06262). Equivariant under permutations, not under rotations: coordinates enter as they are.

    token_i = [ Linear([x_i, h_i]),  W mean_j G(d_ij) + b ]
    G_k(d) = exp(-((d - mu_k) / s_k)^2 / 2) / (sqrt(2 pi) s_k),  s_k = |raw_k| + 0.01
    block: adaLN-Zero around self-attention and around a SwiGLU MLP
Tokens are real atoms only; attention alone runs on padded molecules, with empty slots masked. The released code sums
bias-carrying embeddings over padded columns, so that its outputs depend on padding; here they do not, unless
`diffusion.edm_compat` asks for what padding would have added. Where a task gives bond graphs, embeddings of the atoms
are added to the tokens, and those of bond and topological distance to the logits of attention, for each block and head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.nn.graph import GRAPH, GraphEmbedding
from bench.nn.linear import Float32Linear, answer, features_of
from bench.nn.padded import Slots, slots_of
from bench.nn.pairs import differences, pairs_of, sum_over_partners
from bench.references import ZHANG_2024, Reference
from bench.registry import backbones

EPS = 1e-6  # of the norms


@dataclass
class DiTConfig:
    """Options of the DiT; a named size sets the first four."""

    width: int = 384
    depth: int = 12
    n_heads: int = 6
    embedding_width: int = 184  # of [x, h]; also the number of Gaussians. The pair part has width - this channels
    mlp_ratio: int = 4
    time_scale: float = 1.0  # published networks see t in [0, 1], so the fastest time feature turns by 1 rad


class GaussianPairEmbedding(nn.Module):
    """p_i = W mean_j G(d_ij) + b over all atoms j of the molecule, i included.

    Attributes:
        edm_compat: as the released code, which masks G but not what the linear layer makes of it:
            p_i = (1/N) sum over the n_padded columns j of (W G_ij + b) = W mean_j G(d_ij) + (n_padded / N) b.
    """

    def __init__(self, n_gaussians: int, width: int) -> None:
        super().__init__()
        self.edm_compat = False
        self.mean = nn.Parameter(torch.empty(n_gaussians).uniform_(0, 3))
        self.raw_scale = nn.Parameter(torch.empty(n_gaussians).uniform_(0, 3))
        self.linear = xavier_linear(n_gaussians, width, layer=Float32Linear)

    def forward(self, x: Float[Tensor, "A D"], layout: Layout) -> Float[Tensor, "A E"]:
        """Rotation-invariant embedding of each atom."""
        pairs = pairs_of(layout, include_self=True)
        # 1e-30 keeps the gradient of the root finite for i = j, where it is multiplied by zero
        distance = (differences(x, pairs).square().sum(1, keepdim=True) + 1e-30).sqrt()
        scale = self.raw_scale.abs() + 0.01
        gaussians = torch.exp(-0.5 * ((distance - self.mean) / scale).square())
        n_atoms = layout.n_atoms.to(x.dtype).index_select(0, layout.molecule)[:, None]
        mean = sum_over_partners(gaussians, pairs) / n_atoms
        p = self.linear(mean / (math.sqrt(2 * 3.14159) * scale))  # the published constant
        if self.edm_compat:
            p = p + (layout.n_padded / n_atoms - 1) * self.linear.bias
        return p


def xavier_linear(n_in: int, n_out: int, bias: bool = True, layer: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """Linear layer with Xavier-uniform weights and zero bias."""
    linear = layer(n_in, n_out, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def zero_linear(n_in: int, n_out: int, layer: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """Linear layer that starts as zero (adaLN-Zero, output)."""
    linear = layer(n_in, n_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class TimeEmbedding(nn.Module):
    """256 features cos|sin of t 10000^(-k/128), then an MLP."""

    def __init__(self, width: int, time_scale: float) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.inner = nn.Linear(256, width)
        self.outer = nn.Linear(width, width)
        for linear in (self.inner, self.outer):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B H"]:
        frequency = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128).to(
            t.dtype
        )
        angle = (t * self.time_scale)[:, None] * frequency
        return self.outer(F.silu(self.inner(torch.cat([angle.cos(), angle.sin()], dim=1))))


class Attention(nn.Module):
    """Multi-head self-attention within molecules."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = xavier_linear(width, 3 * width)
        self.out = xavier_linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "A H"], slots: Slots, bias: Float[Tensor, "B heads N N"] | None = None
    ) -> Float[Tensor, "A H"]:
        """bias: of logits, minus infinity for empty slots."""
        # [B, N, 3, heads, width per head] -> three of [B, heads, N, width per head]
        q, k, v = slots.pad(self.qkv(tokens)).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = slots.filled[:, None, None] if bias is None else bias.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(slots.unpad(mixed.transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    """Linear to r H, halves (u, v), SiLU(u) v, Linear back; v starts near 1 as in timm's initialisation."""

    def __init__(self, width: int, mlp_ratio: int) -> None:
        super().__init__()
        self.inner = xavier_linear(width, mlp_ratio * width)
        self.outer = xavier_linear(mlp_ratio * width // 2, width)
        half = mlp_ratio * width // 2
        nn.init.normal_(self.inner.weight[half:], std=1e-6)
        nn.init.ones_(self.inner.bias[half:])

    def forward(self, tokens: Float[Tensor, "A H"]) -> Float[Tensor, "A H"]:
        u, v = self.inner(tokens).chunk(2, dim=1)
        return self.outer(F.silu(u) * v)


class Block(nn.Module):
    """adaLN-Zero transformer block around an attention layer."""

    def __init__(self, width: int, mlp_ratio: int, attention: Any) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = SwiGLU(width, mlp_ratio)
        self.modulation = zero_linear(width, 6 * width)

    def forward(
        self, tokens: Float[Tensor, "A H"], c: Float[Tensor, "B H"], layout: Layout, *seen: Any
    ) -> Float[Tensor, "A H"]:
        """c: SiLU of the time embedding; seen: what attention is handed besides the tokens."""
        modulation = self.modulation(c).to(tokens.dtype)
        of_attention, gate_a, of_mlp, gate_m = modulation.split([2 * tokens.shape[1], tokens.shape[1]] * 2, dim=1)
        tokens = tokens + per_atom(gate_a, layout) * self.attention(modulate(tokens, of_attention, layout), *seen)
        return tokens + per_atom(gate_m, layout) * self.mlp(modulate(tokens, of_mlp, layout))


def modulate(
    tokens: Float[Tensor, "A H"], modulation: Float[Tensor, "B twice_H"], layout: Layout
) -> Float[Tensor, "A H"]:
    """(1 + scale) LayerNorm(tokens) + shift for modulation = [shift, scale], the norm without parameters."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=EPS)
    shift, scale = modulation.chunk(2, dim=1)
    return normed * per_atom(1 + scale, layout) + per_atom(shift, layout)


def per_atom(values: Float[Tensor, "B H"], layout: Layout) -> Float[Tensor, "A H"]:
    """Repeat each molecule's values for each of its atoms."""
    return values.index_select(0, layout.molecule)


class Trunk(nn.Module):
    """The transformer between token construction and head: time embedding and blocks."""

    def __init__(self, width: int, depth: int, n_heads: int, mlp_ratio: int, time_scale: float) -> None:
        super().__init__()
        self.time = TimeEmbedding(width, time_scale)
        self.blocks = nn.ModuleList(Block(width, mlp_ratio, Attention(width, n_heads)) for _ in range(depth))

    def forward(
        self,
        tokens: Float[Tensor, "A H"],
        t: Float[Tensor, "B"],
        layout: Layout,
        biases: Sequence[Float[Tensor, "B heads N N"]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens after the last block [A, H] and SiLU of the time embedding [B, H].

        Args:
            biases: of the attention of each block.
        """
        tokens = tokens.to(t.dtype)  # the residual stream is float32 also under autocast
        c, slots = F.silu(self.time(t)), slots_of(layout)
        for k, block in enumerate(self.blocks):
            tokens = block(tokens, c, layout, slots, *([] if biases is None else [biases[k]]))
        return tokens, c


@backbones.register("dit", DiTConfig)
class DiT(nn.Module):
    """Diffusion transformer with Gaussian pair embedding (the network of SymDiff); not rotation-equivariant."""

    equivariant: ClassVar[bool] = False
    contexts: ClassVar[frozenset[str]] = frozenset({GRAPH})
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "peebles2022scalable",
            "Scalable Diffusion Models with Transformers",
            ("Peebles, William", "Xie, Saining"),
            2022,
            arxiv="2212.09748",
        ),
        ZHANG_2024,  # on molecules, with Gaussian embeddings of distances
    )
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 32, "depth": 2, "n_heads": 2, "embedding_width": 16},
        "small": {"width": 96, "depth": 4, "n_heads": 4, "embedding_width": 48},
        "medium": {"width": 192, "depth": 8, "n_heads": 6, "embedding_width": 92},
        "published": {"width": 384, "depth": 12, "n_heads": 6, "embedding_width": 184},
        "published_large": {"width": 768, "depth": 12, "n_heads": 12, "embedding_width": 382},
    }

    def __init__(self, cfg: DiTConfig, channels: Mapping[str, int], context: str | None = None) -> None:
        super().__init__()
        if cfg.width % cfg.n_heads:
            raise ValueError(f"width {cfg.width} is not divisible by n_heads {cfg.n_heads}; choose a multiple")
        n_inputs = channels["x"] + channels.get("h", 0)
        self.pair_embedding = GaussianPairEmbedding(cfg.embedding_width, cfg.width - cfg.embedding_width)
        self.atom_embedding = xavier_linear(n_inputs, cfg.embedding_width, layer=Float32Linear)
        self.trunk = Trunk(cfg.width, cfg.depth, cfg.n_heads, cfg.mlp_ratio, cfg.time_scale)
        self.modulation = zero_linear(cfg.width, 2 * cfg.width)
        self.head = zero_linear(cfg.width, n_inputs, layer=Float32Linear)
        self.graph = GraphEmbedding(cfg.width, cfg.depth * cfg.n_heads, pair_std=0.0) if context == GRAPH else None

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: x part [A, D] and features [A, F]; zero at initialisation."""
        layout, D = z.layout, z.x.shape[1]
        embedded = self.atom_embedding(torch.cat([z.x, features_of(z)], dim=1))
        tokens, biases = torch.cat([embedded, self.pair_embedding(z.x, layout)], dim=1), None
        if self.graph is not None:
            tokens = tokens + self.graph.atoms(z)
            empty = ~slots_of(layout).filled[:, None, :, None]
            bias = self.graph.padded_pairs(z).masked_fill(empty, float("-inf")).permute(0, 3, 1, 2)
            biases = bias.chunk(len(self.trunk.blocks), dim=1)
        tokens, c = self.trunk(tokens, t, layout, biases)
        modulation = self.modulation(c).to(tokens.dtype)
        out = self.head(modulate(tokens, modulation, layout))
        return answer(z, out[:, :D], out[:, D:])
