"""Averaged Gaussians of distances in chunks: values against a plain loop, gradients against numerical ones."""

import pytest
import torch
from support import generator
from torch import Tensor

from bench.backbones import gaussians, pairs
from bench.backbones.gaussians import mean_gaussians
from bench.molecules import Layout

K = 4
LAYOUT = Layout([1, 2, 2, 3, 5])  # sorted


@pytest.fixture(params=[1, 7, 12, 1000], ids="{} pairs".format)
def _cut(request, monkeypatch) -> None:
    """Pairs in a chunk: part of a molecule, some molecules, all."""
    monkeypatch.setattr(pairs, "CACHED", request.param * K)
    monkeypatch.setattr(pairs, "SHARED", 0)


def arguments() -> list[Tensor]:
    """d, mu, r."""
    rng = generator(3)
    shapes = [(LAYOUT.n_pairs,), (K,), (K,)]
    return [torch.rand(s, generator=rng, dtype=torch.float64).add(0.2).requires_grad_() for s in shapes]


def plain(d: Tensor, mu: Tensor, r: Tensor) -> Tensor:
    """The module's formula, atom by atom."""
    G = torch.exp(-(((d[:, None] - mu) * r) ** 2))
    rows, start = [], 0
    for n in LAYOUT.sizes.tolist():
        rows += [G[start + i * n : start + (i + 1) * n].mean(0) for i in range(n)]
        start += n * n
    return torch.stack(rows)


@pytest.mark.usefixtures("_cut")
def test_values_and_gradients_are_those_of_a_loop():
    given = arguments()
    out, wanted = mean_gaussians(*given, LAYOUT), plain(*given)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn(out.shape, generator=generator(5), dtype=out.dtype)
    for gradient, expected in zip(
        torch.autograd.grad((weight * out).sum(), given),
        torch.autograd.grad((weight * wanted).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected)


def test_no_gradient_of_distances_is_made_where_none_is_asked_for():
    d, mu, r = arguments()
    mean_gaussians(d.detach(), mu, r, LAYOUT).sum().backward()
    assert d.grad is None
    assert mu.grad is not None


def test_a_wrong_gaussian_is_noticed(monkeypatch):
    """Control: exp(-s) in the place of exp(-s^2) in either pass."""
    monkeypatch.setattr(gaussians, "_gaussians_into", lambda out, s: torch.exp(-s, out=out))
    given = arguments()
    out = mean_gaussians(*given, LAYOUT)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(out, plain(*given))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda *args: mean_gaussians(*args, LAYOUT), given, fast_mode=True)


def test_gradients_through_gradients_are_refused():
    """They would be silently wrong where threads share the work."""
    given = arguments()
    (first, *_) = torch.autograd.grad(mean_gaussians(*given, LAYOUT).square().sum(), given, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
