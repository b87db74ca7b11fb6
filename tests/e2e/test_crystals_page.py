"""docs/crystals.md: its study, on a folder of CIF files, from reading them to the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from crystal_examples import cif

from bench.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "crystals.md"
FEW = [
    *("train.n_steps=4", "train.batch_size=8", "train.log_every=2", "train.valid_every=4", "train.n_valid=8"),
    *("sample.n_molecules=4", "sample.n_steps=2", "launch.cluster=debug"),
]


@pytest.mark.slow
def test_the_study_of_the_page_runs_on_a_folder_of_cif_files(tmp_path: Path, monkeypatch, capsys):
    """First try, one file of the folder being disordered. Control: the same folder without `skip_bad` is refused."""
    pytest.importorskip("pymatgen.core")
    pytest.importorskip("smact")
    folder = tmp_path / "my_crystals"
    folder.mkdir()
    for k, metals in enumerate([("Sr", "Ti"), ("Ba", "Ti"), ("Ca", "Zr"), ("K", "Nb"), ("Na", "Ta"), ("La", "Al")] * 3):
        (folder / f"{k}.cif").write_text(cif(symbols=[*metals, "O", "O", "O"], a=3.9 + 0.02 * k))
    (folder / "bad.cif").write_text(cif(occupancy="0.5"))
    study = re.search(r"```yaml\n# my_crystals.yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert study is not None
    (tmp_path / "my_crystals.yaml").write_text(study[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYSTALS_DIR", str(folder))
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))
    assert main(["data", "crystals"]) == 1
    assert "partial occupancy" in capsys.readouterr().err
    assert main(["run", "my_crystals.yaml", *FEW]) == 0
    assert main(["report", "my_crystals"]) == 0
    table = (tmp_path / "runs" / "my_crystals" / "report" / "main.md").read_text()
    for word in ("Match rate", "RMSE", "Data", "haar", "orbit_rb_exact", "cspnet", "Plausible"):
        assert word in table
