"""Our networks against the padded ones: the same function and the same gradients, in both precisions."""

import copy
from collections.abc import Callable

import pytest
import torch
from support import generator, model_of, relative_error, run_config, states
from torch import Tensor, nn

from bench.kernels import chunks, install
from bench.run.model import Model
from bench.run.train import training_loss
from bench.streams import Streams
from performance.padded import use_reference

PAIRS = [("edm", "egnn"), ("plain", "dit"), ("symdiff", "dit")]
# the padded sums run in another order: rounding only, but a gradient of a few numbers is a sum of many
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def both(pair: tuple[str, str], dtype: torch.dtype) -> tuple[Model, Model]:
    """Our model and the reference with its weights."""
    ours = model_of(*pair, dtype=dtype)
    reference = copy.deepcopy(ours)
    use_reference(run_config(*pair), reference)
    return ours, reference


def output_error(ours: Model, reference: Model, dtype: torch.dtype) -> float:
    _, _, level, z_t = states(dtype=dtype)
    with torch.no_grad():
        return relative_error(*(m.predict(z_t, level, generator(1)) for m in (ours, reference)))


def gradients(model: Model, dtype: torch.dtype) -> dict[str, Tensor]:
    x0, _, _, _ = states(dtype=dtype)
    model.zero_grad(set_to_none=True)
    training_loss(model, x0, Streams(0).at(0)).mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradient_error(ours: Model, reference: Model, dtype: torch.dtype) -> float:
    """The largest over the parameters, each relative to its own gradient."""
    a, b = gradients(ours, dtype), gradients(reference, dtype)
    assert a.keys() == b.keys()
    # a gradient that vanishes identically (of the readout of a dropped channel, of keys' biases) is no scale
    scale = max(g.abs().max() for g in b.values())
    return max(relative_error(a[name], g) for name, g in b.items() if g.abs().max() > 1e-6 * scale)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_outputs_are_those_of_the_padded_reference(pair, precision):
    assert output_error(*both(pair, precision), precision) < TOLERANCE[precision]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_gradients_are_those_of_the_padded_reference(pair, precision):
    assert gradient_error(*both(pair, precision), precision) < TOLERANCE[precision]


def test_egnn_in_many_chunks_is_the_padded_reference(monkeypatch):
    """Chunks of a few atoms: remainders, and molecules cut between atoms."""
    monkeypatch.setattr(chunks, "CACHED", 16 * 40)
    monkeypatch.setattr(chunks, "SHARED", 0)
    ours, reference = both(("edm", "egnn"), torch.float32)
    install(ours)
    assert output_error(ours, reference, torch.float32) < TOLERANCE[torch.float32]
    assert gradient_error(ours, reference, torch.float32) < TOLERANCE[torch.float32]


def heavier(module: nn.Module) -> None:
    """One weight of the last layer of each network 0.1 % off."""
    for name in ("readout", "head", "matrix"):
        for inner in module.modules():
            if (layer := getattr(inner, name, None)) is not None:
                layer.weight.data.view(-1)[0] *= 1.001


def unmasked(module: nn.Module) -> None:
    """Padded atoms take part: what the released code does with its biases."""
    for inner in module.modules():
        if type(inner).__name__ == "PaddedPairEmbedding":
            inner.forward = lambda x, mask, inner=inner: type(inner).forward(inner, x, torch.ones_like(mask))
        if type(inner).__name__ == "PaddedEGNNBlock":
            inner.forward = lambda h, x, d0, row, col, nodes, edges, inner=inner: type(inner).forward(
                inner, h, x, d0, row, col, nodes, torch.ones_like(edges)
            )


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("spoil", [heavier, unmasked])
def test_a_reference_that_is_slightly_wrong_is_refused(pair, spoil: Callable[[nn.Module], None]):
    ours, reference = both(pair, torch.float32)
    spoil(reference)
    assert output_error(ours, reference, torch.float32) > TOLERANCE[torch.float32]
    assert gradient_error(ours, reference, torch.float32) > TOLERANCE[torch.float32]
