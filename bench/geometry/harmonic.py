"""The harmonic prior: noise under which bonded atoms lie near one another, and the one place where noise is scaled.

The prior is a set of springs along the bonds, p(x) ~ exp(-1/2 sum_{bonds ij} |x_i - x_j|^2) = exp(-1/2 tr x^T L x),
L the Laplacian of the bond graph: on the space without centre of mass a normal distribution whose covariance is L^+,
the pseudo-inverse of L, for each coordinate (Jing et al., EigenFold, arXiv:2304.02198; Hassan et al., ET-Flow,
arXiv:2410.22388). L acts on atoms, a rotation on coordinates: the two commute, so the prior is invariant under O(3). It
is so under automorphisms of the graph because L is.

With bridge noise, z_t = alpha x0 + t e_prior + s e_bridge, e_prior ~ N(0, L^+), e_bridge ~ N(0, 1), and z_t given x0
has the covariance S^2 = t^2 L^+ + s^2: a function of L, whose eigenvectors (modes) it has, with a variance for each. So
everywhere else noise stays standard normal, z_t = alpha x0 + S eps, and whatever multiplies a state by a function of
the noise level calls `scaled`: a number per molecule where noise is isotropic, a number per mode under this prior.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.layout import Layout
from bench.geometry.state import State

if TYPE_CHECKING:
    from bench.geometry.noised import Level

N_KEPT = 4096  # molecules whose modes are kept on the host: a training set is seen many times
TOLERANCE = 1e-8  # eigenvalues below are zero; that of a chain of n atoms is (pi / n)^2 or more


def scaled(state: State, level: Level, factor: Callable[[Level], Tensor]) -> State:
    """Multiply each part by a function of its noise level; under a harmonic prior, each mode by that of its own.

    Args:
        state: displacements or centred positions.
        factor: from a level, of molecules [B] or of modes [A], to numbers of the same shape.
    Raises:
        ValueError: a harmonic prior, and the state has no bond graph, or one in several pieces.
    """
    if level.own is not None:
        return state.replace(**{k: state.spread(factor(level.of(k)), part) * part for k, part in state.parts.items()})
    if level.harmonic_share is None:
        number = factor(level)
        return state.map(lambda part: state.spread(number, part) * part)
    modes = modes_of(state)
    number = factor(modes.level(level))
    return state.map(lambda part: modes.scale(part, number))


@dataclass(frozen=True)
class Modes:
    """Eigenvectors of the Laplacian of each molecule of a batch, as many as it has atoms.

    Attributes:
        layout: of the batch; a mode has the place of an atom.
        edges: the bond graph's `edge_index` that they belong to.
        vectors: columns are modes [B, M, M], M the size of the largest molecule, zero beyond a molecule's own.
        spread: variance of each mode under the prior [A]; 1 for the first of each molecule, its centre of mass, which
            no state has.
    """

    layout: Layout
    edges: Tensor
    vectors: Float[Tensor, "B M M"]
    spread: Float[Tensor, "A"]

    def level(self, level: Level) -> Level:
        """The level of each mode [A]: sigma^2 is shared out between the prior and isotropic bridge noise."""
        of_atoms: dict[str, Any] = {
            field.name: None if (value := getattr(level, field.name)) is None else value[self.layout.molecule]
            for field in dataclasses.fields(level)
        }
        share, change = of_atoms["harmonic_share"], of_atoms["d_harmonic_share"]
        root = (1 + share * (self.spread - 1)).sqrt()
        d_root = change * (self.spread - 1) / (2 * root)
        sigma = of_atoms["sigma"]
        of_atoms |= {"sigma": sigma * root, "d_sigma": of_atoms["d_sigma"] * root + sigma * d_root}
        return dataclasses.replace(level, **of_atoms)

    def scale(self, x: Float[Tensor, "A C"], number: Float[Tensor, "A"]) -> Float[Tensor, "A C"]:
        """V diag(number) V^T x."""
        where = (self.layout.molecule, self._place)
        B, M = self.vectors.shape[:2]
        padded = x.new_zeros(B, M, x.shape[1])
        padded[where] = x
        factor = number.new_zeros(B, M, 1)
        factor[where] = number[:, None]
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round positions to three digits
            padded = self.vectors @ (factor * (self.vectors.mT @ padded))
        return padded[where]

    @functools.cached_property
    def _place(self) -> Tensor:
        """Position of each atom within its molecule [A]."""
        return torch.arange(self.layout.n_total, device=self.layout.device) - self.layout.ptr[self.layout.molecule]


def modes_of(state: State) -> Modes:
    """Modes of a state's bond graph in the state's precision, made once for a batch (on the host), kept in its layout.

    Raises:
        ValueError: the state has no bond graph, or one in several pieces.
    """
    layout, graph = state.layout, state.context
    edges = None if graph is None or "edge_index" not in graph else graph["edge_index"]
    memo, key = layout.memo, ("harmonic", state.dtype)
    if key in memo and (edges is None or memo[key].edges is edges):  # the output of a network may carry no context
        return memo[key]
    if edges is None:
        raise ValueError(
            "prior 'harmonic' needs a bond graph (edge_index) in the state's context; choose prior 'gaussian', or a "
            "task that gives bonds"
        )
    memo[key] = _modes(layout, edges, state.dtype)
    return memo[key]


def _modes(layout: Layout, edges: Tensor, dtype: torch.dtype) -> Modes:
    ends, sizes = edges.cpu().numpy(), layout.sizes
    start = np.cumsum(sizes) - sizes
    owner = np.repeat(np.arange(len(sizes)), sizes)[ends[0]]
    order = np.argsort(owner, kind="stable")
    local = (ends - start[owner])[:, order]
    pieces = np.split(local, np.cumsum(np.bincount(owner, minlength=len(sizes)))[:-1], axis=1)
    found = [_spectrum(int(n), np.ascontiguousarray(own).tobytes()) for n, own in zip(sizes, pieces, strict=True)]
    vectors = np.zeros((len(sizes), layout.n_largest, layout.n_largest))
    for i, (own, _) in enumerate(found):
        vectors[i, : len(own), : len(own)] = own
    to: Any = {"device": layout.device, "dtype": dtype}
    spread = np.concatenate([own for _, own in found])
    return Modes(layout, edges, torch.from_numpy(vectors).to(**to), torch.from_numpy(spread).to(**to))


@functools.lru_cache(maxsize=N_KEPT)
def _spectrum(n_atoms: int, edges: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors of one molecule's Laplacian [N, N] and the prior's variances along them [N], float64."""
    i, j = np.frombuffer(edges, dtype=np.int64).reshape(2, -1)
    bonded = np.zeros((n_atoms, n_atoms))
    bonded[i, j] = bonded[j, i] = 1
    values, vectors = np.linalg.eigh(np.diag(bonded.sum(1)) - bonded)
    if (n_pieces := int((values < TOLERANCE).sum())) > 1:
        raise ValueError(
            f"prior 'harmonic' needs molecules in one piece, got one of {n_atoms} atoms in {n_pieces}; choose prior "
            "'gaussian', or leave it out of the data"
        )
    return vectors, np.concatenate([[1.0], 1 / values[1:]])
