"""What to cite for the metrics of molecules: EDM's rule of bonds and definitions, and RDKit, which sanitises."""

from bench.references import HOOGEBOOM_2022, RDKIT

REFERENCES = (HOOGEBOOM_2022, RDKIT)
