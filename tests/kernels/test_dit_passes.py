"""The passes of a DiT's blocks for a CPU: values and gradients against plain operations in float64."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from support import generator, relative_error, with_another_term
from torch import Tensor

from bench.geometry.layout import Layout
from bench.kernels import dit_passes, native
from bench.kernels.native import library
from bench.kernels.rows import MULTIPLE

ROUNDING = 1e-5  # of float32, after some dozens of sums
EPS = 1e-6
SIZES = [5, 1, 16, 2, 5, 1, 19]  # padded to half a vector, a whole one, and one and a half
HEADS = 3

# without AVX-512 rows are no multiple of anything more than half of its vectors
has_wider_vectors = pytest.mark.skipif("avx512f" not in native._processor(), reason="no AVX-512")

pytestmark = pytest.mark.skipif(library(dit_passes.SOURCE) is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.setattr("bench.kernels.threads.SHARED", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (1 + scale) * F.layer_norm(x, x.shape[1:], eps=EPS) + shift


def attended(qkv: Tensor, layout: Layout) -> Tensor:
    out = []
    for rows in qkv.split(layout.sizes.tolist()):
        q, k, v = rows.unflatten(1, (3, HEADS, -1)).permute(1, 2, 0, 3)
        p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        out.append((p @ v).transpose(0, 1).flatten(1))
    return torch.cat(out)


def plain_blocks(x: Tensor, modulation: Tensor, *layers: Tensor, layout: Layout) -> Tensor:
    parts = modulation[layout.molecule].split(6 * x.shape[1], dim=1)
    for i, part in enumerate(parts):
        W_qkv, b_qkv, W_out, b_out, W_inner, b_inner, W_outer, b_outer = layers[8 * i : 8 * i + 8]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = part.chunk(6, dim=1)
        qkv = F.linear(normed(x, shift_a, scale_a), W_qkv, b_qkv)
        x = x + gate_a * F.linear(attended(qkv, layout), W_out, b_out)
        u, v = F.linear(normed(x, shift_m, scale_m), W_inner, b_inner).chunk(2, dim=1)
        x = x + gate_m * F.linear(F.silu(u) * v, W_outer, b_outer)
    return x


def blocks(x: Tensor, modulation: Tensor, *given: Tensor, layout: Layout) -> Tensor:
    layers = []
    for weight, bias in zip(given[::2], given[1::2], strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias  # the very tensors, whose gradients are asked for
        layers.append(layer)
    of_blocks = list(zip(*(layers[i::4] for i in range(4)), strict=True))
    return dit_passes.blocks(x, modulation, of_blocks, HEADS, layout, EPS)


def arguments(layout: Layout, H: int, n_blocks: int) -> list[Tensor]:
    """Tokens, modulation, and the layers of the blocks."""
    K, rng = 2 * H, generator(6)
    shapes = [(layout.n_total, H), (len(layout.sizes), 6 * n_blocks * H)]
    shapes += n_blocks * [(3 * H, H), (3 * H,), (H, H), (H,), (2 * K, H), (2 * K,), (H, K), (H,)]
    values = [torch.randn(shape, generator=rng) for shape in shapes]
    return [
        (value / (len(value.T) ** 0.5 if i > 1 and value.ndim == 2 else 1)).requires_grad_()
        for i, value in enumerate(values)
    ]


# name -> ours, plain operations, number of blocks
CASES = {
    "one block": (blocks, plain_blocks, 1),
    "three blocks": (blocks, plain_blocks, 3),
}


def errors(name: str, H: int = 24, sizes: list[int] = SIZES, bf16: bool = False) -> list[float]:
    """Of the values and of each gradient, relative to float64's plain operations on the same numbers."""
    ours, plain, n_blocks = CASES[name]
    layout = Layout(sizes)
    given = arguments(layout, H, n_blocks)
    exact = [value.detach().double().requires_grad_() for value in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = ours(*given, layout=layout)
    wanted = plain(*exact, layout=layout)
    weight = torch.randn(wanted.shape, generator=generator(7))
    found = torch.autograd.grad((weight * out).sum(), given)
    expected = torch.autograd.grad((weight.double() * wanted).sum(), exact)
    off = [relative_error(x.double(), y) for x, y in zip([out, *found], [wanted, *expected], strict=True)]
    return [math.inf if math.isnan(error) else error for error in off]  # max() would pass over NaN


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
    ours, _, n_blocks = CASES[name]
    layout = Layout(SIZES)
    found = []
    for n_more in (0, 5):
        x, *others = arguments(layout, 24, n_blocks)
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
    wrong = with_another_term(dit_passes.SOURCE, "    memset(from", "    if (0) memset(from", tmp_path)
    monkeypatch.setattr(dit_passes, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(AssertionError):
        assert all(rows.count_nonzero() == 0 for rows in rows_after_the_last_molecule(name, bf16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("one block", "normed[k] * along_normed", "0.999f * normed[k] * along_normed"),
        ("one block", "of_shift[k] += of_normed", "of_shift[k] = of_normed"),
        ("one block", "of_sum[k] * (number(y, k, bf16) + bias[k])", "of_sum[k] * number(y, k, bf16)"),
        ("one block", "of_bias[k] += of_y[k]", "of_bias[k] = of_y[k]"),
        ("one block", "of_sum[k] += r *", "of_sum[k] = r *"),
        ("one block", "s + silu * (1 - s)", "s"),
        ("one block", "of_bias[K + k] += ", "of_bias[K + k] = "),
        ("one block", "(s[j * N + l] - mean[l])", "s[j * N + l]"),
        ("one block", "product(k + at, s, N, 1, q", "product(k + at, s, 1, N, q"),
        ("one block", "add(of_bias, 1, whole", "add(of_bias, 0, whole"),
        ("one block", "p[j * N + l] *= sum[l]", "p[j * N + l] *= sum[0]"),
        ("one block", "time < 3", "time < 2"),
        ("one block", "memcpy(q + at, g", "memcpy(q + at, q"),
        ("one block", "rows_of_whole(3", "rows_of_whole(2"),
        pytest.param("one block", "rows_of_half(3", "rows_of_half(2", marks=has_wider_vectors),
        ("one block", "grad_at = m * grad_stride", "grad_at = m * H"),
        ("one block", "shift_m = shift + m * stride", "shift_m = shift + m * H"),
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
    wrong = with_another_term(dit_passes.SOURCE, "(p[j * N + l] - largest[l])", "p[j * N + l]", tmp_path)
    monkeypatch.setattr(dit_passes, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not min(error_of_shifted_scores(shift) for shift in (-300.0, 300.0)) < 0.1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", [0, 1], ids=["tokens", "modulation"])
def test_what_is_not_a_number_stays_so_in_its_molecule(name, which):
    ours, _, n_blocks = CASES[name]
    layout = Layout([2, 3])
    given = [value.detach() for value in arguments(layout, 24, n_blocks)]
    given[which][[1, 0][which], -1] = torch.nan
    out = ours(*given, layout=layout)
    assert out[:2].isnan().any()
    assert out[2:].isfinite().all()


@pytest.mark.parametrize("column", [0, 24, -1], ids=["q", "k", "v"])
def test_what_is_not_a_number_in_attention_stays_so_in_its_molecule(column):
    layout = Layout([2, 3])
    qkv, *_ = arguments(layout, 72, 1)
    qkv = qkv.detach()
    qkv[1, column] = torch.nan
    out, _ = dit_passes.Passes(layout, torch.float32, EPS).attention(qkv, torch.zeros(72), HEADS)
    assert out[:2].isnan().any()
    assert out[2:].isfinite().all()


def test_what_does_not_fit_is_refused():
    """Nothing beyond an array is read."""
    layout = Layout([2, 3])
    x, modulation, *layers = (value.detach() for value in arguments(layout, 24, 1))
    for wrong in (modulation[:1], modulation[:, 1:], modulation.bfloat16()):
        with pytest.raises(ValueError, match=r"expected \(2, 144\) in float32"):
            blocks(x, wrong, *layers, layout=layout)
    for n_rows in (4, 5 + MULTIPLE):
        with pytest.raises(ValueError, match=f"{n_rows} rows in torch.float32 for 5 atoms"):
            blocks(torch.zeros(n_rows, 24), modulation, *layers, layout=layout)
    with pytest.raises(ValueError, match=r"torch.float64 for 5 atoms; expected float32"):
        blocks(x.double(), modulation, *layers, layout=layout)
    for i, wrong in enumerate([layers[0][1:], layers[1].bfloat16(), layers[2].double(), layers[3][1:]]):
        with pytest.raises(ValueError, match=r"linear layers are .*; expected .* in float32"):
            blocks(x, modulation, *layers[:i], wrong, *layers[i + 1 :], layout=layout)
    tokens = torch.zeros(5, 25), torch.zeros(2, 150)
    with pytest.raises(ValueError, match="25 channels are not those of 3 heads"):
        blocks(*tokens, *(value.detach() for value in arguments(layout, 25, 1)[2:]), layout=layout)


def test_a_backward_pass_under_autocast_and_biases_that_lie_apart_change_nothing():
    layout = Layout(SIZES)
    given = arguments(layout, 24, 1)
    apart = [x.detach().repeat_interleave(2)[::2].requires_grad_() if x.ndim == 1 else x for x in given]
    assert not apart[3].is_contiguous()
    expected = torch.autograd.grad(blocks(*given, layout=layout).square().sum(), given)
    out = blocks(*apart, layout=layout).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out, apart)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    with torch.autocast("cpu", torch.bfloat16):  # control: the forward pass under it
        found = torch.autograd.grad(blocks(*given, layout=layout).square().sum(), given)
    assert not any(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_gradients_that_lie_otherwise_in_memory(name):
    """As columns, or one number for all. Control: the other way round they are others."""
    ours, _, n_blocks = CASES[name]
    layout = Layout(SIZES)
    given = arguments(layout, 24, n_blocks)
    out = ours(*given, layout=layout)
    g = torch.randn(out.shape[::-1], generator=generator(9)).t()
    for lies_otherwise in (g, torch.ones(()).expand_as(out)):
        assert not lies_otherwise.is_contiguous()
        found = torch.autograd.grad(out, given, lies_otherwise, retain_graph=True)
        expected = torch.autograd.grad(out, given, lies_otherwise.contiguous(), retain_graph=True)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    found = torch.autograd.grad(out, given, g.flip(0).contiguous())
    assert not torch.equal(found[0], torch.autograd.grad(ours(*given, layout=layout), given, g)[0])


@pytest.mark.parametrize("gradients", ["none", "of nothing", "of all"])
def test_without_gradients_no_block_is_kept(gradients, monkeypatch):
    """What a block has made is gone before the next one makes as much. Control: with them all are kept."""
    made: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def noted(passes: dit_passes.Passes, uv: Tensor, bias: Tensor) -> Tensor:
        left.append(sum(hidden() is not None for hidden in made))
        hidden = swiglu(passes, uv, bias)
        made.append(weakref.ref(hidden))
        return hidden

    swiglu = dit_passes.Passes.swiglu
    monkeypatch.setattr(dit_passes.Passes, "swiglu", noted)
    layout = Layout(SIZES)
    given = arguments(layout, 24, 3)
    with torch.set_grad_enabled(gradients != "none"):
        blocks(*(x.detach() if gradients == "of nothing" else x for x in given), layout=layout)
    assert left == ([0, 1, 2] if gradients == "of all" else [0, 0, 0])


@pytest.mark.parametrize("name", CASES)
def test_gradients_through_gradients_are_refused(name):
    """They would be silently wrong."""
    ours, _, n_blocks = CASES[name]
    x, *others = arguments(Layout([2, 3]), 24, n_blocks)
    (first,) = torch.autograd.grad(ours(x, *others, layout=Layout([2, 3])).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
