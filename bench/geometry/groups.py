"""Compact symmetry groups: Haar draws, actions on states, and posterior means over an orbit.

`Sign`, `SO2`, `SO3` and `O3` are groups of matrices that act on the rows of one part, x_n -> g x_n; `Permutations`
exchange identical points; `TorusShift`, in `bench.geometry.torus`, moves all sites of a crystal together. Methods are
handed a `Group`, so a test can hand in a translated one (`Translated`, Q R for R) and require a stochastic prediction
to turn by Q exactly.

Given z_t and the orbit of x0, the element g that made z_t has the posterior p(g | z_t, x0) ~ p(z_t | g x0), and the
Rao-Blackwellised target is the mean of the noise over it (Tong et al., Orbit Diffusion, arXiv:2502.09890, theorem 1).
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.geometry.harmonic import scaled
from bench.geometry.matrix_fisher import Envelope, log_normaliser_SO3, mean_O3, mean_SO3
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.streams import draw


def gram_schmidt(M: Float[Tensor, "*B 3 3"], proper: bool = False) -> Float[Tensor, "*B 3 3"]:
    """Orthonormalise the columns: the Q of M = Q T with T upper triangular and a positive diagonal.

    Closed form for 3x3, so nothing leaves the device and gradients are those of the QR factor. A column whose
    residual is exactly zero becomes zero, with zero gradient, instead of NaN. The second column is orthogonalised
    twice, which keeps Q^T Q = I to rounding for condition numbers near 1/precision.

    Returns:
        Q with det Q = sign det M, det Q = +1 where det M = 0; with `proper` the same but for the sign of the third
        column, which makes det Q = +1 throughout.
    """
    floor = torch.finfo(M.dtype).tiny ** 0.5

    def unit(v: Tensor) -> Tensor:
        # scaling first keeps the squares of very small or large columns in range; the sum is then at least 1, unless
        # the column has vanished, and then no gradient passes either
        size = v.detach().abs().amax(-1, keepdim=True)
        v = torch.where(size > floor, v, 0) / size.clamp_min(floor)
        return v / v.square().sum(-1, keepdim=True).clamp_min(1).sqrt()

    q1 = unit(M[..., 0])
    v2 = M[..., 1] - (q1 * M[..., 1]).sum(-1, keepdim=True) * q1
    q2 = unit(v2)
    q2 = unit(q2 - (q1 * q2).sum(-1, keepdim=True) * q1)
    q3 = torch.linalg.cross(q1, q2)
    if not proper:
        orientation = (q3 * M[..., 2]).sum(-1, keepdim=True)
        # sign(0) would zero the column, hence the comparison; the sign carries no gradient
        q3 = torch.where(orientation < 0, -q3, q3)
    return torch.stack([q1, q2, q3], dim=-1)


def product(A: Float[Tensor, "*B 3 3"], B: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 3 3"]:
    """A B without a matrix product, which autocast would run in bf16, destroying orthogonality."""
    return (A[..., :, :, None] * B[..., None, :, :]).sum(-2)


class Local(ABC):
    """A distribution on a group, one for each molecule of a batch, with a density under the Haar measure."""

    @abstractmethod
    def draw(self, n_sets: int, rng: torch.Generator) -> Tensor:
        """One element for each molecule [B, ...]; from shared random numbers where n_sets is 1 instead of B."""

    @abstractmethod
    def log_density(self, g: Tensor) -> Float[Tensor, "B"]:
        """Up to a constant of each molecule."""


class Group(ABC):
    """A compact group that methods average or sample over.

    Elements of n molecules are a tensor [n, ...]; `identity`, `haar` and `inverse` make them, `act` applies them.

    Attributes:
        dimension: of the group as a manifold, and so of an orbit of general position; 0 for a finite group.
    """

    dimension: int = 0

    @abstractmethod
    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """n independent draws from the Haar measure [n, ...], on the generator's device."""

    @abstractmethod
    def identity(self, n: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The neutral element, n times."""

    @abstractmethod
    def inverse(self, g: Tensor) -> Tensor:
        """Inverse of each element."""

    @abstractmethod
    def act(self, g: Tensor, state: State) -> State:
        """Apply one element per molecule to its points."""

    def act_on_noise(self, g: Tensor, noise: State) -> State:
        """Act on displacements, noise and predictions of it; differs from `act` for groups that are not linear."""
        return self.act(g, noise)

    def exchanges(
        self, state: State, n: int, rng: torch.Generator, include_identity: bool
    ) -> Int[Tensor, "A P"] | None:
        """n draws of permutations of atoms, where a group has some besides its elements: atom [a, p] takes the place of
        atom a."""
        del state, n, rng, include_identity
        return None

    def log_likelihood(self, g: Tensor, noised: Noised) -> Float[Tensor, "B"]:
        """log p(z_t | g x0) up to a constant, which is the log posterior of g under the Haar prior."""
        return noised.spaces.log_likelihood(noised.z_t, self.act(g, noised.clean), noised.level)

    def posterior_mean(self, noised: Noised) -> State:
        """E[noise | z_t, orbit of x0] in closed form or by a quadrature that is exact to rounding.

        Raises:
            NotImplementedError: none is known for this group.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form posterior mean; sample it (orbit_rb)")

    def log_evidence(self, noised: Noised) -> Float[Tensor, "B"]:
        """log of the mean of p(z_t | g x0) over the group, float64, up to the constant of `log_likelihood`.

        Among several candidates for x0 it weighs which orbit produced z_t.

        Raises:
            NotImplementedError: it is not known for this group.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form evidence of an orbit")

    def envelope(self, F: Float[Tensor, "N 3 3"]) -> Envelope:
        """A distribution near the posterior, to draw from.

        Raises:
            NotImplementedError: none is known for this group.
        """
        raise NotImplementedError(f"{type(self).__name__} has no local proposal; use proposal=uniform")

    def local(self, noised: Noised) -> Local:
        """A distribution near the posterior that knows of x0 its orbit alone, for groups other than those of matrices.

        Raises:
            NotImplementedError: none is known for this group.
        """
        raise NotImplementedError(f"{type(self).__name__} has no local proposal; use proposal=uniform")

    def about_identity(self, noised: Noised) -> Local:
        """A distribution about the identity, as wide as the noise: it gives away which element made z_t.

        Raises:
            NotImplementedError: none is known for this group.
        """
        raise NotImplementedError(f"{type(self).__name__} has no proposal about the identity; use proposal=uniform")


class MatrixGroup(Group):
    """A group of D x D matrices R that act on the rows of one part, x_n -> R x_n.

    Because |z_t - alpha R x0|^2 depends on R through one inner product, the posterior is the exponential family
    p(R | z_t, x0) ~ exp(tr(F^T R)) with the moment F = (alpha / sigma^2) sum_n z_n x0_n^T: a molecule enters through a
    D x D matrix alone.

    Attributes:
        part: name of the part.
        size: D.
    """

    part = "x"
    size: int

    def identity(self, n: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.eye(self.size, device=device, dtype=dtype).expand(n, -1, -1)

    def inverse(self, g: Float[Tensor, "n D D"]) -> Float[Tensor, "n D D"]:
        return g.mT

    def act(self, g: Float[Tensor, "B D D"], state: State) -> State:
        return state.rotate(g, self.part)

    def pull(self, noised: Noised) -> Float[Tensor, "A D"]:
        """y = (alpha / sigma^2) z_t, float64, of which F is sum_n y_n x_n^T.

        Under a harmonic prior the precision of the noise takes the place of 1 / sigma^2. It acts on atoms and R on
        coordinates, so |g x0| in its metric is |x0| and the posterior stays in its family.
        """
        z = State({self.part: noised.z_t.parts[self.part].double()}, noised.z_t.layout, noised.z_t.context)
        at = noised.level.to(dtype=torch.float64)
        return scaled(z, at, lambda level: level.alpha / level.sigma.square()).parts[self.part]

    def moment(self, x: Float[Tensor, "A P D"], noised: Noised) -> Float[Tensor, "B P D D"]:
        """F for P versions of the clean positions; float64, as F reaches 1e7 at t = 0 and cancels between atoms."""
        return noised.z_t.sum_over_atoms(self.pull(noised)[:, None, :, None] * x.double()[:, :, None, :])

    @abstractmethod
    def mean(self, F: Float[Tensor, "B D D"]) -> Float[Tensor, "B D D"]:
        """Mean of p(R) ~ exp(tr(F^T R)) over the group."""

    def log_normaliser(self, F: Float[Tensor, "B D D"]) -> Float[Tensor, "B"]:
        """log of the mean of exp(tr(F^T R)) over the group, which weighs several orbits.

        Raises:
            NotImplementedError: none is known for this group.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form normaliser")

    @torch.no_grad()
    def log_evidence(self, noised: Noised) -> Float[Tensor, "B"]:
        F = self.moment(noised.clean.parts[self.part][:, None], noised)[:, 0]
        here = noised.spaces.log_likelihood(noised.z_t, noised.clean, noised.level).double()
        return here - F.diagonal(dim1=1, dim2=2).sum(1) + self.log_normaliser(F)

    @torch.no_grad()
    def posterior_mean(self, noised: Noised) -> State:
        """Expected noise equivalent to E[x0 | z_t, orbit] = M x0, with M the mean of p(R) ~ exp(tr(F^T R))."""
        clean = noised.clean
        M = self.mean(self.moment(clean.parts[self.part][:, None], noised)[:, 0])
        return noised.noise_of(self.act(M.to(clean.dtype), clean))


class Sign(MatrixGroup):
    """{+1, -1} on the line: the mean is tanh(F)."""

    size = 1

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 1 1"]:
        bits = draw(partial(torch.randint, 0, 2), (n, 1, 1), rng)
        return (2 * bits - 1).to(dtype)

    def mean(self, F: Float[Tensor, "B 1 1"]) -> Float[Tensor, "B 1 1"]:
        return torch.tanh(F)

    def log_normaliser(self, F: Float[Tensor, "B 1 1"]) -> Float[Tensor, "B"]:
        """log cosh F."""
        f = F[:, 0, 0]
        return torch.logaddexp(f, -f) - math.log(2)


class SO2(MatrixGroup):
    """Rotations of the plane: the posterior of the angle is von Mises, with mean I1(k)/I0(k) in the direction of F."""

    size = 2
    dimension = 1

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 2 2"]:
        angle = 2 * math.pi * draw(torch.rand, (n,), rng, dtype=dtype)
        return self.rotation(angle.cos(), angle.sin())

    @staticmethod
    def rotation(cos: Float[Tensor, "n"], sin: Float[Tensor, "n"]) -> Float[Tensor, "n 2 2"]:
        return torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)

    def log_normaliser(self, F: Float[Tensor, "B 2 2"]) -> Float[Tensor, "B"]:
        """log I0(k)."""
        k = torch.hypot(F[:, 0, 0] + F[:, 1, 1], F[:, 1, 0] - F[:, 0, 1])
        return torch.special.i0e(k).log() + k

    def mean(self, F: Float[Tensor, "B 2 2"]) -> Float[Tensor, "B 2 2"]:
        # tr(F^T R) = (F11 + F22) cos + (F21 - F12) sin = k cos(angle - mu)
        cos, sin = F[:, 0, 0] + F[:, 1, 1], F[:, 1, 0] - F[:, 0, 1]
        k = torch.hypot(cos, sin)
        # I1(k) / I0(k) / k is 1/2 at k = 0
        ratio = torch.special.i1e(k) / torch.special.i0e(k)
        scale = torch.where(k > 1e-6, ratio / k.clamp_min(1e-6), 0.5)
        return self.rotation(scale * cos, scale * sin)


