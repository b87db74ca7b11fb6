"""Small crystals that several tests share, as numpy arrays, CIF text and structures."""

from __future__ import annotations

import numpy as np

from bench.structures.lattices import crystals, standard_cells
from bench.structures.structures import Structures

PEROVSKITE = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.52], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
SITES = {"SrTiO3": [38, 22, 8, 8, 8], "KNbO3": [19, 41, 8, 8, 8], "NaCl": [11, 17], "UO": [92, 8]}


def examples(names: list[str] | None = None, lengths: tuple[float, float, float] = (3.9, 4.0, 4.1)) -> Structures:
    """Perovskites and rock salts in cells of these lengths, angles 90, 85 and 95 degrees."""
    chosen = [SITES[name] for name in names or SITES]
    numbers = np.concatenate([np.array(sites) for sites in chosen])
    fractions = np.concatenate([PEROVSKITE[: len(sites)] for sites in chosen])
    cells = standard_cells(np.array([[*lengths, 90.0, 85.0, 95.0]] * len(chosen)))
    return crystals(numbers, fractions, cells, np.cumsum([0, *map(len, chosen)]))


def cif(name: str = "SrTiO3", symbols: list[str] | None = None, occupancy: str = "1", a: float = 3.9) -> str:
    """CIF text of a cubic perovskite; the occupancy is that of its first site."""
    symbols = symbols or ["Sr", "Ti", "O", "O", "O"]
    sites = "\n".join(
        f"  {symbol} {symbol}{k} 1 {x[0]:.4f} {x[1]:.4f} {x[2]:.4f} {occupancy if k == 0 else 1}"
        for k, (symbol, x) in enumerate(zip(symbols, PEROVSKITE, strict=True))
    )
    lengths = "\n".join(f"_cell_length_{axis}   {a}" for axis in "abc")
    angles = "\n".join(f"_cell_angle_{angle}   90.0" for angle in ("alpha", "beta", "gamma"))
    columns = ["type_symbol", "label", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z", "occupancy"]
    loop = "\n".join(f" _atom_site_{column}" for column in columns)
    return (
        f"data_{name}\n_symmetry_space_group_name_H-M   'P 1'\n{lengths}\n{angles}\nloop_\n"
        " _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n  1  'x, y, z'\n"
        f"loop_\n{loop}\n{sites}\n"
    )
