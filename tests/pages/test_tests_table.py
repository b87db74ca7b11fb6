"""The table in docs/tests.md names tests that exist, and covers every property that this version must show.

`python tests/pages/test_tests_table.py` writes the table again from the docstrings.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tests.md"
REQUIRED = [*range(1, 33), *range(34, 41)]  # of the properties T1-T40
INTRODUCTION = """# Which test shows which property

T1 to T40 number the properties that this suite must have; what each of them says stands in the last column. Each has at
least one test with a negative control: a deliberately wrong variant that the same comparison must refuse. `make test`
runs the fast tier, `make test-all` both; of a test in both, `make test` runs some cases.
T33 is of a problem that is not part of this suite and has no test here. The guarantees of all registered
methods are in `tests/contract/test_guarantees.py`, exact resuming in `tests/unit/run/test_resume.py`,
published numbers in `tests/parity/test_published.py`.

This table is made from the tests' docstrings by `python tests/pages/test_tests_table.py`.

| property | test | tier | what it shows |
|---|---|---|---|
"""


class Row(NamedTuple):
    number: int
    test: str
    tier: str
    shows: str

    def markdown(self) -> str:
        return f"| T{self.number} | `{self.test}` | {self.tier} | {self.shows} |\n"


def rows_of(source: str, where: str) -> Iterator[Row]:
    """Tests of one file whose docstring starts with the number of a property: 'T7: ...' or 'T7, of what kind: ...'.

    Raises:
        ValueError: a docstring starts with such a number and does not go on so; the table would miss the test.
    """
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        docstring = " ".join((ast.get_docstring(node) or "").split())
        if not re.match(r"T\d", docstring):
            continue
        parsed = re.match(r"T(\d+)(?:, ([^:]*))?: (.+)", docstring)
        if parsed is None:
            raise ValueError(
                f"{where}::{node.name}: docstring {docstring[:40]!r}, expected 'T7: ...' or 'T7, kind: ...'"
            )
        number, kind, rest = parsed.groups()
        shows = f"{kind}: {rest}" if kind else rest
        yield Row(int(number), f"{where}::{node.name}", tier(node), shows.removesuffix(".").replace("|", "\\|"))


def tier(test: ast.FunctionDef) -> str:
    """'slow' where the whole test is marked so, 'fast, slow' where some of its cases are."""
    decorators = [ast.unparse(d) for d in test.decorator_list]
    if any(d.startswith("pytest.mark.slow") for d in decorators):
        return "slow"
    return "fast, slow" if any("marks=pytest.mark.slow" in d for d in decorators) else "fast"


def all_rows() -> list[Row]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return sorted(row for path in files for row in rows_of(path.read_text(), path.relative_to(ROOT).as_posix()))


def missing(rows: list[Row]) -> set[int]:
    return set(REQUIRED) - {row.number for row in rows}


def test_table_of_properties_is_up_to_date():
    page = INTRODUCTION + "".join(row.markdown() for row in all_rows())
    assert PAGE.read_text() == page, (
        f"{PAGE.name} is not what the tests say; run python tests/pages/{Path(__file__).name}"
    )


def test_every_required_property_has_a_fast_test():
    rows = all_rows()
    assert missing([row for row in rows if row.tier != "slow"]) == set()
    assert missing([row for row in rows if row.number != 16]) == {16}  # control


def test_docstring_number_and_tier_are_read():
    source = '@pytest.mark.slow\ndef test_a():\n    """T7: so and\n    so."""\ndef test_b():\n    """Plain."""\n'
    assert list(rows_of(source, "f.py")) == [Row(7, "f.py::test_a", "slow", "so and so")]


def test_a_kind_belongs_to_what_is_shown_and_single_slow_cases_to_the_tier():
    cases = "@pytest.mark.parametrize('n', [1, pytest.param(2, marks=pytest.mark.slow)])"
    source = f'{cases}\ndef test_a(n):\n    """T7, of many: so."""\n'
    assert list(rows_of(source, "f.py")) == [Row(7, "f.py::test_a", "fast, slow", "of many: so")]


@pytest.mark.parametrize("docstring", ["T7 so.", "T7, so.", "T7:so.", "T7-T9: so.", "T7a: so."])
def test_a_docstring_that_would_be_missed_is_refused(docstring):
    with pytest.raises(ValueError, match=r"f\.py::test_a: docstring 'T7"):
        list(rows_of(f'def test_a():\n    """{docstring}"""\n', "f.py"))


if __name__ == "__main__":
    PAGE.write_text(INTRODUCTION + "".join(row.markdown() for row in all_rows()))
