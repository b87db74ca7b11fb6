"""Symmetry of a trained model: how far its predictions are from turning with their input, and what that costs.

z is a noised state, y its regression target (that of plain diffusion, whatever the method averages over), f the model's
estimate, and g_1, g_2 are independent Haar elements of the group. Everything is made of

    a_k = g_k^-1 f(g_k z),   k = 1, 2,

which are equal where f is equivariant. g_k z follows the symmetrised law, that of data turned at random. Under it the
orbit average f*(z) = E_g[g^-1 f(g z)] is the projection of f onto equivariant functions, so that what f loses to it is

    E|y - f|^2 - E|y - f*|^2 = E|f - f*|^2 = E|a_1 - a_2|^2 / 2

(Elesedy & Zaidi, arXiv:2102.10333, lemma 1). The right side is a U-statistic over pairs: unbiased, and never negative.

A stochastic f(z, w) has S draws w_1..w_S for each element, the same for both (common random numbers); draws s and t of
different index are independent. Then

    (a_1s - a_2s)(a_1t - a_2t)          estimates |E_w a_1 - E_w a_2|^2, the error of the mean prediction,
    |a_1s - a_2t|^2 / 2                 what f loses to its average over the group and over w,
    |a_1s - a_2t| + |a_2s - a_1t| - |a_1s - a_1t| - |a_2s - a_2t|
                                        the energy distance between the laws of a_1 and a_2 (Szekely & Rizzo 2013),

all for s != t, all unbiased: the first and the last are zero on average where f is equivariant in law. Exchanging a_1s
with a_2s for one s changes the sign of every term with s, whatever the pair's dependence, so that random signs give the
law of the mean term under equivariance (a wild bootstrap of a degenerate U-statistic).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.diffusion.parametrisation import Predict
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.measure.contract import Subject, is_stochastic, mean_and_sem
from bench.measure.examples import clean_states
from bench.records.values import Kind, Value
from bench.references import Reference
from bench.registry import measures
from bench.streams import StepStreams, Streams
from bench.symmetry.symmetrise import symmetrised

PLACE = 10_000_000  # of the random streams
N_SIGNS = 999  # random sign patterns of the p-value
Z_95, Z_ONE_SIDED = 1.96, 1.645
ELESEDY_2021 = Reference(
    "elesedy2021provably",
    "Provably Strict Generalisation Benefit for Equivariant Models",
    ("Elesedy, Bryn", "Zaidi, Sheheryar"),
    2021,
    arxiv="2102.10333",
)
SZEKELY_2013 = Reference(
    "szekely2013energy",
    "Energy statistics: A class of statistics based on distances",
    ("Székely, Gábor J.", "Rizzo, Maria L."),
    2013,
    doi="10.1016/j.jspi.2013.03.018",
    venue="Journal of Statistical Planning and Inference",
)
ERROR, SHARE, GAIN = "equivariance_error", "equivariance_loss_share", "orientation_gain"
DISTANCE, P_VALUE, FLOOR = "equivariance_law_distance", "equivariance_law_p", "equivariance_error_floor"
FRACTIONS = (SHARE, GAIN)
PRECISIONS = ("float32", "bfloat16", "TF32")
ABOUT = {
    ERROR: (
        "Equivariance error",
        "root of E|f(gz) - g f(z)|² / E|f(z)|² on data turned at random; of a stochastic prediction, that of its mean",
    ),
    SHARE: (
        "Loss share of non-equivariance",
        "loss of the prediction less that of its average over the group (and over its own draws), over the former, on "
        "data turned at random",
    ),
    GAIN: (
        "Gain from the stored orientation",
        "loss on data turned at random less that on data as stored, over the former",
    ),
    DISTANCE: (
        "Distance of the law from equivariance",
        "energy distance between the laws of g p(.|z) and p(.|gz), over its largest possible value; unbiased",
    ),
    P_VALUE: ("P-value of equivariance in law", "of the distance, by random signs"),
    FLOOR: (
        "Floor of the equivariance error",
        "what an exactly equivariant prediction shows: the same error of the network's rounding alone (its difference "
        "from float64), or, of a stochastic prediction, of finite draws (95 % quantile)",
    ),
}


@dataclass
class EquivarianceConfig:
    """Options: steps between noise levels from one end of the path to the other (an end where the clean state or the
    noise does not exist is left out), noised states at each level, and draws of a stochastic prediction."""

    n_levels: int = 10  # steps between noise levels from one end of the path to the other
    n_states: int = 128  # noised states at each level
    n_draws: int = 6  # draws of a stochastic prediction at each state, for each of two group elements

    def __post_init__(self) -> None:
        for key, least in {"n_levels": 2, "n_states": 2, "n_draws": 2}.items():
            if getattr(self, key) < least:
                raise ValueError(f"'{key}' of equivariance is {getattr(self, key)}, expected at least {least}")


Outcomes = dict[str, np.ndarray]  # by name, a row for each state


@measures.register("equivariance", EquivarianceConfig, references=(ELESEDY_2021, SZEKELY_2013))
@torch.no_grad()
def measure(subject: Subject, cfg: EquivarianceConfig) -> list[Value]:
    """Equivariance error against t, its share of the loss, and the law of stochastic predictions; with floors.

    No error where the prediction is zero, as that of an untrained network can be.
    """
    path, streams, found = subject.process.path, Streams(subject.seed, subject.device), dict[float, Outcomes]()
    exact = copy.deepcopy(subject.denoiser).double() if isinstance(subject.denoiser, nn.Module) else None
    n_draws = 0
    for i, place in enumerate(path.grid(cfg.n_levels, subject.device)):
        level = path.at(place.expand(cfg.n_states))
        if (level.sigma == 0).any() or (level.alpha == 0).any():
            continue  # an end of the linear path
        subject.on_batch()
        clean = clean_states(subject, subject.data.test, cfg.n_states, PLACE + i)
        n_draws = n_draws or (cfg.n_draws if is_stochastic(subject, clean, level) else 1)
        found[round(level.t[0].item(), 6)] = outcomes(subject, exact, clean, level, streams.at(PLACE + i), n_draws)
    at_each = [value for t, level in found.items() for value in values_of([level], {"t": t}, subject.seed)]
    return at_each + values_of(list(found.values()), {}, subject.seed)


def outcomes(
    subject: Subject, exact: Predict | None, clean: State, level: Level, rng: StepStreams, n_draws: int
) -> Outcomes:
    """What one level shows of each of B states.

    Args:
        exact: the denoiser in float64; None: nothing is said of rounding.
        n_draws: S; 1 for a deterministic prediction.
    Returns:
        'size': |f|^2; 'loss', 'loss_stored': squared error on turned and on stored data; 'error', 'variance': see the
        module; for S > 1 also 'contrast' [B, S, S] and 'distance': terms of the energy distance, and |a_1s - a_2t|; and
        what `rounding` finds.
    """
    process, group = subject.process, subject.group
    noise = process.noise(clean.layout, rng.noise, clean.dtype, clean.context)
    noised = process.noised(clean, noise, level)
    target = process.parametrisation.target(noised.noise, noised).to(dtype=torch.float64)
    elements = [group.haar(len(clean), rng.data, clean.dtype) for _ in range(2)]

    def drawn(s: int) -> Predict:
        """Draw s, the same at every call."""
        return lambda z, at: subject.predict(z, at, rng.generator(f"prediction {s}"))

    a = [
        symmetrised(group, group.inverse(g), drawn(s), noised.z_t, level).to(dtype=torch.float64)
        for g in elements
        for s in range(n_draws)
    ]
    found = {
        "size": torch.stack([one.squared_norm() for one in a]).mean(0),
        "loss": torch.stack([squared(one, target) for one in a]).mean(0),
        "loss_stored": squared(drawn(0)(noised.z_t, level).to(dtype=torch.float64), target),
        **differences(torch.stack([torch.stack([squared(one, other) for other in a]) for one in a]), n_draws),
    }
    if exact is not None:
        found |= rounding(subject, exact, elements, noised.z_t, level)
    return {name: value.cpu().numpy() for name, value in found.items()}


def rounding(
    subject: Subject, exact: Predict, elements: list[Tensor], z_t: State, level: Level
) -> dict[str, Float[Tensor, "B"]]:
    """What rounding alone does to the error: |g_1^-1 r(g_1 z) - g_2^-1 r(g_2 z)|^2 by precision, with r the difference
    of the network's output from that in float64, whose own |f|^2 is 'exact'.

    Rounding of invariants, as within EGNN under bf16, turns with the input and is no error of this kind.
    """
    group, names = subject.group, precisions(subject.device)
    sizes: list[Tensor] = []
    errors: dict[str, list[State]] = {name: [] for name in names}
    for g in elements:
        g64 = g.double() if g.is_floating_point() else g
        reference = exact(group.act(g64, z_t.to(dtype=torch.float64)), level.to(dtype=torch.float64))
        sizes.append(reference.squared_norm())
        for name, precision in names.items():
            with precision:
                output = subject.denoiser(group.act(g, z_t), level).to(dtype=torch.float64)
            errors[name].append(group.act_on_noise(group.inverse(g64), output.combine(reference, torch.sub)))
    return {"exact": torch.stack(sizes).mean(0), **{name: squared(*pair) for name, pair in errors.items()}}


def squared(a: State, b: State) -> Float[Tensor, "B"]:
    """|a - b|^2 of each molecule."""
    return a.combine(b, torch.sub).squared_norm()


def differences(squares: Float[Tensor, "twoS twoS B"], S: int) -> dict[str, Tensor]:
    """Estimators of the module's head, from |a - a'|^2 between all draws, those of the first element first."""
    across, inside = squares[:S, S:], (squares[:S, :S], squares[S:, S:])
    if S == 1:
        return {"error": across[0, 0], "variance": across[0, 0] / 2}
    apart = ~torch.eye(S, dtype=torch.bool, device=squares.device)

    def contrast(between: Tensor, first: Tensor, second: Tensor) -> Float[Tensor, "S S B"]:
        return (between + between.transpose(0, 1) - first - second) * apart[..., None]

    lengths = contrast(across.sqrt(), *(part.sqrt() for part in inside))
    return {
        "error": contrast(across, *inside)[apart].mean(0) / 2,
        "variance": across[apart].mean(0) / 2,
        "contrast": lengths.movedim(2, 0),
        "distance": across.sqrt()[apart].mean(0),
    }


@contextmanager
def tf32() -> Iterator[None]:
    """Matrix products with TF32 inputs, as `torch.backends.cuda.matmul.allow_tf32` makes them."""
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def precisions(device: torch.device) -> dict[str, AbstractContextManager[None]]:
    """Precisions in which a network can run on a device, by name."""
    found = {"float32": nullcontext(), "bfloat16": torch.autocast(device.type, torch.bfloat16)}
    return {**found, "TF32": tf32()} if device.type == "cuda" else found


def values_of(levels: list[Outcomes], at: Mapping[str, float], seed: int) -> list[Value]:
    """The values of one level, or their means over several.

    Errors are averaged over levels as squares. Losses are added up before their ratio is taken, as in training.
    """
    all_of = {key: np.concatenate([level[key] for level in levels]) for key in levels[0]}
    error = mean_of([ratio(level["error"], level["size"]) for level in levels])
    made = [
        value_of(ERROR, at, rooted(error)),
        value_of(SHARE, at, plain(ratio(all_of["variance"], all_of["loss"]))),
        value_of(GAIN, at, plain(ratio(all_of["loss"] - all_of["loss_stored"], all_of["loss"]))),
    ]
    for name in PRECISIONS:
        if name in all_of:
            rounded = mean_of([ratio(level[name], level["exact"]) for level in levels])
            made.append(value_of(FLOOR, {**at, "of": name}, rooted(rounded, interval=False)))
    if "contrast" in all_of:
        scaled = [level["contrast"] / (2 * level["distance"].mean()) for level in levels]
        distances = mean_of([Ratio(*mean_and_sem(one.sum((1, 2)) / n_pairs(one))) for one in scaled])
        made += [
            value_of(FLOOR, {**at, "of": "draws"}, rooted(Ratio(Z_ONE_SIDED * error.sem), interval=False)),
            value_of(DISTANCE, at, plain(distances)),
            value_of(P_VALUE, at, {"value": p_value(np.concatenate(scaled), seed)}),
        ]
    return made


@dataclass(frozen=True)
class Ratio:
    """A ratio of means and its standard error; NaN where it is not defined."""

    value: float
    sem: float = math.nan


def ratio(top: np.ndarray, bottom: np.ndarray) -> Ratio:
    """Ratio of two means over the same states; its standard error is that of the linearised ratio."""
    if not bottom.any():
        return Ratio(math.nan)
    value = float(top.mean() / bottom.mean())
    return Ratio(value, mean_and_sem(top - value * bottom)[1] / float(bottom.mean()))


def mean_of(ratios: list[Ratio]) -> Ratio:
    """Mean over independent levels."""
    variances = [one.sem**2 for one in ratios]
    return Ratio(float(np.mean([one.value for one in ratios])), sum(variances) ** 0.5 / len(ratios))


def plain(found: Ratio) -> dict[str, Any]:
    """The fields of a value."""
    return {} if math.isnan(found.value) else {"value": found.value, "sem": found.sem}


def rooted(square: Ratio, interval: bool = True) -> dict[str, Any]:
    """The fields of the root of a ratio and of its interval's ends; 0 for an estimate below 0."""
    if math.isnan(square.value):
        return {}
    arm = Z_95 * square.sem if interval else 0.0
    value, low, high = (max(square.value + side, 0.0) ** 0.5 for side in (0, -arm, arm))
    return {"value": value, **({"low": low, "high": high} if interval else {})}


