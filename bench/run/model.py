"""A model: a task's process, a backbone and a method, put together from a run's configuration."""

from __future__ import annotations

import torch
from torch import nn

from bench.config.run import RunConfig
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.process import Process
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.registry import backbones, methods, tasks
from bench.streams import Stream, seed_of
from bench.structures.dataset import Facts
from bench.symmetry.contract import Method, Setting
from bench.tasks.contract import Task


class Model(nn.Module):
    """Everything that a run trains, and the diffusion process shared by all runs.

    Attributes:
        task: what is generated.
        process: the task's diffusion process.
        denoiser: the backbone as an estimate of the parametrisation's quantity (such as the noise).
        method: the equivariance strategy.
    """

    def __init__(self, task: Task, denoiser: Denoiser, method: Method) -> None:
        super().__init__()
        self.task = task
        self.process: Process = task.process
        self.denoiser, self.method = denoiser, method

    @classmethod
    def build(cls, cfg: RunConfig, facts: Facts) -> Model:
        """Build with initial weights that follow from the seed; a backbone's are the same under every method."""
        task = make_task(cfg, facts)
        channels = task.process.channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(cfg.seed, Stream.INIT, 0))
            given = {} if task.context is None else {"context": task.context}
            backbone = backbones[cfg.backbone.name].build(cfg.backbone.options, channels, **given)
            setting = Setting(task.group, backbone, channels)
            method = methods[cfg.method.name].build(cfg.method.options, setting)
        model = cls(task, Denoiser(backbone, task.process.spaces), method)
        for module in model.modules():
            if "edm_compat" in vars(module):  # one switch for all modules that can reproduce a published defect
                vars(module)["edm_compat"] = cfg.diffusion.edm_compat
        return model

    def predict(self, z_t: State, level: Level, rng: torch.Generator) -> State:
        """The method's estimate of the parametrisation's quantity."""
        return self.method.predict(self.denoiser, z_t, level, rng)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name, each once (a method may share layers with the backbone)."""
        return dict(self.named_parameters())

    def count_parameters(self) -> dict[str, int]:
        """Trained parameters of the backbone, of the method alone, and in all."""
        backbone = {id(p) for p in self.denoiser.parameters()}
        total = sum(p.numel() for p in self.parameters())
        own = sum(p.numel() for p in self.method.parameters() if id(p) not in backbone)
        return {"backbone": total - own, "method": own, "total": total}


def make_task(cfg: RunConfig, facts: Facts) -> Task:
    """The task of a configuration, for a training set with these statistics."""
    return tasks[cfg.task.name].build(cfg.task.options, cfg.diffusion, cfg.group, facts)
