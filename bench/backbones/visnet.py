"""ViSNet: equivariant attention with vector-scalar interactions, on the layers of PyTorch Geometric.

Wang et al., Enhancing geometric representations for molecules with equivariant vector-scalar interactive message
passing (arXiv:2210.16518); the layers are those of `torch_geometric.nn.models.visnet`, in the variant without vertex
features. Exactly equivariant under O(3), translations and permutations, at any weights: vectors meet in inner products
alone, never in cross products, and harmonics of degree 2 are even.

An atom has H scalars s and H vectors v (harmonics of degree 1 to lmax), a pair H scalars f. With x centred,
u_ij = (x_j - x_i) / sqrt(d_ij^2 + 0.01), Y its solid harmonics, b(d_ij) a radial basis and c(d_ij) a cosine cutoff:
    s_i = W [e_i, sum_j c (W_b b) e'_j],  v_i = w Y(x_i / sqrt(1 + |x_i|^2)),  f_ij = (s_i + s_j) W_f b
and, in each layer, with LN the layer norm of scalars:
    m_ij = SiLU(<q_i, k_j, SiLU(W_k f_ij)>) c  n_j SiLU(W_v f_ij),         q, k, n linear in LN(s), in heads
    [a, b, g] = W_o sum_j m_ij,   [p, r] = SiLU(W_s m_ij)
    s_i <- s_i + <V1 v_i, V2 v_i> b + g,   v_i <- v_i + (V3 v_i) a + sum_j (p v_j + r Y(u_ij))
    f_ij <- f_ij + SiLU(W_f f_ij) <V_t v_i perpendicular to Y(u_ij), V_s v_j perpendicular to Y(u_ij)>

What differs from the published network, which predicts energies of given elements:
- e_i, e'_i are linear in [h_i, t] / sqrt(1 + mean square) instead of embeddings of a nuclear charge; where a task gives
  the elements (`given_elements`), an embedding of `context.z` is added to both. Where a task gives bond graphs, an
  embedding of the atoms is, and one of bond and topological distance to f_ij.
- All pairs of atoms are neighbours, by a list of pairs: no `torch-cluster`. Distances are those of a noised, scaled
  state, up to some tens, so the cutoff is 30.
- Directions and distances are softened at 0.1: smooth where two atoms meet, where the published ones are 0 / 0.
- Positions enter as initial vectors (bounded), and the answer has a part linear in the state: at high noise the
  estimate of eps is nearly z_t itself. With inputs bounded it grows linearly in large states (tested); the products
  above would raise it to a power that depends on depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.state import State
from bench.nn.graph import GRAPH, GraphEmbedding
from bench.nn.linear import Float32Linear, answer, features_of, without_autocast
from bench.nn.pairs import differences, pairs_of
from bench.references import Reference
from bench.registry import backbones

SOFTENING = 0.1  # length below which distances are smoothed, in scaled units
MAX_NUMBER = 118  # nuclear charges of given elements


@dataclass
class ViSNetConfig:
    """Options of ViSNet; a named size sets the first three."""

    width: int = 96  # scalars, and vectors, of an atom
    depth: int = 6
    n_heads: int = 8
    lmax: int = 1  # degree of harmonics, 1 or 2
    n_basis: int = 64  # radial basis functions
    cutoff: float = 30.0  # in scaled units
    given_elements: bool = False  # embed the nuclear charges `z` of the state's context

    def __post_init__(self) -> None:
        if self.lmax not in (1, 2):
            raise ValueError(f"'lmax' of visnet is {self.lmax}, expected 1 or 2")
        for key in ("width", "depth", "n_heads"):
            if getattr(self, key) < 1:
                raise ValueError(f"'{key}' of visnet is {getattr(self, key)}, expected at least 1")
        if self.n_basis < 2:
            raise ValueError(f"'n_basis' of visnet is {self.n_basis}, expected at least 2")
        if not self.cutoff > 0:
            raise ValueError(f"'cutoff' of visnet is {self.cutoff}, expected a positive length")
        if self.width % self.n_heads:
            raise ValueError(f"'width' of visnet is {self.width}, expected a multiple of n_heads = {self.n_heads}")


@backbones.register("visnet", ViSNetConfig)
class ViSNet(nn.Module):
    """Equivariant attention with vector-scalar interactions (ViSNet, on PyTorch Geometric's layers)."""

    equivariant: ClassVar[bool] = True
    contexts: ClassVar[frozenset[str]] = frozenset({GRAPH})
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "wang2024visnet",
            "Enhancing geometric representations for molecules with equivariant vector-scalar interactive message "
            "passing",
            (
                *("Wang, Yusong", "Wang, Tong", "Li, Shaoning", "He, Xinheng", "Li, Mingyu", "Wang, Zun"),
                *("Zheng, Nanning", "Shao, Bin", "Liu, Tie-Yan"),
            ),
            2024,
            arxiv="2210.16518",
            doi="10.1038/s41467-023-43720-2",
            venue="Nature Communications",
        ),
        Reference(
            "fey2019fast",
            "Fast Graph Representation Learning with PyTorch Geometric",
            ("Fey, Matthias", "Lenssen, Jan Eric"),
            2019,
            arxiv="1903.02428",
        ),
    )
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 8, "depth": 2, "n_heads": 2},
        "small": {"width": 48, "depth": 4, "n_heads": 4},
        "medium": {"width": 96, "depth": 6, "n_heads": 8},
    }

    def __init__(self, cfg: ViSNetConfig, channels: Mapping[str, int], context: str | None = None) -> None:
        # imported lazily: PyTorch Geometric takes seconds to import
        from torch_geometric.nn.models.visnet import (
            EdgeEmbedding,
            ExpNormalSmearing,
            GatedEquivariantBlock,
            NeighborEmbedding,
            Sphere,
            ViS_MP,
        )

        super().__init__()
        if channels["x"] != 3:
            raise ValueError(
                f"backbone 'visnet' is for points in 3 dimensions, got {channels['x']}; choose egnn, gdm or dit"
            )
        n_features, width = channels.get("h", 0), cfg.width
        self.embedding = Float32Linear(n_features + 1, 2 * width)  # e_i and e'_i
        self.elements = nn.Embedding(MAX_NUMBER + 1, 2 * width) if cfg.given_elements else None
        self.position = Float32Linear(1, width, bias=False)
        self.basis = ExpNormalSmearing(cfg.cutoff, cfg.n_basis, trainable=False)
        self.sphere = Sphere(cfg.lmax)
        self.neighbours = NeighborEmbedding(width, cfg.n_basis, cfg.cutoff)
        del self.neighbours.embedding  # of nuclear charges; e'_i stands in its place
        self.edges = EdgeEmbedding(cfg.n_basis, width)
        self.layers = nn.ModuleList(
            ViS_MP(cfg.n_heads, width, cfg.cutoff, None, False, last_layer=layer == cfg.depth - 1)
            for layer in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.readout = GatedEquivariantBlock(width, n_features + 1)
        self.skip = Float32Linear(n_features + 1, n_features)
        self.graph = GraphEmbedding(2 * width, width) if context == GRAPH else None

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: one vector per atom [A, 3] and features [A, F]."""
        pairs = pairs_of(z.layout)
        edge_index = torch.stack([pairs.j, pairs.i])  # PyG's order: source, target
        x = z.centre(z.x)
        given = torch.cat([features_of(z), z.per_atom(t)[:, None]], dim=1)
        difference = differences(x, pairs)
        d2 = difference.square().sum(1, keepdim=True) + SOFTENING**2
        distance = d2.sqrt()[:, 0]
        directions = self.sphere(-difference * d2.rsqrt())
        basis = self.basis(distance)

        with without_autocast(x.device):  # bf16 has three digits of a distance
            s = self.embed(z, given * bounding(given, mean=True), edge_index, distance, basis)
            f = self.edges(edge_index, basis, s)
            if self.graph is not None:
                f = f + self.graph.pairs(z, pairs)
        v = self.position(self.sphere(x * bounding(x))[:, :, None])
        for layer in self.layers:
            ds, dv, df = layer(s, v, edge_index, distance, f, directions)
            s, v = s + ds, v + dv
            f = f if df is None else f + df

        with without_autocast(x.device):
            scalars, vectors = self.readout(self.norm(s), v)
        features, scale = scalars[:, :-1], scalars[:, -1:]
        return answer(z, vectors[:, :3].sum(2) + scale * x, features + self.skip(given))

    def embed(
        self,
        z: State,
        given: Float[Tensor, "A K"],
        edge_index: Tensor,
        distance: Float[Tensor, "P"],
        basis: Float[Tensor, "P N"],
    ) -> Float[Tensor, "A H"]:
        """s_i: `NeighborEmbedding.forward` on features, without its search for self-loops, which waits for a device."""
        embedded = self.embedding(given)
        if self.elements is not None:
            if z.context is None or "z" not in z.context:
                raise ValueError(
                    "backbone 'visnet' with given_elements needs nuclear charges `z` in the context, and this task "
                    "gives none; leave given_elements out"
                )
            embedded = embedded + self.elements(z.context["z"])
        if self.graph is not None:
            embedded = embedded + self.graph.atoms(z)
        own, other = embedded.chunk(2, dim=1)
        weights = self.neighbours.distance_proj(basis) * self.neighbours.cutoff(distance)[:, None]
        gathered = self.neighbours.propagate(edge_index, x=other, W=weights)
        return self.neighbours.combine(torch.cat([own, gathered], dim=1))


def bounding(values: Float[Tensor, "A K"], mean: bool = False) -> Float[Tensor, "A 1"]:
    """1 / sqrt(1 + |row|^2), or with the mean square of a row: the factor that makes it bounded."""
    squares = values.square()
    return (1 + (squares.mean(1, keepdim=True) if mean else squares.sum(1, keepdim=True))).rsqrt()
