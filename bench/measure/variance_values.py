"""Values of the measure `variance`: their labels, and curves over noise levels with standard errors."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, ones_like

from bench.geometry.noised import Level
from bench.measure.examples import GRADIENT_VARIANCE
from bench.records.values import Better, Kind, Value

UNITS = "in units of the noise, summed over the coordinates of a molecule"
LABELS = {
    "gradient_variance": ("Gradient variance", GRADIENT_VARIANCE),
    "target_variance": ("Target variance", f"variance of the regression target as expected noise, {UNITS}"),
    "target_variance_removed": (
        "Target variance removed",
        f"variance of the regression target at given z_t that an orbit average takes away, {UNITS}",
    ),
    "target_variance_removed_limit": (
        "Target variance removed, limit",
        "dimension of the group: what an exact orbit average takes away in the limit of no noise",
    ),
    "gradient_variance_removed": (
        "Gradient variance removed",
        "share of the gradient variance under single-draw targets that an orbit average of the targets takes away",
    ),
    "effective_sample_size": ("Effective sample size", "1 / sum_k w_k^2 of the normalised weights of the candidates"),
    "target_bias": (
        "Squared bias of the target",
        f"squared difference of the estimator's mean at given z_t from the exact posterior mean, {UNITS}",
    ),
    "gradient_seconds": ("Gradient, per example", "processor time of the loss and gradient of a batch, per example"),
    "gradient_variance_seconds": (
        "Gradient variance times seconds",
        "mean gradient variance within noise levels, times seconds per example",
    ),
}
BETTER = {
    "gradient_variance": Better.LOWER,
    "target_variance_removed": Better.HIGHER,
    "gradient_variance_removed": Better.HIGHER,
    "target_bias": Better.LOWER,
    "gradient_seconds": Better.LOWER,
    "gradient_variance_seconds": Better.LOWER,
}


def value(name: str, number: float, sem: float | None = None, **at: float | str) -> Value:
    """A value of this measure."""
    label, definition = LABELS[name]
    unit = {"gradient_seconds": "s", "gradient_variance_seconds": "s", "gradient_variance_removed": "fraction"}
    return Value(
        name,
        label,
        number,
        unit.get(name, ""),
        BETTER.get(name, Better.NEITHER),
        Kind.DIAGNOSTIC,
        sem=sem,
        at=at,
        definition=definition,
    )


def curve(
    name: str,
    by_level: list[Float[Tensor, "M"]],
    levels: Level,
    relative_to: list[Float[Tensor, "M"]] | None = None,
    **words: str,
) -> tuple[list[Value], tuple[float, float]]:
    """Mean over molecules at each level and, without a position t, over all levels; or a ratio of such means.

    Returns:
        values, that over all levels last; and it with its standard error as numbers.
    """
    made = list[Value]()
    below = relative_to or [ones_like(items) for items in by_level]
    denominators = [items.mean().item() for items in below]
    whole = sum(items.mean().item() for items in by_level) / sum(denominators)

    def sem(items: Tensor) -> float:
        return (items.std() / len(items) ** 0.5).item()

    for j, (items, under) in enumerate(zip(by_level, below, strict=True)):
        ratio = items.mean().item() / denominators[j]
        t = round(levels.t[j].item(), 6)
        made.append(value(name, ratio, sem(items - ratio * under) / abs(denominators[j]), t=t, **words))
    spread = sum(sem(items - whole * under) ** 2 for items, under in zip(by_level, below, strict=True)) ** 0.5
    spread = spread / abs(sum(denominators))
    return [*made, value(name, whole, spread, **words)], (whole, spread)
