"""The measure `isotropy` against laws of directions that are known."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from support import model_of, run_config, structures

from bench.geometry.groups import SO3
from bench.measure.isotropy import STORED, IsotropyConfig, arrows, axes, balance, measure, of_statistic, values_of
from bench.registry import datasets
from bench.run.evaluate import subject_of
from bench.structures.dataset import DataSet
from bench.structures.structures import Structures

MIRROR = np.array([1.0, 1.0, -1.0])


def directions(n: int, D: int, seed: int = 0, towards: float = 0.0) -> np.ndarray:
    """Unit vectors of normal draws about a point at distance `towards`; uniform at 0."""
    v = np.random.default_rng(seed).normal(size=(n, D))
    v[:, 0] += towards
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def turned(molecules: Structures, seed: int = 0, mirrored: bool = False) -> Structures:
    """Each in an orientation of its own."""
    R = SO3().haar(len(molecules), torch.Generator().manual_seed(seed), torch.float64).numpy()
    x = molecules.positions * (MIRROR if mirrored else 1)
    rows = np.einsum("aij,aj->ai", np.repeat(R, molecules.n_atoms, axis=0), x)
    return Structures(molecules.numbers, rows, molecules.ptr)


def copies(n: int, seed: int = 3) -> Structures:
    """One molecule n times, in one orientation."""
    one = structures([7], seed)
    return Structures(np.tile(one.numbers, n), np.tile(one.positions, (n, 1)), np.arange(n + 1) * 7)


def found(molecules: Structures, D: int = 3) -> dict[str, float | None]:
    return {" ".join([v.name, *map(str, v.at.values())]): v.value for v in values_of(molecules, D, {})}


# ---------------------------------------------------------------------- tests of directions


@pytest.mark.parametrize(("test", "D"), [(arrows, 1), (arrows, 2), (arrows, 3), (axes, 2), (axes, 3)])
def test_p_values_of_uniform_directions_are_uniform(test, D):
    """And one in twenty orders is above the floor; control: directions with a preference."""
    uniform = [test(directions(200, D, seed)) for seed in range(400)]
    p = np.array([one.p for one in uniform])
    assert abs((p < 0.5).mean() - 0.5) < 0.1
    assert abs((p < 0.05).mean() - 0.05) < 0.04
    assert abs(np.mean([one.order > one.floor for one in uniform]) - 0.05) < 0.04
    preferred = test(directions(200, D, towards=2.0))
    assert preferred.p < 1e-3
    assert preferred.order > preferred.floor


def test_orders_are_those_of_the_law():
    """Arrows over a half sphere have a mean of 1/2; axes at a fixed angle to z have order P2 of its cosine."""
    rng, n = np.random.default_rng(0), 40_000
    angle = 2 * np.pi * rng.uniform(size=n)

    def around_z(cos: np.ndarray) -> np.ndarray:
        sin = np.sqrt(1 - cos**2)
        return np.stack([sin * np.cos(angle), sin * np.sin(angle), cos], axis=1)

    assert arrows(around_z(rng.uniform(size=n))).order == pytest.approx(0.5, abs=0.01)
    fixed = around_z(np.full(n, np.cos(0.5)))
    assert axes(fixed).order == pytest.approx((3 * np.cos(0.5) ** 2 - 1) / 2, abs=0.01)
    assert arrows(np.tile([[0.0, 0.0, 1.0]], (50, 1))).order == pytest.approx(1.0)
    assert axes(np.tile([[0.0, 0.0, 1.0]], (50, 1))).order == pytest.approx(1.0)
    assert arrows(np.concatenate([fixed, -fixed])).order < 0.01  # control: an axis is no arrow
    assert of_statistic(0.0, 3, 2).order is None


def test_balance_is_the_binomial_test():
    assert balance(np.array([True] * 5 + [False] * 5)) == 1.0
    assert balance(np.array([True] * 10)) == pytest.approx(2 / 2**10)


# ---------------------------------------------------------------------- structures


def test_oriented_structures_are_seen_and_turned_ones_are_not():
    oriented, free = found(copies(300)), found(turned(copies(300)))
    for name in ("first atom", "heavy part", "long axis", "short axis"):
        assert oriented[f"isotropy_order {name}"] == pytest.approx(1.0, abs=1e-6)
        assert oriented[f"isotropy_p {name}"] < 1e-10
        assert free[f"isotropy_p {name}"] > 0.01
        assert free[f"isotropy_order {name}"] < 0.15


def test_numbering_changes_the_first_atom_alone():
    molecules = turned(copies(60))
    order = np.concatenate([np.random.default_rng(i).permutation(7) + 7 * i for i in range(60)])
    shuffled = Structures(molecules.numbers[order], molecules.positions[order], molecules.ptr)
    here, there = found(molecules), found(shuffled)
    changed = {name for name in here if here[name] != pytest.approx(there[name])}
    assert changed
    assert {name.removeprefix("isotropy_").partition(" ")[2] for name in changed} == {"first atom"}


def test_one_hand_is_seen_and_mixed_hands_are_not():
    """Half of the copies mirrored; control: all of one hand, whichever it is."""
    one, other = turned(copies(100)), turned(copies(100), 1, mirrored=True)
    single, mirror, both = found(one), found(other), found(Structures.concatenate([one, other]))
    assert {single["left_handed"], mirror["left_handed"]} == {0.0, 1.0}
    assert max(single["left_handed_p"], mirror["left_handed_p"]) < 1e-10
    assert (both["left_handed"], both["left_handed_p"]) == (0.5, 1.0)


def test_structures_without_a_direction_are_left_out():
    """A tetrahedron of like atoms has no axis, no heavy part and no hand; its first atom has a direction."""
    corners = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    values = found(Structures.from_list([(np.ones(4, np.int64), corners)] * 20))
    assert values["isotropy_order first atom"] == pytest.approx(1.0)
    undefined = [name for name, value in values.items() if value is None]
    assert len(undefined) == 3 * 3 + 2


def test_samples_stand_beside_the_data_as_stored():
    few = structures([5] * 20)
    data = DataSet("test", "test", "test", (1, 6, 7, 8, 9), few, few, copies(30))
    subject = subject_of(run_config("plain", "egnn"), model_of("plain", "egnn"), data, turned(copies(30)))
    values = measure(subject, IsotropyConfig())
    assert len({(v.name, *sorted(v.at.items())) for v in values}) == len(values)
    orders = {(v.at["direction"], v.at.get("of")): v.value for v in values if v.name == "isotropy_order"}
    assert orders["long axis", STORED] == pytest.approx(1.0, abs=1e-5)
    assert orders["long axis", None] < 0.5
    assert measure(subject_of(run_config("plain", "egnn"), model_of("plain", "egnn"), data), IsotropyConfig()) == []


def seen(data: DataSet) -> float:
    """Least p-value of directions over all splits."""
    return min(v for part in data.splits.values() for name, v in found(part).items() if name.startswith("isotropy_p"))


def test_the_option_turned_removes_what_is_seen():
    """From every split; control: the set as stored."""
    data = DataSet("test", "test", "test", (1, 6, 7, 8, 9), copies(100), copies(100, 4), copies(100, 5))
    assert seen(data) < 1e-10
    assert seen(data.turned()) > 1e-3


@pytest.mark.skipif("QM9_DIR" not in os.environ, reason="QM9_DIR names no folder with QM9")
def test_qm9_is_far_from_isotropic_as_stored_and_isotropic_when_turned():
    entry = datasets["qm9"]
    stored, free = (entry.build(entry.config(turned=on)) for on in (False, True))
    for part in stored.splits.values():
        values = found(part)
        for direction in ("first atom", "heavy part", "long axis", "short axis"):
            assert values[f"isotropy_order {direction}"] > 0.1
    assert seen(free) > 1e-3
