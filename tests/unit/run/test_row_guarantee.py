"""The guarantee of a row is that of its method on its backbone; a baseline adds no strategy."""

import pytest

from bench.registry import methods


@pytest.mark.parametrize(
    ("method", "elsewhere"),
    [("plain", "none"), ("haar", "at_optimum"), ("orbit_rb_exact", "at_optimum"), ("edm", "exact")],
)
def test_an_equivariant_backbone_makes_exact_what_leaves_its_prediction_alone(method, elsewhere):
    build = methods[method].build
    assert build.guarantee_on(equivariant=True) == "exact"
    assert build.guarantee_on(equivariant=False) == elsewhere
    assert methods["symdiff"].build.guarantee_on(equivariant=True) == "in_law"  # control: it draws in the prediction


def test_baselines_leave_every_hook_alone():
    assert {name for name in methods if methods[name].build.is_baseline()} == {"plain", "edm"}
