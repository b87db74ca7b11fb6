"""A two-layer network on all ordered pairs of atoms of one molecule and what follows it, for a CPU.

For an atom i and its partner j, with [a, b] the first layer's parts for each atom:
    z_ij = a_i + b_j + D_ij W_in,  m_ij = SiLU(W SiLU(z_ij) + bias),  e_ij = w m_ij + c
    `pair_scores`: e_ij,  `attended_sum`: sum_j sigmoid(e_ij) m_ij
Two dozen element-wise passes over [P, K] take as long as the matrix products. So pairs go in chunks that fit a cache,
each thread has chunks of its own, and what lies between two products is one function in C (pair_mlp.c). Only W SiLU(z)
is kept for the backward pass, which makes the rest again: that is cheaper than to write it and to read it back.

Under autocast the products, and what is kept, are bf16; everything else, sums over chunks included, is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.geometry.layout import Layout
from bench.kernels.native import Library, of_products, required, usable
from bench.kernels.threads import on_threads, shares
from bench.nn.linear import MULTIPLE
from bench.nn.pairs import Chunk, cached_chunks

SOURCE = Path(__file__).with_suffix(".c")

FirstLayer = tuple[Tensor, Tensor, Tensor]  # [a, b] [A, 2 K], D [P, C], W_in [C, K], all in one precision


def available(x: Tensor, width: int) -> bool:
    """Whether it is for such numbers and layers of this width: float32, where `bench.kernels.native.usable`."""
    return x.dtype is torch.float32 and usable(SOURCE, x, WIDTH=width)


def attended_sum(
    first: FirstLayer, inner: nn.Linear, attention: nn.Linear, layout: Layout, itself: bool
) -> Float[Tensor, "A K"]:
    """sum_j sigmoid(e_ij) m_ij for layers inner (W, bias) and attention (w, c), over j != i, or with `itself` all j.

    Raises:
        ValueError: shapes that do not fit one another, in float32 (here and below).
        RuntimeError: it is not `available`.
    """
    return _apply(first, inner, attention, layout, itself, attended=True)


def pair_scores(first: FirstLayer, inner: nn.Linear, head: nn.Linear, layout: Layout) -> Float[Tensor, "P"]:
    """e_ij for layers inner (W, bias) and head (w, c or no c), and 0 for i = j."""
    return _apply(first, inner, head, layout, itself=False, attended=False)


@dataclass(frozen=True)
class _Setting:
    c: Library
    plan: list[Chunk]
    products: torch.dtype
    itself: bool  # whether an atom is a partner of its own
    attended: bool
    kept: bool  # for a backward pass

    def n_rows(self, chunk: Chunk) -> int:
        """Pairs of a chunk that count."""
        return chunk.n_pairs - (0 if self.itself else chunk.n_atoms)

    def n_padded(self, chunk: Chunk) -> int:
        """Rows of its products; those beyond the pairs that count are zero in their operands."""
        return -(-self.n_rows(chunk) // MULTIPLE) * MULTIPLE if self.products is torch.bfloat16 else self.n_rows(chunk)

    def of(self, chunk: Chunk) -> tuple[Tensor, int, int, int]:
        """First arguments of every C function."""
        return chunk.table, len(chunk.blocks), int(self.itself), int(self.products is torch.bfloat16)

    def buffer(self, chunks: list[tuple[int, Chunk]], like: Tensor) -> Tensor:
        """Room for the products' rows of any of these chunks."""
        return like.new_empty(max(self.n_padded(chunk) for _, chunk in chunks), like.shape[1], dtype=self.products)

    def of_partners(self, chunks: list[tuple[int, Chunk]], like: Tensor) -> Tensor:
        """Room for a row of each partner of one atom in any of these chunks."""
        return like.new_empty(max(block.n for _, chunk in chunks for block in chunk.blocks), like.shape[1])

    @property
    def shares(self) -> list[list[tuple[int, Chunk]]]:
        """The chunks of each thread, with their places in the plan."""
        return shares(list(enumerate(self.plan)))


