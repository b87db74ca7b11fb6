"""What becomes of the output stops no work: closed and full streams, and readers that go away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.registry import ROOT

# a command that prints, logs and works: `evaluate`, on a stand-in for what it calls
WORK = """
import sys
from types import SimpleNamespace
from bench.cli.main import main
def work(folder):
    for _ in range(2000):  # more than a pipe or a buffer holds
        print("x" * 100)
        print("y" * 100, file=sys.stderr, flush=True)
    with open("did", "a") as file:
        file.write(f"{folder} {file.fileno()}\\n")
    if folder.name == "bad":
        raise ValueError("bad folder")
sys.modules["bench.run.execute"] = SimpleNamespace(evaluate_folder=work)  # which would load torch
sys.exit(main(sys.argv[1:]))
"""


def shell(folder: Path, how: str, *folders: str) -> subprocess.CompletedProcess[str]:
    """`evaluate FOLDERS`, its streams redirected as `how` says in the words of a shell; prints its exit code last."""
    (folder / "work.py").write_text(WORK)
    first, pipe, reader = how.partition("|")
    line = f"{{ '{sys.executable}' -P work.py evaluate {' '.join(folders)} {first}; echo $? > code; }} {pipe}{reader}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=environment)


def code_of(folder: Path) -> int:
    return int((folder / "code").read_text())


def did(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "did").read_text().splitlines()]


@pytest.mark.parametrize(
    "how",
    ["| head -1", "2>&1 | head -1", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2> /dev/full", "2>&1 >/dev/null | head -1"],
)
@pytest.mark.parametrize(("folders", "expected"), [(("a", "b"), 0), (("a", "bad"), 2)])
def test_all_work_is_done_and_the_exit_code_tells_how_it_ended(how, folders, expected, tmp_path):
    shell(tmp_path, how, *folders)
    assert did(tmp_path) == list(folders)
    assert code_of(tmp_path) == expected
    # no file takes the number of a standard stream, and so what is printed
    assert all(int(line.split()[1]) > 2 for line in (tmp_path / "did").read_text().splitlines())


def test_output_that_does_not_fit_the_disk_is_a_failure_of_its_own(tmp_path):
    """After the work; control: of one that prints to a file that takes it."""
    said = shell(tmp_path, "> /dev/full", "a", "b")
    assert did(tmp_path) == ["a", "b"]
    assert code_of(tmp_path) == 2
    assert said.stderr.splitlines()[-1] == "equibench: standard output: No space left on device"
    shell(tmp_path, "> out 2> err", "a")
    assert code_of(tmp_path) == 0
    assert len((tmp_path / "out").read_text().splitlines()) == 2001
    assert "Exception ignored" not in said.stderr
