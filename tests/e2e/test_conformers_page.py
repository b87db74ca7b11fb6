"""docs/conformers.md: its study, on a folder of sdf files, from reading them to the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conformer_examples import records_of, shuffled
from rdkit import Chem

from bench.cli.main import main
from bench.structures.chemistry import molecule_of

PAGE = Path(__file__).parents[2] / "docs" / "conformers.md"
FEW = [
    *("train.n_steps=4", "train.batch_size=8", "train.log_every=2", "train.valid_every=4", "train.n_valid=8"),
    *("sample.n_molecules=12", "sample.n_steps=2", "launch.cluster=debug"),
]


@pytest.mark.slow
def test_the_study_of_the_page_runs_on_a_folder_of_sdf_files(tmp_path: Path, monkeypatch, capsys):
    """First try, one record of the folder being bad. Control: the same folder without `skip_bad` is refused."""
    pytest.importorskip("bench.metrics.conformer_rows")
    folder = tmp_path / "my_conformers"
    folder.mkdir()
    with Chem.SDWriter(str(folder / "all.sdf")) as writer:
        for smiles in ("C" * n + end for n in range(1, 5) for end in ("O", "N", "F")):
            for k, record in enumerate(records_of(smiles, 3)):
                r = shuffled(record, seed=k)
                writer.write(molecule_of(r.numbers, r.bonds, r.charges, r.positions[None]))
        writer.write(Chem.RemoveHs(molecule_of(r.numbers, r.bonds, r.charges, r.positions[None])))
    study = re.search(r"```yaml\n# my_conformers.yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert study is not None
    (tmp_path / "my_conformers.yaml").write_text(study[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONFORMERS_DIR", str(folder))
    assert main(["data", "conformers"]) == 1
    assert "lacks" in capsys.readouterr().err
    assert main(["run", "my_conformers.yaml", *FEW]) == 0
    assert main(["report", "my_conformers"]) == 0
    table = capsys.readouterr().out
    for word in ("COV-R", "AMR-P", "Data", "haar", "orbit_rb_exact", "edm", "Chirality"):
        assert word in table
