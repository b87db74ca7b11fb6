"""A full, read-only or exhausted disk: one line, nothing written before is damaged, and the run goes on afterwards."""

import errno
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from faults.disk import mount, tmpfs
from safetensors.torch import load_file
from support import FACTS, run_config, structures
from torch import Tensor

from bench.config.run import RunConfig
from bench.records.store import read_steps
from bench.run.checkpoint import read_tensors
from bench.run.model import Model
from bench.run.train import train

TRAIN = structures([5, 3, 7, 4, 6, 5, 8, 3, 4, 6, 7, 5], seed=8)
VALID = structures([4, 6, 5], seed=9)
FAULTS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def config(n_steps: int = 3) -> RunConfig:
    settings = {"batch_size": 4, "lr": 1e-3, "cooldown_fraction": 0.5, "ema_decay": 0.9, "n_valid": 3}
    return run_config("plain", "dit", n_steps=n_steps, log_every=1, checkpoint_seconds=0.0, **settings)


def trained(folder: Path, cfg: RunConfig) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    train(cfg, Model.build(cfg, FACTS), TRAIN, VALID, folder)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_steps(folder / "steps.jsonl")]
    return load_file(folder / "state.safetensors"), lines


def same(a: tuple[dict[str, Tensor], list], b: tuple[dict[str, Tensor], list]) -> bool:
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


@contextmanager
def failing(at: int) -> Iterator[list[int]]:
    """The given call of those that write (making a temporary file, syncing, renaming) and all after it fail."""
    count = [0]

    def refuse(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] >= at:
                code = FAULTS[at % len(FAULTS)]
                raise OSError(code, os.strerror(code))
            return original(*args, **kwargs)

        return call

    with (
        mock.patch.object(tempfile, "mkstemp", refuse(tempfile.mkstemp)),
        mock.patch.object(os, "fsync", refuse(os.fsync)),
        mock.patch.object(Path, "replace", refuse(Path.replace)),
    ):
        yield count


def readable(folder: Path) -> list[str]:
    """Checkpoints that are there; each must be whole."""
    found = sorted(folder.glob("*.safetensors"))
    for path in found:
        read_tensors(path)
    return [path.name for path in found]


def test_a_disk_that_fails_at_any_write_loses_nothing(tmp_path):
    """Every place where training writes, one after the other; the last round is without a fault."""
    straight = trained(tmp_path / "straight", config())
    kept = 0
    for at in itertools.count(1):
        folder, raised = tmp_path / str(at), None
        with failing(at) as count:
            try:
                trained(folder, config())
            except OSError as error:
                raised = error
        if raised is None:
            break
        assert "could not write" in str(raised)
        assert len(str(raised).splitlines()) == 1
        assert raised.errno == FAULTS[at % len(FAULTS)]
        found = readable(folder) if folder.exists() else []
        assert bool(found) >= bool(kept)  # once there was a checkpoint, there always is one
        kept = len(found)
        assert same(trained(folder, config()), straight), at
    assert count[0] == at - 1 > 20


def test_another_result_would_be_seen(tmp_path):
    """Control of the comparison, and of the faults: a writer that hides them is found out."""
    straight = trained(tmp_path / "straight", config())
    assert not same(trained(tmp_path / "longer", config(4)), straight)
    with failing(1), mock.patch("bench.run.train.write_atomically"), pytest.raises(OSError, match="could not write"):
        trained(tmp_path / "hidden", config())


@pytest.mark.slow
def test_a_full_and_a_read_only_file_system(tmp_path):
    """A tmpfs with room for two checkpoints and a half, then a larger one, then one that is read-only."""
    straight = trained(tmp_path / "straight", config())
    size = (tmp_path / "straight" / "state.safetensors").stat().st_size
    disk = tmp_path / "disk"
    try:
        with tmpfs(disk, int(2.5 * size)):
            with pytest.raises(OSError, match="No space left on device: could not write"):
                trained(disk / "run", config())
            assert readable(disk / "run")
            mount(disk, "remount", f"size={20 * size}")
            assert same(trained(disk / "run", config()), straight)
            mount(disk, "remount", "ro")
            with pytest.raises(OSError, match="Read-only file system: could not write"):
                trained(disk / "other", config())
            assert readable(disk / "run")
    except PermissionError as error:
        pytest.skip(str(error))
