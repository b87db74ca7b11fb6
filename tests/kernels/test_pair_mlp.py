"""The network on pairs for a CPU: values and gradients against a plain loop in float64, in chunks and on threads."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support import generator, relative_error, with_another_term
from torch import Tensor, nn

from bench.geometry.layout import Layout
from bench.kernels import chunks as chunks_module
from bench.kernels import pair_mlp
from bench.kernels.chunks import chunks
from bench.kernels.native import library
from bench.nn.pairs import pairs_of

K = 3
SIZES = [3, 1, 2, 5, 1, 1, 3]  # single atoms among them
# pairs in a chunk: one atom's and more than a chunk holds, part of a molecule, molecules and a remainder, everything
CUTS = [1, 7, 12, 1000]
ROUNDING = 1e-5  # of float32, after some dozens of sums
USED = {"attended": 7, "outputs": 6}  # of the arguments below

pytestmark = pytest.mark.skipif(library(pair_mlp.SOURCE, WIDTH=K) is None, reason="no C compiler")


@pytest.fixture(params=CUTS, ids="{} pairs".format)
def cut(request, monkeypatch) -> int:
    monkeypatch.setattr(chunks_module, "CACHED", request.param * K)
    monkeypatch.setattr(chunks_module, "SHARED", 0)
    return request.param


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def n_threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pairs(layout: Layout) -> list[tuple[int, int]]:
    """Ordered pairs of atoms of one molecule, molecule after molecule."""
    return [(i, j) for a, b in pairwise(layout.ptr.tolist()) for i in range(a, b) for j in range(a, b)]


def arguments(
    layout: Layout, include_self: bool, scale: float = 1.0, width: int = K, n_distances: int = 2
) -> list[Tensor]:
    """[a, b], D, W_in, W, bias, w, c."""
    A, P = layout.n_total, len(pairs_of(layout, include_self).i)
    shapes = [(A, 2 * width), (P, n_distances), (n_distances, width), (width, width), (width,), (1, width), (1,)]
    rng = generator(4)
    return [(scale * torch.randn(s, generator=rng)).requires_grad_() for s in shapes]


def linear(W: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer that holds these very tensors, so that gradients reach them."""
    layer = nn.Linear(1, 1)
    layer.weight, layer.bias = None, None  # type: ignore[assignment]
    del layer.weight, layer.bias
    layer.weight, layer.bias = W, bias  # type: ignore[assignment]
    return layer


def network(name: str, layout: Layout, include_self: bool, *given: Tensor) -> Tensor:
    *first, W, bias, w, c = given
    pairs = pairs_of(layout, include_self)
    if name == "attended":
        return pair_mlp.attended_sum(tuple(first), linear(W, bias), linear(w, c), pairs)  # type: ignore[arg-type]
    return pair_mlp.pair_outputs(tuple(first), linear(W, bias), linear(w, None), pairs)  # type: ignore[arg-type]


def plain(name: str, layout: Layout, include_self: bool, *given: Tensor) -> Tensor:
    """The docstring's formula on index lists."""
    ab, D, W_in, W, bias, w, c = given
    a, b = ab.chunk(2, dim=1)
    i, j = torch.tensor([(i, j) for i, j in pairs(layout) if include_self or i != j]).unbind(1)
    m = F.silu(F.silu(a[i] + b[j] + D @ W_in) @ W.t() + bias)
    e = m @ w[0]
    if name == "outputs":
        return e
    return torch.zeros_like(a).index_add(0, i, torch.sigmoid(e + c)[:, None] * m)


def gradients(out: Tensor, given: list[Tensor]) -> list[Tensor]:
    """Of a sum of the values with weights."""
    weight = torch.randn(out.shape, generator=generator(5))
    return list(torch.autograd.grad((weight * out).sum(), given))


