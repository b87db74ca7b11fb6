"""Training and sampling cut and continued equal those straight through, bit for bit; methods with one seed are paired.

For every registered method (that trains), on tiny backbones.
"""

import dataclasses
import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support import FACTS, covering, fitting_pairs, model_of, run_config, structures
from torch import Tensor

from bench.config.run import RunConfig, SampleConfig
from bench.launch.publish import curves
from bench.records.store import read_json, read_steps
from bench.registry import methods
from bench.run.batches import Batches
from bench.run.checkpoint import CheckpointError, about_of, load_average, read_tensors, trained_by, write_tensors
from bench.run.evaluate import sample_run
from bench.run.model import Model
from bench.run.train import TrainingError, Validation, train
from bench.streams import StepStreams, Streams
from bench.structures.structures import Structures

PAIRS = [(m, b) for m, b in fitting_pairs() if methods[m].build.weights_of is None]
TRAIN = structures([5, 3, 7, 4, 6, 5, 8, 3, 4, 6, 7, 5], seed=8)
VALID = structures([4, 6, 5], seed=9)
N_STEPS = 8
# a checkpoint at each logging interval; two epochs and a bit; warm-up, cool-down and both clips are on the way
SETTINGS = {
    "batch_size": 4,
    "lr": 1e-3,
    "warmup_steps": 2,
    "cooldown_fraction": 0.5,
    "ema_decay": 0.9,
    "clip": "queue",
    "log_every": 1,
    "valid_every": 3,
    "checkpoint_seconds": 0.0,
}


class KilledError(Exception):
    """Stands for SIGKILL."""


def trained(folder: Path, cfg: RunConfig, kill_at: int | None = None, data: Structures = TRAIN) -> dict[str, Tensor]:
    """Weights after `train`, called on a new model as a new process would; killed after the log of step `kill_at`."""
    model = Model.build(cfg, FACTS)

    def on_log(step: int) -> None:
        if step == kill_at:
            raise KilledError

    train(cfg, model, data, VALID, folder, on_log)
    return {name: p.detach().clone() for name, p in model.named_weights().items()}


def killed(folder: Path, cfg: RunConfig, *steps: int) -> None:
    for step in steps:
        with pytest.raises(KilledError):
            trained(folder, cfg, kill_at=step)


