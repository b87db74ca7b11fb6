"""`equibench time` and the measure `cost`: what training and sampling steps cost, with the code and batches of a run.

Every step has its own batch, drawn by the data stream; making the batch is not timed, as in a run. Peak memory is that
of the timed steps: on a CPU of the whole interpreter, whose memory before them is `start_memory_mb`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.config.run import RunConfig, build, reason_to_skip
from bench.config.study import parse_override, set_dotted
from bench.diffusion.sampler import n_calls
from bench.geometry.state import State
from bench.registry import methods
from bench.run.acceleration import accelerate
from bench.run.batches import Batches, load_data
from bench.run.clock import clock
from bench.run.code import code_version
from bench.run.compile import compile_networks
from bench.run.evaluate import versions
from bench.run.model import Model
from bench.run.optimiser import TrainingState
from bench.run.provenance import device_name, forget_peak_memory, peak_memory_mb
from bench.run.roofline import training_work
from bench.run.sample import sample_prompt
from bench.run.train import BatchLoss, training_loss, training_step
from bench.streams import Streams
from bench.structures.dataset import DataSet
from bench.structures.structures import Structures
from bench.tasks.contract import Prompt

WARM_UP = 3  # untimed steps, which fault in the memory of the later ones
DENSITY = 0.1  # atoms per cubic angstrom of a synthetic cloud, about that of an organic solid
SPACING = 0.9  # least distance between its atoms, angstrom


def time_steps(
    cfg: RunConfig,
    n_steps: int,
    n_atoms: int | None = None,
    change: Callable[[RunConfig, Model], None] = lambda _cfg, _model: None,
    data: DataSet | None = None,
    n_sampling_steps: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time training steps of one run's configuration.

    Args:
        cfg: `train` gives batch size, precision, compilation, threads and device.
        n_steps: timed steps, and timed forward passes on the same batches.
        n_atoms: time on molecules of this size alone, synthetic ones if the data set has less than a batch of them.
        change: called on the model before anything is timed (tests swap in another implementation).
        data: the run's data set, if it is loaded already.
        n_sampling_steps: steps of each batch of samples to time, if any: `time_sampling`, or `time_samples_of` where
            `n_atoms` is given.
        on_step: called before each training step.
    Returns:
        the printed result: medians and quartiles of seconds, memory in MiB, sizes, provenance.
    Raises:
        ValueError: the method does not fit the backbone, or there is no such device.
    """
    settings = cfg.train
    if why := reason_to_skip(cfg):
        raise ValueError(why)
    device = torch.device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {settings.device}: torch sees no GPU here; use --device cpu")
    torch.set_num_threads(settings.n_threads)
    if data is None:
        data = load_data(cfg)
    label, molecules = choose(data, settings.batch_size, n_atoms)
    model = Model.build(cfg, data.facts).to(device)
    change(cfg, model)
    batches = Batches(molecules, model.task, settings.batch_size, cfg.seed, settings.device)
    prepared = [batches(step) for step in range(WARM_UP + n_steps)]
    timed = prepared[WARM_UP:]
    streams = Streams(cfg.seed, device)
    work = training_work(model, timed[0], streams.at(0))
    kernels = accelerate(model, settings)
    started = clock(device)
    compiled = compile_networks(model, data) if settings.compile else "eager"
    compile_seconds = clock(device) - started
    train = stepping(cfg, model, streams)

    def step(i: int, x0: State) -> object:
        on_step()
        return train(i, x0)

    def forward(i: int, x0: State) -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            return training_loss(model, x0, streams.at(i))

    step(0, model.task.encode(molecules.select(np.arange(1)), settings.device))  # libraries and optimiser state
    forget_peak_memory(settings.device)
    start, joules = peak_memory_mb(settings.device), energy(device)
    steps = seconds_of(step, prepared, device)
    spent = None if joules is None else (energy(device) or joules) - joules
    peak = peak_memory_mb(settings.device)
    forwards = seconds_of(forward, prepared, device)
    sampling: dict[str, float | int] = {}
    if n_sampling_steps and n_atoms is None:
        sampling = time_sampling(cfg, model, data, n_sampling_steps)
    elif n_sampling_steps and n_atoms is not None:
        sampling = time_samples_of(cfg, model, n_atoms, n_sampling_steps)
    return {
        **sampling,
        **({} if spent is None else {"step_joules": spent / len(prepared)}),
        **({"compile_seconds": compile_seconds} if settings.compile else {}),
        "method": cfg.method.name,
        "backbone": cfg.backbone.name,
        "size": cfg.backbone.size or "default",
        "step_seconds": statistics.median(steps),
        "step_seconds_quartiles": quartiles(steps),
        "forward_seconds": statistics.median(forwards),
        "forward_seconds_quartiles": quartiles(forwards),
        "peak_memory_mb": round(peak, 1),
        "start_memory_mb": round(start, 1),
        "parameters": model.count_parameters()["total"],
        "device": device_name(settings.device),
        "dtype": "bf16" if settings.bf16 else "float32",
        "compile": compiled,
        "kernels": kernels,
        "threads": settings.n_threads,
        "batch": len(timed[0]),
        "atoms": statistics.fmean(x0.layout.n_total for x0 in timed),
        "edges": statistics.fmean(x0.layout.n_pairs - x0.layout.n_total for x0 in timed),
        "molecules": label,
        "steps": n_steps,
        "flops": work.flops,
        "bytes": work.bytes,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "load": os.getloadavg()[0],  # other work included: above the number of cores, times are too long
        "code": code_version(),
        "versions": versions(),
    }


