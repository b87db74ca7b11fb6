"""Sampled molecules, and what chemists' libraries call a molecule."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.structures import files
from bench.structures.structures import Structures

if TYPE_CHECKING:
    from ase import Atoms  # pyright: ignore[reportMissingImports] - optional
    from rdkit import Chem


log = logging.getLogger("equibench")


class Molecules(Structures):
    """`Structures` that convert themselves; positions in angstrom."""

    @classmethod
    def of(cls, structures: Structures) -> Molecules:
        return cls(structures.numbers, structures.positions, structures.ptr)

    def bonds(self) -> list[np.ndarray]:
        """Of each molecule, rows (first atom, second atom, order), by the rule that knows the elements.

        Raises:
            UnknownElementError: an element that no rule knows.
        """
        from bench.metrics.stability import natural_rule, perceived

        bonds = perceived(self, natural_rule(self))
        if bonds.found is not None and not bonds.found.all():
            log.warning(
                "%d of %d molecules have no bonds by %s", (~bonds.found).sum(), len(self), bonds.rule.description
            )
        return list(bonds)

    def to_rdkit(self) -> list[Chem.RWMol]:
        """RDKit molecules with bonds from `bonds` and one conformer; not sanitised, since a sample may be invalid.

        Raises:
            UnknownElementError: an element that no rule of bonds knows.
        """
        from rdkit import Chem

        from bench.metrics.validity import rebuild

        made = []
        for (numbers, positions), bonds in zip(self, self.bonds(), strict=True):
            mol = rebuild(numbers.tolist(), bonds.tolist())
            conformer = Chem.Conformer(len(numbers))
            conformer.SetPositions(np.ascontiguousarray(positions, dtype=np.float64))
            mol.AddConformer(conformer)
            made.append(mol)
        return made

    def to_ase(self) -> list[Atoms]:
        """ASE's molecules.

        Raises:
            ImportError: ASE, which nothing else here needs, is not installed.
        """
        try:
            from ase import Atoms  # pyright: ignore[reportMissingImports] - optional
        except ImportError as error:
            raise ImportError("to_ase needs ASE, which is not installed; pip install ase") from error
        return [Atoms(numbers=numbers, positions=positions) for numbers, positions in self]

    def write(self, path: str | Path) -> None:
        """Write .xyz, .extxyz, .npz, or .sdf with bonds (without them where no rule knows an element).

        Raises:
            FileError: another suffix, or the file cannot be written.
        """
        from bench.metrics.stability import UnknownElementError

        bonds = None
        if Path(path).suffix.lower() == ".sdf":
            try:
                bonds = self.bonds()
            except UnknownElementError as error:
                log.warning("written without bonds: %s", error)
        files.write(path, self, bonds=bonds)
