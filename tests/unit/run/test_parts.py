"""A batch cut into parts gives the losses and gradients of the whole: micro-batches after out of memory, and several
processes. For every registered method that trains.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import ELEMENTS, MEAN_ATOMS, fitting_pairs, run_config, structures
from torch import Tensor

from bench.config.run import ConfigError, RunConfig
from bench.geometry.state import State
from bench.records.store import read_steps
from bench.registry import methods
from bench.run import parallel, train
from bench.run.checkpoint import about_of
from bench.run.model import Model
from bench.run.parallel import Processes
from bench.run.parts import Part
from bench.streams import Streams

PAIRS = [(m, b) for m, b in fitting_pairs() if methods[m].build.weights_of is None]
TRAIN = structures([5, 3, 7, 4, 6, 5, 8, 3, 4, 6, 7, 5], seed=8)
VALID = structures([4, 6, 5], seed=9)


def config(method: str, backbone: str, **changes: Any) -> RunConfig:
    settings = {"n_steps": 6, "batch_size": 6, "lr": 1e-3, "log_every": 1, "valid_every": 100, "n_valid": 3}
    return run_config(method, backbone, **{**settings, "ema_decay": 0.9, "checkpoint_seconds": 0.0, **changes})


def losses_and_gradients(model: Model, x0: State, step: int, n: int) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    settings = run_config("plain", "dit").train
    rng = Streams(0).at(step)
    losses = train.gradients(train.BatchLoss(model), x0, rng, settings, n, Processes())
    grads = {name: p.grad.clone() for name, p in model.named_weights().items() if p.grad is not None}
    return losses, grads


def difference(a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]]) -> float:
    """Largest relative difference of losses, and of gradients by the norm of all of them."""
    assert a[1].keys() == b[1].keys()
    whole = torch.cat([g.flatten() for g in a[1].values()])
    parts = torch.cat([g.flatten() for g in b[1].values()])
    of_losses = ((a[0] - b[0]).abs() / a[0].abs()).max().item()
    return max(of_losses, ((whole - parts).norm() / whole.norm()).item())


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_micro_batches_give_the_losses_and_gradients_of_the_whole_batch(method, backbone):
    """Each molecule's loss, and the gradient, to rounding; other draws give others."""
    model = Model.build(config(method, backbone), ELEMENTS, MEAN_ATOMS)
    x0 = model.diffusion.encode(TRAIN)
    whole = losses_and_gradients(model, x0, 3, 1)
    for n in (2, 5, len(x0)):
        assert difference(whole, losses_and_gradients(model, x0, 3, n)) < 1e-4
    assert difference(whole, losses_and_gradients(model, x0, 4, 1)) > 1e-2  # other draws


@pytest.mark.parametrize("method", ["symdiff", "frames"])
def test_parts_that_draw_for_themselves_are_seen(method, monkeypatch):
    """Control: the same comparison refuses draws of the part's own size."""
    model = Model.build(config(method, "dit"), ELEMENTS, MEAN_ATOMS)
    x0 = model.diffusion.encode(TRAIN)
    whole = losses_and_gradients(model, x0, 3, 1)
    monkeypatch.setattr(Part, "draws", lambda self, rng: torch.enable_grad())
    assert difference(whole, losses_and_gradients(model, x0, 3, 2)) > 1e-2


def test_draws_that_cannot_be_cut_are_refused():
    whole = structures([3, 4, 5, 6])
    x0 = Model.build(config("plain", "dit"), ELEMENTS, MEAN_ATOMS).diffusion.encode(whole)
    part, rng = Part(x0.layout, 1, 2), torch.Generator().manual_seed(0)
    expected = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with part.draws(rng):
        assert torch.equal(torch.randn(2, 3, generator=rng), expected[[1, 3]])
        assert torch.randn((10, 2), generator=rng).shape == (10, 2)  # one row for each of 4 + 6 atoms
        for draw in (
            lambda: torch.randn(7, 3, generator=rng),
            lambda: torch.randperm(2, generator=rng),
            lambda: torch.empty(2).normal_(generator=rng),
        ):
            with pytest.raises(ValueError, match="in one process"):
                draw()
        assert torch.randn(7, generator=torch.Generator()).shape == (7,)  # another stream is no concern of the part


def trained(folder: Path, cfg: RunConfig) -> tuple[list[float], dict[str, Tensor]]:
    model = Model.build(cfg, ELEMENTS, MEAN_ATOMS)
    train.train(cfg, model, TRAIN, VALID, folder)
    return [line["loss"] for line in read_steps(folder / "steps.jsonl")], load_file(folder / "state.safetensors")


