"""A part of a study, what a call would do, changed plug-ins, setting aside and removing: on made-up records."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import run_config

from bench.cli.main import main
from bench.config.study import load_study
from bench.launch import choose
from bench.launch.choose import changes, remove, set_aside, with_needed
from bench.launch.items import Item, plan
from bench.records import schema
from bench.records import store as records
from bench.records.lock import BusyError
from bench.records.store import RunFolder, StudyFolder
from bench.registry import ROOT, methods
from bench.run import provenance

PAGE = {
    "study": "tiny",
    "base": {"data": {"name": "mini", "n_train": 50}, "backbone": {"name": "dit", "size": "tiny"}},
    "grid": {"method": ["plain", "haar", "symdiff_haar", "edm"], "seed": [0, 1]},
}


@pytest.fixture
def items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Item]:
    """plain 0 is done, plain 1 failed, haar 0 is begun; the others are new, and edm fits no dit."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(PAGE))
    planned = plan(load_study("tiny.yaml"), Path("runs"))
    for method, seed, status in (("plain", 0, "done"), ("plain", 1, "failed"), ("haar", 0, "running")):
        item = one(planned, method, seed)
        item.record(status, "loss is not finite")
        RunFolder(item.folder).lock.touch()
        if status == "done":
            records.write_json(RunFolder(item.folder).eval, {})
    return planned


def one(items: list[Item], method: str, seed: int) -> Item:
    return next(item for item in items if (item.cfg.method.name, item.cfg.seed) == (method, seed))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_chosen_run_brings_the_one_whose_weights_it_needs(items):
    chosen = with_needed(items, lambda cfg: cfg.method.name == "symdiff_haar" and cfg.seed == 1)
    assert [(item.cfg.method.name, item.cfg.seed) for item in chosen] == [("haar", 1), ("symdiff_haar", 1)]
    assert with_needed(items, lambda _: True) == items  # control


def test_a_dry_run_says_what_a_call_would_do_and_writes_nothing(items, capsys):
    before = files(Path())
    assert main(["run", "tiny.yaml", "--dry-run"]) == 0
    told = capsys.readouterr().out
    for method, seed, fate in (
        ("plain", 0, "done already"),
        ("plain", 1, "failed before: loss is not finite; --retry takes it up again"),
        ("haar", 0, "continued: training, step 0 of 100000"),
        ("haar", 1, "run"),
        ("symdiff_haar", 1, f"run: with the weights of {one(items, 'haar', 1).folder.name}"),
        ("edm", 0, "skipped: method 'edm' needs an equivariant backbone"),
    ):
        assert f"{one(items, method, seed).folder.name}  {fate}" in told
    assert "8 runs: 1 done already, 1 failed before, 1 continued, 3 run, 2 skipped" in told
    assert main(["run", "tiny.yaml", "--dry-run", "--only", "method=plain", "--force", "--retry"]) == 0
    told = capsys.readouterr().out
    assert "2 runs: 1 run again, 1 retried; nothing was run or written" in told
    assert files(Path()) == before


# ---------------------------------------------------------------------- plug-ins that have changed


def test_a_run_whose_plug_in_has_changed_is_told(items, monkeypatch):
    """Control: the same sources, and a record that names none."""
    study = Path("runs/tiny")
    done, begun = one(items, "plain", 0), one(items, "haar", 0)
    assert changes(study, items) == []
    now = provenance.sources
    monkeypatch.setattr(choose, "sources", lambda cfg: {**now(cfg), "backbone dit": "edited"})
    (line,) = changes(study, items)
    assert line.startswith("backbone dit has changed since ")
    assert {done.folder.name, begun.folder.name} == {name for name in (i.folder.name for i in items) if name in line}
    manifest = records.read_json(RunFolder(done.folder).manifest, schema.MANIFEST)
    del manifest["sources"]
    records.write_json(RunFolder(done.folder).manifest, manifest, schema.MANIFEST)
    assert done.folder.name not in changes(study, items)[0]


def test_the_source_of_a_plug_in_is_the_file_that_registers_it():
    cfg = run_config("haar", "dit")
    found = provenance.sources(cfg)
    assert found["method haar"] == hashlib.sha256((ROOT / "methods" / "haar.py").read_bytes()).hexdigest()
    data = f"data set {cfg.data.name}"
    assert set(found) == {"method haar", "backbone dit", data, "task denovo", "measure likelihood"}


