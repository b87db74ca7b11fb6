"""Values of generated protein backbones: geometry against held-out backbones, secondary structure, novelty, diversity.

All of it is backbone geometry. None of it says whether a sequence exists that folds into the backbone
("designability"), for which an inverse-folding and a structure-prediction network are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import wasserstein_distance

from bench.metrics import backbones
from bench.metrics.distances import Bins, js_distance
from bench.records.values import Better, Kind, Value
from bench.structures.chains import ChainAtoms
from bench.structures.structures import Structures

TRANS, CIS, SPREAD = 3.80, 2.95, 0.2  # angstrom between the C-alphas of a peptide bond, and how far off is accepted
NEAREST = 3.6  # angstrom, of C-alphas that are not neighbours
ANGLE_BINS, DIHEDRAL_BINS = Bins(60.0, 180.0, 4.0), Bins(-180.0, 180.0, 10.0)
RAMACHANDRAN_DEGREES = 20  # width of a square bin
IDEAL_BONDS = (1.458, 1.525, 1.329)  # angstrom, N-CA, CA-C and C-N (Engh & Huber, 1991)

SAME_FOLD = 0.5  # TM-score above which two structures usually have one fold (Xu & Zhang, 2010)
N_COMPARED = 48  # samples whose TM-scores are computed: the first ones
N_KNOWN = 192  # training pieces that they are compared with
KNOWN_SEED = 0


def version() -> str:
    """Of what the cached values of a data set depend on beside the data."""
    try:
        return f"1-tmtools{metadata.version('tmtools')}"
    except metadata.PackageNotFoundError:
        return "1"


def evaluate_backbones(samples: Structures, test: Structures, train: Structures) -> list[Value]:
    """Values of samples against the test split; novelty against the training split."""
    ours, theirs = backbones.traces_of(samples), backbones.traces_of(test)
    values = [*_distances(ours, theirs), *_secondary_structure(ours)]
    if (samples.numbers == ChainAtoms.BACKBONE.numbers[0]).any():
        values += _all_atoms(samples, test)
    return [*values, *_folds(ours, backbones.traces_of(train))]


# ---------------------------------------------------------------------- geometry


def _distances(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> list[Value]:
    steps = [backbones.distances(x, 1) for x in ours]
    good = np.array([_is_peptide(some).mean() for some in steps])
    clash = np.array([backbones.in_clash(x, NEAREST).mean() for x in ours])
    size, their_size = (np.array([backbones.radius_of_gyration(x) for x in some]) for some in (ours, theirs))
    lower = Better.LOWER
    about_good = f"share of neighbouring C-alphas {TRANS:g} or {CIS:g} Å apart, within {SPREAD:g} Å; mean over chains"
    about_clash = f"share of residues with a C-alpha within {NEAREST:g} Å that is not a neighbour's; mean over chains"
    about_js = "Jensen-Shannon distance (base 2) to the test split, of three or four consecutive C-alphas"
    values = [
        _mean("ca_distance_ok", "Peptide distances kept", good, Better.HIGHER, about_good),
        Value(
            "ca_distance_w1",
            "CA-CA distance, W1",
            wasserstein_distance(np.concatenate(steps), _joined(theirs, backbones.distances, 1)),
            "angstrom",
            lower,
            Kind.DIAGNOSTIC,
        ),
        _mean("clash", "Residues in a clash", clash, lower, about_clash),
        Value("gyration_w1", "Radius of gyration, W1", wasserstein_distance(size, their_size), "angstrom", lower),
        Value("gyration", "Radius of gyration", float(size.mean()), "angstrom", kind=Kind.DIAGNOSTIC),
    ]
    for name, label, of, bins in (
        ("angle_js", "Virtual bond angle, JS", backbones.angles, ANGLE_BINS),
        ("dihedral_js", "Virtual dihedral angle, JS", backbones.dihedrals, DIHEDRAL_BINS),
    ):
        js = js_distance(bins.histogram(_joined(ours, of)), bins.histogram(_joined(theirs, of)))
        values.append(Value(name, label, js, "", lower, definition=about_js))
    return values


def _is_peptide(distance: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    return (np.abs(distance - TRANS) < SPREAD) | (np.abs(distance - CIS) < SPREAD)


def _joined(traces: Sequence[np.ndarray], of: Any, *args: Any) -> np.ndarray:
    return np.concatenate([of(x, *args) for x in traces])


def _mean(name: str, label: str, items: np.ndarray, better: Better, about: str) -> Value:
    """A share, averaged over chains."""
    sem = float(items.std(ddof=1) / len(items) ** 0.5) if len(items) > 1 else None
    return Value(name, label, float(items.mean()), "fraction", better, sem=sem, definition=about, items=items)


def _secondary_structure(ours: Sequence[np.ndarray]) -> list[Value]:
    found = [backbones.secondary_structure(x) for x in ours]
    right, left = np.array([(one.right.sum(), one.left.sum()) for one in found]).T
    strand = np.array([one.strand.sum() for one in found])
    n = np.array([len(x) for x in ours])
    about = "share of residues, by the criteria of P-SEA on C-alphas; mean over chains"
    about_left = (
        "of the residues in helices (five or more in a row), those in left-handed ones; natural proteins have next to "
        "none, and a law that is invariant under reflections has one half"
    )
    helical = np.stack([left, left + right], axis=1).astype(np.float64)
    n_left, n_helical = helical.sum(0)
    share = n_left / n_helical if n_helical else None
    sem = None
    if share is not None and len(ours) > 1:  # of a ratio of sums
        sem = float((left - share * (left + right)).std(ddof=1) * len(ours) ** 0.5 / n_helical)
    label = "Left-handed share of helices"
    return [
        Value("left_handed", label, share, "fraction", Better.LOWER, sem=sem, definition=about_left, items=helical),
        _mean("helix", "Helix, either hand", (right + left) / n, Better.NEITHER, about),
        _mean("strand", "Strand", strand / n, Better.NEITHER, about),
    ]


def _all_atoms(samples: Structures, test: Structures) -> list[Value]:
    """Bond lengths and Ramachandran angles of N, C-alpha and C."""
    ours, theirs = ([x.astype(np.float64).reshape(-1, 3, 3) for _, x in structures] for structures in (samples, test))
    off = np.array([_bond_error(x) for x in ours])
    sem = float(off.std(ddof=1) / len(off) ** 0.5) if len(off) > 1 else None
    lower = Better.LOWER
    about = "mean deviation of N-CA, CA-C and C-N from 1.458, 1.525 and 1.329 Å; mean over chains"
    js = js_distance(_ramachandran(ours), _ramachandran(theirs))
    about_js = f"Jensen-Shannon distance (base 2) to the test split, bins of {RAMACHANDRAN_DEGREES} by 20 degrees"
    error, label = float(off.mean()), "Bond lengths, error"
    return [
        Value("bond_error", label, error, "angstrom", lower, sem=sem, definition=about, items=off),
        Value("ramachandran_js", "Ramachandran, JS", js, "", lower, definition=about_js),
    ]


def _bond_error(x: Float[np.ndarray, "n 3 3"]) -> float:
    """Mean over the three kinds of bonds."""
    N, CA, C = x[:, 0], x[:, 1], x[:, 2]
    kinds = zip(((N, CA), (CA, C), (C[:-1], N[1:])), IDEAL_BONDS, strict=True)
    return float(np.mean([np.abs(np.linalg.norm(b - a, axis=1) - ideal).mean() for (a, b), ideal in kinds]))


def _ramachandran(chains: Sequence[Float[np.ndarray, "_ 3 3"]]) -> Float[np.ndarray, "k"]:
    """Counts of (phi, psi) in square bins."""
    counts: Any = 0
    edges = np.arange(-180, 181, RAMACHANDRAN_DEGREES)
    for x in chains:
        N, CA, C = x[:, 0], x[:, 1], x[:, 2]
        phi = backbones.torsions(C[:-2], N[1:-1], CA[1:-1], C[1:-1])
        psi = backbones.torsions(N[1:-1], CA[1:-1], C[1:-1], N[2:])
        counts = counts + np.histogram2d(phi, psi, bins=(edges, edges))[0].ravel()
    return counts


# ---------------------------------------------------------------------- folds


def _folds(ours: Sequence[np.ndarray], train: Sequence[np.ndarray]) -> list[Value]:
    """Novelty and diversity by TM-score, of the first samples; not defined without tmtools."""
    ours = ours[:N_COMPARED]
    chosen = np.random.default_rng(KNOWN_SEED).permutation(len(train))[:N_KNOWN]
    about_known = (
        f"highest TM-score (of the sample's length) to {len(chosen)} training pieces, mean over {len(ours)} samples; "
        "chains of under 30 residues score high by chance"
    )
    about_clusters = (
        f"clusters of {len(ours)} samples, each sample joining the first whose first member it has a TM-score of "
        f"{SAME_FOLD:g} with (of the longer chain), over their number"
    )
    if version() == "1":
        missing = "not evaluated: tmtools is not installed (pip install 'equibench[proteins]')"
        about_known = about_clusters = missing
        nearest, clusters = None, None
    else:
        nearest = np.array([max(tm_score(x, train[k])[0] for k in chosen) for x in ours])
        clusters = n_clusters(ours) / len(ours)
    sem = None if nearest is None or len(ours) < 2 else float(nearest.std(ddof=1) / len(ours) ** 0.5)
    mean = None if nearest is None else float(nearest.mean())
    return [
        Value("tm_to_training", "TM-score to training", mean, "", sem=sem, definition=about_known),
        Value("tm_clusters", "TM clusters per sample", clusters, "", Better.HIGHER, definition=about_clusters),
    ]


def tm_score(x: Float[np.ndarray, "n 3"], y: Float[np.ndarray, "m 3"]) -> tuple[float, float]:
    """TM-scores of the alignment of TM-align, normalised by the lengths of x and of y (Zhang & Skolnick, 2005).

    Superposition is by proper rotations, so mirror images differ.
    """
    from tmtools import tm_align

    found = tm_align(x, y, "A" * len(x), "A" * len(y))
    return float(found.tm_norm_chain1), float(found.tm_norm_chain2)


def n_clusters(traces: Sequence[np.ndarray]) -> int:
    """Clusters at a TM-score of SAME_FOLD by the longer chain, in the order of the traces."""
    first: list[np.ndarray] = []
    for x in traces:
        if not any(min(tm_score(x, y)) >= SAME_FOLD for y in first):
            first.append(x)
    return len(first)
