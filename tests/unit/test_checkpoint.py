"""Checkpoints hold everything, refuse what does not fit, and come apart cleanly for publication."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.checkpoint import CheckpointError, load_average, load_state, save_average, save_state, state_step
from bench.config import OptimiserName, TrainConfig
from bench.optimise import MovingAverage, Optimiser, QueueClip


class Training:
    """Everything that a checkpoint covers, after a few steps from a seed."""

    def __init__(self, seed: int, n_steps: int, width: int = 16) -> None:
        torch.manual_seed(seed)
        self.weights: dict[str, nn.Parameter] = dict(nn.Linear(16, width).named_parameters())
        self.average = MovingAverage(self.weights, 0.9)
        self.optimiser = Optimiser(
            self.weights.values(), TrainConfig(optimiser=OptimiserName.MUON)
        )  # both kinds of moments
        self.queue = QueueClip()
        for _ in range(n_steps):
            for p in self.weights.values():
                p.grad = torch.randn_like(p)
            self.optimiser.step(0.1)
            self.average.update(self.weights)
            self.queue.push(torch.rand(()), self.queue.allowed())

    def parts(self) -> tuple:
        return self.weights, self.average, self.optimiser, self.queue

    def everything(self) -> list[torch.Tensor]:
        moments = [self.optimiser.state(p)[k] for p in self.weights.values() for k in sorted(self.optimiser.state(p))]
        return [*self.weights.values(), *self.average.shadow.values(), *moments, self.queue.norms, self.queue.pushed]


def test_a_state_restores_everything(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    saved, other = Training(0, 3), Training(1, 2)
    save_state(path, 3, 1.5, *saved.parts())
    assert not all(torch.equal(a, b) for a, b in zip(saved.everything(), other.everything(), strict=True))
    assert load_state(path, *other.parts()) == (3, 1.5)
    assert all(torch.equal(a, b) for a, b in zip(saved.everything(), other.everything(), strict=True))
    assert state_step(path) == 3


def test_a_state_also_fits_an_optimiser_that_has_not_stepped(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    saved, fresh = Training(0, 3), Training(1, 0)
    save_state(path, 3, 1.5, *saved.parts())
    load_state(path, *fresh.parts())
    assert all(torch.equal(a, b) for a, b in zip(saved.everything(), fresh.everything(), strict=True))


def test_published_weights_are_the_average_alone(tmp_path: Path):
    saved, other = Training(0, 3), Training(1, 0)
    save_state(tmp_path / "state.safetensors", 3, 1.5, *saved.parts())
    save_average(tmp_path / "weights.safetensors", tmp_path / "state.safetensors")
    assert all(name.startswith("average/") for name in load_file(tmp_path / "weights.safetensors"))
    assert load_average(tmp_path / "weights.safetensors", other.weights) == 3
    assert all(torch.equal(p, saved.average.shadow[name]) for name, p in other.weights.items())
    with pytest.raises(CheckpointError, match="does not fit"):
        load_state(tmp_path / "weights.safetensors", *other.parts())


def test_faults_are_named(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(CheckpointError, match="train the run first"):
        state_step(path)
    saved = Training(0, 3)
    save_state(path, 3, 1.5, *saved.parts())
    with pytest.raises(CheckpointError, match="does not fit this run's model"):
        load_state(path, *Training(0, 0, width=17).parts())
    with pytest.raises(CheckpointError, match="does not fit this run's model"):
        load_average(path, Training(0, 0, width=17).weights)
    content = path.read_bytes()
    for damaged in (content[:-8], content[:20], b"", b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not readable as a checkpoint"):
            load_state(path, *saved.parts())
    save_file({"a": torch.zeros(1)}, path)  # a file of safetensors that is not ours
    with pytest.raises(CheckpointError, match="not readable as a checkpoint"):
        state_step(path)
