"""`equibench check`: the contract (`bench.run.contract`) applied to one plug-in, one report line for each property."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.geometry.groups import O3, SO3, RotationGroup
from bench.registry import Entry, Registry, backbones, methods
from bench.run.contract import (
    ELEMENTS_OF_GROUPS,
    GROUP_NAMES,
    TOLERANCE,
    Z_MAX,
    batch_error,
    batch_loss_error,
    centre_of_mass_drift,
    coincident_gradients_are_finite,
    fitting_pairs,
    generator,
    gradients,
    law_change,
    law_z,
    model_of,
    permutation_error,
    rotation_error,
    states,
    translated_error,
)
from bench.run.model import Model
from bench.symmetry.contract import Guarantee


@dataclass(frozen=True)
class Check:
    """One line of a report.

    Attributes:
        subject: 'METHOD on BACKBONE'.
        what: the property.
        found: what was measured, in words; `passed` whether that is within bounds, None where nothing was promised.
    """

    subject: str
    what: str
    found: str
    passed: bool | None

    def __str__(self) -> str:
        mark = {True: "pass", False: "FAIL", None: "info"}[self.passed]
        return f"{mark}  {self.subject:32} {self.what:50} {self.found}"


def check(registry: Registry, entry: Entry) -> Iterator[Check]:
    """All checks of one registered method, on every backbone that it fits, or of one backbone, under every method."""
    pairs = [pair for pair in fitting_pairs() if entry.name == pair[0 if registry is methods else 1]]
    yield Check(entry.name, "is cited", f"{len(entry.references)} references", len(entry.references) > 0)
    if getattr(entry.build, "one_size", False):
        yield Check(entry.name, "fits", "takes states of one size, and those of the battery differ: not checked", None)
    elif not pairs:
        yield Check(entry.name, "fits", f"no {'backbone' if registry is methods else 'method'}", False)
    if registry is backbones:
        yield from _declared_equivariance(entry)
    for method, backbone in pairs:
        subject = f"{method} on {backbone}"
        for what, measure in _battery(method, backbone):
            yield _guarded(subject, what, measure)
        yield from _guarantee(method, backbone)
    if registry is methods and pairs and entry.build.guarantee in (Guarantee.AT_OPTIMUM, Guarantee.NONE):
        yield _guarded(entry.name, "law of (z_t, target) invariant", partial(_law_of_targets, *pairs[0]))


Outcome = tuple[str, bool | None]


def _guarded(subject: str, what: str, measure: Callable[[], Outcome]) -> Check:
    """Run a check; one that raises has failed, with its error."""
    try:
        return Check(subject, what, *measure())
    except Exception as error:  # third-party code may raise anything
        return Check(subject, what, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", False)


def _below(error: float, limit: float) -> Outcome:
    return f"error {error:.1e}, allowed {limit:.0e}", error < limit


def _battery(method: str, backbone: str) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """Checks that every pair must pass, whatever its guarantee."""
    for dtype, limit in TOLERANCE.items():
        precision = str(dtype).removeprefix("torch.")

        def measured(error: Callable[[Model], float], dtype: torch.dtype = dtype, limit: float = limit) -> Outcome:
            return _below(error(model_of(method, backbone, dtype=dtype)), limit)

        errors: dict[str, Callable[[Model], float]] = {
            "permutes with atoms": partial(permutation_error, dtype=dtype),
            "prediction ignores the rest of the batch": partial(_worst_batch_error, dtype=dtype),
            "loss ignores the rest of the batch": partial(batch_loss_error, dtype=dtype),
            "no centre of mass": partial(centre_of_mass_drift, dtype=dtype),
        }
        for what, error in errors.items():
            yield f"{what}, {precision}", partial(measured, error)
        if methods[method].build.weights_of is None:  # else it trains nothing
            yield f"finite gradients, {precision}", partial(_gradients_outcome, method, backbone, dtype)
    yield "finite gradients, two atoms in one place", partial(_coincident_outcome, method, backbone)


def _worst_batch_error(model: Model, dtype: torch.dtype) -> float:
    return max(batch_error(model, molecules, dtype) for molecules in ([2], [4, 0], [5, 4, 3, 2, 1, 0]))


def _gradients_outcome(method: str, backbone: str, dtype: torch.dtype) -> Outcome:
    model = model_of(method, backbone, dtype=dtype)
    found, total = gradients(model, dtype), len(list(model.parameters()))
    if found.not_finite:
        return f"not finite: {', '.join(sorted(found.not_finite)[:3])}", False
    return f"{total} arrays, {len(found.idle)} of them without a gradient", len(found.idle) < total


def _coincident_outcome(method: str, backbone: str) -> Outcome:
    finite = coincident_gradients_are_finite(model_of(method, backbone, dtype=torch.float32))
    return "finite" if finite else "not finite: a distance of zero has no derivative", finite


def _declared_equivariance(entry: Entry) -> Iterator[Check]:
    """A backbone's `equivariant` against the measured error of the bare network."""
    bare = next((m for m in methods if methods[m].build.is_baseline() and (m, entry.name) in fitting_pairs()), None)
    if bare is None:
        return
    for dtype, limit in TOLERANCE.items():
        for determinant in (1, -1):
            what = f"turns with its input, det Q = {determinant:+d}, {str(dtype).removeprefix('torch.')}"
            yield _guarded(entry.name, what, partial(_as_declared, bare, entry, determinant, dtype, limit))


