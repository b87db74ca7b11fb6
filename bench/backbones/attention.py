"""Attention among the atoms of each molecule, one dense block for each size: no padding, no mask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bench.molecules import Bucket, Layout


def attention(qkv: Float[Tensor, "A Q"], n_heads: int, layout: Layout) -> Float[Tensor, "A H"]:
    """softmax(q k^T / sqrt(d)) v of each molecule and head, d = H / n_heads.

    Args:
        qkv: q, k and v of all heads side by side, Q = 3 H; atoms in the order of a layout sorted by size.
    """
    if qkv.device.type == "cpu":
        # bf16 products as small as these take longer there than float32 ones
        exact = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        with torch.autocast("cpu", enabled=False):
            return _Attention.apply(exact, n_heads, layout).to(qkv.dtype)  # type: ignore[no-any-return]
    mixed = []
    for part, bucket in zip(qkv.split([b * n for n, b, _ in layout.buckets]), layout.buckets, strict=True):
        q, k, v = _heads(part, 3, n_heads, bucket).unbind(0)
        mixed.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(mixed)


def _heads(values: Tensor, n_arrays: int, n_heads: int, bucket: Bucket) -> Tensor:
    """[b n, n_arrays H] of a bucket's atoms as [n_arrays, b, heads, n, d], a view."""
    return values.view(bucket.n_molecules, bucket.n_atoms, n_arrays, n_heads, -1).permute(2, 0, 3, 1, 4)


class _Attention(torch.autograd.Function):
    """For CPUs: torch's fused attention spends longer on molecules, and autograd on joining the blocks' gradients, than
    the products take."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_heads: int, layout: Layout) -> Tensor:
        out = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
        kept = []
        for bucket in layout.buckets:
            atoms = _atoms(bucket)
            of_heads = _heads(qkv[atoms], 3, n_heads, bucket).contiguous().flatten(1, 2)
            q, k, v = of_heads
            p = torch.softmax(torch.bmm(q, k.mT).mul_(q.shape[-1] ** -0.5), dim=-1)
            _heads(out[atoms], 1, n_heads, bucket).copy_(torch.bmm(p, v).view(1, -1, n_heads, *v.shape[1:]))
            kept += [of_heads, p]
        ctx.save_for_backward(*kept)
        ctx.n_heads, ctx.layout = n_heads, layout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        out = grad.new_empty(grad.shape[0], 3 * grad.shape[1])
        kept = iter(ctx.saved_tensors)
        for bucket in ctx.layout.buckets:
            atoms = _atoms(bucket)
            (q, k, v), p = next(kept), next(kept)
            g = _heads(grad[atoms], 1, ctx.n_heads, bucket).reshape(v.shape)
            grad_p = torch.bmm(g, v.mT)
            # through softmax and scale, in place
            grad_s = grad_p.sub_((grad_p * p).sum(-1, keepdim=True)).mul_(p).mul_(q.shape[-1] ** -0.5)
            of_qkv = g.new_empty(3, *g.shape)
            torch.bmm(grad_s, k, out=of_qkv[0])
            torch.bmm(grad_s.mT, q, out=of_qkv[1])
            torch.bmm(p.mT, g, out=of_qkv[2])
            _heads(out[atoms], 3, ctx.n_heads, bucket).copy_(of_qkv.unflatten(1, (-1, ctx.n_heads)))
        return out, None, None


def _atoms(bucket: Bucket) -> slice:
    return slice(bucket.start, bucket.start + bucket.n_molecules * bucket.n_atoms)
