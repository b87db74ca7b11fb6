"""The table in docs/tests.md names tests that exist, and covers every property that this version must show.

`python tests/unit/test_tests_table.py` writes the table again from the docstrings.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tests.md"
REQUIRED = [*range(1, 31), 32, *range(34, 41)]  # of the specification's property tests T1-T40
INTRODUCTION = """# Which test shows which property

The properties are those of the specification (methods, section 7). Each has at least one test with a negative control:
a deliberately wrong variant that the same comparison must refuse. `make test` runs the fast tier, `make test-all` both.
T31 (crystals) and T33 (flow matching) concern settings that are not part of this suite. The guarantees of all
registered methods are in `tests/property/test_guarantees.py`, exact resuming in `tests/property/test_resume.py`,
published numbers in `tests/parity/test_published.py`.

This table is made from the tests' docstrings by `python tests/unit/test_tests_table.py`.

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
    """Tests of one file whose docstring starts with the number of a property."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        head, colon, rest = " ".join((ast.get_docstring(node) or "").split()).partition(": ")
        if colon and head[:1] == "T" and head[1:].isdigit():
            slow = any(ast.unparse(d).startswith("pytest.mark.slow") for d in node.decorator_list)
            shows = rest.removesuffix(".").replace("|", "\\|")
            yield Row(int(head[1:]), f"{where}::{node.name}", "slow" if slow else "fast", shows)


def all_rows() -> list[Row]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return sorted(row for path in files for row in rows_of(path.read_text(), path.relative_to(ROOT).as_posix()))


def missing(rows: list[Row]) -> set[int]:
    return set(REQUIRED) - {row.number for row in rows}


def test_table_of_properties_is_up_to_date():
    page = INTRODUCTION + "".join(row.markdown() for row in all_rows())
    assert PAGE.read_text() == page, (
        f"{PAGE.name} is not what the tests say; run python tests/unit/{Path(__file__).name}"
    )


def test_every_required_property_has_a_fast_test():
    rows = all_rows()
    assert missing([row for row in rows if row.tier == "fast"]) == set()
    assert missing([row for row in rows if row.number != 16]) == {16}  # control


def test_docstring_number_and_tier_are_read():
    source = '@pytest.mark.slow\ndef test_a():\n    """T7: so and\n    so."""\ndef test_b():\n    """Plain."""\n'
    assert list(rows_of(source, "f.py")) == [Row(7, "f.py::test_a", "slow", "so and so")]


if __name__ == "__main__":
    PAGE.write_text(INTRODUCTION + "".join(row.markdown() for row in all_rows()))
