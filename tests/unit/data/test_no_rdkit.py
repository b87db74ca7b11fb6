"""Asking for data, and training on them, loads no RDKit: clusters train where there is none."""

import subprocess
import sys

import numpy as np

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


def test_the_listing_shows_no_data_set_as_unavailable():
    code = "from bench.cli.listing import listing; print(listing())"
    done = python(NO_RDKIT + code)
    assert done.returncode == 0, done.stderr
    section = done.stdout.split("data sets\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in section.splitlines()] == ["folder", "mini", "qm9"]
    assert "unavailable" not in section
