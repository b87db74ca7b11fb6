"""Crystals in words: sentences, the stand-in for a text encoder, and text encoders of a folder."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from crystal_examples import cif, examples

from bench.structures import prompts
from bench.structures.crystal_files import read_entries
from bench.structures.elements import FileError
from bench.structures.lattices import fractions_of, parameters_of
from bench.structures.prompts import HASHED, WIDTH, Described, described, encode, prompt


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))


def test_a_prompt_says_what_is_known_and_nothing_else():
    known = {"space_group": 221.0, "band_gap": 1.25, "formula": "SrTiO3", "e_above_hull": float("nan"), "other": 3.0}
    said = (
        "The formula is SrTiO3. The band gap is 1.250 eV. The space group number is 221. The crystal system is cubic."
    )
    assert prompt(known) == said
    assert prompt({"formula": "C", "space_group": 0}) == "The formula is C."  # 0: unknown


def test_crystal_systems_of_space_groups():
    """Last and first number of neighbours (International Tables A)."""
    systems = {1: "triclinic", 2: "triclinic", 3: "monoclinic", 16: "orthorhombic", 74: "orthorhombic"}
    systems |= {75: "tetragonal", 143: "trigonal", 168: "hexagonal", 194: "hexagonal", 195: "cubic", 230: "cubic"}
    assert {number: prompts.system_of(number) for number in systems} == systems


def test_files_give_what_their_columns_hold(tmp_path: Path):
    made = examples(["SrTiO3", "NaCl"])
    assert made.cells is not None
    arrays = {"cell": parameters_of(made.cells), "frac": fractions_of(made), "spacegroup": np.array([221, 0])}
    arrays |= {"props": np.array([[-1.5, 2.0], [np.nan, 3.0]]), "prop_names": np.array(["band_gap", "unnamed"])}
    np.savez(tmp_path / "x.npz", ptr=made.ptr, atomic_numbers=made.numbers, **arrays)
    first, second = read_entries([tmp_path / "x.npz"]).prompts
    assert first == prompt({"formula": "SrTiO3", "band_gap": -1.5, "space_group": 221})
    assert second == "The formula is NaCl."
    with (tmp_path / "val.csv").open("w", newline="") as file:
        rows = [
            ("material_id", "cif", "spacegroup.number", "heat_ref"),
            ("1", cif(), "99", "0.5"),
            ("2", cif(), "", ""),
        ]
        csv.writer(file).writerows(rows)
    for _ in range(2):  # from the file, then from the cache
        found = read_entries([tmp_path / "val.csv"]).prompts
        assert found == [prompt({"formula": "SrTiO3", "heat_ref": 0.5, "space_group": 99}), "The formula is SrTiO3."]
    np.savez(tmp_path / "y.npz", ptr=made.ptr, atomic_numbers=made.numbers, **arrays | {"props": np.zeros((2, 1))})
    with pytest.raises(FileError, match=r"props \(2, 1\), prop_names \(2,\)"):
        read_entries([tmp_path / "y.npz"])


def test_the_stand_in_is_the_same_everywhere_and_tells_prompts_apart():
    """Of unit variance; near for near numbers and for shared elements, far for others."""
    one, near, far, other, system = encode(
        [
            prompt({"formula": "SrTiO3", "band_gap": 1.0}),
            prompt({"formula": "SrTiO3", "band_gap": 1.1}),
            prompt({"formula": "SrTiO3", "band_gap": 8.0}),
            prompt({"formula": "NaCl", "band_gap": 1.0}),
            prompt({"formula": "SrTiO3", "band_gap": 1.0, "space_group": 221}),
        ],
        HASHED,
    )
    assert one.shape == (WIDTH,)
    assert 0.7 < one.std() < 1.3
    distances = [float(np.linalg.norm(one - v)) for v in (near, far, other, system)]
    assert 0 < distances[0] < 0.2 * distances[1]
    assert distances[0] < 0.1 * min(distances[2:])
    assert np.allclose(one[:3], [-1.998305, -0.247196, -0.822036], atol=1e-6)  # on any machine and in any process
    assert encode([""], HASHED).tolist() == [[0.0] * WIDTH]


class Tokens(dict):
    """What a tokenizer returns."""


def transformers(calls: list[int], width: int = 5) -> types.ModuleType:
    """A stand-in for the library: the hidden state of token k of a prompt is (its length, k, 0...)."""

    class Tokenizer:
        @classmethod
        def from_pretrained(cls, folder: Path, local_files_only: bool, trust_remote_code: bool):
            assert (folder / "config.json").is_file()
            assert local_files_only
            assert not trust_remote_code
            return cls()

        def __call__(self, texts: list[str], padding: bool, truncation: bool, return_tensors: str):
            return Tokens(lengths=torch.tensor([float(len(text)) for text in texts]))

    class Model:
        config = types.SimpleNamespace(hidden_size=width)

        @classmethod
        def from_pretrained(cls, folder: Path, local_files_only: bool, trust_remote_code: bool, use_safetensors: bool):
            assert local_files_only
            assert use_safetensors
            assert not trust_remote_code
            if (folder / "broken.json").exists():
                raise OSError("no file named model.safetensors")
            return cls()

        def eval(self):
            return self

        def __call__(self, lengths: torch.Tensor):
            calls.append(len(lengths))
            hidden = torch.zeros(len(lengths), 3, width)
            hidden[:, :, 0], hidden[:, :, 1] = lengths[:, None], torch.arange(3.0)
            return types.SimpleNamespace(last_hidden_state=hidden)

    made = types.ModuleType("transformers")
    made.AutoTokenizer, made.AutoModel = Tokenizer, Model  # type: ignore[attr-defined]
    return made


def test_an_encoder_of_a_folder_gives_its_first_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In batches, filled up with zeros, once; control: other weights are read again."""
    calls: list[int] = []
    monkeypatch.setitem(sys.modules, "transformers", transformers(calls))
    folder = tmp_path / "matscibert"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    texts = ["x" * k for k in range(1, prompts.BATCH + 3)]
    first, again = encode(texts, str(folder)), encode(texts, str(folder))
    assert calls == [prompts.BATCH, 2]
    assert np.array_equal(first, again)
    assert first[:, 0].tolist() == [len(text) for text in texts]
    assert not first[:, 1:].any()
    (folder / "model.safetensors").write_bytes(b"other")
    encode(texts, str(folder))
    assert len(calls) == 4
    assert prompts.label_of(str(folder)) == "prompts encoded by matscibert"
    assert "stand-in" in prompts.label_of(HASHED)


