"""The task of conformers: prompts, encoding and decoding, groups, evaluation of perfect and mirrored samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conformer_examples import SYMMETRIES, ensembles, records_of
from support import generator, run_config, structures

from bench.config.run import RunConfig, SampleConfig, build
from bench.diffusion.process import DiffusionConfig
from bench.registry import tasks
from bench.run.contract import any_data_set
from bench.run.model import Model
from bench.run.sample import in_order, sample_prompt
from bench.structures.dataset import DataSet, Facts
from bench.structures.ensembles import Ensembles
from bench.structures.perception import collect
from bench.structures.structures import Structures
from bench.tasks.conformers import Conformers, judged_molecules


def task(group: str = "SO3", **options) -> Conformers:
    entry = tasks["conformers"]
    facts = Facts((1, 6, 8, 9), 10.0, {10: 1})
    return entry.build(entry.config(**options), DiffusionConfig(), group, facts)


def data_set(part: Ensembles) -> DataSet:
    return DataSet("x", "x", "x", tuple(np.unique(part.numbers).tolist()), part, part, part)


def uneven() -> Ensembles:
    """1, 3 and 2 conformers."""
    smiles = list(SYMMETRIES)[:3]
    return collect(r for s, n in zip(smiles, (1, 3, 2), strict=True) for r in records_of(s, n))[0]


def test_states_are_scaled_centred_positions_and_come_back():
    made = task(scale_position=2.0)
    part = ensembles()
    state = made.encode(part, dtype=torch.float64)
    assert set(state.parts) == {"x"}
    assert state.mean_over_atoms(state.x).abs().max() < 1e-6
    back = made.decode(state)
    assert np.array_equal(back.numbers, part.numbers)
    centred = np.concatenate([x - x.mean(0) for _, x in part])
    assert np.allclose(back.positions, centred, atol=1e-5)
    assert not np.allclose(task().encode(part).x.numpy(), state.x.numpy(), atol=1e-2)


def test_structures_without_bonds_are_refused_with_a_line():
    with pytest.raises(ValueError, match="needs molecules with bond graphs, and this data set has none"):
        task().encode(structures())


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_prompts_ask_for_twice_the_references_of_each_molecule(batch_size: int):
    """Places name the molecule in the order in which evaluation reads it; sizes ascend; each place occurs once."""
    part = uneven()
    prompts = task().prompts(1000, batch_size, seed=3, data=data_set(part))
    places = np.concatenate([prompt.places for prompt in prompts])
    assert np.array_equal(np.sort(places), np.arange(12))
    sizes = np.concatenate([prompt.sizes for prompt in prompts])
    assert (np.diff(sizes) >= 0).all()
    order = judged_molecules(part, 1000)
    expected = np.repeat(order, 2 * np.bincount(part.molecule)[order])
    for prompt in prompts:
        ptr = prompt.context.ptr.tolist()
        for k, place in enumerate(prompt.places.tolist()):
            atoms = part.graphs.numbers[part.graphs.atoms(int(expected[place]))]
            assert np.array_equal(prompt.context.z[ptr[k] : ptr[k + 1]].numpy(), atoms)
    assert [p.places.tolist() for p in task().prompts(1000, batch_size, 4, data_set(part))] == [
        p.places.tolist() for p in prompts
    ]


def test_fewer_samples_are_for_fewer_whole_molecules():
    part = uneven()
    needed = 2 * np.bincount(part.molecule)[judged_molecules(part, 1000)]
    for n in range(int(needed[0]), 13):
        chosen = judged_molecules(part, n)
        n_drawn = 2 * int(np.isin(part.molecule, chosen).sum())
        assert n_drawn <= n
        assert np.array_equal(judged_molecules(part, n_drawn), chosen)  # evaluation finds them from the samples alone
    with pytest.raises(ValueError, match=r"sample.n_molecules is 1, and the first test molecule needs \d samples"):
        judged_molecules(part, 1)


def test_prompts_need_a_data_set():
    with pytest.raises(ValueError, match="samples for given molecules, and there is no data set"):
        task().prompts(10, 10, 0)


def test_groups_differ_in_what_the_context_lists():
    part = ensembles()
    assert "automorphisms" not in task().encode(part).context
    assert "automorphisms" in task("SO3_automorphisms").encode(part).context
    assert task("SO3_automorphisms", max_automorphisms=5).encode(part).context["n_automorphisms"].max() == 2
    with pytest.raises(ValueError, match="'group' is 'SO2', expected SO3 or SO3_automorphisms or O3"):
        task("SO2")


METHODS = ["plain", "haar", "orbit_rb", "orbit_rb_exact", "frames", "symdiff", "orbit_average"]


@pytest.mark.parametrize("group", ["SO3", "SO3_automorphisms", "O3"])
@pytest.mark.parametrize("method", METHODS)
def test_samples_are_of_the_molecules_asked_for(method: str, group: str):
    """Under every method and group, by a network that has trained nothing. Control: another weight, other positions."""
    part = uneven()
    cfg = model_config(method, group)
    model = Model.build(cfg, data_set(part).facts)
    prompts = model.task.prompts(1000, 7, 0, data_set(part))
    drawn = in_order(prompts, [sample_prompt(model, prompt, SampleConfig(n_steps=2)) for prompt in prompts])
    order = judged_molecules(part, len(drawn))
    expected = np.repeat(order, 2 * np.bincount(part.molecule)[order])
    for k, molecule in enumerate(expected.tolist()):
        assert np.array_equal(drawn[k][0], part.graphs.numbers[part.graphs.atoms(molecule)])
    assert np.isfinite(drawn.positions).all()
    other = [sample_prompt(model, prompt, SampleConfig(n_steps=2, seed=1)) for prompt in prompts]
    assert not np.allclose(in_order(prompts, other).positions, drawn.positions, atol=1e-3)


def model_config(method: str, group: str) -> RunConfig:
    plain = run_config(method, "pairformer")
    return build(
        RunConfig,
        {
            "study": "s",
            "method": plain.method.to_plain(),
            "backbone": {"name": "pairformer", "size": "tiny"},
            "data": any_data_set(),
            "task": "conformers",
            "group": group,
        },
    )


def test_the_data_as_samples_are_perfect_and_mirror_images_are_not(tmp_path: Path):
    """Every reference twice: coverage 1, distance 0, no chirality violated. Mirrored: violated in every chiral one."""
    pytest.importorskip("bench.metrics.conformer_rows")
    part = ensembles()
    data = data_set(part)
    order = judged_molecules(part, 1000)
    index = np.concatenate([np.tile(np.flatnonzero(part.molecule == k), 2) for k in order])
    perfect = Structures(*(getattr(part.select(index), name) for name in ("numbers", "positions", "ptr")))
    values = {v.name: v for v in task().evaluate(perfect, data, tmp_path).values}
    assert values["cov_r_0.1"].value == 1
    assert values["amr_p"].value == pytest.approx(0, abs=1e-3)
    assert values["chirality_violations"].value == 0
    mirrored = dataclasses.replace(perfect, positions=-perfect.positions)
    found = task().evaluate(mirrored, data, tmp_path)
    values = {v.name: v for v in found.values}
    assert values["chirality_violations"].value == 1
    assert found.bonds is not None
    assert {v.name for v in found.data_values} >= {"cov_r_0.1", "amr_p"}


def test_ensembles_of_one_conformer_have_no_halves_and_are_judged_all_the_same(tmp_path: Path):
    """Control: those of three have a row of the data."""
    for n, has_row in ((1, False), (3, True)):
        part = ensembles(n)
        order = judged_molecules(part, 1000)
        index = np.concatenate([np.tile(np.flatnonzero(part.molecule == k), 2) for k in order])
        perfect = Structures(*(getattr(part.select(index), name) for name in ("numbers", "positions", "ptr")))
        found = task().evaluate(perfect, data_set(part), tmp_path)
        assert bool(found.data_values) == has_row
        assert {v.name: v for v in found.values}["amr_p"].value == pytest.approx(0, abs=1e-3)


def test_o3_teaches_mirror_images():
    """Augmented over O(3), half of the examples of a chiral molecule are its mirror image; over SO(3), none is."""
    part = ensembles(1)
    chiral = list(SYMMETRIES).index("C[C@H](O)F")
    state = task().encode(part.select(np.full(200, chiral)), dtype=torch.float64)

    def volumes(group: str) -> torch.Tensor:
        turned = task(group).group
        x = turned.act(turned.haar(200, generator(0), torch.float64), state).x.view(200, -1, 3)
        return torch.linalg.det(x[:, [0, 2, 3]] - x[:, [1]]).sign()

    assert volumes("SO3").unique().tolist() == volumes("SO3")[:1].tolist()
    assert 60 < (volumes("O3") > 0).sum() < 140
