"""docs/proteins.md: its study, on a folder of PDB files, from reading them to the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chain_files import helix, lines_of, sequence, write_pdb

from bench.cli.main import main
from bench.config.study import load_study
from bench.metrics import proteins

PAGE = Path(__file__).parents[2] / "docs" / "proteins.md"
FEW = [
    *("train.n_steps=4", "train.batch_size=4", "train.log_every=2", "train.valid_every=4", "train.n_valid=4"),
    *("sample.n_molecules=6", "sample.n_steps=2", "launch.cluster=debug"),
]


@pytest.mark.slow
def test_the_study_of_the_page_runs_on_a_folder_of_pdb_files(tmp_path: Path, monkeypatch, capsys):
    """First try, one file of the folder being bad, which is named. Control: an empty folder is refused."""
    pytest.importorskip("gemmi")
    monkeypatch.setattr(proteins, "N_COMPARED", 2)
    monkeypatch.setattr(proteins, "N_KNOWN", 2)
    folder = tmp_path / "my_proteins"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROTEINS_DIR", str(folder))
    assert main(["data", "proteins"]) == 1
    assert "has no file ending in" in capsys.readouterr().err
    for k in range(12):
        write_pdb(folder / f"{k}.pdb", lines_of(helix(40 + k), sequence(40 + k, k)))
    (folder / "broken.pdb").write_text("nothing\n")
    study = re.search(r"```yaml\n# my_proteins.yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert study is not None
    (tmp_path / "my_proteins.yaml").write_text(study[1])
    assert main(["data", "proteins"]) == 0
    assert "broken.pdb" in capsys.readouterr().out
    assert main(["run", "my_proteins.yaml", *FEW]) == 0
    assert main(["report", "my_proteins"]) == 0
    table = capsys.readouterr().out
    for word in ("Left-handed", "dihedral", "Data", "haar", "orbit_rb_exact", "edm"):
        assert word in table


def test_the_laptop_study_has_a_control_for_its_group():
    """Ten runs of seed 0, of both groups. Control: all runs of the grid make sense."""
    study = load_study("proteins_laptop")
    first = [run for run in study.runs if run.seed == 0]
    assert {run.group for run in first} == {"SO3", "O3"}
    assert len(first) == 10
