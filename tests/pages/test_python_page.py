"""The code of docs/python.md, executed in order in one namespace, beside a tiny study of the name that the page has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import bench

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"
STUDY = {
    "study": "qm9_laptop",
    "base": {
        "data": {"name": "mini", "n_train": 200},
        "train": {"n_steps": 10, "batch_size": 16, "lr": 1e-3, "log_every": 5, "valid_every": 5, "n_valid": 16},
        "sample": {"n_molecules": 16, "n_steps": 5, "batch_size": 16},
        "measures": {"likelihood": {"n_molecules": 8, "n_passes": 1}},
    },
    "grid": {"method": ["haar", "plain"], "backbone": [{"name": "gdm", "size": "tiny"}], "seed": [0]},
    "launch": {"cluster": "debug"},
}


def blocks(after: str = "# From Python") -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text().partition(after)[2], flags=re.DOTALL)


def executed(parts: list[str]) -> dict:
    names: dict = {"__name__": "page"}
    for part in parts:
        exec(compile(part, PAGE.name, "exec"), names)  # the page's own code is what is tested
    return names


@pytest.mark.slow
def test_the_page_runs_from_its_first_line_to_its_last(tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    command = [sys.executable, "-m", "bench.cli.main", "run", "study.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    names = executed(blocks())
    assert set(names["counted"]["method"].str.split().str[0]) == {"haar", "plain"}
    assert len(names["table"]) == 2
    assert names["losses"].notna().all().all()
    assert len(names["molecules"]) == len(names["mols"]) == 8
    for mol, (numbers, positions) in zip(names["mols"], names["molecules"], strict=True):
        assert [atom.GetAtomicNum() for atom in mol.GetAtoms()] == numbers.tolist()
        np.testing.assert_allclose(mol.GetConformer().GetPositions(), positions, atol=1e-12)
    assert (tmp_path / "samples.sdf").read_text().count("$$$$") == 8


def test_by_hand_an_equivariant_network_turns_with_its_input_and_another_does_not():
    names = executed(blocks(after="## z_t and a denoiser by hand"))
    assert names["errors"]["egnn"] < 1e-12 < 1e-4 < names["errors"]["gdm"]
    assert names["error"].shape == (names["clean"].layout.n_total,)
    assert len(names["guess"]) == 4
    again = names["process"].noising(names["x0"], names["estimate"], names["level"])
    assert (again.x - names["z_t"].x).abs().max() < 1e-12


def test_published_results_are_read_without_torch():
    published = next((ROOT / "results").glob("*/runs.csv")).parent
    code = f"import sys, bench; study = bench.results({str(published)!r}); "
    code += "assert len(study.runs) and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    with pytest.raises(FileNotFoundError, match="no runs in"):
        bench.results(ROOT / "docs")
