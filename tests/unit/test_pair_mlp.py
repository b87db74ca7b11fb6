"""The network on pairs in chunks: values against a plain loop, hand-written gradients against numerical ones."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support import generator, relative_error
from torch import Tensor, nn

from bench.backbones import pair_mlp
from bench.backbones import pairs as pairs_module
from bench.backbones.pairs import chunks, off_diagonal
from bench.molecules import Layout

K = 3
SIZES = [1, 1, 2, 3, 3, 5]  # sorted; single atoms among them
# pairs in a chunk: one atom's and more than a chunk holds, part of a molecule, molecules and a remainder, everything
CUTS = [1, 7, 12, 1000]


@pytest.fixture(params=CUTS, ids="{} pairs".format)
def cut(request, monkeypatch) -> int:
    monkeypatch.setattr(pairs_module, "CACHED", request.param * K)
    return request.param


def pairs(layout: Layout) -> list[tuple[int, int]]:
    """Ordered pairs of atoms of one molecule, molecule after molecule."""
    return [(i, j) for a, b in pairwise(layout.ptr.tolist()) for i in range(a, b) for j in range(a, b)]


def arguments(layout: Layout, dtype: torch.dtype = torch.float64, scale: float = 1.0, width: int = K) -> list[Tensor]:
    """a, b, D, W_in, W, bias, w, c."""
    A, P = int(layout.sizes.sum()), layout.n_pairs
    shapes = [(A, width), (A, width), (P, 2), (2, width), (width, width), (width,), (1, width), (1,)]
    rng = generator(4)
    return [(scale * torch.randn(s, generator=rng, dtype=dtype)).requires_grad_() for s in shapes]


def linear(W: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer that holds these very tensors, so that gradients reach them."""
    layer = nn.Linear(1, 1)
    layer.weight, layer.bias = None, None  # type: ignore[assignment]
    del layer.weight, layer.bias
    layer.weight, layer.bias = W, bias  # type: ignore[assignment]
    return layer


def attended(layout: Layout, mask: Tensor | None, *given: Tensor) -> Tensor:
    *first, W, bias, w, c = given
    return pair_mlp.attended_sum(tuple(first), linear(W, bias), linear(w, c), mask, layout)  # type: ignore[arg-type]


def scores(layout: Layout, _: Tensor | None, *given: Tensor) -> Tensor:
    *first, W, bias, w, _c = given
    return pair_mlp.pair_scores(tuple(first), linear(W, bias), linear(w, None), layout)  # type: ignore[arg-type]


def plain(layout: Layout, mask: Tensor | None, attended: bool, *given: Tensor) -> Tensor:
    """The docstring's formula on index lists."""
    a, b, D, W_in, W, bias, w, c = given
    i, j = torch.tensor(pairs(layout)).unbind(1)
    m = F.silu(F.silu(a[i] + b[j] + D @ W_in) @ W.t() + bias)
    e = m @ w[0]
    if not attended:
        return e
    weights = torch.sigmoid(e + c) * (1 if mask is None else mask)
    return torch.zeros_like(a).index_add(0, i, weights[:, None] * m)


CASES = {
    "attended": (attended, lambda layout, mask, *given: plain(layout, mask, True, *given)),
    "scores": (scores, lambda layout, mask, *given: plain(layout, mask, False, *given)),
}


