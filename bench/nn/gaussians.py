"""Gaussians of distances, averaged over an atom's partners.

    out_ik = (1/N) sum_j exp(-s_ijk^2),  s_ijk = (d_ij - mu_k) r_k
The average is taken as the Gaussians are made, so that the array [P, K] of all of them is in memory in neither pass;
the backward pass makes them again. On a CPU that is one pass in C (gaussians.c) in float32; else operations of torch,
on a CPU on chunks of pairs that fit a cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.geometry.layout import Layout
from bench.kernels.native import required, usable
from bench.kernels.threads import n_threads, on_threads, shares
from bench.nn.pairs import Chunk, cached_chunks, first_pairs
from bench.nn.static import StaticLayout

SOURCE = Path(__file__).with_suffix(".c")


def mean_gaussians(
    d: Float[Tensor, "P"], mu: Float[Tensor, "K"], r: Float[Tensor, "K"], layout: Layout
) -> Float[Tensor, "A K"]:
    """(1/N) sum_j exp(-((d_ij - mu_k) r_k)^2) over all atoms j of the molecule, i included; layout sorted by size."""
    if isinstance(layout, StaticLayout):
        G = (((d[:, None] - mu) * r).square().neg()).exp()
        return layout.sum_over_partners(G) / layout.n_atoms.to(d.dtype).index_select(0, layout.molecule)[:, None]
    in_c = d.dtype is mu.dtype is r.dtype is torch.float32 and usable(SOURCE, d, WIDTH=len(mu))
    return (_InC if in_c else _MeanGaussians).apply(d, mu, r, layout)  # type: ignore[no-any-return]


class _InC(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, d: Tensor, mu: Tensor, r: Tensor, layout: Layout) -> Tensor:
        d, mu, r, K = d.contiguous(), mu.contiguous(), r.contiguous(), len(mu)
        if (len(d), len(r)) != (layout.n_pairs, K):  # C would read beyond them
            raise ValueError(f"{len(d)} distances and {len(r)} widths for {layout.n_pairs} pairs and {K} Gaussians")
        out = d.new_empty(layout.n_total, K)
        ctx.of_layout = n_threads(len(d) * K), len(layout.sizes), layout.ptr, first_pairs(layout)
        required(SOURCE, WIDTH=K).mean_gaussians(*ctx.of_layout, d, mu, r, out)
        ctx.save_for_backward(d, mu, r)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d, mu, r = ctx.saved_tensors
        grad_d = torch.empty_like(d) if ctx.needs_input_grad[0] else None
        sums = d.new_empty(ctx.of_layout[1], 2, len(mu))
        c = required(SOURCE, WIDTH=len(mu))
        c.mean_gaussians_gradient(*ctx.of_layout, d, mu, r, grads[0].contiguous(), grad_d, sums)
        sum_w, sum_ws = sums.sum(0)
        return grad_d, 2 * r * sum_w, -2 * sum_ws / r, None


class _MeanGaussians(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, d: Tensor, mu: Tensor, r: Tensor, layout: Layout) -> Tensor:
        K = mu.shape[0]
        out = d.new_empty(layout.n_total, K)

        def work(share: list[Chunk]) -> None:
            buffer = d.new_empty(max(chunk.n_pairs for chunk in share), K)
            for chunk in share:
                G = buffer[: chunk.n_pairs]
                _gaussians_into(G, _scaled_into(G, d[chunk.pairs], mu, r))
                for block in chunk.blocks:
                    torch.mean(G[block.pairs].view(-1, block.n, K), dim=1, out=out[block.rows])

        on_threads(work, shares(cached_chunks(layout, K, d.device)))
        ctx.save_for_backward(d, mu, r)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (grad,) = grads
        d, mu, r = ctx.saved_tensors
        K = mu.shape[0]
        grad_d = torch.empty_like(d) if ctx.needs_input_grad[0] else None

        def work(share: list[Chunk]) -> Tensor:
            """Sums over pairs of w and of w s, for w = s G grad / N: d out / d s = -2 s G / N."""
            sums = d.new_zeros(2, K)
            buffers = d.new_empty(2, max(chunk.n_pairs for chunk in share), K)
            for chunk in share:
                s, w = buffers[:, : chunk.n_pairs].unbind(0)
                _gaussians_into(w, _scaled_into(s, d[chunk.pairs], mu, r))
                w *= s
                for block in chunk.blocks:
                    w[block.pairs].view(-1, block.n, K).mul_((grad[block.rows] / block.n)[:, None])
                if grad_d is not None:
                    torch.mv(w, r, out=grad_d[chunk.pairs])
                sums += torch.stack([w.sum(0), s.mul_(w).sum(0)])
            return sums

        sum_w, sum_ws = torch.stack(on_threads(work, shares(cached_chunks(ctx.layout, K, d.device)))).sum(0)
        return None if grad_d is None else grad_d.mul_(-2), 2 * r * sum_w, -2 * sum_ws / r, None


def _scaled_into(out: Tensor, d: Tensor, mu: Tensor, r: Tensor) -> Tensor:
    """s = (d - mu) r [P, K]."""
    return torch.addcmul(-mu * r, d[:, None], r, out=out)


def _gaussians_into(out: Tensor, s: Tensor) -> Tensor:
    """exp(-s^2), but where that is below 1e-26: numbers near the smallest there are cost a CPU ten times as long."""
    return torch.addcmul(s.new_zeros(()), s, s, value=-1, out=out).clamp_(min=-60).exp_()