class RotationGroup(MatrixGroup):
    """SO(3) or O(3): the posterior is matrix-Fisher (`bench.geometry.matrix_fisher`).

    Attributes:
        proper: whether every element has determinant 1.
    """

    size = 3
    dimension = 3
    proper: bool


class O3(RotationGroup):
    """Rotations and reflections. Draws: QR of a standard normal matrix with positive diagonal (Mezzadri 2007)."""

    proper = False

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3 3"]:
        return gram_schmidt(draw(torch.randn, (n, 3, 3), rng, dtype=dtype))

    def mean(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        return mean_O3(F)

    def log_normaliser(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B"]:
        halves = torch.stack([log_normaliser_SO3(F), log_normaliser_SO3(-F)])
        return halves.logsumexp(0) - math.log(2)

    def envelope(self, F: Float[Tensor, "N 3 3"]) -> Envelope:
        return Envelope(F, improper=True)


class SO3(RotationGroup):
    """Proper rotations. A Haar draw of O(3) whose third column is flipped, where needed, to make det R = 1."""

    proper = True

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3 3"]:
        return gram_schmidt(draw(torch.randn, (n, 3, 3), rng, dtype=dtype), proper=True)

    def mean(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        return mean_SO3(F)

    def log_normaliser(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B"]:
        return log_normaliser_SO3(F)

    def envelope(self, F: Float[Tensor, "N 3 3"]) -> Envelope:
        return Envelope(F, improper=False)


class Translated(RotationGroup):
    """Draws Q R where the inner group draws R: the coupling by which 'in law' is tested to rounding error."""

    def __init__(self, inner: RotationGroup, Q: Float[Tensor, "3 3"]) -> None:
        self.inner, self.Q, self.proper = inner, Q, inner.proper

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3 3"]:
        return self.Q.to(dtype) @ self.inner.haar(n, rng, dtype)

    def mean(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        return self.inner.mean(F)  # Haar measure is invariant: no coupling enters an average

    def log_normaliser(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B"]:
        return self.inner.log_normaliser(F)

    def envelope(self, F: Float[Tensor, "N 3 3"]) -> Envelope:
        return self.inner.envelope(F)


class Permutations(Group):
    """All permutations of n identical points, the same n in each molecule; exact by enumeration.

    Raises:
        ValueError: n above 6, where n! elements are too many to enumerate.
    """

    def __init__(self, n_points: int, parts: tuple[str, ...] = ("x",)) -> None:
        if not 1 <= n_points <= 6:
            raise ValueError(f"permutations of {n_points} points are not enumerated; expected 1 to 6")
        self.n_points, self.parts = n_points, parts
        self.elements = torch.tensor(list(itertools.permutations(range(n_points))))  # [n!, n], the identity first

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Int[Tensor, "n N"]:
        del dtype
        index = draw(partial(torch.randint, len(self.elements)), (n,), rng)
        return self.elements.to(rng.device)[index]

    def identity(self, n: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        del dtype
        return torch.arange(self.n_points, device=device).expand(n, -1)

    def inverse(self, g: Int[Tensor, "n N"]) -> Int[Tensor, "n N"]:
        return g.argsort(1)

    def act(self, g: Int[Tensor, "B N"], state: State) -> State:
        """Atom g[b, i] of molecule b takes the place of its atom i."""
        order = (state.ptr[:-1, None] + g).flatten()
        return state.replace(**{name: state.parts[name][order] for name in self.parts})

    @torch.no_grad()
    def posterior_mean(self, noised: Noised) -> State:
        """Mean over all n! elements."""
        g = [element.expand(len(noised), -1) for element in self.elements.to(noised.z_t.ptr.device)]
        return weighted_noise(self, g, torch.stack([self.log_likelihood(element, noised) for element in g]), noised)

    @torch.no_grad()
    def log_evidence(self, noised: Noised) -> Float[Tensor, "B"]:
        g = [element.expand(len(noised), -1) for element in self.elements.to(noised.z_t.ptr.device)]
        each = torch.stack([self.log_likelihood(element, noised).double() for element in g])
        return each.logsumexp(0) - math.log(len(g))


def weighted_noise(group: Group, g: list[Tensor], log_weights: Float[Tensor, "K B"], noised: Noised) -> State:
    """E[noise | z_t, {g_k x0}] for candidates g_k with normalised weights: the mean of their displacements.

    Parts on which the group does not act keep their noise to the last digit.
    """
    weights = log_weights.softmax(0).to(noised.noise.dtype)
    total: dict[str, Tensor] = {}
    for element, weight in zip(g, weights, strict=True):
        moved = group.act(element, noised.clean)
        noise = noised.spaces.displacement(noised.z_t, moved, noised.level)
        for name, part in moved.parts.items():
            if part is not noised.clean.parts[name]:
                term = noise.spread(weight, part) * noise.parts[name]
                total[name] = total[name] + term if name in total else term
    return noised.noise.replace(**total)
