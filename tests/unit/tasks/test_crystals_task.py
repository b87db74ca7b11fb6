"""The task of crystals: encoding, prompts, decoding, its options, and a whole run on the embedded set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from crystal_examples import examples
from support import randomise, structures

from bench.config.run import RunConfig, build
from bench.diffusion.paths import PathName
from bench.diffusion.process import DiffusionConfig
from bench.launch.plan import measure
from bench.records.measured import values_of
from bench.records.store import RunFolder, read_json
from bench.registry import tasks
from bench.run.batches import load_data
from bench.run.execute import execute
from bench.run.model import Model
from bench.run.sample import in_order, sample_prompt
from bench.run.timing import time_steps
from bench.structures.dataset import DataSet, Facts
from bench.structures.prompts import HASHED, Described, described
from bench.structures.structures import Structures
from bench.tasks.crystals import Crystals, judged_crystals

FACTS = Facts((8, 11, 17, 19, 22, 38, 41, 92), 3.5, {2: 2, 5: 2})


def task(facts: Facts = FACTS, **options) -> Crystals:
    entry = tasks["crystals"]
    return entry.build(entry.config(**options), DiffusionConfig(PathName.VARIANCE_EXPLODING), "torus", facts)


def data_set(part: Structures) -> DataSet:
    return DataSet("x", "x", "x", tuple(np.unique(part.numbers).tolist()), part, part, part)


def page(method="plain", backbone: str = "cspnet", **more) -> RunConfig:
    return build(
        RunConfig,
        {
            "study": "tests",
            "task": "crystals",
            "method": method,
            "backbone": {"name": backbone, "size": "tiny"},
            "data": "mini_crystals",
            "diffusion": {"path": "variance_exploding", "n_levels": 19, "parametrisation": "unit"},
            "train": {"n_steps": 4, "batch_size": 8, "n_valid": 8, "log_every": 2, "valid_every": 2},
            "sample": {"n_molecules": 6, "n_steps": 10, "batch_size": 4, "sampler": "predictor_corrector"},
            "measures": {"likelihood": None},
        }
        | more,
    )


def test_states_are_fractions_and_cells_and_come_back():
    made, part = task(), examples()
    state = made.encode(part, dtype=torch.float64)
    assert set(state.parts) == {"frac", "cell"}
    assert state.cell.shape == (4, 9)
    back = made.decode(state)
    assert np.array_equal(back.numbers, part.numbers)
    assert np.allclose(back.positions, part.positions)
    assert np.allclose(back.cells, part.cells)  # type: ignore[arg-type]
    moved = made.decode(made.group.act(made.group.haar(4, torch.Generator().manual_seed(0), torch.float64), state))
    assert not np.allclose(moved.positions, part.positions, atol=0.1)  # control


def test_molecules_are_refused_with_a_line():
    with pytest.raises(ValueError, match="molecules have no cells"):
        task().encode(structures())
    with pytest.raises(ValueError, match="element 101 in the data, expected at most 100"):
        task(dataclasses.replace(FACTS, elements=(8, 101)))
    for option in ("cell_weight", "corrector_step"):
        with pytest.raises(ValueError, match=rf"task\.{option}"):
            task(**{option: 0.0})


def test_plans_are_measured_on_crystals():
    """Sites are counted by the layout; control: positions, by which they were counted, are no part of a state."""
    cfg = page()
    sizes = load_data(cfg).facts.sizes
    assert 8 * min(sizes) <= time_steps(cfg, 1)["atoms"] <= 8 * max(sizes)  # a batch
    assert measure(cfg).keys() >= {"step_seconds", "sample_seconds", "measure_seconds"}
    with pytest.raises(AttributeError, match="has no part 'x'"):
        _ = task().encode(examples()).x


def test_the_cell_weighs_as_published_unless_told():
    assert task().process.weights == {"cell": 3.5 / 3}
    assert task(cell_weight=2.0).process.weights == {"cell": 2.0}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_prompts_ask_for_each_test_crystal_once(batch_size: int):
    """Places name the crystal in the order in which evaluation reads it; sizes ascend; seeds change nothing."""
    part = examples()
    prompts = task().prompts(3, batch_size, seed=5, data=data_set(part))
    places = np.concatenate([prompt.places for prompt in prompts])
    assert np.array_equal(np.sort(places), np.arange(3))
    chosen = judged_crystals(part, 3)
    assert (np.diff(np.concatenate([prompt.sizes for prompt in prompts])) >= 0).all()
    for prompt in prompts:
        ptr = prompt.context.ptr.tolist()
        for k, place in enumerate(prompt.places.tolist()):
            assert np.array_equal(prompt.context.z[ptr[k] : ptr[k + 1]].numpy(), chosen[place][0])
    with pytest.raises(ValueError, match="no data set to take them from"):
        task().prompts(3, 1, 0)


def test_a_sample_depends_on_its_own_place_alone():
    """The same crystal in another batch; control: another seed."""
    cfg = page()
    data = load_data(cfg)
    model = Model.build(cfg, data.facts)

    def drawn(batch_size: int, seed: int = 0) -> Structures:
        settings = dataclasses.replace(cfg.sample, seed=seed)
        prompts = model.task.prompts(6, batch_size, seed, data)
        return in_order(prompts, [sample_prompt(model, prompt, settings) for prompt in prompts])

    one, two, other = drawn(2), drawn(6), drawn(6, seed=1)
    assert np.allclose(one.cells, two.cells, atol=1e-3)  # type: ignore[arg-type]
    assert not np.allclose(one.cells, other.cells, atol=1e-1)  # type: ignore[arg-type]


METHODS = [
    "plain",
    "haar",
    {"name": "orbit_rb", "n_draws": 4},
    {"name": "orbit_rb", "n_draws": 4, "proposal": "local"},
    {"name": "orbit_rb", "n_draws": 4, "proposal": "generator"},
    "orbit_rb_exact",
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_trains_and_samples(method, tmp_path: Path):
    """On the transformer, with measures of symmetry and variance; evaluated where pymatgen is."""
    pytest.importorskip("pymatgen.core")
    pytest.importorskip("smact")
    measures = {
        "likelihood": None,
        "equivariance": {"n_levels": 2, "n_states": 6},
        "variance": {"n_levels": 2, "n_targets": 6, "n_gradients": 3, "n_draws": 3},
    }
    cfg = page(method, "fractions", measures=measures)
    folder = tmp_path / "study" / cfg.run_name(load_data(cfg).fingerprint)
    folder.mkdir(parents=True)
    execute(cfg, folder)
    found = {value.name: value.value for value in values_of(RunFolder(folder))}
    assert {"match_rate", "match_rate_valid", "plausible", "volume_error", "equivariance_error_mean"} <= set(found)
    assert {"target_variance_removed", "target_bias", "gradient_variance"} <= set(found)
    biases = {v.at.get("estimator") for v in values_of(RunFolder(folder)) if v.name == "target_bias"}
    assert {"generator_less", "generator_centred"} <= biases


TEXT = {"task": "crystals_text", "data": {"name": "mini_crystals", "text": "hashed"}}


def test_prompts_carry_the_descriptions_of_their_crystals():
    """Those of the test crystals, in the order of the places; crystals without any are refused with a line."""
    entry = tasks["crystals_text"]
    made = entry.build(entry.config(), DiffusionConfig(PathName.VARIANCE_EXPLODING), "torus", FACTS)
    part = described(examples(), [f"The formula is {name}." for name in ("SrTiO3", "KNbO3", "NaCl", "UO")], HASHED)
    chosen = judged_crystals(part, 4)
    assert isinstance(chosen, Described)
    for prompt in made.prompts(4, 3, 0, data_set(part)):
        assert np.array_equal(prompt.context.text.numpy(), chosen.vectors[prompt.places])
        singles = prompt.context.to_data_list()
        assert [len(one.text) for one in singles] == [1] * len(prompt.places)
    state = made.encode(part, dtype=torch.float64)
    assert state.context is not None
    assert np.array_equal(state.context.text.numpy(), part.vectors)
    with pytest.raises(ValueError, match=r"crystals have none; set data\.text to 'hashed'"):
        made.encode(examples())
    plain = task().encode(part)  # control: the other task reads no description
    assert plain.context is not None
    assert "text" not in plain.context


def test_samples_follow_the_descriptions():
    """Shuffled among the crystals of a batch they give other samples; the same ones give the same."""
    cfg = page(**TEXT)
    data = load_data(cfg)
    assert "stand-in" in data.label
    model = Model.build(cfg, data.facts)
    randomise(model, 0)
    (prompt,) = model.task.prompts(4, 4, 0, data)

    def drawn(text: torch.Tensor) -> Structures:
        context = prompt.context.clone()
        context.text = text
        return sample_prompt(model, dataclasses.replace(prompt, context=context), cfg.sample)

    text = prompt.context.text
    one, again, other = drawn(text), drawn(text.clone()), drawn(text.flip(0))
    assert np.array_equal(one.positions, again.positions)
    assert not np.allclose(one.cells, other.cells, rtol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", ["cspnet", "fractions"])
def test_a_run_with_text_trains_and_is_judged(backbone: str, tmp_path: Path):
    """The data's label says what the encoder is."""
    pytest.importorskip("pymatgen.core")
    pytest.importorskip("smact")
    cfg = page("orbit_rb_exact", backbone, **TEXT)
    folder = tmp_path / "study" / cfg.run_name(load_data(cfg).fingerprint)
    folder.mkdir(parents=True)
    execute(cfg, folder)
    assert "match_rate" in {value.name for value in values_of(RunFolder(folder))}
    assert "stand-in for a text encoder" in read_json(RunFolder(folder).manifest)["data"]["label"]
