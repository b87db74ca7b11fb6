"""Relaxation of a molecule with GFN2-xTB, through tblite (the extra `mini`).

References: Bannwarth, Ehlert & Grimme (2019), GFN2-xTB, doi:10.1021/acs.jctc.8b01176.
"""

from __future__ import annotations

import numpy as np

MAX_GRADIENT = 0.02  # eV/angstrom, largest component at which a geometry counts as relaxed
MAX_ITERATIONS = 300
ANGSTROM_PER_BOHR, EV_PER_HARTREE, KCAL_PER_EV = 0.529177210903, 27.211386245988, 23.060548
CURVATURE = 30.0  # eV/angstrom^2, about that of a bond; first guess of the Hessian


def minimised(numbers: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float] | str:
    """Relaxed positions [n, 3] in angstrom, not centred, and the energy in eV; or the reason for the failure.

    Args:
        numbers: nuclear charges [n] of a neutral, closed-shell molecule.
        start: positions [n, 3] in angstrom.
    Raises:
        ModuleNotFoundError: tblite is not installed.
    """
    from scipy.optimize import minimize  # here, because the cards need neither
    from tblite.exceptions import TBLiteRuntimeError  # pyright: ignore[reportMissingImports] - extra `mini`
    from tblite.interface import Calculator  # pyright: ignore[reportMissingImports]

    calculator = Calculator("GFN2-xTB", numbers, start / ANGSTROM_PER_BOHR)
    calculator.set("verbosity", 0)
    state = None

    def energy_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal state
        calculator.update(positions=x.reshape(-1, 3) / ANGSTROM_PER_BOHR)
        state = calculator.singlepoint(state)  # starts from the last geometry's density
        return state.get("energy") * EV_PER_HARTREE, state.get("gradient").ravel() * EV_PER_HARTREE / ANGSTROM_PER_BOHR

    options = {"gtol": MAX_GRADIENT, "maxiter": MAX_ITERATIONS, "hess_inv0": np.eye(start.size) / CURVATURE}
    try:
        found = minimize(energy_and_gradient, start.ravel(), jac=True, method="BFGS", options=options)
    except TBLiteRuntimeError:
        return "no self-consistent charges"
    if np.abs(found.jac).max() > MAX_GRADIENT:
        return "not relaxed"
    return found.x.reshape(-1, 3), float(found.fun)
