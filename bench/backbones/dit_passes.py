"""What a DiT block does between its linear layers, for a CPU: each step one pass over its rows (dit_passes.c).

    `modulate`: (1 + scale) LayerNorm(x) + shift      `gated_sum`: x + gate (y + bias)
    `attention`: softmax(q k^T / sqrt(d)) v within molecules      `swiglu`: SiLU(u) v
Biases of linear layers are added here, where their rows are read anyway; torch's product would first copy the bias to
every row, and its backward pass read all gradients once more to sum them.
Rows are atoms, one molecule after the other; shift, scale and gate are a molecule's. As operations of torch they
would be many passes, over copies of every molecule's shift for each of its atoms and with attention called anew for
every molecule size. The backward pass of each is written here too, and makes normed rows and softmax again.

Under autocast what linear layers take and give is bf16; everything else is float32. Rows may follow those
of the last molecule (`rows.padded_rows`): the passes on molecules make them zero, and in the gradients of their rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.backbones.rows import MULTIPLE
from bench.molecules import Layout
from bench.native import Library, of_products, required, usable
from bench.threads import n_threads

SOURCE = Path(__file__).with_suffix(".c")
LANES = 16  # of dit_passes.c


def available(x: Float[Tensor, "A H"]) -> bool:
    """Whether they are for numbers that blocks add to like these, in float32."""
    return x.dtype is torch.float32 and usable(SOURCE, x)


def modulate(
    x: Float[Tensor, "A H"], shift: Float[Tensor, "B H"], scale: Float[Tensor, "B H"], layout: Layout, eps: float
) -> Float[Tensor, "A H"]:
    """(1 + scale) LayerNorm(x) + shift, the norm without parameters.

    Raises:
        ValueError: shapes that do not fit one another (here and below).
        RuntimeError: it is not `available`.
    """
    _check(x, layout, shift, scale)
    return _Modulate.apply(x, shift, scale, layout, eps, of_products())  # type: ignore[no-any-return]


def gated_sum(
    x: Float[Tensor, "A H"],
    y: Float[Tensor, "A H"],
    bias: Float[Tensor, "H"],
    gate: Float[Tensor, "B H"],
    layout: Layout,
) -> Float[Tensor, "A H"]:
    """x + gate (y + bias)."""
    _check(x, layout, gate)
    _check_bias(bias, x)
    if y.shape != x.shape:
        raise ValueError(f"y is {tuple(y.shape)}, x {tuple(x.shape)}")
    return _GatedSum.apply(x, y, bias, gate, layout)  # type: ignore[no-any-return]


def swiglu(uv: Float[Tensor, "A twice_K"], bias: Float[Tensor, "twice_K"]) -> Float[Tensor, "A K"]:
    """SiLU(u) v for [u, v] + bias."""
    _check_bias(bias, uv)
    return _SwiGLU.apply(uv, bias)  # type: ignore[no-any-return]


def attention(
    qkv: Float[Tensor, "A three_H"], bias: Float[Tensor, "three_H"], n_heads: int, layout: Layout
) -> Float[Tensor, "A H"]:
    """softmax(q k^T / sqrt(d)) v of each molecule and head, for [q, k, v] + bias."""
    _check(qkv, layout)
    _check_bias(bias, qkv)
    if qkv.shape[1] % (3 * n_heads):
        raise ValueError(f"{qkv.shape[1]} columns are not q, k and v of {n_heads} heads")
    return _Attention.apply(qkv, bias, n_heads, layout)  # type: ignore[no-any-return]


def _check(x: Tensor, layout: Layout, *modulations: Tensor) -> None:
    """C would read beyond what does not fit."""
    expected = (len(layout.sizes), x.shape[1])
    if not 0 <= len(x) - layout.n_total < MULTIPLE:
        raise ValueError(f"{len(x)} rows for {layout.n_total} atoms")
    for values in modulations:
        if values.shape != expected or values.stride(1) != 1 or values.dtype != torch.float32:
            found = f"{tuple(values.shape)}, {values.dtype}, strides {values.stride()}"
            raise ValueError(f"a modulation is {found}; expected {expected} in float32, columns of a row-major matrix")


def _check_bias(bias: Tensor, x: Tensor) -> None:
    if bias.shape != x.shape[1:] or not bias.is_contiguous() or bias.dtype != torch.float32:
        raise ValueError(f"a bias is {tuple(bias.shape)}, {bias.dtype}; expected ({x.shape[1]},) in float32")


def _c() -> Library:
    return required(SOURCE)


def _bf16(x: Tensor) -> int:
    return int(x.dtype is torch.bfloat16)


def _molecules(layout: Layout, x: Tensor) -> tuple[int, int, Tensor, int]:
    """First arguments of the C functions that go through molecules, for rows x."""
    return n_threads(x.numel()), len(layout.sizes), layout.ptr, len(x)


def _padded(n: int) -> int:
    return -(-n // LANES) * LANES


def _stride(*modulations: Tensor) -> int:
    """Numbers from one molecule's row to the next: they are columns of one matrix."""
    strides = {x.stride(0) for x in modulations}
    if len(strides) > 1:
        raise ValueError(f"rows of modulations lie {strides} numbers apart; expected columns of one matrix")
    return strides.pop()


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, layout: Layout, eps: float, dtype: torch.dtype
    ) -> Tensor:
        x, H = x.contiguous(), x.shape[1]
        out, moments = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 2)
        given = (x, shift, scale, _stride(shift, scale), eps, out, moments)
        _c().modulate(*_molecules(layout, x), H, _bf16(out), *given)
        ctx.save_for_backward(x, scale, moments)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x, scale, moments), grad, layout = ctx.saved_tensors, grads[0].contiguous(), ctx.layout
        grad_x, H = torch.empty_like(x), x.shape[1]
        grad_shift, grad_scale = x.new_empty(2, len(scale), H).unbind(0)
        given = (x, scale, _stride(scale), moments, grad, grad_x, grad_shift, grad_scale)
        _c().modulate_gradient(*_molecules(layout, x), H, _bf16(grad), *given)
        return grad_x, grad_shift, grad_scale, None, None, None


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor, gate: Tensor, layout: Layout) -> Tensor:
        x, y, H = x.contiguous(), y.contiguous(), x.shape[1]
        out = torch.empty_like(x)
        _c().gated_sum(*_molecules(layout, x), H, _bf16(y), x, y, bias, gate, _stride(gate), out)
        ctx.save_for_backward(y, bias, gate)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (y, bias, gate), grad, layout = ctx.saved_tensors, grads[0].contiguous(), ctx.layout
        grad_y, H, molecules = torch.empty_like(y), y.shape[1], _molecules(layout, y)
        grad_gate, grad_bias = gate.new_empty(len(gate), H), bias.new_zeros(molecules[0], H)
        given = (y, bias, gate, _stride(gate), grad, grad_y, grad_bias, grad_gate)
        _c().gated_sum_gradient(*molecules, H, _bf16(grad_y), *given)
        return grad, grad_y, grad_bias.sum(0), grad_gate, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, uv: Tensor, bias: Tensor) -> Tensor:
        uv, K = uv.contiguous(), uv.shape[1] // 2
        out = uv.new_empty(len(uv), K)
        _c().swiglu(n_threads(uv.numel()), len(uv), K, _bf16(uv), uv, bias, out)
        ctx.save_for_backward(uv, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        (uv, bias), grad = ctx.saved_tensors, grads[0].contiguous()
        threads = n_threads(uv.numel())
        grad_uv, grad_bias = torch.empty_like(uv), bias.new_zeros(threads, len(bias))
        given = (uv, bias, grad, grad_uv, grad_bias)
        _c().swiglu_gradient(threads, len(uv), grad.shape[1], _bf16(uv), *given)
        return grad_uv, grad_bias.sum(0)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, n_heads: int, layout: Layout) -> Tensor:
        qkv, H = qkv.contiguous(), qkv.shape[1] // 3
        out = qkv.new_empty(len(qkv), H)
        n, d = _padded(layout.n_largest), _padded(H // n_heads)
        molecules, room = _molecules(layout, qkv), n * (5 * d + n + 2)
        scratch = qkv.new_empty(molecules[0], room, dtype=torch.float32)
        _c().attention(*molecules, H, _bf16(qkv), n_heads, qkv, bias, out, scratch, room)
        ctx.save_for_backward(qkv, bias)
        ctx.n_heads, ctx.layout = n_heads, layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (qkv, bias), grad, layout = ctx.saved_tensors, grads[0].contiguous(), ctx.layout
        grad_qkv, H = torch.empty_like(qkv), grad.shape[1]
        n, d = _padded(layout.n_largest), _padded(H // ctx.n_heads)
        molecules, room = _molecules(layout, qkv), n * (8 * d + 2 * n + 2)
        scratch = qkv.new_empty(molecules[0], room, dtype=torch.float32)
        grad_bias = bias.new_zeros(molecules[0], len(bias))
        given = (qkv, bias, grad, grad_qkv, grad_bias, scratch, room)
        _c().attention_gradient(*molecules, H, _bf16(qkv), ctx.n_heads, *given)
        return grad_qkv, grad_bias.sum(0), None, None
