"""Attention in blocks: values and gradients against torch's, molecule by molecule."""

import pytest
import torch
import torch.nn.functional as F
from support import generator
from torch import Tensor

from bench.backbones.attention import attention
from bench.molecules import Layout

LAYOUT = Layout([1, 2, 2, 3, 5])  # sorted
HEADS, WIDTH = 2, 6
A = int(LAYOUT.sizes.sum())


def qkv(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(A, 3 * WIDTH, generator=generator(1), dtype=dtype).requires_grad_()


def one_by_one(values: Tensor, scale: float | None = None) -> Tensor:
    out = []
    for molecule in values.split(LAYOUT.sizes.tolist()):
        q, k, v = molecule.view(len(molecule), 3, HEADS, -1).permute(1, 2, 0, 3).unbind(0)
        out.append(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1).flatten(1))
    return torch.cat(out)


def gradient(out: Tensor, of: Tensor) -> Tensor:
    weight = torch.randn(out.shape, generator=generator(2), dtype=torch.float64).to(out.dtype)
    return torch.autograd.grad((weight * out).sum(), of)[0]


def test_values_and_gradients_are_those_of_each_molecule_alone():
    given = qkv()
    ours, theirs = attention(given, HEADS, LAYOUT), one_by_one(given)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, given), gradient(theirs, given))


def test_another_scale_is_noticed():
    """Control."""
    given = qkv()
    ours, theirs = attention(given, HEADS, LAYOUT), one_by_one(given, scale=1.01 * (WIDTH // HEADS) ** -0.5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gradient(ours, given), gradient(theirs, given))


def test_path_of_other_devices_is_the_same_function():
    """What runs where the array is not a CPU's, on a tensor that says so."""

    class Elsewhere(Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

    given = qkv()
    elsewhere = attention(given.as_subclass(Elsewhere), HEADS, LAYOUT)
    torch.testing.assert_close(elsewhere.as_subclass(Tensor), attention(given, HEADS, LAYOUT))


def test_bf16_is_computed_in_float32():
    given = qkv(torch.bfloat16)
    ours = attention(given, HEADS, LAYOUT)
    assert ours.dtype is torch.bfloat16
    torch.testing.assert_close(ours, attention(given.float(), HEADS, LAYOUT).bfloat16())
    assert gradient(ours, given).dtype is torch.bfloat16