def _as_declared(bare: str, backbone: Entry, determinant: int, dtype: torch.dtype, limit: float) -> Outcome:
    error = rotation_error(model_of(bare, backbone.name, dtype=dtype), dtype, determinant)
    if backbone.build.equivariant:
        return _below(error, limit)
    hint = ": it could declare `equivariant = True`" if error < limit else ", nothing promised"
    return f"error {error:.1e}{hint}", None


class _Counting(O3):
    """O(3) that counts how often group elements are drawn."""

    n_calls = 0

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        self.n_calls += 1
        return super().haar(n, rng, dtype)


def _promised(method: str, backbone: str) -> Guarantee:
    return methods[method].build.guarantee_on(backbones[backbone].build.equivariant)


def _guarantee(method: str, backbone: str) -> Iterator[Check]:
    """The declared guarantee, by the sharpest test that applies to it."""
    guarantee, subject = _promised(method, backbone), f"{method} on {backbone}"
    if guarantee is Guarantee.EXACT:
        for (group, determinant), name in zip(ELEMENTS_OF_GROUPS, GROUP_NAMES, strict=True):
            for dtype, limit in TOLERANCE.items():
                what = f"exact, {name}, {str(dtype).removeprefix('torch.')}"
                yield _guarded(subject, what, partial(_exact, method, backbone, group, determinant, dtype, limit))
    elif guarantee is Guarantee.IN_LAW:
        if _draws_from_group(method, backbone):
            for (group, determinant), name in zip(ELEMENTS_OF_GROUPS, GROUP_NAMES, strict=True):
                for dtype, limit in TOLERANCE.items():
                    what = f"in law, draws turned along, {name}, {str(dtype).removeprefix('torch.')}"
                    yield _guarded(subject, what, partial(_in_law, method, backbone, group, determinant, dtype, limit))
        else:  # no draws from `self.group.haar` that could be rotated along: a statistical test is all that is left
            for determinant in (1, -1):
                what = f"in law, 20 000 draws, det Q = {determinant:+d}"
                yield _guarded(subject, what, partial(_in_law_statistically, method, backbone, determinant))
    else:
        yield _guarded(subject, "turns with its input at random weights", partial(_not_promised, method, backbone))


def _draws_from_group(method: str, backbone: str) -> bool:
    """Whether a prediction draws from `self.group.haar`."""
    counting = _Counting()
    _, _, level, z_t = states()
    with suppress(Exception):  # the checks themselves report it
        model_of(method, backbone, counting).predict(z_t, level, generator(1))
    return counting.n_calls > 0


def _exact(
    method: str, backbone: str, group: RotationGroup, determinant: int, dtype: torch.dtype, limit: float
) -> Outcome:
    return _below(rotation_error(model_of(method, backbone, group, dtype), dtype, determinant), limit)


def _in_law(
    method: str, backbone: str, group: RotationGroup, determinant: int, dtype: torch.dtype, limit: float
) -> Outcome:
    def make(group: RotationGroup) -> Model:
        return model_of(method, backbone, group, dtype)

    return _below(translated_error(make, dtype, group, determinant), limit)


def _in_law_statistically(method: str, backbone: str, determinant: int) -> Outcome:
    z = law_z(model_of(method, backbone, dtype=torch.float32), 20_000, determinant)
    return f"|z| {z:.1f}, allowed {Z_MAX:g}; with draws from self.group.haar the test would be sharp", z < Z_MAX


def _not_promised(method: str, backbone: str) -> Outcome:
    error = max(rotation_error(model_of(method, backbone), torch.float64, determinant) for determinant in (1, -1))
    return f"error {error:.1e}, nothing promised of the weights", None


def _law_of_targets(method: str, backbone: str) -> Outcome:
    """Largest |z| over levels and groups; a failure only where 'at optimum' is declared."""
    z = max(
        law_change(model_of(method, backbone, group).method, 10_000, i, determinants)
        for group, determinants in ((O3(), (1, -1)), (SO3(), (1,)))
        for i in (200, 700)
    )
    promised = methods[method].build.guarantee is Guarantee.AT_OPTIMUM
    return f"|z| {z:.1f}, allowed {Z_MAX:g}{'' if promised else ', nothing promised'}", z < Z_MAX if promised else None


WORTH = {
    Guarantee.EXACT: "exact: the prediction turns with its input at any weights, to rounding",
    Guarantee.IN_LAW: "in law: predictions at Q z and Q times those at z have one distribution, at any weights; "
    "single predictions do not turn with their input",
    Guarantee.AT_OPTIMUM: "at optimum: the minimiser of the training loss is equivariant; a trained network is "
    "approximately, by as much as it has learned",
    Guarantee.NONE: "none: nothing is promised; on an equivariant backbone predictions turn with their input where "
    "`predict` is left alone",
}
