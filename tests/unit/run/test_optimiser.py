"""What surrounds a gradient step (spec 1.7): moving average, gradient clips, learning rate."""

import contextlib
import functools
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import bench.kernels.adamw
import numpy as np
import pytest
import torch
from bench.kernels.adamw import SOURCE
from support import generator, relative_error, with_another_term
from torch import Tensor, nn

from bench.config.run import Clip, OptimiserName, TrainConfig
from bench.kernels.native import library, operations_of_torch
from bench.run.optimiser import (
    MovingAverage,
    Muon,
    Optimiser,
    QueueClip,
    TrainingState,
    clip,
    global_norm,
    learning_rate,
    progress,
)

Change = tuple[str, str]  # a term of a C file, and another

# ---------------------------------------------------------------------- moving average


def weights(*values: float) -> dict[str, nn.Parameter]:
    return {str(i): nn.Parameter(torch.full((3,), v, dtype=torch.float64)) for i, v in enumerate(values)}


def test_average_of_constant_weights_is_constant():
    """T34: after many steps from constant weights the average has not moved; it has if they do."""
    w = weights(1.5, -2.0)
    average = MovingAverage(w, 0.9999)
    for _ in range(1000):
        average.update(w)
    assert all(torch.equal(average.shadow[name], p) for name, p in w.items())
    w["0"].data += 1e-3
    average.update(w)
    assert not torch.equal(average.shadow["0"], torch.full((3,), 1.5, dtype=torch.float64))


def test_one_step_moves_the_average_by_one_minus_decay_of_the_difference():
    """T34: exactly 1e-4 of the difference at decay 0.9999; another decay is told apart."""
    for decay, moved in ((0.9999, True), (0.999, False)):
        w = weights(0.0)
        average = MovingAverage(w, decay)
        w["0"].data.fill_(1.0)
        average.update(w)
        assert torch.allclose(average.shadow["0"], torch.tensor(1e-4, dtype=torch.float64), rtol=1e-12, atol=0) is moved


def test_swapping_twice_changes_nothing():
    w = weights(1.0)
    average = MovingAverage(w, 0.5)
    w["0"].data.fill_(3.0)
    average.update(w)
    average.swap(w)
    assert (w["0"][0].item(), average.shadow["0"][0].item()) == (2.0, 3.0)
    average.swap(w)
    assert (w["0"][0].item(), average.shadow["0"][0].item()) == (3.0, 2.0)


# ---------------------------------------------------------------------- clips


class ListQueue:
    """EDM's clip as section 1.7 states it, on a plain list."""

    def __init__(self, length: int = 50, spread: float = 2.0) -> None:
        self.norms, self.length, self.spread = [3000.0], length, spread

    def clip(self, norm: float) -> float:
        allowed = 1.5 * np.mean(self.norms) + self.spread * np.std(self.norms)
        self.norms = [*self.norms, min(norm, allowed)][-self.length :]
        return float(allowed)


def agrees_with_list(reference: ListQueue) -> bool:
    queue = QueueClip()
    same = True
    for norm in np.random.default_rng(0).lognormal(2, 1.5, size=230):
        allowed = queue.allowed()
        queue.push(torch.tensor(norm), allowed)
        same &= bool(np.isclose(allowed.item(), reference.clip(float(norm)), rtol=1e-9))
    return same


def test_queue_allows_what_a_plain_list_allows():
    """T35: 230 norms against a list of the last 50; a list of 49, or another spread, is told apart."""
    assert agrees_with_list(ListQueue())
    assert not agrees_with_list(ListQueue(length=49))
    assert not agrees_with_list(ListQueue(spread=2.1))


def test_queue_starts_generous_and_settles():
    """T35: the first call allows 4500; after 50 equal norms c it allows 1.5 c, after 49 still more."""
    queue = QueueClip()
    assert queue.allowed().item() == 4500
    for k in range(50):
        assert queue.allowed().item() > 1.5 * 2.0 + 1e-9, k
        queue.push(torch.tensor(2.0), queue.allowed())
    assert queue.allowed().item() == pytest.approx(3.0, rel=1e-12)


def test_queue_enters_a_burst_only_as_far_as_it_was_allowed():
    """T35: after an exploding norm the next allowance is what the clipped one gives."""
    queue = QueueClip()
    for _ in range(60):
        queue.push(torch.tensor(2.0), queue.allowed())
    queue.push(torch.tensor(1e9), queue.allowed())
    assert queue.allowed().item() == pytest.approx(1.5 * (2 * 49 + 3) / 50 + 2 * np.std([2.0] * 49 + [3.0]), rel=1e-9)


