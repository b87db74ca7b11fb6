"""The one class that an equivariance strategy subclasses, and the guarantees it can declare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.diffusion.process import Predict, weighted_error
from bench.diffusion.schedule import NoiseLevel
from bench.geometry.groups import Group
from bench.geometry.state import State
from bench.references import Reference
from bench.symmetry.published import PublishedWeights


class Guarantee(StrEnum):
    """What symmetry a trained model is promised to have."""

    EXACT = "exact"  # D(Qz) = Q D(z) for every Q, at any weights
    IN_LAW = "in_law"  # D(Qz) and Q D(z) have the same distribution, at any weights
    AT_OPTIMUM = "at_optimum"  # only for the minimiser of the training loss
    NONE = "none"


@dataclass(frozen=True)
class Setting:
    """What a method is built for.

    Attributes:
        group: symmetry group of the data.
        backbone: the network that the method works with (for widths and shared embeddings; `predict` is handed the
            denoiser).
        n_features: F.
    """

    group: Group
    backbone: nn.Module
    n_features: int


@dataclass
class NoOptions:
    """For methods without options."""


class Method(nn.Module):
    """An equivariance strategy. A hook left alone means: do as plain diffusion does.

    B molecules of A atoms in all, F features. `x0`, `z_t`, targets and predictions are `Molecules`: x [A, 3] with zero
    centre of mass in each molecule, h [A, F]; there are no padded atoms. `level` holds t, alpha, sigma, log_snr, each
    [B]; `rng` is a torch.Generator that no other concern draws from; `denoiser(z_t, level)` estimates the noise eps.

    Class attributes:
        guarantee: tested for every backbone that the method accepts.
        needs_equivariant_backbone: refuse backbones that are not exactly equivariant.
        otherwise: name of the method to take instead on the backbones that this one refuses.
        on_equivariant_backbone: why it changes nothing but cost on an exactly equivariant backbone; None: it does.
        weights_of: name of the method whose trained weights this one uses; it then trains nothing. An option of this
            name lets a study choose another one that defines no `predict`, with its options.
        references: papers to cite for it, at least one (`equibench cite`).
        published: the public code whose weights this method reads (`bench.published.weights`), where there is one.

    Attributes:
        diagnostics: scalars of the last training step, detached and on its device, by name (`target` and the other
            hooks set them); `train` logs their means over each interval without waiting for the device.
    """

    guarantee: ClassVar[Guarantee] = Guarantee.NONE
    needs_equivariant_backbone: ClassVar[bool] = False
    otherwise: ClassVar[str | None] = None
    on_equivariant_backbone: ClassVar[str | None] = None
    weights_of: ClassVar[str | None] = None
    references: ClassVar[tuple[Reference, ...]] = ()
    published: ClassVar[PublishedWeights | None] = None

    def __init__(self, cfg: object, setting: Setting) -> None:
        super().__init__()
        self.cfg = cfg
        self.group = setting.group
        self.diagnostics: dict[str, Tensor] = {}

    def augment(self, x0: State, rng: torch.Generator) -> State:
        """Clean data, before noising."""
        del rng
        return x0

    def target(self, x0: State, z_t: State, level: NoiseLevel, rng: torch.Generator) -> State:
        """What is regressed on, stated as an estimate of x0; the core turns it into noise at fixed z_t."""
        del z_t, level, rng
        return x0

    def predict(self, denoiser: Predict, z_t: State, level: NoiseLevel, rng: torch.Generator) -> State:
        """Estimate of eps, in training and at every sampling step."""
        del rng
        return denoiser(z_t, level)

    def loss(self, eps_hat: State, eps: State, level: NoiseLevel) -> Float[Tensor, "B"]:
        """Error of each molecule at t > 0, in noise space; t = 0 is the core's."""
        return weighted_error(eps_hat, eps, level)


# of a prediction made of `symmetrised` terms, for `Method.on_equivariant_backbone`
TURNED_BACK = "R k(R^-1 z) = k(z) for every R: predictions are those of the bare network, at a higher cost"


def symmetrised(denoiser: Predict, z_t: State, level: NoiseLevel, R: Float[Tensor, "B 3 3"]) -> State:
    """R D(R^-1 z_t): the denoiser asked in another frame, its answer turned back. R orthogonal."""
    return denoiser(z_t.rotate(R.mT), level).rotate(R)


def symmetrised_mean(
    denoiser: Predict, z_t: State, level: NoiseLevel, rotations: Iterable[Float[Tensor, "B 3 3"]]
) -> State:
    """Mean of R D(R^-1 z_t) over several R per molecule, one network call for each.

    Calls of equal shape, not one call on a batch that many times as large: compiled networks and a layout's indices
    serve all of them, calls are counted as what they cost, and a batch of usual size fills the machine by itself.
    """
    parts = [symmetrised(denoiser, z_t, level, R) for R in rotations]
    return z_t.replace(x=torch.stack([p.x for p in parts]).mean(0), h=torch.stack([p.h for p in parts]).mean(0))
