"""Dense pair algebra: values against a plain loop, hand-written gradients against numerical ones."""

from itertools import pairwise

import pytest
import torch
from support import generator
from torch import Tensor

from bench.geometry.layout import Layout
from bench.nn.pairs import (
    components,
    differences,
    harmonic_moments,
    off_diagonal,
    pair_input,
    weighted_sum,
)

LAYOUT = Layout([2, 3, 3])  # sorted by size, one size twice
A, P = 8, 22


def pairs() -> list[tuple[int, int]]:
    """Ordered pairs of atoms of one molecule, molecule after molecule."""
    ptr = LAYOUT.ptr.tolist()
    return [(i, j) for a, b in pairwise(ptr) for i in range(a, b) for j in range(a, b)]


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64, requires_grad=True)


def loop_pair_input(a: Tensor, b: Tensor, D: Tensor, W: Tensor) -> Tensor:
    return torch.stack([a[i] + b[j] + D[p] @ W for p, (i, j) in enumerate(pairs())])


def loop_weighted_sum(w: Tensor, v: Tensor) -> Tensor:
    return torch.stack([sum(w[p] * v[p] for p, (k, _) in enumerate(pairs()) if k == i) for i in range(A)])  # type: ignore[arg-type]


def loop_differences(x: Tensor) -> Tensor:
    return torch.stack([x[i] - x[j] for i, j in pairs()])


def all_moments(w: Tensor, Y: Tensor, h: Tensor) -> Tensor:
    """Both degrees of both in one array [M, K, A, C]."""
    parts = harmonic_moments(w, Y, h, LAYOUT)
    return torch.cat([torch.cat([parts[l2, l1] for l1 in range(2)], dim=1) for l2 in range(2)])


def loop_moments(w: Tensor, Y: Tensor, h: Tensor) -> Tensor:
    n_groups, n_channels = w.shape[1], h.shape[2]
    rows = []
    for l2 in range(len(w)):
        for m2 in range(components(l2).start, components(l2).stop):
            weight = w[l2].repeat_interleave(n_channels // n_groups, dim=0) * Y[m2]  # [C, P]
            atoms = [
                sum(weight[:, p] * h[:, j] for p, (k, j) in enumerate(pairs()) if k == i)  # type: ignore[misc]
                for i in range(A)
            ]
            rows.append(torch.stack(atoms, dim=1))  # type: ignore[arg-type]
    return torch.stack(rows)


CASES = {
    "pair_input": (
        lambda a, b, *args: pair_input(torch.cat([a, b], dim=1), *args, LAYOUT),
        loop_pair_input,
        [values(A, 4, seed=1), values(A, 4, seed=2), values(P, 2, seed=3), values(2, 4, seed=4)],
    ),
    "pair_input without pairs": (
        lambda a, b: pair_input(torch.cat([a, b], dim=1), a.new_empty(P, 0), a.new_empty(0, 4), LAYOUT),
        lambda a, b: loop_pair_input(a, b, a.new_zeros(P, 1), a.new_zeros(1, 4)),
        [values(A, 4, seed=1), values(A, 4, seed=2)],
    ),
    "weighted_sum": (
        lambda *args: weighted_sum(*args, LAYOUT),
        loop_weighted_sum,
        [values(P, seed=1), values(P, 3, seed=2)],
    ),
    "harmonic_moments": (
        all_moments,
        loop_moments,
        [values(2, 2, P, seed=1), values(4, P, seed=2), values(4, A, 4, seed=3)],
    ),
    "differences": (lambda x: differences(x, LAYOUT), loop_differences, [values(A, 3, seed=1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_a_loop(name):
    ours, loop, arguments = CASES[name]
    torch.testing.assert_close(ours(*arguments), loop(*arguments))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_a_loop_and_of_finite_differences(name):
    ours, loop, arguments = CASES[name]
    assert torch.autograd.gradcheck(ours, arguments, fast_mode=name == "harmonic_moments")  # 300 entries
    weight = values(*ours(*arguments).shape, seed=9).detach()
    expected = torch.autograd.grad((weight * loop(*arguments)).sum(), arguments)
    for gradient, wanted in zip(
        torch.autograd.grad((weight * ours(*arguments)).sum(), arguments), expected, strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("name", CASES)
def test_gradients_pass_through_only_what_needs_them(name):
    """One argument at a time, as in a first layer whose positions are data."""
    ours, _, arguments = CASES[name]
    everything = torch.autograd.grad(ours(*arguments).square().sum(), arguments)
    for k, wanted in enumerate(everything):
        alone = [value.detach().requires_grad_(i == k) for i, value in enumerate(arguments)]
        (gradient,) = torch.autograd.grad(ours(*alone).square().sum(), alone[k])
        torch.testing.assert_close(gradient, wanted)


def test_a_wrong_gradient_is_noticed():
    """Control: the sum over first instead of second atoms is the gradient of another function."""
    x = CASES["differences"][2][0]

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(_, x: Tensor) -> Tensor:
            return differences(x, LAYOUT)

        @staticmethod
        def backward(_, grad: Tensor) -> Tensor:
            return torch.zeros(A, 3, dtype=grad.dtype).index_add(0, torch.tensor([i for i, _ in pairs()]), grad)

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(Wrong.apply, (x,))


def test_masks_follow_the_pairs():
    like = torch.zeros(1, dtype=torch.float64)
    assert off_diagonal(LAYOUT, like).tolist() == [float(i != j) for i, j in pairs()]
