"""Gaussians of distances, averaged over an atom's partners in chunks of pairs that fit a cache.

    out_ik = (1/N) sum_j exp(-s_ijk^2),  s_ijk = (d_ij - mu_k) r_k
The average is taken as the Gaussians are made, so that the array [P, K] of all of them is in memory in neither pass;
the backward pass makes them again.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.backbones.pairs import cached_chunks
from bench.molecules import Layout


def mean_gaussians(
    d: Float[Tensor, "P"], mu: Float[Tensor, "K"], r: Float[Tensor, "K"], layout: Layout
) -> Float[Tensor, "A K"]:
    """(1/N) sum_j exp(-((d_ij - mu_k) r_k)^2) over all atoms j of the molecule, i included; layout sorted by size."""
    return _MeanGaussians.apply(d, mu, r, layout)  # type: ignore[no-any-return]


class _MeanGaussians(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, d: Tensor, mu: Tensor, r: Tensor, layout: Layout) -> Tensor:
        K = mu.shape[0]
        plan, n_largest = cached_chunks(layout, K, d.device)
        buffer = d.new_empty(n_largest, K)
        out = d.new_empty(int(layout.sizes.sum()), K)
        for chunk in plan:
            G = buffer[: chunk.n_pairs]
            _gaussians_into(G, _scaled_into(G, d[chunk.pairs], mu, r))
            for block in chunk.blocks:
                torch.mean(G[block.pairs].view(-1, block.n, K), dim=1, out=out[block.rows])
        ctx.save_for_backward(d, mu, r)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        d, mu, r = ctx.saved_tensors
        K = mu.shape[0]
        plan, n_largest = cached_chunks(ctx.layout, K, d.device)
        buffers = d.new_empty(2, n_largest, K)
        grad_d = torch.empty_like(d) if ctx.needs_input_grad[0] else None
        # sums over pairs of w and of w d, for w = s G grad / N: d out / d s = -2 s G / N
        sum_w, sum_wd = torch.zeros_like(mu), torch.zeros_like(mu)
        for chunk in plan:
            s, w = buffers[:, : chunk.n_pairs].unbind(0)
            _gaussians_into(w, _scaled_into(s, d[chunk.pairs], mu, r))
            w *= s
            for block in chunk.blocks:
                w[block.pairs].view(-1, block.n, K).mul_((grad[block.rows] / block.n)[:, None])
            sum_w += w.sum(0)
            sum_wd.addmv_(w.t(), d[chunk.pairs])
            if grad_d is not None:
                torch.mv(w, r, out=grad_d[chunk.pairs])
        return None if grad_d is None else grad_d.mul_(-2), 2 * r * sum_w, -2 * (sum_wd - mu * sum_w), None


def _scaled_into(out: Tensor, d: Tensor, mu: Tensor, r: Tensor) -> Tensor:
    """s = (d - mu) r [P, K]."""
    return torch.addcmul(-mu * r, d[:, None], r, out=out)


def _gaussians_into(out: Tensor, s: Tensor) -> Tensor:
    """exp(-s^2), but where that is below 1e-26: numbers near the smallest there are cost a CPU ten times as long."""
    return torch.addcmul(s.new_zeros(()), s, s, value=-1, out=out).clamp_(min=-60).exp_()
