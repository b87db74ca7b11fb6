"""Makes the embedded data set `mini_proteins`: ideal helices, hairpins and helix bundles, by geometry alone.

    python -m bench.mini.proteins           write bench/data/mini_proteins.{npz,json} (minutes)
    python -m bench.mini.proteins_card      write docs/mini_proteins.md

Backbones are built atom by atom from ideal bond lengths and bond angles (Engh & Huber, 1991) and from dihedral angles
drawn around those of their kind of secondary structure. Candidates are drawn in batches and kept by tests of geometry:
no two C-alphas too near one another, strands of a hairpin side by side, helices of a bundle packed and antiparallel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import version
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from bench.mini.make import DATA, split_codes, write_npz
from bench.records.store import write_json
from bench.structures.dataset import SPLITS

log = logging.getLogger("equibench")

NAME = "mini_proteins"
COMMAND = "python -m bench.mini.proteins"
SEED = 5
BATCH = 1024  # candidates drawn together
N_OF_KIND = {"helix": 140, "hairpin": 140, "two-helix bundle": 140, "three-helix bundle": 80}
BLUR = 0.03  # angstrom, standard deviation of the noise on each coordinate

# angstrom and degrees
N_CA, CA_C, C_N = 1.458, 1.525, 1.329
N_CA_C, CA_C_N, C_N_CA = 111.0, 117.2, 121.7
OMEGA, OMEGA_SPREAD = 180.0, 3.0

HELIX, HELIX_SPREAD = (-62.0, -43.0), 3.0
STRAND, STRAND_COMMON, STRAND_SPREAD = (-125.0, 135.0), 12.0, 4.0  # a shift common to both strands, one per residue
TURN, TURN_SPREAD = ((50.0, 60.0), (90.0, 38.0)), 15.0  # the two inner residues of a turn, near type I'
# dihedral angles of the residues of a loop: helical, extended, polyproline, left-handed, equally likely
LOOP, LOOP_SPREAD = ((-65.0, -40.0), (-120.0, 130.0), (-70.0, 145.0), (57.0, 42.0)), 12.0

CLASH = 4.2  # angstrom, least distance of C-alphas three or more residues apart
PAIRED, MEAN_PAIRED = (4.2, 6.6), (4.8, 5.8)  # angstrom, C-alphas opposite one another in a hairpin: each, and the mean
PACKED = (7.5, 11.0)  # angstrom, mean distance of the axis of a helix to the nearest points of another's
ANTIPARALLEL = -0.75  # largest cosine between the axes of helices that follow one another


def place(
    a: Float[np.ndarray, "B 3"],
    b: Float[np.ndarray, "B 3"],
    c: Float[np.ndarray, "B 3"],
    length: float,
    angle: float,
    dihedral: Float[np.ndarray, "B"],
) -> Float[np.ndarray, "B 3"]:
    """The atom d with |cd| = length, angle bcd and dihedral angle abcd, in angstrom and degrees."""
    u = (c - b) / np.linalg.norm(c - b, axis=1, keepdims=True)
    n = np.cross(b - a, u)
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    theta, chi = np.radians(angle), np.radians(dihedral)[:, None]
    across = np.cos(chi) * np.cross(n, u) + np.sin(chi) * n
    return c + length * (np.sin(theta) * across - np.cos(theta) * u)


def backbones(
    phi: Float[np.ndarray, "B n"], psi: Float[np.ndarray, "B n"], omega: Float[np.ndarray, "B n"]
) -> Float[np.ndarray, "B n 3 3"]:
    """N, C-alpha and C of chains with these dihedral angles in degrees; omega[i] lies between residues i - 1 and i."""
    B, n = phi.shape
    x = np.zeros((B, n, 3, 3))
    bend = np.radians(N_CA_C)
    x[:, 0, 1] = [N_CA, 0, 0]
    x[:, 0, 2] = [N_CA - CA_C * np.cos(bend), CA_C * np.sin(bend), 0]
    for i in range(1, n):
        before, N, CA = x[:, i - 1], x[:, i, 0], x[:, i, 1]
        N[:] = place(before[:, 0], before[:, 1], before[:, 2], C_N, CA_C_N, psi[:, i - 1])
        CA[:] = place(before[:, 1], before[:, 2], N, N_CA, C_N_CA, omega[:, i])
        x[:, i, 2] = place(before[:, 2], N, CA, CA_C, N_CA_C, phi[:, i])
    return x


class Builder:
    """Draws candidates of one kind, in batches of one number of residues."""

    def __init__(self, seed: int, kind: int) -> None:
        self.rng = np.random.default_rng([seed, kind])

    def around(self, angles: tuple[float, float], n: int, spread: float) -> Float[np.ndarray, "B n 2"]:
        return np.array(angles) + spread * self.rng.normal(size=(BATCH, n, 2))

    def built(self, dihedrals: Float[np.ndarray, "B n 2"]) -> Float[np.ndarray, "B n 3 3"]:
        omega = OMEGA + OMEGA_SPREAD * self.rng.normal(size=dihedrals.shape[:2])
        return backbones(dihedrals[..., 0], dihedrals[..., 1], omega)

    def helices(self) -> Float[np.ndarray, "B n 3 3"]:
        return self.built(self.around(HELIX, int(self.rng.integers(16, 33)), HELIX_SPREAD))

    def hairpins(self) -> Float[np.ndarray, "B n 3 3"]:
        n = int(self.rng.integers(6, 10))
        common = STRAND_COMMON * self.rng.normal(size=(BATCH, 1, 2))
        arms = [self.around(STRAND, n, STRAND_SPREAD) + common for _ in range(2)]
        turn = [self.around(angles, 1, TURN_SPREAD) for angles in TURN]
        x = self.built(np.concatenate([arms[0], *turn, arms[1]], axis=1))
        ca = x[:, :, 1]
        opposite = np.linalg.norm(ca[:, :n] - ca[:, : n + 1 : -1], axis=2)
        mean = opposite.mean(1)
        paired = ((opposite > PAIRED[0]) & (opposite < PAIRED[1])).all(1)
        return x[paired & (mean > MEAN_PAIRED[0]) & (mean < MEAN_PAIRED[1]) & clear(ca)]

    def two_helices(self) -> Float[np.ndarray, "B n 3 3"]:
        x, _ = self._packed(int(self.rng.integers(11, 17)), [self._loop()])
        return x

    def three_helices(self) -> Float[np.ndarray, "B n 3 3"]:
        """Of every two loops that pack two helices, those that pack three."""
        n, loop = int(self.rng.integers(9, 14)), self._loop()
        good = loop[self._packed(n, [loop])[1]]
        if not len(good):
            return np.zeros((0, 3 * n, 3, 3))
        i, j = (self.rng.integers(len(good), size=BATCH) for _ in range(2))
        return self._packed(n, [good[i], good[j]])[0]

    def _loop(self) -> Float[np.ndarray, "B n 2"]:
        """Two to five residues."""
        basins = np.array(LOOP)[self.rng.integers(len(LOOP), size=(BATCH, int(self.rng.integers(2, 6))))]
        return basins + LOOP_SPREAD * self.rng.normal(size=basins.shape)

    def _packed(
        self, n: int, loops: Sequence[Float[np.ndarray, "B k 2"]]
    ) -> tuple[Float[np.ndarray, "C N 3 3"], Bool[np.ndarray, "B"]]:
        """Chains of helices of n residues with loops between them, of those that are well packed; and which are."""
        spans, parts, start = [slice(0, n)], [self.around(HELIX, n, HELIX_SPREAD)], n
        for loop in loops:
            start += loop.shape[1]
            spans.append(slice(start, start + n))
            parts += [loop, self.around(HELIX, n, HELIX_SPREAD)]
            start += n
        x = self.built(np.concatenate(parts, axis=1))
        ca = x[:, :, 1]
        axes = [axis_points(ca[:, span]) for span in spans]
        directions = [_unit(points[:, -1] - points[:, 0]) for points in axes]
        good = clear(ca)
        for one, other in combinations(range(len(spans)), 2):
            apart = np.linalg.norm(axes[one][:, :, None] - axes[other][:, None], axis=3).min(2).mean(1)
            good &= (apart > PACKED[0]) & (apart < PACKED[1])
            if other == one + 1:
                good &= (directions[one] * directions[other]).sum(1) < ANTIPARALLEL
        return x[good], good


def axis_points(ca: Float[np.ndarray, "B n 3"]) -> Float[np.ndarray, "B n_minus_3 3"]:
    """Points near the axis of a helix: means of four consecutive C-alphas, about one turn."""
    return (ca[:, :-3] + ca[:, 1:-2] + ca[:, 2:-1] + ca[:, 3:]) / 4


def _unit(v: Float[np.ndarray, "B 3"]) -> Float[np.ndarray, "B 3"]:
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def clear(ca: Float[np.ndarray, "B n 3"]) -> Bool[np.ndarray, "B"]:
    """Whether all C-alphas three or more residues apart keep their distance."""
    i, j = np.triu_indices(ca.shape[1], 3)
    return (np.linalg.norm(ca[:, i] - ca[:, j], axis=2) > CLASH).all(1)


def draw_kind(draw: Callable[[], Float[np.ndarray, "B n 3 3"]], n_wanted: int) -> tuple[list[np.ndarray], int]:
    """Backbones [n, 3, 3], at most eight of a batch so that lengths vary, and how many candidates it took."""
    found: list[np.ndarray] = []
    n_batches = 0
    while len(found) < n_wanted:
        found.extend(draw()[:8])
        n_batches += 1
    return found[:n_wanted], n_batches * BATCH


def make() -> None:
    """Write the data set and its record."""
    all_found, kinds, candidates = [], [], {}
    for k, (kind, n_wanted) in enumerate(N_OF_KIND.items()):
        builder = Builder(SEED, k)
        draw: dict[str, Callable[[], np.ndarray]] = {
            "helix": builder.helices,
            "hairpin": builder.hairpins,
            "two-helix bundle": builder.two_helices,
            "three-helix bundle": builder.three_helices,
        }
        found, candidates[kind] = draw_kind(draw[kind], n_wanted)
        log.info("%d of kind %s from %d candidates", n_wanted, kind, candidates[kind])
        blur = np.random.default_rng([SEED, len(N_OF_KIND), k])
        all_found += [x + BLUR * blur.normal(size=x.shape) for x in found]
        kinds += [kind] * n_wanted
    turns = Rotation.random(len(all_found), rng=np.random.default_rng([SEED, len(N_OF_KIND) + 1])).as_matrix()
    all_found = [(x - x[:, 1].mean(0)) @ R.T for x, R in zip(all_found, turns, strict=True)]
    split = np.array(SPLITS)[split_codes(len(kinds))]
    arrays = {
        "n_residues": np.array([len(x) for x in all_found], np.int16),
        "kind": np.array(kinds),
        "split": split,
        "centi_angstrom": np.round(100 * np.concatenate(all_found)).astype(np.int16),
    }
    path = DATA / f"{NAME}.npz"
    write_npz(path, arrays)
    record = {
        "command": COMMAND,
        "seed": SEED,
        "sha256": sha256(path.read_bytes()).hexdigest(),
        "kinds": N_OF_KIND,
        "candidates": candidates,
        "in_split": {name: int((split == name).sum()) for name in SPLITS},
        "versions": {"numpy": version("numpy")},
    }
    write_json(DATA / f"{NAME}.json", record)
    log.info("%d backbones in %s", len(kinds), path)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make()


if __name__ == "__main__":
    main()
