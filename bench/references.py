"""Bibliography: works that plug-ins ask to be cited, their BibTeX, and the references that several plug-ins share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One paper, data set or program.

    Attributes:
        key: BibTeX key, one for each work, e.g. 'hoogeboom2022equivariant'.
        title: as published; capitals are kept.
        authors: in order, each as 'Family, Given'.
        year: of the cited version.
        arxiv: number, e.g. '2203.17003'.
        doi, venue, url: where there is one.
    """

    key: str
    title: str
    authors: tuple[str, ...]
    year: int
    arxiv: str | None = None
    doi: str | None = None
    venue: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if not (self.arxiv or self.doi or self.url):
            raise ValueError(f"reference {self.key!r} can be found nowhere; give arxiv, doi or url")

    def __str__(self) -> str:
        first = self.authors[0].split(",")[0]
        where = f"arXiv:{self.arxiv}" if self.arxiv else f"doi:{self.doi}" if self.doi else self.url
        return f"{first}{' et al.' if len(self.authors) > 1 else ''} ({self.year}), {self.title}, {where}"

    def bibtex(self) -> str:
        """The entry, as UTF-8: @article where it has a venue, else @misc."""
        fields = {
            "title": f"{{{self.title}}}",
            "author": " and ".join(self.authors),
            "year": str(self.year),
            "journal": self.venue,
            "doi": self.doi,
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else None,
            "url": self.url,
        }
        lines = [f"  {name:13} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@{'article' if self.venue else 'misc'}{{{self.key},", *lines, "}"])


def bibliography(references: Iterable[Reference]) -> str:
    """BibTeX of all works, each once, sorted by key.

    Raises:
        ValueError: two works share a key.
    """
    works: dict[str, Reference] = {}
    for reference in references:
        if works.setdefault(reference.key, reference) != reference:
            raise ValueError(f"two works have the key {reference.key!r}: {works[reference.key]} and {reference}")
    return "\n\n".join(works[key].bibtex() for key in sorted(works))


EQUIBENCH = Reference(
    "equibench",
    "EquiBench: equivariance strategies of 3D molecular diffusion models, measured side by side",
    ("{The EquiBench authors}",),
    2026,
    url="https://github.com/equibench/equibench",
)
HOOGEBOOM_2022 = Reference(
    "hoogeboom2022equivariant",
    "Equivariant Diffusion for Molecule Generation in 3D",
    ("Hoogeboom, Emiel", "Satorras, Victor Garcia", "Vignac, Clément", "Welling, Max"),
    2022,
    arxiv="2203.17003",
)
ZHANG_2024 = Reference(
    "zhang2024symdiff",
    "SymDiff: Equivariant Diffusion via Stochastic Symmetrisation",
    ("Zhang, Leo", "Ashouritaklimi, Kianoosh", "Teh, Yee Whye", "Cornish, Rob"),
    2024,
    arxiv="2410.06262",
)
TONG_2025 = Reference(
    "tong2025rao",
    "Rao-Blackwell Gradient Estimators for Equivariant Denoising Diffusion",
    ("Tong, Vinh", "Hoang, Trung-Dung", "Liu, Anji", "Van den Broeck, Guy", "Niepert, Mathias"),
    2025,
    arxiv="2502.09890",
)
JIAO_2023 = Reference(
    "jiao2023crystal",
    "Crystal Structure Prediction by Joint Equivariant Diffusion",
    (
        *("Jiao, Rui", "Huang, Wenbing", "Lin, Peijia", "Han, Jiaqi", "Chen, Pin"),
        *("Lu, Yutong", "Liu, Yang"),
    ),
    2023,
    arxiv="2309.04475",
)
DAS_2025 = Reference(
    "das2025periodic",
    "Periodic Materials Generation using Text-Guided Joint Diffusion Model",
    (
        "Das, Kishalay",
        "Khastagir, Subhojyoti",
        "Goyal, Pawan",
        "Lee, Seung-Cheol",
        "Bhattacharjee, Satadeep",
        "Ganguly, Niloy",
    ),
    2025,
    arxiv="2503.00522",
)
RDKIT = Reference(
    "rdkit",
    "RDKit: Open-source cheminformatics",
    ("Landrum, Greg", "{RDKit contributors}"),
    2006,
    doi="10.5281/zenodo.591637",
    url="https://www.rdkit.org",
)
GFN2_XTB = Reference(
    "bannwarth2019gfn2",
    "GFN2-xTB: An Accurate and Broadly Parametrized Self-Consistent Tight-Binding Quantum Chemical Method with "
    "Multipole Electrostatics and Density-Dependent Dispersion Contributions",
    ("Bannwarth, Christoph", "Ehlert, Sebastian", "Grimme, Stefan"),
    2019,
    doi="10.1021/acs.jctc.8b01176",
    venue="Journal of Chemical Theory and Computation",
)
