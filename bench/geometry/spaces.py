"""Spaces of the parts of a state: noise, noising and displacements.

A part is either `Euclidean`, `Centred` (positions without centre of mass) or on a `Torus` (fractional coordinates). The
diffusion process, the sampler and the groups depend on a part only through its space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.harmonic import scaled
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.streams import draw

if TYPE_CHECKING:
    from bench.geometry.noised import Level


def modulo_one(v: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """v mod 1 in [0, 1). One remainder alone rounds small negative numbers to 1."""
    return (v % 1.0) % 1.0


class Space:
    """Base class of spaces; by default R^channels for each row of a part.

    Attributes:
        channels: columns of the part.
        per_molecule: one row per molecule instead of one per atom.
        linear: whether points can be averaged, so that an expected clean state exists.
    """

    linear = True

    def __init__(self, channels: int, per_molecule: bool = False) -> None:
        self.channels, self.per_molecule = channels, per_molecule

    def rows(self, layout: Layout) -> int:
        return layout.n_molecules if self.per_molecule else layout.n_total

    def project(self, v: Float[Tensor, "N C"], layout: Layout) -> Float[Tensor, "N C"]:
        """Project noise or displacements onto the tangent space."""
        del layout
        return v

    def wrap(self, z: Float[Tensor, "N C"], layout: Layout) -> Float[Tensor, "N C"]:
        """Bring points back into the space after rounding or a step."""
        return self.project(z, layout)

    def prior(self, noise: Float[Tensor, "N C"], sigma: float) -> Float[Tensor, "N C"]:
        """Initial state of sampling (t = 1), from projected standard normal noise."""
        return noise if sigma == 1 else sigma * noise

    def move(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """z_t = alpha x0 + sigma eps; alpha and sigma [N, 1]."""
        return alpha * clean + sigma * noise

    def expected_noise(self, noise: Tensor, z: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """E[eps | z_t, x0], given the eps = `noise` that produced z_t."""
        del z, clean, sigma
        return noise

    def displacement(self, z: Tensor, clean: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[eps | z_t, x0] from the two points alone."""
        return (z - alpha * clean) / sigma

    def log_likelihood(self, z: Tensor, clean: Tensor, alpha: Tensor, sigma: Tensor) -> Float[Tensor, "N"]:
        """log p(z_t | x0) of each row, up to a constant that does not depend on x0."""
        return -0.5 * self.displacement(z, clean, alpha, sigma).square().sum(1)

    def dimension(self, layout: Layout) -> Float[Tensor, "B"]:
        """Degrees of freedom of each molecule, float64."""
        n = torch.ones_like(layout.n_atoms) if self.per_molecule else layout.n_atoms
        return self.channels * n.double()


class Euclidean(Space):
    """R^channels: features, a lattice, a point on a line."""


class Centred(Space):
    """Positions with zero centre of mass in each molecule: U = {x : sum_n x_n = 0} (arXiv:2203.17003, section 3.1)."""

    def project(self, v: Float[Tensor, "A C"], layout: Layout) -> Float[Tensor, "A C"]:
        total = v.new_zeros(layout.n_molecules, v.shape[1]).index_add(0, layout.molecule, v)
        mean = total / layout.n_atoms.to(v.dtype)[:, None]
        return v - mean.index_select(0, layout.molecule)

    def dimension(self, layout: Layout) -> Float[Tensor, "B"]:
        return self.channels * (layout.n_atoms.double() - 1)


