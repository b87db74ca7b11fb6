"""Linear layers on atoms in bf16, whose number of rows is rounded up.

oneDNN, which makes products in bf16 on a CPU, compiles one for every number of rows, which takes a millisecond and
memory, and keeps a thousand of them. Batches of molecules have a few hundred numbers of atoms and a network some twenty
products, so it would compile in most steps of a training. Rounded up there are few numbers.
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

MULTIPLE = 32  # numbers of rows of bf16 products are multiples of it


def padded_rows(x: Float[Tensor, "A K"]) -> Float[Tensor, "A_padded K"]:
    """x, with rows of zeros up to a multiple of `MULTIPLE` where products are bf16; else x itself."""
    if of_products() is not torch.bfloat16 or len(x) % MULTIPLE == 0:
        return x
    return F.pad(x, (0, 0, 0, -len(x) % MULTIPLE))


def row_linear(
    x: Float[Tensor, "A K"], weight: Float[Tensor, "H K"], bias: Float[Tensor, "H"] | None
) -> Float[Tensor, "A H"]:
    """x W^T + bias, its rows padded in between."""
    padded = padded_rows(x)
    return F.linear(x, weight, bias) if padded is x else F.linear(padded, weight, bias)[: len(x)]


def joint_linear(x: Float[Tensor, "B K"], layers: Sequence[nn.Linear]) -> Float[Tensor, "B sum_H"]:
    """The outputs of several layers of one input, side by side, in the precision of their weights.

    Under bf16 autocast they are one product: for few rows it is faster than many.
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
