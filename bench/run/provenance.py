"""Where a result comes from: the manifest's facts on code, data, machine and cost."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import statistics
import subprocess
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
from bench.registry import methods
from bench.run.evaluate import package_version, versions


def describe(cfg: RunConfig, name: str, data: dict[str, Any], n_parallel: int) -> dict[str, Any]:
    """A manifest as it stands before anything was done; `data` is `DataSet.record()`."""
    return {
        "schema": schema.SCHEMA_VERSION,
        **planned(cfg, name, data),
        "status": "running",
        "reason": None,
        "weights_from": None,
        "code": code_version(),
        "environment": {
            "device": device_name(cfg.train.device),
            "dtype": "float32; training under bf16 autocast" if cfg.train.bf16 else "float32",
            "n_threads": cfg.train.n_threads,
            **({"n_processes": cfg.train.n_processes} if cfg.train.n_processes > 1 else {}),
            "compile": "eager",
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "versions": versions(),
            "platform": platform.platform(),
            "n_cores": os.cpu_count() or 1,
            "memory_mb": memory_mb(cfg.train.device),
            "driver": driver(cfg.train.device),
        },
        "parameters": {"backbone": 0, "method": 0, "total": 0},
        "cost": {"n_parallel": n_parallel},
        "created": now(),
        "updated": now(),
    }


def planned(cfg: RunConfig, name: str, data: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of a run that is known before it starts."""
    return {
        "run": name,
        "study": cfg.study,
        "method": cfg.method,
        "backbone": cfg.backbone,
        "seed": cfg.seed,
        "guarantee": str(methods[cfg.method["name"]].build.guarantee),
        "n_steps": 0 if weights_run(cfg) else cfg.train.n_steps,
        "data": data,
    }


def training_cost(folder: Path) -> dict[str, Any]:
    """Times from the step records: the median over logging intervals leaves warm-up and interruptions out. Nothing
    where all lines were lost."""
    steps = records.read_steps(RunFolder(folder).steps)
    if not steps:
        return {}
    ends = [{"step": 0, "seconds": 0.0}, *steps]
    rates = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(ends)]
    calls = sum((b["step"] - a["step"]) * b.get("network_calls", 1) for a, b in pairwise(ends))
    cost = {"train_seconds": steps[-1]["seconds"], "train_network_calls": round(calls)}
    return cost | {"step_seconds": statistics.median(rates[1:] or rates)}


def peak_memory_mb(device: str) -> float:
    """Peak of the device's allocations, or, on a CPU, of the process (libraries and data set included), in MiB."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # psutil has no peak on Linux, and ru_maxrss of a child starts at that of its parent
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def forget_peak_memory(device: str) -> None:
    """Let the peak start again from what is in use now, where the system can."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def device_name(device: str) -> str:
    """Of the processor that computes."""
    if torch.device(device).type == "cuda":
        # a launcher on a login node plans what it cannot compute
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else f"{device}, none here"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"CPU: {line.split(':', 1)[1].strip()}"
    return f"CPU: {platform.processor() or platform.machine()}"


def memory_mb(device: str) -> float:
    """What can be used at most, in MiB: the GPU's memory, or the machine's, within the control group's limit."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    limits = [psutil.virtual_memory().total]
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # absent, or 'max'
            limits.append(int(path.read_text()))
    return min(limits) / 2**20


def driver(device: str) -> str | None:
    """Version of the GPU's driver."""
    if torch.device(device).type != "cuda":
        return None
    with contextlib.suppress(OSError):
        # the first word of the first line that begins with a digit: ... Kernel Module  550.54.15  ...
        words = Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split()
        return next((word for word in words if word[:1].isdigit() and "." in word), None)
    return None


def code_version() -> dict[str, Any]:
    """Package version and, in a checkout, its commit and whether its code differs from that."""
    home = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(home), *args], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # publishing results must not mark the next run as modified
    changes = git("status", "--porcelain", "--", ":(top)bench", ":(top)methods")
    commit = git("rev-parse", "HEAD")
    return {
        "version": package_version(),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
