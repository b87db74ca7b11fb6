"""bf16 linear layers on atoms, with the number of rows rounded up.

oneDNN compiles a bf16 matrix product for every shape (about a millisecond) and caches a thousand of them. Batches of
molecules have a few hundred different numbers of atoms, times some twenty products of a network: without rounding most
training steps would compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.kernels.native import of_products

MULTIPLE = 32  # rows of bf16 products are padded to a multiple of this


def padded_rows(x: Float[Tensor, "A K"]) -> Float[Tensor, "A_padded K"]:
    """x padded with zero rows to a multiple of `MULTIPLE` if products are bf16, else x unchanged."""
    if of_products() is not torch.bfloat16 or len(x) % MULTIPLE == 0:
        return x
    return F.pad(x, (0, 0, 0, -len(x) % MULTIPLE))


def row_linear(
    x: Float[Tensor, "A K"], weight: Float[Tensor, "H K"], bias: Float[Tensor, "H"] | None
) -> Float[Tensor, "A H"]:
    """x W^T + bias, computed on padded rows."""
    padded = padded_rows(x)
    return F.linear(x, weight, bias) if padded is x else F.linear(padded, weight, bias)[: len(x)]


def joint_linear(x: Float[Tensor, "B K"], layers: Sequence[nn.Linear]) -> Float[Tensor, "B sum_H"]:
    """Concatenated outputs of several layers applied to one input, in the precision of their weights.

    Under bf16 autocast they are fused into one product, which is faster for few rows.
    """
    if of_products() is not torch.bfloat16:
        return torch.cat([layer(x).to(layer.weight.dtype) for layer in layers], dim=1)
    with torch.autocast("cpu", enabled=False):
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return _JointLinear.apply(x, len(layers), *weights, *biases)  # type: ignore[no-any-return]


class _JointLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int, *given: Tensor) -> Tensor:
        weights, biases, x16 = given[:n], given[n:], x.bfloat16()
        ctx.widths, ctx.dtype = [len(W) for W in weights], x.dtype
        W = x16.new_empty(sum(ctx.widths), x.shape[1])
        torch._foreach_copy_(W.split(ctx.widths), weights)
        ctx.save_for_backward(x16, W)
        return x16 @ W.t() + torch.cat(biases)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x16, W = ctx.saved_tensors
        g, of_biases = grads[0].bfloat16(), grads[0].sum(0).split(ctx.widths)
        return (g @ W).to(ctx.dtype), None, *(g.t() @ x16).split(ctx.widths), *of_biases
