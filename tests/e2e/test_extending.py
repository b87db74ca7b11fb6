"""The examples of docs/extending.md, taken from the page and run as a user would."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
MAX_LINES = 40
METHODS = {"plain": "none", "about_z": "none", "orbit_average": "in_law"}  # of the page's study

# Stands in for files laid into the packages: the folders of `root` are searched after those of the checkout.
LAID = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import bench.backbones, bench.data, methods
for package in (methods, bench.backbones, bench.data):
    package.__path__.append(str(Path(*package.__name__.split("."))))
"""
RUN = f"{LAID}\nfrom bench.cli.main import main\nsys.exit(main(sys.argv[1:]))"
CONTRACT = f"{LAID}\nimport pytest\nsys.exit(pytest.main(sys.argv[1:]))"
GUARANTEES = ROOT / "tests" / "property" / "test_guarantees.py"


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
    return python(RUN, cwd, *args)


def contract(cwd: Path, which: str) -> subprocess.CompletedProcess[str]:
    """The tests of guarantees, as they stand, with the user's files in place."""
    # without the project's addopts: shape checks would have to be installed before our packages are imported
    options = ("-q", "-o", "addopts=", "-p", "no:cacheprovider")
    return python(CONTRACT, cwd, *options, str(GUARANTEES), "-k", which)


def python(code: str, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-c", code, *args]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def test_each_example_fits_a_screen():
    blocks = examples(PAGE.read_text())
    assert len(blocks) == 4
    assert {path: n for path, block in blocks.items() if (n := len(block.splitlines())) > MAX_LINES} == {}


def test_the_plug_ins_of_the_page_are_listed(user):
    """With the guarantee that a method declares, whether a backbone is equivariant, and the docstring's first line."""
    listing = equibench(user, "list").stdout
    for line in (
        r"about_z\s+\[none\]\s+Augmentation by turns about the z axis",
        r"pointwise\s+\[not equivariant\]\s+Each atom by itself.* Sizes: small\.",
        r"stretched\s+The embedded set with all positions scaled",
    ):
        assert re.search(rf"^  {line}", listing, flags=re.MULTILINE), listing
    assert "unavailable" not in listing


def test_the_method_of_the_page_meets_the_contract_tests(user, tmp_path):
    """They find it, and every backbone with it, and refuse it once it promises what it does not keep."""
    held = contract(user, "about_z")
    assert held.returncode == 0, held.stdout
    n_passed = int(re.findall(r"(\d+) passed", held.stdout)[0])
    assert n_passed > 3 * 5  # at least five properties on each of three backbones, one of them the page's own

    (tmp_path / "methods").mkdir()
    promising = (user / "methods" / "about_z.py").read_text().replace("Guarantee.NONE", "Guarantee.AT_OPTIMUM")
    (tmp_path / "methods" / "about_z.py").write_text(promising)
    refused = contract(tmp_path, "about_z and at_optimum")
    assert refused.returncode == 1, refused.stdout
    assert re.search(r"FAILED .*invariant\[O3-about_z-", refused.stdout)


def test_the_study_of_the_page_runs_to_its_table(user):
    """Runner, records and report: each method has its run and its row, one of them on the weights of the user's own."""
    done = equibench(user, "run", "page.yaml")
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


def test_a_plug_in_that_does_not_import_is_named_and_harms_no_other(user, tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "broken.py").write_text("import nothing_of_that_name\n")
    listing = equibench(tmp_path, "list").stdout
    assert re.search(r"broken\s+unavailable: ModuleNotFoundError", listing)
    assert "about_z" not in listing
    assert "plain" in listing
