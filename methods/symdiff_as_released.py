"""SymDiff with the rotations composed as in the released code: a control, not a strategy to choose.

leozhangML/SymDiff (`DiT_DitGaussian_dynamics.gamma`) forms R = f(R0^-1 x, eta, t) R0^-1 where the method needs R0 f.
Replace x by Q x and couple R0 to Q R0: f stays, so R becomes R Q^-1 where equivariance needs Q R. The prediction is
not equivariant in law, unless f ignores its input, when f R0^-1 is Haar again.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bench.method import Guarantee
from bench.registry import methods
from methods.symdiff import SymDiff, SymDiffConfig


@methods.register("symdiff_as_released", SymDiffConfig)
class SymDiffAsReleased(SymDiff):
    """SymDiff as its released code composes it, f R0^-1: not equivariant in law; kernel and options are `symdiff`'s."""

    guarantee = Guarantee.NONE

    @staticmethod
    def compose(base: Float[Tensor, "B 3 3"], f: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        return f @ base.mT
