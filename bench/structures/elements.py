"""Shared by the readers of all formats: element symbols, limits, and the error for a file that cannot be read."""

from __future__ import annotations

MAX_LINE = 1 << 20  # characters of a line of text


class FileError(ValueError):
    """A file of molecules that cannot be read or written; one line: file, place, what was found, what was expected."""


# Written out, because a training run reads xyz files and loads no RDKit.
SYMBOLS = (  # noqa: SIM905
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn"
).split()
MAX_NUMBER = len(SYMBOLS)  # 86, radon
SYMBOL = dict(enumerate(SYMBOLS, start=1))  # nuclear charge -> element symbol
