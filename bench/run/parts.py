"""A part of a batch that draws what the whole batch would have drawn: for micro-batches and for several processes.

Clean molecules, times, noise, augmentation and target are made of the whole batch, which costs little beside a network;
only `predict` sees a part. It may draw too (a rotation per molecule, noise per atom), and then what it asks for is
drawn for the whole batch and the part's rows are handed out. So a loss of a molecule does not depend on how its batch
was cut, and the mean over molecules, whose denominators are constant, is the sum of its parts but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.diffusion.parametrisation import Predict
from bench.geometry.layout import Layout
from bench.geometry.noised import Level as NoiseLevel
from bench.geometry.state import State


class Part:
    """Every n-th molecule of a batch, from the one numbered `index`: batches are sorted by size, parts cost alike."""

    def __init__(self, whole: Layout, index: int, n: int) -> None:
        """
        Args:
            whole: layout of the batch.
            index: which part, 0 to n - 1.
            n: number of parts, at most one for each molecule.
        """
        self.whole = whole
        chosen = np.arange(index, len(whole.sizes), n)
        # what padded code would pad to is that of the whole batch (`edm_compat`)
        self.layout = Layout(whole.sizes[chosen], whole.device, whole.n_padded)
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @cached_property
    def molecules(self) -> Int[Tensor, "b"]:
        """Places of the part's molecules in the batch."""
        return torch.from_numpy(self._chosen).to(self.whole.device)

    @cached_property
    def atoms(self) -> Int[Tensor, "a"]:
        """Places of the part's atoms in the batch."""
        ends = np.cumsum(self.whole.sizes)
        ranges = [np.arange(ends[i] - self.whole.sizes[i], ends[i]) for i in self._chosen]
        return torch.from_numpy(np.concatenate(ranges)).to(self.whole.device)

    def of(self, state: State) -> State:
        return State({"x": state.x[self.atoms], "h": state.h[self.atoms]}, self.layout)

    def of_level(self, level: NoiseLevel) -> NoiseLevel:
        return NoiseLevel(*(getattr(level, f.name)[self.molecules] for f in fields(level)))

    def draws(self, rng: torch.Generator) -> TorchFunctionMode:
        """Context in which what is drawn from `rng` for this part is the part's rows of a draw for the batch."""
        return _DrawsOfTheBatch(self, rng)


def undisturbed(denoiser: Predict) -> Predict:
    """A network that runs outside of `Part.draws`: it draws nothing, and its operations need not be looked at."""

    def call(z_t: State, level: NoiseLevel) -> State:
        with torch._C.DisableTorchFunction():
            return denoiser(z_t, level)

    return call


class _DrawsOfTheBatch(TorchFunctionMode):
    def __init__(self, part: Part, rng: torch.Generator) -> None:
        super().__init__()
        self.part, self.rng = part, rng

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.rng:
            return func(*args, **kwargs)
        part = self.part
        if func in (torch.randn, torch.rand):
            shape = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
            rows = {
                len(part): (len(part.whole.sizes), "molecules"),
                len(part.atoms): (len(part.whole.molecule), "atoms"),
            }
            if len(shape) and shape[0] in rows:
                n, places = rows[shape[0]]
                rest = {key: value for key, value in kwargs.items() if key != "size"}
                return func((n, *shape[1:]), **rest)[getattr(part, places)]
        raise ValueError(
            f"a method's predict draws {getattr(func, '__name__', func)}{tuple(args)}: only torch.randn and torch.rand "
            "with one row for each molecule or atom can be shared by micro-batches or processes; train with "
            "train.on_out_of_memory=fail in one process"
        )
