"""The exponential of the C files, against float64's, and their rounding to bf16, against torch's."""

import math
from pathlib import Path

import pytest
import torch
from support import generator, with_another_term
from torch import Tensor

from bench.kernels import dit_passes, native
from bench.kernels.native import library, required

HEADER = native.HEADERS / "rows.h"
SOURCE = """
#include "rows.h"
void of_row(const float *x, float *exponentials, float *sigmoids, int64_t K) {
    for (int64_t k = 0; k < K; k++) exponentials[k] = exponential(x[k]);
    for (int64_t k = 0; k < K; k++) sigmoids[k] = sigmoid(x[k]);
}
void to_bf16(const float *x, uint16_t *out, int64_t K) { store(x, out, 0, K, 1); }
"""

pytestmark = pytest.mark.skipif(library(dit_passes.SOURCE) is None, reason="no C compiler")


def of_row(x: Tensor, folder: Path, right: str = "", wrong: str = "") -> tuple[Tensor, Tensor]:
    """exp(x) and sigmoid(x) of C, with one term of rows.h another."""
    with_another_term(HEADER, right, wrong, folder)
    source = folder / "of_row.c"
    source.write_text(SOURCE)
    exponentials, sigmoids = torch.empty_like(x), torch.empty_like(x)
    required(source).of_row(x, exponentials, sigmoids, len(x))
    return exponentials, sigmoids


def errors(x: Tensor, *found: Tensor) -> list[float]:
    """Relative, of exponentials and sigmoids."""
    exact = x.double().exp(), x.double().sigmoid()
    return [(y.double() / z - 1).abs().max().item() for y, z in zip(found, exact, strict=True)]


@pytest.fixture(autouse=True)
def _own_libraries(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_relative_error(tmp_path):
    """2e-7 near 0, 1e-6 at 80 (4e-6 without fused additions). Control: the last coefficient a hundredth less."""
    near, wide = torch.linspace(-1, 1, 100_001), torch.linspace(-80, 80, 100_001)
    assert max(errors(near, *of_row(near, tmp_path))) < 3e-7
    assert max(errors(wide, *of_row(wide, tmp_path))) < 6e-6
    (tmp_path / "wrong").mkdir()
    assert errors(near, *of_row(near, tmp_path / "wrong", "1.326472731e-3f", "1.313e-3f"))[0] > 3e-7


def test_whole_at_zero_and_what_is_cut_off(tmp_path):
    """exp(0) = 1, NaN stays NaN, sigmoids of anything else are normal numbers up to 1. Control: nothing cut off."""
    x = torch.tensor([0.0, math.nan, 100.0, -100.0, math.inf, -math.inf, 3e38, -3e38])
    exponentials, sigmoids = of_row(x, tmp_path)
    assert exponentials[0] == 1
    assert exponentials[1].isnan()
    assert sigmoids[1].isnan()
    assert (sigmoids[2:] >= torch.finfo().tiny).all()
    assert (sigmoids[2::2] == 1).all()
    assert (sigmoids[3::2] < 1e-37).all()
    (tmp_path / "wrong").mkdir()
    _, sigmoids = of_row(x, tmp_path / "wrong", "most = 87.0f", "most = 1e30f")
    assert not (sigmoids[3::2] < 1e-37).all()


def differs_from_torch(rows: Path) -> bool:
    source = rows.with_name("of_row.c")
    source.write_text(SOURCE)
    x = torch.cat([torch.randn(10_000, generator=generator(1)), torch.arange(256, 300) * (1 + 2**-8)])  # with ties
    x = torch.cat([x, torch.tensor([math.inf, -math.inf, 3.4e38, 0.0, -0.0, math.nan, 1.0, 2.0, 3.0])])
    found = torch.empty_like(x, dtype=torch.bfloat16)
    required(source).to_bf16(x, found, len(x))
    return not torch.allclose(found, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_rounding_to_bf16_is_that_of_torch(tmp_path):
    """With and without the processor's own instruction, and past its last whole row. Control: cut, not rounded."""
    folders = [tmp_path / name for name in ("own", "without", "cut")]
    for folder in folders:
        folder.mkdir()
    own = with_another_term(HEADER, "", "", folders[0])
    without = with_another_term(own, "__AVX512BF16__", "NO_SUCH_MACRO", folders[1])
    assert not differs_from_torch(own)
    assert not differs_from_torch(without)
    assert differs_from_torch(with_another_term(without, "bits + 0x7fff + ((bits >> 16) & 1)", "bits", folders[2]))
