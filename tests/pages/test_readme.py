"""The README shows the published table, and the documentation names files that exist."""

import re
from pathlib import Path

import pytest

from analysis import readme
from bench.config.study import study_names
from bench.registry import methods

ROOT = Path(__file__).parents[2]


def missing_links(page: Path, text: str) -> list[str]:
    """Relative links of a Markdown page whose target is not in the repository."""
    targets = re.findall(r"\]\((?!https?://|mailto:|#)([^)#\s]+)", text)
    return [target for target in targets if not (page.parent / target).exists()]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(f"# Title\n\n{readme.BEGIN}\nold\n{readme.END}\n\ntail\n")
    readme.REPORT.mkdir(parents=True)
    return tmp_path


def test_readme_shows_the_published_table(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert readme.main(["--check"]) == 0


def test_a_readme_out_of_date_is_found_and_filled(checkout):
    (readme.REPORT / "main.md").write_text("| Method |\n| --- |\n| one |\n")
    (readme.REPORT / "pareto.png").touch()
    assert readme.main(["--check"]) == 1
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    text = (checkout / "README.md").read_text()
    assert "| one |" in text
    assert "(results/qm9_laptop/report/pareto.png)" in text
    assert "old" not in text
    assert text.startswith("# Title\n")
    assert text.endswith("tail\n")


def test_other_published_studies_are_linked(checkout):
    """Control: where there is none, nothing is said of others."""
    (readme.REPORT / "main.md").write_text("| Method |\n")
    assert readme.main([]) == 0
    assert "Other studies" not in (checkout / "README.md").read_text()
    other = checkout / "results" / "another" / "report"
    other.mkdir(parents=True)
    (other / "report.md").touch()
    assert readme.main([]) == 0
    assert "Other studies: [another](results/another/report/report.md)." in (checkout / "README.md").read_text()


def test_a_study_that_is_not_published_leaves_a_line(checkout):
    assert readme.main([]) == 0
    assert readme.NONE_YET in (checkout / "README.md").read_text()


@pytest.mark.parametrize(
    "text", ["nothing", readme.BEGIN, f"{readme.END} {readme.BEGIN}", f"{readme.BEGIN}{readme.END}" * 2]
)
def test_a_readme_without_its_marks_is_refused(text):
    with pytest.raises(ValueError, match="each once"):
        readme.filled(text, "table")


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda path: path.name)
def test_links_lead_to_files_of_the_repository(page):
    assert missing_links(page, page.read_text()) == []


HEADINGS = ["Idea", "Formula", "Guarantee", "Cost", "When to use it", "Known defects of the public version"]
SUMMARY = r"^\| \[`(\w+)`\]\((strategies/\w+\.md)\) \| [^|]* \| ([^|]*) \|"


def faults_of_page(name: str, text: str) -> list[str]:
    """What the page of a method lacks: its name in the title or as a word of code, or one of the headings, in order."""
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    faults = [] if f"`{name}`" in text else ["name"]
    return faults + (["headings"] if headings != HEADINGS else [])


def test_every_method_has_a_page_in_the_summary_of_strategies():
    docs = ROOT / "docs"
    summary = re.findall(SUMMARY, (docs / "methods.md").read_text(), flags=re.MULTILINE)
    assert sorted(name for name, _, _ in summary) == sorted(methods)
    assert {docs / page for _, page, _ in summary} == set((docs / "strategies").glob("*.md"))
    for name, page, guarantee in summary:
        assert guarantee.startswith(str(methods[name].build.guarantee).replace("_", " "))
        assert faults_of_page(name, (docs / page).read_text()) == [], f"{page} for {name}"


def test_a_page_without_a_heading_or_its_name_is_found():
    text = (ROOT / "docs" / "strategies" / "haar.md").read_text()
    assert faults_of_page("haar", text.replace("## Cost", "")) == ["headings"]
    assert faults_of_page("another", text) == ["name"]


def test_a_dead_link_is_found():
    assert missing_links(ROOT / "README.md", "[a](docs/none.md) [b](https://example.org) [c](#here)") == [
        "docs/none.md"
    ]


def rows(text: str, heading: str) -> dict[str, str]:
    """First cell, a name in backquotes -> last cell, of the table under a heading."""
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \|(?:.*\|)? (.*?) \|$", part, flags=re.MULTILINE))


def test_the_readme_names_the_methods_that_there_are():
    guarantees = {name: str(methods[name].build.guarantee).replace("_", " ") for name in methods}
    assert rows((ROOT / "README.md").read_text(), "Strategies") == guarantees


def test_the_presets_of_the_readme_are_studies():
    presets = rows((ROOT / "README.md").read_text(), "Presets")
    assert len(presets) > 1
    assert [name for name in presets if f"qm9_{name}" not in study_names()] == []


def test_a_table_is_read_as_it_stands():
    table = "| name | of |\n| --- | --- |\n| `a` | some words | none |\n| `b` | one |\n"
    text = f"\n## Other\n| `x` | no |\n## Strategies\n\n{table}## End\n| `y` | no |\n"
    assert rows(text, "Strategies") == {"a": "none", "b": "one"}
