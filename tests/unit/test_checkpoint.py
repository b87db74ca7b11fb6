"""Checkpoints hold everything, refuse what does not fit, and come apart cleanly for publication."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.checkpoint import (
    CheckpointError,
    DamagedError,
    about_of,
    load_average,
    load_state,
    read_tensors,
    save_average,
    save_state,
    write_tensors,
)
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
    assert load_state(path, *other.parts()) == (3, 1.5, 1)
    assert all(torch.equal(a, b) for a, b in zip(saved.everything(), other.everything(), strict=True))
    assert about_of(path)["step"] == 3


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
        about_of(path)
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
        about_of(path)


def test_any_flipped_bit_is_noticed_and_changes_nothing(tmp_path: Path):
    """Or harmless: a file in which the flip is not noticed holds the same tensors, step and seconds."""
    path = tmp_path / "state.safetensors"
    saved, fresh = Training(0, 2), Training(1, 2)
    save_state(path, 3, 1.5, *saved.parts(), micro_batches=4)
    content, before = path.read_bytes(), [value.clone() for value in fresh.everything()]
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    places = [rng.randrange(8, header) for _ in range(60)] + [rng.randrange(header, len(content)) for _ in range(60)]
    lines = []
    for place in [*range(8), *places]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        found, expected = None, before
        try:
            found, expected = load_state(path, *fresh.parts()), saved.everything()
        except DamagedError as error:
            lines.append(str(error))
        assert found in (None, (3, 1.5, 4))
        assert all(torch.equal(a, b) for a, b in zip(fresh.everything(), expected, strict=True))
        fresh = Training(1, 2)
    assert len(lines) > 100
    assert not any("\n" in line for line in lines)


def test_without_the_checksum_a_flipped_bit_would_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Control: with a checksum that sees nothing, the same flips are loaded; and files from before it are read."""
    path = tmp_path / "state.safetensors"
    saved = Training(0, 2)
    monkeypatch.setattr("bench.checkpoint._digest", lambda tensors, about: "")
    save_state(path, 3, 1.5, *saved.parts())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    other = Training(1, 2)
    assert load_state(path, *other.parts()) == (3, 1.5, 1)
    assert not all(torch.equal(a, b) for a, b in zip(saved.everything(), other.everything(), strict=True))
    monkeypatch.undo()
    tensors = load_file(path)
    save_file(tensors, path, {"equibench": '{"step": 3, "seconds": 1.5}'})
    assert load_state(path, *other.parts()) == (3, 1.5, 1)


def test_the_state_before_is_kept_and_each_is_whole(tmp_path: Path):
    path, keep = tmp_path / "state.safetensors", tmp_path / "previous.safetensors"
    saved = Training(0, 3)
    for step in (1, 2, 3):
        save_state(path, step, 0.5, *saved.parts(), keep=keep)
        kept = [about_of(p)["step"] for p in (path, keep) if p.exists()]
        assert kept == ([step, step - 1] if step > 1 else [step])
    tensors, about = read_tensors(keep)
    write_tensors(tmp_path / "copy.safetensors", tensors, about)
    assert (tmp_path / "copy.safetensors").read_bytes() == keep.read_bytes()
