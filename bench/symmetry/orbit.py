"""Orbit-averaged targets: the mean of x0 over its symmetry orbit given z_t, estimated from sampled group elements.

Let g = (R, pi) act on a molecule by (g x)_n = R x_pi(n), (g h)_n = h_pi(n), with R in SO(3) or O(3) and pi a
permutation of atoms. Where the clean data are g x0 with g uniform on the group, z_t fixes g up to the posterior

    p(g | z_t, x0) ~ exp(-|z_t - alpha g x0|^2 / (2 sigma^2)) ~ exp(tr(F_pi^T R) + (alpha / sigma^2) <z_h, h_pi>),
    F_pi = (alpha / sigma^2) sum_n z_n x0_pi(n)^T,

because |g x0| = |x0|. The target is T = E[g x0 | z_t, orbit of x0] (Tong et al., Orbit Diffusion, arXiv:2502.09890).
All weights follow from 3x3 moments and T = sum_pi M_pi x0_pi with M_pi = sum_k w_k R_k, so K rotations cost 9 K numbers
per molecule and never a copy of the molecule each.

Why the estimate is unbiased. With x0 the state that made z_t, the identity is a draw from the posterior. Let
g_1 = identity and let g_2..g_K be independent draws from a distribution nu(. | z_t, orbit of x0). Given z_t and the
unordered set {g_1..g_K}, the element that made z_t is g_j with probability proportional to

    p(g_j | z_t) prod_{i != j} nu(g_i)  ~  p(g_j | z_t) / nu(g_j) = w_j,

so T_hat = sum_j w_j g_j x0 / sum_j w_j is E[x0 | z_t, set], whose mean given z_t is T, for every K (K = 1 gives x0). It
matters that nu knows of x0 its orbit alone: a proposal centred at the generating element gives it away, and these
weights would then be biased. `Proposal.UNIFORM` is the Haar measure, `Proposal.LOCAL` the angular central Gaussian
envelope about the posterior's mode (`bench.geometry.matrix_fisher.Envelope`), a function of z_t and of the orbit:
replacing x0 by Q x0 replaces F by F Q^T and the draws R by R Q^T, and R x0 stays. With permutations pi_1 = identity,
pi_2..pi_P independent and uniform, the candidates are all pairs (pi_p, R_k): the same R_k for each pi_p if uniform,
draws of its own from the envelope of F_pi if local; either way the argument holds for the pairs.

Shifts of a torus have the same proposals: `LOCAL` is a wrapped normal about the circular mean of z_t - x0.

Exceptions: draws shared by a batch change the covariance between molecules, not the mean. Without the generating
element the estimate is ordinary self-normalised importance sampling, biased by O(1/K); a temperature other than 1 has
another limit; `Proposal.GENERATOR` is centred at the generating element, whose weight by its density is then that of a
draw, which it is not (OrbDiff_WN as published: shifts from N(0, (2 sigma)^2) mod 1, 1000 of them), and is biased by
O(1/K) too. All are here as controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.geometry.groups import Group, MatrixGroup, weighted_noise
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.symmetry.permutations import Permutations, draw_permutations


class Proposal(StrEnum):
    """Where group elements are drawn from."""

    UNIFORM = "uniform"  # Haar: at low noise nearly all weight stays on the generating element
    LOCAL = "local"  # about the posterior's mode, with importance weights
    GENERATOR = "generator"  # about the generating element, as published for crystals: a biased control


@dataclass
class OrbitTargetConfig:
    """Options of the average; the defaults are the published practice, with which it is unbiased."""

    n_draws: int = 64  # group elements, the generating element included
    include_generator: bool = True  # false: a biased control
    temperature: float = 1.0  # divides log weights; other than 1: a biased control
    proposal: Proposal = Proposal.UNIFORM  # where they are drawn from; `generator`: a biased control
    shared_draws: bool = False  # one set of draws for the whole batch, instead of one for each molecule
    permutations: Permutations = Permutations.NONE
    n_permutations: int = 8  # the identity included

    def __post_init__(self) -> None:
        for key in ("n_draws", "n_permutations"):
            if getattr(self, key) < 1:
                raise ValueError(f"'{key}' is {getattr(self, key)!r}, expected at least 1")
        if not self.temperature > 0:
            raise ValueError(f"'temperature' is {self.temperature!r}, expected a positive number")


@dataclass(frozen=True)
class OrbitTarget:
    """An estimated target.

    Attributes:
        noise: the expected noise.
        effective_sample_size: 1 / sum_k w_k^2 of the normalised weights, from 1 (all weight on one candidate: no
            reduction of variance) to the number of candidates.
    """

    noise: State
    effective_sample_size: Float[Tensor, "B"]


@torch.no_grad()
def orbit_target(
    noised: Noised,
    group: Group,
    rng: torch.Generator,
    cfg: OrbitTargetConfig,
    permutations: Int[Tensor, "A P"] | None = None,
) -> OrbitTarget:
    """Self-normalised weighted average over sampled candidates g x0.

    Args:
        noised: with the clean state that made z_t (after augmentation, if there is one).
        permutations: candidates instead of drawn ones, e.g. from `draw_automorphisms`: atom permutations[a, p] of x0
            takes the place of atom a. The first is the identity where the generating element is included.
    Raises:
        ValueError: options that the group, or the state, does not have.
    """
    if isinstance(group, MatrixGroup):  # whose candidates need D x D moments alone
        return _matrix_average(noised, group, rng, cfg, permutations)
    if cfg.permutations is not Permutations.NONE or permutations is not None:
        raise ValueError(f"{type(group).__name__} takes permutations 'none', got {cfg.permutations.value!r}")
    B, dtype, device = len(noised), noised.z_t.dtype, noised.z_t.layout.device
    n_sets, nu = 1 if cfg.shared_draws else B, None
    if cfg.proposal is not Proposal.UNIFORM:
        nu = group.local(noised) if cfg.proposal is Proposal.LOCAL else group.about_identity(noised)
    g = [
        group.haar(n_sets, rng, dtype) if nu is None else nu.draw(n_sets, rng).to(dtype)
        for _ in range(cfg.n_draws - int(cfg.include_generator))
    ]
    if cfg.include_generator:
        g.insert(0, group.identity(n_sets, device, dtype))
    g = [element.expand(B, *element.shape[1:]) for element in g]
    log_w = torch.stack([group.log_likelihood(element, noised).double() for element in g]) / cfg.temperature
    if nu is not None:
        log_w = log_w - torch.stack([nu.log_density(element) for element in g])
    return OrbitTarget(weighted_noise(group, g, log_w, noised), 1 / log_w.softmax(0).square().sum(0))


def _matrix_average(
    noised: Noised,
    group: MatrixGroup,
    rng: torch.Generator,
    cfg: OrbitTargetConfig,
    permutations: Int[Tensor, "A P"] | None,
) -> OrbitTarget:
    """The average over candidates (permutation, matrix); D x D arithmetic in float64, no host synchronisation."""
    x0, z_t, level, part = noised.clean, noised.z_t, noised.level, group.part
    order = permutations
    if order is None and cfg.permutations is Permutations.NONE:
        order = group.exchanges(x0, cfg.n_permutations, rng, cfg.include_generator)
    elif order is None:
        if level.harmonic_share is not None:
            raise ValueError(
                f"permutations {cfg.permutations.value!r} break bonds, which prior 'harmonic' holds together; choose "
                "'none' (automorphisms are part of a group), or prior 'gaussian'"
            )
        order = draw_permutations(x0, cfg, rng)
    x = x0.parts[part][:, None] if order is None else x0.parts[part][order]  # [A, P, D]
    F = group.moment(x, noised) / cfg.temperature
    B, P, K, D = *F.shape[:2], cfg.n_draws, group.size
    fresh = K - 1 if cfg.include_generator and cfg.proposal is Proposal.UNIFORM else K
    eye = torch.eye(D, dtype=F.dtype, device=F.device)
    if cfg.proposal is Proposal.UNIFORM:
        n_sets = 1 if cfg.shared_draws else B
        R = group.haar(n_sets * fresh, rng, F.dtype).view(n_sets, 1, fresh, D, D)
        if cfg.include_generator:
            R = torch.cat([eye.expand(n_sets, 1, 1, D, D), R], dim=2)
        R = R.expand(B, P, K, D, D)
        log_w = _inner(F, R)
    elif cfg.proposal is Proposal.GENERATOR:
        raise ValueError(f"proposal 'generator' is that of shifts of a torus; {type(group).__name__} takes others")
    else:
        envelope = group.envelope(F.flatten(0, 1))
        R = envelope.draw(K, rng, cfg.shared_draws).view(B, P, K, D, D)
        if cfg.include_generator:
            R[:, 0, 0] = eye
        log_w = _inner(F, R) - envelope.log_density(R.flatten(0, 1)).view(B, P, K)
    if order is not None and "h" in x0.parts:
        scale = (level.alpha / level.sigma.square()).double()[:, None] / cfg.temperature
        shift = (x0.h[order] - x0.h[:, None]).double()  # exactly zero within classes
        log_w = log_w + (scale * x0.sum_over_atoms((z_t.h.double()[:, None] * shift).sum(-1)))[:, :, None]
    w = log_w.flatten(1).softmax(dim=1).view(B, P, K)
    M = torch.einsum("bpk,bpkij->bpij", w, R)
    clean = group.act(M[:, 0].to(x0.dtype), x0) if order is None else _permuted_average(x0, part, M, w, order)
    return OrbitTarget(noised.noise_of(clean), 1 / w.square().sum((1, 2)))


def _inner(F: Float[Tensor, "B P D D"], R: Float[Tensor, "B P K D D"]) -> Float[Tensor, "B P K"]:
    """tr(F^T R)."""
    return torch.einsum("bpij,bpkij->bpk", F, R)


def _permuted_average(x0: State, part: str, M: Tensor, w: Tensor, order: Int[Tensor, "A P"]) -> State:
    """sum_p M_p x0_pi_p, and the features' average as a difference from x0, exactly zero within classes."""
    x = torch.einsum("apij,apj->ai", x0.per_atom(M), x0.parts[part][order].double()).to(x0.dtype)
    if "h" not in x0.parts:
        return x0.replace(**{part: x})
    weight = x0.per_atom(w.sum(2).to(x0.h.dtype))[:, :, None]
    return x0.replace(**{part: x}, h=x0.h + (weight * (x0.h[order] - x0.h[:, None])).sum(1))
