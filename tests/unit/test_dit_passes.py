"""The passes of a DiT block for a CPU: values and gradients against plain operations in float64."""

import pytest
import torch
import torch.nn.functional as F
from support import generator, relative_error, with_another_term
from torch import Tensor

from bench.backbones import dit_passes
from bench.backbones.rows import MULTIPLE
from bench.molecules import Layout
from bench.native import library

ROUNDING = 1e-5  # of float32, after some dozens of sums
EPS = 1e-6
SIZES = [1, 1, 2, 5, 5, 16, 19]  # sorted; padded to half a vector, a whole one, and one and a half
HEADS = 3

pytestmark = pytest.mark.skipif(library(dit_passes.SOURCE) is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.setattr("bench.threads.SHARED", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def normed(x: Tensor, modulation: Tensor, layout: Layout) -> Tensor:
    shift, scale = modulation[layout.molecule].chunk(2, dim=1)
    return (1 + scale) * F.layer_norm(x, x.shape[1:], eps=EPS) + shift


def attended(qkv: Tensor, layout: Layout) -> Tensor:
    out = []
    for rows in qkv.split(layout.sizes.tolist()):
        q, k, v = rows.unflatten(1, (3, HEADS, -1)).permute(1, 2, 0, 3)
        p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        out.append((p @ v).transpose(0, 1).flatten(1))
    return torch.cat(out)


def plain_block(x: Tensor, modulation: Tensor, *layers: Tensor, layout: Layout) -> Tensor:
    W_qkv, b_qkv, W_out, b_out, W_inner, b_inner, W_outer, b_outer = layers
    H = x.shape[1]
    gate_a, gate_m = (modulation[layout.molecule, k * H : (k + 1) * H] for k in (2, 5))
    x = x + gate_a * F.linear(
        attended(F.linear(normed(x, modulation[:, : 2 * H], layout), W_qkv, b_qkv), layout), W_out, b_out
    )
    u, v = F.linear(normed(x, modulation[:, 3 * H : 5 * H], layout), W_inner, b_inner).chunk(2, dim=1)
    return x + gate_m * F.linear(F.silu(u) * v, W_outer, b_outer)


def block(x: Tensor, modulation: Tensor, *given: Tensor, layout: Layout) -> Tensor:
    layers = []
    for weight, bias in zip(given[::2], given[1::2], strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias  # the very tensors, whose gradients are asked for
        layers.append(layer)
    qkv, out, inner, outer = layers
    return dit_passes.block(x, modulation, (qkv, out, inner, outer), HEADS, layout, EPS)


def wider(modulation: Tensor) -> Tensor:
    """The same numbers as columns of a wider array."""
    return torch.cat([modulation, modulation], dim=1)[:, : modulation.shape[1]]


def arguments(layout: Layout, H: int, n_parts: int) -> list[Tensor]:
    """Tokens and modulation, and for a block its layers."""
    K, rng = 2 * H, generator(6)
    shapes = [(layout.n_total, H), (len(layout.sizes), n_parts * H)]
    if n_parts == 6:
        shapes += [(3 * H, H), (3 * H,), (H, H), (H,), (2 * K, H), (2 * K,), (H, K), (H,)]
    values = [torch.randn(shape, generator=rng) for shape in shapes]
    return [
        (value / (len(value.T) ** 0.5 if i > 1 and value.ndim == 2 else 1)).requires_grad_()
        for i, value in enumerate(values)
    ]


# name -> ours, plain operations, parts of the modulation
CASES = {
    "modulate": (
        lambda x, m, layout: dit_passes.modulate(x, m, layout, EPS),
        lambda x, m, layout: normed(x, m, layout),
        2,
    ),
    "block": (block, plain_block, 6),
    # as layers that are one product give it
    "columns": (
        lambda x, m, *layers, layout: block(x, wider(m), *layers, layout=layout),
        plain_block,
        6,
    ),
}


def errors(name: str, H: int = 24, sizes: list[int] = SIZES, bf16: bool = False) -> list[float]:
    """Of the values and of each gradient, relative to float64's plain operations on the same numbers."""
    ours, plain, n_parts = CASES[name]
    layout = Layout(sizes)
    given = arguments(layout, H, n_parts)
    exact = [value.detach().double().requires_grad_() for value in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = ours(*given, layout=layout)
    wanted = plain(*exact, layout=layout)
    weight = torch.randn(wanted.shape, generator=generator(7))
    found = torch.autograd.grad((weight * out).sum(), given)
    expected = torch.autograd.grad((weight.double() * wanted).sum(), exact)
    return [relative_error(x.double(), y) for x, y in zip([out, *found], [wanted, *expected], strict=True)]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("H", [24, 36, 48, 81])  # widths of heads with and without padding
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_plain_operations(name, H, n_threads):
    torch.set_num_threads(n_threads)
    assert max(errors(name, H)) < ROUNDING


@pytest.mark.parametrize("name", CASES)
def test_molecules_of_many_atoms_and_one_alone(name):
    assert max(errors(name, sizes=[70, 181])) < ROUNDING
    assert max(errors(name, sizes=[3])) < ROUNDING


@pytest.mark.parametrize("name", CASES)
def test_bf16_is_off_by_its_rounding(name):
    """8 binary digits in what goes in and out of products: a few per cent, and (control) something is over 1e-5."""
    found = errors(name, bf16=True)
    assert max(found) < 0.03
    assert max(found) > 1e-5


@pytest.fixture
def _memory_is_not_zero():
    """What nobody writes is NaN, instead of what happens to lie there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def rows_after_the_last_molecule(name: str, bf16: bool) -> list[Tensor]:
    """Of the values and of the gradient of the tokens; all else is checked, gradients of layers included."""
    ours, _, n_parts = CASES[name]
    layout = Layout(SIZES)
    found = []
    for n_more in (0, 5):
        x, *others = arguments(layout, 24, n_parts)
        x = F.pad(x.detach(), (0, 0, 0, n_more), value=1.0).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = ours(x, *others, layout=layout)
        weight = torch.randn(layout.n_total, out.shape[1], generator=generator(7))
        of_x, *of_others = torch.autograd.grad((weight * out[: layout.n_total]).sum(), [x, *others])
        found.append([out, of_x, *of_others])
    rounding = 0.02 if bf16 else ROUNDING  # sums over rows in another order
    for padded, expected in zip(found[1], found[0], strict=True):
        assert relative_error(padded[: len(expected)].float(), expected.float()) < rounding
    return [padded[layout.n_total :] for padded in found[1][:2]]


@pytest.mark.usefixtures("_memory_is_not_zero")
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_rows_after_the_last_molecule_are_zero(name, bf16, monkeypatch, tmp_path):
    """Else they would reach the gradients of weights. Control: left as they lie in memory."""
    assert all(rows.count_nonzero() == 0 for rows in rows_after_the_last_molecule(name, bf16))
    wrong = with_another_term(dit_passes.SOURCE, "    memset((char *)rows", "    if (0) memset((char *)rows", tmp_path)
    monkeypatch.setattr(dit_passes, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(AssertionError):
        assert all(rows.count_nonzero() == 0 for rows in rows_after_the_last_molecule(name, bf16))


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("modulate", "normed[k] * along_normed", "0.999f * normed[k] * along_normed"),
        ("modulate", "of_shift[k] += g[k]", "of_shift[k] = g[k]"),
        ("block", "grad_i[k] * (y_i[k] + bias[k])", "grad_i[k] * y_i[k]"),
        ("block", "of_bias[k] += g[k]", "of_bias[k] = g[k]"),
        ("block", "add(of_x, 1, beside", "add(of_x, 0, beside"),
        ("block", "s + silu * (1 - s)", "s"),
        ("block", "apart, 1, of_both", "apart, 0, of_both"),
        ("block", "(s[j * N + i] - mean[i])", "s[j * N + i]"),
        ("block", "product(of_k + at, s, N, 1, q", "product(of_k + at, s, 1, N, q"),
        ("block", "add(of_bias, 1, row", "add(of_bias, 0, row"),
        ("block", "p[j * N + i] *= sum[i]", "p[j * N + i] *= sum[0]"),
        ("block", "rows_of_whole(3", "rows_of_whole(2"),
        ("block", "rows_of_half(3", "rows_of_half(2"),
        ("columns", "m * grad_stride, *restrict of_scale", "m * H, *restrict of_scale"),
        ("columns", "gate + m * stride", "gate + m * H"),
    ],
)
def test_a_wrong_pass_is_noticed(name, right, wrong, monkeypatch, tmp_path):
    """Control: the same file with one term another."""
    monkeypatch.setattr(dit_passes, "SOURCE", with_another_term(dit_passes.SOURCE, right, wrong, tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not max(errors(name)) < 10 * ROUNDING


def error_of_shifted_scores(shift: float) -> float:
    """Of attention whose scores all have something added, which softmax does not notice."""
    d, layout = 8, Layout([3, 18])
    q, k, v = torch.randn(3, layout.n_total, HEADS, d, generator=generator(8)).unbind(0)
    q[..., 0] = 1
    plain, k_shifted = torch.stack([q, k, v], dim=1), k.clone()
    k_shifted[..., 0] += shift * d**0.5
    qkv = torch.stack([q, k_shifted, v], dim=1).flatten(1)
    out, _ = dit_passes.Passes(layout, torch.float32, EPS).attention(qkv, torch.zeros(qkv.shape[1]), HEADS)
    return relative_error(out, attended(plain.flatten(1), layout))


def test_scores_of_any_size(monkeypatch, tmp_path):
    """To the rounding of the scores; control: softmax without its maximum."""
    assert max(error_of_shifted_scores(shift) for shift in (-300.0, 300.0)) < 1e-3
    wrong = with_another_term(dit_passes.SOURCE, "(p[j * N + i] - largest[i])", "p[j * N + i]", tmp_path)
    monkeypatch.setattr(dit_passes, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not min(error_of_shifted_scores(shift) for shift in (-300.0, 300.0)) < 0.1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", [0, 1], ids=["tokens", "modulation"])
def test_what_is_not_a_number_stays_so_in_its_molecule(name, which):
    ours, _, n_parts = CASES[name]
    layout = Layout([2, 3])
    given = [value.detach() for value in arguments(layout, 24, n_parts)]
    given[which][[1, 0][which], -1] = torch.nan
    out = ours(*given, layout=layout)
    assert out[:2].isnan().any()
    assert out[2:].isfinite().all()


@pytest.mark.parametrize("column", [0, 24, -1], ids=["q", "k", "v"])
def test_what_is_not_a_number_in_attention_stays_so_in_its_molecule(column):
    layout = Layout([2, 3])
    qkv, *_ = arguments(layout, 72, 6)
    qkv = qkv.detach()
    qkv[1, column] = torch.nan
    out, _ = dit_passes.Passes(layout, torch.float32, EPS).attention(qkv, torch.zeros(72), HEADS)
    assert out[:2].isnan().any()
    assert out[2:].isfinite().all()


def test_what_does_not_fit_is_refused():
    """Nothing beyond an array is read."""
    layout = Layout([2, 3])
    x, modulation, *layers = (value.detach() for value in arguments(layout, 24, 6))
    for wrong in (modulation[:1], modulation[:, 1:], modulation.bfloat16()):
        with pytest.raises(ValueError, match=r"expected \(2, 144\) in float32"):
            block(x, wrong, *layers, layout=layout)
        with pytest.raises(ValueError, match=r"expected \(2, 48\) in float32"):
            dit_passes.modulate(x, wrong, layout, EPS)
    for n_rows in (4, 5 + MULTIPLE):
        with pytest.raises(ValueError, match=f"{n_rows} rows in torch.float32 for 5 atoms"):
            dit_passes.modulate(torch.zeros(n_rows, 24), torch.zeros(2, 48), layout, EPS)
    with pytest.raises(ValueError, match=r"torch.float64 for 5 atoms; expected float32"):
        dit_passes.modulate(x.double(), torch.zeros(2, 48), layout, EPS)
    for i, wrong in enumerate([layers[0][1:], layers[1].bfloat16(), layers[2].double(), layers[3][1:]]):
        with pytest.raises(ValueError, match=r"linear layers are .*; expected .* in float32"):
            block(x, modulation, *layers[:i], wrong, *layers[i + 1 :], layout=layout)
    tokens = torch.zeros(5, 25), torch.zeros(2, 150)
    with pytest.raises(ValueError, match="25 channels are not those of 3 heads"):
        block(*tokens, *(value.detach() for value in arguments(layout, 25, 6)[2:]), layout=layout)


def test_a_backward_pass_under_autocast_and_biases_that_lie_apart_change_nothing():
    layout = Layout(SIZES)
    given = arguments(layout, 24, 6)
    apart = [x.detach().repeat_interleave(2)[::2].requires_grad_() if x.ndim == 1 else x for x in given]
    assert not apart[3].is_contiguous()
    expected = torch.autograd.grad(block(*given, layout=layout).square().sum(), given)
    out = block(*apart, layout=layout).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out, apart)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    with torch.autocast("cpu", torch.bfloat16):  # control: the forward pass under it
        found = torch.autograd.grad(block(*given, layout=layout).square().sum(), given)
    assert not any(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_gradients_through_gradients_are_refused(name):
    """They would be silently wrong."""
    ours, _, n_parts = CASES[name]
    x, *others = arguments(Layout([2, 3]), 24, n_parts)
    (first,) = torch.autograd.grad(ours(x, *others, layout=Layout([2, 3])).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
