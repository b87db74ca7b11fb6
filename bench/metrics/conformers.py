"""Evaluation of conformer ensembles: coverage, average minimum RMSD, chirality and failures.

For one molecule with n reference conformers and m samples, d_ij is their heavy-atom RMSD (`bench.metrics.rmsd`). Then

    COV-R(delta) = share of references i with min_j d_ij < delta      AMR-R = mean over i of min_j d_ij
    COV-P(delta) = share of samples j with min_i d_ij < delta         AMR-P = mean over j of min_i d_ij

each averaged over molecules. The inequality is strict. Recall grows with m, so that only equal m / n compare; the
custom is m = 2n. A sample whose positions are not finite covers nothing: it counts as a miss in COV-P and, having no
distance, is left out of AMR-P; `failed_samples` states the share of such samples. A molecule without any usable sample
has coverage 0 and no AMR; `molecules_without_samples` counts them.

References: Ganea et al. (2021), GeoMol, arXiv:2106.07802, eqs. 6-8 (COV and AMR, precision and recall); Hassan et al.
(2024), ET-Flow, arXiv:2410.22388 (thresholds, 2n samples).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rdkit import Chem

from bench.metrics.chirality import chiral_tags, nearer_hand, tags_violated
from bench.metrics.molecules import error_of_ratio
from bench.metrics.pool import in_workers, n_cores
from bench.metrics.rmsd import SECONDS_PER_MOLECULE, rmsd_between
from bench.records.intervals import Z_95, rate_interval
from bench.records.values import Better, Kind, Value

THRESHOLDS = (0.1, 0.5, 0.75, 1.25)  # angstrom: strict and customary for GEOM-QM9; customary and older for GEOM-Drugs
CURVE = tuple(np.round(np.arange(1, 61) * 0.05, 2).tolist())  # 0.05, 0.1, ..., 3.0 angstrom
FEWEST_PAIRS_FOR_A_POOL = 200_000  # below this the pool costs more than it saves: a pair takes some 20 microseconds
SIDES = {"r": "reference conformers", "p": "samples"}  # recall and precision

Reference = tuple[Chem.Mol, np.ndarray]  # molecule with A atoms, hydrogens counted, and positions [n, A, 3] in angstrom


@dataclass(frozen=True)
class Compared:
    """Samples of one molecule against its references.

    Attributes:
        recall: distance of each reference to its nearest sample [n] in angstrom, NaN without a usable sample.
        precision: distance of each sample to its nearest reference [m], NaN for a failed sample.
        n_violating: usable samples that violate a chirality tag; None for a molecule without tags.
        n_timed_out: pairs compared atom by atom, since the molecule's time was up.
        capped: whether more symmetries exist than were tried.
    """

    recall: np.ndarray
    precision: np.ndarray
    n_violating: int | None
    n_timed_out: int
    capped: bool

    @property
    def n_usable(self) -> int:
        """Samples with finite positions."""
        return int(np.isfinite(self.precision).sum())

    def nearest(self, side: str) -> np.ndarray:
        """`recall` for 'r', `precision` for 'p'."""
        return self.recall if side == "r" else self.precision

    def coverage(self, side: str, threshold: float) -> float:
        """COV-R or COV-P of the molecule; 0 without samples."""
        nearest = self.nearest(side)
        return float((nearest < threshold).mean()) if len(nearest) else 0.0

    def amr(self, side: str) -> float:
        """AMR-R or AMR-P of the molecule in angstrom; NaN without a usable sample."""
        return float(np.nanmean(self.nearest(side))) if self.n_usable else np.nan


def compare(mol: Chem.Mol, references: np.ndarray, samples: np.ndarray, seconds: float) -> Compared:
    """Samples [m, A, 3] of a molecule against its references [n, A, 3]; positions in angstrom."""
    usable = np.isfinite(samples).all(axis=(1, 2))
    found = rmsd_between(mol, references, samples[usable], seconds)
    precision = np.full(len(samples), np.nan)
    recall = np.full(len(references), np.nan)
    if usable.any():
        precision[usable], recall = found.rmsd.min(axis=0), found.rmsd.min(axis=1)
    n_violating = int((tags_violated(mol, samples[usable]) > 0).sum()) if chiral_tags(mol) else None
    return Compared(recall, precision, n_violating, found.n_timed_out, found.capped)


def _compare(task: tuple[Chem.Mol, np.ndarray, np.ndarray, float]) -> Compared:
    return compare(*task)


# metrics that are taken of mirrored samples too, and where they are shown
MATCHED = {"amr_r": Kind.QUALITY, "amr_p": Kind.QUALITY, "cov_r_0.5": Kind.DIAGNOSTIC, "cov_p_0.5": Kind.DIAGNOSTIC}


@dataclass(frozen=True)
class EnsembleEvaluation:
    """Samples of M molecules against their references."""

    molecules: list[Compared]

    def values(self) -> list[Value]:
        """All metrics: means over molecules, with intervals over their draw and an item each; then medians and curves,
        which papers state beside the means; then what failed."""
        rates = {
            f"cov_{side}_{threshold:g}": (
                f"COV-{side.upper()} at {threshold:g} Å",
                f"{of} nearer than {threshold:g} Å to one of the others, by heavy-atom RMSD",
                self._coverage(side, threshold),
            )
            for side, of in SIDES.items()
            for threshold in THRESHOLDS
        }
        distances = {
            f"amr_{side}": (
                f"AMR-{side.upper()}",
                f"heavy-atom RMSD of {of} to the nearest of the others",
                np.array([one.amr(side) for one in self.molecules]),
            )
            for side, of in SIDES.items()
        }
        values, medians = [], []
        for name, (label, definition, items) in {**rates, **distances}.items():
            unit, better = ("fraction", Better.HIGHER) if name in rates else ("angstrom", Better.LOWER)
            value = Value(name, label, None, unit, better, definition=f"{definition}; mean over molecules", items=items)
            known = items[np.isfinite(items)]
            if len(known):
                mean, sem = float(known.mean()), error_of_ratio(known, np.ones(len(known)))
                low, high = mean - Z_95 * sem, mean + Z_95 * sem
                if name in rates:
                    low, high = rate_interval(mean, Z_95 * sem, len(known))
                value = replace(value, value=mean, low=low, high=high, sem=sem)
                median = float(np.median(known))
                medians.append(Value(f"{name}_median", f"{label}, median", median, unit, better, Kind.DIAGNOSTIC))
            values.append(value)
        return [*values, self._chirality(), *self._failures(), *medians, *self._curves()]

    def _coverage(self, side: str, threshold: float) -> np.ndarray:
        return np.array([one.coverage(side, threshold) for one in self.molecules])

    def _curves(self) -> list[Value]:
        return [
            Value(
                f"cov_{side}",
                f"COV-{side.upper()}",
                float(self._coverage(side, threshold).mean()),
                "fraction",
                Better.HIGHER,
                Kind.DIAGNOSTIC,
                at={"threshold": threshold},
            )
            for side in SIDES
            for threshold in CURVE
        ]

    def _chirality(self) -> Value:
        items = np.array(
            [(np.nan, np.nan) if one.n_violating is None else (one.n_violating, one.n_usable) for one in self.molecules]
        )
        violating, judged = items[np.isfinite(items).all(axis=1)].T
        value = Value(
            "chirality_violations",
            "Chirality violated",
            None,
            "fraction",
            Better.LOWER,
            definition="samples in which a tagged centre has the other handedness, or none, of the samples of "
            "molecules with tagged centres",
            items=items,
        )
        if not judged.sum():
            return value
        rate, sem = float(violating.sum() / judged.sum()), error_of_ratio(violating, judged)
        low, high = rate_interval(rate, Z_95 * sem, len(judged))
        return replace(value, value=rate, low=low, high=high, sem=sem)

    def _failures(self) -> list[Value]:
        wanted, drawn, usable, timed_out, capped = np.array(
            [(len(o.recall), len(o.precision), o.n_usable, o.n_timed_out, o.capped) for o in self.molecules]
        ).T
        n_drawn, n_pairs = int(drawn.sum()), int(wanted @ usable)
        return [
            Value(
                "failed_samples",
                "Failed samples",
                1 - float(usable.sum()) / n_drawn if n_drawn else None,
                "fraction",
                Better.LOWER,
                definition="samples with a position that is not finite: misses in COV-P, left out of AMR-P",
            ),
            Value(
                "molecules_without_samples",
                "Molecules without a usable sample",
                float((usable == 0).sum()),
                "count",
                Better.LOWER,
                Kind.DIAGNOSTIC,
                definition="their coverage is 0, and they are left out of AMR",
            ),
            Value(
                "samples_per_reference",
                "Samples per reference",
                n_drawn / float(wanted.sum()),
                kind=Kind.DIAGNOSTIC,
                definition="recall grows with it, so that only equal ones compare; the custom is 2",
            ),
            Value(
                "rmsd_timeouts",
                "RMSD timed out",
                float(timed_out.sum()) / n_pairs if n_pairs else None,
                "fraction",
                Better.LOWER,
                Kind.DIAGNOSTIC,
                definition="pairs compared atom by atom, since their molecule's time was up; an upper bound",
            ),
            Value(
                "rmsd_capped_molecules",
                "Molecules with symmetries not tried",
                float(capped.sum()),
                "count",
                Better.LOWER,
                Kind.DIAGNOSTIC,
                definition="their distances are upper bounds",
            ),
        ]


def compare_ensembles(
    references: Sequence[Reference],
    samples: Sequence[np.ndarray],
    n_workers: int | None = None,
    seconds: float = SECONDS_PER_MOLECULE,
) -> EnsembleEvaluation:
    """Compare samples with reference conformers, molecule by molecule.

    Args:
        references: of each of M molecules its graph, with the chirality tags that samples are to have, and at least one
            conformer [n, A, 3].
        samples: of each molecule [m, A, 3] in angstrom, atoms in the order of its graph; m may be 0.
        n_workers: worker processes; by default one per core, and one in all for few pairs.
        seconds: CPU time for the distances of one molecule (`bench.metrics.rmsd`).
    Raises:
        ValueError: no molecule, lists of different length, shapes that do not fit, references that are not finite, or a
            molecule that RDKit cannot sanitise.
    """
    _check(references, samples)
    tasks = [(mol, known, drawn, seconds) for (mol, known), drawn in zip(references, samples, strict=True)]
    if n_workers is None:
        n_pairs = sum(len(known) * len(drawn) for _, known, drawn, _ in tasks)
        n_workers = 1 if n_pairs < FEWEST_PAIRS_FOR_A_POOL else n_cores()
    return EnsembleEvaluation(list(in_workers(_compare, tasks, n_workers)))


def evaluate_ensembles(
    references: Sequence[Reference],
    samples: Sequence[np.ndarray],
    n_workers: int | None = None,
    seconds: float = SECONDS_PER_MOLECULE,
) -> list[Value]:
    """The metrics of this module; arguments and exceptions as of `compare_ensembles`.

    Where molecules have tags, some of them again at {'hand': 'matched'}, of samples or of their mirror images,
    whichever violate fewer tags: ETFlow mirrors its samples so. It mends molecules with one centre, not the rest.
    """
    found = compare_ensembles(references, samples, n_workers, seconds)
    tagged = [k for k, (mol, _) in enumerate(references) if chiral_tags(mol)]
    if not tagged:
        return found.values()
    chosen, mirrored = [references[k] for k in tagged], [nearer_hand(references[k][0], samples[k]) for k in tagged]
    again = dict(zip(tagged, compare_ensembles(chosen, mirrored, n_workers, seconds).molecules, strict=True))
    matched = EnsembleEvaluation([again.get(k, one) for k, one in enumerate(found.molecules)])
    about = "of each sample, or of its mirror image where that violates fewer tags"
    return found.values() + [
        replace(value, at={"hand": "matched"}, kind=MATCHED[value.name], definition=f"{value.definition}; {about}")
        for value in matched.values()
        if value.name in MATCHED
    ]


def _check(references: Sequence[Reference], samples: Sequence[np.ndarray]) -> None:
    if not references or len(references) != len(samples):
        raise ValueError(
            f"got {len(references)} molecules and samples of {len(samples)}, expected as many of each, and at least one"
        )
    for k, ((mol, known), drawn) in enumerate(zip(references, samples, strict=True)):
        for what, positions, fewest in (("references", known, 1), ("samples", drawn, 0)):
            shape = (len(positions), mol.GetNumAtoms(), 3)
            if positions.shape != shape or len(positions) < fewest:
                raise ValueError(
                    f"molecule {k} (counted from 0): {what} have shape {positions.shape}, expected [n, "
                    f"{mol.GetNumAtoms()}, 3] with n at least {fewest}: one row for each atom, hydrogens counted"
                )
        if not np.isfinite(known).all():
            raise ValueError(f"molecule {k} (counted from 0): a reference has a position that is not finite")
