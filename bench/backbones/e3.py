"""E3: equivariant message passing with features of higher order, on the couplings of e3nn.

Thomas et al., Tensor field networks (arXiv:1802.08219); gates and residuals as in Batzner et al., NequIP
(arXiv:2101.03164); radial weights that see both atoms' scalars and are shared by groups of channels, and a norm of each
degree before each block, as in Liao & Smidt, Equiformer (arXiv:2206.11990). Exactly equivariant under O(3),
translations and permutations, at any weights.

An atom has C channels for each degree l <= lmax, of parity (-1)^l: scalars 0e, vectors 1o, 2e, ... With v_ij =
(x_i - x_j) / sqrt(d_ij^2 + 0.01), harmonics Y^l(v_ij), a basis b(d_ij) and C(l1, l2, l3) the Wigner 3j symbols, a block
with linear maps U, V over channels, one for each degree, and <h^l>^2 the mean square over channels and components:
    s_i^l    = h_i^l / sqrt(<h_i^l>^2 + 0.01)                                           bounded, whatever h is
    w_ij^l2  = W2 SiLU(W1 [s_i^0, s_j^0, b(d_ij)])                                      a weight per degree and group
    m_i^l3   = V^l3 [ sqrt(2 l3 + 1) C(l1, l2, l3) sum_{j != i} w_ij^l2 Y^l2(v_ij) (U s_j)^l1 ]_{l1, l2} / sqrt(n)
    [u, g^l] = W4 SiLU(W3 [s_i^0, m_i^0, sqrt(1 + |m_i^l|^2)])
    h_i^0 <- h_i^0 + u,  h_i^l <- h_i^l + sigmoid(g^l) m_i^l
Each block thus changes h by a bounded amount, and for large states the network grows no faster than linearly (tested).
Because C does not depend on j, it is applied after the sum, once per atom: the work on pairs is a small matrix product,
where a tensor product on each pair, as in e3nn, would write [P, paths, 2 l3 + 1, C] (tests/unit/backbones/test_e3.py
holds them equal).

Where a task gives bond graphs, embeddings of the atoms are added to h^0 at the start, and those of bond and topological
distance stand beside b(d_ij).

Distances are those of a noised, scaled state, from 0.1 to tens: Gaussians in log d, each as wide as their spacing.
Everything is smooth, also where two atoms coincide: there solid harmonics of v vanish and their gradients are finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.state import State
from bench.nn.graph import GRAPH, GraphEmbedding
from bench.nn.linear import Float32Linear, answer, features_of, without_autocast
from bench.nn.padded import Slots, slots_of
from bench.nn.pairs import Pairs, differences, pair_linear, pairs_of
from bench.references import Reference
from bench.registry import backbones

SOFTENING = 0.1  # length below which distances are smoothed, in scaled units
LARGEST = 30.0  # last centre of the distance basis
N_PAIR = 16  # channels of a pair's bond and topological distance
SMALLEST = 0.1  # floor of the root mean square in `normalise`, which thus enlarges features at most tenfold


@dataclass
class E3Config:
    """Options of the E3 network; a named size sets the first four."""

    width: int = 64  # channels of each degree
    depth: int = 5
    lmax: int = 2  # highest degree of the features
    n_groups: int = 16  # of channels with radial weights of their own; `width` of them is NequIP's choice
    n_basis: int = 24  # radial basis functions
    n_partners: float = 17.0  # of a QM9 atom: sums over partners are divided by its root

    def __post_init__(self) -> None:
        if self.lmax < 1:
            raise ValueError(f"'lmax' of e3 is {self.lmax}, expected at least 1: positions are of degree 1")
        for key in ("width", "depth", "n_groups"):
            if getattr(self, key) < 1:
                raise ValueError(f"'{key}' of e3 is {getattr(self, key)}, expected at least 1")
        if self.width % self.n_groups:
            raise ValueError(f"'width' of e3 is {self.width}, expected a multiple of n_groups = {self.n_groups}")


def paths(l_in: int, l_harmonic: int, l_out: int) -> list[tuple[int, int, int]]:
    """(l1, l2, l3) of all products of features and harmonics that a block forms, sorted.

    Parity (-1)^l on both sides leaves even l1 + l2 + l3: an odd sum, such as the cross product (1, 1, 1), would turn
    as a vector but not change sign under a reflection.
    """
    return [
        (l1, l2, l3)
        for l1 in range(l_in + 1)
        for l2 in range(l_harmonic + 1)
        for l3 in range(l_out + 1)
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
    ]


def coupling(l1: int, l2: int, degrees: list[int]) -> Float[Tensor, "Q M2 K1"]:
    """sqrt(2 l3 + 1) C(l1, l2, l3) as [(l3, m3), m2, m1] for the given l3, in float64."""
    from e3nn import o3  # imported lazily: it takes as long to import as torch

    with torch.device("cpu"):  # e3nn caches its first result, and networks are also built on 'meta'
        return torch.cat(
            [o3.wigner_3j(l1, l2, l3, dtype=torch.float64).permute(2, 1, 0) * math.sqrt(2 * l3 + 1) for l3 in degrees]
        )


def components(degree: int) -> slice:
    """Indices of the 2 l + 1 components of a degree in an array of all degrees 0, 1, 2, ..."""
    return slice(degree**2, (degree + 1) ** 2)


def harmonics(v: Float[Tensor, "P 3"], lmax: int) -> Float[Tensor, "P M"]:
    """Solid harmonics |v|^l Y_lm(v / |v|) with mean square 1 on the sphere, of all degrees up to lmax."""
    from e3nn import o3

    return o3.spherical_harmonics(list(range(lmax + 1)), v, normalize=False, normalization="component")


def harmonic_moments(
    w: Float[Tensor, "P L G"], Y: Float[Tensor, "P M"], h: Float[Tensor, "K A C"], pairs: Pairs, slots: Slots
) -> Float[Tensor, "M K A C"]:
    """sum_j w_ij^{l2, g(c)} Y_ij^{l2 m2} h_j^{l1 m1, c}: sums over partners of harmonics times features, in float32.

    One batched matrix product on padded molecules, which needs no array [P, M, K, C] of all terms.

    Args:
        w: weights for each degree of harmonics and each of G groups of C / G channels.
        Y: harmonics, the components of degree 0 first.
        h: features of the partners, components likewise.
    """
    dtype = torch.promote_types(Y.dtype, torch.float32)
    M, K, G = Y.shape[1], len(h), w.shape[2]
    degrees = range(w.shape[1])
    weighted = torch.cat([w[:, degree, None] * Y[:, components(degree), None] for degree in degrees], dim=1).to(dtype)
    weights = slots.pad_pairs(weighted, pairs).permute(0, 4, 3, 1, 2)  # [B, G, M, N, N]
    sources = slots.pad(h.to(dtype).transpose(0, 1)).unflatten(3, (G, -1)).permute(0, 3, 1, 2, 4)  # [B, G, N, K, C/G]
    with without_autocast(h.device):
        moments = weights.flatten(2, 3) @ sources.flatten(3)
    moments = moments.unflatten(2, (M, -1)).unflatten(4, (K, -1))  # [B, G, M, N, K, C/G]
    return slots.unpad(moments.permute(0, 3, 2, 4, 1, 5).flatten(4)).permute(1, 2, 0, 3)


def normalise(h: Float[Tensor, "K A C"]) -> Float[Tensor, "K A C"]:
    """h^l / sqrt(<h^l>^2 + 0.01), <h^l>^2 the mean square over channels and components, of each degree of each atom.

    Without learned scales, which the linear maps behind it have already.
    """
    squares = h.square().mean(2)
    parts = [squares[components(degree)] for degree in range(math.isqrt(len(h)))]
    means = torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in parts])
    return h * (means + SMALLEST**2).rsqrt()[:, :, None]


class DegreeLinear(nn.Module):
    """One linear map over channels for each degree; only scalars can have a bias."""

    def __init__(self, n_in: list[int], n_out: int) -> None:
        super().__init__()
        self.degrees = nn.ModuleList(nn.Linear(n, n_out, bias=degree == 0) for degree, n in enumerate(n_in))

    def forward(self, parts: list[Tensor]) -> Float[Tensor, "M A C"]:
        """Map parts [2 l + 1, A, n_in[l]] of degrees l = 0, 1, ... and concatenate their components."""
        return torch.cat([linear(part) for linear, part in zip(self.degrees, parts, strict=True)])


class Block(nn.Module):
    """One message passing step from degrees up to `l_in` to degrees up to `l_out`."""

    def __init__(self, cfg: E3Config, l_in: int, l_out: int, n_pair: int = 0) -> None:
        super().__init__()
        self.l_in, self.l_out, self.n_groups = l_in, l_out, cfg.n_groups
        self.products: dict[tuple[int, int], list[int]] = {}  # (l1, l2) -> l3
        for l1, l2, l3 in paths(l_in, cfg.lmax, l_out):
            self.products.setdefault((l1, l2), []).append(l3)
        for (l1, l2), degrees in self.products.items():
            # float64 even in float32 networks, so that one converted to float64 later is exact
            C = coupling(l1, l2, degrees) / math.sqrt(cfg.n_partners)
            self.register_buffer(f"coupling_{l1}_{l2}", C, persistent=False)
        n_paths = [sum(degrees.count(l3) for degrees in self.products.values()) for l3 in range(l_out + 1)]
        width = cfg.width
        self.radial_in = nn.Linear(2 * width + cfg.n_basis + n_pair, width)
        self.radial_out = nn.Linear(width, (cfg.lmax + 1) * cfg.n_groups)
        self.source = DegreeLinear([width] * (l_in + 1), width)
        self.gather = DegreeLinear([n * width for n in n_paths], width)
        self.node_in = nn.Linear((2 + l_out) * width, width)
        self.node_out = nn.Linear(width, (1 + l_out) * width)

    def forward(
        self,
        h: Float[Tensor, "K A C"],
        basis: Float[Tensor, "P N"],
        Y: Float[Tensor, "P M"],
        pairs: Pairs,
        slots: Slots,
    ) -> Float[Tensor, "K_out A C"]:
        # weights times features are quadratic in h: without the norm, `depth` blocks would make its power 2^depth
        seen = normalise(h)
        message = self.message(seen, self.radial_weights(seen[0], basis, pairs), Y, pairs, slots)
        degrees = [message[components(degree)] for degree in range(self.l_out + 1)]
        norms = [(1 + part.square().sum(0)).sqrt() for part in degrees[1:]]
        hidden = F.silu(self.node_in(torch.cat([seen[0], message[0], *norms], dim=1)))
        update, *gates = self.node_out(hidden).chunk(1 + self.l_out, dim=1)
        change = [update[None], *(gate.sigmoid() * part for gate, part in zip(gates, degrees[1:], strict=True))]
        new = torch.cat(change)
        kept = min(len(h), len(new))
        return torch.cat([h[:kept] + new[:kept], new[kept:]])

    def radial_weights(
        self, scalars: Float[Tensor, "A C"], basis: Float[Tensor, "P N"], pairs: Pairs
    ) -> Float[Tensor, "P L G"]:
        """w_ij for each degree of harmonics and group of channels."""
        hidden = F.silu(pair_linear(self.radial_in, scalars, basis, pairs))
        return self.radial_out(hidden).unflatten(1, (-1, self.n_groups))

    def message(
        self, h: Float[Tensor, "K A C"], w: Float[Tensor, "P L G"], Y: Float[Tensor, "P M"], pairs: Pairs, slots: Slots
    ) -> Float[Tensor, "K_out A C"]:
        """m_i of all degrees."""
        sources = self.source([h[components(degree)] for degree in range(self.l_in + 1)])
        moments = harmonic_moments(w, Y, sources, pairs, slots)
        parts: list[list[Tensor]] = [[] for _ in range(self.l_out + 1)]
        for (l1, l2), degrees in self.products.items():
            C = self.get_buffer(f"coupling_{l1}_{l2}").flatten(1)
            coupled = (C.to(Y.dtype) @ moments[components(l2), components(l1)].flatten(2).flatten(0, 1)).view(
                -1, *h.shape[1:]
            )
            for l3, part in zip(degrees, coupled.split([2 * l3 + 1 for l3 in degrees]), strict=True):
                parts[l3].append(part)
        return self.gather([torch.cat(part, dim=2) for part in parts])


@backbones.register("e3", E3Config)
class E3(nn.Module):
    """Equivariant message passing with features up to degree lmax (tensor field network on e3nn)."""

    equivariant: ClassVar[bool] = True
    contexts: ClassVar[frozenset[str]] = frozenset({GRAPH})
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "thomas2018tensor",
            "Tensor field networks: Rotation- and translation-equivariant neural networks for 3D point clouds",
            (
                *("Thomas, Nathaniel", "Smidt, Tess", "Kearnes, Steven", "Yang, Lusann", "Li, Li"),
                *("Kohlhoff, Kai", "Riley, Patrick"),
            ),
            2018,
            arxiv="1802.08219",
        ),
        Reference(
            "geiger2022e3nn",
            "e3nn: Euclidean Neural Networks",
            ("Geiger, Mario", "Smidt, Tess"),
            2022,
            arxiv="2207.09453",
        ),
    )
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 8, "depth": 2, "lmax": 2, "n_groups": 4},
        "small": {"width": 32, "depth": 4, "lmax": 2, "n_groups": 8},
        "medium": {"width": 64, "depth": 5, "lmax": 2, "n_groups": 16},
    }

    def __init__(self, cfg: E3Config, channels: Mapping[str, int], context: str | None = None) -> None:
        super().__init__()
        if channels["x"] != 3:
            raise ValueError(
                f"backbone 'e3' is for points in 3 dimensions, got {channels['x']}; choose egnn, gdm or dit"
            )
        n_features = channels.get("h", 0)
        self.graph = GraphEmbedding(cfg.width, N_PAIR) if context == GRAPH else None
        n_pair = 0 if self.graph is None else N_PAIR
        self.lmax = cfg.lmax
        centres = torch.linspace(math.log(SOFTENING), math.log(LARGEST), cfg.n_basis, dtype=torch.float64)
        self.register_buffer("centres", centres, persistent=False)
        self.centres: Tensor
        self.embedding = Float32Linear(n_features + 1, cfg.width)
        self.position = Float32Linear(1, cfg.width, bias=False)
        # weights of degrees that are still zero, or that the readout ignores, would be idle
        ends = [1, *[cfg.lmax] * (cfg.depth - 1), 1]
        self.blocks = nn.ModuleList(Block(cfg, ends[i], ends[i + 1], n_pair) for i in range(cfg.depth))
        self.velocity = Float32Linear(cfg.width, 1, bias=False)
        self.readout = Float32Linear(cfg.width, n_features)

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: one vector per atom [A, 3] and features [A, F]."""
        pairs, slots = pairs_of(z.layout), slots_of(z.layout)
        x = z.centre(z.x)
        scalars = self.embedding(torch.cat([features_of(z), z.per_atom(t)[:, None]], dim=1))
        if self.graph is not None:
            scalars = scalars + self.graph.atoms(z)
        # positions enter as vectors too: at high noise the estimate of eps is nearly z_t itself
        h = torch.cat([scalars[None], self.position(x.t()[:, :, None])])

        difference = differences(x, pairs)
        d2 = difference.square().sum(1, keepdim=True) + SOFTENING**2
        basis = self.basis(0.5 * d2.log())
        if self.graph is not None:
            basis = torch.cat([basis, self.graph.pairs(z, pairs)], dim=1)
        Y = harmonics(difference * d2.rsqrt(), self.lmax)
        for block in self.blocks:
            h = block(h, basis, Y, pairs, slots)
        return answer(z, self.velocity(h[components(1)])[:, :, 0].t(), self.readout(h[0]))

    def basis(self, log_d: Float[Tensor, "P 1"]) -> Float[Tensor, "P N"]:
        """Gaussians in log distance."""
        centres = self.centres.to(log_d.dtype)
        return torch.exp(-0.5 * ((log_d - centres) / (centres[1] - centres[0])).square())