PLUGIN = """
from dataclasses import dataclass
from bench.references import EQUIBENCH
from bench.registry import methods
from bench.symmetry.contract import Method
@dataclass
class Options: pass
@methods.register("changed_here", Options)
class Changed(Method):
    '''{}'''
    references = (EQUIBENCH,)
"""


def test_runs_of_an_earlier_plug_in_file_are_named(tmp_path, monkeypatch):
    """They keep their folders, because the content is part of the name. Control: before the file has changed."""
    monkeypatch.chdir(tmp_path)
    assert list(methods)  # found before they are copied
    monkeypatch.setattr(methods, "entries", dict(methods.entries))
    Path("tiny.yaml").write_text(yaml.safe_dump({**PAGE, "plugins": ["mine.py"], "grid": {"method": ["plain"]}}))
    Path("mine.py").write_text(PLUGIN.format("One."))
    (before,) = plan(load_study("tiny.yaml"), Path("runs"))
    before.record("done", "")
    assert changes(Path("runs/tiny"), [before]) == []
    Path("mine.py").write_text(PLUGIN.format("Two.").replace("changed_here", "changed_there"))
    (after,) = plan(load_study("tiny.yaml"), Path("runs"))
    assert after.folder != before.folder
    path = tmp_path / "mine.py"
    assert changes(Path("runs/tiny"), [after]) == [
        f"plug-in {path} has changed since {before.folder.name} began; new runs are made"
    ]


# ---------------------------------------------------------------------- setting aside, removing


def test_a_run_set_aside_keeps_every_file_and_no_command_sees_it(items):
    folder = one(items, "plain", 0).folder
    before, others = files(folder), [item.status for item in items if item.folder != folder]
    place = set_aside(folder)
    assert files(place).keys() == before.keys()
    assert all(files(place)[name] == content for name, content in before.items() if name != "lock")
    assert one(items, "plain", 0).status == "new"
    assert place not in StudyFolder(Path("runs/tiny")).runs()
    assert [item.status for item in items if item.folder != folder] == others


def test_a_run_at_work_is_neither_set_aside_nor_removed(items, tmp_path):
    folder = one(items, "haar", 0).folder.absolute()
    hold = "import sys\nfrom pathlib import Path\nfrom bench.records.lock import locked\n"
    hold += "with locked(Path(sys.argv[1])):\n    print(1, flush=True)\n    sys.stdin.read()\n"
    with subprocess.Popen([sys.executable, "-c", hold, folder], stdin=-1, stdout=-1) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        for act in (set_aside, remove):
            with pytest.raises(BusyError):
                act(folder)
        worker.communicate()
    assert files(folder)
    remove(folder)  # control
    assert not folder.exists()


def test_remove_shows_first_and_removes_one_run_alone(items, capsys):
    folder = one(items, "plain", 0).folder
    borrower = one(items, "haar", 1)
    borrower.record("done", "")
    path = RunFolder(borrower.folder).manifest
    records.write_json(path, records.read_json(path) | {"weights_from": folder.name}, schema.MANIFEST)
    before = files(Path())
    assert main(["remove", "plain-dit-s0"]) == 1
    told = capsys.readouterr().out
    assert f"{folder}: done" in told
    assert "4 files" in told
    assert f"{borrower.folder.name} uses its weights" in told
    assert f"nothing removed; `equibench remove {folder} --yes`" in told
    assert files(Path()) == before
    assert main(["remove", "plain-dit-s0", "--yes"]) == 0
    assert files(Path()) == {name: c for name, c in before.items() if not name.startswith(f"{folder}/")}
    assert not list(Path("runs/tiny").glob(".*"))
    assert main(["remove", "plain-dit-s0", "--yes"]) == 2  # there is none


def test_a_folder_that_holds_more_than_a_run_is_not_removed(items, capsys):
    folder = one(items, "plain", 0).folder
    (folder / "mine").mkdir()
    assert main(["remove", str(folder), "--yes"]) == 2
    assert files(folder)
    (folder / "mine").rmdir()
    (folder / "chunks").mkdir()  # control: of the run
    assert main(["remove", str(folder), "--yes"]) == 0
