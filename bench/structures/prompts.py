"""Crystals described in words: attributes as a short prompt, and prompts as vectors.

A prompt has one sentence for each attribute known of a crystal, "The NAME is VALUE.", as TGDMat's short prompts do (Das
et al., arXiv:2503.00522), in one fixed order. An encoder makes a vector of `WIDTH` numbers of it:

    hashed     a stand-in for a text encoder, which knows no language: a fixed random direction for each attribute and
               value, and for a number v one of its attribute times arcsinh v; their sum over the root of their number
    FOLDER     a Hugging Face text encoder: the last hidden state of the first token ([CLS] in BERT), as TGDMat takes it
               from MatSciBERT; vectors of fewer numbers are filled up with zeros

Space group, crystal system, energy and gap are those of the crystal that is to be found: a model that is given them is
judged on following a description, not on prediction.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bench.records import inputs
from bench.records.inputs import one_line
from bench.records.store import write_atomically
from bench.structures.elements import FileError
from bench.structures.fetch import cache_folder
from bench.structures.structures import Structures

log = logging.getLogger(__name__)

WIDTH = 768  # numbers of a prompt's vector, those of BERT's base size
HASHED = "hashed"
BATCH = 64  # prompts that a text encoder reads at once

# attributes in the order of their sentences: name in the files of CDVAE, name and unit in a sentence
SENTENCES = {
    "formula": ("formula", ""),
    "formation_energy_per_atom": ("formation energy", " eV per atom"),
    "heat_ref": ("heat of formation", ""),
    "energy_per_atom": ("energy", " eV per atom"),
    "band_gap": ("band gap", " eV"),
    "dir_gap": ("direct gap", " eV"),
    "ind_gap": ("indirect gap", " eV"),
    "e_above_hull": ("energy above the hull", " eV per atom"),
    "space_group": ("space group number", ""),
    "crystal_system": ("crystal system", ""),
}
# the last space group of each crystal system (International Tables A)
SYSTEMS = {
    2: "triclinic",
    15: "monoclinic",
    74: "orthorhombic",
    142: "tetragonal",
    167: "trigonal",
    194: "hexagonal",
    230: "cubic",
}


@dataclass(frozen=True)
class Described(Structures):
    """Crystals, each with the vector of its prompt.

    Attributes:
        vectors: [M, WIDTH], float32.
    """

    vectors: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vectors.shape != (len(self), WIDTH):
            raise ValueError(f"vectors have shape {self.vectors.shape}, expected ({len(self)}, {WIDTH})")

    def select(self, index: np.ndarray) -> Described:
        """The crystals at `index`, or where it is True."""
        index = np.asarray(index)
        chosen = super().select(index)
        # an empty list is an array of floats
        vectors = self.vectors[index if index.size else index.astype(np.int64)]
        return Described(chosen.numbers, chosen.positions, chosen.ptr, vectors, cells=chosen.cells)

    def arrays(self) -> Iterator[np.ndarray]:
        yield from super().arrays()
        yield self.vectors


def described(structures: Structures, prompts: Sequence[str], encoder: str) -> Described:
    """Crystals with the vectors of their prompts; raises FileError where the encoder cannot be used."""
    vectors = encode(prompts, encoder)
    return Described(structures.numbers, structures.positions, structures.ptr, vectors, cells=structures.cells)


def label_of(encoder: str) -> str:
    """What tables say of the prompts' encoder."""
    if encoder == HASHED:
        return "prompts as hashed attributes (a stand-in for a text encoder)"
    return f"prompts encoded by {Path(encoder).expanduser().resolve().name}"


def system_of(space_group: int) -> str:
    """The crystal system of a space group's number, 1 to 230."""
    return next(system for last, system in SYSTEMS.items() if space_group <= last)


