"""Noise levels, and the pair of clean and noised states of a training step.

Convention: z_t = alpha_t x0 + sigma_t eps (on a torus modulo 1), eps standard normal; t = 0 is the least noise and
t = 1 the most. Under a harmonic prior sigma_t is a number for each mode of a molecule (`bench.geometry.harmonic`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.harmonic import scaled
from bench.geometry.spaces import Spaces
from bench.geometry.state import State


@dataclass(frozen=True)
class Level:
    """Noise level of each of B molecules; every field is [B].

    Attributes:
        d_alpha, d_sigma: derivatives with respect to t; None on discrete paths.
        harmonic_share: of sigma^2, that of a harmonic prior; the rest is isotropic bridge noise. None: all isotropic.
        d_harmonic_share: its derivative with respect to t.
    """

    t: Float[Tensor, "B"]
    alpha: Float[Tensor, "B"]
    sigma: Float[Tensor, "B"]
    d_alpha: Float[Tensor, "B"] | None = None
    d_sigma: Float[Tensor, "B"] | None = None
    harmonic_share: Float[Tensor, "B"] | None = None
    d_harmonic_share: Float[Tensor, "B"] | None = None

    def __getitem__(self, index: Tensor | slice | list[int]) -> Level:
        """The levels of some molecules."""
        values = (getattr(self, field.name) for field in fields(self))
        return Level(*(None if value is None else value[index] for value in values))  # type: ignore[arg-type]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Level:
        values = (getattr(self, field.name) for field in fields(self))
        return Level(*(None if value is None else value.to(device, dtype) for value in values))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Noised:
    """A noised batch, as passed to the hooks of a method, the loss and the groups.

    Attributes:
        clean: x0, after augmentation.
        noise: E[eps | z_t, x0]: eps itself, except on a torus, where the winding number is lost.
        z_t: the noised state.
        level: noise level of each molecule.
        spaces: the space of each part.
    """

    clean: State
    noise: State
    z_t: State
    level: Level
    spaces: Spaces

    def __len__(self) -> int:
        return len(self.clean)

    def noise_of(self, clean: State) -> State:
        """Expected noise equivalent to an expected clean state T at fixed z_t: eps + (alpha / sigma) (x0 - T).

        Exact for T = x0 and free of the cancellation of (z_t - alpha T) / sigma at small sigma.
        """
        if clean is self.clean:
            return self.noise
        self.spaces.require_linear("an expected clean state")
        shift = scaled(self.clean.combine(clean, torch.sub), self.level, lambda level: level.alpha / level.sigma)
        return self.noise.combine(shift, torch.add)

    def clean_of(self, noise: State) -> State:
        """Inverse of `noise_of`: x0 + (sigma / alpha) (eps - noise)."""
        if noise is self.noise:
            return self.clean
        self.spaces.require_linear("an expected clean state")
        shift = scaled(self.noise.combine(noise, torch.sub), self.level, lambda level: level.sigma / level.alpha)
        return self.clean.combine(shift, torch.add)
