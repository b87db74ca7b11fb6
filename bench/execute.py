"""One run from configuration to evaluation: train, sample, score; each part resumes where it was cut."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import platform
import resource
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from bench import records
from bench.checkpoint import load_average
from bench.compilation import compile_networks
from bench.config import ConfigError, RunConfig, TrainConfig, options_of, weights_run
from bench.data.dataset import DataSet
from bench.data.sizes import SizeDistribution
from bench.evaluate import evaluate, sample_run, versions
from bench.model import Model
from bench.registry import datasets, methods
from bench.sample import weights_file
from bench.train import train

log = logging.getLogger("equibench")


class BusyError(RuntimeError):
    """Another process is working on this run."""


def load_data(cfg: RunConfig) -> DataSet:
    """The run's data set."""
    return datasets[cfg.data["name"]].build(options_of(datasets, cfg.data))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the lock dies with its process, so a crash leaves none behind."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"{folder} is being worked on by another process") from None
        yield


def is_done(cfg: RunConfig, folder: Path) -> bool:
    """Whether the folder holds the finished evaluation of exactly this configuration."""
    try:
        if records.read_json(folder / "manifest.json")["status"] not in ("done", "skipped"):
            return False
        return yaml.safe_load((folder / "config.yaml").read_text()) == cfg.page()
    except (FileNotFoundError, records.RecordError, KeyError, yaml.YAMLError):
        return False


def execute(cfg: RunConfig, folder: Path, n_parallel: int = 1) -> None:
    """Do what is missing of one run. The outcome, also of a failure, stands in its manifest.

    Raises:
        BusyError: another process has the run.
        Exception: whatever stopped the run, after it was recorded.
    """
    with locked(folder):
        if is_done(cfg, folder):
            return
        torch.set_num_threads(cfg.train.n_threads)
        handler = logging.FileHandler(folder / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logging.getLogger("equibench").addHandler(handler)
        try:
            _execute(cfg, folder, n_parallel)
        finally:
            logging.getLogger("equibench").removeHandler(handler)
            handler.close()


def _execute(cfg: RunConfig, folder: Path, n_parallel: int) -> None:
    if torch.device(cfg.train.device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"train.device is {cfg.train.device!r}, but torch sees no GPU here; set train.device=cpu")
    data = load_data(cfg)
    model = Model.build(cfg, data.elements, data.mean_atoms)
    forget_other_settings(cfg, folder)
    records.write_atomically(folder / "config.yaml", yaml.safe_dump(cfg.page(), sort_keys=False).encode())
    about = {
        "elements": list(data.elements),
        "mean_atoms": data.mean_atoms,
        "sizes": {str(n): c for n, c in data.size_histogram.items()},
    }
    records.write_json(folder / "data.json", about)
    manifest = describe(cfg, folder.name, data, n_parallel)
    manifest["environment"]["compile"] = compile_networks(model, data) if cfg.train.compile else "eager"
    manifest["parameters"] = model.count_parameters()

    def save(status: str, reason: str | None = None) -> None:
        manifest.update(status=status, reason=reason, updated=now())
        records.write_json(folder / "manifest.json", manifest, records.MANIFEST)

    save("running")
    try:
        parent = weights_run(cfg)
        if parent is None:
            train(
                cfg,
                model,
                data.train,
                data.valid,
                folder,
                lambda step: log.info("step %d of %d", step, cfg.train.n_steps),
            )
            manifest["cost"] |= training_cost(folder)
            manifest["cost"]["peak_memory_mb"] = peak_memory_mb(cfg.train)
            save("running")
            step = cfg.train.n_steps
        else:
            manifest["weights_from"] = parent.run_name(data.fingerprint)
            step = load_average(weights_file(folder, manifest["weights_from"]), model.named_weights())
        samples, cost = sample_run(cfg, model, SizeDistribution(data.size_histogram), folder)
        manifest["cost"] |= cost
        manifest["cost"].setdefault("peak_memory_mb", peak_memory_mb(cfg.train))
        evaluate(cfg, model, step, samples, data, folder)
    except BaseException as error:
        line = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        log.error("failed: %s", line, exc_info=not isinstance(error, KeyboardInterrupt))
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            save("failed", line)
        raise
    save("done")
    log.info("done")


def forget_other_settings(cfg: RunConfig, folder: Path) -> None:
    """Remove samples that belong to another number of steps or to other sampling settings."""
    if not (folder / "config.yaml").exists():
        return
    before, page = yaml.safe_load((folder / "config.yaml").read_text()), cfg.page()
    if before["sample"] != page["sample"] or before["train"]["n_steps"] != page["train"]["n_steps"]:
        shutil.rmtree(folder / "chunks", ignore_errors=True)
        for name in ("samples.npz", "samples.json", "eval.json"):
            (folder / name).unlink(missing_ok=True)


def describe(cfg: RunConfig, name: str, data: DataSet, n_parallel: int) -> dict[str, Any]:
    """A manifest as it stands before anything was done."""
    return {
        "schema": records.SCHEMA_VERSION,
        "run": name,
        "study": cfg.study,
        "status": "running",
        "reason": None,
        "method": cfg.method,
        "backbone": cfg.backbone,
        "seed": cfg.seed,
        "guarantee": str(methods[cfg.method["name"]].build.guarantee),
        "n_steps": 0 if weights_run(cfg) else cfg.train.n_steps,
        "weights_from": None,
        "data": data.record(),
        "code": code_version(),
        "environment": {
            "device": device_name(cfg.train.device),
            "dtype": "float32; training under bf16 autocast" if cfg.train.bf16 else "float32",
            "n_threads": cfg.train.n_threads,
            "compile": "eager",
            "versions": versions(),
            "platform": platform.platform(),
        },
        "parameters": {"backbone": 0, "method": 0, "total": 0},
        "cost": {"n_parallel": n_parallel},
        "created": now(),
        "updated": now(),
    }


def training_cost(folder: Path) -> dict[str, Any]:
    """Times from the step records: the median over logging intervals leaves warm-up and interruptions out."""
    steps = records.read_steps(folder / "steps.jsonl")
    ends = [{"step": 0, "seconds": 0.0}, *steps]
    rates = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(ends)]
    cost = {"train_seconds": steps[-1]["seconds"], "train_network_calls": steps[-1]["step"]}
    return cost | {"step_seconds": statistics.median(rates[1:] or rates)}


def peak_memory_mb(settings: TrainConfig) -> float:
    """Peak of the device's allocations, or, on a CPU, of the process (libraries and data set included)."""
    if torch.device(settings.device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def device_name(device: str) -> str:
    """Of the processor that computes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"CPU: {line.split(':', 1)[1].strip()}"
    return f"CPU: {platform.processor() or platform.machine()}"


def code_version() -> dict[str, Any]:
    """Package version and, in a checkout, its commit and whether files that it tracks differ from it."""
    from importlib import metadata

    home = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(home), *args], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # results are no code: publishing them must not mark the next run as modified
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)bench", ":(top)methods")
    try:
        version = metadata.version("equibench")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {"version": version, "commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
