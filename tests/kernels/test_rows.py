"""Linear layers whose number of rows is rounded up in bf16, where a CPU compiles a product for each number of rows."""

from typing import Any

import pytest
import torch
from support import generator, model_of, relative_error, states
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.kernels import dit_passes, install
from bench.kernels.native import library
from bench.kernels.rows import MULTIPLE, joint_linear, row_linear

SIZES = (16, 18, 19, 20)
N_ATOMS = sum(SIZES)  # a number that no layer has for its width


def layer(n_rows: int, bf16: bool) -> tuple[Tensor, ...]:
    """Values, and gradients of x, weight and bias."""
    rng = generator(3)
    given = [torch.randn(shape, generator=rng).requires_grad_() for shape in ((n_rows, 5), (7, 5), (7,))]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = row_linear(*given)
    weight = torch.randn(out.shape, generator=rng)
    return out, *torch.autograd.grad((weight * out).sum(), given)


@pytest.mark.parametrize("n_rows", [1, MULTIPLE - 1, MULTIPLE, MULTIPLE + 1])
def test_added_rows_change_nothing(n_rows, monkeypatch):
    """To the order of sums over rows; and (control) bf16 itself does change something."""
    padded = layer(n_rows, bf16=True)
    monkeypatch.setattr("bench.kernels.rows.padded_rows", lambda x: x)
    for found, expected in zip(padded, layer(n_rows, bf16=True), strict=True):
        assert found.shape == expected.shape
        assert relative_error(found.float(), expected.float()) < 1e-2
    assert relative_error(padded[0].float(), layer(n_rows, bf16=False)[0]) > 1e-4


def of_several(bf16: bool, together: bool) -> list[Tensor]:
    """Values of layers of one input, and gradients of it, weights and biases."""
    rng = generator(4)
    layers = [torch.nn.Linear(5, n) for n in (7, 2, 7)]
    x = torch.randn(9, 5, generator=rng).requires_grad_()
    given = [x, *(p for layer in layers for p in layer.parameters())]
    with torch.no_grad():
        for p in given:
            p.copy_(torch.randn(p.shape, generator=rng))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = joint_linear(x, layers) if together else torch.cat([layer(x).float() for layer in layers], dim=1)
    loss = (out * torch.randn(out.shape, generator=rng)).sum()
    return [*out.split([7, 2, 7], dim=1), *torch.autograd.grad(loss, given)]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_layers_of_one_input_are_as_one_by_one(bf16):
    """In bf16 to its rounding, where they are one product; control: a layer against another of its shape."""
    found, expected = of_several(bf16, together=True), of_several(bf16, together=False)
    assert all(x.dtype is torch.float32 for x in found)
    rounding = 0.02 if bf16 else 1e-6
    assert all(relative_error(x, y) < rounding for x, y in zip(found, expected, strict=True))
    assert relative_error(found[0], expected[2]) > rounding


@pytest.mark.parametrize("together", [True, False])
def test_layers_of_one_input_are_one_product_in_bf16(together):
    """Control: one by one no product has so many columns."""
    with Shapes() as shapes:
        of_several(bf16=True, together=together)
    assert (7 + 2 + 7 in shapes.seen) == together


def step(backbone: str) -> list[Tensor]:
    """Values and gradients of a network in bf16."""
    network = model_of("plain", backbone, dtype=torch.float32).denoiser.backbone
    assert install(network)
    _, _, level, z_t = states(SIZES, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(z_t, level.t)
    (out.x.square().sum() + out.h.square().sum()).backward()
    return [out.x, out.h, *(p.grad for p in network.parameters() if p.grad is not None)]


def without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rows", "dit_passes"):
        monkeypatch.setattr(f"bench.kernels.{module}.padded_rows", lambda x: x)


class Shapes(TorchDispatchMode):
    """Notes the numbers of rows and columns of bf16 products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.seen |= {n for x in args if isinstance(x, Tensor) and x.dtype is torch.bfloat16 for n in x.shape}
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(library(dit_passes.SOURCE) is None, reason="no C compiler")
@pytest.mark.parametrize("backbone", ["dit", "egnn", "gdm"])
def test_products_of_networks_have_round_numbers_of_rows(backbone, monkeypatch):
    """With the same values and gradients; control: without padding there are products of as many rows as atoms."""
    with Shapes() as padded:
        found = step(backbone)
    without_padding(monkeypatch)
    with Shapes() as plain:
        expected = step(backbone)
    assert N_ATOMS not in padded.seen
    assert N_ATOMS in plain.seen
    for x, y in zip(found, expected, strict=True):
        assert relative_error(x.float(), y.float()) < 0.03
