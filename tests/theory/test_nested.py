"""Components of variance of trees whose components are known, and the sketch that stands for long vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.measure.nested import Sketch, between_strata, components

F64 = torch.float64


def tree(sizes: tuple[int, ...], variances: tuple[float, ...], seed: int, width: int = 3) -> Tensor:
    """Sums of independent normal draws, one at each depth: c_k is `width` times the variance at depth k."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.zeros(*sizes, width, dtype=F64)
    for depth, variance in enumerate(variances):
        shape = [n if d <= depth else 1 for d, n in enumerate(sizes)]
        y = y + variance**0.5 * torch.randn(*shape, width, generator=rng, dtype=F64)
    return y


def z_of(estimates: Tensor, expected: float) -> float:
    if (estimates == expected).all():
        return 0.0
    return ((estimates.mean() - expected) / (estimates.std() / len(estimates) ** 0.5)).item()


@pytest.mark.parametrize(
    ("sizes", "variances"),
    [((6, 2, 2, 2), (0.5, 2.0, 1.0, 3.0)), ((6, 2, 2, 2), (0.0, 0.0, 1.0, 0.5)), ((5, 1, 3), (1.0, 0.0, 4.0))],
)
def test_components_are_unbiased_and_their_errors_are_those_they_state(sizes, variances):
    found = torch.stack([components(tree(sizes, variances, seed)) for seed in range(600)])
    for k, variance in enumerate(variances):
        assert abs(z_of(found[:, k].mean(1), 3 * variance)) < 5
    stated = (found.var(2) / found.shape[2]).mean(0)
    torch.testing.assert_close(stated, found.mean(2).var(0), rtol=0.25, atol=1e-12)


def test_the_scatter_of_means_alone_is_biased():
    """Control: without what lies below, the variance of means counts the noise for data."""
    found = torch.stack([tree((6, 2, 2), (0.5, 0.0, 4.0), seed).mean((1, 2)).var(0).sum() for seed in range(600)])
    assert z_of(found, 3 * 0.5) > 5


def test_one_draw_at_a_depth_is_no_component_and_one_molecule_is_refused():
    y = tree((4, 1, 3), (1.0, 0.0, 1.0), 0)
    assert components(y)[1].eq(0).all()
    torch.testing.assert_close(components(y)[[0, 2]], components(y.squeeze(1)))
    with pytest.raises(ValueError, match="at least 2"):
        components(y[:1])


def test_the_part_of_strata_is_unbiased_and_so_is_its_error():
    means = torch.tensor([0.0, 1.0, 5.0], dtype=F64)[:, None, None]
    rng = torch.Generator().manual_seed(0)
    found = [between_strata(means + 3 * torch.randn(3, 8, 2, generator=rng, dtype=F64)) for _ in range(600)]
    estimates, errors = torch.tensor(found, dtype=F64).T
    expected = 2 * means.var(correction=0).item()
    assert abs(z_of(estimates, expected)) < 5
    assert errors.square().mean().sqrt().item() == pytest.approx(estimates.std().item(), rel=0.15)
    drawn = means + 3 * torch.randn(500, 3, 8, 2, generator=rng, dtype=F64)
    naive = drawn.mean(2).var(1, correction=0).sum(1)
    assert z_of(naive, expected) > 5  # control


def test_a_sketch_preserves_inner_products_on_average():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, generator=rng, dtype=F64)
    sketches = [Sketch(500, 64, rng) for _ in range(2000)]
    inner = torch.stack([s(a) @ s(b) for s in sketches])
    norm = torch.stack([s(a) @ s(a) for s in sketches])
    assert abs(z_of(inner, (a @ b).item())) < 5
    assert abs(z_of(norm, (a @ a).item())) < 5
    assert (norm.std() / (a @ a)).item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert abs(z_of(norm, 1.05 * (a @ a).item())) > 5  # control: five per cent would be noticed
    torch.testing.assert_close(Sketch(500, 500, rng)(a), a)  # not longer than its size: as it is
    assert len(sketches[0](a)) == 64
