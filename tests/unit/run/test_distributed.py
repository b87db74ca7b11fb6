"""Shares of a batch: micro-batches of one rank, several ranks, and how a failing rank is reported."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import FACTS, model_of, run_config, structures

from bench.config.run import RunConfig, build
from bench.records.store import disk_error, read_steps
from bench.registry import PluginFile, methods
from bench.run.batches import Batches, load_data
from bench.run.model import Model
from bench.run.optimiser import TrainingState
from bench.run.spawn import train_on_ranks
from bench.run.train import BatchLoss, TrainingError, train, training_loss, training_step
from bench.streams import Streams

TRAIN = structures([5, 3, 7, 4, 6, 5, 8, 3, 4, 6, 7, 5], seed=8)
VALID = structures([4, 6, 5], seed=9)
SETTINGS = {"n_steps": 4, "batch_size": 8, "lr": 1e-3, "log_every": 1, "valid_every": 2, "n_valid": 8}


# ---------------------------------------------------------------------- micro-batches


def gradient_of(share_of_draws: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradient of the step over two shares, with the streams of the given shares."""
    model = model_of("symdiff", "dit", dtype=torch.float32)
    batches = Batches(TRAIN, model.task, 8, seed=0)
    cfg = run_config("symdiff", "dit", lr=1e-3, clip_norm=1e9)
    state = TrainingState.at_start(model.named_weights(), cfg.train)
    shares, rngs = [batches(3, i, 2) for i in range(2)], [Streams(0).at(3, share) for share in share_of_draws]
    losses, norm, _ = training_step(BatchLoss(model), shares, rngs, cfg.train, state, cfg.train.lr)
    return losses, norm


def test_micro_batches_are_one_batch_with_the_same_draws():
    """Losses, and the gradient of their mean over the whole batch. Control: the other share's draws."""
    losses, norm = gradient_of([0, 1])
    model = model_of("symdiff", "dit", dtype=torch.float32)
    batches = Batches(TRAIN, model.task, 8, seed=0)
    expected = torch.cat([training_loss(model, batches(3, i, 2), Streams(0).at(3, i)) for i in range(2)])
    torch.testing.assert_close(losses, expected.detach())
    expected.mean().backward()
    gradient = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in gradient]).norm())
    other_losses, other_norm = gradient_of([1, 0])
    assert not torch.allclose(other_losses, losses, rtol=1e-3)
    assert not torch.allclose(other_norm, norm, rtol=1e-3)


def test_shares_are_the_batch():
    """Every molecule of a batch lies in one share, and the sizes of shares are alike."""
    batches = Batches(TRAIN, model_of("plain", "dit").task, 8, seed=0)
    whole = batches(1).layout.sizes
    shares = [batches(1, i, 4).layout.sizes for i in range(4)]
    assert [len(sizes) for sizes in shares] == [2] * 4
    assert sorted(torch.as_tensor([n for sizes in shares for n in sizes]).tolist()) == sorted(whole.tolist())


def trained(folder: Path, **settings: Any) -> list[float]:
    """Losses of a short training."""
    cfg = run_config("symdiff", "dit", **(SETTINGS | settings))
    train(cfg, Model.build(cfg, FACTS), TRAIN, VALID, folder)
    return [line["loss"] for line in read_steps(folder / "steps.jsonl")]


def test_accumulated_training_draws_anew_for_each_micro_batch(tmp_path):
    """`train.accumulate` trains, repeatably, on other draws than the whole batch: each micro-batch has its streams."""
    accumulated = trained(tmp_path / "a", accumulate=2)
    assert trained(tmp_path / "b", accumulate=2) == accumulated
    assert trained(tmp_path / "c") != accumulated


def test_a_batch_that_cannot_be_cut_is_one_line(tmp_path):
    with pytest.raises(TrainingError, match=r"8 molecules cannot be cut into 3 equal shares \(train\.n_processes 1"):
        trained(tmp_path, accumulate=3)


# ---------------------------------------------------------------------- several ranks

