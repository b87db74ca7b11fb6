"""docs/proteins.md: its study, on a folder of PDB files, from reading them to the report."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chain_files import helix, lines_of, sequence, write_pdb
from e2e.test_extending import equibench, examples, named

from bench.cli.main import main
from bench.config.study import load_study
from bench.metrics import proteins
from bench.structures.chains import ChainAtoms
from bench.structures.structures import Structures

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
    for name, content in examples(PAGE.read_text()).items():
        (tmp_path / name).write_text(content)
    assert main(["data", "proteins"]) == 0
    assert "broken.pdb" in capsys.readouterr().out
    assert main(["run", "my_proteins.yaml", *FEW]) == 0
    assert main(["report", "my_proteins"]) == 0
    table = capsys.readouterr().out
    for word in ("Left-handed", "dihedral", "Data", "haar", "orbit_rb_exact", "edm"):
        assert word in table
    assert "designab" not in table.lower()
    (tmp_path / "mine.py").write_text(STAND_IN)
    words = ("measure", "my_proteins", f"command=[{sys.executable}, mine.py]", "--only", "scrmsd")
    done = equibench(tmp_path, *words, *named("scrmsd.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["report", "my_proteins"]) == 0
    assert "scRMSD" in (tmp_path / "runs" / "my_proteins" / "report" / "report.md").read_text()


STAND_IN = """
import csv, sys
from pathlib import Path
folder, table = map(Path, sys.argv[1:3])
with open(table, "w") as file:
    out = csv.writer(file)
    out.writerow(["sample", "scrmsd"])
    for path in folder.glob("*.pdb"):
        atoms = [line for line in path.read_text().splitlines() if line.startswith("ATOM")]
        assert all(line[12:16] == " CA " and len(line) == 78 for line in atoms)
        out.writerow([path.stem, 1.0 if float(atoms[0][30:38]) == 1.5 else len(atoms)])
"""


def subject(per_residue: int = 1) -> Any:
    """Two samples, of 5 and 7 residues; the first C-alpha of the first lies at x = 1.5."""
    atoms = [ChainAtoms.CA, None, ChainAtoms.BACKBONE][per_residue - 1]
    assert atoms is not None
    made = []
    for n, x in ((5, 1.5), (7, -12.25)):
        positions = np.full((n * per_residue, 3), -123.456)
        positions[per_residue // 2, 0] = x
        made.append((np.tile(atoms.numbers, n), positions))
    return SimpleNamespace(samples=Structures.from_list(made))


def scrmsd() -> dict[str, Any]:
    """The plug-in of the page, run as a module would be; not registered, which would outlast the test."""
    names: dict[str, Any] = {"__name__": __name__}
    text = re.sub(r"@measures.register.*\n", "", examples(PAGE.read_text())["scrmsd.py"])
    exec(compile(text, "scrmsd.py", "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("per_residue", [1, 3])
def test_the_hook_of_the_page_hands_c_alphas_to_a_command(tmp_path: Path, per_residue: int):
    """A stand-in tells the samples apart by what is in their files. Control: one that leaves them out is named."""
    (tmp_path / "mine.py").write_text(STAND_IN)
    page = scrmsd()
    command = [sys.executable, str(tmp_path / "mine.py")]
    values = page["measure"](subject(per_residue), page["ScRMSDConfig"](command))
    assert {value.name: value.value for value in values} == {"scrmsd": 4.0, "designable": 0.5}
    header_alone = "import sys; open(sys.argv[2], 'w').write('sample,scrmsd')"
    with pytest.raises(RuntimeError, match=r"lacks 2 samples, first 0\.pdb"):
        page["measure"](subject(), page["ScRMSDConfig"]([sys.executable, "-c", header_alone]))


@pytest.mark.parametrize(
    ("command", "error", "line"),
    [
        ([], ValueError, "which is not there; give command"),
        (["no_such_program"], ValueError, "no_such_program.*which is not there"),
        ([sys.executable, "-c", "raise SystemExit(3)"], RuntimeError, "ended with 3 and wrote 0 tables"),
        ([sys.executable, "-c", "pass"], RuntimeError, "ended with 0 and wrote 0 tables"),
    ],
)
def test_the_hook_says_in_a_line_what_it_lacks(command: list[str], error: type[Exception], line: str):
    page = scrmsd()
    with pytest.raises(error, match=line):
        page["measure"](subject(), page["ScRMSDConfig"](command))


def test_the_laptop_study_has_a_control_for_its_group():
    """Ten runs of seed 0, of both groups. Control: all runs of the grid make sense."""
    study = load_study("proteins_laptop")
    first = [run for run in study.runs if run.seed == 0]
    assert {run.group for run in first} == {"SO3", "O3"}
    assert len(first) == 10
