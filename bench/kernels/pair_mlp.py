"""A two-layer network on all ordered pairs of atoms of one molecule and what follows it, for a CPU.

For an atom i and its partner j, with [a, b] the first layer's parts for each atom:
    z_ij = a_i + b_j + D_ij W_in,  m_ij = SiLU(W SiLU(z_ij) + bias),  e_ij = w m_ij + c
    `pair_outputs`: e_ij,  `attended_sum`: sum_j sigmoid(e_ij) m_ij
In plain torch two dozen element-wise passes over [P, K] take as long as the matrix products. Here pairs are processed
in chunks that fit the cache, each thread on its own chunks, with one C function between two products (pair_mlp.c). Only
W SiLU(z) is stored for the backward pass; the rest is recomputed, which is cheaper than memory traffic.

Under autocast the products and the stored activations are bf16; everything else, sums over chunks included, is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.backbones.egnn import Block, MessagePassing
from bench.kernels.chunks import Chunk, cached_chunks
from bench.kernels.native import Library, library, of_products, replace, required, usable
from bench.kernels.rows import MULTIPLE, row_linear
from bench.kernels.threads import on_threads, shares
from bench.nn.pairs import Pairs

SOURCE = Path(__file__).with_suffix(".c")

FirstLayer = tuple[Tensor, Tensor, Tensor]  # [a, b] [A, 2 K], D [P, C], W_in [C, K], all in one precision


def install(model: nn.Module) -> bool:
    """Replace the pair network of every EGNN and GDM block; False without such blocks or without a C compiler."""
    blocks = [module for module in model.modules() if isinstance(module, MessagePassing)]
    if not blocks or any(library(SOURCE, WIDTH=block.attention.in_features) is None for block in blocks):
        return False
    for block in blocks:
        replace(block, "gather", gather)
        if isinstance(block, Block):
            replace(block, "strength", strength)
        for layer in (block.node_in, block.node_out):
            replace(layer, "forward", linear_on_rows)
    return True


def gather(
    self: MessagePassing, h: Float[Tensor, "A H"], distances: Float[Tensor, "P D"] | None, pairs: Pairs
) -> Float[Tensor, "A H"]:
    """`MessagePassing.gather`."""
    if not usable(h):
        return MessagePassing.gather(self, h, distances, pairs)
    return attended_sum(first_layer(self.message_in, h, distances, pairs), self.message_out, self.attention, pairs)


def strength(
    self: Block, h: Float[Tensor, "A H"], distances: Float[Tensor, "P D"], pairs: Pairs
) -> Float[Tensor, "P 1"]:
    """`Block.strength`."""
    if not usable(h):
        return Block.strength(self, h, distances, pairs)
    first = first_layer(self.coordinate_in, h, distances, pairs)
    return pair_outputs(first, self.coordinate_mid, self.coordinate_out, pairs)[:, None]


def linear_on_rows(self: nn.Linear, input: Float[Tensor, "A K"]) -> Float[Tensor, "A H"]:
    """`nn.Linear.forward`."""
    return row_linear(input, self.weight, self.bias)


def first_layer(
    linear: nn.Linear, h: Float[Tensor, "A H"], distances: Float[Tensor, "P D"] | None, pairs: Pairs
) -> FirstLayer:
    """[a, b], D, W_in of W [h_i, h_j, D_ij] + bias = a_i + b_j + D_ij W_in."""
    H, W = h.shape[1], linear.weight
    ab = row_linear(h, torch.cat([W[:, :H], W[:, H : 2 * H]]), torch.cat([linear.bias, torch.zeros_like(linear.bias)]))
    D = h.new_empty(len(pairs.i), 0) if distances is None else distances
    return ab.to(h.dtype), D, W[:, 2 * H :].t()


def attended_sum(first: FirstLayer, inner: nn.Linear, attention: nn.Linear, pairs: Pairs) -> Float[Tensor, "A K"]:
    """sum_j sigmoid(e_ij) m_ij for layers inner (W, bias) and attention (w, c).

    Raises:
        ValueError: inconsistent shapes, or a dtype other than float32 (here and below).
        RuntimeError: the C file cannot be compiled.
    """
    return _apply(first, inner, attention, pairs, attended=True)


def pair_outputs(first: FirstLayer, inner: nn.Linear, head: nn.Linear, pairs: Pairs) -> Float[Tensor, "P"]:
    """e_ij for layers inner (W, bias) and head (w, c or no c)."""
    return _apply(first, inner, head, pairs, attended=False)


@dataclass(frozen=True)
class _Setting:
    c: Library
    plan: list[Chunk]
    products: torch.dtype
    include_self: bool
    attended: bool
    kept: bool  # store activations for a backward pass

    def n_rows(self, chunk: Chunk) -> int:
        """Pairs of a chunk, without i = j unless the network includes them."""
        return chunk.n_pairs - (0 if self.include_self else chunk.n_atoms)

    def pairs(self, chunk: Chunk) -> slice:
        """Slice of a chunk's pairs in arrays of all pairs."""
        start = chunk.start - (0 if self.include_self else chunk.first_atom)
        return slice(start, start + self.n_rows(chunk))

    def n_padded(self, chunk: Chunk) -> int:
        """Rows of its products; padding rows are zero in their operands."""
        return -(-self.n_rows(chunk) // MULTIPLE) * MULTIPLE if self.products is torch.bfloat16 else self.n_rows(chunk)

    def of(self, chunk: Chunk) -> tuple[Tensor, int, int, int]:
        """Leading arguments of every C function."""
        return chunk.table, len(chunk.blocks), int(self.include_self), int(self.products is torch.bfloat16)

    def buffer(self, chunks: list[tuple[int, Chunk]], like: Tensor) -> Tensor:
        """Buffer for the product rows of the largest of these chunks."""
        return like.new_empty(max(self.n_padded(chunk) for _, chunk in chunks), like.shape[1], dtype=self.products)

    def of_partners(self, chunks: list[tuple[int, Chunk]], like: Tensor) -> Tensor:
        """Buffer with a row for each partner of one atom, for the largest molecule in these chunks."""
        return like.new_empty(max(block.n for _, chunk in chunks for block in chunk.blocks), like.shape[1])

    @property
    def shares(self) -> list[list[tuple[int, Chunk]]]:
        """The chunks of each thread, with their indices in the plan."""
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
        outputs = ab.new_empty(D.shape[0])
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
                setting.c.first_layer(*setting.of(chunk), ab, D[setting.pairs(chunk)], W_in, C, hidden, None)
                hidden[setting.n_rows(chunk) :] = 0
                torch.mm(hidden, products, out=second)
                setting.c.messages(*setting.of(chunk), second, bias, w, constant, m, outputs[setting.pairs(chunk)], out)

        on_threads(work, setting.shares)
        if setting.kept:
            ctx.save_for_backward(ab, D, W_in, W, bias, w, outputs if setting.attended else None, stored)
            ctx.setting, ctx.with_c = setting, c is not None
        return outputs if out is None else out

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
                setting.c.first_layer(*of_chunk, ab, D[setting.pairs(chunk)], W_in, C, hidden, slopes)
                of_sums = (
                    (None, grad[setting.pairs(chunk)]) if attention is None else (attention[setting.pairs(chunk)], grad)
                )
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
                of_D = None if grad_D is None else grad_D[setting.pairs(chunk)]
                setting.c.first_gradient(
                    *of_chunk, moved, slopes, D[setting.pairs(chunk)], W_in, C, grad_ab, of_D, grad_W_in
                )  # fmt: skip
            return sums

        first, *others = on_threads(work, setting.shares)
        for other in others:
            torch._foreach_add_(first, other)
        grad_ab, grad_W_in, grad_W, grad_bias, grad_w, grad_c = first
        return grad_ab, grad_D, grad_W_in, grad_W, grad_bias, grad_w, grad_c if ctx.with_c else None, None


def _apply(first: FirstLayer, inner: nn.Linear, head: nn.Linear, pairs: Pairs, attended: bool) -> Tensor:
    ab, D, W_in = (x.contiguous() for x in first)
    K, n_atoms, n_pairs = W_in.shape[1], pairs.layout.n_total, len(pairs.i)
    shapes = [tuple(x.shape) for x in (ab, D, inner.weight, head.weight)]
    if shapes != [(n_atoms, 2 * K), (n_pairs, len(W_in)), (K, K), (1, K)]:
        raise ValueError(f"[a, b], D, W and w are {shapes}: not of {n_atoms} atoms, {n_pairs} pairs, width {K}")
    plan = cached_chunks(pairs.layout, K)
    c = required(SOURCE, WIDTH=K)
    setting = _Setting(c, plan, of_products(), pairs.include_self, attended, torch.is_grad_enabled())
    with torch.autocast("cpu", enabled=False):
        return _PairMLP.apply(  # type: ignore[no-any-return]
            ab, D, W_in, inner.weight, inner.bias, head.weight[0], head.bias, setting
        )
