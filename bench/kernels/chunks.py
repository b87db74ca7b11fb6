"""Dense algebra over the ordered pairs (i, j) of atoms of one molecule, without index lists and without padding.

Molecules are sorted by size, so those of one size n form a block [b, n, n] of pairs; the P pairs of a batch are these
blocks one after the other. An atom's partners include itself (a block then needs no gather); what must not count is
masked by the caller. Gathers and scatters become broadcasts, sums and small matrix products, each of which has its
backward pass written here because autograd would keep and add up a slice per block.

Given a `StaticLayout`, as on a GPU, the same functions go over its lists of pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.geometry.layout import Layout
from bench.kernels.threads import SHARED
from bench.nn.static import StaticLayout

CACHED = 2**19  # numbers in one buffer of a chunk on a CPU; up to four are in use at a time
THIN = 4  # up to so many columns, matrix products take several times as long as one vector after the other


class Block(NamedTuple):
    """Pairs (i, j) of b molecules of one size n, with all partners j of the atoms i among them, [b, r, n]."""

    rows: slice  # atoms i, r of each molecule: all of them, or some of a single large one
    partners: slice  # atoms j
    pairs: slice  # within the chunk
    b: int
    r: int
    n: int


@dataclass(frozen=True)
class Chunk:
    """Consecutive pairs: whole molecules, or some atoms of one with all their partners."""

    start: int
    n_pairs: int
    blocks: list[Block]

    @property
    def pairs(self) -> slice:
        return slice(self.start, self.start + self.n_pairs)

    @cached_property
    def n_atoms(self) -> int:
        """Atoms i."""
        return sum(block.b * block.r for block in self.blocks)

    @cached_property
    def table(self) -> Int[Tensor, "N 6"]:
        """First atom i, first partner j, first pair, b, r, n of each block: `Block` of pair_mlp.c."""
        return torch.tensor([(x.rows.start, x.partners.start, x.pairs.start, x.b, x.r, x.n) for x in self.blocks])


def chunks(layout: Layout, n: int = 1) -> list[Chunk]:
    """All pairs of a layout sorted by size, cut between molecules, or between atoms i where a molecule is too large.

    Made once for a layout, since every layer asks for them.

    Args:
        n: chunks of about as many pairs each; fewer where there are fewer atoms.
    """
    if n not in layout.memo:
        layout.memo[n] = _cut(layout, n)
    return layout.memo[n]


def _cut(layout: Layout, n_chunks: int) -> list[Chunk]:
    ends = [-(-layout.n_pairs * (k + 1) // n_chunks) for k in range(n_chunks)]
    out: list[Chunk] = []
    blocks: list[Block] = []
    start = here = 0  # pairs before the chunk, and before what comes next
    for n, n_molecules, first_atom in layout.buckets:
        # what a chunk is filled with: a run of molecules of n n pairs, or a run of one's atoms of n pairs
        whole = n * n * n_chunks <= layout.n_pairs
        unit = n * n if whole else n
        for first in [first_atom] if whole else range(first_atom, first_atom + n_molecules * n, n):
            left, atom = n_molecules if whole else n, first
            while left:
                end = next(end for end in ends if end > here)
                fits = min(left, -(-(end - here) // unit))  # the last may reach beyond the end
                b, r = (fits, n) if whole else (1, fits)
                rows = slice(atom, atom + b * r)
                pairs = slice(here - start, here - start + fits * unit)
                blocks.append(Block(rows, rows if whole else slice(first, first + n), pairs, b, r, n))
                left, atom, here = left - fits, rows.stop, here + fits * unit
                if here >= end:
                    out.append(Chunk(start, here - start, blocks))
                    blocks, start = [], here
    return out


def cached_chunks(layout: Layout, width: int, device: torch.device) -> list[Chunk]:
    """Chunks of which a buffer of `width` numbers for each pair lies in a CPU's cache: as many for each thread."""
    if device.type != "cpu" or layout.n_pairs * width <= SHARED:
        return chunks(layout)
    n_threads = torch.get_num_threads()
    return chunks(layout, n_threads * -(-layout.n_pairs * width // (CACHED * n_threads)))


def first_pairs(layout: Layout) -> Int[Tensor, "B"]:
    """The first pair of each molecule, in memory of the CPU; made once for a layout."""
    if "first pairs" not in layout.memo:
        squares = torch.as_tensor(layout.sizes**2)
        layout.memo["first pairs"] = squares.cumsum(0) - squares
    return layout.memo["first pairs"]


def _blocks(layout: Layout) -> Iterator[tuple[slice, slice, int, int]]:
    """(atoms, pairs, b, n) of each block of a layout sorted by size."""
    for block in chunks(layout)[0].blocks:
        yield block.rows, block.pairs, block.b, block.n


def distance_gradients(
    grad: Float[Tensor, "P K"], D: Float[Tensor, "P C"], W: Float[Tensor, "C K"], of_D: Tensor | None, of_W: Tensor
) -> None:
    """From the gradient of D W: that of D, transposed, written into `of_D` [C, P], and that of W added to `of_W`."""
    if len(W) > THIN:
        of_W.addmm_(D.t(), grad)
        if of_D is not None:
            torch.mm(W, grad.t(), out=of_D)
        return
    for k, weight in enumerate(W):
        of_W[k].addmv_(grad.t(), D[:, k])
        if of_D is not None:
            torch.mv(grad, weight, out=of_D[k])


class _PairInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ab: Tensor, D: Tensor, W: Tensor, layout: Layout) -> Tensor:
        a, b = ab.chunk(2, dim=1)
        out = a.new_empty(layout.n_pairs, W.shape[1])
        for atoms, pairs, m, n in _blocks(layout):
            left, right = a[atoms].unflatten(0, (m, n, 1)), b[atoms].unflatten(0, (m, 1, n))
            torch.add(left, right, out=out[pairs].view(m, n, n, -1))
        out.addmm_(D, W)
        ctx.save_for_backward(D, W)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        D, W = ctx.saved_tensors
        grad = grad.contiguous()
        K = grad.shape[1]
        grad_ab = grad.new_empty(ctx.layout.n_total, 2, K)
        for atoms, pairs, m, n in _blocks(ctx.layout):
            here = grad[pairs].view(m, n, n, K)
            for k in range(2):  # a's over partners j, b's over atoms i
                torch.sum(here, dim=2 - k, out=grad_ab[atoms, k].unflatten(0, (m, n)))
        grad_D = D.new_empty(D.shape[1], D.shape[0]) if ctx.needs_input_grad[1] else None
        grad_W = torch.zeros_like(W)
        distance_gradients(grad, D, W, grad_D, grad_W)
        return grad_ab.flatten(1), None if grad_D is None else grad_D.t(), grad_W, None


def pair_input(
    ab: Float[Tensor, "A twice_K"], D: Float[Tensor, "P C"], W: Float[Tensor, "C K"], layout: Layout
) -> Float[Tensor, "P K"]:
    """a_i + b_j + D_ij W: a linear layer on [h_i, h_j, D_ij] whose node part [a, b] is computed once per atom."""
    if isinstance(layout, StaticLayout):
        a, b = ab.chunk(2, dim=1)
        of_atoms = a.index_select(0, layout.i) + b.index_select(0, layout.j)
        with torch.autocast(D.device.type, enabled=False):  # D and W are float32, in which distances survive
            return torch.addmm(of_atoms, D, W)
    return _PairInput.apply(ab, D, W, layout)  # type: ignore[no-any-return]


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, v: Tensor, layout: Layout) -> Tensor:
        out = v.new_empty(layout.n_total, v.shape[1])
        for atoms, pairs, m, n in _blocks(layout):
            torch.bmm(w[pairs].view(m * n, 1, n), v[pairs].view(m * n, n, -1), out=out[atoms].view(m * n, 1, -1))
        ctx.save_for_backward(w, v)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        w, v = ctx.saved_tensors
        grad = grad.contiguous()
        grad_w, grad_v = torch.empty_like(w), torch.empty_like(v)
        for atoms, pairs, m, n in _blocks(ctx.layout):
            g = grad[atoms].view(m * n, 1, -1)
            torch.bmm(v[pairs].view(m * n, n, -1), g.mT, out=grad_w[pairs].view(m * n, n, 1))
            torch.mul(w[pairs].view(m * n, n, 1), g, out=grad_v[pairs].view(m * n, n, -1))
        return grad_w, grad_v, None


