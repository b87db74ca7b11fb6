"""Variational diffusion of molecules on the centre-of-mass-free space: noising, training error, likelihood bound.

State: x [A, 3] with zero centre of mass in each molecule, and features h [A, F]: one channel per element (one-hot) and,
with `include_charges`, one channel with the nuclear charge. In a diffusion step everything is divided by the scales
[1, 4, 10] (positions, one-hot, charge); outside of this package positions are in angstrom.

Source: Hoogeboom et al. (arXiv:2203.17003), equations 5-12 and appendices A, B; Kingma et al., Variational diffusion
models (arXiv:2107.00630). Unit of all likelihoods: nats per molecule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.diffusion.schedule import NoiseLevel, NoiseSchedule
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.structures.structures import Structures

Predict = Callable[[State, NoiseLevel], State]


@dataclass
class DiffusionConfig:
    """Options of the shared core; the defaults are those of all published QM9 runs, but for the loss denominator."""

    n_levels: int = 1000  # T
    precision: float = 1e-5  # s of the schedule
    include_charges: bool = True
    scale_position: float = 1.0
    scale_onehot: float = 4.0
    scale_charge: float = 10.0
    # three defects of the published code at once. (1) The training error is divided by (3 + F) times the padded atom
    # count of the batch, the feature term at t = 0 is not divided: the weight of an atom depends on its batch. (2) The
    # DiT's pair embedding sums its bias over padded columns (`GaussianPairEmbedding`): so do predictions. (3) The DiT's
    # time features are made for 0..1000 and see t in [0, 1]: `time_scale` must be 1, which is also its default
    edm_compat: bool = False


def weighted_error(eps_hat: State, eps: State, level: NoiseLevel) -> Float[Tensor, "B"]:
    """0.5 |eps_hat - eps|^2 over positions and features: weight 1 in noise space ('l2' of arXiv:2203.17003)."""
    del level
    return 0.5 * eps_hat.combine(eps, torch.sub).squared_norm()


class Diffusion(nn.Module):
    """The shared core: everything that must be the same for every method.

    Args:
        cfg: options.
        elements: nuclear charges that occur, ascending; their order is that of the one-hot channels.
        mean_atoms: mean atom count of the training set, of which the loss denominator is made.
    """

    def __init__(self, cfg: DiffusionConfig, elements: Sequence[int], mean_atoms: float) -> None:
        super().__init__()
        self.cfg = cfg
        self.elements = tuple(elements)
        self.mean_atoms = mean_atoms
        self.schedule = NoiseSchedule(cfg.n_levels, cfg.precision)
        if 8 * math.sqrt(torch.sigmoid(self.schedule.gamma[0]).item()) > 1 / max(cfg.scale_onehot, cfg.scale_charge):
            raise ValueError(
                f"features scaled by {cfg.scale_onehot} and {cfg.scale_charge} drown in the decoder's noise; "
                "scales must stay below 1 / (8 sigma_0)"
            )

    @property
    def n_elements(self) -> int:
        return len(self.elements)

    @property
    def n_features(self) -> int:
        """F: one-hot channels and the charge channel."""
        return self.n_elements + int(self.cfg.include_charges)

    # ------------------------------------------------------------------ data <-> state

    def encode(
        self, structures: Structures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Scaled, centred state of real molecules.

        Raises:
            ValueError: an element that the model does not know.
        """
        index = np.searchsorted(self.elements, structures.numbers)
        known = np.asarray(self.elements)[np.minimum(index, self.n_elements - 1)] == structures.numbers
        if not known.all():
            raise ValueError(
                f"nuclear charges {sorted(set(structures.numbers[~known].tolist()))} are not among "
                f"the model's elements {self.elements}"
            )
        h = np.zeros((len(index), self.n_features))
        h[np.arange(len(index)), index] = 1 / self.cfg.scale_onehot
        if self.cfg.include_charges:
            h[:, -1] = structures.numbers / self.cfg.scale_charge
        x = torch.from_numpy(np.ascontiguousarray(structures.positions)).to(device, dtype) / self.cfg.scale_position
        return State({"x": x, "h": torch.from_numpy(h).to(device, dtype)}, Layout(structures.n_atoms, device)).centred()

    def decode(self, state: State) -> Structures:
        """State of a final state: elements by the largest one-hot channel, positions in angstrom.

        All `n_elements` channels take part, with or without a charge channel (the published code drops the last
        element when there is none). The charge channel is a feature only; it does not decide the element.
        """
        index = state.h[:, : self.n_elements].argmax(1).cpu().numpy()
        return Structures(
            numbers=np.asarray(self.elements, dtype=np.int64)[index],
            positions=(state.x * self.cfg.scale_position).cpu().numpy(),
            ptr=state.ptr.cpu().numpy(),
        )

    # ------------------------------------------------------------------ noising and the training error

    def noise(self, layout: Layout, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> State:
        """eps = [P n_x, n_h] with n standard normal: unit variance on U and on features."""
        n = torch.randn(layout.n_total, 3 + self.n_features, generator=rng, device=rng.device, dtype=dtype)
        return State({"x": n[:, :3], "h": n[:, 3:]}, layout).centred()

    def noising(self, x0: State, eps: State, level: NoiseLevel) -> State:
        """z_t = alpha x0 + sigma eps."""
        alpha, sigma = x0.per_atom(level.alpha)[:, None], x0.per_atom(level.sigma)[:, None]
        return x0.combine(eps, lambda clean, noise: alpha * clean + sigma * noise)

    def noise_target(self, target: State, x0: State, eps: State, level: NoiseLevel) -> State:
        """The noise that goes with a target T for x0 at fixed z_t: eps + (alpha / sigma) (x0 - T).

        Exact for T = x0 and free of the cancellation of (z_t - alpha T) / sigma at small sigma.
        """
        if target is x0:
            return eps
        ratio = x0.per_atom(level.alpha / level.sigma)[:, None]
        shift = x0.combine(target, lambda clean, wanted: ratio * (clean - wanted))
        return eps.combine(shift, torch.add)

    def training_loss(
        self,
        error: Float[Tensor, "B"],
        eps_hat: State,
        eps: State,
        x0: State,
        z_t: State,
        level: NoiseLevel,
    ) -> Float[Tensor, "B"]:
        """Loss of each molecule: the method's error for t > 0, the decoder's term for t = 0, over one constant.

        Args:
            error: the method's own error [B], used where t > 0.
            eps: the noise regressed on.
        Returns:
            [B], dimensionless. The constant is (3 + F) times the data set's mean atom count: each atom weighs as in
            the bound, and nothing else in a batch changes a molecule's loss.
        """
        reconstruction = 0.5 * x0.sum_over_atoms((eps_hat.x - eps.x).square().sum(1))
        features = -self.feature_log_likelihood(x0, z_t, level)
        width = 3 + self.n_features
        if self.cfg.edm_compat:
            denominator = width * x0.layout.n_padded
            at_zero = reconstruction / denominator + features
        else:
            denominator = width * self.mean_atoms
            at_zero = (reconstruction + features) / denominator
        return torch.where(level.t == 0, at_zero, error / denominator)

    # ------------------------------------------------------------------ likelihood

    def feature_log_likelihood(self, x0: State, z_0: State, level: NoiseLevel) -> Float[Tensor, "B"]:
        """log p(h | z_0) of the decoder: Gaussian mass in the unit bin around each integer (arXiv:2203.17003, eq. 12).

        It depends on z_0 alone, not on the network.
        """
        sigma = x0.per_atom(level.sigma)[:, None]
        onehot, scale = x0.h[:, : self.n_elements], self.cfg.scale_onehot
        log_mass = _log_bin_mass(z_0.h[:, : self.n_elements] * scale - 1.0, sigma * scale)
        per_atom = (log_mass * onehot * scale).sum(1) - torch.logsumexp(log_mass, dim=1)
        if self.cfg.include_charges:
            scale = self.cfg.scale_charge
            per_atom = per_atom + _log_bin_mass((x0.h[:, -1:] - z_0.h[:, -1:]) * scale, sigma * scale)[:, 0]
        return x0.sum_over_atoms(per_atom)

    def log_constants(self, layout: Layout) -> Float[Tensor, "B"]:
        """C0 = 3(N-1) (gamma_0 + log 2 pi) / 2, minus the log of the decoder's normalisation on U, and the change of
        volume 3(N-1) log(scale) from scaled units to angstrom."""
        dims = 3.0 * (layout.n_atoms.double() - 1)
        return dims * (0.5 * self.schedule.gamma[0] + 0.5 * math.log(2 * math.pi) + math.log(self.cfg.scale_position))

    def prior_kl(self, x0: State) -> Float[Tensor, "B"]:
        """KL(q(z_T | x0) || N(0, I)), 3(N-1) dimensions for positions and N F for features."""
        alpha2, sigma2 = torch.sigmoid(-self.schedule.gamma[-1]), torch.sigmoid(self.schedule.gamma[-1])
        n = x0.n_atoms.double()
        dims = 3 * (n - 1) + self.n_features * n
        return 0.5 * (dims * (sigma2 - 1 - torch.log(sigma2)) + alpha2 * x0.squared_norm().double())

    def bound(
        self, x0: State, predict: Predict, time_rng: torch.Generator, noise_rng: torch.Generator
    ) -> dict[str, Tensor]:
        """One draw of the variational bound of -log p(x, h | N), unbiased over t and noise.

        NLL = KL_T + T E_{t ~ U{1..T}} [ (e^{gamma_t - gamma_s} - 1) |eps - eps_hat|^2 / 2 ] + L0 + C0, s = t - 1
        (arXiv:2203.17003, eqs. 7-12). For a stochastic `predict` it is the single-draw upper bound, and `jensen_gap`
        says by how much more draws lower it.

        Args:
            x0: clean scaled molecules.
            predict: (z_t, level) -> eps_hat, with evaluation weights.
        Returns:
            terms 'diffusion', 'reconstruction', 'features', 'prior', 'constants', each [B], nats; their sum is the
            bound, to which -log p(N) is to be added.
        """
        return self.bound_terms(x0, predict, *self._bound_draws(x0, time_rng, noise_rng))

    def _bound_draws(
        self, x0: State, time_rng: torch.Generator, noise_rng: torch.Generator
    ) -> tuple[Tensor, State, State]:
        """Times [B] in 1..T, noise of z_t and of z_0."""
        i = torch.randint(1, self.schedule.n_levels + 1, (len(x0),), generator=time_rng, device=time_rng.device)
        eps_t = self.noise(x0.layout, noise_rng, x0.x.dtype)
        return i, eps_t, self.noise(x0.layout, noise_rng, x0.x.dtype)

    def bound_terms(self, x0: State, predict: Predict, i: Tensor, eps_t: State, eps_0: State) -> dict[str, Tensor]:
        """The terms of `bound` for given times i [B] in 1..T and noise."""
        dtype = x0.x.dtype
        level = self.schedule.at(i, dtype)
        eps_hat = predict(self.noising(x0, eps_t, level), level)
        weight = torch.expm1(self.schedule.gamma[i] - self.schedule.gamma[i - 1])
        error = eps_hat.combine(eps_t, torch.sub).squared_norm().double()

        level_0 = self.schedule.at(torch.zeros_like(i), dtype)
        z_0 = self.noising(x0, eps_0, level_0)
        eps_hat_0 = predict(z_0, level_0)
        reconstruction = 0.5 * x0.sum_over_atoms((eps_hat_0.x - eps_0.x).square().sum(1)).double()
        return {
            "diffusion": self.schedule.n_levels * 0.5 * weight * error,
            "reconstruction": reconstruction,
            "features": -self.feature_log_likelihood(x0, z_0, level_0).double(),
            "prior": self.prior_kl(x0),
            "constants": self.log_constants(x0.layout),
        }

    def jensen_gap(
        self,
        x0: State,
        predict: Predict,
        n_draws: int,
        time_rng: torch.Generator,
        noise_rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """How far the mixture bound over M draws of a stochastic `predict` lies below `bound`: one unbiased draw of it.

        Such a method's reverse kernel is a mixture, p(z_s | z_t) = E_R N(z_s; mu_R, s^2 I), and so is its decoder.
        `bound` takes -log inside the mean over R. With z_s ~ q(z_s | z_t, x0) and M independent draws,

            E [ log q(z_s | z_t, x0) - log (1/M) sum_m N(z_s; mu_{R_m}, s^2 I) ]

        is an upper bound too, for every M; it does not increase in M, is that of `bound` for M = 1 and exact as M goes
        to infinity (the argument of importance-weighted bounds, Burda et al., arXiv:1509.00519). With
        z_s = mu_q + s xi and d_m = (mu_q - mu_{R_m}) / s the bracket is -log mean_m exp(-a_m) for
        a_m = |d_m|^2 / 2 + <xi, d_m>, where E <xi, d_m> = 0 leaves the term of `bound`. So the gap is

            mean_m a_m + log mean_m exp(-a_m) >= 0   (Jensen),

        nothing where the prediction does not depend on R, and half the trace of the covariance of d over R where that
        is small. In the decoder's term x0 is given, so there is no xi.

        Args:
            n_draws: M; 2 M calls of `predict`, whose draws must be independent.
            time_rng, noise_rng: in the state in which `bound` is called, they give the same times and noise.
        Returns:
            'diffusion' and 'reconstruction', each [B], nats, to be subtracted from those terms of `bound`.
        """
        i, eps_t, eps_0 = self._bound_draws(x0, time_rng, noise_rng)
        xi = self.noise(x0.layout, noise_rng, x0.x.dtype)
        level, level_0 = self.schedule.at(i, x0.x.dtype), self.schedule.at(torch.zeros_like(i), x0.x.dtype)
        z_t, z_0 = self.noising(x0, eps_t, level), self.noising(x0, eps_0, level_0)
        weight = torch.expm1(self.schedule.gamma[i] - self.schedule.gamma[i - 1])
        diffusion, reconstruction = [], []
        for _ in range(n_draws):
            error = predict(z_t, level).combine(eps_t, torch.sub)
            along = error.combine(xi, torch.mul)
            inner = x0.sum_over_atoms(along.x.sum(1) + along.h.sum(1)).double()
            diffusion.append(0.5 * weight * error.squared_norm().double() + weight.sqrt() * inner)
            error_0 = predict(z_0, level_0).x - eps_0.x
            reconstruction.append(0.5 * x0.sum_over_atoms(error_0.square().sum(1)).double())
        return {
            "diffusion": self.schedule.n_levels * _gap_of_mean(torch.stack(diffusion)),
            "reconstruction": _gap_of_mean(torch.stack(reconstruction)),
        }


def _gap_of_mean(a: Float[Tensor, "M B"]) -> Float[Tensor, "B"]:
    """mean_m a_m + log mean_m exp(-a_m), not negative."""
    return a.mean(0) + torch.logsumexp(-a, dim=0) - math.log(len(a))


def _log_bin_mass(centre: Tensor, sigma: Tensor) -> Tensor:
    """log of the N(0, sigma^2) mass of [centre - 1/2, centre + 1/2], floored at log 1e-10 as in the published code."""
    upper = torch.special.ndtr((centre + 0.5) / sigma)
    lower = torch.special.ndtr((centre - 0.5) / sigma)
    return torch.log(upper - lower + 1e-10)
