"""Lists of pairs: values and gradients against a plain loop."""

from itertools import pairwise

import pytest
import torch
from support import generator, relative_error
from torch import Tensor, nn

from bench.geometry.layout import Layout
from bench.nn.pairs import differences, pair_linear, pairs_of, sum_over_partners

LAYOUT = Layout([3, 1, 2, 3])  # not sorted, one size twice, one atom alone
A = 9


def loop(include_self: bool) -> list[tuple[int, int]]:
    """Ordered pairs of atoms of one molecule, molecule after molecule."""
    ptr = LAYOUT.ptr.tolist()
    atoms = [range(a, b) for a, b in pairwise(ptr)]
    return [(i, j) for of in atoms for i in of for j in of if include_self or i != j]


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("include_self", [False, True])
def test_pairs_are_those_of_a_loop(include_self):
    """And are made once per layout. Control: the other list is another."""
    pairs = pairs_of(LAYOUT, include_self)
    found = list(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True))
    assert found == loop(include_self)
    assert found != loop(not include_self)
    assert pairs_of(LAYOUT, include_self) is pairs


def test_a_molecule_of_one_atom_has_no_partner():
    assert len(pairs_of(Layout([1])).i) == 0
    assert sum_over_partners(torch.ones(0, 2), pairs_of(Layout([1]))).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("include_self", [False, True])
def test_differences_and_sums_are_those_of_a_loop(include_self):
    pairs = pairs_of(LAYOUT, include_self)
    x, v = values(A, 2, seed=1), values(len(pairs.i), 3, seed=2)
    torch.testing.assert_close(differences(x, pairs), torch.stack([x[i] - x[j] for i, j in loop(include_self)]))
    expected = [[v[p] for p, (k, _) in enumerate(loop(include_self)) if k == i] for i in range(A)]
    sums = torch.stack([torch.stack(terms).sum(0) if terms else torch.zeros(3).double() for terms in expected])
    torch.testing.assert_close(sum_over_partners(v, pairs), sums)


def layer(n_distances: int) -> tuple[nn.Linear, Tensor, Tensor | None]:
    linear = nn.Linear(2 * 4 + n_distances, 5).double()
    distances = values(len(pairs_of(LAYOUT).i), n_distances, seed=4) if n_distances else None
    return linear, values(A, 4, seed=3), distances


@pytest.mark.parametrize("n_distances", [0, 2])
def test_pair_linear_is_a_layer_on_concatenated_inputs(n_distances):
    """Values and gradients; control: partners exchanged."""
    pairs = pairs_of(LAYOUT)
    linear, h, D = layer(n_distances)
    columns = [h[pairs.i], h[pairs.j], *([] if D is None else [D])]
    found, expected = pair_linear(linear, h, D, pairs), linear(torch.cat(columns, dim=1))
    torch.testing.assert_close(found, expected)
    given = [h, *linear.parameters(), *([] if D is None else [D])]
    weight = values(*found.shape, seed=5).detach()
    gradients = [torch.autograd.grad((weight * out).sum(), given) for out in (found, expected)]
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted)
    exchanged = linear(torch.cat([h[pairs.j], h[pairs.i], *columns[2:]], dim=1))
    assert relative_error(found, exchanged) > 0.1


def test_distances_are_not_rounded_to_bf16():
    """Control: under autocast a product with them sees no difference."""
    linear, h, D = layer(2)
    assert D is not None
    linear, h, D = linear.float(), h.detach().float(), torch.ones_like(D).float()
    with torch.autocast("cpu", torch.bfloat16):
        near, at = (pair_linear(linear, h, d * D, pairs_of(LAYOUT)) for d in (1 + 2**-10, 1.0))
        plain = [torch.nn.functional.linear(d * D, linear.weight[:, 8:]) for d in (1 + 2**-10, 1.0)]
    assert relative_error(near, at) > 0
    assert torch.equal(*plain)


def test_sums_of_bf16_are_float32():
    pairs = pairs_of(Layout([300]))
    values = torch.full((len(pairs.i), 1), 1 + 2**-7, dtype=torch.bfloat16)
    assert (sum_over_partners(values, pairs) == 299 * (1 + 2**-7)).all()
    in_bf16 = torch.zeros(300, 1, dtype=torch.bfloat16).index_add(0, pairs.i, values)  # control
    assert not (in_bf16.float() == 299 * (1 + 2**-7)).any()