def n_pairs(contrast: np.ndarray) -> int:
    """Ordered pairs of different draws."""
    return contrast.shape[1] * (contrast.shape[1] - 1)


def p_value(contrast: Float[np.ndarray, "B S S"], seed: int) -> float:
    """Share of random sign patterns, the one observed included, whose sum of signed terms is as large as the sum."""
    signs = np.random.default_rng([seed, PLACE]).choice(np.array([-1.0, 1.0]), (N_SIGNS, *contrast.shape[:2]))
    signed = (np.einsum("pbs,bst->pbt", signs, contrast) * signs).sum((1, 2))
    return float(1 + (signed >= contrast.sum()).sum()) / (1 + N_SIGNS)


def value_of(name: str, at: Mapping[str, float | str], found: Mapping[str, Any]) -> Value:
    """A value at one level or, without a time, for all levels; of these the main table shows the error."""
    label, definition = ABOUT[name]
    kind = Kind.DIAGNOSTIC
    if "t" not in at:
        label = f"{label}, {'all levels' if name == P_VALUE else 'mean'}"
        kind = Kind.SYMMETRY if name == ERROR else kind
        name += "" if name == P_VALUE else "_mean"
    unit = "fraction" if name.removesuffix("_mean") in FRACTIONS else ""
    return Value(name, label, unit=unit, kind=kind, at=at, definition=definition, **{"value": None, **found})
