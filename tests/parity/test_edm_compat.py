"""Defects of the published code behind one switch, `diffusion.edm_compat` (spec 6.2, 6.9, 6.10).

Each has a test that the switch gives what the published code computes, and that the default does not. For 6.9, the
denominator of the training error, these are `tests/parity/test_published.py` and
`tests/contract/test_guarantees.py`.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from support import (
    ELEMENTS,
    FACTS,
    MEAN_ATOMS,
    SIZES,
    generator,
    noised,
    plug_in,
    randomise,
    relative_error,
    states,
    structures,
    subset,
)
from torch import Tensor

from bench.backbones.dit import DiTConfig, GaussianPairEmbedding, TimeEmbedding
from bench.config.run import ConfigError, RunConfig, SampleConfig, build
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.registry import backbones, methods
from bench.run.model import Model
from bench.run.sample import sample_prompt
from bench.structures.dataset import Facts


def model_with(edm_compat: bool, method: str = "symdiff", facts: Facts = FACTS) -> Model:
    """A tiny DiT model as a run builds it, with random weights."""
    page = {"study": "tests", "method": plug_in(methods, method), "backbone": plug_in(backbones, "dit")}
    cfg = build(RunConfig, page | {"data": {"name": "mini"}, "diffusion": {"edm_compat": edm_compat}})
    model = Model.build(cfg, facts)
    randomise(model, seed=1)
    return model


# ---------------------------------------------------------------------- 6.2: padding


def published_pair_embedding(
    embedding: GaussianPairEmbedding, x: Tensor, sizes: tuple[int, ...], n_padded: int
) -> Tensor:
    """As `DiTGaussian_dynamics` computes it: dense [B, n, n, K], Gaussians of padded pairs set to 0, a linear layer
    with bias, the sum over all columns, divided by the number of real atoms."""
    padded = x.new_zeros(len(sizes), n_padded, 3)
    mask = torch.zeros(len(sizes), n_padded, dtype=torch.bool)
    for i, part in enumerate(x.split(list(sizes))):
        padded[i, : len(part)], mask[i, : len(part)] = part, True
    distance = (padded[:, :, None] - padded[:, None]).norm(dim=3)[..., None]
    scale = embedding.raw_scale.abs() + 0.01
    gaussians = torch.exp(-0.5 * ((distance - embedding.mean) / scale) ** 2) / (math.sqrt(2 * 3.14159) * scale)
    gaussians = gaussians * (mask[:, :, None] & mask[:, None])[..., None]
    summed = F.linear(gaussians, embedding.linear.weight, embedding.linear.bias).sum(2)
    return (summed / mask.sum(1)[:, None, None])[mask]


@pytest.mark.parametrize("n_padded", [12, 29])
def test_pair_embedding_sums_its_bias_over_padded_columns(n_padded):
    """T9: the switch gives the published embedding at any padding; the default is that of no padding and differs."""
    torch.manual_seed(0)
    embedding = GaussianPairEmbedding(8, 5).double()
    randomise(embedding, seed=1)
    sizes = tuple(sorted(SIZES))
    x = states(sizes)[3].x
    layout = Layout(sizes, n_padded=n_padded)
    published = published_pair_embedding(embedding, x, sizes, n_padded)
    assert relative_error(embedding(x, layout), published) > 1e-2
    embedding.edm_compat = True
    assert relative_error(embedding(x, layout), published) < 1e-12
    assert relative_error(embedding(x, Layout(sizes, n_padded=n_padded + 1)), published) > 1e-3


@pytest.mark.parametrize("method", ["plain", "symdiff"])
def test_predictions_depend_on_padding_with_the_switch_alone(method):
    """T9: another largest molecule in the batch, or other padding of the same one, moves a prediction."""
    _, _, level, z_t = states(dtype=torch.float32)
    alone = [2]
    one = level[alone]
    small = subset(z_t, alone)
    wide = State({"x": small.x, "h": small.h}, Layout(small.layout.sizes, n_padded=29))
    for edm_compat in (False, True):
        model = model_with(edm_compat, method)
        here, there = (model.predict(z, one, generator(1)) for z in (small, wide))
        assert (relative_error(there, here) > 1e-3) is edm_compat


def test_samples_are_padded_to_the_largest_size_known():
    """T9: published samplers pad to 29 atoms whatever is sampled, training to the batch: only the switch shows it."""
    histograms = {3: 10, 5: 10}, {3: 10, 5: 10, 29: 0}
    for edm_compat in (False, True):
        models = [model_with(edm_compat, "plain", Facts(ELEMENTS, MEAN_ATOMS, sizes)) for sizes in histograms]
        prompts = [model.task.prompts(6, 6, seed=3)[0] for model in models]
        assert prompts[0].sizes.tolist() == prompts[1].sizes.tolist()
        settings = SampleConfig(n_steps=5, seed=3)
        samples = [sample_prompt(model, prompt, settings) for model, prompt in zip(models, prompts, strict=True)]
        first, second = (torch.from_numpy(sample.positions) for sample in samples)
        assert (relative_error(second, first) > 1e-3) is edm_compat


def test_layout_keeps_what_it_would_be_padded_to():
    """Moving a batch keeps it; by default it is the largest molecule."""
    layout = Layout(SIZES, n_padded=29)
    assert Layout(SIZES).n_padded == max(SIZES)
    assert layout.to("meta").n_padded == 29


# ---------------------------------------------------------------------- 6.10: time features


def test_time_features_see_times_up_to_one():
    """The published network turns its fastest time feature by 1 rad over the whole of diffusion; so does the default,
    and a scale of 1000 turns it by 1000, which is refused together with the switch."""
    t = torch.linspace(0, 1, 11)
    published = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    published = torch.cat([published.cos(), published.sin()], dim=1)

    def features(scale: float) -> Tensor:
        embedding = TimeEmbedding(256, scale)
        seen: list[Tensor] = []
        embedding.inner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        embedding(t)
        return seen[0]

    assert relative_error(features(DiTConfig().time_scale), published) < 1e-6
    assert relative_error(features(1000.0), published) > 0.1

    page = {"study": "tests", "method": "plain", "data": {"name": "mini"}}
    scaled = page | {"backbone": {"name": "dit", "time_scale": 1000.0}}
    assert build(RunConfig, scaled).backbone.options.time_scale == 1000.0
    assert build(RunConfig, page | {"backbone": "dit", "diffusion": {"edm_compat": True}}).diffusion.edm_compat
    with pytest.raises(ConfigError, match=r"time_scale' is 1000\.0, expected 1, as published"):
        build(RunConfig, scaled | {"diffusion": {"edm_compat": True}})


# ---------------------------------------------------------------------- 6.9: the denominator


def test_training_error_is_divided_by_the_padded_count_with_the_switch_alone():
    """T39: one molecule padded to twice its size weighs half as much; by default it weighs the same."""
    for edm_compat in (False, True):
        task = model_with(edm_compat).task
        x0 = task.encode(structures((9,)), dtype=torch.float64)
        level = task.process.path.at(torch.tensor([500]), torch.float64)
        losses = []
        for n_padded in (9, 18):
            z = State({"x": x0.x, "h": x0.h}, Layout([9], n_padded=n_padded))
            error, both = torch.ones(1, dtype=torch.float64), noised(z, z, level)
            losses.append(task.process.training_loss(error, z, z, both))
        assert (losses[0] / losses[1]).item() == pytest.approx(2.0 if edm_compat else 1.0, rel=1e-9)