def gradients_after_clip(scale: float, cfg: TrainConfig, queue: QueueClip) -> tuple[Tensor, Tensor, Tensor]:
    rng = generator(0)
    gradients = [scale * torch.randn(shape, generator=rng) for shape in ((4,), (2, 3))]
    norm = global_norm(gradients)
    factor, clipped = clip(norm, cfg, queue)
    return factor * torch.cat([g.flatten() for g in gradients]), norm, clipped


@pytest.mark.parametrize(("scale", "clipped"), [(0.1, 0.0), (100.0, 1.0)])
def test_gradients_are_scaled_to_the_global_norm_only_when_larger(scale, clipped):
    free, norm, _ = gradients_after_clip(scale, TrainConfig(clip_norm=1e9), QueueClip())
    scaled, same_norm, was_clipped = gradients_after_clip(scale, TrainConfig(clip_norm=2.0), QueueClip())
    assert norm == same_norm
    assert was_clipped == clipped
    torch.testing.assert_close(norm, free.norm())
    torch.testing.assert_close(scaled, free * min(1.0, 2.0 / norm.item()))


def test_queue_clip_remembers_the_norm_it_saw():
    queue = QueueClip()
    _, norm, clipped = gradients_after_clip(1.0, TrainConfig(clip=Clip.QUEUE), queue)
    assert clipped == 0
    assert queue.norms[1].item() == pytest.approx(norm.item())
    _, _, clipped = gradients_after_clip(1e5, TrainConfig(clip=Clip.QUEUE), queue)
    assert clipped == 1


# ---------------------------------------------------------------------- learning rate


def test_learning_rate_warms_up_holds_and_cools_down():
    cfg = TrainConfig(n_steps=100, lr=1.0, warmup_steps=10, cooldown_fraction=0.4)
    rates = [learning_rate(step, 0.0, cfg) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9:61] == [1.0] * 52
    assert rates[80] == pytest.approx(0.5)
    assert rates[100] == 0
    assert all(a >= b for a, b in pairwise(rates[60:]))


def test_budget_of_seconds_ends_a_run_before_its_steps():
    cfg = TrainConfig(n_steps=100, max_seconds=10.0, cooldown_fraction=0.5, lr=1.0)
    assert progress(10, 5.0, cfg) == 0.5
    assert progress(80, 5.0, cfg) == 0.8
    assert progress(10, 10.0, cfg) == 1
    assert learning_rate(10, 7.5, cfg) == pytest.approx(0.5)
    assert progress(10, 1e6, TrainConfig(n_steps=100)) == 0.1


def test_optimiser_is_the_published_adamw():
    (adamw,) = Optimiser([nn.Parameter(torch.zeros(1))], TrainConfig(lr=3e-4)).parts
    (group,) = adamw.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (3e-4, 1e-12, (0.9, 0.999))
    assert group["amsgrad"] is TrainConfig().amsgrad


# ---------------------------------------------------------------------- all in one pass, in C

ONE_PASS = [(3,), (300, 50), (7, 1, 5), (64, 64), (1,)]  # more and less than a thread's share, and no round numbers


