"""The examples of docs/extending.md, taken from the page and run as a user would: from a folder of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
MAX_LINES = 40
METHODS = {"plain": "none", "about_z": "none", "orbit_average": "in_law"}  # of the page's study
PLUGINS = ("about_z.py", "pointwise.py", "stretched.py")
START = "import sys\nfrom bench.cli.main import main\nsys.exit(main(sys.argv[1:]))"  # as the script `equibench` does


def examples(text: str) -> dict[str, str]:
    """Path -> content of the fenced blocks that open with a comment naming their file."""
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("user")
    for path, content in examples(PAGE.read_text()).items():
        (root / path).write_text(content)
    return root


def equibench(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-c", START, *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False, env=environment)


def named(*files: str) -> list[str]:
    return [part for file in files for part in ("--plugin", file)]


def test_each_example_fits_a_screen():
    blocks = examples(PAGE.read_text())
    assert set(blocks) == {*PLUGINS, "study.yaml"}
    assert {path: n for path, block in blocks.items() if (n := len(block.splitlines())) > MAX_LINES} == {}


def test_the_plug_ins_of_the_page_are_listed(user):
    """With the guarantee that a method declares, whether a backbone is equivariant, and the docstring's first line."""
    listing = equibench(user, "list", *named(*PLUGINS)).stdout
    for line in (
        r"about_z\s+\[none\]\s+Augmentation by turns about the z axis",
        r"pointwise\s+\[not equivariant\]\s+Each atom by itself.* Sizes: small\.",
        r"stretched\s+The embedded set with all positions scaled",
    ):
        assert re.search(rf"^  {line}", listing, flags=re.MULTILINE), listing
    assert "unavailable" not in listing
    assert "about_z" not in equibench(user, "list").stdout


def test_the_plug_ins_of_the_page_meet_the_contract(user):
    """The method on every backbone, one of them the page's own, and the backbone under every method."""
    done = equibench(user, "check", "about_z.py", "pointwise.py", "stretched.py")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"^pass  (\w+ on \w+)", done.stdout, flags=re.MULTILINE)
    assert {"about_z on egnn", "about_z on dit", "plain on pointwise", "symdiff on pointwise"} <= set(passed)
    assert passed.count("about_z on pointwise") >= 10
    assert "FAIL" not in done.stdout
    assert "declares none: nothing is promised" in done.stdout
    assert "nothing to check of a data set" in done.stdout


@pytest.mark.parametrize(
    ("file", "right", "wrong", "line"),
    [
        ("about_z.py", "Guarantee.NONE", "Guarantee.AT_OPTIMUM", r"about_z +law of \(z_t, target\) invariant"),
        ("about_z.py", "Guarantee.NONE", "Guarantee.EXACT", "about_z on dit +exact, O3 proper, float64"),
        ("about_z.py", "Guarantee.NONE", "Guarantee.IN_LAW", r"about_z on dit +in law, 20 000 draws, det Q = \+1"),
        ("about_z.py", "references = ", "cites = ", "about_z +is cited +0 references"),
        ("pointwise.py", "equivariant = False", "equivariant = True", r"pointwise +turns with its input, det Q = \+1"),
        (
            "pointwise.py",
            "t)[:, None]]",
            "t)[:, None] + z.h.mean()]",
            "plain on pointwise +prediction ignores the rest",
        ),
        ("pointwise.py", "out[:, 3:]", "out[:, 3:] / z.x[:, :1].round()", "plain on pointwise +finite gradients"),
        ("pointwise.py", "out[:, 3:]", "out[:, 3:] + len(z.x) * 0.1", "plain on pointwise +loss ignores the rest"),
        ("pointwise.py", "out[:, 3:]", "out[:, 3:].cumsum(0)", "plain on pointwise +permutes with atoms, float64"),
    ],
)
@pytest.mark.slow
def test_a_plug_in_that_breaks_the_contract_fails_with_a_line(user, tmp_path, file, right, wrong, line):
    text = (user / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    done = equibench(tmp_path, "check", file)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"^FAIL  {line}", done.stdout, flags=re.MULTILINE), done.stdout
    assert re.search(r"^\w+ \w+: \d+ of \d+ checks failed$", done.stdout, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_study_of_the_page_runs_to_its_table(user):
    """Workers, records and report: each method has its run and its row, one of them on weights of the user's own."""
    done = equibench(user, "run", "study.yaml")
    assert done.returncode == 0, done.stderr
    manifests = [json.loads(path.read_text()) for path in user.glob("runs/stretched/*/manifest.json")]
    runs = {m["method"]["name"]: m for m in manifests}
    assert {name: m["status"] for name, m in runs.items()} == dict.fromkeys(METHODS, "done")
    assert {m["data"]["label"] for m in manifests} == {"mini, stretched by 1.05, 200 training molecules"}
    assert {name: m["guarantee"] for name, m in runs.items()} == METHODS
    assert runs["about_z"]["method"]["max_degrees"] == 90.0
    assert runs["orbit_average"]["weights_from"] == runs["about_z"]["run"]
    report = equibench(user, "report", "stretched")
    assert report.returncode == 0, report.stderr
    for name in METHODS:  # a mark at the name says that the code had uncommitted changes
        assert re.search(rf"^{name}\W*\s+pointwise small .*complete$", report.stdout, flags=re.MULTILINE), report.stdout

    run = f"runs/stretched/{runs['about_z']['run']}"
    refused = equibench(user, "sample", run, "-n", "2", "-o", "two.xyz")
    assert refused.returncode == 2
    assert re.search(r"needs plug-in .*about_z\.py; if you trust that file, give --plugin", refused.stderr)
    sampled = equibench(user, "sample", run, "-n", "2", "-o", "two.xyz", *named(*PLUGINS))
    assert sampled.returncode == 0, sampled.stderr
    for what in ("stretched", run):
        cited = equibench(user, "cite", what, *named(*PLUGINS))
        assert cited.returncode == 0, cited.stderr
        assert "@misc{equibench," in cited.stdout
    assert "kim2023learning" in equibench(user, "cite", "study.yaml").stdout  # orbit_average
    assert "kim2023learning" not in equibench(user, "cite", run, *named(*PLUGINS)).stdout


def test_a_plug_in_that_does_not_import_is_named_in_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    listing = equibench(tmp_path, "list", "--plugin", "broken.py")
    assert listing.returncode == 2
    assert re.fullmatch(r"equibench: plug-in broken\.py cannot be used: ModuleNotFoundError: .*\n", listing.stderr)
