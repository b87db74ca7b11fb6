"""DiT: diffusion transformer over atoms with a Gaussian pair embedding, the network of SymDiff.

Peebles & Xie, Scalable diffusion models with transformers (arXiv:2212.09748); as used by Zhang et al., SymDiff
(arXiv:2410.06262). Equivariant under permutations, not under rotations: coordinates enter as they are.

    token_i = [ Linear([x_i, h_i]),  W mean_j G(d_ij) + b ]
    G_k(d) = exp(-((d - mu_k) / s_k)^2 / 2) / (sqrt(2 pi) s_k),  s_k = |raw_k| + 0.01
    block: adaLN-Zero around self-attention and around a SwiGLU MLP
Tokens are real atoms only, and attention runs within molecules, one dense block per molecule size. The released code
sums bias-carrying embeddings over padded columns, so that its outputs depend on padding; here there are none, unless
`diffusion.edm_compat` asks for what they would have added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.kernels import dit_passes
from bench.nn.gaussians import mean_gaussians
from bench.nn.linear import Float32Linear, joint_linear, padded_rows
from bench.nn.pairs import differences
from bench.nn.static import StaticLayout
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

    def forward(self, x: Float[Tensor, "A 3"], layout: Layout) -> Float[Tensor, "A E"]:
        """Rotation-invariant embedding of each atom; `layout` sorted by size."""
        # 1e-30 keeps the gradient of the root finite on the diagonal, where it is multiplied by zero
        distance = (differences(x, layout).square().sum(1) + 1e-30).sqrt()
        scale = self.raw_scale.abs() + 0.01
        gaussians = mean_gaussians(distance, self.mean, 1 / (scale * math.sqrt(2)), layout)
        p = self.linear(gaussians / (math.sqrt(2 * 3.14159) * scale))  # the published constant
        if self.edm_compat:
            n_columns = (layout.n_padded / layout.n_atoms.to(p.dtype)).index_select(0, layout.molecule)
            p = p + (n_columns - 1)[:, None] * self.linear.bias
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

    def forward(self, tokens: Float[Tensor, "A H"], layout: Layout) -> Float[Tensor, "A H"]:
        if isinstance(layout, StaticLayout):
            return self.out(_attend_padded(self.qkv(tokens), self.n_heads, layout))
        mixed = []
        for part, (n, b, _) in zip(
            self.qkv(tokens).split([b * n for n, b, _ in layout.buckets]), layout.buckets, strict=True
        ):
            # [b, n, 3, heads, width per head] -> three of [b, heads, n, width per head]
            q, k, v = part.view(b, n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            mixed.append(attend(q, k, v).transpose(1, 2).reshape(b * n, -1))
        return self.out(torch.cat(mixed))


def _attend_padded(qkv: Float[Tensor, "A three_H"], n_heads: int, layout: StaticLayout) -> Float[Tensor, "A H"]:
    """Attention of all molecules at once, each with as many places for atoms as the largest.

    Most are smaller than one tile of the kernels for sequences of several lengths, which so would save nothing.
    """
    # [B, N, 3, heads, width per head] -> three of [B, heads, N, width per head]
    q, k, v = qkv[layout.slots].unflatten(2, (3, n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    real = layout.slots != len(qkv) - 1
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, layout.place)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of each molecule and head."""
    if q.device.type == "cpu" and q.dtype is torch.bfloat16:
        # on a CPU the backward pass of small bf16 attention takes longer than all the rest of a block
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    return F.scaled_dot_product_attention(q, k, v)


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
    """adaLN-Zero transformer block."""

    def __init__(self, width: int, n_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention = Attention(width, n_heads)
        self.mlp = SwiGLU(width, mlp_ratio)
        self.modulation = zero_linear(width, 6 * width)

    def forward(self, tokens: Float[Tensor, "A H"], c: Float[Tensor, "B H"], layout: Layout) -> Float[Tensor, "A H"]:
        """c: SiLU of the time embedding."""
        modulation = self.modulation(c).to(tokens.dtype)
        of_attention, gate_a, of_mlp, gate_m = modulation.split([2 * tokens.shape[1], tokens.shape[1]] * 2, dim=1)
        tokens = tokens + per_atom(gate_a, layout) * self.attention(modulate(tokens, of_attention, layout), layout)
        return tokens + per_atom(gate_m, layout) * self.mlp(modulate(tokens, of_mlp, layout))


def modulate(
    tokens: Float[Tensor, "A H"], modulation: Float[Tensor, "B twice_H"], layout: Layout
) -> Float[Tensor, "A H"]:
    """(1 + scale) LayerNorm(tokens) + shift for modulation = [shift, scale], the norm without parameters."""
    if dit_passes.available(tokens):
        return dit_passes.modulate(tokens, modulation, layout, EPS)
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=EPS)
    shift, scale = modulation.chunk(2, dim=1)
    return normed * per_atom(1 + scale, layout) + per_atom(shift, layout)