def prompt(attributes: Mapping[str, str | float]) -> str:
    """One sentence for each attribute of `SENTENCES` that is given; numbers that are not finite are left out.

    A space group, which is 1 to 230 where it is known, gives the crystal system as well.
    """
    given = dict(attributes)
    if "space_group" in given:
        number = int(given.pop("space_group"))
        if 1 <= number <= 230:
            given |= {"space_group": str(number), "crystal_system": system_of(number)}
    sentences = []
    for name, (words, unit) in SENTENCES.items():
        value = given.get(name)
        if isinstance(value, str):
            sentences.append(f"The {words} is {value}{unit}.")
        elif value is not None and np.isfinite(value):
            sentences.append(f"The {words} is {value:.3f}{unit}.")
    return " ".join(sentences)


def encode(prompts: Sequence[str], encoder: str) -> np.ndarray:
    """Vectors of prompts [M, WIDTH], float32.

    Args:
        encoder: 'hashed', or the folder of a Hugging Face text encoder with safetensors weights.
    Raises:
        FileError: no such folder, transformers is missing, or the model cannot be used.
    """
    if encoder == HASHED:
        return np.stack([_hashed(text) for text in prompts]) if prompts else np.zeros((0, WIDTH), np.float32)
    folder = Path(encoder).expanduser()
    if not (folder / "config.json").is_file():
        raise FileError(f"{folder} has no config.json; data.text takes '{HASHED}' or the folder of a text encoder")
    digest = hashlib.sha256("\n".join(prompts).encode())
    try:
        for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise FileError(f"{folder}: {one_line(error)}") from error
    cached = cache_folder() / f"prompts-{digest.hexdigest()[:16]}.npz"
    if cached.is_file():
        try:
            return inputs.read_arrays(cached, ("vectors",))["vectors"]
        except (inputs.NpzError, OSError):
            log.warning("%s is damaged; encoding the prompts again", cached)
    log.info("encoding %d prompts (once; kept in %s)", len(prompts), cached.parent)
    vectors = _transformed(prompts, folder)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, vectors=vectors)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, buffer.getvalue())
    except OSError as error:
        log.warning("%s: not kept: %s", cached, one_line(error))
    return vectors


@cache
def _direction(feature: str) -> np.ndarray:
    """A fixed standard normal vector [WIDTH] that the feature's hash seeds."""
    seed = int.from_bytes(hashlib.sha256(feature.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=WIDTH)


def _hashed(text: str) -> np.ndarray:
    """Sum of the directions of what a prompt says, of unit variance [WIDTH], float32."""
    terms = [np.zeros(WIDTH)]
    for words, value in re.findall(r"The (.+?) is (\S+?)(?: eV[^.]*)?\.(?= |$)", text):
        if words == "formula":  # an element at a time, so that a formula never seen still says something
            terms += [_direction(f"{words} {part}") for part in re.findall(r"[A-Z][a-z]?[\d.]*", value)]
        elif re.fullmatch(r"-?\d+\.\d+", value):
            terms += [_direction(words), _direction(f"{words}, its value") * np.arcsinh(float(value))]
        else:
            terms.append(_direction(f"{words} {value}"))
    return (np.sum(terms, axis=0) / max(1, len(terms) - 1) ** 0.5).astype(np.float32)


def _transformed(prompts: Sequence[str], folder: Path) -> np.ndarray:
    """Last hidden states of first tokens [M, WIDTH]; nothing is downloaded, unpickled or executed from the folder."""
    import torch

    try:
        from transformers import AutoModel, AutoTokenizer  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise FileError(
            f"prompts are encoded by transformers; pip install transformers, or choose data.text={HASHED}"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
        width = int(model.config.hidden_size)
        if width > WIDTH:
            raise FileError(f"{folder}: an encoder of width {width}; choose one of at most {WIDTH}, as MatSciBERT")
        vectors = np.zeros((len(prompts), WIDTH), np.float32)
        with torch.no_grad():
            for start in range(0, len(prompts), BATCH):
                some = list(prompts[start : start + BATCH])
                tokens = tokenizer(some, padding=True, truncation=True, return_tensors="pt")
                vectors[start : start + BATCH, :width] = model(**tokens).last_hidden_state[:, 0].float().numpy()
    except (OSError, ValueError, AttributeError) as error:
        raise (
            error
            if isinstance(error, FileError)
            else FileError(f"{folder}: no text encoder that transformers can use: {one_line(error)}")
        ) from error
    return vectors
