"""Provenance of a result: code, data, machine and cost, as the manifest records them."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import platform
import resource
import statistics
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.config.run import RunConfig, weights_run
from bench.records import schema
from bench.records import store as records
from bench.records.store import RunFolder
from bench.registry import backbones, datasets, measures, methods, tasks
from bench.run.code import code_version
from bench.run.evaluate import versions


def describe(cfg: RunConfig, name: str, data: dict[str, Any], n_parallel: int) -> dict[str, Any]:
    """A manifest at the start of a run; `data` is `DataSet.record()`."""
    return {
        "schema": schema.SCHEMA_VERSION,
        **planned(cfg, name, data),
        "status": "running",
        "reason": None,
        "weights_from": None,
        "code": code_version(),
        "sources": sources(cfg),
        "environment": {
            "device": device_name(cfg.train.device),
            "dtype": "float32; training under bf16 autocast" if cfg.train.bf16 else "float32",
            "n_threads": cfg.train.n_threads,
            **({"n_processes": cfg.train.n_processes} if cfg.train.n_processes > 1 else {}),
            "compile": "eager",
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "versions": versions(),
            "platform": platform.platform(),
            "n_cores": psutil.cpu_count() or 1,
            "memory_mb": memory_mb(cfg.train.device),
            "driver": driver(cfg.train.device),
        },
        "parameters": {"backbone": 0, "method": 0, "total": 0},
        "cost": {"n_parallel": n_parallel},
        "created": now(),
        "updated": now(),
    }


def planned(cfg: RunConfig, name: str, data: dict[str, Any]) -> dict[str, Any]:
    """The keys of a manifest that are known before the run starts."""
    method, backbone = methods[cfg.method.name].build, backbones[cfg.backbone.name].build
    return {
        "run": name,
        "study": cfg.study,
        "task": cfg.task.to_plain(),
        "method": cfg.method.to_plain(),
        "backbone": cfg.backbone.to_plain(),
        "seed": cfg.seed,
        "guarantee": str(method.guarantee_on(backbone.equivariant)),
        "baseline": method.is_baseline(),
        "n_steps": 0 if weights_run(cfg) else cfg.train.n_steps,
        "data": data,
    }


def sources(cfg: RunConfig) -> dict[str, str]:
    """SHA-256 of the file that registers each plug-in of a run, by kind and name."""
    given = [(methods, cfg.method), (backbones, cfg.backbone), (datasets, cfg.data), (tasks, cfg.task)]
    entries = [(registry, plugin.name) for registry, plugin in given]
    entries += [(measures, name) for name, options in cfg.measures.items() if options is not None]
    return {f"{registry.kind} {name}": _file_hash(registry[name].build) for registry, name in entries}


def _file_hash(build: Any) -> str:
    path = inspect.getsourcefile(inspect.unwrap(build))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def training_cost(folder: Path) -> dict[str, Any]:
    """Training times from steps.jsonl; the median over logging intervals leaves out warm-up and interruptions.

    Returns:
        keys of the manifest's 'cost'; none if steps.jsonl is empty.
    """
    steps = records.read_steps(RunFolder(folder).steps)
    if not steps:
        return {}
    ends = [{"step": 0, "seconds": 0.0}, *steps]
    rates = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(ends)]
    calls = sum((b["step"] - a["step"]) * b.get("network_calls", 1) for a, b in pairwise(ends))
    cost = {"train_seconds": steps[-1]["seconds"], "train_network_calls": round(calls)}
    return cost | {"step_seconds": statistics.median(rates[1:] or rates)}


def peak_memory_mb(device: str) -> float:
    """Peak memory in MiB: allocations on a GPU; on a CPU the resident memory of this OS process, libraries included."""
    if _is_gpu(device):
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux hands ru_maxrss down to child processes, and psutil has no peak there; VmHWM is this process's own
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def forget_peak_memory(device: str) -> None:
    """Reset the peak to the current usage, where the system supports it."""
    if _is_gpu(device):
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _is_gpu(device: str) -> bool:
    """By its name alone: a record of a failed run may name a device that torch does not know."""
    return device.partition(":")[0] == "cuda"


def device_name(device: str) -> str:
    """Name of the GPU or of the CPU."""
    if _is_gpu(device):
        # a login node may plan runs for GPUs that it lacks
        with contextlib.suppress(RuntimeError, AssertionError):  # no such number
            return torch.cuda.get_device_name(device) if torch.cuda.is_available() else f"{device}, none here"
        return f"{device}, none here"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"CPU: {line.split(':', 1)[1].strip()}"
    return f"CPU: {platform.processor() or platform.machine()}"


def memory_mb(device: str) -> float:
    """Total memory in MiB: the GPU's, or the machine's, limited by its control group."""
    if _is_gpu(device) and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    limits = [psutil.virtual_memory().total]
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # absent, or 'max'
            limits.append(int(path.read_text()))
    return min(limits) / 2**20


def driver(device: str) -> str | None:
    """Version of the GPU's driver."""
    if not _is_gpu(device):
        return None
    with contextlib.suppress(OSError):
        # NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  ...
        fields = Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split()
        return next((field for field in fields if field[:1].isdigit() and "." in field), None)
    return None


def now() -> str:
    """Current time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
