"""Noise levels, and the pair of clean and noised states of a training step.

Convention: z_t = alpha_t x0 + sigma_t eps (on a torus modulo 1), eps standard normal; t = 0 is the least noise and
t = 1 the most. Under a harmonic prior sigma_t is a number for each mode of a molecule (`bench.geometry.harmonic`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

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
        noise_rms: root mean square of E[eps | z_t, x0]; None: 1, as wherever z_t and x0 tell the noise.
        own: the levels, at the same t, of parts that have a path of their own, by name.
    """

    t: Float[Tensor, "B"]
    alpha: Float[Tensor, "B"]
    sigma: Float[Tensor, "B"]
    d_alpha: Float[Tensor, "B"] | None = None
    d_sigma: Float[Tensor, "B"] | None = None
    harmonic_share: Float[Tensor, "B"] | None = None
    d_harmonic_share: Float[Tensor, "B"] | None = None
    noise_rms: Float[Tensor, "B"] | None = None
    own: Mapping[str, Level] | None = field(default=None, kw_only=True)

    def of(self, part: str) -> Level:
        """The level of a part."""
        return self if self.own is None else self.own.get(part, self)

    def __getitem__(self, index: Tensor | slice | list[int]) -> Level:
        """The levels of some molecules."""
        return self._map(lambda values: values[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Level:
        return self._map(lambda values: values.to(device, dtype))

    def _map(self, of: Callable[[Any], Any]) -> Level:
        """Apply a function to each field, and to those of each part's own level."""
        made: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        own = made.pop("own")
        made = {name: None if value is None else of(value) for name, value in made.items()}
        return Level(**made, own=None if own is None else {part: of(level) for part, level in own.items()})


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
