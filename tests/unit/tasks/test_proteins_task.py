"""The task of backbones: encoding and decoding, prompts, groups, every method on both backbones, evaluation."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from chain_files import helix

from bench.config.run import RunConfig, SampleConfig, build
from bench.diffusion.process import DiffusionConfig
from bench.diffusion.sampler import Sampler
from bench.metrics import proteins as metrics
from bench.registry import datasets, tasks
from bench.run.model import Model
from bench.run.sample import in_order, sample_prompt
from bench.run.train import training_loss
from bench.streams import Streams
from bench.structures.chains import ChainAtoms, structures_of
from bench.structures.dataset import DataSet, Facts
from bench.structures.structures import Structures
from bench.tasks.proteins import Proteins


def data(atoms: ChainAtoms = ChainAtoms.CA) -> DataSet:
    entry = datasets["mini_proteins"]
    return entry.build(entry.config(atoms=atoms))


def task(atoms: ChainAtoms = ChainAtoms.CA, group: str = "SO3", **options) -> Proteins:
    entry = tasks["proteins"]
    return entry.build(entry.config(**options), DiffusionConfig(), group, Facts(atoms.elements, 10.0, {9: 1, 12: 2}))


@pytest.mark.parametrize("atoms", ChainAtoms)
def test_states_are_centred_nanometres_and_come_back(atoms: ChainAtoms):
    part = data(atoms).test
    state = task(atoms).encode(part, dtype=torch.float64)
    assert state.mean_over_atoms(state.x).abs().max() < 1e-6
    steps = (state.x[1:] - state.x[:-1]).norm(dim=1)[state.layout.molecule.diff() == 0]
    expected = 0.38 if atoms is ChainAtoms.CA else (0.1458 + 0.1525 + 0.1329) / 3
    assert steps.mean().item() == pytest.approx(expected, abs=0.005)
    back = task(atoms).decode(state)
    assert np.array_equal(back.numbers, part.numbers)
    assert np.allclose(back.positions, np.concatenate([x - x.mean(0) for _, x in part]), atol=1e-4)
    assert not np.allclose(task(atoms, scale_position=1.0).encode(part).x.numpy(), state.x.numpy(), atol=1e-2)


def test_what_is_no_backbone_is_refused_with_a_line():
    with pytest.raises(ValueError, match=r"this data set has the elements \[1, 6\]; choose data 'proteins'"):
        Proteins(tasks["proteins"].config(), DiffusionConfig(), "SO3", Facts((1, 6), 5.0, {5: 1}))
    whole = structures_of([helix(4)])
    with pytest.raises(ValueError, match=r"needs residues of atoms with the nuclear charges \[7, 6, 6\]"):
        task(ChainAtoms.BACKBONE).encode(Structures(whole.numbers[::-1].copy(), whole.positions, whole.ptr))
    with pytest.raises(ValueError, match="'group' is 'SO2', expected SO3 or O3"):
        task(group="SO2")
    with pytest.raises(ValueError, match=r"'task.scale_position' is 0.0"):
        task(scale_position=0.0)


@pytest.mark.parametrize("atoms", ChainAtoms)
def test_prompts_have_known_lengths_and_the_order_along_the_chain(atoms: ChainAtoms):
    for prompt in task(atoms).prompts(20, 8, seed=0):
        assert set(prompt.sizes.tolist()) <= {9, 12}
        ptr = prompt.context.ptr
        assert ptr.diff().tolist() == prompt.sizes.tolist()
        for start, stop in pairwise(ptr.tolist()):
            assert prompt.context.place[start:stop].tolist() == list(range(stop - start))


METHODS = ["plain", "haar", "orbit_rb", "orbit_rb_exact", "symdiff", "symdiff_haar", "frames", "orbit_average"]


def config(method: str, backbone: str = "pairformer", group: str = "SO3", **diffusion: str) -> RunConfig:
    page = {
        "study": "s",
        "task": "proteins",
        "data": "mini_proteins",
        "method": method,
        "backbone": {"name": backbone, "size": "tiny"},
        "group": group,
        "diffusion": {"path": "linear", "parametrisation": "velocity", **diffusion},
    }
    return build(RunConfig, page)


@pytest.mark.parametrize(
    ("method", "backbone", "group", "prior"),
    [
        *((method, "pairformer", group, "gaussian") for method in METHODS for group in ("SO3", "O3")),
        ("edm", "egnn", "SO3", "gaussian"),
        ("orbit_rb_exact", "pairformer", "SO3", "harmonic"),  # springs along the chain
    ],
)
def test_every_method_trains_and_samples(method: str, backbone: str, group: str, prior: str):
    cfg, some = config(method, backbone, group, prior=prior), data()
    model = Model.build(cfg, some.facts)
    clean = model.task.encode(some.train.select(np.arange(6)))
    if model.method.weights_of is None:
        training_loss(model, clean, Streams(0).at(0)).sum().backward()
        assert all(w.grad is None or bool(w.grad.isfinite().all()) for w in model.parameters())
    prompts = model.task.prompts(6, 4, 0)
    few = SampleConfig(n_steps=2, sampler=Sampler.EULER)
    drawn = in_order(prompts, [sample_prompt(model, prompt, few) for prompt in prompts])
    assert len(drawn) == 6
    assert np.isfinite(drawn.positions).all()
    assert set(drawn.numbers.tolist()) == {6}


def test_evaluation_holds_samples_and_held_out_data_against_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The data's row is that of the validation split, computed once. Control: other samples, other values."""
    monkeypatch.setattr(metrics, "N_COMPARED", 2)
    monkeypatch.setattr(metrics, "N_KNOWN", 2)
    some, made = data(), task()
    found = made.evaluate(some.valid, some, tmp_path)
    assert [(v.name, v.value) for v in found.values] == [(v.name, v.value) for v in found.data_values]
    assert len(list(tmp_path.iterdir())) == 1
    other = made.evaluate(some.train.select(np.arange(30)), some, tmp_path)
    assert other.data_values == found.data_values
    assert other.values != found.values
    assert found.bonds is not None
    assert len(found.bonds) == 8
    assert found.bonds[0][-1].tolist() == [int(some.valid.n_atoms[0]) - 2, int(some.valid.n_atoms[0]) - 1, 1]


def test_a_backbone_that_diverged_is_left_out_and_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Control: the others have the values that they had."""
    monkeypatch.setattr(metrics, "N_COMPARED", 2)
    monkeypatch.setattr(metrics, "N_KNOWN", 2)
    some, made = data(), task()
    positions = some.valid.positions.copy()
    positions[some.valid.ptr[5]] = np.nan
    broken, whole = (
        {value.name: value.items for value in made.evaluate(samples, some, tmp_path).values if value.items is not None}
        for samples in (replace(some.valid, positions=positions), some.valid)
    )
    kept = np.arange(len(some.valid)) != 5
    assert broken.keys() == whole.keys()
    for name in whole:
        assert np.isnan(broken[name][5]).all()
        np.testing.assert_array_equal(broken[name][kept], whole[name][kept])