def errors(name: str, layout: Layout, include_self: bool, **options: float) -> list[float]:
    """Of the values and of each gradient, relative to float64's loop."""
    given = arguments(layout, include_self, **options)  # type: ignore[arg-type]
    exact = [value.detach().double().requires_grad_() for value in given]
    out, wanted = network(name, layout, include_self, *given), plain(name, layout, include_self, *exact)
    assert out.dtype == torch.float32
    with torch.no_grad():  # nothing is kept then
        assert torch.equal(network(name, layout, include_self, *given), out)
    found = gradients(out, given[: USED[name]])
    expected = gradients(wanted, exact[: USED[name]])
    both = zip([out, *found], [wanted, *expected], strict=True)
    return [relative_error(x.double(), y) for x, y in both if y.numel()]


CASES = pytest.mark.parametrize(
    ("name", "include_self"),
    [("attended", False), ("attended", True), ("outputs", False), ("outputs", True)],
    ids=["others", "all", "outputs", "outputs of all"],
)


@CASES
@pytest.mark.usefixtures("cut", "n_threads")
def test_values_and_gradients_are_those_of_a_loop(name, include_self):
    assert max(errors(name, Layout(SIZES), include_self)) < ROUNDING


@CASES
@pytest.mark.parametrize("options", [{"n_distances": 0}, {"n_distances": 5}, {"width": 37}, {"width": 256}], ids=str)
def test_any_number_of_distances_and_any_width(name, include_self, options):
    assert max(errors(name, Layout(SIZES), include_self, scale=0.3, **options)) < ROUNDING