class _PairMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ab: Tensor,
        D: Tensor,
        W_in: Tensor,
        W: Tensor,
        bias: Tensor,
        w: Tensor,
        c: Tensor | None,
        setting: _Setting,
    ) -> Tensor:
        C, K = W_in.shape
        products, constant = W.to(setting.products).t(), 0.0 if c is None else c.item()
        scores = ab.new_empty(D.shape[0])
        out = ab.new_empty(ab.shape[0], K) if setting.attended else None
        rows = [setting.n_padded(chunk) for chunk in setting.plan] if setting.kept else []
        stored = ab.new_empty(sum(rows), K, dtype=setting.products)
        kept = stored.split(rows)

        def work(share: list[tuple[int, Chunk]]) -> None:
            buffer = setting.buffer(share, W)
            rest = None if setting.kept else torch.empty_like(buffer)
            m = setting.of_partners(share, W)
            for place, chunk in share:
                hidden = buffer[: setting.n_padded(chunk)]
                second = kept[place] if rest is None else rest[: len(hidden)]
                setting.c.first_layer(*setting.of(chunk), ab, D[chunk.pairs], W_in, C, hidden, None)
                hidden[setting.n_rows(chunk) :] = 0
                torch.mm(hidden, products, out=second)
                setting.c.messages(*setting.of(chunk), second, bias, w, constant, m, scores[chunk.pairs], out)

        on_threads(work, setting.shares)
        if setting.kept:
            ctx.save_for_backward(ab, D, W_in, W, bias, w, scores if setting.attended else None, stored)
            ctx.setting, ctx.with_c = setting, c is not None
        return scores if out is None else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad = grads[0].contiguous()
        ab, D, W_in, W, bias, w, attention, stored = ctx.saved_tensors
        setting = ctx.setting
        kept = stored.split([setting.n_padded(chunk) for chunk in setting.plan])
        (C, K), products = W_in.shape, W.to(setting.products)
        grad_D = torch.empty_like(D) if ctx.needs_input_grad[1] else None

        def work(share: list[tuple[int, Chunk]]) -> list[Tensor]:
            """Gradients of [a, b], W_in, W, bias, w and c from these chunks."""
            sums = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (ab, W_in, W, bias, w, w[:1])]
            grad_ab, grad_W_in, grad_W, grad_bias, grad_w, grad_c = sums
            buffers = [setting.buffer(share, W) for _ in range(2)]
            slopes = ab.new_empty(len(buffers[0]), K)
            of_partners = setting.of_partners(share, W), setting.of_partners(share, W)
            for place, chunk in share:
                hidden, g = (buffer[: setting.n_padded(chunk)] for buffer in buffers)
                of_chunk = setting.of(chunk)
                setting.c.first_layer(*of_chunk, ab, D[chunk.pairs], W_in, C, hidden, slopes)
                of_sums = (None, grad[chunk.pairs]) if attention is None else (attention[chunk.pairs], grad)
                setting.c.second_gradient(
                    *of_chunk, kept[place], bias, w, *of_sums, *of_partners, g, grad_bias, grad_w, grad_c
                )  # fmt: skip
                hidden[setting.n_rows(chunk) :] = 0
                g[setting.n_rows(chunk) :] = 0
                if g.dtype is torch.bfloat16:  # the sum over chunks is float32
                    grad_W += g.t() @ hidden
                else:
                    grad_W.addmm_(g.t(), hidden)
                moved = torch.mm(g, products, out=hidden)
                of_D = None if grad_D is None else grad_D[chunk.pairs]
                setting.c.first_gradient(
                    *of_chunk, moved, slopes, D[chunk.pairs], W_in, C, grad_ab, of_D, grad_W_in
                )  # fmt: skip
            return sums

        first, *others = on_threads(work, setting.shares)
        for other in others:
            torch._foreach_add_(first, other)
        grad_ab, grad_W_in, grad_W, grad_bias, grad_w, grad_c = first
        return grad_ab, grad_D, grad_W_in, grad_W, grad_bias, grad_w, grad_c if ctx.with_c else None, None


def _apply(
    first: FirstLayer, inner: nn.Linear, head: nn.Linear, layout: Layout, itself: bool, attended: bool
) -> Tensor:
    ab, D, W_in = (x.contiguous() for x in first)
    K, n_atoms = W_in.shape[1], layout.n_total
    shapes = [tuple(x.shape) for x in (ab, D, inner.weight, head.weight)]
    if shapes != [(n_atoms, 2 * K), (layout.n_pairs, len(W_in)), (K, K), (1, K)]:
        raise ValueError(f"[a, b], D, W and w are {shapes}: not of {n_atoms} atoms, {layout.n_pairs} pairs, width {K}")
    plan = cached_chunks(layout, W_in.shape[1], D.device)
    setting = _Setting(required(SOURCE, WIDTH=K), plan, of_products(), itself, attended, torch.is_grad_enabled())
    with torch.autocast("cpu", enabled=False):
        return _PairMLP.apply(  # type: ignore[no-any-return]
            ab, D, W_in, inner.weight, inner.bias, head.weight[0], head.bias, setting
        )
