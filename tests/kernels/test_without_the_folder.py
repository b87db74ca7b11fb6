"""A copy of the repository without bench/kernels/: a study and contract tests run there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = (
    "run qm9_smoke launch.cluster=debug train.n_steps=4 train.log_every=2 train.n_valid=4 train.batch_size=4 "
    "sample.n_molecules=4 sample.n_steps=2 measures.likelihood.n_molecules=2 measures.likelihood.n_passes=1"
)
# an editable installation would find the folder in its own checkout
SITE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")]
"""
CONTRACT = "-x -p no:cacheprovider tests/contract/test_guarantees.py -k edm"


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """All code but the folder; nothing of it is imported from elsewhere."""
    folder = tmp_path_factory.mktemp("without")
    for name in ("bench", "methods", "analysis", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "kernels" if name == "bench" else "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment)


def test_the_copy_is_what_runs_and_has_no_kernels(copy):
    """Control of the fixture: the code is the copy's, and what needs the folder fails."""
    done = python(copy, "-c", "import bench; print(bench.__file__)")
    assert done.stdout.strip().startswith(str(copy))
    assert "No module named 'bench.kernels'" in python(copy, "-c", "import bench.kernels").stderr


@pytest.mark.slow
def test_a_study_runs_without_the_folder(copy):
    ended = python(copy, "-m", "bench.cli.main", *STUDY.split())
    assert ended.returncode == 0, ended.stderr
    manifests = [json.loads(path.read_text()) for path in copy.glob("runs/*/*/manifest.json")]
    done = [m["environment"]["kernels"] for m in manifests if m["status"] == "done"]
    assert len(done) == len(manifests) - 1  # `edm` on a DiT is there to be refused
    assert not any(done)


@pytest.mark.slow
def test_contract_tests_pass_without_the_folder(copy):
    done = python(copy, "-m", "pytest", *CONTRACT.split())
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
