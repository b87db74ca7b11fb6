"""`Method`, the base class of equivariance strategies, and the guarantees that they can declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.diffusion.parametrisation import Predict
from bench.diffusion.process import squared_error
from bench.geometry.groups import Group
from bench.geometry.noised import Level, Noised
from bench.geometry.state import State
from bench.references import Reference
from bench.symmetry.published import PublishedWeights


class Guarantee(StrEnum):
    """Symmetry promised of a trained model."""

    EXACT = "exact"  # D(Qz) = Q D(z) for every Q, at any weights
    IN_LAW = "in_law"  # D(Qz) and Q D(z) have the same distribution, at any weights
    AT_OPTIMUM = "at_optimum"  # only for the minimiser of the training loss
    NONE = "none"


@dataclass(frozen=True)
class Setting:
    """Constructor arguments of a method.

    Attributes:
        group: symmetry group of the data.
        backbone: the network that the method works with (for widths and shared embeddings; `predict` is handed the
            denoiser).
        channels: of each part of a state, such as {"x": 3, "h": F}.
    """

    group: Group
    backbone: nn.Module
    channels: Mapping[str, int]


@dataclass
class NoOptions:
    """For methods without options."""


class Method(nn.Module):
    """An equivariance strategy. A hook that is not overridden does what plain diffusion does.

    States have named parts over one layout (`bench.geometry.state.State`), without padding; positions x [A, 3] have
    zero centre of mass in each molecule. `noised` holds (clean, noise, z_t, level); `level` holds t, alpha and
    sigma, each [B]; `rng` is a torch.Generator that no other concern draws from; `denoiser(z_t, level)` estimates
    the quantity of the process's parametrisation: by default the noise.

    Class attributes:
        guarantee: tested for every backbone that the method accepts.
        needs_group: kind of group that the method works with.
        needs_equivariant_backbone: refuse backbones that are not exactly equivariant.
        otherwise: name of the fallback method for backbones that this one refuses.
        on_equivariant_backbone: why it only adds cost on an exactly equivariant backbone; None: it has an effect there.
        weights_of: name of the method whose trained weights this one uses; it then trains nothing. An option of this
            name lets a study choose another method, with its options, that does not override `predict`.
        references: papers to cite for it, at least one (`equibench cite`).
        published: the public code whose weights this method reads (`bench.published.weights`), where there is one.

    Attributes:
        diagnostics: scalars of the last training step, detached and on its device, by name (`target` and the other
            hooks set them); `train` logs their means over each interval without waiting for the device.
    """

    guarantee: ClassVar[Guarantee] = Guarantee.NONE
    needs_group: ClassVar[type[Group]] = Group
    needs_equivariant_backbone: ClassVar[bool] = False
    otherwise: ClassVar[str | None] = None
    on_equivariant_backbone: ClassVar[str | None] = None
    weights_of: ClassVar[str | None] = None
    references: ClassVar[tuple[Reference, ...]] = ()
    published: ClassVar[PublishedWeights | None] = None

    def __init__(self, cfg: object, setting: Setting) -> None:
        super().__init__()
        if not isinstance(setting.group, self.needs_group):
            raise ValueError(
                f"{type(self).__name__} works with {self.needs_group.__name__} alone, "
                f"got {type(setting.group).__name__}; choose another method or group"
            )
        self.cfg = cfg
        self.group: Group = setting.group
        self.diagnostics: dict[str, Tensor] = {}

    @classmethod
    def guarantee_on(cls, equivariant: bool) -> Guarantee:
        """What is guaranteed on a backbone: a prediction left alone on an exactly equivariant one is exact too."""
        return Guarantee.EXACT if equivariant and cls.predict is Method.predict else cls.guarantee

    @classmethod
    def is_baseline(cls) -> bool:
        """Whether it leaves every hook alone: plain diffusion, that strategies are compared with."""
        hooks = ("augment", "couple", "target", "predict", "loss", "finish")
        return cls.weights_of is None and all(getattr(cls, hook) is getattr(Method, hook) for hook in hooks)

    def augment(self, clean: State, rng: torch.Generator) -> State:
        """Clean data, before noising."""
        del rng
        return clean

    def couple(self, clean: State, noise: State, rng: torch.Generator) -> State:
        """Noise coupled to the clean data; `noise` is an independent draw."""
        del clean, rng
        return noise

    def target(self, noised: Noised, rng: torch.Generator) -> State:
        """Expected noise given z_t and whatever the method averages over; the core converts it to the
        parametrisation of the network."""
        del rng
        return noised.noise

    def predict(self, denoiser: Predict, z_t: State, level: Level, rng: torch.Generator) -> State:
        """The model's estimate, in training and at every sampling step."""
        del rng
        return denoiser(z_t, level)

    def loss(self, prediction: State, target: State, noised: Noised) -> Float[Tensor, "B"]:
        """Error of each molecule in the parametrisation's own space (at t = 0, a decoder's term replaces it)."""
        del noised
        return squared_error(prediction, target)

    def finish(self, samples: State, rng: torch.Generator) -> State:
        """Post-process final samples."""
        del rng
        return samples