FAILING = """
import errno, os, time
from dataclasses import dataclass

import torch.distributed as dist

from bench.references import EQUIBENCH
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method


@dataclass
class FailingConfig:
    code: int = 0


@methods.register("failing", FailingConfig)
class Failing(Method):
    \"\"\"Rank 1 fails; the other one ends in an error of its own, as when it loses its connection.\"\"\"

    guarantee = Guarantee.NONE
    references = (EQUIBENCH,)

    def augment(self, x0, rng):
        if dist.get_rank() == 1:
            raise OSError(self.cfg.code, os.strerror(self.cfg.code))
        time.sleep(3)
        raise RuntimeError("lost the connection")
"""


def run_folder(folder: Path, method: Any, **settings: Any) -> RunConfig:
    """A folder with the configuration of a short run on the embedded set."""
    folder.mkdir(parents=True)
    given: dict[str, Any] = {
        "study": "ranks",
        "method": method,
        "backbone": {"name": "dit", "size": "tiny"},
        "data": {"name": "mini", "n_train": 50},
        "train": SETTINGS | {"checkpoint_seconds": 0.0} | settings,
    }
    if method["name"] == "failing":
        path = folder.parent / "failing.py"
        path.write_text(f"# {path}\n{FAILING}")  # a content of its own, since the same is executed once
        file = PluginFile.at(path)
        file.load()
        given["plugins"] = [{"path": file.path, "sha256": file.sha256}]
    cfg = build(RunConfig, given)
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg.to_dict()))
    return cfg


def on_one_rank(folder: Path, **settings: Any) -> None:
    cfg = run_folder(folder, {"name": "symdiff"}, **settings)
    data = load_data(cfg)
    train(cfg, Model.build(cfg, data.facts), data.train, data.valid, folder)


def test_two_ranks_train_as_one_rank_does_in_two_micro_batches(tmp_path):
    """Same shares, same streams: losses and gradients to rounding. Control: one rank with the whole batch.

    Weights are not compared: Adam makes a full step of a gradient that is rounding alone.
    """
    run_folder(tmp_path / "ranks", {"name": "symdiff"}, n_processes=2)
    train_on_ranks(tmp_path / "ranks", 2, "cpu")
    on_one_rank(tmp_path / "micro", accumulate=2)
    on_one_rank(tmp_path / "whole")

    def followed(name: str, key: str) -> list[float]:
        return [line[key] for line in read_steps(tmp_path / name / "steps.jsonl") if key in line]

    for key in ("loss", "grad_norm", "valid_loss"):
        assert followed("ranks", key) == pytest.approx(followed("micro", key), rel=1e-5)
    assert followed("whole", "loss") != pytest.approx(followed("micro", "loss"), rel=1e-3)


@pytest.fixture
def _without_the_plug_in():
    yield
    methods.entries.pop("failing", None)


@pytest.mark.usefixtures("_without_the_plug_in")
@pytest.mark.parametrize(
    ("code", "kind", "line"),
    [(errno.ENOSPC, OSError, "No space left on device"), (errno.EIO, RuntimeError, r"rank \d of 2: ")],
)
def test_a_full_disk_of_one_rank_is_told(code, kind, line, tmp_path):
    """Control: any other error is not one of the disk, and names its rank. Ranks execute the run's plug-ins."""
    run_folder(tmp_path / "run", {"name": "failing", "code": code}, n_processes=2)
    with pytest.raises(kind, match=line) as caught:
        train_on_ranks(tmp_path / "run", 2, "cpu")
    assert (disk_error(caught.value) is not None) == (code == errno.ENOSPC)


def test_ranks_are_as_many_as_configured(tmp_path):
    """As torchrun may be told otherwise."""
    with pytest.raises(TrainingError, match=r"started on 1 ranks, expected train\.n_processes = 2"):
        trained(tmp_path, n_processes=2)


def test_steps_and_shares_are_part_of_the_identity():
    """They change the weights. Control: what is logged does not."""
    one = run_config("plain", "dit").identity("data")
    changes: list[dict[str, Any]] = [{"accumulate": 2}, {"n_processes": 2}, {"n_steps": 7}]
    assert len({one, *(run_config("plain", "dit", **change).identity("data") for change in changes)}) == 4
    assert run_config("plain", "dit", log_every=2).identity("data") == one
