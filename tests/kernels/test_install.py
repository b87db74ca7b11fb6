"""Models with kernels against plain torch: predictions and gradients, and where kernels are not for a model."""

import pytest
import torch
from support import generator, model_of, relative_error, run_config, states
from torch import Tensor

from bench.kernels import dit_passes, install, native
from bench.kernels.native import library
from bench.run.acceleration import accelerate
from bench.run.model import Model

ROUNDING = 2e-5  # of float32, relative to the largest number of an array
PAIRS = {
    ("edm", "egnn"): ["pair_mlp"],
    ("plain", "gdm"): ["pair_mlp"],
    ("plain", "dit"): ["dit_passes"],
    ("symdiff", "dit"): ["dit_passes"],
    ("symdiff", "egnn"): ["pair_mlp", "dit_passes"],
    ("edm", "e3"): [],
    ("edm", "visnet"): [],
}
needs_compiler = pytest.mark.skipif(library(dit_passes.SOURCE) is None, reason="no C compiler")


def step(model: Model, dtype: torch.dtype = torch.float32, bf16: bool = False) -> dict[str, Tensor]:
    """Prediction, and gradients of a sum of squares, by name."""
    _, _, level, z_t = states(dtype=dtype)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = model.predict(z_t, level, generator(1))
    (out.x.square().sum() + out.h.square().sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(g.dtype == dtype for g in gradients.values())
    return {"x": out.x.detach(), "h": out.h.detach(), **gradients}


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    scale = max(g.abs().max() for g in expected.values())
    return max(relative_error(found[name], g) for name, g in expected.items() if g.abs().max() > 1e-6 * scale)


@needs_compiler
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_model_with_kernels_is_the_plain_one(pair):
    """To float32's rounding. Control: a weight off by a hundredth is not."""
    model = model_of(*pair, dtype=torch.float32)
    plain = step(model)
    assert install(model) == PAIRS[pair]
    found = step(model)
    assert largest_error(found, plain) < ROUNDING
    assert any(not torch.equal(found[name], plain[name]) for name in plain) == bool(PAIRS[pair])  # kernels did run
    with torch.no_grad():
        ends = ("blocks.0.modulation.weight", "layers.0.q_proj.weight")
        named = model.named_parameters()
        next(p for name, p in named if name.endswith(ends) or "in." in name).mul_(1.01)
    assert largest_error(step(model), plain) > 10 * ROUNDING


@needs_compiler
@pytest.mark.parametrize("pair", [("edm", "egnn"), ("plain", "gdm"), ("symdiff", "dit")], ids="-".join)
def test_in_bf16_both_are_off_by_its_rounding(pair):
    model = model_of(*pair, dtype=torch.float32)
    exact, plain = step(model), step(model, bf16=True)
    assert install(model)
    found = step(model, bf16=True)
    for name in ("x", "h"):
        assert relative_error(found[name], plain[name]) < 0.05
        assert relative_error(found[name], exact[name]) > 1e-5  # control: bf16 was really on


@needs_compiler
@pytest.mark.parametrize("pair", [("edm", "egnn"), ("symdiff", "dit")], ids="-".join)
def test_other_precisions_run_in_plain_torch(pair):
    """Float64 bit for bit, also where kernels were installed before."""
    model = model_of(*pair)
    plain = step(model, torch.float64)
    assert install(model)
    found = step(model, torch.float64)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_there_are_none_where_they_are_not_wanted_or_cannot_be(monkeypatch):
    """Control: on a CPU with a compiler there are."""
    names = ["pair_mlp"] if library(dit_passes.SOURCE) is not None else []
    assert accelerate(model_of("edm", "egnn"), run_config("edm", "egnn").train) == names
    assert accelerate(model_of("edm", "egnn"), run_config("edm", "egnn", kernels="off").train) == []
    assert accelerate(model_of("edm", "egnn"), run_config("edm", "egnn", compile=True).train) == []
    assert accelerate(model_of("edm", "egnn"), run_config("edm", "egnn", device="cuda").train) == []
    assert install(model_of("edm", "egnn").to("meta")) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert accelerate(model_of("edm", "egnn"), run_config("edm", "egnn").train) == []


@pytest.mark.parametrize("pair", [("edm", "egnn"), ("symdiff", "dit")], ids="-".join)
def test_without_a_compiler_there_are_none(pair, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    library.cache_clear()
    model = model_of(*pair, dtype=torch.float32)
    plain = step(model)
    assert install(model) == []
    assert all(torch.equal(x, plain[name]) for name, x in step(model).items())
    library.cache_clear()
    native.warn_once.cache_clear()


def test_whether_they_run_is_not_part_of_a_runs_identity():
    """Control: the learning rate is."""
    names = {run_config("edm", "egnn", kernels=kernels).run_name("data") for kernels in ("auto", "off")}
    assert len(names) == 1
    assert run_config("edm", "egnn", lr=1.0).run_name("data") not in names