def left_behind(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Final state and log lines, without the clock."""
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_steps(folder / "steps.jsonl")]
    return load_file(folder / "state.safetensors"), lines


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def config(method: str, backbone: str, **train: Any) -> RunConfig:
    return run_config(method, backbone, **{"n_steps": N_STEPS, **SETTINGS, **train})


@pytest.mark.parametrize(("method", "backbone"), covering(PAIRS))
def test_killed_and_resumed_training_equals_straight_training(method, backbone, tmp_path):
    """Kills at random steps, one of them twice in a row; weights, optimiser, queue, losses: bit for bit."""
    cfg = config(method, backbone)
    kills = np.random.default_rng(len(method)).choice(np.arange(1, N_STEPS), size=3, replace=False)
    straight = trained(tmp_path / "straight", cfg)
    killed(tmp_path / "cut", cfg, *sorted(kills.tolist()))
    assert same(trained(tmp_path / "cut", cfg), straight)
    (state, lines), (straight_state, straight_lines) = left_behind(tmp_path / "cut"), left_behind(tmp_path / "straight")
    assert same(state, straight_state)
    assert lines == straight_lines


def code(commit: str, dirty: bool = False) -> dict[str, Any]:
    return {"version": "1", "commit": commit, "dirty": dirty}


def test_a_checkpoint_names_every_code_that_trained_it(tmp_path, monkeypatch):
    """Each with the steps that are left of it: those after the last checkpoint are made again, by the next code.

    A code that comes again in a row is named once; a checkpoint that names none is put down to the code that began.
    """
    cfg = config("plain", "dit", log_every=2)
    for by, kill_at in ((code("a"), 4), (code("a"), 4), (code("b"), 6), (code("b", dirty=True), None)):
        monkeypatch.setattr("bench.run.train.code_version", lambda by=by: by)
        if kill_at is None:
            trained(tmp_path, cfg)
        else:
            killed(tmp_path, cfg, kill_at)
            assert about_of(tmp_path / "state.safetensors")["step"] == kill_at - 2
    found = trained_by(tmp_path / "state.safetensors", code("never asked"))
    assert found == [code("a") | {"steps": 2}, code("b") | {"steps": 2}, code("b", True) | {"steps": N_STEPS - 4}]

    tensors, about = read_tensors(tmp_path / "state.safetensors")
    write_tensors(tmp_path / "early.safetensors", tensors, {k: v for k, v in about.items() if k != "code"})
    assert trained_by(tmp_path / "early.safetensors", code("first")) == [code("first") | {"steps": N_STEPS}]


def test_what_an_early_checkpoint_was_trained_by_is_not_put_down_to_the_code_that_continues_it(tmp_path, monkeypatch):
    cfg = config("plain", "dit")
    killed(tmp_path, cfg, 5)
    tensors, about = read_tensors(tmp_path / "state.safetensors")
    write_tensors(tmp_path / "state.safetensors", tensors, {k: v for k, v in about.items() if k != "code"})
    monkeypatch.setattr("bench.run.train.code_version", lambda: code("b"))
    trained(tmp_path, cfg)
    first, second = trained_by(tmp_path / "state.safetensors", code("never asked"))
    assert (first["version"], first["steps"]) == ("unknown", about["step"])
    assert second == code("b") | {"steps": N_STEPS - about["step"]}


def sampled(folder: Path, cfg: RunConfig, kill_at: int | None = None) -> Structures:
    """Samples of a new model, in three chunks of three steps; killed at a network call."""
    calls = itertools.count(1)

    def on_step() -> None:
        if next(calls) == kill_at:
            raise KilledError

    model = model_of(cfg.method.name, cfg.backbone.name, dtype=torch.float32)
    return sample_run(cfg, model, folder, on_step=on_step)[0]


@pytest.mark.parametrize(("method", "backbone"), covering(fitting_pairs()))
def test_cut_and_resumed_sampling_equals_straight_sampling(method, backbone, tmp_path):
    """Killed in the second chunk and, continued, in the third; control: another seed of sampling."""
    cfg = config(method, backbone)
    cfg = dataclasses.replace(cfg, sample=SampleConfig(n_molecules=6, n_steps=3, batch_size=2))
    straight = sampled(tmp_path / "straight", cfg)
    for call in (5, 5):
        with pytest.raises(KilledError):
            sampled(tmp_path / "cut", cfg, call)
    assert sorted(path.name for path in (tmp_path / "cut/chunks").glob("*.npz")) == ["00000.npz", "00001.npz"]
    resumed = sampled(tmp_path / "cut", cfg)
    for ours, theirs in zip(dataclasses.astuple(resumed), dataclasses.astuple(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = dataclasses.replace(cfg, sample=dataclasses.replace(cfg.sample, seed=1))
    assert not np.array_equal(sampled(tmp_path / "other", other).positions, straight.positions)


@pytest.mark.parametrize("method", ["haar", "orbit_rb"])
def test_checkpoints_between_logs_lose_no_step(method, tmp_path):
    """Killed with the last checkpoint several steps back: the steps since are made again, with the same result."""
    cfg = config(method, "dit", log_every=3)
    straight = trained(tmp_path / "straight", cfg)
    killed(tmp_path / "cut", cfg, 6)
    assert same(trained(tmp_path / "cut", cfg), straight)
    assert left_behind(tmp_path / "cut")[1] == left_behind(tmp_path / "straight")[1]


@pytest.mark.parametrize(
    "part", ["weights/", "average/", "optimiser/exp_avg/", "optimiser/step/", "optimiser/momentum", "queue/norms"]
)
def test_a_state_with_one_part_changed_gives_another_result(part, tmp_path):
    """Each part of a checkpoint is needed: changed by a little, training ends elsewhere."""
    cfg = config("plain", "dit", clip_norm=1e-3, optimiser="muon")
    straight = trained(tmp_path / "straight", cfg)
    folder = tmp_path / "cut"
    killed(folder, cfg, 4)
    state = folder / "state.safetensors"
    tensors, about = read_tensors(state)
    changed = [name for name in tensors if name.startswith(part)]
    assert changed
    for name in changed:
        # queue norms start at 3000, so that only a small queue binds
        tensors[name] = torch.full_like(tensors[name], 1e-3) if part == "queue/norms" else tensors[name] * 1.01 + 1e-3
    write_tensors(state, tensors, about)
    assert not same(trained(folder, cfg), straight)


def test_what_a_method_reports_is_averaged_over_logging_intervals(tmp_path):
    """Effective sample sizes of `orbit_rb` at each step, and their means over four; others report nothing."""
    lines = {}
    for every in (1, 4):
        trained(tmp_path / str(every), config("orbit_rb", "dit", log_every=every))
        found = [line["diagnostics"]["effective_sample_size"] for line in left_behind(tmp_path / str(every))[1]]
        lines[every] = np.array(found)
    assert lines[1].reshape(-1, 4).mean(1) == pytest.approx(lines[4], rel=1e-12)
    assert lines[1].std() > 0.01
    assert ((lines[1] >= 1) & (lines[1] <= 64)).all()
    published = pd.read_csv(io.StringIO(curves(read_steps(tmp_path / "1" / "steps.jsonl"))))
    assert published["diagnostics.effective_sample_size"].to_numpy() == pytest.approx(lines[1])
    trained(tmp_path / "plain", config("plain", "dit"))
    silent = read_steps(tmp_path / "plain" / "steps.jsonl")
    assert not any("diagnostics" in line for line in silent)
    assert "diagnostics" not in curves(silent)


def test_finished_training_trains_no_further(tmp_path):
    cfg = config("plain", "dit")
    first = trained(tmp_path, cfg)
    before = left_behind(tmp_path)
    assert same(trained(tmp_path, cfg, kill_at=N_STEPS), first)  # no step is logged, so nothing kills
    assert left_behind(tmp_path)[1] == before[1]


def test_training_returns_the_average_and_stores_both(tmp_path):
    weights = trained(tmp_path, config("plain", "dit"))
    state, _ = left_behind(tmp_path)
    assert all(torch.equal(weights[name], state[f"average/{name}"]) for name in weights)
    assert not all(torch.equal(weights[name], state[f"weights/{name}"]) for name in weights)


@pytest.mark.parametrize("change", [{"valid_every": 1}, {"valid_every": 2}, {"n_valid": 1}, {"log_every": 3}], ids=str)
def test_what_is_logged_and_validated_does_not_change_training(change, tmp_path):
    reference = trained(tmp_path / "reference", config("symdiff", "dit", valid_every=100))
    assert same(trained(tmp_path / "other", config("symdiff", "dit", **change)), reference)
    assert not same(trained(tmp_path / "control", config("symdiff", "dit", warmup_steps=3)), reference)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    """Positions so far out that the loss overflows: one clear error, the state from before stays."""
    cfg = config("plain", "egnn")
    killed(tmp_path, cfg, 3)
    before = (tmp_path / "state.safetensors").read_bytes()
    far = Structures(TRAIN.numbers, TRAIN.positions * np.float32(1e30), TRAIN.ptr)
    with pytest.raises(TrainingError, match=r"lower train\.lr"):
        trained(tmp_path, cfg, data=far)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    told = read_json(tmp_path / "diverged.json")
    assert (told["step"], told["seen_after"], told["last_checkpoint"]) == (2, 3, 2)
    assert len(told["molecules"]) == cfg.train.batch_size
    assert {type(m["loss"]) for m in told["molecules"]} == {str}  # every molecule is too far out
    trained(tmp_path, cfg)  # on sound data the run goes on, and what was told of it is gone
    assert not (tmp_path / "diverged.json").exists()


def test_the_offending_step_and_molecule_are_told(tmp_path):
    """One molecule too far out, logs every fourth step: the step that drew it, its place, time and loss, no other's."""
    cfg = config("plain", "egnn", log_every=4, n_steps=12)
    cfg.seed = 1
    positions = TRAIN.positions.copy()
    broken = 7
    positions[TRAIN.ptr[broken] : TRAIN.ptr[broken + 1]] *= np.float32(1e30)
    far = Structures(TRAIN.numbers, positions, TRAIN.ptr)
    with pytest.raises(TrainingError, match="not finite"):
        trained(tmp_path, cfg, data=far)
    told = read_json(tmp_path / "diverged.json")
    model = Model.build(cfg, FACTS)
    batches = Batches(TRAIN, model.task, 4, cfg.seed)
    first = next(step for step in range(12) if broken in batches.indices(step))
    assert told["step"] == first
    assert sorted(m["index"] for m in told["molecules"]) == sorted(batches.indices(first).tolist())
    assert [m["index"] for m in told["molecules"] if isinstance(m["loss"], str)] == [broken]
    times = model.process.draw(4, Streams(cfg.seed).at(first).time).t
    assert [m["t"] for m in told["molecules"]] == pytest.approx(times.tolist())
    assert isinstance(told["gradient_norm"], str)
    assert not (tmp_path / "state.safetensors").exists()  # the first interval already had it: nothing bad was saved


def test_weights_that_an_update_spoils_are_not_saved(tmp_path):
    """A learning rate beyond float32: loss and gradient are finite, the weights after them are not."""
    with pytest.raises(TrainingError, match="weights not finite after the update at step 0"):
        trained(tmp_path, config("plain", "dit", lr=1e38, warmup_steps=0, cooldown_fraction=0.0))
    assert not (tmp_path / "state.safetensors").exists()


def test_a_log_line_cut_short_is_written_again(tmp_path):
    cfg = config("plain", "dit")
    straight = trained(tmp_path / "straight", cfg)
    killed(tmp_path / "cut", cfg, 5)
    with (tmp_path / "cut" / "steps.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert same(trained(tmp_path / "cut", cfg), straight)
    assert left_behind(tmp_path / "cut")[1] == left_behind(tmp_path / "straight")[1]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flipped])
