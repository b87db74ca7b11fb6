"""SymDiff with the rotations composed as in the released code: a control, not a strategy to choose.

leozhangML/SymDiff (`DiT_DitGaussian_dynamics.gamma`) forms R = f(R0^-1 x, eta, t) R0^-1 where the method needs R0 f.
Replace x by Q x and couple R0 to Q R0: f stays, so R becomes R Q^-1 where equivariance needs Q R. The prediction is
not equivariant in law, unless f ignores its input, when f R0^-1 is Haar again.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bench.geometry.groups import gram_schmidt, product
from bench.geometry.state import State
from bench.registry import methods
from bench.symmetry.contract import Guarantee
from bench.symmetry.published import OwnWeights, PublishedWeights, StateDict
from methods.symdiff import RotationKernel, SymDiff, SymDiffConfig

# Layers outside the kernel's blocks, by their names in leozhangML/SymDiff (`DiT_DitGaussian_dynamics`, trunk
# 'gamma_enc'); None: held and never trained. Read by `bench.published.weights.transformer_names`.
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


def released_rotation(kernel: RotationKernel, z_t: State, base: Tensor, eta: Tensor, t: Tensor) -> Tensor:
    """R = f(R0^-1 x, eta, t) R0^-1 [B, 3, 3], as the released code composes it; not equivariant in law (spec 6.1).

    f with rows orthonormalised, as the reference numbers were made (the released option fix_qr, which no released
    script sets; `SymDiffAsReleased` orthonormalises columns, as they do).
    """
    return gram_schmidt(kernel.raw(z_t.rotate(base.mT), eta, t).mT).mT @ base.mT


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
)


@methods.register("symdiff_as_released", SymDiffConfig)
class SymDiffAsReleased(SymDiff):
    """SymDiff as its released code composes it, f R0^-1: not equivariant in law; kernel and options are `symdiff`'s."""

    guarantee = Guarantee.NONE
    published = PUBLISHED

    @staticmethod
    def compose(base: Float[Tensor, "B 3 3"], f: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        return product(f, base.mT)
