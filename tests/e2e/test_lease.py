"""A run on a lent machine: planned here, made there in pieces, scored here, and then a run like any other.

'There' is a folder with a copy of the code without its repository, and an interpreter in which what is not there cannot
be imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bench import cli, lease
from bench.checkpoint import STATE, about_of
from bench.clock import Deadline, TimeUpError
from bench.config import ConfigError, RunConfig
from bench.execute import TO_BE_SCORED, execute, load_data
from bench.model import Model
from bench.publish import publish
from bench.records import MANIFEST, read_json, read_steps, write_json
from bench.runners import plan
from bench.sample import WEIGHTS
from bench.studies import load_study
from bench.train import train

ROOT = Path(__file__).parents[2]
PACKAGES = ("bench", "methods")
MISSING = ("rdkit", "submitit", "omegaconf", "beartype")  # beartype is for tests alone
STUDY = {
    "study": "lent",
    "base": {
        "data": {"name": "mini", "n_train": 100},
        "train": {"n_steps": 20, "batch_size": 8, "ema_decay": 0.9, "log_every": 5, "valid_every": 10, "n_valid": 8},
        "sample": {"n_molecules": 6, "n_steps": 3, "batch_size": 2},
        "evaluate": {"n_nll_molecules": 8, "n_nll_passes": 1},
    },
    "grid": {"method": ["haar", "plain", "symdiff_haar"], "backbone": [{"name": "dit", "size": "tiny"}]},
}
WITHOUT = f"""
import importlib.abc, sys