def time_sampling(cfg: RunConfig, model: Model, data: DataSet, n_steps: int) -> dict[str, float]:
    """Seconds of a network call while sampling, over three batches of the run: sizes ascend, so these span all of them.

    Returns:
        `call_seconds`, their mean, and `sample_seconds_per_molecule`, of all batches and all steps of the run.
    """
    settings, device = cfg.sample, torch.device(cfg.train.device)
    prompts = model.task.prompts(settings.n_molecules, settings.batch_size, settings.seed, data)
    chosen = [prompts[i] for i in np.linspace(0, len(prompts) - 1, 3).round().astype(int)]
    few = dataclasses.replace(settings, n_steps=min(n_steps, settings.n_steps))
    sample_prompt(model, chosen[0], few, cfg.train.device)  # first calls are slow
    started = clock(device)
    for prompt in chosen:
        sample_prompt(model, prompt, few, cfg.train.device)
    made, asked = (n_calls(model.process.path, settings.sampler, n) for n in (few.n_steps, settings.n_steps))
    seconds = (clock(device) - started) / (len(chosen) * made)
    return {
        "call_seconds": seconds,
        "sample_seconds_per_molecule": seconds * asked * len(prompts) / settings.n_molecules,
    }


def time_samples_of(cfg: RunConfig, model: Model, n_atoms: int, n_steps: int) -> dict[str, float | int]:
    """Seconds and peak memory of sampling one batch, of training's size, of molecules of one size, after a warm-up.

    Returns:
        `sampling_steps`, `sampling_seconds` of all of them, and `sampling_peak_memory_mb` of the process, as of steps.
    Raises:
        ValueError: samples need a context, such as a bond graph, and there is none of any given size.
    """
    if model.task.context is not None:
        raise ValueError(
            f"samples of task '{cfg.task.name}' are of given molecules, not of a given size; leave out one"
        )
    device, batch = torch.device(cfg.train.device), cfg.train.batch_size
    prompt = Prompt(0, np.arange(batch), np.full(batch, n_atoms), n_atoms)
    sample_prompt(model, prompt, dataclasses.replace(cfg.sample, n_steps=1), cfg.train.device)
    forget_peak_memory(cfg.train.device)
    started = clock(device)
    sample_prompt(model, prompt, dataclasses.replace(cfg.sample, n_steps=n_steps), cfg.train.device)
    return {
        "sampling_steps": n_steps,
        "sampling_seconds": clock(device) - started,
        "sampling_peak_memory_mb": round(peak_memory_mb(cfg.train.device), 1),
    }


def energy(device: torch.device) -> float | None:
    """Joules that the GPU has used since its driver was loaded, by NVML; None where nothing reports it."""
    if device.type != "cuda":
        return None
    with contextlib.suppress(Exception):  # no pynvml, no NVML, or a GPU without a meter
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        torch.cuda.synchronize(device)
        return nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByUUID(uuid)) / 1000
    return None


