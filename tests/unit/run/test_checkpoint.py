"""Checkpoints hold everything, refuse what does not fit, and come apart cleanly for publication."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.config.run import OptimiserName, TrainConfig
from bench.run.checkpoint import (
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
from bench.run.optimiser import TrainingState


def trained(seed: int, n_steps: int, width: int = 16) -> TrainingState:
    """The state after a few steps from a seed."""
    torch.manual_seed(seed)
    settings = TrainConfig(optimiser=OptimiserName.MUON, ema_decay=0.9)  # both kinds of moments
    state = TrainingState.at_start(dict(nn.Linear(16, width).named_parameters()), settings)
    for _ in range(n_steps):
        for p in state.weights.values():
            p.grad = torch.randn_like(p)
        state.optimiser.step(0.1)
        state.average.update(state.weights)
        state.queue.push(torch.rand(()), state.queue.allowed())
    state.step, state.seconds = n_steps, n_steps / 2
    return state


def tensors_of(state: TrainingState) -> list[torch.Tensor]:
    moments = [state.optimiser.state(p) for p in state.weights.values()]
    kept = [*state.weights.values(), *state.average.shadow.values(), state.queue.norms, state.queue.pushed]
    return kept + [of_one[key] for of_one in moments for key in sorted(of_one)]


def numbers_of(state: TrainingState) -> tuple[int, float]:
    return state.step, state.seconds


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_state_restores_everything(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    saved, other = trained(0, 3), trained(1, 2)
    save_state(path, saved)
    assert not same(tensors_of(saved), tensors_of(other))
    load_state(path, other)
    assert numbers_of(other) == (3, 1.5)
    assert same(tensors_of(saved), tensors_of(other))
    assert about_of(path)["step"] == 3


def test_a_state_also_fits_an_optimiser_that_has_not_stepped(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    saved, fresh = trained(0, 3), trained(1, 0)
    save_state(path, saved)
    load_state(path, fresh)
    assert same(tensors_of(saved), tensors_of(fresh))


def test_published_weights_are_the_average_alone(tmp_path: Path):
    saved, other = trained(0, 3), trained(1, 0)
    save_state(tmp_path / "state.safetensors", saved)
    save_average(tmp_path / "weights.safetensors", tmp_path / "state.safetensors")
    assert all(name.startswith("average/") for name in load_file(tmp_path / "weights.safetensors"))
    assert load_average(tmp_path / "weights.safetensors", other.weights) == 3
    assert all(torch.equal(p, saved.average.shadow[name].half().float()) for name, p in other.weights.items())
    with pytest.raises(CheckpointError, match="does not fit"):
        load_state(tmp_path / "weights.safetensors", other)


def test_faults_are_named(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(CheckpointError, match="train the run first"):
        about_of(path)
    saved = trained(0, 3)
    save_state(path, saved)
    with pytest.raises(CheckpointError, match="does not fit this run's model"):
        load_state(path, trained(0, 0, width=17))
    with pytest.raises(CheckpointError, match="does not fit this run's model"):
        load_average(path, trained(0, 0, width=17).weights)
    content = path.read_bytes()
    for damaged in (content[:-8], content[:20], b"", b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not readable as a checkpoint"):
            load_state(path, saved)
    save_file({"a": torch.zeros(1)}, path)  # a file of safetensors that is not ours
    with pytest.raises(CheckpointError, match="not readable as a checkpoint"):
        about_of(path)


@pytest.mark.parametrize("moment", ["exp_avg", "momentum_buffer", "step"])
def test_moments_of_another_shape_or_type_are_refused(moment: str, tmp_path: Path):
    """They would be read beyond their end, or as other numbers. Control: as they were they are taken."""
    path = tmp_path / "state.safetensors"
    saved = trained(0, 3)
    (state,) = (found for p in saved.weights.values() if moment in (found := saved.optimiser.state(p)))
    right = state[moment]
    for wrong in (right.double(), right.new_zeros(2), right.new_zeros(()) if right.ndim else right.new_zeros(1)):
        state[moment] = wrong
        save_state(path, saved)
        with pytest.raises(CheckpointError, match="has no place"):
            load_state(path, trained(1, 1))
    state[moment] = right
    save_state(path, saved)
    load_state(path, trained(1, 1))


def test_any_flipped_bit_is_noticed_and_changes_nothing(tmp_path: Path):
    """Or harmless: a file in which the flip is not noticed holds the same tensors, step and seconds."""
    path = tmp_path / "state.safetensors"
    saved, fresh = trained(0, 2), trained(1, 1)
    save_state(path, saved)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    places = [rng.randrange(8, header) for _ in range(60)] + [rng.randrange(header, len(content)) for _ in range(60)]
    lines = []
    for place in [*range(8), *places]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        expected = trained(1, 1)
        try:
            load_state(path, fresh)
            expected = saved
        except DamagedError as error:
            lines.append(str(error))
        assert numbers_of(fresh) == numbers_of(expected)
        assert same(tensors_of(fresh), tensors_of(expected))
        fresh = trained(1, 1)
    assert len(lines) > 100
    assert not any("\n" in line for line in lines)


def test_without_the_checksum_a_flipped_bit_would_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Control: with a checksum that sees nothing, the same flips are loaded; and files from before it are read."""
    path = tmp_path / "state.safetensors"
    saved = trained(0, 2)
    monkeypatch.setattr("bench.run.checkpoint._digest", lambda tensors, about: "")
    save_state(path, saved)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    other = trained(1, 1)
    load_state(path, other)
    assert numbers_of(other) == (2, 1.0)
    assert not same(tensors_of(saved), tensors_of(other))
    monkeypatch.undo()
    tensors = load_file(path)
    save_file(tensors, path, {"equibench": '{"step": 3, "seconds": 1.5}'})
    load_state(path, other)
    assert numbers_of(other) == (3, 1.5)


def test_the_state_before_is_kept_and_each_is_whole(tmp_path: Path):
    path, keep = tmp_path / "state.safetensors", tmp_path / "previous.safetensors"
    saved = trained(0, 3)
    for step in (1, 2, 3):
        saved.step = step
        save_state(path, saved, keep=keep)
        kept = [about_of(p)["step"] for p in (path, keep) if p.exists()]
        assert kept == ([step, step - 1] if step > 1 else [step])
    tensors, about = read_tensors(keep)
    write_tensors(tmp_path / "copy.safetensors", tensors, about)
    assert (tmp_path / "copy.safetensors").read_bytes() == keep.read_bytes()
