"""A two-layer network on all ordered pairs of atoms of one molecule and what follows it, in chunks that fit a cache.

For an atom i and its partner j (itself included), with a, b the first layer's part for each atom:
    z_ij = a_i + b_j + D_ij W_in,  m_ij = SiLU(W SiLU(z_ij) + bias),  e_ij = w m_ij + c
    `pair_scores`: e_ij,  `attended_sum`: sum_j mask_ij sigmoid(e_ij) m_ij
Two dozen element-wise passes over [P, K] would take longer than the matrix products if each went through memory, so all
steps of a chunk of pairs follow one another while its few buffers lie in a cache. Only W SiLU(z) + bias is kept for the
backward pass, which makes the rest again: that is cheaper than to write it and to read it back.

Under autocast the products, and what is kept, are bf16; everything else, sums over chunks included, is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.backbones.pairs import Block, Chunk, cached_chunks, distance_gradients, first_layer_into, sum_into
from bench.molecules import Layout

ROWS = 64  # a bf16 product has a multiple of so many: oneDNN compiles a kernel for each shape, for milliseconds

FirstLayer = tuple[Tensor, Tensor, Tensor, Tensor]  # a [A, K], b [A, K], D [P, C], W_in [C, K], all in one precision


def attended_sum(
    first: FirstLayer, inner: nn.Linear, attention: nn.Linear, mask: Float[Tensor, "P"] | None, layout: Layout
) -> Float[Tensor, "A K"]:
    """sum_j mask_ij sigmoid(e_ij) m_ij for layers inner (W, bias) and attention (w, c); no mask stands for ones."""
    return _apply(first, inner, attention, mask, layout, attended=True)


def pair_scores(first: FirstLayer, inner: nn.Linear, head: nn.Linear, layout: Layout) -> Float[Tensor, "P"]:
    """e_ij for layers inner (W, bias) and head (w, c or no c)."""
    return _apply(first, inner, head, None, layout, attended=False)


@dataclass(frozen=True)
class _Setting:
    layout: Layout
    dtype: torch.dtype  # of the products
    attended: bool
    kept: bool  # for a backward pass


class _Products:
    """Operands and results of matrix products in a precision that may be lower than the rest of the work."""

    def __init__(self, setting: _Setting, like: Tensor, n_pairs: int, n_buffers: int) -> None:
        self.rounded = setting.dtype != like.dtype
        shape = (n_buffers, self.rows(n_pairs), like.shape[1]) if self.rounded else (0,)
        self.buffers = like.new_empty(shape, dtype=setting.dtype)

    def rows(self, n: int) -> int:
        """Rows of a product of n pairs."""
        return -(-n // ROWS) * ROWS if self.rounded else n

    def operand(self, values: Tensor, buffer: int) -> Tensor:
        """Values in the precision of products, followed by rows of zeros."""
        if not self.rounded:
            return values
        n = values.shape[0]
        out = self.buffers[buffer, : self.rows(n)]
        out[:n].copy_(values)
        out[n:].zero_()
        return out

    def exact(self, values: Tensor, buffer: Tensor) -> Tensor:
        """What products made or take, in the precision of the rest; a mixed operation takes longer than a copy."""
        return buffer.copy_(values) if self.rounded else values

    def result(self, values: Tensor, buffer: int) -> Tensor:
        """Where a product is written: over these values if it can be."""
        return self.buffers[buffer, : self.rows(values.shape[0])] if self.rounded else values


class _PairMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        D: Tensor,
        W_in: Tensor,
        W: Tensor,
        bias: Tensor,
        w: Tensor,
        c: Tensor | None,
        mask: Tensor | None,
        setting: _Setting,
    ) -> Tensor:
        plan, n_largest = cached_chunks(setting.layout, a.shape[1], a.device)
        products = _Products(setting, a, n_largest, 1)
        W, bias = W.to(setting.dtype), bias.to(setting.dtype)
        buffer = a.new_empty(n_largest, a.shape[1])
        # a product's last rows may reach into the next chunk's, which are written later
        n_kept = plan[-1].start if setting.kept else 0
        kept = a.new_empty(n_kept + products.rows(n_largest), a.shape[1], dtype=setting.dtype)
        scores = a.new_empty(D.shape[0])
        out = torch.empty_like(a) if setting.attended else scores
        for chunk in plan:
            z, e = buffer[: chunk.n_pairs], scores[chunk.pairs]
            first_layer_into(z, a, b, D[chunk.pairs], W_in, chunk.blocks)
            hidden = products.operand(F.silu(z, inplace=True), 0)
            second = kept.narrow(0, chunk.start if setting.kept else 0, hidden.shape[0])
            torch.addmm(bias, hidden, W.t(), out=second)
            message = _silu_into(z, second[: chunk.n_pairs])
            torch.mv(message, w, out=e)
            if c is not None:
                e += c
            if setting.attended:
                weights = _masked(e.sigmoid_(), mask, chunk)
                for block in chunk.blocks:
                    torch.bmm(_row(weights, block), _matrix(message, block), out=out[block.rows][:, None])
        if setting.kept:
            ctx.save_for_backward(a, b, D, W_in, W, w, mask, kept, scores if setting.attended else None)
        ctx.setting, ctx.with_c = setting, c is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        a, b, D, W_in, W, w, mask, kept, attention = ctx.saved_tensors
        setting = ctx.setting
        plan, n_largest = cached_chunks(setting.layout, a.shape[1], a.device)
        products = _Products(setting, a, n_largest, 3)
        buffers = a.new_empty(5, n_largest, a.shape[1])
        one = a.new_ones(())
        grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
        grad_D = D.new_empty(D.shape[1], D.shape[0]) if ctx.needs_input_grad[2] else None
        grad_W_in, grad_W = torch.zeros_like(W_in), a.new_zeros(W.shape)
        grad_bias, grad_w = torch.zeros_like(w), torch.zeros_like(w)
        grad_scores = torch.empty_like(attention) if setting.attended else grad
        for chunk in plan:
            g, hidden, slope_in, message, slope = buffers[:, : chunk.n_pairs].unbind(0)
            grad_e = grad_scores[chunk.pairs]
            first_layer_into(g, a, b, D[chunk.pairs], W_in, chunk.blocks)
            _silu_and_slope(g, hidden, slope_in, one)
            _silu_and_slope(products.exact(kept[chunk.pairs], message), message, slope, one)
            # g becomes the gradient of m ...
            if setting.attended:
                weights = _masked(attention[chunk.pairs], mask, chunk)
                for block in chunk.blocks:
                    g_i = grad[block.rows][:, None]
                    torch.bmm(g_i, _matrix(message, block).mT, out=_row(grad_e, block))
                    torch.mul(_row(weights, block).mT, g_i, out=_matrix(g, block))
                grad_e *= weights * (1 - attention[chunk.pairs])
                g.addmm_(grad_e[:, None], w[None])
            else:
                torch.mul(grad_e[:, None], w, out=g)
            grad_w.addmv_(message.t(), grad_e)
            # ... of W SiLU(z) + bias ...
            g *= slope
            grad_bias += g.sum(0)
            operand, result = products.operand(g, 0), products.result(message, 1)
            if products.rounded:  # the sum over chunks is not
                grad_W += operand.t() @ products.operand(hidden, 2)
            else:
                grad_W.addmm_(operand.t(), hidden)
            # ... and of z
            torch.mm(operand, W, out=result)
            torch.mul(products.exact(result[: chunk.n_pairs], g), slope_in, out=g)
            sum_into(grad_a, grad_b, g, chunk.blocks)
            of_D = None if grad_D is None else grad_D[:, chunk.pairs]
            distance_gradients(g, D[chunk.pairs], W_in, of_D, grad_W_in)
        grad_c = grad_scores.sum()[None] if ctx.with_c else None
        return (
            grad_a,
            grad_b,
            None if grad_D is None else grad_D.t(),
            grad_W_in,
            grad_W,
            grad_bias,
            grad_w,
            grad_c,
            None,
            None,
        )


def _masked(attention: Tensor, mask: Tensor | None, chunk: Chunk) -> Tensor:
    return attention if mask is None else attention * mask[chunk.pairs]


def _row(values: Tensor, block: Block) -> Tensor:
    """Numbers of a chunk's pairs as one row of partners for each atom of a block, [b r, 1, n]."""
    return values[block.pairs].view(-1, 1, block.n)


