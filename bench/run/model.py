"""A model: the shared core, a backbone and a method, put together from a run's configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bench.config.run import RunConfig, options_of
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.process import Diffusion
from bench.diffusion.schedule import NoiseLevel
from bench.geometry.groups import GROUPS
from bench.geometry.state import State
from bench.registry import backbones, methods
from bench.streams import Stream, seed_of
from bench.symmetry.contract import Method, Setting


class Model(nn.Module):
    """Everything that a run trains, and the core that it shares with all others.

    Attributes:
        diffusion: schedule, scales, losses, likelihood.
        denoiser: the backbone as an estimate of the noise.
        method: the equivariance strategy.
    """

    def __init__(self, diffusion: Diffusion, denoiser: Denoiser, method: Method) -> None:
        super().__init__()
        self.diffusion, self.denoiser, self.method = diffusion, denoiser, method

    @classmethod
    def build(cls, cfg: RunConfig, elements: Sequence[int], mean_atoms: float) -> Model:
        """Initial weights follow from the seed; one backbone starts alike under every method."""
        diffusion = Diffusion(cfg.diffusion, elements, mean_atoms)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(cfg.seed, Stream.INIT, 0))
            channels = {"x": 3, "h": diffusion.n_features}
            backbone = backbones[cfg.backbone["name"]].build(options_of(backbones, cfg.backbone), channels)
            setting = Setting(GROUPS[cfg.group](), backbone, channels)
            method = methods[cfg.method["name"]].build(options_of(methods, cfg.method), setting)
        model = cls(diffusion, Denoiser(backbone), method)
        for module in model.modules():
            if "edm_compat" in vars(module):  # one switch for all parts that can repeat a published defect
                vars(module)["edm_compat"] = cfg.diffusion.edm_compat
        return model

    def predict(self, z_t: State, level: NoiseLevel, rng: torch.Generator) -> State:
        """The method's estimate of the noise."""
        return self.method.predict(self.denoiser, z_t, level, rng)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Each trained parameter once (a method may share layers with the backbone)."""
        return dict(self.named_parameters())

    def count_parameters(self) -> dict[str, int]:
        """Trained parameters of the backbone, of the method alone, and in all."""
        backbone = {id(p) for p in self.denoiser.parameters()}
        total = sum(p.numel() for p in self.parameters())
        own = sum(p.numel() for p in self.method.parameters() if id(p) not in backbone)
        return {"backbone": total - own, "method": own, "total": total}