@CASES
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("g[k] *= slope[k]", "g[k] *= 1.001f * slope[k]"),
        ("slope[k] = s + m_j[k] * (1 - s)", "slope[k] = s"),
        ("add(of_bias, 1, g_q, K)", "add(of_bias, 0.999f, g_q, K)"),
        ("add(sum, 1, g, K)", "add(sum, 1, g, K - 1)"),
    ],
)
def test_a_wrong_gradient_is_noticed(name, include_self, right, wrong, monkeypatch, tmp_path):
    """Control: the same file with one term another."""
    monkeypatch.setattr(pair_mlp, "SOURCE", with_another_term(pair_mlp.SOURCE, right, wrong, tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert max(errors(name, Layout(SIZES), include_self)) > 10 * ROUNDING


def test_the_number_of_threads_and_chunks_changes_rounding_alone(monkeypatch):
    """And the same number gives the same bits."""
    layout, before = Layout([3, 4, 4, 9]), torch.get_num_threads()
    given = arguments(layout, False, width=64)

    def found(n: int, n_pairs: int) -> list[Tensor]:
        monkeypatch.setattr(chunks_module, "CACHED", n_pairs * 64)
        monkeypatch.setattr(chunks_module, "SHARED", 0)
        torch.set_num_threads(n)
        out = network("attended", layout, False, *given)
        return [out.detach(), *gradients(out, given)]

    try:
        one, two = found(1, 1000), found(2, 20)
        assert all(map(torch.equal, found(2, 20), two))
    finally:
        torch.set_num_threads(before)
    assert not all(map(torch.equal, one, two))
    for x, y in zip(one, two, strict=True):
        assert relative_error(x, y) < ROUNDING


@pytest.mark.parametrize("name", USED)
def test_gradients_pass_through_only_what_needs_them(name):
    """Distances that are data, as in the first block."""
    layout = Layout(SIZES)
    given = arguments(layout, False)
    everything = gradients(network(name, layout, False, *given), given[:1])
    given[1] = given[1].detach()
    some = gradients(network(name, layout, False, *given), given[:1])
    assert all(map(torch.equal, some, everything))


@pytest.mark.parametrize("place", range(7))
def test_what_is_not_a_number_stays_so(place):
    layout = Layout([2, 3])
    given = [value.detach() for value in arguments(layout, True)]
    assert network("attended", layout, True, *given).isfinite().all()
    given[place].view(-1)[0] = torch.nan
    assert network("attended", layout, True, *given).isnan().any()


def test_large_numbers_saturate():
    """SiLU(z) is z or nearly 0 far from it."""
    layout = Layout([2])
    given = [value.detach() for value in arguments(layout, True)]
    for size in (90.0, 1e4, 1e30):
        given[0][:] = torch.tensor([size, -size, size]).repeat(2)
        out = network("attended", layout, True, *given)
        expected = plain("attended", layout, True, *(value.double() for value in given))
        assert relative_error(out.double(), expected) < ROUNDING


@pytest.mark.parametrize("place", [0, 1, 3, 5])
def test_shapes_that_do_not_fit_are_refused(place):
    """Nothing beyond an array is read."""
    layout = Layout([2, 3])
    given = [value.detach() for value in arguments(layout, True)]
    given[place] = given[place][:, :-1]
    with pytest.raises(ValueError, match="not of 5 atoms, 13 pairs, width 3"):
        network("attended", layout, True, *given)


def errors_of_bf16(layout: Layout, width: int) -> list[float]:
    """Of the sum and of each gradient under autocast, relative to float64's loop."""
    with torch.autocast("cpu", torch.bfloat16):
        given = arguments(layout, True, scale=0.5, width=width)
        exact = [value.detach().double().requires_grad_() for value in given]
        out = network("attended", layout, True, *given)
    wanted = plain("attended", layout, True, *exact)
    assert out.dtype == torch.float32
    found, expected = torch.autograd.grad(out.square().sum(), given), torch.autograd.grad(wanted.square().sum(), exact)
    return [relative_error(x.double(), y) for x, y in zip([out, *found], [wanted, *expected], strict=True)]


@pytest.mark.usefixtures("n_threads")
def test_bf16_is_off_by_its_rounding(monkeypatch):
    """Products of 8 digits summed in float32: under 2 %, and (control) over 1e-5, however the pairs are cut."""
    layout, width = Layout([3, 4, 4, 9]), 16
    monkeypatch.setattr(chunks_module, "SHARED", 0)
    for n_pairs in (10, 40, 1000):
        monkeypatch.setattr(chunks_module, "CACHED", n_pairs * width)
        found = errors_of_bf16(layout, width)
        assert max(found) < 0.02
        assert min(found) > 1e-5


def test_bf16_rows_of_a_rounded_chunk_do_not_count(monkeypatch):
    """Control: where the rows beyond a chunk's pairs are not zero, weights get another gradient."""
    monkeypatch.setattr(pair_mlp._Setting, "n_rows", lambda self, chunk: self.n_padded(chunk))
    monkeypatch.setattr(pair_mlp._Setting, "n_padded", lambda self, chunk: 128)
    monkeypatch.setattr(pair_mlp._Setting, "buffer", lambda self, _, like: torch.ones(128, 16, dtype=self.products))
    assert max(errors_of_bf16(Layout([3, 4, 4, 9]), 16)) > 0.02


@pytest.mark.parametrize("sizes", [SIZES, [4], [1], [2, 2, 2, 6, 6], [6, 2, 6]], ids=str)
def test_chunks_hold_every_pair_once_and_every_partner_of_an_atom(sizes):
    layout = Layout(sizes)
    for n in range(1, layout.n_pairs + 2):
        found = []
        largest = -(-layout.n_pairs // n) + max(sizes) ** 2
        assert len(chunks(layout, n)) <= n
        for chunk in chunks(layout, n):
            assert chunk.start == len(found)
            assert chunk.n_pairs <= largest
            assert chunk.n_atoms == len({i for block in chunk.blocks for i in range(block.rows.start, block.rows.stop)})
            for block in chunk.blocks:
                assert chunk.start + block.pairs.start == len(found)
                rows = torch.arange(block.rows.start, block.rows.stop).view(block.b, block.r)
                partners = torch.arange(block.partners.start, block.partners.stop).view(block.b, block.n)
                found += [(i, j) for k in range(block.b) for i in rows[k].tolist() for j in partners[k].tolist()]
            assert chunk.start + chunk.n_pairs == len(found)
        assert found == pairs(layout)
    assert len(chunks(layout)) == 1
