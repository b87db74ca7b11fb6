"""Asking for data, and training on them, loads no RDKit: clusters train where there is none."""

import subprocess
import sys

import numpy as np
import pytest

from bench.registry import datasets
from bench.structures import files
from bench.structures.structures import Structures

# An import of RDKit fails, as where it is not installed.
NO_RDKIT = "import sys; sys.modules['rdkit'] = None\n"
TRAIN = """
from bench.registry import backbones, datasets, methods
import bench.run.train, bench.run.sample, bench.run.execute
assert not datasets.unavailable, datasets.unavailable
for name, options in {given}:
    entry = datasets[name]
    data = entry.build(entry.config(**options))
    assert len(data.train) and data.graph("train", 0).num_nodes > 0
"""
RUN = """
from pathlib import Path
from bench.config.run import RunConfig, build
from bench.registry import datasets
from bench.run.execute import Until, execute
entry = datasets[{data!r}["name"]]
fingerprint = entry.build(entry.config(**{{k: v for k, v in {data!r}.items() if k != "name"}})).fingerprint
few = {{"n_molecules": 2, "n_steps": 2, "batch_size": 2}}
cfg = build(RunConfig, {{"study": "t", "method": {{"name": "haar"}}, "backbone": {{"name": "dit", "size": "tiny"}},
    "data": {data!r}, "train": {{"n_steps": 2, "batch_size": 2}}, "sample": few,
    "measures": {{"likelihood": {{"n_passes": 1, "n_molecules": 2}}}}}})
folder = Path({folder!r}, cfg.run_name(fingerprint))
folder.mkdir(parents=True)
execute(cfg, folder, until=Until.{until})
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def qm9_folder(folder):
    """EDM's npz files with a few waters; their split is taken on trust."""
    folder.mkdir()
    water = (np.array([8, 1, 1]), np.array([[0, 0, 0.1], [0, 0.76, -0.47], [0, -0.76, -0.47]]))
    for split in ("train", "valid", "test"):
        files.write(folder / f"{split}.npz", Structures.from_list([water] * 3))
        files.write(folder / f"{split}.xyz", Structures.from_list([water] * 3))
    return folder


def test_data_sets_load_without_rdkit(tmp_path):
    npz = qm9_folder(tmp_path / "npz")
    xyz = qm9_folder(tmp_path / "xyz")
    for path in xyz.glob("*.npz"):
        path.unlink()
    given = [("mini", {}), ("qm9", {"dir": str(npz)}), ("folder", {"dir": str(xyz)})]
    done = python(NO_RDKIT + TRAIN.replace("{given}", repr(given)))
    assert done.returncode == 0, done.stderr
    assert python(NO_RDKIT + "import bench.metrics.validity").returncode != 0  # control: RDKit is out of reach


@pytest.mark.parametrize("name", ["mini", "qm9"])
def test_a_run_trains_and_samples_without_rdkit(tmp_path, name):
    data = (
        {"name": name, "max_atoms": 9} if name == "mini" else {"name": name, "dir": str(qm9_folder(tmp_path / "qm9"))}
    )
    done = python(NO_RDKIT + RUN.format(data=data, folder=str(tmp_path / "trained"), until="SAMPLED"))
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "trained").iterdir()
    assert len(files.read(run / "samples.npz")) == 2
    if name == "mini":  # control: evaluating the samples does need RDKit
        done = python(NO_RDKIT + RUN.format(data=data, folder=str(tmp_path / "evaluated"), until="EVALUATED"))
        assert "rdkit" in done.stderr.splitlines()[-1]


def test_the_listing_shows_no_data_set_as_unavailable():
    code = "from bench.cli.plugins import listing; print(listing())"
    done = python(NO_RDKIT + code)
    assert done.returncode == 0, done.stderr
    section = done.stdout.split("data sets\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in section.splitlines()] == list(datasets)
    assert "unavailable" not in section