def per_atom(values: Float[Tensor, "B H"], layout: Layout) -> Float[Tensor, "A H"]:
    """Each molecule's values for each of its atoms."""
    return values.index_select(0, layout.molecule)


class Trunk(nn.Module):
    """The transformer between token construction and head: time embedding and blocks."""

    def __init__(self, width: int, depth: int, n_heads: int, mlp_ratio: int, time_scale: float) -> None:
        super().__init__()
        self.time = TimeEmbedding(width, time_scale)
        self.blocks = nn.ModuleList(Block(width, n_heads, mlp_ratio) for _ in range(depth))

    def forward(self, tokens: Float[Tensor, "A H"], t: Float[Tensor, "B"], layout: Layout) -> tuple[Tensor, Tensor]:
        """Tokens after the last block [A, H] and SiLU of the time embedding [B, H]; all in `layout`'s order."""
        tokens = tokens.to(t.dtype)  # what blocks add to is in float32 also under autocast
        c = F.silu(self.time(t))
        if self.blocks and dit_passes.available(tokens):
            return self._in_c(tokens, c, layout), c
        for block in self.blocks:
            tokens = block(tokens, c, layout)
        return tokens, c

    def _in_c(self, tokens: Float[Tensor, "A H"], c: Float[Tensor, "B H"], layout: Layout) -> Float[Tensor, "A H"]:
        blocks, n_atoms = [cast(Block, block) for block in self.blocks], len(tokens)
        modulation = joint_linear(c, [block.modulation for block in blocks])
        layers = [(block.attention.qkv, block.attention.out, block.mlp.inner, block.mlp.outer) for block in blocks]
        tokens = padded_rows(tokens)  # once for all layers
        tokens = dit_passes.blocks(tokens, modulation, layers, blocks[0].attention.n_heads, layout, EPS)
        return tokens if len(tokens) == n_atoms else tokens[:n_atoms]


@backbones.register("dit", DiTConfig)
class DiT(nn.Module):
    """Diffusion transformer with Gaussian pair embedding (the network of SymDiff); not rotation-equivariant."""

    equivariant: ClassVar[bool] = False
    static_function: ClassVar[str] = "forward"
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

    def __init__(self, cfg: DiTConfig, n_features: int) -> None:
        super().__init__()
        if cfg.width % cfg.n_heads:
            raise ValueError(f"width {cfg.width} is not divisible by n_heads {cfg.n_heads}; choose a multiple")
        self.pair_embedding = GaussianPairEmbedding(cfg.embedding_width, cfg.width - cfg.embedding_width)
        self.atom_embedding = xavier_linear(3 + n_features, cfg.embedding_width, layer=Float32Linear)
        self.trunk = Trunk(cfg.width, cfg.depth, cfg.n_heads, cfg.mlp_ratio, cfg.time_scale)
        self.modulation = zero_linear(cfg.width, 2 * cfg.width)
        self.head = zero_linear(cfg.width, 3 + n_features, layer=Float32Linear)

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: x part [A, 3] and features [A, F]; zero at initialisation."""
        layout = z.layout.by_size
        x, h = z.layout.to_sorted(z.x), z.layout.to_sorted(z.h)
        tokens = torch.cat([self.atom_embedding(torch.cat([x, h], dim=1)), self.pair_embedding(x, layout)], dim=1)
        tokens, c = self.trunk(tokens, z.layout.molecules_to_sorted(t), layout)
        modulation = self.modulation(c).to(tokens.dtype)
        out = z.layout.from_sorted(self.head(modulate(tokens, modulation, layout)))
        return z.replace(x=out[:, :3], h=out[:, 3:])
