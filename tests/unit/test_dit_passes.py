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
SIZES = [1, 1, 2, 5, 5, 16, 19]  # sorted; below, at and above the padding to 16
HEADS = 3

pytestmark = pytest.mark.skipif(library(dit_passes.SOURCE) is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.setattr("bench.threads.SHARED", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def normed(x: Tensor, shift: Tensor, scale: Tensor, layout: Layout) -> Tensor:
    out = F.layer_norm(x, x.shape[1:], eps=1e-6)
    return (1 + scale[layout.molecule]) * out + shift[layout.molecule]


def attended(qkv: Tensor, layout: Layout) -> Tensor:
    out = []
    for rows in qkv.split(layout.sizes.tolist()):
        q, k, v = rows.unflatten(1, (3, HEADS, -1)).permute(1, 2, 0, 3)
        p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        out.append((p @ v).transpose(0, 1).flatten(1))
    return torch.cat(out)


# name -> ours, plain operations, shapes of the arguments (A atoms, B molecules, H channels)
CASES = {
    "modulate": (
        lambda x, m, layout: dit_passes.modulate(x, *m.chunk(2, dim=1), layout, 1e-6),
        lambda x, m, layout: normed(x, *m.chunk(2, dim=1), layout),
        ("A H", "B 2H"),
    ),
    "gated sum": (
        lambda x, y, b, m, layout: dit_passes.gated_sum(x, y, b[0], m.chunk(2, dim=1)[1], layout),
        lambda x, y, b, m, layout: x + m.chunk(2, dim=1)[1][layout.molecule] * (y + b),
        ("A H", "A H", "1 H", "B 2H"),
    ),
    "SwiGLU": (
        lambda uv, b, layout: dit_passes.swiglu(uv, b[0]),
        lambda uv, b, layout: F.silu((uv + b).chunk(2, dim=1)[0]) * (uv + b).chunk(2, dim=1)[1],
        ("A 2H", "1 2H"),
    ),
    "attention": (
        lambda qkv, b, layout: dit_passes.attention(qkv, b[0], HEADS, layout),
        lambda qkv, b, layout: attended(qkv + b, layout),
        ("A 3H", "1 3H"),
    ),
}


def arguments(shapes: tuple[str, ...], layout: Layout, H: int) -> list[Tensor]:
    rng, rows = generator(6), {"A": layout.n_total, "B": len(layout.sizes), "1": 1}
    found = []
    for shape in shapes:
        n, columns = shape.split()
        found.append(torch.randn(rows[n], int(columns[:-1] or 1) * H, generator=rng).requires_grad_())
    return found


def errors(name: str, H: int = 24, sizes: list[int] = SIZES, dtype: torch.dtype = torch.float32) -> list[float]:
    """Of the values and of each gradient, relative to float64's plain operations on the same numbers."""
    ours, plain, shapes = CASES[name]
    layout = Layout(sizes)
    given = arguments(shapes, layout, H)
    # what linear layers make is in their precision; modulations and what blocks add to are float32
    of_layers = {"gated sum": 1, "SwiGLU": 0, "attention": 0}.get(name)
    if of_layers is not None:
        given[of_layers] = given[of_layers].detach().to(dtype).requires_grad_()
    exact = [value.detach().double().requires_grad_() for value in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        out = ours(*given, layout)
    wanted = plain(*exact, layout)
    weight = torch.randn(wanted.shape, generator=generator(7)).to(out.dtype)
    found = torch.autograd.grad((weight * out).sum(), given)
    expected = torch.autograd.grad((weight.double() * wanted).sum(), exact)
    return [relative_error(x.double(), y) for x, y in zip([out, *found], [wanted, *expected], strict=True)]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("H", [24, 48, 96])
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
    """8 digits in what goes in and out: under 2 %, and (control) something is over 1e-5."""
    found = errors(name, dtype=torch.bfloat16)
    assert max(found) < 0.02
    assert max(found) > 1e-5


@pytest.fixture
def _memory_is_not_zero():
    """What nobody writes is NaN, instead of what happens to lie there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def rows_after_the_last_molecule(name: str, dtype: torch.dtype) -> list[Tensor]:
    """Of the values and of the gradient of what is given first; the rows of molecules are checked."""
    ours, _, shapes = CASES[name]
    layout = Layout(SIZES)
    of_rows = {"gated sum": 1}.get(name, 0)  # its x has the gradient of its result
    found = []
    for n_more in (0, 5):
        values = [
            F.pad(x.detach(), (0, 0, 0, n_more * (len(x) == layout.n_total)), value=1.0).requires_grad_()
            for x in arguments(shapes, layout, 24)
        ]
        if name != "modulate":
            values[of_rows] = values[of_rows].detach().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = ours(*values, layout)
        weight = torch.randn(layout.n_total, out.shape[1], generator=generator(7))
        grads = torch.autograd.grad((weight * out[: layout.n_total]).sum(), values)
        found.append([out, grads[of_rows]])
    for padded, expected in zip(found[1], found[0], strict=True):
        assert torch.equal(padded[: layout.n_total], expected)
    return [padded[layout.n_total :] for padded in found[1]]


@pytest.mark.usefixtures("_memory_is_not_zero")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", ["modulate", "gated sum", "attention"])
def test_rows_after_the_last_molecule_are_zero(name, dtype, monkeypatch, tmp_path):
    """Else they would reach the gradients of weights. Control: left as they lie in memory."""
    assert all(rows.count_nonzero() == 0 for rows in rows_after_the_last_molecule(name, dtype))
    wrong = with_another_term(dit_passes.SOURCE, "    memset((char *)rows", "    if (0) memset((char *)rows", tmp_path)
    monkeypatch.setattr(dit_passes, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert all(rows.count_nonzero() for rows in rows_after_the_last_molecule(name, dtype))


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("modulate", "normed[k] * along_normed", "0.999f * normed[k] * along_normed"),
        ("modulate", "of_shift[k] += g[k]", "of_shift[k] = g[k]"),
        ("gated sum", "grad_i[k] * (y_i[k] + bias[k])", "grad_i[k] * y_i[k]"),
        ("SwiGLU", "s + silu * (1 - s)", "s"),
        ("SwiGLU", "add(grad_bias + THREAD * 2 * K, 1", "add(grad_bias + THREAD * 2 * K, 0"),
        ("gated sum", "of_bias[k] += g[k]", "of_bias[k] = g[k]"),
        ("attention", "(s[j * N + i] - mean[i])", "s[j * N + i]"),
        ("attention", "product(of_k, s, N, 1, q", "product(of_k, s, 1, N, q"),
        ("attention", "THREAD * 3 * H + at, 1", "THREAD * 3 * H + at, 0"),
        ("attention", "p[j * N + i] *= sum[i]", "p[j * N + i] *= sum[0]"),
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
    out = dit_passes.attention(qkv, torch.zeros(qkv.shape[1]), HEADS, layout)
    return relative_error(out, attended(plain.flatten(1), layout))


def test_scores_of_any_size(monkeypatch, tmp_path):
    """To the rounding of the scores; control: softmax without its maximum."""
    assert max(error_of_shifted_scores(shift) for shift in (-300.0, 300.0)) < 1e-3
    wrong = with_another_term(dit_passes.SOURCE, "(p[j * N + i] - largest[i])", "p[j * N + i]", tmp_path)
    monkeypatch.setattr(dit_passes, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not min(error_of_shifted_scores(shift) for shift in (-300.0, 300.0)) < 0.1


@pytest.mark.parametrize(("name", "column"), [*((name, -1) for name in CASES), ("attention", 0), ("attention", 24)])
def test_what_is_not_a_number_stays_so_in_its_molecule(name, column):
    """Of q, k or v in attention."""
    ours, _, shapes = CASES[name]
    layout = Layout([2, 3])
    given = [value.detach() for value in arguments(shapes, layout, 24)]
    given[0][1, column] = torch.nan
    out = ours(*given, layout)
    assert out[:2].isnan().any()
    assert out[2:].isfinite().all()


@pytest.mark.parametrize(
    "modulation",
    [torch.zeros(3, 24), torch.zeros(24, 2).t(), torch.zeros(2, 24, dtype=torch.bfloat16)],
    ids=["molecules", "transposed", "bf16"],
)
def test_what_does_not_fit_is_refused(modulation):
    """Nothing beyond an array is read."""
    layout, x = Layout([2, 3]), torch.zeros(5, 24)
    with pytest.raises(ValueError, match=r"expected \(2, 24\) in float32"):
        dit_passes.gated_sum(x, x, torch.zeros(24), modulation, layout)
    for n_rows in (4, 5 + MULTIPLE):
        with pytest.raises(ValueError, match=f"{n_rows} rows for 5 atoms"):
            dit_passes.attention(torch.zeros(n_rows, 72), torch.zeros(72), HEADS, layout)
    with pytest.raises(ValueError, match="not q, k and v of 3 heads"):
        dit_passes.attention(torch.zeros(5, 70), torch.zeros(70), HEADS, layout)
    with pytest.raises(ValueError, match=r"expected \(72,\) in float32"):
        dit_passes.attention(torch.zeros(5, 72), torch.zeros(72, dtype=torch.bfloat16), HEADS, layout)


def test_gradients_through_gradients_are_refused():
    """They would be silently wrong."""
    uv = torch.randn(3, 8, requires_grad=True)
    (first,) = torch.autograd.grad(dit_passes.swiglu(uv, torch.zeros(8)).square().sum(), uv, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