def test_encoders_that_cannot_be_used_are_refused_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileError, match=r"has no config\.json; data\.text takes 'hashed' or the folder"):
        encode(["x"], str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FileError, match=r"pip install transformers, or choose data\.text=hashed"):
        encode(["x"], str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", transformers([], width=WIDTH + 1))
    with pytest.raises(FileError, match="an encoder of width 769; choose one of at most 768"):
        encode(["x"], str(tmp_path))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(FileError, match=r"no text encoder that transformers can use: no file named model.safetensors"):
        encode(["x"], str(tmp_path))


def test_vectors_follow_their_crystals():
    made = described(examples(), [f"The formula is {name}." for name in ("A", "B", "C", "D")], HASHED)
    chosen = made.select(np.array([2, 0]))
    assert isinstance(chosen, Described)
    assert np.array_equal(chosen.vectors, made.vectors[[2, 0]])
    assert np.array_equal(made.select(np.array([False, True, False, True])).vectors, made.vectors[[1, 3]])
    assert len(made.select(np.array([])).vectors) == 0
    assert sum(np.array_equal(array, made.vectors) for array in made.arrays()) == 1  # part of the fingerprint
    with pytest.raises(ValueError, match=r"expected \(4, 768\)"):
        Described(made.numbers, made.positions, made.ptr, made.vectors[:3], cells=made.cells)
