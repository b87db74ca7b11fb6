"""What surrounds a gradient step (spec 1.7): moving average, gradient clips, learning rate."""

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from support import generator
from torch import Tensor, nn

from bench.config.run import Clip, OptimiserName, TrainConfig
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
    """EDM's clip on a plain list, from its definition."""

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


# ---------------------------------------------------------------------- a whole step


def test_a_step_clips_moves_weights_and_then_their_average():
    """As torch's AdamW on gradients scaled by hand; control: gradients that were not clipped move elsewhere."""
    cfg = TrainConfig(clip_norm=0.5, weight_decay=0.1, ema_decay=0.9, lr=0.01, amsgrad=False)
    (p,), (expected,), (free,) = (weights_with_gradients((8, 4)) for _ in range(3))
    state = TrainingState.at_start({"w": p}, cfg)
    norm, clipped = state.update(cfg, rate=0.01)
    assert clipped == 1
    assert expected.grad is not None
    torch.testing.assert_close(norm, expected.grad.norm())
    expected.grad *= 0.5 / (norm + 1e-6)
    torch.optim.AdamW([expected], lr=0.01, betas=(0.9, 0.999), weight_decay=0.1).step()
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(state.average.shadow["w"], 0.1 * expected.detach())  # weights were zero before
    assert free.grad is not None
    assert not torch.allclose(free.grad, p.grad)  # type: ignore[arg-type]


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
