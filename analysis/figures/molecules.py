"""Sampled molecules, a row per method: the first ones of drawn.sdf, not chosen ones, with the bonds inferred there."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rdkit import Chem, rdBase
from rdkit.Chem import AllChem
from rdkit.Chem.Draw import rdMolDraw2D

from analysis.figures.style import GREY, STYLE, WIDTH, colours, save
from analysis.stats import Group
from analysis.study import Study
from bench.records.store import RunFolder

N_SHOWN = 6
PIXELS = (340, 270)  # width, height


def absent(study: Study) -> str:
    """Why there is nothing to draw, or ''."""
    if any(drawn_file(study, group) for group in study.groups):
        return ""
    return "no evaluated run kept molecules with bonds (drawn.sdf)"


def build(study: Study, out: Path, n_shown: int = N_SHOWN) -> list[Path]:
    """Write molecules.png and molecules.pdf; nothing when no evaluated run kept samples."""
    rows = [(group, file) for group in study.groups if (file := drawn_file(study, group)) is not None]
    if not rows:
        return []
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(
            figsize=(WIDTH, 0.82 * len(rows)), layout=ConstrainedLayoutEngine(w_pad=0, h_pad=0.01, wspace=0, hspace=0)
        )
        panels = figure.subplots(
            len(rows), n_shown + 1, squeeze=False, gridspec_kw={"width_ratios": [0.9] + [1] * n_shown}
        )
        for row, (group, file) in enumerate(rows):
            for axes in panels[row]:
                axes.set(xticks=[], yticks=[])
            head = panels[row, 0]
            head.text(
                0, 0.56, group[0].replace(" (", "\n("), color=colours(study)[group[0]], fontweight="bold", va="bottom"
            )
            head.text(0, 0.46, group[1].replace(" (", "\n("), color=GREY, fontsize=7, va="top")
            for axes, molecule in zip(panels[row, 1:], read_drawn(file, n_shown), strict=False):
                if molecule is None:
                    axes.text(0.5, 0.5, "unreadable", color=GREY, fontsize=7, ha="center", va="center")
                else:
                    axes.imshow(picture(molecule), interpolation="antialiased")
        return save(figure, out, "molecules")


def caption(_: Study, n_shown: int = N_SHOWN) -> str:
    """What the figure shows."""
    return (
        f"The first {n_shown} samples (or fewer, where fewer were kept) of each row's first seed, in the order drawn: "
        "not "
        "chosen, and too few to judge a method by. Bonds as inferred from distances and kept in drawn.sdf; flat "
        "drawings by "
        "RDKit. Hydrogens are folded into their atom where RDKit accepts the molecule and each has exactly one bond, "
        "to a "
        "heavier atom; else all atoms are drawn. Red: atoms whose valence RDKit refuses. Dots: unpaired electrons."
    )


def drawn_file(study: Study, group: Group) -> Path | None:
    """drawn.sdf of the row's lowest counted seed that has one."""
    runs = study.of(*group)
    files = [RunFolder(path).drawn for path in runs[runs["counted"]].sort_values("seed")["path"]]
    return next((file for file in files if file.exists()), None)


def read_drawn(file: Path, n: int) -> list[Chem.Mol | None]:
    """The first n molecules of an SDF as written, valences unchecked; None for an entry that is no molecule."""
    supplier = Chem.SDMolSupplier()  # RDKit's warnings are off: odd valences are expected here, and drawn in red
    with rdBase.BlockLogs():
        supplier.SetData(file.read_text(errors="replace"), sanitize=False, removeHs=False)
        return [supplier[i] for i in range(min(n, len(supplier)))]


def picture(molecule: Chem.Mol, pixels: tuple[int, int] = PIXELS) -> np.ndarray:
    """An RGB picture [height, width, 3] of any molecule, sensible or not."""
    with rdBase.BlockLogs():
        flat, refused = prepare(molecule)
        drawer = rdMolDraw2D.MolDraw2DCairo(*pixels)
        options = drawer.drawOptions()
        options.prepareMolsBeforeDrawing = False
        options.fixedBondLength = 62
        options.padding = 0.05
        options.bondLineWidth = 3
        options.scaleBondWidth = False
        options.minFontSize = options.maxFontSize = 30
        options.setHighlightColour((1.0, 0.72, 0.70))
        options.highlightRadius = 0.36
        drawer.DrawMolecule(flat, highlightAtoms=refused, highlightBonds=[])
        drawer.FinishDrawing()
        return imread(io.BytesIO(drawer.GetDrawingText()), format="png")


def prepare(molecule: Chem.Mol) -> tuple[Chem.Mol, list[int]]:
    """Flat coordinates and the atoms whose valence RDKit refuses.

    No atom is given hydrogens that the sample lacks. Hydrogens are removed only from molecules that RDKit accepts and
    where each hydrogen has exactly one bond, to a heavier atom.
    """
    flat = Chem.Mol(molecule)
    for atom in flat.GetAtoms():
        atom.SetNoImplicit(True)
    flat.UpdatePropertyCache(strict=False)
    problems = Chem.DetectChemistryProblems(flat)
    refused = sorted({p.GetAtomIdx() for p in problems if p.GetType() == "AtomValenceException"})
    if not problems:
        Chem.SanitizeMol(flat)
    else:
        Chem.FastFindRings(flat)
    if not problems and _ordinary_hydrogens(flat):
        flat = Chem.RemoveHs(flat, sanitize=False)
    else:
        # RDKit draws a carbon as a bare corner, which reads as if it had hydrogens that are not there.
        for atom in flat.GetAtoms():
            atom.SetProp("_displayLabel", atom.GetSymbol())
    if not problems:
        Chem.Kekulize(flat, clearAromaticFlags=True)
    AllChem.Compute2DCoords(flat)  # pyright: ignore[reportAttributeAccessIssue]
    return flat, refused


def _ordinary_hydrogens(molecule: Chem.Mol) -> bool:
    hydrogens = [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 1]
    return all(atom.GetDegree() == 1 and atom.GetNeighbors()[0].GetAtomicNum() > 1 for atom in hydrogens)