def weighted_sum(w: Float[Tensor, "P"], v: Float[Tensor, "P K"], layout: Layout) -> Float[Tensor, "A K"]:
    """sum_j w_ij v_ij, from bf16 summed in float32 (positions are, and small bf16 products are slow on CPUs)."""
    dtype = torch.promote_types(torch.promote_types(w.dtype, v.dtype), torch.float32)
    if isinstance(layout, StaticLayout):
        return layout.sum_over_partners(w.to(dtype)[:, None] * v.to(dtype))
    return _WeightedSum.apply(w.to(dtype).contiguous(), v.to(dtype).contiguous(), layout)  # type: ignore[no-any-return]


def components(degree: int) -> slice:
    """Where the 2 l + 1 components of a degree stand in an array of all degrees 0, 1, 2, ..."""
    return slice(degree**2, (degree + 1) ** 2)


def _degrees(of: Tensor) -> range:
    return range(math.isqrt(len(of)))


class _HarmonicMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, Y: Tensor, h: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        _, G, _ = w.shape
        M, (K, A, C) = len(Y), h.shape
        out = {(l2, l1): h.new_empty(2 * l2 + 1, 2 * l1 + 1, A, C) for l2 in _degrees(Y) for l1 in _degrees(h)}
        sources = _grouped(h, G)
        for atoms, pairs, m, n in _blocks(layout):
            weighted = _weighted(w[:, :, pairs], Y[:, pairs], m, n)
            moments = torch.bmm(weighted, sources[:, atoms].reshape(G * m, n, -1)).view(G, m, M, n, K, -1)
            moments = moments.permute(2, 4, 1, 3, 0, 5)  # [M, K, m, n, G, C/G]
            for (l2, l1), part in out.items():
                part[:, :, atoms].unflatten(2, (m, n)).unflatten(4, (G, -1)).copy_(
                    moments[components(l2), components(l1)]
                )
        ctx.save_for_backward(w, Y, h)
        ctx.layout = layout
        return tuple(out.values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, Y, h = ctx.saved_tensors
        _, G, _ = w.shape
        M, (K, A, C) = len(Y), h.shape
        grad_w = torch.empty_like(w)
        grad_Y = torch.empty_like(Y) if ctx.needs_input_grad[1] else None
        sources = _grouped(h, G)
        grad_sources = torch.empty_like(sources)
        for atoms, pairs, m, n in _blocks(ctx.layout):
            grad = h.new_empty(G, m, M, n, K, C // G)
            parts = iter(grads)
            for l2 in _degrees(Y):
                for l1 in _degrees(h):
                    part = next(parts)[:, :, atoms].unflatten(2, (m, n)).unflatten(4, (G, -1))
                    grad[:, :, components(l2), :, components(l1)] = part.permute(4, 2, 0, 3, 1, 5)
            grad = grad.view(G * m, M * n, -1)
            weighted = _weighted(w[:, :, pairs], Y[:, pairs], m, n)
            grad_sources[:, atoms] = torch.bmm(weighted.mT, grad).view(G, m * n, -1)
            # [G m, M n, n] -> [M, G, m n n]
            grad = torch.bmm(grad, sources[:, atoms].reshape(G * m, n, -1).mT)
            grad = grad.view(G, m, M, n * n).permute(2, 0, 1, 3).reshape(M, G, -1)
            for l2 in _degrees(Y):
                here = grad[components(l2)]
                grad_w[l2, :, pairs] = (here * Y[components(l2), None, pairs]).sum(0)
                if grad_Y is not None:
                    grad_Y[components(l2), pairs] = (here * w[l2, :, pairs]).sum(1)
        grad_h = grad_sources.view(G, A, K, -1).permute(2, 1, 0, 3).reshape(K, A, C)
        return grad_w, grad_Y, grad_h, None


def _grouped(h: Tensor, n_groups: int) -> Tensor:
    """[K, A, C] -> [G, A, K C/G], each group of channels on its own."""
    return h.unflatten(2, (n_groups, -1)).permute(2, 1, 0, 3).flatten(2).contiguous()


def _weighted(w: Tensor, Y: Tensor, m: int, n: int) -> Tensor:
    """w_ij^l Y_ij^lm of one block [G m, M n, n]."""
    out = w.new_empty(w.shape[1], m, len(Y), n * n)
    Y = Y.unflatten(1, (m, n * n)).transpose(0, 1)
    for degree in _degrees(Y[0]):
        here = components(degree)
        torch.mul(w[degree].unflatten(1, (m, 1, n * n)), Y[:, here], out=out[:, :, here])
    return out.view(w.shape[1] * m, -1, n)


def harmonic_moments(
    w: Float[Tensor, "L G P"], Y: Float[Tensor, "M P"], h: Float[Tensor, "K A C"], layout: Layout
) -> dict[tuple[int, int], Float[Tensor, "_ _ A C"]]:
    """sum_j w_ij^{l2, g(c)} Y_ij^{l2 m2} h_j^{l1 m1, c}: sums over partners of harmonics times features.

    Args:
        w: weights for each degree of harmonics and each of G groups of C / G channels.
        Y: harmonics, the components of degree 0 first.
        h: features of the partners, components likewise.
    Returns:
        (l2, l1) -> [2 l2 + 1, 2 l1 + 1, A, C].
    """
    dtype = torch.promote_types(Y.dtype, torch.float32)  # as in `weighted_sum`
    w, Y, h = w.to(dtype), Y.to(dtype), h.to(dtype)
    if isinstance(layout, StaticLayout):
        return _moments_of_list(w, Y, h, layout)
    moments = _HarmonicMoments.apply(w, Y, h, layout)
    return dict(zip(itertools.product(_degrees(Y), _degrees(h)), moments, strict=True))  # type: ignore[arg-type]


def _moments_of_list(w: Tensor, Y: Tensor, h: Tensor, layout: StaticLayout) -> dict[tuple[int, int], Tensor]:
    per_channel = w.repeat_interleave(h.shape[2] // w.shape[1], dim=1).transpose(1, 2)  # [L, P, C]
    partners = h.index_select(1, layout.j)
    out = {}
    for l2, l1 in itertools.product(_degrees(Y), _degrees(h)):
        weights = Y[components(l2), :, None] * per_channel[l2]
        terms = weights[:, None] * partners[None, components(l1)]  # [2 l2 + 1, 2 l1 + 1, P, C]
        out[l2, l1] = terms.new_zeros(*terms.shape[:2], *h.shape[1:]).index_add(2, layout.i, terms)
    return out


class _Difference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        out = x.new_empty(layout.n_pairs, x.shape[1])
        for atoms, pairs, m, n in _blocks(layout):
            block = x[atoms].view(m, n, -1)
            torch.sub(block[:, :, None], block[:, None], out=out[pairs].view(m, n, n, -1))
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad = grad.contiguous()
        out = grad.new_empty(ctx.layout.n_total, grad.shape[1])
        for atoms, pairs, m, n in _blocks(ctx.layout):
            block = grad[pairs].view(m, n, n, -1)
            torch.sub(block.sum(2), block.sum(1), out=out[atoms].view(m, n, -1))
        return out, None


def differences(x: Float[Tensor, "A K"], layout: Layout) -> Float[Tensor, "P K"]:
    """x_i - x_j, exactly zero for i = j (torch.cdist is not: its matrix formula errs by 1e-3 beyond 25 points)."""
    if isinstance(layout, StaticLayout):
        return x.index_select(0, layout.i) - x.index_select(0, layout.j)
    return _Difference.apply(x, layout)  # type: ignore[no-any-return]


def off_diagonal(layout: Layout, like: Tensor) -> Float[Tensor, "P"]:
    """1 for i != j and 0 for i = j; made once for a layout."""
    if isinstance(layout, StaticLayout):
        return (layout.i != layout.j).to(like.dtype)
    if like.dtype not in layout.memo:
        layout.memo[like.dtype] = torch.cat(
            [
                (1 - torch.eye(n, dtype=like.dtype, device=like.device)).expand(m, n, n).reshape(-1)
                for _, _, m, n in _blocks(layout)
            ]
        )
    return layout.memo[like.dtype]
