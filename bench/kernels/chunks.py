"""Pairs of a layout in chunks that fit a CPU's cache, each made of dense blocks [b, n, n] of molecules of one size.

Chunks partition all ordered pairs including i = j, also where the network ignores those.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from bench.geometry.layout import Layout
from bench.kernels.threads import SHARED

CACHED = 2**19  # elements of one buffer of a chunk; up to four are in use at a time


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
    def first_atom(self) -> int:
        return self.blocks[0].rows.start

    @cached_property
    def n_atoms(self) -> int:
        """Atoms i."""
        return sum(block.b * block.r for block in self.blocks)

    @cached_property
    def table(self) -> Int[Tensor, "N 5"]:
        """First atom i, first partner j, b, r, n of each block: `Block` of pair_mlp.c."""
        return torch.tensor([(x.rows.start, x.partners.start, x.b, x.r, x.n) for x in self.blocks])


def chunks(layout: Layout, n: int = 1) -> list[Chunk]:
    """All pairs of a layout, split between molecules, or between atoms i of a molecule that is too large.

    Cached in the layout, since every layer needs them.

    Args:
        n: number of chunks, of nearly equal numbers of pairs; fewer where there are fewer atoms.
    """
    key = ("chunks", n)
    if key not in layout.memo:
        layout.memo[key] = _cut(layout, n)
    return layout.memo[key]


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


def cached_chunks(layout: Layout, width: int) -> list[Chunk]:
    """Chunks whose buffers of `width` elements per pair fit the cache, the same number for each thread."""
    if layout.n_pairs * width <= SHARED:
        return chunks(layout)
    n_threads = torch.get_num_threads()
    return chunks(layout, n_threads * -(-layout.n_pairs * width // (CACHED * n_threads)))
