"""The example of docs/pyg.md, taken from the page and used as a stranger would."""

import re
from pathlib import Path

import pytest
from e2e.test_extending import MAX_LINES, ROOT, equibench, examples

PAGE = ROOT / "docs" / "pyg.md"
STUDY = """
study: pyg
base:
  data: {name: mini, n_train: 100}
  train: {n_steps: 4, batch_size: 16, lr: 1.0e-3, ema_decay: 0.9, log_every: 2, valid_every: 4, n_valid: 16}
  sample: {n_molecules: 4, n_steps: 3, batch_size: 4}
  measures: {likelihood: {n_molecules: 4, n_passes: 1}}
grid: {method: [haar], backbone: [{name: gat, size: tiny}], seed: [0]}
launch: {cluster: local, n_parallel: 1}
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("user")
    (root / "gat.py").write_text(examples(PAGE.read_text())["gat.py"])
    (root / "study.yaml").write_text(STUDY)
    return root


@pytest.mark.slow
def test_the_network_of_the_page_meets_the_contract(user, tmp_path):
    """Control: declared equivariant, which it is not, it fails."""
    text = (user / "gat.py").read_text()
    assert len(text.splitlines()) <= MAX_LINES + 5
    done = equibench(user, "check", "gat.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"plain on gat", "haar on gat"} <= set(re.findall(r"^pass  (\w+ on \w+)", done.stdout, flags=re.MULTILINE))
    (tmp_path / "gat.py").write_text(text.replace("equivariant = False", "equivariant = True"))
    refused = equibench(tmp_path, "check", "gat.py")
    assert refused.returncode == 1
    assert re.search(r"^FAIL  gat +turns with its input", refused.stdout, flags=re.MULTILINE), refused.stdout


@pytest.mark.slow
def test_the_network_of_the_page_trains_and_samples(user):
    """Control: without the plug-in, no backbone has its name."""
    done = equibench(user, "run", "study.yaml", "--plugin", "gat.py")
    assert done.returncode == 0, done.stdout + done.stderr
    refused = equibench(user, "run", "study.yaml")
    assert refused.returncode == 2
    assert "'gat'" in refused.stderr
