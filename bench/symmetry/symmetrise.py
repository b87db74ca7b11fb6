"""Symmetrised predictions: a denoiser asked in another frame, its answer brought back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bench.diffusion.parametrisation import Predict
from bench.geometry.groups import Group
from bench.geometry.noised import Level
from bench.geometry.state import State

# of a prediction made of `symmetrised` terms, for `Method.on_equivariant_backbone`
TURNED_BACK = "R k(R^-1 z) = k(z) for every R: predictions are those of the bare network, at a higher cost"


def symmetrised(group: Group, g: Tensor, denoiser: Predict, z_t: State, level: Level) -> State:
    """g D(g^-1 z_t), one group element per molecule."""
    return group.act_on_noise(g, denoiser(group.act(group.inverse(g), z_t), level))


def symmetrised_mean(group: Group, elements: Iterable[Tensor], denoiser: Predict, z_t: State, level: Level) -> State:
    """Mean of g D(g^-1 z_t) over several g per molecule, one network call for each.

    Calls of equal shape, not one call on a batch that many times as large: compiled networks and a layout's indices
    serve all of them, calls are counted as what they cost, and a batch of usual size fills the machine by itself.
    """
    terms = [symmetrised(group, g, denoiser, z_t, level) for g in elements]
    return z_t.replace(**{name: torch.stack([term.parts[name] for term in terms]).mean(0) for name in z_t.parts})
