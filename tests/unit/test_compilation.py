"""Training options of speed: compilation with its fall-back to eager, and bf16 autocast."""

import numpy as np
import pytest
import torch
from support import ELEMENTS, model_of, structures

from bench.backbones import pair_mlp
from bench.compilation import compile_networks
from bench.data.dataset import DataSet
from bench.native import operations_of_torch
from bench.streams import Streams
from bench.train import training_loss

DATA = DataSet("clouds", "clouds", "made here", ELEMENTS, structures(), structures(), structures())


def loss(model) -> float:
    x0 = model.diffusion.encode(DATA.train.select(np.arange(2)))
    return training_loss(model, x0, Streams(0).at(0)).mean().item()


def broken(function, dynamic):
    def fail(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nsecond line")

    return fail


@pytest.fixture
def _no_c():
    """As on a GPU, or without a C compiler."""
    with operations_of_torch():
        yield


@pytest.mark.parametrize("pair", [("edm", "egnn"), ("symdiff", "dit")], ids=str)
def test_what_c_does_is_not_compiled(pair):
    model = model_of(*pair, dtype=torch.float32)
    if not pair_mlp.available(torch.zeros(1, 1), 64):
        pytest.skip("no C compiler")
    assert compile_networks(model, DATA) == "eager (no part of this network is compiled)"


@pytest.mark.usefixtures("_no_c")
@pytest.mark.parametrize("pair", [("edm", "egnn"), ("symdiff", "dit")], ids=str)
def test_a_failing_compiler_leaves_an_eager_model_and_a_reason(pair, monkeypatch):
    model = model_of(*pair, dtype=torch.float32)
    before = loss(model)
    monkeypatch.setattr(torch, "compile", broken)
    stated = compile_networks(model, DATA)
    assert stated == "eager (torch.compile failed: no C++ compiler)"
    assert loss(model) == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("_no_c")
@pytest.mark.parametrize("pair", [("edm", "egnn"), ("symdiff", "dit")], ids=str)
def test_a_working_compiler_is_used_and_stated(pair, monkeypatch):
    """Control: what compile returns is really what the network calls afterwards."""
    model, calls = model_of(*pair, dtype=torch.float32), []

    def counted(function, dynamic):
        return lambda *args: calls.append(1) or function(*args)

    monkeypatch.setattr(torch, "compile", counted)
    before = loss(model)
    assert compile_networks(model, DATA) == "inductor"
    calls.clear()
    assert loss(model) == before
    assert calls


@pytest.mark.parametrize("pair", [("edm", "egnn"), ("symdiff", "dit"), ("edm", "e3"), ("plain", "gdm")], ids=str)
def test_bf16_training_step_is_near_float32_and_gives_float32_gradients(pair):
    model = model_of(*pair, dtype=torch.float32)
    single = loss(model)
    x0 = model.diffusion.encode(DATA.train.select(np.arange(2)))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = training_loss(model, x0, Streams(0).at(0)).mean()
    rounded.backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )
    assert abs(rounded.item() - single) < 0.05 * single
    assert rounded.item() != single  # control: autocast was really on
