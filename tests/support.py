"""What tests share beside the checks of `bench.run.contract`, which they find here too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.diffusion.likelihood import DrawnTimes, Times, stratified, times_at
from bench.diffusion.process import Process
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Centred, Euclidean, Spaces
from bench.geometry.state import State
from bench.records.values import Value
from bench.registry import measures
from bench.run.contract import (  # noqa: F401
    ELEMENTS,
    ELEMENTS_OF_GROUPS,
    FACTS,
    GROUP_NAMES,
    MEAN_ATOMS,
    SIZES,
    TOLERANCE,
    Z_MAX,
    atoms_of,
    core,
    fitting_pairs,
    for_molecules,
    generator,
    level_of,
    model_of,
    orthogonal,
    permutation,
    permuted,
    plug_in,
    randomise,
    recorded_draws,
    relative_error,
    replayed_draws,
    run_config,
    states,
    structures,
    subset,
    turned,
    two_sample_z,
    z_score,
)
from bench.run.evaluate import subject_of
from bench.run.model import Model
from bench.structures.dataset import DataSet


def covering(pairs: list[tuple[str, str]]) -> list[Any]:
    """Parameters (method, backbone) of a test of what every pair has: slow, but for pairs that bring a new method or a
    new backbone."""
    seen: set[str] = set()
    found = []
    for pair in pairs:
        found.append(pytest.param(*pair, marks=[pytest.mark.slow] * (seen >= set(pair))))
        seen |= set(pair)
    return found


def noised(clean: State, z_t: State, level: Level) -> Noised:
    """Two states as the hooks of a method see them: the noise is what lies between them."""
    spaces = Spaces({"x": Centred(3), "h": Euclidean(clean.h.shape[1])})
    return Noised(clean, spaces.displacement(z_t, clean, level), z_t, level, spaces)


def likelihood_values(model: Model, data: DataSet, **options: Any) -> dict[str, Value]:
    """What the measure `likelihood` finds of a model, by name."""
    entry = measures["likelihood"]
    subject = subject_of(run_config("plain", "egnn"), model, data)
    return {value.name: value for value in entry.build(subject, entry.config(**options))}


def drawn_times(process: Process, n: int, seed: int, times: Times = Times.UNIFORM) -> DrawnTimes:
    """Stratified times of the bound for n molecules."""
    return times_at(process.path, times, stratified(n, generator(seed)))


def with_another_term(source: Path, right: str, wrong: str, folder: Path) -> Path:
    """A copy of a C file, with the headers beside it, in which one term is another: a control."""
    text = source.read_text()
    assert right in text
    for header in source.parent.glob("*.h"):
        (folder / header.name).write_text(header.read_text())
    changed = folder / source.name
    changed.write_text(text.replace(right, wrong))
    return changed
