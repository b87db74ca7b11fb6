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
envelope about the posterior's mode (`bench.geometry.matrix_fisher.Envelope`), which is a function of z_t and of the orbit:
replacing x0 by Q x0 replaces F by F Q^T and the draws R by R Q^T, and R x0 stays. With permutations pi_1 = identity,
pi_2..pi_P independent and uniform, the candidates are all pairs (pi_p, R_k): the same R_k for each pi_p if uniform,
draws of its own from the envelope of F_pi if local; either way the argument holds for the pairs.

Left out of this: draws shared by a batch change the covariance between molecules, not the mean. Without the generating
element the estimate is ordinary self-normalised importance sampling, biased by O(1/K); a temperature other than 1 has
another limit. Both are here as controls.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.diffusion.schedule import NoiseLevel
from bench.geometry.groups import Group
from bench.geometry.state import State


class Proposal(StrEnum):
    """Where rotations are drawn from."""

    UNIFORM = "uniform"  # Haar: at low noise nearly all weight stays on the generating element
    LOCAL = "local"  # about the posterior's mode, with importance weights


class Permutations(StrEnum):
    """Which permutations of atoms are candidates besides the identity, drawn uniformly."""

    NONE = "none"
    CLASSES = "classes"  # atoms with equal features change places; features stay
    ALL = "all"  # any atoms change places, and their features with them


@dataclass
class OrbitAverageConfig:
    """Options of the average; the defaults are the published practice, with which it is unbiased."""

    n_draws: int = 64  # rotations, the generating element included
    include_generator: bool = True  # false: a biased control
    temperature: float = 1.0  # divides log weights; other than 1: a biased control
    proposal: Proposal = Proposal.UNIFORM
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
class OrbitAverage:
    """An estimated target.

    Attributes:
        target: T_hat, as an estimate of x0.
        effective_sample_size: 1 / sum_k w_k^2 of the normalised weights, from 1 (all weight on one candidate, which
            does no harm and no good) to the number of candidates.
    """

    target: State
    effective_sample_size: Float[Tensor, "B"]


@torch.no_grad()
def orbit_average(
    x0: State,
    z_t: State,
    level: NoiseLevel,
    group: Group,
    rng: torch.Generator,
    cfg: OrbitAverageConfig,
    permutations: Int[Tensor, "A P"] | None = None,
) -> OrbitAverage:
    """Self-normalised weighted average of g x0 over candidates g; 3x3 arithmetic in float64, no host synchronisation.

    Args:
        x0: the clean state that made z_t (after augmentation, if there is one).
        z_t: noised state.
        permutations: candidates instead of drawn ones, e.g. from `draw_automorphisms`: atom permutations[a, p] of x0
            takes the place of atom a. The first is the identity where the generating element is included.
    """
    order = permutations if permutations is not None else draw_permutations(x0, cfg, rng)
    x = x0.x[:, None] if order is None else x0.x[order]  # [A, P, 3]
    F = fisher_parameter(x, z_t, level) / cfg.temperature
    B, P, K = *F.shape[:2], cfg.n_draws
    fresh = K - 1 if cfg.include_generator and cfg.proposal is Proposal.UNIFORM else K
    eye = torch.eye(3, dtype=F.dtype, device=F.device)
    if cfg.proposal is Proposal.UNIFORM:
        n_sets = 1 if cfg.shared_draws else B
        R = group.haar(n_sets * fresh, rng, F.dtype).view(n_sets, 1, fresh, 3, 3)
        if cfg.include_generator:
            R = torch.cat([eye.expand(n_sets, 1, 1, 3, 3), R], dim=2)
        R = R.expand(B, P, K, 3, 3)
        log_w = _inner(F, R)
    else:
        envelope = group.envelope(F.flatten(0, 1))
        R = envelope.draw(K, rng, cfg.shared_draws).view(B, P, K, 3, 3)
        if cfg.include_generator:
            R[:, 0, 0] = eye
        log_w = _inner(F, R) - envelope.log_density(R.flatten(0, 1)).view(B, P, K)
    if order is not None:
        scale = (level.alpha / level.sigma.square()).double()[:, None] / cfg.temperature
        shift = (x0.h[order] - x0.h[:, None]).double()  # nothing at all within classes
        log_w = log_w + (scale * x0.sum_over_atoms((z_t.h.double()[:, None] * shift).sum(-1)))[:, :, None]
    w = log_w.flatten(1).softmax(dim=1).view(B, P, K)
    M = torch.einsum("bpk,bpkij->bpij", w, R)
    target = x0.rotate(M[:, 0].to(x0.x.dtype)) if order is None else _permuted_average(x0, M, w, order)
    return OrbitAverage(target, 1 / w.square().sum((1, 2)))