def stepping(cfg: RunConfig, model: Model, streams: Streams) -> Callable[[int, State], object]:
    """The training step of a run, called with its number and batch, starting from fresh weights."""
    settings = cfg.train
    state, loss_of = TrainingState.at_start(model.named_weights(), settings), BatchLoss(model)
    return lambda i, x0: training_step(loss_of, [x0], [streams.at(i)], settings, state, settings.lr)


def seconds_of(action: Callable[[int, State], object], prepared: list[State], device: torch.device) -> list[float]:
    """Time of an action on each batch after the first `WARM_UP`; freeing its result is timed too."""
    times = []
    for i, x0 in enumerate(prepared):
        started = clock(device)
        action(i, x0)
        times.append(clock(device) - started)
    return times[WARM_UP:]


def quartiles(values: list[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, [0.25, 0.75])]


def choose(data: DataSet, batch: int, n_atoms: int | None) -> tuple[str, Structures]:
    """Molecules to time on, with a label: all of the data set, those of one size, or synthetic clouds of that size."""
    if n_atoms is None:
        return data.label, data.train
    of_size = data.train.select(data.train.n_atoms == n_atoms)
    if len(of_size) >= batch:
        return f"{data.label}, {n_atoms} atoms each", of_size
    return f"synthetic clouds of {n_atoms} atoms", clouds(n_atoms, batch, data)


def clouds(n_atoms: int, n_molecules: int, data: DataSet, seed: int = 0) -> Structures:
    """Random balls of atoms at the density of an organic solid, with the element frequencies of the data."""
    rng = np.random.default_rng(seed)
    radius = (3 * n_atoms / (4 * np.pi * DENSITY)) ** (1 / 3)
    made = []
    for _ in range(n_molecules):
        x = np.empty((0, 3))
        while len(x) < n_atoms:
            new = rng.uniform(-radius, radius, size=3)
            if np.linalg.norm(new) <= radius and (np.linalg.norm(x - new, axis=1) > SPACING).all():
                x = np.vstack([x, new])
        made.append((rng.choice(data.train.numbers, size=n_atoms), x.astype(np.float32)))
    return Structures.from_list(made)


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    low, high = result["step_seconds_quartiles"]
    gflop = result["flops"] / 1e9
    rows = {
        "run": f"{result['method']} on {result['backbone']} ({result['size']}), {result['parameters']:,} parameters",
        "molecules": f"{result['batch']} a step of {result['molecules']}: "
        f"{result['atoms']:.0f} atoms, {result['edges']:.0f} edges",
        "machine": f"{result['device']}, threads {result['threads']}, {result['dtype']}, {result['compile']}",
        "kernels": ", ".join(result["kernels"]) or "none: plain torch",
        "training step": f"{result['step_seconds']:.4f} s (quartiles {low:.4f} to {high:.4f}, {result['steps']} steps)",
        "of it forward": f"{result['forward_seconds']:.4f} s",
        "peak memory": f"{result['peak_memory_mb']:.0f} MiB, of which {result['start_memory_mb']:.0f} before the step",
        "arithmetic": f"{gflop:.1f} GFLOP, {gflop / result['step_seconds']:.1f} GFLOP/s",
    }
    return "\n".join(f"{name:16}{value}" for name, value in rows.items())


def run_config(
    method: str, backbone: str, size: str | None, data_dir: str | None, overrides: list[str], **train: Any
) -> RunConfig:
    """A run's configuration from the command line.

    Args:
        size: of the backbone, and of the method where it has one of that name.
        data_dir: folder with QM9, else the environment's QM9_DIR, else the embedded set; where no `data.name` is given.
        overrides: e.g. 'method.kernel_width=48'.
    Raises:
        ConfigError: a name or an option that does not exist.
    """
    page: dict[str, Any] = {"study": "time", "method": {"name": method}, "backbone": {"name": backbone}, "train": train}
    if size is not None:
        page["backbone"]["size"] = size
        if method in methods and size in getattr(methods[method].build, "sizes", {}):
            page["method"]["size"] = size
    for item in overrides:
        set_dotted(page, *parse_override(item))
    given = page.get("data", {})
    if isinstance(given, dict) and "name" not in given:
        folder = data_dir or os.environ.get("QM9_DIR")
        page["data"] = ({"name": "qm9", "dir": folder} if folder else {"name": "mini"}) | given
    return build(RunConfig, page)