def test_after_a_damaged_checkpoint_the_one_before_is_used(damage, tmp_path, caplog):
    """One line says so, the damaged file is set aside, and the run ends as if nothing had been."""
    cfg = config("symdiff", "dit")
    straight = trained(tmp_path / "straight", cfg)
    folder = tmp_path / "cut"
    killed(folder, cfg, 3)
    damage(folder / "state.safetensors")
    assert same(trained(folder, cfg), straight)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "state.safetensors: not readable as a checkpoint" in warning
    assert "continues from previous.safetensors" in warning
    assert (folder / "state.safetensors.damaged").exists()
    assert left_behind(folder)[1] == left_behind(tmp_path / "straight")[1]


def test_when_all_checkpoints_are_damaged_nothing_is_deleted(tmp_path):
    cfg = config("plain", "dit")
    killed(tmp_path, cfg, 3)
    for name in ("state", "previous"):
        flipped(tmp_path / f"{name}.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"state\.safetensors.*previous\.safetensors") as raised:
        trained(tmp_path, cfg)
    assert len(str(raised.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_of_another_model_are_refused(tmp_path):
    trained(tmp_path, config("plain", "dit"))
    with pytest.raises(CheckpointError, match="does not fit"):
        trained(tmp_path, config("plain", "egnn"))


# ---------------------------------------------------------------------- paired draws


@contextmanager
def recorded(model: Model, seen: list[dict[str, Tensor]]) -> Iterator[None]:
    """What a run's steps see before any hook of the method acts: batch, times and noise."""
    augment, draw, noise = model.method.augment, model.process.draw, model.process.noise
    entry: dict[str, Tensor] = {}

    def on_augment(x0: Any, rng: torch.Generator) -> Any:
        entry.update(batch=x0.x.clone(), features=x0.h.clone())
        return augment(x0, rng)

    def on_draw(*args: Any, **kwargs: Any) -> Any:
        level = draw(*args, **kwargs)
        entry["t"] = level.t
        return level

    def on_noise(*args: Any, **kwargs: Any) -> Any:
        eps = noise(*args, **kwargs)
        seen.append({**entry, "eps": eps.x})
        return eps

    model.method.augment, model.process.draw, model.process.noise = on_augment, on_draw, on_noise  # type: ignore[method-assign]
    yield


def seen_by(method: str, backbone: str, folder: Path, seed: int = 0) -> list[dict[str, Tensor]]:
    cfg = config(method, backbone, n_steps=4, valid_every=100, n_valid=1)
    cfg.seed = seed
    model = Model.build(cfg, FACTS)
    seen: list[dict[str, Tensor]] = []
    with recorded(model, seen):
        train(cfg, model, TRAIN, VALID, folder, lambda step: None)
    return seen[:4]


def test_methods_with_one_seed_see_the_same_batches_times_and_noise(tmp_path):
    """For every method and backbone; another seed shares nothing."""
    runs = {pair: seen_by(*pair, tmp_path / "-".join(pair)) for pair in PAIRS}
    reference = runs[PAIRS[0]]
    assert all(same(a, b) for seen in runs.values() for a, b in zip(seen, reference, strict=True))
    other = seen_by(*PAIRS[0], tmp_path / "other", seed=1)
    assert not any(torch.equal(a[key], b[key]) for a, b in zip(other, reference, strict=True) for key in ("t", "eps"))


def test_one_stream_for_everything_would_not_pair_methods(tmp_path, monkeypatch):
    """Control: with method draws taken from the noise stream, the same recorder sees methods drift apart."""
    monkeypatch.setattr(StepStreams, "method", property(lambda self: self.noise))
    plain, haar = (seen_by(method, "dit", tmp_path / method) for method in ("plain", "haar"))
    assert not all(same(a, b) for a, b in zip(plain, haar, strict=True))


def test_one_seed_gives_a_backbone_one_start_under_every_method():
    starts: dict[str, dict[str, Tensor]] = {}
    for method, backbone in fitting_pairs():
        network = Model.build(config(method, backbone), FACTS).denoiser.state_dict()
        assert same(network, starts.setdefault(backbone, network)), (method, backbone)
    cfg = config("plain", "dit")
    cfg.seed = 1
    assert not same(Model.build(cfg, FACTS).denoiser.state_dict(), starts["dit"])


def test_building_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Model.build(config("plain", "dit"), FACTS)
    assert torch.equal(torch.rand(3), expected)


def test_streams_of_a_step_are_functions_of_seed_stream_and_step():
    def draws(seed: int, step: int) -> list[Tensor]:
        rng = Streams(seed).at(step)
        return [torch.rand(4, generator=g) for g in (rng.data, rng.noise, rng.time, rng.method, rng.sampling)]

    first = draws(0, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, draws(0, 7), strict=True))
    everything = torch.cat([*first, *draws(1, 7), *draws(0, 8)])
    assert len(everything.unique()) == len(everything)


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tmp_path):
    """Also after a kill between them and the next checkpoint. Control: the last weights are others, and higher."""
    rising = {"lr": 0.1, "cooldown_fraction": 0.0, "valid_every": 1, "keep_best": True, "ema_decay": 0.0}
    cfg = config("haar", "dit", **rising)
    trained(tmp_path / "straight", cfg)
    killed(tmp_path / "killed", cfg, 3, 6)
    trained(tmp_path / "killed", cfg)
    losses = {line["step"]: line["valid_loss"] for line in read_steps(tmp_path / "straight" / "steps.jsonl")}
    best = min(losses, key=losses.__getitem__)
    assert best < N_STEPS
    kept, about = read_tensors(tmp_path / "straight" / "best.safetensors")
    again, about_again = read_tensors(tmp_path / "killed" / "best.safetensors")
    assert about["step"] == about_again["step"] == best
    assert same(kept, again)
    last, _ = read_tensors(tmp_path / "straight" / "state.safetensors")
    assert not same(kept, {name: last[name] for name in kept})
    model = Model.build(cfg, FACTS)
    load_average(tmp_path / "straight" / "best.safetensors", model.named_weights())
    assert Validation(model, VALID, cfg.train.n_valid, cfg.train.device)() == losses[best]
