"""The diffusion process: noising, and the training loss of a prediction against a target.

A state has named parts, each in a space of its own (`bench.geometry.spaces`); a path maps a time to a noise level
(`bench.diffusion.paths`); a parametrisation is what the network estimates. The defaults are those of all
published QM9 runs: arXiv:2203.17003, equations 5-12 and appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.diffusion.decoder import Decoder
from bench.diffusion.parametrisation import LossWeight, Parametrisation
from bench.diffusion.paths import ByPart, Path, PathName, Prior, TablePath, make_path
from bench.geometry.harmonic import scaled
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Centred, Spaces
from bench.geometry.state import State


@dataclass
class DiffusionConfig:
    """Options of the process."""

    path: PathName = PathName.POLYNOMIAL
    n_levels: int = 1000  # T of discrete paths
    precision: float = 1e-5  # s of the polynomial schedule
    parametrisation: Parametrisation = Parametrisation.NOISE
    loss_weight: LossWeight = LossWeight.ONE
    prior: Prior = Prior.GAUSSIAN  # what path 'linear' starts from
    bridge_noise: float = 0.0  # b of path 'linear', in scaled units: noise b sqrt(t (1 - t)) between its ends
    time_power: float = 1.0  # training draws t = u^time_power for uniform u: above 1, more small times
    # reproduce three defects of the published code. (1) The training error is divided by (3 + F) times the padded atom
    # count of the batch, the feature term at t = 0 is not divided: the weight of an atom depends on its batch. (2) The
    # DiT's pair embedding sums its bias over padded columns (`GaussianPairEmbedding`): so do predictions. (3) The DiT's
    # time features are made for 0..1000 and see t in [0, 1]: `time_scale` must be 1, which is also its default
    edm_compat: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.precision < 0.5:
            raise ValueError(f"'diffusion.precision' is {self.precision}, expected a number between 0 and 0.5")
        if not 0 < self.time_power < math.inf:
            raise ValueError(f"'diffusion.time_power' is {self.time_power}, expected a positive number")
        if not 0 <= self.bridge_noise < math.inf:
            raise ValueError(f"'diffusion.bridge_noise' is {self.bridge_noise}, expected a number that is not negative")
        if self.path is not PathName.LINEAR and (self.bridge_noise or self.prior is not Prior.GAUSSIAN):
            raise ValueError(
                f"'diffusion.prior' {self.prior.value!r} and 'diffusion.bridge_noise' {self.bridge_noise:g} need path "
                f"'linear', got {self.path.value!r}"
            )


def squared_error(prediction: State, target: State) -> Float[Tensor, "B"]:
    """0.5 |prediction - target|^2 over all parts ('l2' of arXiv:2203.17003)."""
    return 0.5 * prediction.combine(target, torch.sub).squared_norm()


def by_part(main: Path, own: Mapping[str, PathName], cfg: DiffusionConfig) -> ByPart:
    """The path of the configuration beside those of some parts; ValueError where they do not go together."""
    paths = {part: make_path(name, cfg.n_levels, cfg.precision) for part, name in own.items()}
    lengths = {path.last if isinstance(path, TablePath) else None for path in (main, *paths.values())}
    if not isinstance(main, TablePath) or len(lengths) > 1:
        raise ValueError(f"path {cfg.path.value!r} cannot run beside {', '.join(own.values())}: choose a discrete one")
    if cfg.loss_weight is not LossWeight.ONE:
        raise ValueError("'diffusion.loss_weight' is 'snr', which parts with paths of their own do not share")
    return ByPart(main, {part: path for part, path in paths.items() if isinstance(path, TablePath)})


class Process(nn.Module):
    """The diffusion process, the same for every method.

    Args:
        spaces: the space of each part of a state.
        cfg: options.
        mean_atoms: mean atom count of the training set, for the loss denominator.
        decoder: p(x, h | z_0) for discrete features; None: the last estimate of the clean state is the sample.
        own_paths: names of the paths of parts that do not take that of the configuration.
        weights: how much a part's squared error counts in the training loss, where that is not 1.
        corrector_step: size of a corrector's step at the least noise (`bench.diffusion.sampler`); None: no corrector.
    Raises:
        ValueError: incompatible options.
    """

    def __init__(
        self,
        spaces: Spaces,
        cfg: DiffusionConfig,
        mean_atoms: float = 1.0,
        decoder: Decoder | None = None,
        own_paths: Mapping[str, PathName] | None = None,
        weights: Mapping[str, float] | None = None,
        corrector_step: float | None = None,
    ) -> None:
        super().__init__()
        self.spaces, self.cfg, self.mean_atoms, self.decoder = spaces, cfg, mean_atoms, decoder
        self.weights, self.corrector_step = dict(weights or {}), corrector_step
        self.path = make_path(cfg.path, cfg.n_levels, cfg.precision, cfg.prior, cfg.bridge_noise)
        if own_paths:
            self.path = by_part(self.path, own_paths, cfg)
        if cfg.prior is Prior.HARMONIC and not all(isinstance(space, Centred) for space in spaces.values()):
            raise ValueError(f"prior 'harmonic' takes positions alone, got parts {', '.join(spaces)}")
        self.parametrisation = cfg.parametrisation
        if cfg.parametrisation in (Parametrisation.CLEAN, Parametrisation.VELOCITY):
            spaces.require_linear(f"parametrisation {cfg.parametrisation.value!r}")
        if not spaces.linear and cfg.path is not PathName.VARIANCE_EXPLODING:
            raise ValueError(f"a torus takes path 'variance_exploding', got {cfg.path.value!r}")
        if cfg.parametrisation is Parametrisation.VELOCITY and cfg.path is not PathName.LINEAR:
            raise ValueError(f"parametrisation 'velocity' takes path 'linear', got {cfg.path.value!r}")
        if cfg.parametrisation is Parametrisation.UNIT and spaces.linear:
            raise ValueError("parametrisation 'unit' is the noise but on a torus; choose 'noise'")
        if cfg.path is PathName.LINEAR and cfg.parametrisation in (Parametrisation.NOISE, Parametrisation.SCORE):
            raise ValueError(
                f"path 'linear' takes parametrisation 'velocity' or 'clean', got {cfg.parametrisation.value!r}"
            )
        if decoder is not None:
            if cfg.parametrisation is not Parametrisation.NOISE or cfg.path is PathName.LINEAR:
                raise ValueError("a decoder of discrete features needs parametrisation 'noise' and a discrete path")
            # on the CPU, where the table lies even while the model is built on the meta device
            decoder.check(self.path.at(torch.zeros(1, dtype=torch.long, device="cpu")).sigma.item())

    @property
    def channels(self) -> dict[str, int]:
        """Columns of each part, for the constructor of a backbone."""
        return self.spaces.channels

    def noise(
        self, layout: Layout, rng: torch.Generator, dtype: torch.dtype = torch.float32, context: Any = None
    ) -> State:
        """eps: standard normal on every part's space."""
        return self.spaces.noise(layout, rng, dtype, context)

    def prior(self, noise: State) -> State:
        """Initial state of sampling, from the standard normal `noise`."""
        if self.cfg.prior is Prior.HARMONIC:
            last = self.path.at(torch.ones(len(noise), dtype=torch.float64, device=noise.layout.device), noise.dtype)
            return scaled(noise, last, lambda level: level.sigma)
        return self.spaces.prior(noise, {part: self.path.of(part).prior_sigma for part in self.spaces})

    def noising(self, clean: State, noise: State, level: Level) -> State:
        """z_t = alpha x0 + sigma eps."""
        return self.spaces.move(clean, noise, level)

    def noised(self, clean: State, noise: State, level: Level) -> Noised:
        """z_t with its clean state, expected noise and level, as the hooks of a method receive them."""
        z_t = self.noising(clean, noise, level)
        return Noised(clean, self.spaces.expected_noise(noise, z_t, clean, level), z_t, level, self.spaces)

    def draw(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Level:
        """n independent levels to train on; their distribution is `cfg.time_power`'s."""
        return self.path.draw(n, rng, 0, dtype, self.cfg.time_power)

    def quantile(self, share: Float[Tensor, "B"], dtype: torch.dtype = torch.float32) -> Level:
        """Levels below which these shares of those trained on lie; not t = 0 where the decoder's term applies."""
        return self.path.quantile(share, 0 if self.decoder is None else 1, dtype, self.cfg.time_power)

    def draw_uniform(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Level:
        """n independent levels, uniform in t, without t = 0 where the decoder's term applies."""
        return self.path.draw(n, rng, 0 if self.decoder is None else 1, dtype)

    def training_loss(
        self, error: Float[Tensor, "B"], prediction: State, target: State, noised: Noised
    ) -> Float[Tensor, "B"]:
        """Loss of each molecule: the method's error for t > 0, the decoder's term for t = 0, over one constant.

        Args:
            error: the method's own error, used where t > 0 or where there is no decoder.
            target: regression target.
        Returns:
            [B], dimensionless. The constant is the number of channels times the data set's mean atom count: each atom
            weighs as in the bound, and nothing else in a batch changes a molecule's loss.
        """
        for part, weight in self.weights.items():
            off = State({part: prediction.parts[part] - target.parts[part]}, target.layout)
            error = error + 0.5 * (weight - 1) * off.squared_norm()
        width = sum(self.channels.values())
        denominator = width * (noised.clean.layout.n_padded if self.cfg.edm_compat else self.mean_atoms)
        loss = error * self.cfg.loss_weight.of(noised.level) / denominator
        if self.decoder is None:
            return loss
        reconstruction, features = self.decoder.terms(prediction, target, noised)
        if self.cfg.edm_compat:
            at_zero = reconstruction / denominator + features
        else:
            at_zero = (reconstruction + features) / denominator
        return torch.where(noised.level.t == 0, at_zero, loss)
