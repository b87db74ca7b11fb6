"""Installs the optional kernels of `bench.kernels` in a model, if configured and available."""

from __future__ import annotations

import importlib
import importlib.util

import torch

from bench.config.run import Kernels, TrainConfig
from bench.run.model import Model


def accelerate(model: Model, settings: TrainConfig) -> list[str]:
    """Install kernels in a model according to its configuration.

    Returns:
        names of the kernels installed: none with `train.kernels: off` or `train.compile`, off the CPU, without a C
        compiler, or without the package `bench.kernels`, which may be deleted.
    """
    if settings.kernels is Kernels.OFF or settings.compile or torch.device(settings.device).type != "cpu":
        return []
    spec = importlib.util.find_spec("bench.kernels")
    if spec is None or spec.origin is None:  # no origin: a folder without code
        return []
    return importlib.import_module("bench.kernels").install(model)
