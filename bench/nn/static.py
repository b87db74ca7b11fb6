"""Batches in arrays of a few fixed sizes, for a GPU: lists of pairs in place of blocks of equal size.

Blocks (`pairs.py`) are a loop over the sizes of molecules, which a CPU's caches want; a GPU would wait for the loop.
Here every operation is one on all atoms or all pairs of a batch. Their numbers are rounded up to a capacity, so that a
training meets few shapes: what is compiled for one, and recorded as a CUDA graph, serves again. Filler atoms make up
one more molecule and filler pairs are a filler atom with itself, so that no sum of a real atom or molecule has them.

Sums over an atom's partners are atomic additions on a GPU, whose order and last digits change from run to run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.layout import Layout
from bench.geometry.state import State

DEVICES = {"cuda"}  # where networks run on them
SLOTS = 8  # molecules have a multiple of so many atoms in attention


class StaticLayout(Layout):
    """A layout whose arrays have capacities for lengths; as it is, it counts as sorted.

    Attributes:
        i, j: atoms of each pair (filler pairs: the last atom twice) [P].
        slots: atoms of each molecule but the filler one, as many as the largest has, the last atom in free ones [B, N].
        place: where among them an atom stands, 0 for filler atoms [A].
    """

    def __init__(self, layout: Layout) -> None:
        sizes, device = layout.sizes, layout.device
        n_real, n_pairs = layout.n_total, layout.n_pairs
        n_atoms = capacity(n_real + 1)
        super().__init__(np.append(sizes, n_atoms - n_real), device, layout.n_padded)
        self.n_pairs = capacity(n_pairs)

        def index(values: Any) -> Tensor:
            """On the device."""
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)

        starts = np.cumsum(sizes) - sizes
        of_atom = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(n_real) - starts[of_atom]
        i = np.repeat(np.arange(n_real), sizes[of_atom])
        first_pair = np.cumsum(sizes[of_atom]) - sizes[of_atom]
        j = starts[of_atom[i]] + np.arange(n_pairs) - first_pair[i]
        self.i, self.j = (index(np.pad(x, (0, self.n_pairs - n_pairs), constant_values=n_atoms - 1)) for x in (i, j))
        width = -(-layout.n_largest // SLOTS) * SLOTS
        slots = np.full((len(sizes), width), n_atoms - 1)
        slots[of_atom, within] = np.arange(n_real)
        self.slots = index(slots)
        self.place = index(np.pad(of_atom * width + within, (0, n_atoms - n_real)))
        _ = self.molecule, self.n_atoms, self.n_molecules, self.n_total  # a compiler cannot see how they are made

    @property
    def _sorting(self) -> tuple[None, None, None, Layout]:  # type: ignore[override]
        return None, None, None, self

    def of(self, z: State) -> State:
        """A batch with filler atoms."""
        return State({"x": self.of_atoms(z.x), "h": self.of_atoms(z.h)}, self)

    def of_atoms(self, values: Float[Tensor, "A K"]) -> Float[Tensor, "A_capacity K"]:
        """Atom-wise values with zeros for filler atoms."""
        return F.pad(values, (0, 0, 0, self.n_total - len(values)))

    def of_molecules(self, values: Float[Tensor, "B"]) -> Float[Tensor, "B_plus_1"]:
        """Molecule-wise values with a zero for the filler one."""
        return F.pad(values, (0, 1))

    def sum_over_partners(self, values: Float[Tensor, "P ..."]) -> Float[Tensor, "A ..."]:
        """sum_j v_ij."""
        return values.new_zeros((len(self.molecule), *values.shape[1:])).index_add(0, self.i, values)


def capacity(n: int) -> int:
    """The next of eight numbers per power of two, so that at most an eighth is filler."""
    step = 2 ** max(0, (n - 1).bit_length() - 4)
    return -(-n // step) * step


def static_layout(network: nn.Module, layout: Layout) -> StaticLayout | None:
    """The layout in which a network runs on this device, made once for a batch; None: blocks.

    A network that does not ask a layout for its blocks says so by `static_function`, the name of the function that
    takes such layouts. It is what `train.compile` compiles.
    """
    if layout.device.type not in DEVICES or not hasattr(network, "static_function"):
        return None
    if "static" not in layout.memo:
        layout.memo["static"] = StaticLayout(layout)
    return layout.memo["static"]


def on_device(network: nn.Module, z: State, t: Float[Tensor, "B"]) -> State:
    """A backbone's answer, from whichever layout its device wants."""
    static = static_layout(network, z.layout)
    if static is None:
        return network(z, t)
    out = network(static.of(z), static.of_molecules(t))
    # copies: the next replay of a CUDA graph overwrites what this one answered
    return z.replace(x=out.x[: len(z.x)].clone(), h=out.h[: len(z.h)].clone())
