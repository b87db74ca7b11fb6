"""Permutations of atoms as candidates of an orbit average: within molecules, within classes, or graph automorphisms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from bench.geometry.state import State


class Permutations(StrEnum):
    """Which permutations of atoms are candidates besides the identity, drawn uniformly."""

    NONE = "none"
    CLASSES = "classes"  # atoms with equal features change places; features stay
    ALL = "all"  # any atoms change places, and their features with them


@runtime_checkable
class PermutationOptions(Protocol):
    """The options that `draw_permutations` reads."""

    permutations: Permutations
    n_permutations: int
    include_generator: bool


def draw_permutations(x0: State, cfg: PermutationOptions, rng: torch.Generator) -> Int[Tensor, "A P"] | None:
    """Uniform permutations within molecules or classes of atoms; the first is the identity if `include_generator`."""
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
    """A number for each atom, the same for two atoms of a molecule with equal features.

    Raises:
        ValueError: the state has no features.
    """
    if "h" not in x0.parts:
        raise ValueError(f"permutations 'classes' need features h; the state has {', '.join(x0.parts)}")
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
        at_most: largest group that is listed.
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
    """The identity and n - 1 uniform draws from each molecule's group, as `orbit_target` takes them.

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
