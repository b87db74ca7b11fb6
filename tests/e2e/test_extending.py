"""The examples of docs/extending.md, taken from the page and run as a user would."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
MAX_LINES = 40

# Stands in for files laid into the packages: the folders of `root` are searched after those of the checkout.
RUN = """
import sys
from pathlib import Path
import bench.backbones, bench.data, methods
for package in (methods, bench.backbones, bench.data):
    package.__path__.append(str(Path(*package.__name__.split("."))))
from bench.cli import main
sys.exit(main(sys.argv[1:]))
"""


def examples(text: str) -> dict[str, str]:
    """Path -> content of the fenced blocks that open with a comment naming their file."""
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("user")
    for path, content in examples(PAGE.read_text()).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def equibench(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-c", RUN, *args]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def test_each_example_fits_a_screen():
    blocks = examples(PAGE.read_text())
    assert len(blocks) == 4
    assert {path: n for path, block in blocks.items() if (n := len(block.splitlines())) > MAX_LINES} == {}


def test_the_plug_ins_of_the_page_are_listed(user):
    listing = equibench(user, "list").stdout
    for name in ("about_z", "pointwise", "stretched"):
        assert re.search(rf"^  {name}\s", listing, flags=re.MULTILINE), listing
    assert "unavailable" not in listing


def test_the_study_of_the_page_runs_to_its_table(user):
    done = equibench(user, "run", "page.yaml")
    assert done.returncode == 0, done.stderr
    manifests = [json.loads(path.read_text()) for path in user.glob("runs/stretched/*/manifest.json")]
    assert {m["method"]["name"]: m["status"] for m in manifests} == {"plain": "done", "about_z": "done"}
    assert {m["data"]["label"] for m in manifests} == {"mini, stretched by 1.05, 200 training molecules"}
    report = equibench(user, "report", "stretched")
    assert report.returncode == 0, report.stderr
    assert "about_z" in report.stdout


def test_a_plug_in_that_does_not_import_is_named_and_harms_no_other(user, tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "broken.py").write_text("import nothing_of_that_name\n")
    listing = equibench(tmp_path, "list").stdout
    assert re.search(r"broken\s+unavailable: ModuleNotFoundError", listing)
    assert "about_z" not in listing
    assert "plain" in listing
