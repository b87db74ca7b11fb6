"""Handedness of helices under SO(3) and O(3), where the law of samples is known.

Data are copies of one right-handed helix. The optimal denoiser is known for either group, and what is sampled with it
has the law of g x0, g uniform on the group: no helix is left-handed under SO(3), and each is with probability one half
under O(3). No network can mend the wrong group, nor can one that commutes with reflections.
"""

from __future__ import annotations

import pytest
import torch
from chain_files import helix

from bench.config.run import RunConfig, build
from bench.diffusion.sampler import Sampler, sample
from bench.geometry.groups import RotationGroup
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.state import State
from bench.metrics.proteins import evaluate_backbones
from bench.run.model import Model, make_task
from bench.structures.chains import structures_of
from bench.structures.dataset import DataSet
from bench.structures.graphs import chains_of
from bench.structures.structures import Structures

N, N_RESIDUES = 256, 16
FLOW = {"path": "linear", "parametrisation": "velocity"}


@pytest.fixture(autouse=True)
def no_alignments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.metrics.proteins.version", lambda: "1")


def data() -> DataSet:
    many = structures_of([helix(N_RESIDUES)[:, 1:2]] * 8)
    return DataSet("helix", "helix", "helix", (6,), many, many, many)


def config(group: str, method: str = "plain", backbone: str = "pairformer", **diffusion: str) -> RunConfig:
    parts = {"method": method, "backbone": {"name": backbone, "size": "tiny"}, "data": "mini_proteins"}
    return build(RunConfig, {"study": "s", "task": "proteins", "group": group, "diffusion": FLOW | diffusion, **parts})


def left_handed(samples: Structures) -> tuple[float, float]:
    """Share of helical residues in left-handed helices, and share of residues in helices."""
    found = {v.name: v.value for v in evaluate_backbones(samples, data().test, data().train)}
    return found["left_handed"], found["helix"]


def drawn_with_the_optimum(group: str) -> Structures:
    """Samples of the exact flow, 50 steps of Euler: the optimal denoiser is M x0, M the posterior mean of g."""
    task = make_task(config(group, parametrisation="clean"), data().facts)
    many = structures_of([helix(N_RESIDUES)[:, 1:2]] * N)
    clean, spaces = task.encode(many, dtype=torch.float64), task.process.spaces
    of = task.group
    assert isinstance(of, RotationGroup)

    def predict(z: State, level: Level) -> State:
        at, exact = level.to(dtype=torch.float64), State(z.to(dtype=torch.float64).parts, z.layout)
        noised = Noised(clean, spaces.displacement(exact, clean, at), exact, at, spaces)
        M = of.mean(of.moment(clean.x[:, None], noised)[:, 0])
        return z.replace(x=of.act(M, clean).x.to(z.dtype))

    rng = torch.Generator().manual_seed(0)
    state = sample(task.process, predict, Layout([N_RESIDUES] * N), 50, rng, sampler=Sampler.EULER)
    return task.decode(state)


@pytest.mark.parametrize("group", ["SO3", "O3"])
def test_the_exact_flow_draws_the_hands_of_its_group(group: str):
    """None under SO(3). Under O(3) the number of left-handed helices is binomial: 4.5 standard deviations."""
    share, helical = left_handed(drawn_with_the_optimum(group))
    assert helical > 0.8  # they are helices, so that their hand means something
    if group == "SO3":
        assert share == 0
    else:
        assert share == pytest.approx(0.5, abs=4.5 * 0.5 / N**0.5)


@pytest.mark.parametrize("group", ["SO3", "O3"])
def test_augmentation_shows_the_hands_of_its_group(group: str):
    """What a network is trained on under `haar`. Control: under `plain` O(3) changes nothing."""
    shares = []
    for method in ("haar", "plain"):
        model = Model.build(config(group, method), data().facts)
        clean = model.task.encode(structures_of([helix(N_RESIDUES)[:, 1:2]] * N))
        turned = model.method.augment(clean, torch.Generator().manual_seed(1))
        shares.append(left_handed(model.task.decode(turned))[0])
    assert shares[1] == 0
    assert shares[0] == (0 if group == "SO3" else pytest.approx(0.5, abs=4.5 * 0.5 / N**0.5))


def test_a_network_that_commutes_with_reflections_mirrors_its_samples():
    """EGNN, at any weights and under any group: mirrored noise gives the mirrored sample, so each hand is as likely.
    Control: the pairformer's samples are not mirrored."""
    apart = {}
    for backbone in ("egnn", "pairformer"):
        model = Model.build(config("SO3", "haar", backbone), data().facts)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
        model.eval()
        layout = Layout([N_RESIDUES] * 4)
        start = model.process.noise(layout, torch.Generator().manual_seed(0), context=chains_of([N_RESIDUES] * 4, 1))
        ends = []
        for sign in (1, -1):
            rng = torch.Generator().manual_seed(0)
            from_there = start.map(lambda part, sign=sign: sign * part)
            end = sample(
                model.process,
                lambda z, level, model=model, rng=rng: model.predict(z, level, rng),
                layout,
                5,
                rng,
                sampler=Sampler.EULER,
                start=from_there,
            )
            ends.append(end.x)
        apart[backbone] = ((ends[0] + ends[1]).abs().max() / ends[0].abs().max()).item()
    assert apart["egnn"] < 1e-4
    assert apart["pairformer"] > 1e-2


def test_the_value_notices_a_single_left_handed_helix():
    x = helix(N_RESIDUES)[:, 1:2]
    assert left_handed(structures_of([x] * 9 + [-x]))[0] == pytest.approx(0.1)
    assert left_handed(structures_of([-x]))[0] == 1
