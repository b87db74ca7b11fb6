"""`equibench list --matrix`: what runs on what, and the reason where it does not."""

import re
from dataclasses import dataclass

import pytest
from support import run_config

from bench.cli.main import main
from bench.cli.plugins import matrix
from bench.config.run import reason_to_skip
from bench.registry import Entry, backbones, methods
from bench.symmetry.contract import Method


def cells(text: str) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """(method, backbone) -> cell, and number -> reason."""
    table, _, notes = text.partition("\n\n")
    head, *rows = (re.findall(r"runs \(\d+\)|\S+", line) for line in table.splitlines())
    found = {(row[0], backbone): cell for row in rows for backbone, cell in zip(head, row[1:], strict=True)}
    return found, dict(re.findall(r"^(\(\d+\)) (.+)$", notes, flags=re.MULTILINE))


def test_matrix_says_what_the_runner_does(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "--matrix"]) == 0
    found, reasons = cells(capsys.readouterr().out)
    assert set(found) == {(method, backbone) for method in methods for backbone in backbones}
    for (method, backbone), cell in found.items():
        why = reason_to_skip(run_config(method, backbone))
        note = methods[method].build.on_equivariant_backbone if backbones[backbone].build.equivariant else None
        if why is not None:
            assert reasons[cell] == why
        elif note is not None:
            assert reasons[cell.removeprefix("runs ")] == f"on an equivariant backbone, {note}"
        else:
            assert cell == "runs"
    assert {cell[:4] for cell in found.values()} > {"runs"}
    assert any(cell.startswith("runs (") for cell in found.values())
    assert len(set(reasons.values())) == len(reasons) > 0


@dataclass
class Needy:
    path: str


def test_a_method_that_needs_an_option_says_which(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(methods.entries, "needy", Entry("needy", Method, Needy, ""))
    found, reasons = cells(matrix())
    assert "'method.path' is missing" in reasons[found["needy", "dit"]]


def test_the_plain_list_has_no_matrix(capsys: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    assert "runs  " not in capsys.readouterr().out
