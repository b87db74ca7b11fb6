"""Linear layers on any number of rows (atoms, pairs), for a CPU under bf16 autocast.

oneDNN, which makes products in bf16 there, compiles one for every number of rows, which takes a millisecond and
memory, and keeps a thousand of them. Batches of molecules have a few hundred numbers of atoms and a network some twenty
products, so it would compile in most steps of a training. Rounded up there are few numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.native import of_products

MULTIPLE = 64


def padded_rows(x: Float[Tensor, "... A K"]) -> Float[Tensor, "... A_padded K"]:
    """x, with rows of zeros up to a multiple of `MULTIPLE` where products are made by oneDNN."""
    missing = -x.shape[-2] % MULTIPLE
    if missing and x.device.type == "cpu" and of_products() is torch.bfloat16:
        return F.pad(x, (0, 0, 0, missing))
    return x


def row_linear(
    x: Float[Tensor, "... A K"], weight: Float[Tensor, "H K"], bias: Float[Tensor, "H"] | None
) -> Float[Tensor, "... A H"]:
    """`torch.nn.functional.linear`."""
    padded = padded_rows(x)
    return F.linear(x, weight, bias) if padded is x else F.linear(padded, weight, bias)[..., : x.shape[-2], :]


class RowLinear(nn.Linear):
    """`torch.nn.Linear`."""

    def forward(self, input: Float[Tensor, "... A K"]) -> Float[Tensor, "... A H"]:
        return row_linear(input, self.weight, self.bias)
