"""SO(3) x Aut: the posterior mean over rotations and automorphisms, against enumeration and against draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conformer_examples import ensembles
from support import Z_MAX, generator, relative_error
from torch import Tensor

from bench.diffusion.process import DiffusionConfig
from bench.geometry.automorphisms import RotationsAndAutomorphisms
from bench.geometry.groups import SO3
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.registry import tasks
from bench.structures.dataset import Facts
from bench.symmetry.orbit import OrbitTargetConfig, Proposal, orbit_target

PLACES = np.array([1, 0, 4, 7])  # of groups of 6, 2, 2 and 2


def noised_states(t: float) -> Noised:
    part = ensembles(1).select(PLACES)
    entry = tasks["conformers"]
    facts = Facts(tuple(np.unique(part.numbers).tolist()), 10.0, {10: 1})
    task = entry.build(entry.config(), DiffusionConfig(), "SO3_automorphisms", facts)
    clean = task.encode(part, dtype=torch.float64)
    level = task.process.path.at(torch.full((len(clean),), round(1000 * t)), torch.float64)
    noise = task.process.noise(clean.layout, generator(0), torch.float64, clean.context)
    return task.process.noised(clean, noise, level)


def permuted(noised: Noised, column: int) -> Noised:
    """The same z_t, with the clean state permuted by an automorphism of each molecule."""
    order = noised.clean.context["automorphisms"][:, column]  # type: ignore[index]
    clean = noised.clean.replace(x=noised.clean.x[order])
    noise = noised.spaces.displacement(noised.z_t, clean, noised.level)
    return Noised(clean, noise, noised.z_t, noised.level, noised.spaces)


def by_enumeration(noised: Noised) -> Tensor:
    """E[x0 | z_t, orbit]: for each automorphism the mean over rotations, weighted by the evidence of its orbit."""
    state, total = noised.clean, torch.zeros_like(noised.clean.x)
    counts = state.context["n_automorphisms"]  # type: ignore[index]
    log_evidence, means = [], []
    for column in range(int(counts.max())):
        one = permuted(noised, column)
        inside = column < counts
        log_evidence.append(SO3().log_evidence(one).masked_fill(~inside, float("-inf")))
        means.append(one.clean_of(SO3().posterior_mean(one)).x)
    weights = torch.stack(log_evidence).softmax(0)
    for weight, mean in zip(weights, means, strict=True):
        total = total + state.per_atom(weight)[:, None] * mean
    return total


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_posterior_mean_is_that_of_the_enumerated_group(t: float):
    """Control: the mean over rotations alone is another one."""
    noised = noised_states(t)
    found = noised.clean_of(RotationsAndAutomorphisms().posterior_mean(noised)).x
    expected = by_enumeration(noised)
    assert relative_error(found, expected) < 1e-9
    if t > 0.2:
        assert relative_error(noised.clean_of(SO3().posterior_mean(noised)).x, expected) > 1e-2


def test_posterior_mean_knows_of_the_clean_state_its_orbit_alone():
    """Exchanged by an automorphism, it has the same target. Control: not under rotations alone."""
    noised = noised_states(0.6)
    other = permuted(noised, 1)
    group = RotationsAndAutomorphisms()
    a, b = (n.clean_of(group.posterior_mean(n)).x for n in (noised, other))
    assert relative_error(b, a) < 1e-9
    a, b = (n.clean_of(SO3().posterior_mean(n)).x for n in (noised, other))
    assert relative_error(b, a) > 1e-2
    assert relative_error(group.log_evidence(other), group.log_evidence(noised)) < 1e-9
    assert relative_error(SO3().log_evidence(other), SO3().log_evidence(noised)) > 1e-4


@pytest.mark.parametrize("proposal", [Proposal.UNIFORM, Proposal.LOCAL])
def test_sampled_average_approaches_it(proposal: Proposal):
    """Many draws from both groups. Control: draws of rotations alone do not."""
    noised = noised_states(0.8)
    cfg = OrbitTargetConfig(n_draws=2000, proposal=proposal, n_permutations=200, include_generator=False)
    expected = by_enumeration(noised)

    def deviation(group: SO3) -> float:
        return relative_error(noised.clean_of(orbit_target(noised, group, generator(1), cfg).noise).x, expected)

    assert deviation(RotationsAndAutomorphisms()) < 0.1
    assert deviation(SO3()) > 0.3


def test_automorphisms_are_drawn_uniformly():
    """Of each molecule its own; the first is the identity where the generating element is included."""
    state = noised_states(0.5).clean
    n = 12_000
    order = RotationsAndAutomorphisms().exchanges(state, n, generator(2), include_identity=True)
    atoms = torch.arange(state.layout.n_total)
    assert torch.equal(order[:, 0], atoms)
    ptr = state.ptr.tolist()
    context = state.context
    assert context is not None
    for k, size in enumerate(context["n_automorphisms"].tolist()):
        own = slice(ptr[k], ptr[k + 1])
        listed = context["automorphisms"][own, :size].T
        counts = [(element == order[own].T).all(1).sum().item() for element in listed]
        assert sum(counts) == n
        assert max(abs(count - n / size) / (n / size) ** 0.5 for count in counts) < Z_MAX
    free = RotationsAndAutomorphisms().exchanges(state, n, generator(2), include_identity=False)
    assert not torch.equal(free[:, :50], order[:, :1].expand(-1, 50))


def test_a_context_without_automorphisms_is_told():
    noised = noised_states(0.5)
    bare = State(noised.clean.parts, noised.clean.layout)
    with pytest.raises(ValueError, match="needs the automorphisms of bond graphs in the context"):
        RotationsAndAutomorphisms().listed(bare)