def fisher_parameter(x: Float[Tensor, "A P 3"], z_t: State, level: NoiseLevel) -> Float[Tensor, "B P 3 3"]:
    """F = (alpha / sigma^2) sum_n z_n x_n^T for P versions of the clean positions, dimensionless.

    float64, as F reaches 1e7 at t = 0 and cancels between atoms.
    """
    moment = z_t.sum_over_atoms(z_t.x.double()[:, None, :, None] * x.double()[:, :, None, :])
    return (level.alpha.double() / level.sigma.double().square())[:, None, None, None] * moment


def _inner(F: Float[Tensor, "B P 3 3"], R: Float[Tensor, "B P K 3 3"]) -> Float[Tensor, "B P K"]:
    """tr(F^T R)."""
    return torch.einsum("bpij,bpkij->bpk", F, R)


def _permuted_average(x0: State, M: Tensor, w: Tensor, order: Int[Tensor, "A P"]) -> State:
    """sum_p M_p x0_pi_p, and the features' average as a difference from x0, exactly nothing within classes."""
    x = torch.einsum("apij,apj->ai", x0.per_atom(M), x0.x[order].double()).to(x0.x.dtype)
    weight = x0.per_atom(w.sum(2).to(x0.h.dtype))[:, :, None]
    return x0.replace(x=x, h=x0.h + (weight * (x0.h[order] - x0.h[:, None])).sum(1))


# ---------------------------------------------------------------------- permutations


def draw_permutations(x0: State, cfg: OrbitAverageConfig, rng: torch.Generator) -> Int[Tensor, "A P"] | None:
    """Uniform permutations within molecules or within their classes; the first is the identity, or drawn as well."""
    if cfg.permutations is Permutations.NONE:
        return None
    classes = x0.layout.molecule if cfg.permutations is Permutations.ALL else atom_classes(x0)
    shape = (len(classes), cfg.n_permutations)
    u = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
    # sorting by (class, u) lists each class in random order; sorting by class alone lists where its atoms are
    source = (classes.double()[:, None] + u).argsort(0)
    place = classes.argsort(stable=True)
    order = torch.empty_like(source).index_copy_(0, place, source)
    if cfg.include_generator:
        order[:, 0] = torch.arange(len(classes), device=order.device)
    return order


def atom_classes(x0: State) -> Int[Tensor, "A"]:
    """A number for each atom, the same for two atoms of a molecule with equal features."""
    order = torch.arange(len(x0.h), device=x0.h.device)
    for key in (*x0.h.unbind(1), x0.layout.molecule):  # lexicographic, the molecule first
        order = order[key[order].argsort(stable=True)]
    rows = torch.cat([x0.layout.molecule[:, None].to(x0.h.dtype), x0.h], dim=1)[order]
    first = torch.cat([rows.new_zeros(1, dtype=torch.long), (rows[1:] != rows[:-1]).any(1).long()])
    return torch.empty_like(order).index_copy_(0, order, first.cumsum(0))


def automorphisms(
    colours: Sequence[object], bonds: Sequence[tuple[int, int, object]], at_most: int = 10_000
) -> Int[Tensor, "G N"]:
    """All permutations of a molecule's atoms that keep colours, bonds and bond orders, the identity first.

    Args:
        colours: of each atom, e.g. its element, with charge or chirality where they matter.
        bonds: (i, j, order), each once.
        at_most: refuse larger groups, from which uniform draws would need more than a list.
    Raises:
        ValueError: more than `at_most` automorphisms.
    """
    import networkx as nx
    from networkx.algorithms.isomorphism import GraphMatcher, categorical_edge_match, categorical_node_match

    graph = nx.Graph()
    graph.add_nodes_from((n, {"colour": colour}) for n, colour in enumerate(colours))
    graph.add_edges_from((i, j, {"order": order}) for i, j, order in bonds)
    matcher = GraphMatcher(graph, graph, categorical_node_match("colour", None), categorical_edge_match("order", None))
    found = list(itertools.islice(matcher.isomorphisms_iter(), at_most + 1))
    if len(found) > at_most:
        raise ValueError(
            f"the graph has more than {at_most} automorphisms; raise 'at_most', or colour more atoms apart"
        )
    return torch.tensor(sorted([mapping[n] for n in range(len(colours))] for mapping in found))


def draw_automorphisms(
    groups: Sequence[Int[Tensor, "_ _"]], n: int, rng: torch.Generator, device: torch.device | str = "cpu"
) -> Int[Tensor, "A P"]:
    """The identity and n - 1 uniform draws from each molecule's group, as `orbit_average` takes them.

    Args:
        groups: what `automorphisms` found for each molecule of the batch, in its order.
    """
    columns, start = [], 0
    for group in groups:
        index = torch.randint(len(group), (n,), generator=rng, device=rng.device).cpu()
        index[0] = 0
        columns.append(start + group[index].T)
        start += group.shape[1]
    return torch.cat(columns).to(device)
