"""Ranks and micro-batches train on shares of one batch; errors of a rank reach the run."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import FACTS, fitting_pairs, run_config, structures
from torch import Tensor

from bench.config.run import RunConfig
from bench.records.store import disk_error, read_steps
from bench.registry import methods
from bench.run import spawn, train
from bench.run.batches import Batches
from bench.run.checkpoint import about_of
from bench.run.distributed import Ranks
from bench.run.model import Model
from bench.run.optimiser import TrainingState
from bench.streams import StepStreams, Streams

# ---------------------------------------------------------------------- errors


def fail(code: int, slow: bool) -> None:
    """Rank 1 fails; the other one ends in an error of its own, as when it loses its connection."""
    if Ranks.here().rank == 1:
        time.sleep(3 * slow)
        raise OSError(code, os.strerror(code))
    time.sleep(3 * (not slow))
    raise RuntimeError("lost the connection")


def test_a_full_disk_is_told_whichever_rank_ends_first():
    with pytest.raises(OSError, match="No space left on device") as caught:
        spawn.start(fail, 2, "cpu", errno.ENOSPC, False)
    assert disk_error(caught.value)


def test_another_error_is_not_one_of_the_disk():
    with pytest.raises(RuntimeError, match=r"rank \d of 2: ") as caught:
        spawn.start(fail, 2, "cpu", errno.EIO, False)
    assert disk_error(caught.value) is None


# ---------------------------------------------------------------------- shares of a batch

PAIRS = [(m, b) for m, b in fitting_pairs() if methods[m].build.weights_of is None]
TRAIN = structures([5, 3, 7, 4, 6, 5, 8, 3, 4, 6, 7, 5], seed=8)
VALID = structures([4, 6, 5], seed=9)


def config(method: str, backbone: str, **changes: Any) -> RunConfig:
    settings = {"n_steps": 6, "batch_size": 6, "lr": 1e-3, "log_every": 1, "valid_every": 100, "n_valid": 3}
    return run_config(method, backbone, **{**settings, "ema_decay": 0.9, "checkpoint_seconds": 0.0, **changes})


def shares(model: Model, n: int, step: int = 3) -> list[tuple[Any, StepStreams]]:
    batches = Batches(TRAIN, model.task, 12, 0)
    return [(batches(step, share, n), Streams(0).at(step, share)) for share in range(n)]


def test_share_zero_of_one_is_the_batch_and_its_draws():
    """Other shares are other rows, and draw from streams of their own."""
    model = Model.build(config("plain", "dit"), FACTS)
    batches, streams = Batches(TRAIN, model.task, 6, 0), Streams(0)
    assert torch.equal(batches(2).x, batches(2, 0, 1).x)
    assert streams.at(2) == streams.at(2, 0)
    noise = [torch.randn(4, generator=streams.at(2, share).noise) for share in (0, 0, 1, 2)]
    assert torch.equal(noise[0], noise[1])
    assert len(torch.cat(noise[1:]).unique()) == 12
    rows = [batches.in_order(2)[share::3].tolist() for share in range(3)]
    assert sorted(i for row in rows for i in row) == sorted(batches.indices(2).tolist())
    for share in range(3):
        assert torch.equal(batches(2, share, 3).x, model.task.encode(TRAIN.select(np.array(rows[share]))).x)


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_accumulated_gradients_are_those_of_the_mean_over_micro_batches(method, backbone):
    """Losses stand share after share. Control: other shares of the draws give other gradients."""
    cfg = config(method, backbone)
    model = Model.build(cfg, FACTS)

    def gradients(micro_batches: list[tuple[Any, StepStreams]]) -> tuple[Tensor, Tensor]:
        model.zero_grad(set_to_none=True)
        state = TrainingState.at_start(model.named_weights(), cfg.train)
        state.update = lambda *_: (torch.zeros(()), torch.zeros(()))  # type: ignore[method-assign]
        clean, rngs = map(list, zip(*micro_batches, strict=True))
        losses, *_ = train.training_step(train.BatchLoss(model), clean, rngs, cfg.train, state, 0.0)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        return losses, torch.cat([g.flatten() for g in found])

    losses, accumulated = gradients(shares(model, 3))
    alone = [gradients([one]) for one in shares(model, 3)]
    mean = torch.stack([gradient for _, gradient in alone]).mean(0)
    torch.testing.assert_close(losses, torch.cat([loss for loss, _ in alone]), rtol=1e-6, atol=1e-6)
    assert (accumulated - mean).norm() < 1e-5 * mean.norm()
    swapped = [(clean, rng) for (clean, _), (_, rng) in zip(shares(model, 3), shares(model, 3)[::-1], strict=True)]
    assert (gradients(swapped)[1] - mean).norm() > 1e-3 * mean.norm()


def trained(folder: Path, cfg: RunConfig) -> list[float]:
    train.train(cfg, Model.build(cfg, FACTS), TRAIN, VALID, folder)
    return [line["loss"] for line in read_steps(folder / "steps.jsonl")]


def on_a_rank(folder: str, method: str, wrong: str) -> None:
    """What each of two ranks does; `wrong` is a control."""
    torch.set_num_threads(1)
    cfg = config(method, "dit", clip="queue", n_processes=2)
    if wrong == "other seeds":
        cfg.seed = Ranks.here().rank
    trained(Path(folder), cfg)


@pytest.mark.parametrize("wrong", ["", "other seeds"])
def test_two_ranks_train_as_two_micro_batches(wrong, tmp_path):
    """The same shares with the same draws: losses to 1e-5. Control: ranks with different seeds."""
    alone = trained(tmp_path / "alone", config("symdiff", "dit", clip="queue", accumulate=2))
    assert alone != pytest.approx(trained(tmp_path / "whole", config("symdiff", "dit", clip="queue")), rel=1e-3)
    spawn.start(on_a_rank, 2, "cpu", str(tmp_path / "two"), "symdiff", wrong)
    lines = read_steps(tmp_path / "two/steps.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert [line["network_calls"] for line in lines] == [1.0] * 6
    assert (alone == pytest.approx([line["loss"] for line in lines], rel=1e-5)) == (not wrong)
    if not wrong:  # rank 0 alone has written: one line for each step, one state
        assert about_of(tmp_path / "two/state.safetensors")["step"] == 6
        one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("alone", "two"))
        assert all(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-4) for name in one)


def test_batches_that_cannot_be_shared_equally_are_refused(tmp_path):
    with pytest.raises(train.TrainingError, match="a batch of 12 molecules cannot be cut into 8 equal shares"):
        trained(tmp_path, config("plain", "dit", batch_size=40, accumulate=8))
    with pytest.raises(train.TrainingError, match=r"started on 1 ranks, expected train\.n_processes = 2"):
        trained(tmp_path, config("plain", "dit", n_processes=2))


def test_shares_and_steps_are_part_of_the_identity():
    """Control: what is logged is not."""
    one = config("plain", "dit").identity("data")
    others = [{"accumulate": 2}, {"n_processes": 2}, {"n_steps": 7}]
    assert len({one, *(config("plain", "dit", **change).identity("data") for change in others)}) == 4
    assert config("plain", "dit", log_every=2).identity("data") == one
