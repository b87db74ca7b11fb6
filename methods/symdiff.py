"""SymDiff: stochastic symmetrisation of any network by a learned rotation kernel.

    eps_hat = R k(R^-1 z_t),   R = R0 f(R0^-1 x_t, eta, t),   R0 ~ Haar, eta ~ N(0, I)
Zhang et al., SymDiff (arXiv:2410.06262). f sees only y = R0^-1 x_t. Replace z_t by Q z_t and couple R0 to Q R0: y and f
stay, R becomes Q R, R^-1 z_t stays and eps_hat turns by Q. Q R0 is again Haar, so the prediction is equivariant in law
at any weights. (The released code composes f R0^-1 instead of R0 f, which is not: see docs/methods.md.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.backbones.dit import DiT, GaussianPairEmbedding, Trunk, xavier_linear
from bench.diffusion.process import Predict
from bench.diffusion.schedule import NoiseLevel
from bench.groups import gram_schmidt
from bench.method import Guarantee, Method, Setting, symmetrised
from bench.molecules import Molecules
from bench.registry import methods
from bench.state_dict import OwnWeights, PublishedWeights, StateDict


@dataclass
class SymDiffConfig:
    """Options of the rotation kernel; the defaults are the published QM9 sizes. A named size sets the first, second,
    third and fifth."""

    kernel_width: int = 128
    kernel_depth: int = 8
    kernel_heads: int = 4
    kernel_mlp_ratio: int = 4
    decoder_width: int = 64
    noise_dims: int = 3  # channels of eta per atom
    pair_gaussians: int = 64  # of the kernel's own pair embedding, where the backbone has none to share
    pair_width: int = 64


# Layers outside the kernel's blocks, by their names in leozhangML/SymDiff (`DiT_DitGaussian_dynamics`, trunk
# 'gamma_enc'); None: held and never trained. Read by `bench.published.transformer_names`.
PUBLISHED_NAMES: dict[str, str | None] = {
    "gaussian_embedder.means.weight": "pair_embedding.mean",
    "gaussian_embedder.stds.weight": "pair_embedding.raw_scale",
    "pos_embedder": "pair_embedding.linear",
    "x_embedder": "embedding",
    "gamma_dec.fc1": "hidden",
    "gamma_dec.fc2": "matrix",
    "final_layer.linear": None,
    "final_layer.adaLN_modulation.1": None,
}


class RotationKernel(nn.Module):
    """f(y, eta, t) in O(3), invariant under permutations of atoms.

    Args:
        cfg: sizes.
        pair_embedding: embedding of the atoms' distances; a DiT backbone shares its own, as published.
        time_scale: as in the DiT.
    """

    def __init__(self, cfg: SymDiffConfig, pair_embedding: GaussianPairEmbedding, time_scale: float = 1.0) -> None:
        super().__init__()
        self.noise_dims = cfg.noise_dims
        self.pair_embedding = pair_embedding
        self.embedding = xavier_linear(3 + cfg.noise_dims + pair_embedding.linear.out_features, cfg.kernel_width)
        self.trunk = Trunk(cfg.kernel_width, cfg.kernel_depth, cfg.kernel_heads, cfg.kernel_mlp_ratio, time_scale)
        self.hidden = xavier_linear(cfg.kernel_width, cfg.decoder_width)
        self.matrix = xavier_linear(cfg.decoder_width, 9)

    def forward(self, y: Molecules, eta: Float[Tensor, "A K"], t: Float[Tensor, "B"]) -> Float[Tensor, "B 3 3"]:
        """One orthogonal matrix per molecule; the columns of a 3x3 output are orthonormalised, det = its sign.

        Args:
            y: positions in the frame of the base rotation; features are not an input.
            eta: noise of each atom.
        """
        return gram_schmidt(self.raw(y, eta, t))

    def raw(self, y: Molecules, eta: Float[Tensor, "A K"], t: Float[Tensor, "B"]) -> Float[Tensor, "B 3 3"]:
        """The 3x3 output before it is orthonormalised."""
        layout = y.layout.by_size
        x = y.layout.to_sorted(y.x)
        inputs = torch.cat([x, y.layout.to_sorted(eta), self.pair_embedding(x, layout)], dim=1)
        tokens, _ = self.trunk(self.embedding(inputs), y.layout.molecules_to_sorted(t), layout)
        pooled = y.mean_over_atoms(y.layout.from_sorted(tokens))
        return self.matrix(F.gelu(self.hidden(pooled))).view(-1, 3, 3)


def sizes_of(published: StateDict) -> dict[str, int]:
    """Options that the shapes of a published state dict tell."""
    width, inputs = (published.size("gamma_enc.x_embedder.weight", dim) for dim in (0, 1))
    return {
        "kernel_width": width,
        "kernel_depth": published.n_blocks("gamma_enc.blocks."),
        "kernel_mlp_ratio": published.size("gamma_enc.blocks.0.mlp.fc1.weight", 0) // width,
        "decoder_width": published.size("gamma_dec.fc1.weight", 0),
        "noise_dims": inputs - 3 - published.size("pos_embedder.weight", 0),
    }


def released_rotation(kernel: RotationKernel, z_t: Molecules, base: Tensor, eta: Tensor, t: Tensor) -> Tensor:
    """R = f(R0^-1 x, eta, t) R0^-1 [B, 3, 3], as the released code composes it; not equivariant in law (spec 6.1).

    f with rows orthonormalised (the released option fix_qr), as the reference numbers were made.
    """
    return gram_schmidt(kernel.raw(z_t.rotate(base.mT), eta, t).mT).mT @ base.mT


# Released weights are read by the plug-in whose class has this as `published`. They were trained with f R0^-1, so a
# plug-in that composes so should be the one; `equibench import` takes any other with these options by its name.
PUBLISHED = PublishedWeights(
    "SymDiff's DiT_DitGaussian_dynamics",
    frozenset({"gaussian_embedder", "xh_embedder", "pos_embedder", "gamma_enc", "gamma_dec", "k"}),
    backbone="dit",
    trunk="k",
    own=OwnWeights(
        module="kernel",
        trunk="gamma_enc",
        names=PUBLISHED_NAMES,
        sizes=sizes_of,
        untold=("kernel_heads",),
        config_names={
            "enc_hidden_size": "kernel_width",
            "enc_depth": "kernel_depth",
            "enc_num_heads": "kernel_heads",
            "enc_mlp_ratio": "kernel_mlp_ratio",
            "dec_hidden_features": "decoder_width",
            "noise_dims": "noise_dims",
        },
        rotation=released_rotation,
    ),
    assumed={"noise_std": 1.0},
    notes=(
        "the public code turns by f(R0^-1 x) R0^-1, this run by R0 f(R0^-1 x)",
        "the public code adds the bias of pos_embedder n_padded / n_atoms times to each atom, here once",
    ),
)


@methods.register("symdiff", SymDiffConfig)
class SymDiff(Method):
    """Stochastic symmetrisation by a learned rotation kernel over a Haar base; equivariant in law at any weights."""

    guarantee = Guarantee.IN_LAW
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"kernel_width": 16, "kernel_depth": 1, "kernel_heads": 2, "decoder_width": 16},
        "published": {"kernel_width": 128, "kernel_depth": 8, "kernel_heads": 4, "decoder_width": 64},
        "published_large": {"kernel_width": 216, "kernel_depth": 10, "kernel_heads": 8, "decoder_width": 80},
    }
    references = ("Zhang et al., SymDiff: Equivariant diffusion via stochastic symmetrisation, arXiv:2410.06262",)
    published = PUBLISHED

    def __init__(self, cfg: SymDiffConfig, setting: Setting) -> None:
        super().__init__(cfg, setting)
        backbone = setting.backbone
        if isinstance(backbone, DiT):
            self.kernel = RotationKernel(cfg, backbone.pair_embedding, backbone.trunk.time.time_scale)
        else:
            self.kernel = RotationKernel(cfg, GaussianPairEmbedding(cfg.pair_gaussians, cfg.pair_width))

    def draw(self, z_t: Molecules, level: NoiseLevel, rng: torch.Generator) -> Float[Tensor, "B 3 3"]:
        """R ~ gamma(. | z_t), one per molecule; gradients flow into the kernel."""
        base = self.group.haar(len(z_t), rng, z_t.x.dtype)
        shape = (len(z_t.x), self.kernel.noise_dims)
        eta = torch.randn(shape, generator=rng, device=rng.device, dtype=z_t.x.dtype)
        return base @ self.kernel(z_t.rotate(base.mT), eta, level.t)

    def predict(self, denoiser: Predict, z_t: Molecules, level: NoiseLevel, rng: torch.Generator) -> Molecules:
        return symmetrised(denoiser, z_t, level, self.draw(z_t, level, rng))
