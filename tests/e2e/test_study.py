"""The command as a user calls it: run, kill, call again, report, publish, sample."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from bench.cli.main import main
from bench.records.measured import values_of
from bench.records.schema import EVALUATION
from bench.records.store import RunFolder, read_json, read_steps
from bench.records.values import Kind

TINY = {
    "study": "tiny",
    "base": {
        "data": {"name": "mini", "n_train": 300},
        "train": {
            "n_steps": 40,
            "batch_size": 16,
            "lr": 1e-3,
            "ema_decay": 0.9,
            "cooldown_fraction": 0.5,
            "log_every": 5,
            "valid_every": 20,
            "n_valid": 32,
            "checkpoint_seconds": 0.0,
        },
        "sample": {"n_molecules": 24, "n_steps": 8, "batch_size": 8},
        "measures": {"likelihood": {"n_molecules": 16, "n_passes": 1}},
    },
    "grid": [
        {"method": ["symdiff_haar", "haar"], "backbone": [{"name": "dit", "size": "tiny"}], "seed": [0]},
        {
            "method": ["edm"],
            "backbone": [{"name": "egnn", "size": "tiny"}, {"name": "dit", "size": "tiny"}],
            "seed": [0],
        },
    ],
    "launch": {"cluster": "debug"},
}
ONE = [{"method": ["haar"], "backbone": [{"name": "dit", "size": "tiny"}], "seed": [0]}]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*args: str, cwd: Path, start: bool = False):
    """Run `equibench ARGS` (or start it, in a process group of its own)."""
    line = [sys.executable, "-m", "bench.cli.main", *args]
    if start:
        return subprocess.Popen(
            line, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
    return subprocess.run(line, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def write_study(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def contents(runs: Path) -> dict[str, object]:
    """Everything of a study's runs that must not depend on interruptions: losses, weights, samples, metrics."""
    found: dict[str, object] = {}
    for folder in sorted(p.parent for p in runs.glob("*/manifest.json")):
        if (folder / "steps.jsonl").exists():
            lines = read_steps(folder / "steps.jsonl")
            found[f"{folder.name}/steps"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
            state = load_file(folder / "state.safetensors")
            found |= {f"{folder.name}/{name}": array.tobytes() for name, array in state.items()}
        if (folder / "samples.npz").exists():
            with np.load(folder / "samples.npz", allow_pickle=False) as samples:
                found |= {f"{folder.name}/samples/{name}": samples[name].tobytes() for name in samples.files}
            evaluation = read_json(folder / "eval.json", EVALUATION)
            values = [value for value in values_of(RunFolder(folder)) if value.kind is not Kind.COST]
            found[f"{folder.name}/eval"] = (evaluation["step"], values, evaluation["data_values"])
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The tiny study, run without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    done = command("run", str(write_study(folder)), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_study_runs_its_cells_and_skips_with_a_reason(straight):
    manifests = [json.loads(p.read_text()) for p in (straight / "runs/tiny").glob("*/manifest.json")]
    statuses = {(m["method"]["name"], m["backbone"]["name"]): m["status"] for m in manifests}
    assert statuses == {
        ("haar", "dit"): "done",
        ("symdiff_haar", "dit"): "done",
        ("edm", "egnn"): "done",
        ("edm", "dit"): "skipped",
    }
    (skipped,) = [m for m in manifests if m["status"] == "skipped"]
    assert "needs an equivariant backbone, got 'dit'" in skipped["reason"]


def test_a_method_that_trains_nothing_uses_the_weights_it_declares(straight):
    manifests = {
        m["method"]["name"]: m
        for m in (json.loads(p.read_text()) for p in (straight / "runs/tiny").glob("*-dit-*/manifest.json"))
        if m["status"] == "done"
    }
    assert manifests["symdiff_haar"]["weights_from"] == manifests["haar"]["run"]
    assert manifests["symdiff_haar"]["n_steps"] == 0
    folder = straight / "runs/tiny" / manifests["symdiff_haar"]["run"]
    assert not (folder / "state.safetensors").exists()


def test_a_second_call_finds_everything_done(straight):
    before = {p: p.stat().st_mtime_ns for p in (straight / "runs/tiny").glob("*/*") if p.name != "lock"}
    again = command("run", str(straight / "tiny.yaml"), cwd=straight)
    assert again.returncode == 0
    assert "0 to do" in again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (straight / "runs/tiny").glob("*/*") if p.name != "lock"}


def processes_of(folder: Path) -> list[int]:
    """Submitit's job processes that work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (entry / "cmdline").read_text() and "submitit" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "seed"), [(cluster, seed) for cluster in ("debug", "local") for seed in range(4)])
def test_killed_at_random_moments_gives_the_same_bits(straight, tmp_path, cluster, seed):
    """SIGKILL of launcher, jobs or both at random moments, the same command again, until it is done."""
    rng = random.Random(seed)
    path, kills = write_study(tmp_path, launch={"cluster": cluster, "n_parallel": 2}), 0
    for _ in range(60):
        process = command("run", str(path), cwd=tmp_path, start=True)
        # the first seconds are imports: most kills should fall later; the pause grows so that the study ends
        try:
            process.wait(timeout=rng.uniform(1.5, 3.0) + 0.5 * kills + 3 * (cluster == "local"))
        except subprocess.TimeoutExpired:
            victims = {"launcher": [process.pid], "jobs": processes_of(tmp_path)}
            chosen = rng.choice([["launcher"], ["jobs"], ["launcher", "jobs"]]) if cluster == "local" else ["launcher"]
            kill([pid for name in chosen for pid in victims[name]])
            kills += 1
        process.wait()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills > 0, "the study ended before it was ever killed; the test shows nothing"
    ours, theirs = contents(tmp_path / "runs/tiny"), contents(straight / "runs/tiny")
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_an_interrupted_run_is_continued_by_the_same_command(straight, tmp_path):
    """SIGINT (Ctrl-C) leaves runs 'running', not 'failed'."""
    path = write_study(tmp_path)
    process = command("run", str(path), cwd=tmp_path, start=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "runs/tiny").glob("*/steps.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    statuses = [json.loads(p.read_text())["status"] for p in (tmp_path / "runs/tiny").glob("*/manifest.json")]
    assert "running" in statuses
    assert "failed" not in statuses
    assert command("run", str(path), cwd=tmp_path).returncode == 0
    ours, theirs = contents(tmp_path / "runs/tiny"), contents(straight / "runs/tiny")
    assert [key for key in theirs if ours[key] != theirs[key]] == []


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_ends_with_one_line(tmp_path):
    """SIGINT to the whole process group: what is saved, how to go on, no traceback."""
    path = write_study(tmp_path, grid=ONE, launch={"cluster": "local", "n_parallel": 1})
    line = [sys.executable, "-m", "bench.cli.main", "run", str(path), "train.n_steps=100000"]
    process = subprocess.Popen(
        line,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "runs/tiny").glob("*/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert "interrupted: 0 of 1 runs done, 1 begun, saved haar-dit-s0-" in last
    assert last.endswith("the same command continues it")
    log = tmp_path / "runs/tiny/.submitit/controllers.log"
    deadline = time.monotonic() + 60  # the controller may outlive the launcher
    while "KeyboardInterrupt" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "KeyboardInterrupt" in log.read_text()  # control: there is one to keep away


@pytest.mark.slow
def test_a_part_of_a_study_is_run_alone_and_again(straight, tmp_path):
    """`--only` leaves the others for later; `--force` keeps what it replaces, and gives the same bits."""
    path = write_study(tmp_path)
    done = command("run", str(path), "--only", "method=haar", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs/tiny").glob("*/eval.json")
    assert folder.parent.name.startswith("haar-dit-s0-")
    assert "2 queued" in command("status", "tiny", cwd=tmp_path).stdout
    before = contents(tmp_path / "runs/tiny")
    done = command("run", str(path), "--force", "--only", "method=haar", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is set aside as " in done.stderr
    (aside,) = (tmp_path / "runs/tiny/.old").iterdir()
    assert aside.name.startswith(folder.parent.name)
    assert contents(aside.parent) != {}
    assert contents(tmp_path / "runs/tiny") == before
    assert "1 to do" not in command("run", str(path), "--only", "method=haar", cwd=tmp_path).stderr


@pytest.mark.slow
def test_changed_sampling_is_not_mistaken_for_done(straight, tmp_path):
    """Other sampling settings are runs of their own, on weights that are there; those runs stay as they were."""
    shutil.copytree(straight / "runs", tmp_path / "runs")
    path = write_study(tmp_path)
    assert "0 to do" in command("run", str(path), cwd=tmp_path).stderr
    before = {p: p.read_bytes() for p in (tmp_path / "runs/tiny").glob("*/eval.json")}
    done = command("run", str(path), "sample.n_steps=4", cwd=tmp_path)
    assert "3 to do" in done.stderr
    found = [json.loads(p.read_text()) for p in (tmp_path / "runs/tiny").glob("*/eval.json")]
    assert sorted(e["n_sampling_steps"] for e in found).count(4) == 3
    assert len(found) == len(before) + 3
    assert {p: p.read_bytes() for p in before} == before
    assert "0 to do" in command("run", str(path), "sample.n_steps=4", cwd=tmp_path).stderr


def test_the_comparison_notices_another_seed(straight, tmp_path):
    """Negative control of the bitwise comparison: one training seed further, nothing is equal."""
    path = write_study(tmp_path, grid=[{**ONE[0], "seed": [1]}])
    assert command("run", str(path), cwd=tmp_path).returncode == 0
    (ours,) = (tmp_path / "runs/tiny").glob("haar-*/samples.npz")
    (theirs,) = (straight / "runs/tiny").glob("haar-*/samples.npz")
    assert np.load(ours)["positions"].tobytes() != np.load(theirs)["positions"].tobytes()


@pytest.mark.slow
def test_sampled_and_then_evaluated_equals_straight(straight, tmp_path):
    """`run --until sampled` leaves no evaluation, loads no RDKit, and is done; `evaluate` gives the same values."""
    path = write_study(tmp_path, grid=ONE)
    runs = tmp_path / "runs/tiny"
    done = command("run", str(path), "--until", "sampled", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = runs.glob("haar-*")
    assert not (folder / "eval.json").exists()
    assert "1 sampled" in command("status", "tiny", cwd=tmp_path).stdout
    assert "0 to do" in command("run", str(path), "--until", "sampled", cwd=tmp_path).stderr
    done = command("evaluate", str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"evaluated: {folder}\n"
    ours, theirs = contents(runs), contents(straight / "runs/tiny")
    assert len(ours) > 3
    assert [key for key in ours if ours[key] != theirs[key]] == []
    assert "0 to do" in command("run", str(path), cwd=tmp_path).stderr


@pytest.mark.slow
def test_several_ranks_train_one_run(straight, tmp_path):
    """By option, and by torchrun on a run's folder: equal losses. The losses of one rank are those of other draws."""
    path = write_study(tmp_path, grid=ONE)
    done = command("run", str(path), "train.n_processes=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs/tiny").glob("haar-*")
    assert json.loads((folder / "manifest.json").read_text())["environment"]["n_processes"] == 2

    def losses(run: Path) -> list[float]:
        return [json.loads(line)["loss"] for line in (run / "steps.jsonl").read_text().splitlines()]

    (one_rank,) = (straight / "runs/tiny").glob("haar-*")
    assert losses(folder) != pytest.approx(losses(one_rank), rel=1e-4)
    other = tmp_path / "torchrun" / folder.name
    other.mkdir(parents=True)
    shutil.copy(folder / "config.yaml", other)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    line = [*ranks, "bench.run.spawn", str(other)]
    done = subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(other) == pytest.approx(losses(folder), rel=1e-6)


def test_one_failing_run_does_not_stop_the_others(tmp_path):
    grid = [
        {
            "method": ["haar", "plain"],
            "backbone": [{"name": "dit", "size": "tiny"}],
            "seed": [0],
            "train.lr": [1e30, 1e-3],
        }
    ]
    path = write_study(tmp_path, grid=grid)
    done = command("run", str(path), cwd=tmp_path)
    assert done.returncode == 1
    manifests = [json.loads(p.read_text()) for p in (tmp_path / "runs/tiny").glob("*/manifest.json")]
    assert sorted(m["status"] for m in manifests) == ["done", "done", "failed", "failed"]
    assert all("not finite" in m["reason"] for m in manifests if m["status"] == "failed")
    report = command("report", "tiny", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "failed" in (tmp_path / "runs/tiny/report/report.md").read_text()


def test_report_publish_and_sample_from_the_published_run(straight):
    assert command("report", "tiny", cwd=straight).returncode == 0
    assert (straight / "runs/tiny/report/index.html").stat().st_size > 10_000
    done = command("publish", "tiny", cwd=straight)
    assert done.returncode == 0, done.stderr
    (published,) = (straight / "results/tiny").glob("haar-*")
    kept = {"sample_items.npz", "measured/likelihood.npz", "measured/validation_loss.npz"}
    assert {str(path.relative_to(published)) for path in published.rglob("*.npz")} == kept
    assert (published / "weights.safetensors").stat().st_size < 1_000_000
    table = list(csv.DictReader((straight / "results/tiny/runs.csv").open()))
    assert {row["weights"] for row in table if row["run"] == published.name} == {"float16"}
    for suffix in ("xyz", "sdf", "npz"):
        out = straight / f"drawn.{suffix}"
        done = command("sample", str(published), "-n", "5", "--steps", "4", "-o", str(out), cwd=straight)
        assert done.returncode == 0, done.stderr
        scored = command("score", str(out), "--json", cwd=straight)
        assert json.loads(scored.stdout)["n_molecules"] == 5


def test_load_run_gives_the_denoiser(straight):
    import torch

    import bench
    from bench.geometry.state import Layout, State

    (folder,) = (straight / "runs/tiny").glob("edm-egnn-*")
    run = bench.load_run(folder)
    layout = Layout([5, 7])
    z = State({"x": torch.randn(12, 3), "h": torch.randn(12, run.model.task.n_features)}, layout).centred()
    eps_hat = run.denoiser(z, run.process.path.at(torch.tensor([100, 500])))
    assert eps_hat.x.shape == (12, 3)
    assert torch.isfinite(eps_hat.x).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "qm9_smok"], "did you mean 'qm9_smoke'"),
        (["run", "qm9_smoke", "train.n_step=3"], "did you mean 'n_steps'"),
        (["run", "qm9_smoke", "train.lr=fast"], "'train.lr' is 'fast', expected float"),
        (["run", "qm9_smoke", "launch.cluster=cloud"], "expected local, debug or slurm"),
        (["run", "qm9_laptop", "backbone.size=tiny"], "the study's grid sets 'backbone'"),
        (["run", "qm9_laptop", "--only", "method=nothing"], "no run of this study has method"),
        (["run", "qm9_smoke", "train.device=gpu"], "'train.device' is 'gpu', expected cpu, cuda or cuda:N"),
        (["run", "qm9_smoke", "study=mine"], "'study' cannot be set for its runs"),
        (["run", "qm9_smoke", "train.batch_size=0"], "'train.batch_size' is 0, expected at least 1"),
        (["report", "nothing"], "execute `equibench run nothing` first"),
        (["sample", "nowhere", "-o", "x.xyz"], "is no run folder"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(tmp_path, monkeypatch, caplog, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (told,) = caplog.messages
    assert words in told
    assert len(told.splitlines()) == 1


@pytest.mark.slow
def test_molecules_without_bond_lengths_are_trained_on_and_not_evaluated(tmp_path):
    """A set with iron: likelihood and cost stand in the table, stability and validity are dashes, and say why."""
    frame = "5\n\nC 0 0 0\nFe {} 0 0\nH -0.36 1.03 0\nH -0.36 -0.5 0.9\nH -0.36 -0.5 -0.9\n"
    (tmp_path / "molecules").mkdir()
    (tmp_path / "molecules" / "all.xyz").write_text("".join(frame.format(1.7 + i / 1000) for i in range(60)))
    page = json.loads(json.dumps(TINY))
    page["base"]["data"] = {"name": "folder", "dir": "molecules"}
    page["base"]["train"]["n_steps"] = 4
    page["grid"] = {"method": ["plain"], "backbone": [{"name": "dit", "size": "tiny"}], "seed": [0]}
    (tmp_path / "page.yaml").write_text(yaml.safe_dump(page))
    done = command("run", "page.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "samples are not evaluated" in done.stderr
    assert "element Fe" in done.stderr
    (evaluation,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/tiny/*/eval.json"))
    (folder,) = tmp_path.glob("runs/tiny/*/eval.json")
    values = {value.name: value.value for value in values_of(RunFolder(folder.parent))}
    assert values.get("molecule_stability") is values.get("validity") is None
    reasons = {value["definition"] for value in evaluation["values"] if value["name"] == "validity"}
    assert "has element Fe: RDKit knows no valence of it" in reasons.pop()
    assert values["nll"] is not None
    shown = command("report", "tiny", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "plain" in shown.stdout
