"""What enters and leaves a network is not rounded under bf16 autocast, and states may lack features."""

import pytest
import torch
from support import model_of, plug_in, relative_error, states

from bench.config.run import resolve
from bench.geometry.state import State
from bench.nn.linear import Float32Linear
from bench.registry import backbones
from bench.run.contract import for_molecules

SIZES = (16, 18, 19, 20)


def seen_in_bf16(backbone: str, what: str) -> float:
    """How far a network's answer moves when its times, positions or features do by half of what bf16 can tell."""
    network = model_of("plain", backbone, dtype=torch.float32).denoiser.backbone
    _, _, _, z = states(SIZES, dtype=torch.float32)
    z, t = z.replace(x=torch.ones_like(z.x), h=torch.ones_like(z.h)), torch.full((len(SIZES),), 0.75)
    z = z.replace(x=torch.arange(len(z.x))[:, None] % 7 + z.x)
    near = 1 + 2**-10  # bf16 rounds it to 1
    moved = {"t": (z, near * t), "x": (z.replace(x=near * z.x), t), "h": (z.replace(h=near * z.h), t)}[what]
    with torch.autocast("cpu", torch.bfloat16):
        return relative_error(network(*moved), network(z, t))


@pytest.mark.parametrize(
    ("backbone", "what"),
    [("dit", "h"), ("egnn", "t"), ("egnn", "h"), ("gdm", "x"), ("gdm", "t"), ("e3", "t"), ("e3", "h")],
)
def test_what_enters_a_network_is_not_rounded(backbone, what, monkeypatch):
    """Control: layers that autocast reaches see no difference."""
    assert seen_in_bf16(backbone, what) > 0
    monkeypatch.setattr(Float32Linear, "forward", torch.nn.Linear.forward)
    assert seen_in_bf16(backbone, what) == 0


@pytest.mark.parametrize("backbone", for_molecules())
def test_a_state_without_features_gets_an_answer_without_them(backbone):
    """Control: features that are there are answered."""
    _, _, level, z = states(dtype=torch.float32)
    options = resolve(backbones, plug_in(backbones, backbone), "backbone").options
    bare = backbones[backbone].build(options, {"x": 3})
    assert set(bare(State({"x": z.x}, z.layout), level.t.float()).parts) == {"x"}
    full = backbones[backbone].build(options, {"x": 3, "h": z.h.shape[1]})(z, level.t.float())
    assert full.h.shape == z.h.shape


@pytest.mark.parametrize("backbone", ["egnn", "gdm", "dit"])
@pytest.mark.parametrize("n_dimensions", [1, 2])
def test_points_may_have_any_number_of_dimensions(backbone, n_dimensions):
    _, _, level, z = states(dtype=torch.float32)
    network = backbones[backbone].build(
        resolve(backbones, plug_in(backbones, backbone), "backbone").options, {"x": n_dimensions}
    )
    x = z.x[:, :n_dimensions]
    assert network(State({"x": x}, z.layout), level.t.float()).x.shape == x.shape


@pytest.mark.parametrize("backbone", ["e3", "visnet"])
def test_some_backbones_are_for_three_dimensions(backbone):
    with pytest.raises(ValueError, match="for points in 3 dimensions, got 2"):
        backbones[backbone].build(resolve(backbones, plug_in(backbones, backbone), "backbone").options, {"x": 2})
