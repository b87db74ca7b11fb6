"""Symmetrised predictions: a denoiser evaluated in another frame, its prediction transformed back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bench.diffusion.parametrisation import Predict
from bench.geometry.groups import Group
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.symmetry.contract import Method

# value of `Method.on_equivariant_backbone` for methods built on `symmetrised`
TURNED_BACK = "R k(R^-1 z) = k(z) for every R: predictions are those of the bare network, at a higher cost"


def symmetrised(group: Group, g: Tensor, denoiser: Predict, z_t: State, level: Level) -> State:
    """g D(g^-1 z_t), one group element per molecule."""
    return group.act_on_noise(g, denoiser(group.act(group.inverse(g), z_t), level))


def symmetrised_mean(group: Group, elements: Iterable[Tensor], denoiser: Predict, z_t: State, level: Level) -> State:
    """Mean of g D(g^-1 z_t) over several g per molecule, one network call for each.

    Several calls of one shape rather than one call on a larger batch: they share compiled networks and the layout's
    index lists, the count of calls reflects their cost, and a batch of ordinary size saturates the machine.
    """
    terms = [symmetrised(group, g, denoiser, z_t, level) for g in elements]
    return z_t.replace(**{name: torch.stack([term.parts[name] for term in terms]).mean(0) for name in z_t.parts})


class InFrame(Method):
    """A method that asks the network in a frame that it draws: g D(g^-1 z_t), one g per molecule, fresh at every call.

    Subclasses define `frame` and leave `predict` alone, so that whoever draws from `frame` sees the law of what runs
    (measure `rotation_law`).
    """

    on_equivariant_backbone = TURNED_BACK

    def frame(self, z_t: State, level: Level, rng: torch.Generator) -> Tensor:
        """One group element g per molecule, drawn given z_t; gradients flow into what the method trains."""
        raise NotImplementedError(f"{type(self).__name__} does not define `frame`")

    def predict(self, denoiser: Predict, z_t: State, level: Level, rng: torch.Generator) -> State:
        return symmetrised(self.group, self.frame(z_t, level, rng), denoiser, z_t, level)
