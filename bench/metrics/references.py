"""What to cite for the metrics of molecules: EDM's definitions, RDKit, and what judges plausibility."""

from bench.references import HOOGEBOOM_2022, RDKIT, Reference

REFERENCES = (HOOGEBOOM_2022, RDKIT)

POSEBUSTERS = Reference(
    "buttenschoen2024posebusters",
    "PoseBusters: AI-based docking methods fail to generate physically valid poses or generalise to novel sequences",
    ("Buttenschoen, Martin", "Morris, Garrett M.", "Deane, Charlotte M."),
    2024,
    doi="10.1039/D3SC04185A",
    venue="Chemical Science",
)
GFN2 = Reference(
    "bannwarth2019gfn2",
    "GFN2-xTB: An Accurate and Broadly Parametrized Self-Consistent Tight-Binding Quantum Chemical Method with "
    "Multipole Electrostatics and Density-Dependent Dispersion Contributions",
    ("Bannwarth, Christoph", "Ehlert, Sebastian", "Grimme, Stefan"),
    2019,
    doi="10.1021/acs.jctc.8b01176",
    venue="Journal of Chemical Theory and Computation",
)
XYZ2MOL = Reference(
    "kim2015universal",
    "Universal Structure Conversion Method for Organic Molecules: From Atomic Connectivity to Three-Dimensional "
    "Geometry",
    ("Kim, Yeonjoon", "Kim, Woo Youn"),
    2015,
    doi="10.1002/bkcs.10334",
    venue="Bulletin of the Korean Chemical Society",
)
PLAUSIBILITY = (RDKIT, POSEBUSTERS, GFN2, XYZ2MOL)