# ---------------------------------------------------------------------- out of memory


class Memory:
    """Holds `most` molecules at a time; a larger loss is out of memory, half of the time after a backward pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.sizes: list[int] = []
        forward = train.BatchLoss.forward

        def limited(module: train.BatchLoss, x0: State, rng: Any, part: Part | None) -> Tensor:
            size = len(x0) if part is None else len(part)
            self.sizes.append(size)
            losses = forward(module, x0, rng, part)
            if size > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return losses

        monkeypatch.setattr(train.BatchLoss, "forward", limited)


def test_out_of_memory_goes_on_in_micro_batches(tmp_path, monkeypatch, caplog):
    """Same losses to rounding, one line for each halving, kept by checkpoints; by default an error."""
    caplog.set_level(logging.WARNING)
    cfg = config("symdiff", "dit")
    reference, _ = trained(tmp_path / "reference", cfg)
    memory = Memory(monkeypatch, most=2)
    with pytest.raises(train.TrainingError, match="out of memory at step 0 with 6 molecules at a time; lower train"):
        trained(tmp_path / "fail", cfg)
    accumulate = config("symdiff", "dit", on_out_of_memory="accumulate")
    losses, _ = trained(tmp_path / "parts", accumulate)
    assert losses == pytest.approx(reference, rel=1e-5)
    assert [r.getMessage().split("; ")[1] for r in caplog.records] == [
        "from here on 2 micro-batches per batch of 6",
        "from here on 4 micro-batches per batch of 6",
    ]
    assert about_of(tmp_path / "parts/state.safetensors")["micro_batches"] == 4
    assert accumulate.identity("x") == cfg.identity("x")
    calls = [line["network_calls"] for line in read_steps(tmp_path / "parts/steps.jsonl")]
    assert calls == [1.0] * 6
    # a resumed run does not run out of memory again
    memory.sizes.clear()
    longer = config("symdiff", "dit", on_out_of_memory="accumulate", n_steps=8)
    trained(tmp_path / "parts", longer)
    assert max(memory.sizes) == 2


def test_out_of_memory_for_a_single_molecule_is_an_error(tmp_path, monkeypatch):
    Memory(monkeypatch, most=0)
    with pytest.raises(train.TrainingError, match="1 molecules at a time, and fewer there are not"):
        trained(tmp_path, config("plain", "dit", on_out_of_memory="accumulate", batch_size=4))


def test_several_processes_do_not_accumulate():
    with pytest.raises(ConfigError, match="'fail' with several processes"):
        config("plain", "dit", on_out_of_memory="accumulate", n_processes=2)


# ---------------------------------------------------------------------- several processes


def in_one_of_two(folder: str, method: str, wrong: str) -> None:
    """What each of two processes does; `wrong` is a control."""
    torch.set_num_threads(1)
    cfg = config(method, "dit", clip="queue")
    rank = parallel.Processes.here().rank
    if wrong == "same slice":
        original = Part.__init__
        Part.__init__ = lambda self, whole, index, n: original(self, whole, 0, n)  # type: ignore[method-assign]
    if wrong == "other seeds":
        cfg.seed = rank
    train.train(cfg, Model.build(cfg, ELEMENTS, MEAN_ATOMS), TRAIN, VALID, Path(folder))


@pytest.mark.parametrize("method", ["symdiff", pytest.param("orbit_rb", marks=pytest.mark.slow)])
@pytest.mark.parametrize("wrong", ["", "same slice", pytest.param("other seeds", marks=pytest.mark.slow)])
def test_two_processes_give_the_losses_of_one(method, wrong, tmp_path):
    """1e-5, losses of all steps; controls: both see the same slice, or have another seed, must be refused."""
    alone, _ = trained(tmp_path / "alone", config(method, "dit", clip="queue"))
    parallel.start(in_one_of_two, 2, "cpu", str(tmp_path / "two"), method, wrong)
    lines = read_steps(tmp_path / "two/steps.jsonl")
    losses = np.array([line["loss"] for line in lines])
    assert [line["step"] for line in lines] == list(range(1, 7))
    error = np.abs(losses / np.array(alone) - 1).max()
    assert (error < 1e-5) == (not wrong), error
    if not wrong:  # rank 0 alone has written: one line for each step, one state
        assert about_of(tmp_path / "two/state.safetensors")["step"] == 6
