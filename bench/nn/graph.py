"""Bond graphs as inputs of networks: numbers of atoms and of pairs that no group changes.

A task whose `context` is `GRAPH` gives each state a PyTorch Geometric batch with `z`, `formal_charge` and `chirality`
of atoms, and `edge_index`, `bond_type`, `bond_configuration` and `bond_turn` of bonds
(`bench.structures.graphs.bond_graphs`). Of a pair of atoms i and j a network sees the bond, the number of bonds on the
shortest way between them, and the place of j around i where i is a stereocentre: handedness that a network can read
from three neighbours, where a CIP label follows from the whole molecule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.nn.linear import without_autocast
from bench.nn.padded import slots_of
from bench.nn.pairs import Pairs, pairs_of

if TYPE_CHECKING:
    from torch_geometric.data import Batch

GRAPH = "graph"  # what a task's `context` is called, and what a backbone that reads it has in `contexts`
MAX_NUMBER = 118
MAX_CHARGE = 4  # larger formal charges count as this one
MAX_STEPS = 8  # bonds on the shortest way; atoms farther apart count as 9 apart
N_BONDS = 1 + 4 + 2  # none, the four types, and double bonds in configuration Z or E
FIRST_CONFIGURATION = 4  # configurations 1 and 2 have the codes 5 and 6
N_TURNS = 1 + 4  # none, and the places around a stereocentre


@dataclass(frozen=True)
class PairCodes:
    """What the graph says of every ordered pair of atoms, those of an atom with itself included.

    Attributes:
        context: the batch that they were made from.
        bond: 0 none, 1 to 4 the type, 5 and 6 a double bond in configuration Z and E [P].
        steps: topological distance, at most MAX_STEPS + 1 [P].
        turn: place of j around i, from 1; 0 where i is no stereocentre or j no neighbour [P].
    """

    context: Batch
    bond: Int[Tensor, "P"]
    steps: Int[Tensor, "P"]
    turn: Int[Tensor, "P"]


def graph_of(z: State) -> Batch:
    """The context of a state; raises ValueError where it holds no bond graph."""
    if z.context is None or "edge_index" not in z.context:
        raise ValueError(
            "a network built for bond graphs got a state without one in its context; choose a task that gives it"
        )
    return z.context


def pair_codes(context: Batch, layout: Layout) -> PairCodes:
    """Codes of the pairs of `pairs_of(layout, include_self=True)`, cached in the layout."""
    known = layout.memo.get("pair_codes")
    if known is None or known.context is not context:
        known = layout.memo["pair_codes"] = _codes(context, layout)
    return known


def topological_distance(context: Batch, layout: Layout) -> Int[Tensor, "P"]:
    """Bonds on the shortest way between the two atoms of each pair, i = j included; at most MAX_STEPS + 1."""
    return pair_codes(context, layout).steps


@torch.no_grad()
def _codes(context: Batch, layout: Layout) -> PairCodes:
    slots, pairs = slots_of(layout), pairs_of(layout, include_self=True)
    B, N = slots.filled.shape
    first, second = context["edge_index"]
    configured = context["bond_configuration"]
    kind = torch.where(configured > 0, FIRST_CONFIGURATION + configured, context["bond_type"])
    place = slots.place[first] * N + slots.place[second] % N
    bond = kind.new_zeros(B * N * N).index_copy(0, place, kind)
    bonded = (bond > 0).to(torch.float32).view(B, N, N)
    steps = torch.full((B, N, N), MAX_STEPS + 1, device=bond.device)
    reached = torch.eye(N, device=bond.device).expand(B, N, N)
    with without_autocast(layout.device):
        for n in range(MAX_STEPS + 1):
            steps = torch.where((reached > 0) & (steps > MAX_STEPS), n, steps)
            reached = ((reached @ bonded + reached) > 0).to(torch.float32)
    of_pairs = slots.place[pairs.i] * N + slots.place[pairs.j] % N
    turn = torch.zeros_like(bond).index_copy(0, place, context["bond_turn"])
    return PairCodes(context, bond[of_pairs], steps.flatten()[of_pairs], turn[of_pairs])


def handedness(z: State) -> Float[Tensor, "A 10"]:
    """What the positions say of the hand of each stereocentre, zeros for other atoms.

    With unit vectors u_1, u_2, u_3 to its neighbours at places 1 to 3: u_1 (u_2 x u_3), positive where the hand is the
    right one (its sign changes under reflections), and the vectors u_2 x u_3, u_3 x u_1 and u_1 x u_2, on whose side of
    the centre the neighbours 1, 2 and 3 belong.
    """
    centre, around = _centres(graph_of(z), z.layout)
    r = z.x[around] - z.x[centre][:, None]
    u = r / (r.square().sum(2, keepdim=True) + 1e-12).sqrt()
    normals = torch.linalg.cross(u[:, [1, 2, 0]], u[:, [2, 0, 1]])
    volume = (u[:, 0] * normals[:, 0]).sum(1, keepdim=True)
    return z.x.new_zeros(len(z.x), 10).index_copy(0, centre, torch.cat([volume, normals.flatten(1)], dim=1))


def _centres(context: Batch, layout: Layout) -> tuple[Int[Tensor, "C"], Int[Tensor, "C 3"]]:
    """Stereocentres and their neighbours at places 1 to 3; cached in the layout."""
    known = layout.memo.get("centres")
    if known is None or known[0] is not context:
        turn, (first, second) = context["bond_turn"], context["edge_index"]
        # each centre has one neighbour at each place, so that sorted by centre the three lists agree
        by_place = [(first[turn == k], second[turn == k]) for k in (1, 2, 3)]
        around = torch.stack([other[centre.argsort()] for centre, other in by_place], dim=1)
        known = layout.memo["centres"] = context, by_place[0][0].sort().values, around
    return known[1], known[2]


class GraphEmbedding(nn.Module):
    """Learned vectors of atoms and of pairs, the same for atoms and pairs that the graph describes alike.

    Atoms: a sum over element, formal charge and CIP label. Pairs: a sum over bond, topological distance and place
    around a stereocentre. The graph beyond that, such as rings, is for the network to find.

    Args:
        atom_width: channels of an atom.
        pair_width: channels of a pair.
        pair_std: standard deviation of initial weights of pairs; 0 for biases that start without effect.
    """

    def __init__(self, atom_width: int, pair_width: int, pair_std: float = 1.0) -> None:
        super().__init__()
        self.elements = nn.Embedding(MAX_NUMBER + 1, atom_width)
        self.charges = nn.Embedding(2 * MAX_CHARGE + 1, atom_width)
        self.chirality = nn.Embedding(3, atom_width)
        self.bonds = nn.Embedding(N_BONDS, pair_width)
        self.steps = nn.Embedding(MAX_STEPS + 2, pair_width)
        self.turns = nn.Embedding(N_TURNS, pair_width)
        for table in (self.elements, self.charges, self.chirality):
            nn.init.normal_(table.weight, std=3**-0.5)
        for table in (self.bonds, self.steps, self.turns):
            nn.init.normal_(table.weight, std=pair_std * 3**-0.5)

    def atoms(self, z: State) -> Float[Tensor, "A H"]:
        context = graph_of(z)
        charges = context["formal_charge"].clamp(-MAX_CHARGE, MAX_CHARGE) + MAX_CHARGE
        return self.elements(context["z"]) + self.charges(charges) + self.chirality(context["chirality"] + 1)

    def pairs(self, z: State, pairs: Pairs) -> Float[Tensor, "P K"]:
        codes = pair_codes(graph_of(z), z.layout)
        table = (self.bonds.weight[:, None, None] + self.steps.weight[:, None] + self.turns.weight).flatten(0, 2)
        code = (codes.bond * (MAX_STEPS + 2) + codes.steps) * N_TURNS + codes.turn
        if not pairs.include_self:
            code = code[_others(z.layout)]
        return F.embedding(code, table)

    def padded_pairs(self, z: State) -> Float[Tensor, "B N N K"]:
        """Vectors of pairs in padded slots, zeros in empty ones."""
        pairs = pairs_of(z.layout, include_self=True)
        return slots_of(z.layout).pad_pairs(self.pairs(z, pairs), pairs)


def _others(layout: Layout) -> Int[Tensor, "P"]:
    """Places of the pairs with i != j in the list with i = j."""
    if "others" not in layout.memo:
        same = np.concatenate([np.eye(n, dtype=bool).ravel() for n in layout.sizes.tolist()])
        layout.memo["others"] = torch.from_numpy(np.flatnonzero(~same)).to(layout.device)
    return layout.memo["others"]
