"""A DiT block for a CPU: what lies between two matrix products is one pass over its rows (dit_passes.c).

    `modulate`: (1 + scale) LayerNorm(x) + shift, the norm without parameters
    `block`: y = x + gate_a (W_out Attention(W_qkv modulate(x) + b_qkv) + b_out)
             y + gate_m (W_outer SwiGLU(W_inner modulate(y) + b_inner) + b_outer)
Rows are atoms, one molecule after the other; shift, scale and gate are a molecule's. As operations of torch it would be
many passes, over copies of every molecule's shift for each of its atoms and with attention called anew for every
molecule size. Biases are added where rows are read anyway: torch's product would first copy the bias to every row, and
its backward pass read all gradients once more to sum them. The backward pass is written here too, for the whole block:
two dozen nodes of autograd take as long as one of these passes.

Under autocast what linear layers take and give is bf16; everything else is float32. Rows may follow those of the last
molecule (`rows.padded_rows`): the passes on molecules make them zero, and in the gradients of their rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.backbones.rows import MULTIPLE
from bench.molecules import Layout
from bench.native import Library, of_products, required, usable
from bench.threads import n_threads

SOURCE = Path(__file__).with_suffix(".c")
LANES = 8  # of dit_passes.c

Layers = tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]  # qkv, out, inner, outer


def available(x: Float[Tensor, "A H"]) -> bool:
    """Whether they are for numbers that blocks add to like these, in float32."""
    return x.dtype is torch.float32 and usable(SOURCE, x)


def modulate(
    x: Float[Tensor, "A H"], modulation: Float[Tensor, "B twice_H"], layout: Layout, eps: float
) -> Float[Tensor, "A H"]:
    """(1 + scale) LayerNorm(x) + shift, for modulation = [shift, scale].

    Raises:
        ValueError: shapes that do not fit one another, or other numbers than float32 (here and below).
        RuntimeError: it is not `available`.
    """
    _check(x, modulation, 2, layout)
    return _Modulate.apply(x, modulation, Passes(layout, of_products(), eps))  # type: ignore[no-any-return]


def block(
    x: Float[Tensor, "A H"],
    modulation: Float[Tensor, "B six_H"],
    layers: Layers,
    n_heads: int,
    layout: Layout,
    eps: float,
) -> Float[Tensor, "A H"]:
    """The tokens after a block, for modulation = [shift_a, scale_a, gate_a, shift_m, scale_m, gate_m]."""
    _check(x, modulation, 6, layout)
    H, given = x.shape[1], [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    K = given[6].shape[1]
    expected = [(3 * H, H), (3 * H,), (H, H), (H,), (2 * K, H), (2 * K,), (H, K), (H,)]
    if [tuple(tensor.shape) for tensor in given] != expected or any(x.dtype != torch.float32 for x in given):
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in given]
        raise ValueError(f"linear layers are {found}; expected {expected} in float32")
    if H % n_heads:
        raise ValueError(f"{H} channels are not those of {n_heads} heads")
    passes = Passes(layout, of_products(), eps)
    with torch.autocast("cpu", enabled=False):  # the function casts what goes into its products itself
        return _Block.apply(x, modulation, *given, n_heads, passes)  # type: ignore[no-any-return]


def _check(x: Tensor, modulation: Tensor, n_parts: int, layout: Layout) -> None:
    """C would read beyond what does not fit."""
    if x.dtype != torch.float32 or not 0 <= len(x) - layout.n_total < MULTIPLE:
        raise ValueError(f"{len(x)} rows in {x.dtype} for {layout.n_total} atoms; expected float32")
    expected = (len(layout.sizes), n_parts * x.shape[1])
    if modulation.shape != expected or modulation.dtype != torch.float32:
        raise ValueError(
            f"a modulation is {tuple(modulation.shape)} in {modulation.dtype}; expected {expected} in float32"
        )


def _padded(n: int) -> int:
    return -(-n // LANES) * LANES


@dataclass(frozen=True)
class Passes:
    """The C functions for a layout: each takes contiguous arrays, except that modulations are columns of one."""

    layout: Layout
    products: torch.dtype  # of what goes into matrix products and comes out of them
    eps: float

    @property
    def c(self) -> Library:
        return required(SOURCE)

    @property
    def weights_before(self) -> Tensor:
        """Softmax weights of one head in the molecules before each, and in all [B + 1]; made once for a layout."""
        memo = self.layout.memo
        if "weights before" not in memo:
            n = torch.as_tensor(self.layout.sizes)
            memo["weights before"] = F.pad((n * ((n + LANES - 1) // LANES * LANES)).cumsum(0), (1, 0))
        return memo["weights before"]

    def threads(self, x: Tensor) -> int:
        return n_threads(x.numel())

    def of(self, x: Tensor) -> tuple[Any, ...]:
        """First arguments of the functions that go through molecules, for rows of H."""
        A, H = x.shape
        return self.threads(x), len(self.layout.sizes), self.layout.ptr, A, H, int(self.products is torch.bfloat16)

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and the mean and inverse deviation of each row."""
        out, moments = torch.empty_like(x, dtype=self.products), x.new_empty(len(x), 2)
        self.c.modulate(*self.of(x), x, shift, scale, shift.stride(0), self.eps, out, moments)
        return out, moments

    def modulate_gradient(
        self,
        x: Tensor,
        scale: Tensor,
        moments: Tensor,
        grad: Tensor,
        beside: Tensor | None,
        of_shift: Tensor,
        of_scale: Tensor,
    ) -> Tensor:
        out = torch.empty_like(x)
        given = (x, scale, scale.stride(0), moments, grad, beside, out, of_shift, of_scale, of_scale.stride(0))
        self.c.modulate_gradient(*self.of(x), *given)
        return out

    def gated_sum(self, x: Tensor, y: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        """x + gate (y + bias)."""
        out = torch.empty_like(x)
        self.c.gated_sum(*self.of(x), x, y, bias, gate, gate.stride(0), out)
        return out

    def gated_sum_gradient(
        self, y: Tensor, bias: Tensor, gate: Tensor, grad: Tensor, of_bias: Tensor, of_gate: Tensor
    ) -> Tensor:
        out = torch.empty_like(y)
        given = (y, bias, gate, gate.stride(0), grad, out, of_bias, of_bias.stride(0), of_gate, of_gate.stride(0))
        self.c.gated_sum_gradient(*self.of(y), *given)
        return out

    def swiglu(self, uv: Tensor, bias: Tensor) -> Tensor:
        """SiLU(u) v for [u, v] + bias."""
        A, K = len(uv), uv.shape[1] // 2
        out = uv.new_empty(A, K)
        self.c.swiglu(self.threads(uv), A, K, int(self.products is torch.bfloat16), uv, bias, out)
        return out

    def swiglu_gradient(self, uv: Tensor, bias: Tensor, grad: Tensor, of_bias: Tensor) -> Tensor:
        A, K, out = len(uv), uv.shape[1] // 2, torch.empty_like(uv)
        given = (uv, bias, grad, out, of_bias, of_bias.stride(0))
        self.c.swiglu_gradient(len(of_bias), A, K, int(self.products is torch.bfloat16), *given)
        return out

    def attention(self, qkv: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
        """softmax(q k^T / sqrt(d)) v of each molecule and head, for [q, k, v] + bias; and softmax itself."""
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        n, d = _padded(self.layout.n_largest), _padded(out.shape[1] // n_heads)
        before = self.weights_before
        weights = bias.new_empty(n_heads * int(before[-1]))
        room = n * ((4 * n_heads + 1) * d + 2)
        scratch = bias.new_empty(self.threads(out), room)
        self.c.attention(*self.of(out), n_heads, qkv, bias, out, weights, before, scratch, room)
        return out, weights

    def attention_gradient(
        self, qkv: Tensor, bias: Tensor, weights: Tensor, n_heads: int, grad: Tensor, of_bias: Tensor
    ) -> Tensor:
        out = torch.empty_like(qkv)
        n, d = _padded(self.layout.n_largest), _padded(grad.shape[1] // n_heads)
        room = n * ((7 * n_heads + 1) * d + n + 1)
        scratch = bias.new_empty(self.threads(grad), room)
        given = (qkv, bias, weights, self.weights_before, grad, out, of_bias, of_bias.stride(0), scratch, room)
        self.c.attention_gradient(*self.of(grad), n_heads, *given)
        return out


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, modulation: Tensor, passes: Passes) -> Tensor:
        x, modulation = x.contiguous(), modulation.contiguous()
        out, moments = passes.modulate(x, *modulation.chunk(2, dim=1))
        ctx.save_for_backward(x, modulation, moments)
        ctx.passes = passes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x, modulation, moments), grad = ctx.saved_tensors, grads[0].contiguous()
        of_modulation, (_, scale) = torch.empty_like(modulation), modulation.chunk(2, dim=1)
        of_parts = of_modulation.chunk(2, dim=1)
        return ctx.passes.modulate_gradient(x, scale, moments, grad, None, *of_parts), of_modulation, None


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        modulation: Tensor,
        W_qkv: Tensor,
        b_qkv: Tensor,
        W_out: Tensor,
        b_out: Tensor,
        W_inner: Tensor,
        b_inner: Tensor,
        W_outer: Tensor,
        b_outer: Tensor,
        n_heads: int,
        passes: Passes,
    ) -> Tensor:
        x, b_qkv, b_out, b_inner, b_outer = (given.contiguous() for given in (x, b_qkv, b_out, b_inner, b_outer))
        modulation = modulation if modulation.stride(1) == 1 else modulation.contiguous()
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=1)
        W_qkv, W_out, W_inner, W_outer = (W.to(passes.products) for W in (W_qkv, W_out, W_inner, W_outer))
        normed_x, moments_x = passes.modulate(x, shift_a, scale_a)
        qkv = normed_x @ W_qkv.t()
        attended, weights = passes.attention(qkv, b_qkv, n_heads)
        mixed = attended @ W_out.t()
        y = passes.gated_sum(x, mixed, b_out, gate_a)
        normed_y, moments_y = passes.modulate(y, shift_m, scale_m)
        uv = normed_y @ W_inner.t()
        hidden = passes.swiglu(uv, b_inner)
        update = hidden @ W_outer.t()
        ctx.save_for_backward(
            modulation, W_qkv, b_qkv, W_out, b_out, W_inner, b_inner, W_outer, b_outer,
            x, normed_x, moments_x, qkv, weights, attended, mixed, y, normed_y, moments_y, uv, hidden, update,
        )  # fmt: skip
        ctx.n_heads, ctx.passes = n_heads, passes
        return passes.gated_sum(y, update, b_outer, gate_m)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)  # whoever calls this may have it on
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (
            modulation, W_qkv, b_qkv, W_out, b_out, W_inner, b_inner, W_outer, b_outer,
            x, normed_x, moments_x, qkv, weights, attended, mixed, y, normed_y, moments_y, uv, hidden, update,
        ) = ctx.saved_tensors  # fmt: skip
        passes, grad = ctx.passes, grads[0].contiguous()
        _, scale_a, gate_a, _, scale_m, gate_m = modulation.chunk(6, dim=1)
        of_modulation = modulation.new_empty(modulation.shape)
        of_shift_a, of_scale_a, of_gate_a, of_shift_m, of_scale_m, of_gate_m = of_modulation.chunk(6, dim=1)
        widths = [len(bias) for bias in (b_qkv, b_out, b_inner, b_outer)]
        of_biases = x.new_zeros(passes.threads(x), sum(widths))  # a row of each thread
        of_b_qkv, of_b_out, of_b_inner, of_b_outer = of_biases.split(widths, dim=1)

        g = passes.gated_sum_gradient(update, b_outer, gate_m, grad, of_b_outer, of_gate_m)
        of_W_outer = g.t() @ hidden
        g = passes.swiglu_gradient(uv, b_inner, g @ W_outer, of_b_inner)
        of_W_inner = g.t() @ normed_y
        of_y = passes.modulate_gradient(y, scale_m, moments_y, g @ W_inner, grad, of_shift_m, of_scale_m)
        g = passes.gated_sum_gradient(mixed, b_out, gate_a, of_y, of_b_out, of_gate_a)
        of_W_out = g.t() @ attended
        g = passes.attention_gradient(qkv, b_qkv, weights, ctx.n_heads, g @ W_out, of_b_qkv)
        of_W_qkv = g.t() @ normed_x
        of_x = passes.modulate_gradient(x, scale_a, moments_x, g @ W_qkv, of_y, of_shift_a, of_scale_a)
        of_weights = of_W_qkv, of_W_out, of_W_inner, of_W_outer  # which autograd casts, or leaves (`BatchLoss`)
        of_layers = zip(of_weights, of_biases.sum(0).split(widths), strict=True)
        return of_x, of_modulation, *(grad for of_layer in of_layers for grad in of_layer), None, None
