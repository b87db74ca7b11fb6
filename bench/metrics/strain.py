"""Strain of single molecules: the energy that relaxation gains, by MMFF94 and by GFN2-xTB, in kcal/mol.

MMFF94 needs bonds and types for all atoms, so it scores fewer molecules than there are, and those are the better ones;
GFN2-xTB needs elements and positions alone. Both take neutral molecules (charges of the bonds apart), GFN2-xTB with one
unpaired electron where their number is odd. What has no strain: no MMFF94 types or bonds, charges that do not become
self-consistent, a relaxation that does not end, time, a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors, rdForceFieldHelpers
from scipy.optimize import minimize

from bench.metrics.pool import bounded_map, require
from bench.structures.structures import Structures

ANGSTROM_PER_BOHR, EV_PER_HARTREE = 0.529177210903, 27.211386245988
KCAL_PER_EV = 23.060548
MAX_GRADIENT = 0.02  # eV/angstrom, largest component at which a geometry counts as relaxed
MAX_ITERATIONS = 300
CURVATURE = 30.0  # eV/angstrom^2, about that of a bond; first guess of the Hessian
MAX_MMFF_STEPS = 5000
CPU_SECONDS = 30  # for one molecule


class NoStrainError(ValueError):
    """Why a molecule has no strain, in a few words."""


class Relaxed(NamedTuple):
    """A minimum: positions [n, 3] in angstrom, its energy and the energy that relaxation gained, in eV."""

    positions: np.ndarray
    energy: float
    gained: float


def gfn2_relaxed(numbers: np.ndarray, positions: np.ndarray) -> Relaxed:
    """The next minimum of GFN2-xTB.

    Raises:
        NoStrainError: no self-consistent charges, or not relaxed after MAX_ITERATIONS steps.
        ImportError: no tblite.
    References: Bannwarth, Ehlert & Grimme (2019), GFN2-xTB, doi:10.1021/acs.jctc.8b01176.
    """
    from tblite.exceptions import TBLiteRuntimeError  # pyright: ignore[reportMissingImports]
    from tblite.interface import Calculator  # pyright: ignore[reportMissingImports]

    start = np.asarray(positions, dtype=np.float64)
    energies: list[float] = []
    state = None

    def energy_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal state
        calculator.update(positions=x.reshape(-1, 3) / ANGSTROM_PER_BOHR)
        state = calculator.singlepoint(state)  # starts from the last geometry's density
        energies.append(float(state.get("energy")) * EV_PER_HARTREE)
        return energies[-1], state.get("gradient").ravel() * EV_PER_HARTREE / ANGSTROM_PER_BOHR

    options = {"gtol": MAX_GRADIENT, "maxiter": MAX_ITERATIONS, "hess_inv0": np.eye(start.size) / CURVATURE}
    try:
        calculator = Calculator("GFN2-xTB", numbers, start / ANGSTROM_PER_BOHR, uhf=int(numbers.sum()) % 2)
        calculator.set("verbosity", 0)
        found = minimize(energy_and_gradient, start.ravel(), jac=True, method="BFGS", options=options)
    except TBLiteRuntimeError as error:
        raise NoStrainError("no self-consistent charges") from error
    if not np.abs(found.jac).max() <= MAX_GRADIENT:  # NaN too
        raise NoStrainError("not relaxed")
    return Relaxed(found.x.reshape(-1, 3), float(found.fun), energies[0] - float(found.fun))


def gfn2_strain(structures: Structures, n_workers: int | None = None) -> np.ndarray:
    """Strain of each molecule by GFN2-xTB, kcal/mol, NaN where there is none [M].

    Raises:
        MissingPackageError: no tblite.
    """
    require("tblite", "strain by GFN2-xTB")
    return _numbers(bounded_map(_gfn2, list(structures), CPU_SECONDS, n_workers))


def mmff94_strain(molecules: Sequence[Chem.Mol | None], n_workers: int | None = None) -> np.ndarray:
    """Strain of each molecule by MMFF94, kcal/mol, NaN where there is none [M].

    Args:
        molecules: with positions, not sanitised (`bench.metrics.validity.molecules_of`).

    References: Halgren (1996), Merck molecular force field I, J. Comput. Chem. 17, 490.
    """
    return _numbers(bounded_map(_mmff94, molecules, CPU_SECONDS, n_workers))


def _gfn2(molecule: tuple[np.ndarray, np.ndarray]) -> float | None:
    try:
        return gfn2_relaxed(*molecule).gained * KCAL_PER_EV
    except NoStrainError:
        return None


def _mmff94(mol: Chem.Mol | None) -> float | None:
    with rdBase.BlockLogs():
        if mol is None or Chem.SanitizeMol(mol, catchErrors=True) or Descriptors.NumRadicalElectrons(mol):
            return None  # MMFF94 has no types for radicals, and RDKit gives them those of other atoms
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        if properties is None:
            return None
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    if field is None:
        return None
    before = field.CalcEnergy()
    relaxed = field.Minimize(maxIts=MAX_MMFF_STEPS) == 0
    return before - field.CalcEnergy() if relaxed else None


def _numbers(found: Sequence[object]) -> np.ndarray:
    """NaN for what is no finite number."""
    strain = np.array([value if isinstance(value, float) else np.nan for value in found], dtype=np.float64)
    return np.where(np.isfinite(strain), strain, np.nan)
