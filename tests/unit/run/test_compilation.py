"""torch.compile of networks and its fall-back, and bf16 training steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ELEMENTS, model_of, structures

from bench.run.compile import compile_networks
from bench.run.train import training_loss
from bench.streams import Streams
from bench.structures.dataset import DataSet

DATA = DataSet("clouds", "clouds", "made here", ELEMENTS, structures(), structures(), structures())


def loss(model) -> float:
    x0 = model.task.encode(DATA.train.select(np.arange(2)))
    return training_loss(model, x0, Streams(0).at(0)).mean().item()


def broken(function, dynamic):
    def fail(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nsecond line")

    return fail


@pytest.mark.parametrize("pair", [("edm", "egnn"), ("symdiff", "dit")], ids=str)
def test_a_failing_compiler_leaves_an_eager_model_and_a_reason(pair, monkeypatch):
    model = model_of(*pair, dtype=torch.float32)
    before = loss(model)
    monkeypatch.setattr(torch, "compile", broken)
    stated = compile_networks(model, DATA)
    assert stated == "eager (torch.compile failed: no C++ compiler)"
    assert loss(model) == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("method", "backbone", "n"), [("edm", "egnn", 1), ("symdiff", "dit", 2)])
def test_a_working_compiler_is_used_and_stated(method, backbone, n, monkeypatch):
    """Control: what compile returns is really what the model calls afterwards, once for each of its n networks."""
    model, calls = model_of(method, backbone, dtype=torch.float32), []

    def counted(function, dynamic):
        assert dynamic
        return lambda *args: calls.append(1) or function(*args)

    monkeypatch.setattr(torch, "compile", counted)
    before = loss(model)
    assert compile_networks(model, DATA) == "inductor"
    calls.clear()
    assert loss(model) == before
    assert len(calls) == n


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["edm egnn", "plain gdm", "plain dit"])
def test_networks_are_compiled_for_any_sizes(pair):
    """With the same values and gradients, at most three times for five batches of other sizes."""
    script = Path(__file__).with_name("graphs.py")
    paths = os.pathsep.join(map(str, (script.parents[3], script.parents[2])))
    command = [sys.executable, str(script), *pair.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["graphs"] <= 3
    assert found["difference"] < 1e-12


@pytest.mark.parametrize(
    "pair", [("edm", "egnn"), ("symdiff", "dit"), ("edm", "e3"), ("edm", "visnet"), ("plain", "gdm")], ids=str
)
def test_bf16_training_step_is_near_float32_and_gives_float32_gradients(pair):
    model = model_of(*pair, dtype=torch.float32)
    single = loss(model)
    x0 = model.task.encode(DATA.train.select(np.arange(2)))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = training_loss(model, x0, Streams(0).at(0)).mean()
    rounded.backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )
    assert abs(rounded.item() - single) < 0.05 * single
    assert rounded.item() != single  # control: autocast was really on
