"""Averaged Gaussians of distances, in chunks and in C: values and gradients against a plain loop."""

from collections.abc import Iterator

import pytest
import torch
from support import generator, relative_error, with_another_term
from torch import Tensor

from bench.geometry.layout import Layout
from bench.kernels.native import library, operations_of_torch
from bench.nn import gaussians, pairs
from bench.nn.gaussians import mean_gaussians

K = 4
LAYOUT = Layout([1, 2, 2, 3, 5])  # sorted
ROUNDING = 1e-5  # of float32
IN_C = pytest.mark.skipif(library(gaussians.SOURCE, WIDTH=K) is None, reason="no C compiler")


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


def plain(d: Tensor, mu: Tensor, r: Tensor, layout: Layout = LAYOUT) -> Tensor:
    """The module's formula, atom by atom."""
    G = torch.exp(-(((d[:, None] - mu) * r) ** 2))
    rows, start = [], 0
    for n in layout.sizes.tolist():
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


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=IN_C)])
def test_no_gradient_of_distances_is_made_where_none_is_asked_for(dtype):
    """And the gradient of a sum, which is one number seen many times, is that of an array."""
    d, mu, r = (x.detach().to(dtype) for x in arguments())
    mu.requires_grad_()
    mean_gaussians(d, mu, r, LAYOUT).sum().backward()
    ones = torch.ones(LAYOUT.n_total, K, dtype=dtype)
    (wanted,) = torch.autograd.grad(mean_gaussians(d, mu, r, LAYOUT), mu, ones)
    torch.testing.assert_close(mu.grad, wanted)


def test_a_wrong_gaussian_is_noticed(monkeypatch):
    """Control: exp(-s) in the place of exp(-s^2) in either pass."""
    monkeypatch.setattr(gaussians, "_gaussians_into", lambda out, s: torch.exp(-s, out=out))
    given = arguments()
    out = mean_gaussians(*given, LAYOUT)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(out, plain(*given))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda *args: mean_gaussians(*args, LAYOUT), given, fast_mode=True)


def errors(layout: Layout = LAYOUT, width: int = K) -> list[float]:
    """Of values and gradients in float32, relative to a plain loop in float64."""
    rng = generator(3)
    shapes = [(layout.n_pairs,), (width,), (width,)]
    exact = [torch.rand(s, generator=rng, dtype=torch.float64).add(0.2) for s in shapes]
    weight = torch.randn(layout.n_total, width, generator=rng, dtype=torch.float64)
    both = []
    for function, dtype in [(mean_gaussians, torch.float32), (plain, torch.float64)]:
        given = [x.to(dtype).requires_grad_() for x in exact]
        out = function(*given, layout)
        both.append([out, *torch.autograd.grad((weight.to(dtype) * out).sum(), given)])
    return [relative_error(ours.double(), wanted) for ours, wanted in zip(*both, strict=True)]


def _by_torch(*given: object) -> Tensor:
    with operations_of_torch():
        return mean_gaussians(*given)  # type: ignore[arg-type]


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def _n_threads(request, monkeypatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr("bench.kernels.threads.SHARED", 0)
    yield
    torch.set_num_threads(before)


@IN_C
@pytest.mark.usefixtures("_n_threads")
@pytest.mark.parametrize("width", [1, 20, 64])
def test_in_c_they_are_those_of_a_loop(width, monkeypatch):
    monkeypatch.delattr(gaussians, "_MeanGaussians")  # so that C it is
    assert max(errors(width=width)) < ROUNDING
    assert max(errors(Layout([29, 181]), width=width)) < ROUNDING


@IN_C
def test_far_from_every_mean_they_are_next_to_nothing_but_normal_numbers():
    d, mu, r = torch.full((1,), 50.0), torch.zeros(K), torch.ones(K)
    for out in (mean_gaussians(d, mu, r, Layout([1])), _by_torch(d, mu, r, Layout([1]))):
        assert ((out > 1e-27) & (out < 1e-25)).all()  # e^-60; further down numbers next to zero are near


@IN_C
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("sum[k] / n", "sum[k] / (n + 1)"),
        ("s * gaussian(s) * g[k]", "gaussian(s) * g[k]"),
        ("sum_ws[k] += w[k] * s", "sum_ws[k] += w[k]"),
        ("-2 * dot(w, r, K)", "-2 * dot(w, r, K - 1)"),
    ],
)
def test_a_wrong_pass_is_noticed(right, wrong, monkeypatch, tmp_path):
    """Control: the same file with one term another."""
    monkeypatch.setattr(gaussians, "SOURCE", with_another_term(gaussians.SOURCE, right, wrong, tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert max(errors()) > 10 * ROUNDING


@IN_C
def test_what_is_not_a_number_stays_so_in_its_molecule():
    d, mu, r = (x.detach().float() for x in arguments())
    d[0] = torch.nan
    out = mean_gaussians(d, mu, r, LAYOUT)
    assert out[:1].isnan().all()
    assert out[1:].isfinite().all()


@IN_C
def test_distances_of_other_pairs_are_refused():
    with pytest.raises(ValueError, match="3 distances and 4 widths for 4 pairs and 4 Gaussians"):
        mean_gaussians(torch.ones(3), torch.ones(K), torch.ones(K), Layout([2]))


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=IN_C)])
def test_gradients_through_gradients_are_refused(dtype):
    """They would be silently wrong where threads share the work."""
    given = [x.detach().to(dtype).requires_grad_() for x in arguments()]
    (first, *_) = torch.autograd.grad(mean_gaussians(*given, LAYOUT).square().sum(), given, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
