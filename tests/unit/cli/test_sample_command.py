"""`equibench sample`: what it refuses before it samples, and what it writes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.cli.main import parser
from bench.structures import files
from bench.structures.structures import Structures

HYDROGEN = (np.array([1, 1]), np.array([[0.0, 0, 0], [0.74, 0, 0]]))
BROKEN = (np.array([1, 1]), np.array([[0.0, 0, 0], [np.nan, 0, 0]]))
IRON = (np.array([26, 1]), np.array([[0.0, 0, 0], [1.5, 0, 0]]))
SULPHUR = (np.array([16, 1, 1]), np.array([[0.0, 0, 0], [1.34, 0, 0], [-0.06, 1.34, 0]]))


def sample(monkeypatch, molecules: list[Any], *arguments: str) -> int:
    """The command on a run that draws these molecules."""

    def drawn(n: int, steps: int, seed: int, on_step: Any) -> Structures:
        del n, steps, seed, on_step
        return Structures.from_list(molecules)

    task = SimpleNamespace(prompts=lambda n, batch_size, seed: [None])
    settings = SimpleNamespace(n_steps=5, batch_size=4, sampler="ancestral")
    run = SimpleNamespace(
        cfg=SimpleNamespace(sample=settings),
        model=SimpleNamespace(task=task),
        process=SimpleNamespace(path=None),
        sample=drawn,
    )
    monkeypatch.setattr("bench.run.sample.load_run", lambda folder: run)
    monkeypatch.setattr("bench.diffusion.sampler.require_sampler", lambda *_: None)
    monkeypatch.setattr("bench.diffusion.sampler.n_calls", lambda *_: 5)
    args = parser().parse_args(["sample", "a run", *arguments])
    return args.run(args)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "out.xyz", "--steps", "0"], "at least one molecule and one step"),
        (["-o", "out.xyz", "-n", "0"], "at least one molecule and one step"),
        (["-o", "out.mol2"], "unknown kind of file '.mol2', expected .xyz, .extxyz, .sdf, .npz"),
        (["-o", "out.xyz.gz"], "unknown kind of file '.xyz.gz'"),
        (["-o", "nowhere/out.xyz"], "folder nowhere does not exist"),
        (["-o", "folder.xyz"], "is a folder"),
        (["-o", "closed/out.xyz"], "no permission"),
    ],
)
def test_what_cannot_be_written_is_refused_before_sampling(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("folder.xyz").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "closed")
    Path("closed").mkdir()
    with pytest.raises(ValueError, match=words):
        sample(monkeypatch, "molecules that nobody may ask for", *arguments)  # type: ignore[arg-type]


def test_finite_molecules_are_written_and_the_others_counted(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.xyz"
    assert sample(monkeypatch, [HYDROGEN, BROKEN, HYDROGEN], "-n", "3", "-o", str(out)) == 1
    assert "2 molecules, 5 sampling steps" in capsys.readouterr().out
    assert len(files.read(out)) == 2
    assert sample(monkeypatch, [HYDROGEN], "-n", "1", "-o", str(out)) == 0
    assert "left out" not in capsys.readouterr().out
    out.unlink()
    with pytest.raises(ValueError, match="none of 1 molecules has finite positions"):
        sample(monkeypatch, [BROKEN], "-n", "1", "-o", str(out))
    assert not out.exists()


@pytest.mark.parametrize(("molecule", "n_bonds"), [(HYDROGEN, 1), (SULPHUR, 2), (IRON, 0)])
def test_an_sdf_has_bonds_where_a_rule_knows_them(tmp_path, monkeypatch, caplog, molecule, n_bonds):
    out = tmp_path / "out.sdf"
    assert sample(monkeypatch, [molecule], "-n", "1", "-o", str(out)) == 0
    bonds = files.contents(out).bonds
    assert bonds is not None
    assert bonds[0] is not None
    assert len(bonds[0]) == n_bonds
    assert ("written without bonds" in caplog.text) is (n_bonds == 0)
