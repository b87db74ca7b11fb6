"""The state of a batch: named arrays over one layout, and a context that is never noised.

A part has a row for each atom (`x` [A, 3] positions, `h` [A, F] features) or for each molecule (`cell` [B, 9]).
Positions are in angstrom in data and in the scaled units of a task inside a diffusion step. A rotation R acts on rows,
x_n -> R x_n, one R per molecule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.geometry.layout import Layout

if TYPE_CHECKING:
    from torch_geometric.data import Batch


@dataclass(frozen=True)
class State:
    """Named parts of a batch; `state.x` reads the part "x".

    Attributes:
        parts: name -> array with A rows (one per atom) or B rows (one per molecule).
        layout: which atoms belong to which molecule.
        context: conditioning information that is never noised, such as bonds and elements, as a PyTorch Geometric batch
            with the nodes in the order of the atoms; None for unconditional tasks. Groups act on parts alone, so it
            must be invariant.
    """

    parts: Mapping[str, Tensor]
    layout: Layout
    context: Batch | None = None

    def __getattr__(self, name: str) -> Tensor:
        # only called where no attribute of this name exists; `parts` itself is missing while a copy is being made
        if name != "parts" and name in self.parts:
            return self.parts[name]
        raise AttributeError(f"a state of {', '.join(self.__dict__.get('parts', {}))} has no part {name!r}")

    @property
    def ptr(self) -> Int[Tensor, "B_plus_1"]:
        return self.layout.ptr

    @property
    def n_atoms(self) -> Int[Tensor, "B"]:
        return self.layout.n_atoms

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.parts.values())).dtype

    def __len__(self) -> int:
        return self.layout.n_molecules

    def replace(self, **parts: Tensor) -> State:
        """The same batch with some parts replaced.

        Raises:
            ValueError: the state has no part of that name; to add one, construct a `State`.
        """
        if unknown := set(parts) - set(self.parts):
            raise ValueError(
                f"cannot replace {', '.join(map(repr, sorted(unknown)))}: the parts are {', '.join(self.parts)}"
            )
        return State({**self.parts, **parts}, self.layout, self.context)

    def map(self, of: Callable[[Tensor], Tensor]) -> State:
        """Apply one function to every part."""
        return State({name: of(part) for name, part in self.parts.items()}, self.layout, self.context)

    def combine(self, other: State, of: Callable[[Tensor, Tensor], Tensor]) -> State:
        """Apply a function of two tensors to every part of both states; the context is that of the first."""
        return self.replace(**{name: of(part, other.parts[name]) for name, part in self.parts.items()})

    def spread(self, values: Float[Tensor, "B"], part: Tensor) -> Tensor:
        """Repeat a value per molecule for each row of a part, shaped to multiply it."""
        rows = values if len(part) != self.layout.n_total else self.per_atom(values)
        return rows.view(-1, *[1] * (part.ndim - 1))

    def per_atom(self, values: Float[Tensor, "B ..."]) -> Float[Tensor, "A ..."]:
        """Repeat each molecule's value for each of its atoms."""
        return values.index_select(0, self.layout.molecule)

    def sum_over_atoms(self, values: Float[Tensor, "A ..."]) -> Float[Tensor, "B ..."]:
        """Sum of an atom-wise quantity within each molecule."""
        out = values.new_zeros((len(self), *values.shape[1:]))
        return out.index_add(0, self.layout.molecule, values)

    def mean_over_atoms(self, values: Float[Tensor, "A ..."]) -> Float[Tensor, "B ..."]:
        total = self.sum_over_atoms(values)
        return total / self.n_atoms.to(total.dtype).view(-1, *[1] * (total.ndim - 1))

    def centre(self, x: Float[Tensor, "A D"]) -> Float[Tensor, "A D"]:
        """Project onto U = {x : sum_n x_n = 0 in each molecule}."""
        return x - self.per_atom(self.mean_over_atoms(x))

    def centred(self) -> State:
        return self.replace(x=self.centre(self.x))

    def rotate(self, R: Float[Tensor, "B D D"], part: str = "x") -> State:
        """x_n -> R x_n for each row of a part, one matrix per molecule (any matrix, not only rotations)."""
        # not a matrix product, which autocast would round to bf16: three digits of a position
        return self.replace(**{part: (self.per_atom(R) * self.parts[part][:, None, :]).sum(-1)})

    def squared_norm(self) -> Float[Tensor, "B"]:
        """Sum of squares over all parts of each molecule."""
        per_atom = [p.square().flatten(1).sum(1) for p in self.parts.values() if len(p) == self.layout.n_total]
        rest = [p.square().flatten(1).sum(1) for p in self.parts.values() if len(p) != self.layout.n_total]
        total = self.sum_over_atoms(sum(per_atom[1:], start=per_atom[0])) if per_atom else 0
        return sum(rest, start=total)  # type: ignore[arg-type, return-value]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
        layout = self.layout if device is None else self.layout.to(device)
        parts = {name: part.to(device, dtype) for name, part in self.parts.items()}
        return State(parts, layout, context_to(self.context, device, dtype))


def context_to(
    context: Batch | None, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Batch | None:
    """A copy on another device, its floating-point attributes in another dtype (PyG's own `to` works in place)."""
    if context is None:
        return None
    return copy.copy(context).apply(lambda v: v.to(device, dtype if v.is_floating_point() else None))  # type: ignore[attr-defined]
