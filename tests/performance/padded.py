"""EGNN, DiT and SymDiff as their papers' code computes them: padded to the largest molecule of a batch, nothing fused.

B molecules padded to N atoms. They hold our parameters under our names (`load_state_dict`), and have the interfaces of
our networks, so that one training step runs with either (`use_reference`). The optimiser, the noising and the loss of
that step are ours, fused as they are: a ratio of step times shows the networks' difference and understates the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.backbones.dit import DiTConfig
from bench.backbones.egnn import EGNNConfig
from bench.config.run import RunConfig
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.run.model import Model
from methods.symdiff import SymDiffConfig


def atom_mask(layout: Layout) -> Tensor:
    """True for real atoms [B, N]."""
    return torch.arange(layout.n_largest, device=layout.device) < layout.n_atoms[:, None]


def padded(values: Tensor, mask: Tensor) -> Tensor:
    """Atoms one after the other [A, K] -> [B, N, K], zero where there is no atom."""
    out = values.new_zeros(*mask.shape, values.shape[1])
    out[mask] = values
    return out


# ---------------------------------------------------------------------- EGNN (arXiv:2203.17003)


def unsorted_segment_sum(values: Tensor, index: Tensor, n_segments: int) -> Tensor:
    """Sum of the rows of [E, K] that have one index, by scatter -> [n_segments, K]."""
    out = values.new_zeros(n_segments, values.shape[1])
    return out.scatter_add(0, index[:, None].expand(-1, values.shape[1]), values)


class PaddedEGNNBlock(nn.Module):
    """Messages on every ordered pair of padded atoms, an atom with itself included; masks take out what is not."""

    def __init__(self, width: int, coordinate_range: float) -> None:
        super().__init__()
        self.coordinate_range = coordinate_range
        self.message_in = nn.Linear(2 * width + 2, width)
        self.message_out = nn.Linear(width, width)
        self.attention = nn.Linear(width, 1)
        self.node_in = nn.Linear(2 * width, width)
        self.node_out = nn.Linear(width, width)
        self.coordinate_in = nn.Linear(2 * width + 2, width)
        self.coordinate_mid = nn.Linear(width, width)
        self.coordinate_out = nn.Linear(width, 1, bias=False)

    def forward(
        self, h: Tensor, x: Tensor, d0: Tensor, row: Tensor, col: Tensor, node_mask: Tensor, edge_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """h [BN, H], x [BN, 3], d0 [E, 1], row and col [E], node_mask [BN, 1], edge_mask [E, 1]."""
        difference = x[row] - x[col]
        d2 = difference.square().sum(1, keepdim=True)
        distances = torch.cat([d2, d0], dim=1)

        message = F.silu(self.message_in(torch.cat([h[row], h[col], distances], dim=1)))
        message = F.silu(self.message_out(message))
        message = message * torch.sigmoid(self.attention(message)) * edge_mask
        gathered = unsorted_segment_sum(message, row, len(h))
        h = h + self.node_out(F.silu(self.node_in(torch.cat([h, gathered], dim=1))))
        h = h * node_mask

        strength = F.silu(self.coordinate_in(torch.cat([h[row], h[col], distances], dim=1)))
        strength = self.coordinate_out(F.silu(self.coordinate_mid(strength)))
        direction = difference / (torch.sqrt(d2 + 1e-8) + 1)
        shift = direction * torch.tanh(strength) * self.coordinate_range * edge_mask
        x = (x + unsorted_segment_sum(shift, row, len(x))) * node_mask
        return h, x


class PaddedEGNN(nn.Module):
    """The network of EDM on all B N^2 padded pairs, given as index lists."""

    def __init__(self, cfg: EGNNConfig, channels: Mapping[str, int]) -> None:
        super().__init__()
        n_features = channels.get("h", 0)
        self.embedding = nn.Linear(n_features + 1, cfg.width)
        self.blocks = nn.ModuleList(PaddedEGNNBlock(cfg.width, cfg.coordinate_range) for _ in range(cfg.depth))
        self.readout = nn.Linear(cfg.width, n_features + 1)

    def forward(self, z: State, t: Tensor) -> State:
        mask = atom_mask(z.layout)
        B, N = mask.shape
        atoms = torch.arange(B * N, device=mask.device).view(B, N)
        row = atoms[:, :, None].expand(B, N, N).reshape(-1)
        col = atoms[:, None, :].expand(B, N, N).reshape(-1)
        other = ~torch.eye(N, dtype=torch.bool, device=mask.device)
        edge_mask = (mask[:, :, None] & mask[:, None, :] & other).reshape(-1, 1).to(z.x.dtype)
        node_mask = mask.reshape(-1, 1).to(z.x.dtype)

        time = t[:, None, None].expand(B, N, 1)
        h = torch.cat([padded(z.h, mask), time], dim=2).view(B * N, -1)
        x = x_in = padded(z.x, mask).view(B * N, 3)
        h = self.embedding(h) * node_mask
        d0 = (x[row] - x[col]).square().sum(1, keepdim=True)
        for block in self.blocks:
            h, x = block(h, x, d0, row, col, node_mask, edge_mask)
        features = self.readout(h)[:, :-1]
        real = mask.reshape(-1)
        return z.replace(x=(x - x_in)[real], h=features[real])


# ---------------------------------------------------------------------- DiT


class PaddedPairEmbedding(nn.Module):
    """p_i = (1/N_i) sum_j Linear(G(d_ij)) over real atoms j, with the Gaussians and the layer on all [B, N, N]."""

    def __init__(self, n_gaussians: int, width: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(n_gaussians))
        self.raw_scale = nn.Parameter(torch.empty(n_gaussians))
        self.linear = nn.Linear(n_gaussians, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, N, 3], mask [B, N] -> [B, N, E]."""
        pairs = mask[:, :, None] & mask[:, None, :]
        difference = x[:, :, None] - x[:, None]
        distance = (difference.square().sum(-1) + 1e-30).sqrt() * pairs
        scale = self.raw_scale.abs() + 0.01
        gaussians = torch.exp(-0.5 * ((distance[..., None] - self.mean) / scale) ** 2)
        gaussians = gaussians / (math.sqrt(2 * 3.14159) * scale)
        embedded = self.linear(gaussians) * pairs[..., None]
        return embedded.sum(2) / mask.sum(1)[:, None, None]


