"""Structures as PyTorch Geometric graphs: nodes are atoms, there are no edges.

Attributes are those of PyG's molecular networks: `z` nuclear charges [A] int64, `pos` positions [A, 3] in angstrom in
the dtype of the structures, and in a batch `batch` [A], the molecule of each atom, and `ptr` [M + 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.structures.structures import Structures

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
    # what `from_data_list` records to take the batch apart again, with `batch[i]` and `to_data_list`
    batch._num_graphs = n
    batch._slice_dict = {"z": ptr, "pos": ptr}
    batch._inc_dict = {"z": torch.zeros(n, dtype=torch.long), "pos": torch.zeros(n, dtype=torch.long)}
    return batch
