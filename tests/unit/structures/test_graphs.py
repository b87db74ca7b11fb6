"""Batches made directly equal those that PyTorch Geometric collates from single graphs."""

import conformer_examples
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from bench.structures.dataset import DataSet
from bench.structures.graphs import bond_graphs, to_batch, to_graph
from bench.structures.structures import Structures


@pytest.fixture
def structures():
    rng = np.random.default_rng(0)
    sizes = [4, 1, 7, 2, 5]
    return Structures.from_list([(rng.integers(1, 9, n), rng.normal(size=(n, 3)).astype(np.float32)) for n in sizes])


def collated(structures: Structures, index) -> Batch:
    graphs = [
        Data(z=torch.from_numpy(numbers), pos=torch.from_numpy(positions))
        for numbers, positions in (structures[int(i)] for i in index)
    ]
    return Batch.from_data_list(graphs)


def same(one: Batch, other: Batch) -> bool:
    return (
        sorted(one.keys()) == (names := sorted(other.keys()))
        and all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in names)
        and one.num_graphs == other.num_graphs
        and all(
            torch.equal(a.z, b.z) and torch.equal(a.pos, b.pos)
            for a, b in zip(one.to_data_list(), other.to_data_list(), strict=True)
        )
    )


@pytest.mark.parametrize("index", [None, [0], [3, 1, 4], [2, 2, 0]])
def test_a_batch_equals_the_one_that_is_collated(structures, index):
    batch = to_batch(structures, index)
    assert same(batch, collated(structures, range(5) if index is None else index))
    assert sorted(batch.keys()) == ["batch", "pos", "ptr", "z"]
    assert not same(batch, collated(structures, [1, 3]))  # control


def test_a_mask_selects(structures):
    mask = np.array([True, False, False, True, True])
    assert same(to_batch(structures, mask), collated(structures, [0, 3, 4]))


def test_batches_behave_as_those_of_pyg(structures):
    batch = to_batch(structures, [3, 1, 4])
    assert (batch.num_graphs, len(batch), batch.num_nodes) == (3, 3, 8)
    assert torch.equal(batch[2].pos, torch.from_numpy(structures[4][1]))
    assert same(batch.clone(), batch)
    again = Batch.from_data_list([batch[0], batch[1], batch[2]])
    assert same(again, batch)


def test_tensors_share_no_memory_with_the_data_set(structures):
    before = structures.positions.copy()
    to_batch(structures).pos.zero_()
    to_batch(structures, [0]).pos.zero_()
    to_graph(structures, 0).pos.zero_()
    assert np.array_equal(structures.positions, before)
    torch.from_numpy(structures.positions).zero_()  # control: such sharing would be seen
    assert not np.array_equal(structures.positions, before)


def test_the_device_is_the_one_asked_for(structures):
    batch = to_batch(structures, [0, 1], device="meta")
    assert {batch[key].device.type for key in ("z", "pos", "batch", "ptr")} == {"meta"}


def test_a_data_set_hands_out_graphs(structures):
    data = DataSet(
        "toy", "toy", "made up", tuple(range(1, 9)), structures, structures, structures.select(np.array([4, 2]))
    )
    graph = data.graph("test", 0)
    assert isinstance(graph, Data)
    assert torch.equal(graph.z, torch.from_numpy(structures[4][0]))
    assert torch.equal(graph.pos, torch.from_numpy(structures[4][1]))
    with pytest.raises(KeyError):
        data.graph("all", 0)
    for outside in (-1, 2):
        with pytest.raises(IndexError, match=f"molecule {outside} of 2"):
            data.graph("test", outside)


def test_bond_graphs_are_those_that_are_collated():
    """As a batch of the single graphs, and taken apart again. Control: another molecule has another graph."""
    graphs, molecule = conformer_examples.ensembles().graphs, [3, 0, 3, 5, 1]
    batch = bond_graphs(graphs, molecule, max_automorphisms=64)
    collated = Batch.from_data_list([bond_graphs(graphs, [k])[0] for k in molecule])
    for name in collated.keys():  # noqa: SIM118 - a batch is no mapping
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(collated[name])), name
    assert torch.equal(batch[2].edge_index, batch[0].edge_index)
    assert not torch.equal(batch[1].z, batch[0].z)
    ptr = batch.ptr.tolist()
    for k, index in enumerate(molecule):
        own = batch.automorphisms[ptr[k] : ptr[k + 1], : batch.n_automorphisms[k]] - ptr[k]
        assert np.array_equal(own.T.numpy(), graphs.automorphisms(index, 64))
        rest = batch.automorphisms[ptr[k] : ptr[k + 1], batch.n_automorphisms[k] :]
        assert (rest == torch.arange(ptr[k], ptr[k + 1])[:, None]).all()