class Torus(Space):
    """[0, 1)^channels with the wrapped normal as kernel, z_t = (x0 + sigma eps) mod 1.

    The winding number of eps is not a function of z_t and x0, so the target is its mean: with d = z_t - x0,
    E[eps | d] = sum_k w_k (d + k) / sigma, w = softmax_k(-(d + k)^2 / (2 sigma^2)), which is -sigma times the score of
    the wrapped normal (De Bortoli et al., arXiv:2202.02763; Jiao et al., DiffCSP, arXiv:2309.04475).
    """

    linear = False
    IMAGES = 6  # on either side; ample for sigma <= 0.5

    def wrap(self, z: Float[Tensor, "N C"], layout: Layout) -> Float[Tensor, "N C"]:
        del layout
        return modulo_one(z)

    def prior(self, noise: Float[Tensor, "N C"], sigma: float) -> Float[Tensor, "N C"]:
        """Uniform on the torus."""
        del sigma
        return modulo_one(torch.special.ndtr(noise))

    def move(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        del alpha  # 1 on the only path that a torus takes
        return modulo_one(clean + sigma * noise)

    def expected_noise(self, noise: Tensor, z: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        del noise
        return self.displacement(z, clean, torch.ones_like(sigma), sigma)

    def displacement(self, z: Tensor, clean: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        del alpha
        return self.wrapped(z - clean, sigma)[1]

    def log_likelihood(self, z: Tensor, clean: Tensor, alpha: Tensor, sigma: Tensor) -> Float[Tensor, "N"]:
        del alpha
        return self.wrapped(z - clean, sigma)[0].sum(-1)

    def wrapped(self, d: Float[Tensor, "*N"], sigma: Tensor) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
        """log sum_k exp(-(d + k)^2 / (2 sigma^2)) and E[eps | d], of displacements one by one.

        Args:
            sigma: of each, broadcast against d.
        """
        nearest = d - (d + 0.5).floor()
        images = nearest[..., None] + torch.arange(-self.IMAGES, self.IMAGES + 1, device=d.device, dtype=d.dtype)
        exponents = -0.5 * (images / sigma[..., None]).square()
        largest = exponents[..., self.IMAGES]  # of the nearest image
        weights = (exponents - largest[..., None]).exp()
        total = weights.sum(-1)
        return largest + total.log(), (weights * images).sum(-1) / (total * sigma)


class Spaces(Mapping[str, Space]):
    """The spaces of all parts of a state, by name."""

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        self._spaces = dict(spaces)

    def __getitem__(self, name: str) -> Space:
        return self._spaces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spaces)

    def __len__(self) -> int:
        return len(self._spaces)

    @property
    def channels(self) -> dict[str, int]:
        """Columns of each part."""
        return {name: space.channels for name, space in self.items()}

    @property
    def linear(self) -> bool:
        return all(space.linear for space in self.values())

    def require_linear(self, what: str) -> None:
        """Raise ValueError if the points of some part cannot be averaged."""
        if not self.linear:
            curved = ", ".join(name for name, space in self.items() if not space.linear)
            raise ValueError(f"{what} does not exist on a torus (part {curved}); state it as expected noise")

    def noise(
        self, layout: Layout, rng: torch.Generator, dtype: torch.dtype = torch.float32, context: Any = None
    ) -> State:
        """Standard normal noise of every part, projected: one draw for all atom-wise parts, then one for the others."""
        parts: dict[str, Tensor] = {}
        for per_molecule in (False, True):
            names = [name for name, space in self.items() if space.per_molecule is per_molecule]
            if not names:
                continue
            widths = [self[name].channels for name in names]
            shape = (self[names[0]].rows(layout), sum(widths))
            drawn = draw(torch.randn, shape, rng, per_atom=not per_molecule, dtype=dtype)
            for name, part in zip(names, drawn.split(widths, dim=1), strict=True):
                parts[name] = self[name].project(part, layout)
        return State({name: parts[name] for name in self}, layout, context)

    def project(self, v: State) -> State:
        """Project displacements of every part onto the tangent space."""
        return v.replace(**{name: self[name].project(part, v.layout) for name, part in v.parts.items()})

    def wrap(self, z: State) -> State:
        """Bring the points of every part back into its space."""
        return z.replace(**{name: self[name].wrap(part, z.layout) for name, part in z.parts.items()})

    def prior(self, noise: State, sigma: float | Mapping[str, float]) -> State:
        """Initial state of sampling (t = 1), from projected standard normal noise; sigma of all parts, or of each."""
        of = dict.fromkeys(self, sigma) if isinstance(sigma, float | int) else sigma
        return noise.replace(**{name: self[name].prior(part, of[name]) for name, part in noise.parts.items()})

    def move(self, clean: State, noise: State, level: Level) -> State:
        """z_t, from a clean state and noise."""
        if level.harmonic_share is not None:
            noise = scaled(noise, level, lambda level: level.sigma)
            return scaled(clean, level, lambda level: level.alpha).combine(noise, torch.add)
        return clean.replace(
            **{
                name: self[name].move(
                    part,
                    noise.parts[name],
                    clean.spread(level.of(name).alpha, part),
                    clean.spread(level.of(name).sigma, part),
                )
                for name, part in clean.parts.items()
            }
        )

    def expected_noise(self, noise: State, z_t: State, clean: State, level: Level) -> State:
        """E[eps | z_t, x0], given the `noise` that produced z_t."""
        return noise.replace(
            **{
                name: self[name].expected_noise(
                    part, z_t.parts[name], clean.parts[name], noise.spread(level.of(name).sigma, part)
                )
                for name, part in noise.parts.items()
            }
        )

    def displacement(self, z_t: State, clean: State, level: Level) -> State:
        """E[eps | z_t, x0] from the two states."""
        if level.harmonic_share is not None:
            difference = z_t.combine(scaled(clean, level, lambda level: level.alpha), torch.sub)
            return scaled(difference, level, lambda level: 1 / level.sigma)
        return z_t.replace(
            **{
                name: self[name].displacement(
                    part,
                    clean.parts[name],
                    z_t.spread(level.of(name).alpha, part),
                    z_t.spread(level.of(name).sigma, part),
                )
                for name, part in z_t.parts.items()
            }
        )

    def log_likelihood(self, z_t: State, clean: State, level: Level) -> Float[Tensor, "B"]:
        """log p(z_t | x0) of the parts that have a space here, up to a constant that does not depend on x0 [B]."""
        if level.harmonic_share is not None:
            return -0.5 * self.displacement(z_t, clean, level).squared_norm()
        total: Any = 0
        for name in self:
            part = z_t.parts[name]
            rows = self[name].log_likelihood(
                part, clean.parts[name], z_t.spread(level.of(name).alpha, part), z_t.spread(level.of(name).sigma, part)
            )
            total = total + (rows if self[name].per_molecule else z_t.sum_over_atoms(rows))
        return total

    def dimension(self, layout: Layout) -> Float[Tensor, "B"]:
        """Degrees of freedom of each molecule over all parts, float64."""
        return torch.stack([space.dimension(layout) for space in self.values()]).sum(0)
