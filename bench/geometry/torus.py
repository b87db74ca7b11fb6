"""Common translations of the points of a torus: the group of crystals whose origin is arbitrary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.groups import Group, Local
from bench.geometry.noised import Noised
from bench.geometry.spaces import Spaces, Torus, modulo_one
from bench.geometry.state import State
from bench.streams import draw

WIDEST = 0.5  # standard deviation of a wrapped normal that is flat to 2 %


@dataclass(frozen=True)
class WrappedNormal(Local):
    """Shifts drawn from a normal distribution modulo 1, the axes independent.

    Attributes:
        centre: float64.
        width: standard deviation; wider ones count as 0.5, which is flat.
    """

    centre: Float[Tensor, "B 3"]
    width: Float[Tensor, "B"]

    def draw(self, n_sets: int, rng: torch.Generator) -> Float[Tensor, "B 3"]:
        eps = draw(torch.randn, (n_sets, 3), rng, dtype=torch.float64)
        return modulo_one(self.centre + self._width * eps)

    def log_density(self, g: Float[Tensor, "B 3"]) -> Float[Tensor, "B"]:
        """Without the constant -3 log(width sqrt(2 pi))."""
        return Torus(3).log_likelihood(g.double(), self.centre, torch.ones_like(self._width), self._width)

    @property
    def _width(self) -> Float[Tensor, "B 1"]:
        return self.width.clamp(max=WIDEST)[:, None]


class TorusShift(Group):
    """Common translations of the fractional coordinates of a crystal, tau in [0, 1)^3 per molecule.

    The posterior factorises over the axes, p(tau_a) ~ prod_n WN(z_na - x0_na - tau_a; sigma), so the mean of the noise
    is a periodic integral in one dimension: the rectangle rule on nodes around the circular mean of z - x0, which
    converges exponentially because the integrand is analytic. We know of no publication that uses it.

    Attributes:
        n_nodes: per axis.
    """

    part = "frac"
    dimension = 3
    REACH = 12.0  # standard deviations of the posterior on either side of its centre
    FLAT = 0.15  # sigma above which a wrapped normal is no longer a normal

    def __init__(self, n_nodes: int = 128) -> None:
        self.n_nodes = n_nodes

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3"]:
        return draw(torch.rand, (n, 3), rng, dtype=dtype)

    def identity(self, n: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(n, 3, device=device, dtype=dtype)

    def inverse(self, g: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        return -g

    def act(self, g: Float[Tensor, "B 3"], state: State) -> State:
        return state.replace(**{self.part: modulo_one(state.parts[self.part] + state.per_atom(g))})

    def act_on_noise(self, g: Tensor, noise: State) -> State:
        """A shift of all points leaves displacements as they are."""
        del g
        return noise

    def nodes(self, noised: Noised) -> tuple[Float[Tensor, "B 3 K"], Float[Tensor, "B"]]:
        """Nodes of tau around the circular mean of z - x0, or on the whole circle where that interval would exceed it;
        and the distance between two of them."""
        centre, width = self._about_posterior(noised)
        half = (self.REACH * width).clamp(max=0.5)
        steps = (torch.arange(self.n_nodes, device=width.device, dtype=torch.float64) + 0.5) / self.n_nodes
        return centre[..., None] + half[:, None, None] * (2 * steps - 1), 2 * half / self.n_nodes

    def _about_posterior(self, noised: Noised) -> tuple[Float[Tensor, "B 3"], Float[Tensor, "B"]]:
        """The circular mean of z - x0, and about how wide the posterior is around it; float64."""
        state, sigma = noised.z_t, noised.level.of(self.part).sigma.double()
        turn = 2 * math.pi * (state.parts[self.part].double() - noised.clean.parts[self.part].double())
        centre = torch.atan2(state.sum_over_atoms(turn.sin()), state.sum_over_atoms(turn.cos())) / (2 * math.pi)
        # sigma / sqrt(N); where a wrapped normal is nearly flat, with first Fourier coefficient rho, the posterior is
        # von Mises with concentration 2 N rho^2
        rho = torch.exp(-2 * (math.pi * sigma).square())
        width = torch.where(sigma > self.FLAT, 1 / (2 * math.pi * 2**0.5 * rho), sigma)
        return centre, width / state.n_atoms.double().sqrt()

    def local(self, noised: Noised) -> WrappedNormal:
        """About the circular mean of z - x0, which shifts against x0: so x0 moved by a draw does not tell x0."""
        return WrappedNormal(*self._about_posterior(noised))

    def about_identity(self, noised: Noised) -> WrappedNormal:
        """N(0, (2 sigma)^2) mod 1, from which the published code draws (OrbDiff_WN, arXiv:2502.09890, C.2)."""
        sigma = noised.level.of(self.part).sigma.double()
        return WrappedNormal(sigma.new_zeros(len(sigma), 3), 2 * sigma)

    def _quadrature(self, noised: Noised) -> tuple[Float[Tensor, "B 3 K"], Float[Tensor, "A 3 K"], Float[Tensor, "B"]]:
        """log prod_n WN(z_na - x0_na - tau_a) and E[eps | d_na - tau_a] at the nodes, and the distance between them."""
        state, space = noised.z_t, noised.spaces[self.part]
        d = state.parts[self.part].double() - noised.clean.parts[self.part].double()
        tau, spacing = self.nodes(noised)
        assert isinstance(space, Torus)
        sigma = state.per_atom(noised.level.of(self.part).sigma.double())[:, None, None]
        log_p, noise = space.wrapped(d[..., None] - state.per_atom(tau), sigma)
        return state.sum_over_atoms(log_p), noise, spacing

    @torch.no_grad()
    def posterior_mean(self, noised: Noised) -> State:
        """E[noise | z_t, orbit]: T_na = E_tau[ E[eps | d_na - tau_a] ], float64."""
        log_w, noise, _ = self._quadrature(noised)
        mean = (noised.z_t.per_atom(log_w.softmax(-1)) * noise).sum(-1)
        return noised.noise.replace(**{self.part: mean.to(noised.noise.dtype)})

    @torch.no_grad()
    def log_evidence(self, noised: Noised) -> Float[Tensor, "B"]:
        log_w, _, spacing = self._quadrature(noised)
        found = (log_w.logsumexp(-1) + spacing.log()[:, None]).sum(1)
        still = Spaces({name: space for name, space in noised.spaces.items() if name != self.part})
        if not len(still):
            return found
        z_t, clean = (state.to(dtype=torch.float64) for state in (noised.z_t, noised.clean))
        return found + still.log_likelihood(z_t, clean, noised.level.to(dtype=torch.float64))