class PaddedTimeEmbedding(nn.Module):
    """256 features cos|sin of t 10000^(-k/128), MLP with SiLU."""

    def __init__(self, width: int, time_scale: float) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.inner = nn.Linear(256, width)
        self.outer = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        k = torch.arange(128, dtype=torch.float32, device=t.device)
        frequency = torch.exp(-math.log(10000) * k / 128).to(t.dtype)
        angle = (t * self.time_scale)[:, None] * frequency
        return self.outer(F.silu(self.inner(torch.cat([torch.cos(angle), torch.sin(angle)], dim=1))))


class PaddedAttention(nn.Module):
    """Multi-head attention on [B, N, H]; padded keys are masked."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        B, N, H = tokens.shape
        q, k, v = self.qkv(tokens).view(B, N, 3, self.n_heads, H // self.n_heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.out(mixed.transpose(1, 2).reshape(B, N, H))


class PaddedSwiGLU(nn.Module):
    """Linear to r H, halves (u, v), SiLU(u) v, Linear back to H."""

    def __init__(self, width: int, mlp_ratio: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, mlp_ratio * width)
        self.outer = nn.Linear(mlp_ratio * width // 2, width)

    def forward(self, tokens: Tensor) -> Tensor:
        u, v = self.inner(tokens).chunk(2, dim=-1)
        return self.outer(F.silu(u) * v)


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters, then (1 + scale) . + shift with one row per molecule."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class PaddedDiTBlock(nn.Module):
    """adaLN-Zero around attention and around the MLP."""

    def __init__(self, width: int, n_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention = PaddedAttention(width, n_heads)
        self.mlp = PaddedSwiGLU(width, mlp_ratio)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, tokens: Tensor, c: Tensor, mask: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(c)).chunk(6, dim=1)
        tokens = tokens + gate_a[:, None] * self.attention(modulated(tokens, shift_a, scale_a), mask)
        return tokens + gate_m[:, None] * self.mlp(modulated(tokens, shift_m, scale_m))


class PaddedTrunk(nn.Module):
    """Time embedding and blocks."""

    def __init__(self, width: int, depth: int, n_heads: int, mlp_ratio: int, time_scale: float) -> None:
        super().__init__()
        self.time = PaddedTimeEmbedding(width, time_scale)
        self.blocks = nn.ModuleList(PaddedDiTBlock(width, n_heads, mlp_ratio) for _ in range(depth))

    def forward(self, tokens: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        c = self.time(t)
        for block in self.blocks:
            tokens = block(tokens, c, mask)
        return tokens, c


class PaddedDiT(nn.Module):
    """The DiT of SymDiff on padded tokens."""

    def __init__(self, cfg: DiTConfig, channels: Mapping[str, int]) -> None:
        super().__init__()
        n_features = channels.get("h", 0)
        self.pair_embedding = PaddedPairEmbedding(cfg.embedding_width, cfg.width - cfg.embedding_width)
        self.atom_embedding = nn.Linear(3 + n_features, cfg.embedding_width)
        self.trunk = PaddedTrunk(cfg.width, cfg.depth, cfg.n_heads, cfg.mlp_ratio, cfg.time_scale)
        self.modulation = nn.Linear(cfg.width, 2 * cfg.width)
        self.head = nn.Linear(cfg.width, 3 + n_features)

    def forward(self, z: State, t: Tensor) -> State:
        mask = atom_mask(z.layout)
        x, h = padded(z.x, mask), padded(z.h, mask)
        tokens = torch.cat([self.atom_embedding(torch.cat([x, h], dim=2)), self.pair_embedding(x, mask)], dim=2)
        tokens, c = self.trunk(tokens * mask[..., None], t, mask)
        shift, scale = self.modulation(F.silu(c)).chunk(2, dim=1)
        out = self.head(modulated(tokens, shift, scale))[mask]
        return z.replace(x=out[:, :3], h=out[:, 3:])


# ---------------------------------------------------------------------- SymDiff (arXiv:2410.06262)


class PaddedRotationKernel(nn.Module):
    """f(y, eta, t): tokens of position, pair embedding and noise, a small DiT, mean over atoms, Q factor of a 3x3."""

    def __init__(self, cfg: SymDiffConfig, pair_embedding: nn.Module, time_scale: float) -> None:
        super().__init__()
        self.noise_dims = cfg.noise_dims
        self.pair_embedding = pair_embedding
        n_inputs = 3 + cfg.noise_dims + pair_embedding.linear.out_features
        self.embedding = nn.Linear(n_inputs, cfg.kernel_width)
        self.trunk = PaddedTrunk(cfg.kernel_width, cfg.kernel_depth, cfg.kernel_heads, cfg.kernel_mlp_ratio, time_scale)
        self.hidden = nn.Linear(cfg.kernel_width, cfg.decoder_width)
        self.matrix = nn.Linear(cfg.decoder_width, 9)

    def forward(self, y: State, eta: Tensor, t: Tensor) -> Tensor:
        mask = atom_mask(y.layout)
        x, noise = padded(y.x, mask), padded(eta, mask)
        tokens = self.embedding(torch.cat([x, noise, self.pair_embedding(x, mask)], dim=2))
        tokens, _ = self.trunk(tokens * mask[..., None], t, mask)
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        M = self.matrix(F.gelu(self.hidden(pooled))).view(-1, 3, 3)
        Q, upper = torch.linalg.qr(M)
        return Q * torch.diagonal(upper, dim1=1, dim2=2).sign().detach()[:, None, :]


class PaddedSymDiff(nn.Module):
    """R k(R^-1 z_t), R = R0 f(R0^-1 x_t, eta, t), written with plain products of rows; other hooks do nothing."""

    def __init__(self, method: nn.Module, kernel: PaddedRotationKernel) -> None:
        super().__init__()
        self.kernel = kernel
        for name in ("group", "augment", "couple", "target", "loss", "finish"):
            setattr(self, name, getattr(method, name))

    def predict(self, denoiser, z_t: State, level, rng: torch.Generator) -> State:
        base = self.group.haar(len(z_t), rng, z_t.x.dtype)
        eta = torch.randn(
            (len(z_t.x), self.kernel.noise_dims), generator=rng, device=rng.device, dtype=z_t.x.dtype
        )  # the draws of our method, in its order
        molecule = z_t.layout.molecule
        y = z_t.replace(x=(z_t.x[:, None, :] @ base[molecule]).squeeze(1))  # R0^T x as a row is x R0
        R = (base @ self.kernel(y, eta, level.t))[molecule]
        eps = denoiser(z_t.replace(x=(z_t.x[:, None, :] @ R).squeeze(1)), level)
        return eps.replace(x=(R @ eps.x[:, :, None]).squeeze(2))


# ---------------------------------------------------------------------- in the place of ours

NETWORKS = {"egnn": PaddedEGNN, "dit": PaddedDiT}


def use_reference(cfg: RunConfig, model: Model) -> None:
    """Put the reference, with this model's weights, in the place of its networks.

    Raises:
        KeyError: there is no reference of this backbone.
    """
    options = cfg.backbone.options
    network = NETWORKS[cfg.backbone.name](options, model.process.channels)
    _take_weights(network, model.denoiser.backbone)
    model.denoiser.backbone = network
    if isinstance(getattr(model.method, "kernel", None), nn.Module):
        ours = model.method.kernel
        cfg_kernel = cfg.method.options
        if hasattr(network, "pair_embedding"):
            kernel = PaddedRotationKernel(cfg_kernel, network.pair_embedding, network.trunk.time.time_scale)
        else:
            own = PaddedPairEmbedding(cfg_kernel.pair_gaussians, cfg_kernel.pair_width)
            kernel = PaddedRotationKernel(cfg_kernel, own, 1.0)
        _take_weights(kernel, ours)
        model.method = PaddedSymDiff(model.method, kernel)


def _take_weights(reference: nn.Module, ours: nn.Module) -> None:
    parameter = next(ours.parameters())
    reference.to(parameter.device, parameter.dtype)
    reference.load_state_dict(ours.state_dict())