def _matrix(values: Tensor, block: Block) -> Tensor:
    """Vectors of a chunk's pairs as one matrix of partners for each atom of a block, [b r, n, K]."""
    return values[block.pairs].view(-1, block.n, values.shape[1])


def _silu_into(out: Tensor, z: Tensor) -> Tensor:
    if out.dtype is z.dtype:
        return torch.ops.aten.silu.out(z, out=out)  # type: ignore[no-any-return]
    return F.silu(out.copy_(z), inplace=True)


def _silu_and_slope(z: Tensor, value: Tensor, slope: Tensor, one: Tensor) -> None:
    """SiLU(z) = z s and its derivative s + SiLU(z) (1 - s), s = sigmoid(z): one exponential for both."""
    torch.sigmoid(z, out=slope)
    torch.mul(z, slope, out=value)
    torch.lerp(value, one, slope, out=slope)


def _apply(
    first: FirstLayer, inner: nn.Linear, head: nn.Linear, mask: Tensor | None, layout: Layout, attended: bool
) -> Tensor:
    D = first[2]
    device, dtype = D.device.type, D.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    setting = _Setting(layout, dtype, attended, torch.is_grad_enabled())
    with torch.autocast(device, enabled=False):
        return _PairMLP.apply(  # type: ignore[no-any-return]
            *first, inner.weight, inner.bias, head.weight[0], head.bias, mask, setting
        )
