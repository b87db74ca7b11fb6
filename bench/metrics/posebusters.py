"""PoseBusters' checks of single molecules, its configuration `mol`, in two parts.

All checks but one take some 30 ms for a molecule (its own configuration `mol_fast`). The energy ratio compares the UFF
energy with that of 50 ETKDG conformers; for a strained polycycle, of which QM9 has many, embedding fails after seconds
to minutes, and then there is no ratio. It is computed apart, of fewer molecules and within a limit of processor time,
and what has no ratio is counted, neither as passed nor left out.

References: Buttenschoen, Morris & Deane (2024), PoseBusters, doi:10.1039/D3SC04185A.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from bench.metrics.pool import Lost, bounded_map, require

CPU_SECONDS = 30  # for the checks of one molecule
ENERGY_CPU_SECONDS = 10  # for its energy ratio
ENERGY = "internal_energy"


@dataclass(frozen=True)
class Busted:
    """Results of checks.

    Attributes:
        passed: [n] for each check, by PoseBusters' name of it; NaN where the check has no result.
        n_timeouts: molecules whose checks were stopped, or crashed.
    """

    passed: dict[str, np.ndarray]
    n_timeouts: int

    @property
    def all_passed(self) -> np.ndarray:
        """Whether all checks have passed [n]; a check without a result has not."""
        return np.all([passed == 1 for passed in self.passed.values()], axis=0)


def version() -> str:
    """Of the installed package; names and limits of checks change between versions.

    Raises:
        MissingPackageError: it is not installed.
    """
    require("posebusters", "checks by PoseBusters")
    return metadata.version("posebusters")


def checks(molecules: Sequence[Chem.Mol | None], n_workers: int | None = None) -> Busted:
    """All checks of configuration `mol` but the energy ratio; a molecule without bonds passes none."""
    return _busted(bounded_map(_check, molecules, CPU_SECONDS, n_workers))


def energy_ratios(molecules: Sequence[Chem.Mol | None], n_workers: int | None = None) -> Busted:
    """The energy ratio of configuration `mol`."""
    return _busted(bounded_map(_check_energy, molecules, ENERGY_CPU_SECONDS, n_workers))


def _busted(rows: Sequence[dict[str, float] | Lost | None]) -> Busted:
    known = [row for row in rows if isinstance(row, dict)]
    names = dict.fromkeys(name for row in known for name in row)
    passed = {name: np.array([r.get(name, np.nan) if isinstance(r, dict) else np.nan for r in rows]) for name in names}
    return Busted(passed, sum(isinstance(row, Lost) for row in rows))


def _check(mol: Chem.Mol | None) -> dict[str, float] | None:
    return None if mol is None else _bust(mol, False)


def _check_energy(mol: Chem.Mol | None) -> dict[str, float] | None:
    return None if mol is None else _bust(mol, True)


def _bust(mol: Chem.Mol, energy: bool) -> dict[str, float]:
    busters = _busters(energy)
    with rdBase.BlockLogs():
        row = busters.bust(mol).iloc[0].to_dict()
    return {name: np.nan if passed != passed or passed is None else float(passed) for name, passed in row.items()}


@functools.cache
def _busters(energy: bool) -> Any:
    """In workers alone: the package sends RDKit's messages to Python's log, for the whole process."""
    import logging

    from posebusters import PoseBusters  # pyright: ignore[reportMissingImports] - optional

    logging.getLogger("posebusters").setLevel(logging.CRITICAL)
    logging.getLogger("rdkit").setLevel(logging.CRITICAL)
    if not energy:
        return PoseBusters("mol_fast")
    config = PoseBusters("mol").config
    # `mol` has the module twice; the first has no output. One thread, for the workers share the cores already.
    modules = [m for m in config["modules"] if m["function"] == "energy_ratio" and "chosen_binary_test_output" in m]
    for module in modules:
        module["parameters"]["num_threads"] = 1
    return PoseBusters({**config, "modules": modules})
