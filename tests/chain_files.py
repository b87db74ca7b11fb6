"""Ideal helices and files of them: PDB text is written line by line, so that what is wrong in it is in sight."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.mini.proteins import HELIX, backbones

NAMES = "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL"
THREE = dict(zip("ARNDCQEGHILKMFPSTWYV", NAMES.split(" "), strict=True))


def dihedrals(n: int, phi: float, psi: float) -> np.ndarray:
    """N, C-alpha and C of a chain of n residues with these dihedral angles [n, 3, 3], in angstrom."""
    full = np.full((1, n), 180.0)
    return backbones(np.full((1, n), phi), np.full((1, n), psi), full)[0]


def helix(n: int) -> np.ndarray:
    """N, C-alpha and C of an ideal right-handed helix [n, 3, 3], in angstrom."""
    return dihedrals(n, *HELIX)


def sequence(n: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list(THREE), n))


def atom_line(
    serial: int, name: str, residue: str, number: int, x: np.ndarray, chain: str = "A", alt: str = " ", occ: float = 1.0
) -> str:
    position = "".join(f"{v:8.3f}" for v in x) + f"{occ:6.2f} 10.00"
    return f"ATOM  {serial:5d}  {name:<3}{alt}{residue} {chain}{number:4d}    {position}          {name[0]:>2}"


def lines_of(x: np.ndarray, letters: str, chain: str = "A", first: int = 1) -> list[str]:
    """Lines of a chain, three for each residue."""
    return [
        atom_line(3 * i + k + 1, name, THREE[letter], first + i, x[i, k], chain)
        for i, letter in enumerate(letters)
        for k, name in enumerate(("N", "CA", "C"))
    ]


def write_pdb(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join([*lines, "TER", "END", ""]))
    return path


def write_npz(path: Path, chains: list[tuple[str, str, np.ndarray]], **changes: np.ndarray) -> Path:
    """Chains (name, sequence, N CA C [n, 3, 3]) in the layout of `bench.structures.chain_files`."""
    ptr = np.cumsum([0, *(len(letters) for _, letters, _ in chains)])
    x = np.concatenate([x for *_, x in chains])
    oxygen = x[:, 2:3] + 1.23
    arrays = {
        "ptr": ptr.astype(np.int32),
        "xyz_centi_angstrom": np.round(100 * np.concatenate([x, oxygen], axis=1)).astype(np.int16),
        "seq": np.frombuffer("".join(letters for _, letters, _ in chains).encode(), np.uint8),
        "name": np.array([name for name, *_ in chains]),
    }
    np.savez(path, **{**arrays, **changes})
    return path