def after_updates(
    in_c: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, change: Change = ("", ""), **options: Any
) -> list[Tensor]:
    """Everything that a few updates change, on two threads; the clip acts in every other. One weight has no gradient
    at times, two have theirs in bf16. In C one term of the file may be another."""
    monkeypatch.setattr(bench.kernels.adamw, "SOURCE", with_another_term(SOURCE, *change, folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr("bench.kernels.threads.SHARED", 0)
    cfg = TrainConfig(clip_norm=30.0, weight_decay=0.1, **{"ema_decay": 0.9, **options})
    rng = generator(0)
    named = {str(i): nn.Parameter(torch.randn(shape, generator=rng)) for i, shape in enumerate(ONE_PASS)}
    state = TrainingState.at_start(named, cfg)
    found = []
    for i in range(6):
        for p in named.values():
            p.grad = (0.1 if i % 2 else 1.0) * torch.randn(p.shape, generator=rng)
        for name in ("1", "3"):
            named[name].grad_dtype = None
            named[name].grad = cast(Tensor, named[name].grad).bfloat16()
        if i == 3:
            named["2"].grad = None
        with contextlib.nullcontext() if in_c else operations_of_torch():
            assert (state.optimiser.in_one_pass(0.01, state.average, named) is not None) is (in_c and i > 0)
            found += [x[None] for x in state.update(cfg, rate=0.01)]
    for name, p in named.items():
        found += [p.detach(), state.average.shadow[name], *map(torch.atleast_1d, state.optimiser.state(p).values())]
    return found


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(relative_error(x, y) for x, y in zip(found, expected, strict=True) if y.any())


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


needs_compiler = pytest.mark.skipif(library(SOURCE) is None, reason="no C compiler")


@needs_compiler
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("options", [{"amsgrad": True}, {"amsgrad": False, "adam_beta2": 0.95}], ids=str)
def test_one_pass_makes_the_step_of_torch(options, monkeypatch, tmp_path):
    """Norms, weights, averages, moments and steps; control: another clip."""
    expected = after_updates(False, tmp_path, monkeypatch, **options)
    assert largest_error(after_updates(True, tmp_path, monkeypatch, **options), expected) < 1e-5
    monkeypatch.setattr("bench.run.optimiser.clip", lambda norm, *_: (torch.tensor(0.99), torch.zeros(())))
    assert largest_error(after_updates(True, tmp_path, monkeypatch, **options), expected) > 1e-4


@needs_compiler
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(
    "change",
    [
        ("sum += IN_EITHER", "sum = IN_EITHER"),
        ("c->kept * weight[k]", "weight[k]"),
        ("square[k] > largest[k] ? square[k] : largest[k]", "square[k]"),
        ("* r + c->eps", "+ c->eps"),
        ("c->factor * number(", "number("),
        ("average[k] += c->towards", "average[k] += 2 * c->towards"),
        ("end < size ? end : size", "size"),
        ("c->factor * number(gradient, k,", "c->factor * number(gradient, bf16 ? 0 : k,"),
        ("++*arrays[i].steps", "1 + *arrays[i].steps"),
    ],
    ids=lambda change: change[1],
)
def test_a_wrong_pass_is_noticed(change, monkeypatch, tmp_path):
    """Control: the same file with one term another."""
    expected = after_updates(False, tmp_path, monkeypatch, amsgrad=True)
    assert largest_error(after_updates(True, tmp_path, monkeypatch, change, amsgrad=True), expected) > 1e-4


@needs_compiler
def test_one_pass_is_for_what_torch_has_begun_in_float32():
    """Else torch makes the step: the first, other numbers, Muon, gradients that lie otherwise."""

    def in_c(
        dtype: torch.dtype = torch.float32, steps: int = 1, turned: bool = False, lies_apart: str = "", **options: Any
    ) -> bool:
        cfg = TrainConfig(**options)
        state = TrainingState.at_start({"w": nn.Parameter(torch.zeros(32, 16, dtype=dtype))}, cfg)
        for _ in range(steps + 1):
            gradient = torch.ones(32, 16, dtype=dtype)
            state.weights["w"].grad = gradient.t().contiguous().t() if turned else gradient
            of_weight = state.optimiser.state(state.weights["w"])
            if lies_apart in of_weight:
                of_weight[lies_apart] = of_weight[lies_apart].t().contiguous().t()
            if lies_apart == "average":
                state.average.shadow["w"] = state.average.shadow["w"].t().contiguous().t()
            found = state.optimiser.in_one_pass(0.1, state.average, state.weights)
            state.update(cfg, 0.1)
        return found is not None

    assert in_c()
    assert not in_c(steps=0)
    assert not in_c(lies_apart="exp_avg")
    assert not in_c(lies_apart="average")
    assert not in_c(torch.float64)
    assert not in_c(optimiser=OptimiserName.MUON)
    assert not in_c(turned=True)


def trained(steps: int, moved: str = "") -> list[Tensor]:
    """Weight, average and moments after so many steps; before the fourth something moves elsewhere in memory."""
    state = TrainingState.at_start({"w": nn.Parameter(torch.ones(32, 16))}, TrainConfig())
    weight, rng, kept = state.weights["w"], generator(3), []  # kept, so that what comes in its place lies elsewhere
    of_weight = state.optimiser.state(weight)
    for i in range(steps):
        if i == 3 and moved == "weight":
            kept.append(weight.data)
            weight.data = weight.data.clone()
        elif i == 3 and moved:
            holder, key = (state.average.shadow, "w") if moved == "average" else (of_weight, moved)
            kept.append(holder[key])
            holder[key] = holder[key].clone()
        weight.grad = torch.randn(32, 16, generator=rng)
        assert i == 0 or state.optimiser.in_one_pass(0.1, state.average, state.weights) is not None
        state.update(TrainConfig(), 0.1)
    return [weight.detach(), state.average.shadow["w"], *state.optimiser.state(weight).values()]


@needs_compiler
@pytest.mark.parametrize("moved", ["weight", "average", "exp_avg", "exp_avg_sq", "step"])
def test_a_state_that_moves_in_memory_is_found(moved):
    """Addresses are kept from step to step. Control: a step less is another state."""
    expected = trained(5)
    assert all(torch.equal(x, y) for x, y in zip(trained(5, moved), expected, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(trained(4), expected, strict=True))


@needs_compiler
def test_a_backward_pass_after_the_step_is_refused():
    """It would be of other weights. Control: before the step."""
    state = TrainingState.at_start({"w": nn.Parameter(torch.ones(32, 16))}, TrainConfig())
    weight = state.weights["w"]
    for _ in range(2):
        weight.grad = torch.ones(32, 16)
        loss = weight.square().sum()
        torch.autograd.grad(loss, weight, retain_graph=True)
        in_c = state.optimiser.in_one_pass(0.1, state.average, state.weights) is not None
        state.update(TrainConfig(), 0.1)
    assert in_c
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---------------------------------------------------------------------- Muon


def weights_with_gradients(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for p in weights:
        p.grad = torch.randn_like(p)
    return weights


def test_muon_moves_hidden_matrices_in_all_directions_alike():
    """Five Newton-Schulz steps bring all singular values between 0.5 and 1.5, times 0.2 sqrt(larger side) lr."""
    (hidden,) = weights = weights_with_gradients((32, 64))
    Optimiser(weights, TrainConfig(optimiser=OptimiserName.MUON)).step(rate=0.1)
    spread = torch.linalg.svdvals(hidden.detach()) / (0.1 * 0.2 * 8)
    assert spread.min() > 0.5
    assert spread.max() < 1.5
    # control: AdamW's step of the same gradient, whose directions differ more
    (other,) = weights = weights_with_gradients((32, 64))
    Optimiser(weights, TrainConfig()).step(rate=0.1)
    spread = torch.linalg.svdvals(other.detach())
    assert spread.max() / spread.min() > 3


SHAPES = [(64, 64), (64, 64), (192, 64), (64, 192), (16, 64)]


def directions(step_of: Callable[..., torch.optim.Optimizer], **changed: Any) -> torch.Tensor:
    """Where five steps on given gradients bring the weights."""
    weights = weights_with_gradients(*SHAPES)
    optimiser = step_of(weights, lr=0.1, **{"weight_decay": 0.1, **changed})
    for i in range(5):
        torch.manual_seed(i)
        for p in weights:
            p.grad = torch.randn_like(p)
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in weights])


def test_matrices_orthogonalised_together_move_as_one_by_one():
    """As torch's own, to the precision of bf16; controls: other options of either."""

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).norm() / b.norm()).item()

    torchs = functools.partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    ours, theirs = directions(Muon), directions(torchs)
    assert apart(ours, theirs) < 0.01
    assert apart(directions(Muon, momentum=0.9), theirs) > 0.05
    for changed in ({"momentum": 0.94}, {"nesterov": False}, {"adjust_lr_fn": "original"}, {"weight_decay": 0.0}):
        assert apart(ours, directions(torchs, **changed)) > 0.01, changed


def test_a_matrix_without_gradient_stays():
    first, second = weights_with_gradients((32, 64), (32, 64))
    second.grad = None
    Muon([first, second], lr=0.1, weight_decay=0.01).step()
    assert first.abs().max() > 0
    assert second.abs().max() == 0


def test_muon_leaves_vectors_heads_and_inputs_to_adamw():
    shapes = [(64, 64), (64,), (1, 64), (64, 7), (192, 64)]
    weights = weights_with_gradients(*shapes)
    optimiser = Optimiser(weights, TrainConfig(optimiser=OptimiserName.MUON))
    optimiser.step(rate=0.1)
    kept = [set(optimiser.state(p)) for p in weights]
    assert [state == {"momentum_buffer"} for state in kept] == [True, False, False, False, True]
    assert all(p.abs().max() > 0 for p in weights)
    optimiser.zero_grad()
    assert all(p.grad is None for p in weights)