class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without())
"""


def write_study(folder: Path) -> str:
    page = folder / "lent.yaml"
    page.write_text(yaml.safe_dump(STUDY))
    return str(page)


def config(folder: Path, **sample: int) -> tuple[RunConfig, Path]:
    """The first run of the study and its folder under another root."""
    item = plan(load_study(write_study(folder)), folder / "straight")[0]
    return replace(item.cfg, sample=replace(item.cfg.sample, **sample)), item.folder


@dataclass
class Machine:
    """A lent machine, whose home is a folder."""

    home: Path

    def __call__(self, *arguments: str, at: str = ".") -> subprocess.CompletedProcess:
        path = os.pathsep.join(map(str, [self.home / "without", self.home]))
        kept = {key: value for key, value in os.environ.items() if key != "QM9_DIR"}
        command = [sys.executable, "-m", "bench.cli", "lease", *arguments]
        environment = {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        folder = self.home / at
        return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)


@dataclass
class Lease:
    """What has come of one: the machine, the codes of its two commands, and the manifest after the first."""

    here: Path
    there: Machine
    codes: list[int]
    first: dict
    folder: Path  # of the run, there
    straight: Path  # of the same run, made in one piece here


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Lease:
    here, home = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    cfg, straight = config(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert cli.main(["--quiet", "lease", "plan", write_study(here)]) == 0
    for package in PACKAGES:
        shutil.copytree(ROOT / package, home / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(here / ".lease", home / ".lease")
    (home / "without").mkdir()
    (home / "without/sitecustomize.py").write_text(WITHOUT)
    there = Machine(home)
    folder = home / "runs" / "lent" / straight.name
    codes = [there("there", "--seconds", "0", "--out", "first").returncode]
    first = read_json(folder / "manifest.json", MANIFEST) | {"step": about_of(folder / STATE)["step"]}
    codes.append(there("there", "--seconds", "1000", "--out", "second").returncode)
    execute(cfg, straight)
    return Lease(here, there, codes, first, folder, straight)


@pytest.fixture
def home(done: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own that the parcel has been brought to."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(done.there.home / "second", tmp_path / "parcel")
    write_study(tmp_path)
    return tmp_path


def losses(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_steps(folder / "steps.jsonl")]


def test_time_that_is_up_costs_no_step_and_the_next_command_goes_on(done):
    assert done.codes == [lease.NOT_FINISHED, 0]
    assert (done.first["status"], done.first["step"]) == ("running", 5)
    manifest = read_json(done.folder / "manifest.json", MANIFEST)
    assert (manifest["status"], manifest["reason"]) == ("running", TO_BE_SCORED)
    assert manifest["created"] == done.first["created"]
    assert losses(done.folder) == losses(done.straight)


def test_a_scored_lease_equals_the_run_in_one_piece(done, home):
    """Evaluation and samples bit for bit; control: another seed of sampling."""
    assert cli.main(["lease", "score", "parcel"]) == 0
    folder = home / "runs/lent" / done.straight.name
    for name in ("eval.json", "drawn.sdf", "likelihood.json", "data.json", "config.yaml"):
        assert (folder / name).read_bytes() == (done.straight / name).read_bytes(), name
    manifest = read_json(folder / "manifest.json", MANIFEST)
    assert manifest["status"] == "done"
    assert manifest["scored"]["versions"] == manifest["environment"]["versions"]  # of one environment, in this test
    assert "scored" not in read_json(done.straight / "manifest.json", MANIFEST)
    other, _ = config(home, seed=1)
    execute(other, home / "other" / folder.name)
    assert (home / "other" / folder.name / "eval.json").read_bytes() != (folder / "eval.json").read_bytes()


def test_a_scored_run_is_one_like_any_other(done, home):
    """It is left alone by `run`, chosen no more by `plan`, published; unpacking again changes nothing."""
    study = load_study("lent.yaml")
    assert cli.main(["lease", "plan", "lent.yaml", "-o", "again"]) == 0
    assert "haar" in (home / "again/lease.json").read_text()
    assert cli.main(["lease", "score", "parcel"]) == 0
    haar, plain, _ = plan(study, home / "runs")
    assert (haar.status, plain.status) == ("done", "new")
    manifest = (haar.folder / "manifest.json").read_bytes()
    assert cli.main(["lease", "score", "parcel"]) == 0
    assert (haar.folder / "manifest.json").read_bytes() == manifest
    target = publish("lent", home / "runs", home / "results")
    assert (target / haar.folder.name / "weights.safetensors").exists()
    shutil.rmtree(haar.folder)  # as in another clone, which has what was published
    assert lease.choose(plan(study, home / "runs"), "", home / "results/lent")[0].cfg.method["name"] == "plain"


def test_what_is_missing_there_is_missed(done):
    """Control: scoring needs what the lent machine has not."""
    (done.there.home / "elsewhere").mkdir()
    missed = done.there("score", "../second", at="elsewhere")
    assert missed.returncode == 1
    assert "No module named 'rdkit'" in missed.stderr


@pytest.mark.slow
def test_the_manifest_names_the_commit_from_which_the_copy_was_made(done, tmp_path):
    """Control: a copy that was changed is marked."""
    planned = json.loads((done.here / ".lease/lease.json").read_text())["code"]
    assert planned["commit"]
    assert done.first["code"] == planned
    changed = Machine(tmp_path)
    for name in (*PACKAGES, "without", ".lease"):
        shutil.copytree(done.there.home / name, tmp_path / name)
    with (tmp_path / "methods/plain.py").open("a") as file:
        file.write("# changed\n")
    changed("there", "--seconds", "0", "--out", "out")
    (manifest,) = (tmp_path / "runs/lent").glob("*/manifest.json")
    assert read_json(manifest, MANIFEST)["code"] == planned | {"dirty": True}


# ---------------------------------------------------------------------- parcels


def files_in(parcel: Path) -> list[Path]:
    return sorted(path for path in parcel.iterdir() if path.name != "parcel.json")


def test_a_parcel_keeps_to_its_limits_and_names_what_it_left(done, home):
    """Parts together are the same run; without room for weights the rest comes, and the record says what did not."""
    runs, name = done.there.home / "runs", done.folder.name
    assert lease.pack([done.folder], runs, home / "small", 1 << 24, 50_000) == []
    assert len(files_in(home / "small")) > 3
    assert all(path.stat().st_size <= 50_000 for path in files_in(home / "small"))
    (left,) = lease.pack([done.folder], runs, home / "tight", 150_000, 50_000)
    assert left.startswith(f"lent/{name}/{WEIGHTS} (")
    assert sum(path.stat().st_size for path in files_in(home / "tight")) <= 150_000
    assert cli.main(["lease", "score", "tight"]) == 0
    scored = home / "runs/lent" / name
    assert read_json(scored / "manifest.json", MANIFEST)["scored"]["left_behind"] == [left]
    assert not (scored / WEIGHTS).exists()
    shutil.rmtree(home / "runs")
    assert cli.main(["lease", "score", "small"]) == 0
    assert (scored / WEIGHTS).exists()


def test_a_damaged_parcel_and_one_over_a_run_of_ones_own_are_refused(done, home, caplog):
    part = files_in(home / "parcel")[0]
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"x")
    assert cli.main(["lease", "score", "parcel"]) == 2
    assert "bring all of them again" in caplog.text
    part.write_bytes(content)
    own = home / "runs/lent" / done.folder.name
    shutil.copytree(done.straight, own)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    assert cli.main(["lease", "score", "parcel"]) == 2
    assert "was trained here" in caplog.text
    assert {name: content for name, content in before.items() if (own / name).read_bytes() != content} == {
        "lock": before["lock"]
    }
    record = read_json(home / "parcel/parcel.json") | {"runs": ["../lent/run"]}
    write_json(home / "parcel/parcel.json", record)
    assert cli.main(["lease", "score", "parcel"]) == 2
    assert "expected STUDY/RUN" in caplog.text


def test_an_unfinished_run_comes_home_and_is_not_scored(done, home, caplog):
    shutil.copytree(done.there.home / "first", home / "first")
    caplog.set_level("INFO")
    assert cli.main(["lease", "score", "first"]) == lease.NOT_FINISHED
    folder = home / "runs/lent" / done.folder.name
    assert "running, and not finished" in caplog.text
    assert read_steps(folder / "steps.jsonl")[-1]["step"] == 5
    assert not (folder / WEIGHTS).exists()  # nothing could go on from these
    assert cli.main(["lease", "score", "parcel"]) == 0  # the later one takes its place


def test_weights_that_came_home_are_sampled_and_not_trained(done, home, caplog):
    """The samples were not finished there: they are drawn here and are the same; more training is refused."""
    assert cli.main(["lease", "score", "parcel"]) == 0
    cfg, _ = config(home)
    folder = home / "runs/lent" / done.folder.name
    for name in ("samples.npz", "samples.json", "likelihood.json", "eval.json"):
        (folder / name).unlink()
    before = losses(folder)
    execute(cfg, folder)
    assert (folder / "eval.json").read_bytes() == (done.straight / "eval.json").read_bytes()
    assert losses(folder) == before
    assert not (folder / STATE).exists()
    with pytest.raises(ConfigError, match="cannot be trained further"):
        execute(replace(cfg, train=replace(cfg.train, n_steps=30)), folder)


# ---------------------------------------------------------------------- the deadline


@dataclass
class Asked(Deadline):
    """Has passed when it is asked the nth time."""

    n: int = 1

    def passed(self, ahead: float = 0.0) -> bool:
        self.n -= 1
        return self.n <= 0


def test_stopped_anywhere_and_continued_is_the_run_in_one_piece(done, tmp_path):
    """In training, at its last step, in the second chunk of samples and in the likelihood; no step is lost."""
    cfg, _ = config(tmp_path)
    folder = tmp_path / "cut" / done.straight.name
    stages = []
    for n in (1, 2, 1, 7, 9):
        with pytest.raises(TimeUpError):
            execute(cfg, folder, deadline=Asked(n=n))
        step = read_steps(folder / "steps.jsonl")[-1]["step"]
        assert about_of(folder / STATE)["step"] == step
        stages.append((step, len([*folder.glob("chunks/*.npz")]), (folder / "samples.npz").exists()))
    assert stages == [(5, 0, False), (15, 0, False), (20, 0, False), (20, 1, False), (20, 0, True)]
    execute(cfg, folder)
    assert (folder / "eval.json").read_bytes() == (done.straight / "eval.json").read_bytes()
    assert losses(folder) == losses(done.straight)


def test_without_a_deadline_the_same_stop_loses_its_steps(tmp_path):
    """Control: a checkpoint would not be due yet."""
    cfg, _ = config(tmp_path)
    data = load_data(cfg)

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cfg, Model.build(cfg, data.elements, data.mean_atoms), data.train, data.valid, tmp_path, stop)
    assert read_steps(tmp_path / "steps.jsonl")
    assert not (tmp_path / STATE).exists()


def test_time_that_would_not_do_for_another_interval_is_up():
    started = time.monotonic()
    assert not Deadline(started + 100).passed()
    assert Deadline(started + 100).passed(ahead=101.0)
    assert not Deadline().passed(ahead=1e9)


# ---------------------------------------------------------------------- which run, and checks


def item(name: str, status: str = "new", needs: SimpleNamespace | None = None) -> SimpleNamespace:
    return SimpleNamespace(folder=Path(name), status=status, needs=needs)


def chosen(items: list, name: str = "", published: Path = Path("nowhere")) -> list[str]:
    return [found.folder.name for found in lease.choose(items, name, published)]


def test_the_first_run_without_a_result_is_chosen(tmp_path):
    first, second, skipped = item("a-s0", "done"), item("b-s0"), item("c-s0", "skipped")
    child, last = item("b_child-s0", needs=second), item("a-s1", "failed")
    items = [first, skipped, child, second, last]
    assert chosen(items) == ["b-s0"]
    assert chosen(items, "a") == ["a-s1"]
    assert chosen(items, "b_child") == ["b-s0", "b_child-s0"]  # weights may be too large to be carried there
    (tmp_path / "b-s0").mkdir()
    (tmp_path / "b-s0/eval.json").touch()
    assert chosen(items, published=tmp_path) == ["a-s1"]
    with pytest.raises(ConfigError, match="with the weights of b-s0, which has its result already"):
        chosen(items, "b_child", tmp_path)
    with pytest.raises(ConfigError, match="no run 'c' is left to be made; left are: b_child-s0, b-s0, a-s1"):
        chosen(items, "c")


def test_several_processes_are_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lease", "plan", write_study(tmp_path), "train.n_processes=2"]) == 2
    assert "one process" in caplog.text


CHECK = """
import subprocess, sys, time
print(*sys.argv[1:])
if "--seconds" in sys.argv:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, file=open("child", "w"), flush=True)
    time.sleep(60)
"""


def test_checks_are_made_once_and_within_their_time(tmp_path, monkeypatch, caplog):
    """Tests first, then the timings, which are told how long they have; where these hang, all they started is ended."""
    cfg, _ = config(tmp_path)
    (tmp_path / "perf").mkdir()
    for module in ("pytest.py", "perf/performance.py"):
        (tmp_path / module).write_text(CHECK)
    monkeypatch.setattr(lease, "ROOT", tmp_path)
    monkeypatch.setattr(lease, "GRACE", 2.0)
    caplog.set_level("INFO")
    for seconds in (2.0, -1.0):
        lease.check_machine(cfg, tmp_path, Deadline(time.monotonic() + seconds), tmp_path / "checks")
    assert [record.message.partition(":")[0] for record in caplog.records] == ["pytest", "perf.performance"]
    assert (tmp_path / "checks/tests.txt").read_text().split() == lease.CUDA_TESTS.split()[1:]
    assert "stopped after" in caplog.text
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split():
        assert time.monotonic() < deadline, "the child goes on"
        time.sleep(0.05)
