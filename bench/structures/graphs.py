"""Structures as PyTorch Geometric graphs.

`to_graph` and `to_batch`: nodes are atoms, there are no edges. Attributes are those of PyG's molecular networks: `z`
nuclear charges [A] int64, `pos` positions [A, 3] in angstrom in the dtype of the structures, and in a batch `batch`
[A], the molecule of each atom, and `ptr` [M + 1].

`bond_graphs` and `chains_of`: the graphs of molecules, and of chains of atoms, without positions, as the context of a
task whose network is given them; `compositions`: the elements alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.structures.ensembles import Graphs
from bench.structures.structures import Structures, rows_of

if TYPE_CHECKING:
    import torch
    from torch_geometric.data import Batch, Data


def to_graph(structures: Structures, index: int) -> Data:
    """Molecule `index` as one graph; its tensors share no memory with the structures."""
    import torch
    from torch_geometric.data import Data

    numbers, positions = structures[index]
    return Data(z=torch.tensor(numbers), pos=torch.tensor(positions))


def to_batch(
    structures: Structures, index: Sequence[int] | np.ndarray | None = None, device: torch.device | str = "cpu"
) -> Batch:
    """The molecules at `index` (default: all) as one batch on `device`.

    Equal to `Batch.from_data_list` of the single graphs, without a Python loop over molecules. Integers in `index`
    may come in any order and repeat; a boolean mask [M] is accepted as well.
    """
    import torch
    from torch_geometric.data import Batch, Data

    chosen = structures if index is None else structures.select(np.asarray(index))
    ptr, n = torch.tensor(chosen.ptr), len(chosen)
    batch = Batch(
        _base_cls=Data,
        z=torch.tensor(chosen.numbers, device=device),
        pos=torch.tensor(chosen.positions, device=device),
        batch=torch.repeat_interleave(ptr.diff()).to(device),
        ptr=ptr.to(device),
    )
    none = torch.zeros(n, dtype=torch.long)
    return _separable(batch, n, {"z": (ptr, none), "pos": (ptr, none)})


def compositions(structures: Structures, device: torch.device | str = "cpu", text: np.ndarray | None = None) -> Batch:
    """Elements alone, as the context of a task whose network is given them: `z` [A], `batch` [A], `ptr` [M + 1].

    Args:
        text: if given, also `text` [M, D], a vector for each crystal.
    """
    import torch

    batch: Any = to_batch(structures, device=device)
    del batch.pos
    batch.num_nodes, batch._num_nodes = len(structures.numbers), structures.n_atoms.tolist()
    for record in (batch._slice_dict, batch._inc_dict):
        del record["pos"]
    if text is not None:
        batch.text = torch.tensor(text, device=device)
        batch._slice_dict["text"] = torch.arange(len(structures) + 1)
        batch._inc_dict["text"] = torch.zeros(len(structures), dtype=torch.long)
    return batch


def bond_graphs(
    graphs: Graphs,
    molecule: Sequence[int] | np.ndarray,
    device: torch.device | str = "cpu",
    max_automorphisms: int | None = None,
) -> Batch:
    """Graphs of molecules, one for each index in `molecule`, which may repeat, as one batch on `device`.

    Attributes of the batch: `z` nuclear charges, `formal_charge` and `chirality` [A] as in `Graphs`; `edge_index`
    [2, E], each bond in both directions, with `bond_type` [E] (1, 2, 3, and 4 for aromatic), `bond_configuration` [E]
    (0 none, 1 Z, 2 E) and `bond_turn` [E], the place of the second atom among the neighbours of the first
    (`Graphs.turns`); `batch` [A] and `ptr` [M + 1].

    Args:
        max_automorphisms: if given, also `automorphisms` [A, G], the permutations of `Graphs.automorphisms` as atoms of
            the batch, the identity in columns that a molecule does not fill, and `n_automorphisms` [M].
    """
    import torch
    from torch_geometric.data import Batch, Data

    molecule = np.asarray(molecule, dtype=np.int64)
    atoms, bonds = rows_of(graphs.ptr, molecule), rows_of(graphs.bond_ptr, molecule)
    ptr = np.concatenate([[0], np.cumsum(graphs.n_atoms[molecule])]).astype(np.int64)
    n_bonds = np.diff(graphs.bond_ptr)[molecule]
    # the edges of a molecule are its bonds, then its bonds reversed
    edge_ptr = np.concatenate([[0], 2 * np.cumsum(n_bonds)]).astype(np.int64)
    forward = np.arange(len(bonds)) + np.repeat(np.cumsum(n_bonds) - n_bonds, n_bonds)
    backward = forward + np.repeat(n_bonds, n_bonds)
    edges = np.empty((2 * len(bonds), 5), dtype=np.int64)
    edges[forward] = np.column_stack([graphs.bonds[bonds], graphs.turns[bonds, 0]])
    edges[backward] = np.column_stack([graphs.bonds[bonds][:, [1, 0, 2, 3]], graphs.turns[bonds, 1]])
    edges[:, :2] += np.repeat(ptr[:-1], 2 * n_bonds)[:, None]

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    batch = Batch(
        _base_cls=Data,
        z=tensor(graphs.numbers[atoms]),
        formal_charge=tensor(graphs.charges[atoms]),
        chirality=tensor(graphs.chirality[atoms]),
        edge_index=tensor(edges[:, :2].T),
        bond_type=tensor(edges[:, 2]),
        bond_configuration=tensor(edges[:, 3]),
        bond_turn=tensor(edges[:, 4]),
        batch=tensor(np.repeat(np.arange(len(molecule)), np.diff(ptr))),
        ptr=tensor(ptr),
    )
    # without positions PyG cannot tell how many nodes there are
    batch.num_nodes, batch._num_nodes = len(atoms), np.diff(ptr).tolist()
    of_atoms, of_edges, none = torch.from_numpy(ptr), torch.from_numpy(edge_ptr), torch.zeros(len(molecule)).long()
    slices = {"edge_index": (of_edges, of_atoms[:-1])}
    for name in ("z", "formal_charge", "chirality"):
        slices[name] = (of_atoms, none)
    for name in ("bond_type", "bond_configuration", "bond_turn"):
        slices[name] = (of_edges, none)
    if max_automorphisms is not None:
        listed = [graphs.automorphisms(k, max_automorphisms) for k in molecule.tolist()]
        table = np.repeat(np.arange(len(atoms))[:, None], max(map(len, listed)), axis=1)
        for start, some in zip(ptr.tolist(), listed, strict=False):
            table[start : start + some.shape[1], : len(some)] = start + some.T
        batch.automorphisms, batch.n_automorphisms = tensor(table), tensor(np.array([len(some) for some in listed]))
        slices["automorphisms"] = (of_atoms, of_atoms[:-1])
        slices["n_automorphisms"] = (torch.arange(len(molecule) + 1), none)
    return _separable(batch, len(molecule), slices)


def chains_of(n_atoms: Sequence[int] | np.ndarray, per_residue: int, device: torch.device | str = "cpu") -> Batch:
    """Chains of so many atoms each, as one batch on `device`.

    Attributes of the batch: `place` [A], number of the atom along its chain, from 0 (that of the residue, where there
    is one atom of each); `atom` [A], 0 for N, 1 for C-alpha and 2 for C; `edge_index` [2, E], neighbours in both
    directions; `batch` [A] and `ptr` [M + 1].

    Args:
        per_residue: 1 (C-alpha) or 3 (N, C-alpha, C).
    """
    import torch
    from torch_geometric.data import Batch, Data

    sizes = np.asarray(n_atoms, dtype=np.int64)
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    place = np.arange(ptr[-1]) - np.repeat(ptr[:-1], sizes)
    first = np.flatnonzero(place[1:])  # each atom but the last of a chain
    # the edges of a chain are its bonds, then its bonds reversed
    chain = np.repeat(np.arange(len(sizes)), sizes - 1)
    order = np.argsort(np.concatenate([chain, chain]), kind="stable")
    edges = np.concatenate([[first, first + 1], [first + 1, first]], axis=1)[:, order]

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    batch = Batch(
        _base_cls=Data,
        place=tensor(place),
        atom=tensor(place % per_residue if per_residue > 1 else np.ones_like(place)),
        edge_index=tensor(edges),
        batch=tensor(np.repeat(np.arange(len(sizes)), sizes)),
        ptr=tensor(ptr),
    )
    # without positions PyG cannot tell how many nodes there are
    batch.num_nodes, batch._num_nodes = len(place), sizes.tolist()
    of_atoms, none = torch.from_numpy(ptr), torch.zeros(len(sizes)).long()
    of_edges = torch.from_numpy(np.concatenate([[0], np.cumsum(2 * (sizes - 1))]))
    slices = {"place": (of_atoms, none), "atom": (of_atoms, none), "edge_index": (of_edges, of_atoms[:-1])}
    return _separable(batch, len(sizes), slices)


def _separable(batch: Any, n: int, slices: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Batch:
    """The batch with what `from_data_list` records to take it apart again, with `batch[i]` and `to_data_list`.

    Args:
        slices: where each graph's rows of an attribute begin [n + 1], and what was added to their values [n].
    """
    batch._num_graphs = n
    batch._slice_dict = {name: rows for name, (rows, _) in slices.items()}
    batch._inc_dict = {name: shift for name, (_, shift) in slices.items()}
    return batch