@pytest.mark.parametrize("masked", [True, False], ids=["others", "all"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_a_loop(name, masked, cut):
    ours, loop = CASES[name]
    layout = Layout(SIZES)
    given = arguments(layout)
    mask = off_diagonal(layout, given[0]) if masked else None
    out, wanted = ours(layout, mask, *given), loop(layout, mask, *given)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn(out.shape, generator=generator(5), dtype=out.dtype)
    used = given if name == "attended" else given[:-1]
    for gradient, expected in zip(
        torch.autograd.grad((weight * out).sum(), used),
        torch.autograd.grad((weight * wanted).sum(), used),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected)
    with torch.no_grad():  # nothing is kept then
        torch.testing.assert_close(ours(layout, mask, *given), wanted)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name, monkeypatch):
    monkeypatch.setattr(pairs_module, "CACHED", 7 * K)
    layout = Layout([1, 2, 3])
    given, ours = arguments(layout), CASES[name][0]
    mask = off_diagonal(layout, given[0])
    assert torch.autograd.gradcheck(lambda *args: ours(layout, mask, *args), given, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_slope_is_noticed(name, monkeypatch):
    """Control: with sigmoid in the place of SiLU's derivative."""

    def wrong(z: Tensor, value: Tensor, slope: Tensor, one: Tensor) -> None:
        torch.sigmoid(z, out=slope)
        torch.mul(z, slope, out=value)

    monkeypatch.setattr(pair_mlp, "_silu_and_slope", wrong)
    layout = Layout([1, 2, 3])
    given, ours = arguments(layout), CASES[name][0]
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda *args: ours(layout, None, *args), given, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_gradients_pass_through_only_what_needs_them(name):
    """Distances that are data, as in the first block."""
    layout = Layout(SIZES)
    given, ours = arguments(layout), CASES[name][0]
    everything = torch.autograd.grad(ours(layout, None, *given).square().sum(), given[:2])
    given[2] = given[2].detach()
    some = torch.autograd.grad(ours(layout, None, *given).square().sum(), given[:2])
    for gradient, expected in zip(some, everything, strict=True):
        torch.testing.assert_close(gradient, expected)


def errors_of_bf16(layout: Layout, width: int) -> list[float]:
    """Of the sum and of each gradient under autocast, relative to float64's loop."""
    given = arguments(layout, torch.float32, scale=0.5, width=width)
    exact = [value.detach().double().requires_grad_() for value in given]
    wanted = plain(layout, None, True, *exact)
    with torch.autocast("cpu", torch.bfloat16):
        out = attended(layout, None, *given)
    assert out.dtype == torch.float32
    gradients = torch.autograd.grad(out.square().sum(), given)
    expected = torch.autograd.grad(wanted.square().sum(), exact)
    return [relative_error(x.double(), y) for x, y in zip([out, *gradients], [wanted, *expected], strict=True)]


def test_bf16_is_off_by_its_rounding(monkeypatch):
    """Products of 8 digits summed in float32: under 2 %, and (control) over 1e-5, however the pairs are cut."""
    layout, width = Layout([3, 4, 4, 9]), 16
    for n_pairs in (10, 40, 1000):
        monkeypatch.setattr(pairs_module, "CACHED", n_pairs * width)
        errors = errors_of_bf16(layout, width)
        assert max(errors) < 0.02
        assert min(errors) > 1e-5


def test_bf16_rows_of_a_rounded_chunk_do_not_count(monkeypatch):
    """Control: with ones where the rows beyond a chunk's pairs are zero, weights get another gradient."""

    class Dirty(pair_mlp._Products):
        def operand(self, values: Tensor, buffer: int) -> Tensor:
            out = super().operand(values, buffer)
            out[values.shape[0] :] = 1
            return out

    monkeypatch.setattr(pair_mlp, "_Products", Dirty)
    assert max(errors_of_bf16(Layout([3, 4, 4, 9]), 16)) > 0.02


@pytest.mark.parametrize("sizes", [SIZES, [4], [1], [2, 2, 2, 6, 6]], ids=str)
def test_chunks_hold_every_pair_once_and_every_partner_of_an_atom(sizes):
    layout = Layout(sizes)
    for room in range(1, layout.n_pairs + 2):
        found = []
        for chunk in chunks(layout, room):
            assert chunk.start == len(found)
            assert chunk.n_pairs <= max(room, *layout.sizes.tolist())
            for block in chunk.blocks:
                assert chunk.start + block.pairs.start == len(found)
                rows = torch.arange(block.rows.start, block.rows.stop).view(block.b, block.r)
                partners = torch.arange(block.partners.start, block.partners.stop).view(block.b, block.n)
                found += [(i, j) for k in range(block.b) for i in rows[k].tolist() for j in partners[k].tolist()]
            assert chunk.start + chunk.n_pairs == len(found)
        assert found == pairs(layout)
    assert len(chunks(layout)) == 1
