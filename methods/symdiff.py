"""SymDiff: stochastic symmetrisation of any network by a learned rotation kernel.

    eps_hat = R k(R^-1 z_t),   R = R0 f(R0^-1 x_t, eta, t),   R0 ~ Haar, eta ~ N(0, I)
Zhang et al., SymDiff (arXiv:2410.06262). f sees only y = R0^-1 x_t. Replace z_t by Q z_t and couple R0 to Q R0: y and f
stay, R becomes Q R, R^-1 z_t stays and eps_hat turns by Q. Q R0 is again Haar, so the prediction is equivariant in law
at any weights. The released code composes f R0^-1 instead, which is not: `symdiff_as_released`, kept for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.backbones.dit import DiT, GaussianPairEmbedding, Trunk, xavier_linear
from bench.geometry.groups import RotationGroup, gram_schmidt, product
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.nn.linear import Float32Linear
from bench.references import ZHANG_2024
from bench.registry import methods
from bench.streams import draw
from bench.symmetry.contract import Guarantee, Setting
from bench.symmetry.symmetrise import InFrame


@dataclass
class SymDiffConfig:
    """Options of the rotation kernel; the defaults are the published QM9 ones. A named size sets the first, second,
    third and fifth."""

    kernel_width: int = 128  # channels of the kernel's transformer
    kernel_depth: int = 8  # its blocks
    kernel_heads: int = 4  # its attention heads
    kernel_mlp_ratio: int = 4  # hidden width of its blocks over kernel_width
    decoder_width: int = 64  # hidden width of the layers that make the rotation
    noise_dims: int = 3  # channels of eta per atom; with 0 the rotation is a function of R0 and z_t, still in law
    atom_types: bool = False  # f also sees the noised features h, which are invariant; the published f does not
    pair_gaussians: int = 64  # of the kernel's own pair embedding, where the backbone has none to share
    pair_width: int = 64  # channels of that embedding


class RotationKernel(nn.Module):
    """f(y, eta, t) in O(3), or in SO(3), invariant under permutations of atoms.

    Args:
        cfg: sizes.
        pair_embedding: embedding of the atoms' distances; a DiT backbone shares its own, as published.
        time_scale: as in the DiT.
        n_features: F, of which a kernel with `atom_types` needs to know.
        proper: det f = +1. Over SO(3) an improper f would ask the network about mirror images, from which it could not
            tell the molecules: chirality would be lost.
    """

    def __init__(
        self,
        cfg: SymDiffConfig,
        pair_embedding: GaussianPairEmbedding,
        time_scale: float = 1.0,
        n_features: int = 0,
        proper: bool = False,
    ) -> None:
        super().__init__()
        self.proper = proper
        self.noise_dims, self.atom_types = cfg.noise_dims, cfg.atom_types
        self.pair_embedding = pair_embedding
        n_inputs = 3 + cfg.noise_dims + pair_embedding.linear.out_features + (n_features if cfg.atom_types else 0)
        self.embedding = xavier_linear(n_inputs, cfg.kernel_width, layer=Float32Linear)
        self.trunk = Trunk(cfg.kernel_width, cfg.kernel_depth, cfg.kernel_heads, cfg.kernel_mlp_ratio, time_scale)
        self.hidden = xavier_linear(cfg.kernel_width, cfg.decoder_width)
        self.matrix = xavier_linear(cfg.decoder_width, 9)

    def forward(self, y: State, eta: Float[Tensor, "A K"], t: Float[Tensor, "B"]) -> Float[Tensor, "B 3 3"]:
        """One orthogonal matrix per molecule; the columns of a 3x3 output are orthonormalised.

        Its determinant is the sign of the output's, or +1 with `proper`.

        Args:
            y: positions in the frame of the base rotation; features are an input with `atom_types` alone.
            eta: noise of each atom.
        """
        return gram_schmidt(self.raw(y, eta, t), self.proper)

    def raw(self, y: State, eta: Float[Tensor, "A K"], t: Float[Tensor, "B"]) -> Float[Tensor, "B 3 3"]:
        """The 3x3 output before it is orthonormalised."""
        inputs = [y.x, eta, self.pair_embedding(y.x, y.layout)]
        if self.atom_types:
            inputs.append(y.h)
        tokens, _ = self.trunk(self.embedding(torch.cat(inputs, dim=1)), t, y.layout)
        pooled = y.mean_over_atoms(tokens)
        # bf16 of an autocast layer would leave a matrix that is orthogonal to two digits
        return self.matrix(F.gelu(self.hidden(pooled))).view(-1, 3, 3).to(y.x.dtype)


@methods.register("symdiff", SymDiffConfig)
class SymDiff(InFrame):
    """Stochastic symmetrisation by a learned rotation kernel over a Haar base; equivariant in law at any weights."""

    guarantee = Guarantee.IN_LAW
    needs_group = RotationGroup
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"kernel_width": 16, "kernel_depth": 1, "kernel_heads": 2, "decoder_width": 16},
        "small": {"kernel_width": 48, "kernel_depth": 2, "kernel_heads": 4, "decoder_width": 32},
        "medium": {"kernel_width": 96, "kernel_depth": 6, "kernel_heads": 4, "decoder_width": 64},
        "published": {"kernel_width": 128, "kernel_depth": 8, "kernel_heads": 4, "decoder_width": 64},
        "published_large": {"kernel_width": 216, "kernel_depth": 10, "kernel_heads": 8, "decoder_width": 80},
    }
    references = (ZHANG_2024,)

    def __init__(self, cfg: SymDiffConfig, setting: Setting) -> None:
        super().__init__(cfg, setting)
        backbone = setting.backbone
        if isinstance(backbone, DiT):
            embedding, time_scale = backbone.pair_embedding, backbone.trunk.time.time_scale
        else:
            embedding, time_scale = GaussianPairEmbedding(cfg.pair_gaussians, cfg.pair_width), 1.0
        self.kernel = RotationKernel(
            cfg, embedding, time_scale, setting.channels.get("h", 0), cast(RotationGroup, self.group).proper
        )

    def frame(self, z_t: State, level: Level, rng: torch.Generator) -> Float[Tensor, "B 3 3"]:
        """R ~ gamma(. | z_t), one per molecule; gradients flow into the kernel."""
        base = self.group.haar(len(z_t), rng, z_t.x.dtype)
        shape = (len(z_t.x), self.kernel.noise_dims)
        eta = draw(torch.randn, shape, rng, per_atom=True, dtype=z_t.x.dtype)
        return self.compose(base, self.kernel(z_t.rotate(base.mT), eta, level.t))

    @staticmethod
    def compose(base: Float[Tensor, "B 3 3"], f: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        """R0 f: turns by Q where R0 does and f stays."""
        return product(base, f)
