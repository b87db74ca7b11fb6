"""`equibench time` and `equibench scaling`: what they print is what was timed. No time is asserted."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from support import model_of, run_config, states

from bench.cli.main import main as cli
from bench.data import mini
from bench.geometry.state import State
from bench.kernels import native
from bench.run import scaling, timing
from bench.run.optimiser import TrainingState
from bench.run.roofline import Machine, Work, machine, training_work
from bench.run.train import BatchLoss, training_loss, training_step
from bench.streams import Streams

KEYS = {
    "step_seconds": float,
    "forward_seconds": float,
    "peak_memory_mb": float,
    "parameters": int,
    "device": str,
    "dtype": str,
    "atoms": float,
    "edges": float,
}


@pytest.fixture(autouse=True)
def _embedded_set_and_one_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("QM9_DIR", raising=False)
    yield
    torch.set_num_threads(1)


def timed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    size = ["--size", "tiny", "--steps", "2", "--threads", "1", "--json"]
    assert cli(["time", *arguments, *size]) == 0
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------------- equibench time


@pytest.mark.parametrize("named", ["data.name=mini", "data=mini"])
def test_a_data_set_that_is_named_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, named: str):
    """Control: where none is named, the environment's folder is QM9's; other options of data are kept."""
    monkeypatch.setenv("QM9_DIR", "/somewhere")
    assert timing.run_config("haar", "dit", "tiny", None, [named]).data.name == "mini"
    other = timing.run_config("haar", "dit", "tiny", None, ["data.max_atoms=14"]).data
    assert (other.name, other.options.dir, other.options.max_atoms) == ("qm9", "/somewhere", 14)


def test_sampling_is_timed_at_a_given_size_where_it_needs_no_context(capsys, monkeypatch):
    """Control: without `--sampling-steps` none is timed (below); conformers are of given molecules."""
    sizes = []
    drawn = timing.sample_prompt
    monkeypatch.setattr(timing, "sample_prompt", lambda *given: sizes.append(given[1].sizes.tolist()) or drawn(*given))
    at_nine = ("--method", "plain", "--backbone", "dit", "--batch", "3", "--atoms", "9", "--sampling-steps", "2")
    result = timed(capsys, *at_nine)
    assert sizes == [[9, 9, 9]] * 2  # a warm-up, and the one that counts
    assert result["sampling_steps"] == 2
    assert result["sampling_seconds"] > 0
    assert result["sampling_peak_memory_mb"] > 0

    model = model_of("plain", "dit")
    monkeypatch.setattr(model.task, "context", "graph", raising=False)
    with pytest.raises(ValueError, match="not of a given size"):
        timing.time_samples_of(run_config("plain", "dit"), model, 9, 2)


@pytest.mark.parametrize(("method", "backbone"), [("edm", "egnn"), ("symdiff", "dit")])
def test_time_prints_one_object_with_what_it_timed(capsys, method, backbone):
    result = timed(capsys, "--method", method, "--backbone", backbone, "--batch", "8")
    for key, kind in KEYS.items():
        assert isinstance(result[key], kind), key
    low, high = result["step_seconds_quartiles"]
    assert 0 < low <= result["step_seconds"] <= high
    assert result["peak_memory_mb"] >= result["start_memory_mb"] > 0
    assert (result["batch"], result["dtype"], result["threads"], result["compile"]) == (8, "float32", 1, "eager")
    assert result["molecules"] == mini.load(mini.MiniConfig()).label
    tiny = model_of(method, backbone)
    assert result["parameters"] == tiny.count_parameters()["total"]


def test_atoms_and_edges_are_those_of_the_timed_batches(capsys):
    """Of the batches after the warm-up, drawn by the run's data stream; a fixed size says what they must be."""
    result = timed(capsys, "--method", "plain", "--backbone", "dit", "--batch", "4", "--atoms", "9")
    assert (result["atoms"], result["edges"]) == (4 * 9, 4 * 9 * 8)
    assert "synthetic" not in result["molecules"]

    assert "sampling_steps" not in result

    big = timed(capsys, "--method", "plain", "--backbone", "dit", "--batch", "2", "--atoms", "40", "--dtype", "bf16")
    assert (big["atoms"], big["edges"], big["dtype"]) == (2 * 40, 2 * 40 * 39, "bf16")
    assert "synthetic" in big["molecules"]


@pytest.mark.parametrize(("method", "backbone", "name"), [("edm", "egnn", "pair_mlp"), ("plain", "dit", "dit_passes")])
def test_the_kernels_that_ran_are_printed(capsys, method, backbone, name):
    """Control: with --kernels off there are none."""
    arguments = ["--method", method, "--backbone", backbone, "--batch", "2"]
    if native.library(native.HEADERS / "dit_passes.c") is not None:
        assert timed(capsys, *arguments)["kernels"] == [name]
    assert timed(capsys, *arguments, "--kernels", "off")["kernels"] == []


def test_options_reach_the_model(capsys):
    wide = timed(capsys, "--method", "plain", "--backbone", "egnn", "--batch", "2", "backbone.width=24")
    plain = timed(capsys, "--method", "plain", "--backbone", "egnn", "--batch", "2")
    assert wide["parameters"] > plain["parameters"]


def test_the_table_shows_the_same(capsys):
    arguments = ["time", "--method", "edm", "--backbone", "egnn", "--size", "tiny", "--steps", "1", "--batch", "2"]
    assert cli([*arguments, "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "edm on egnn (tiny)" in out
    assert "training step" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "edm", "--backbone", "dit"], "needs an equivariant backbone"),
        (["--method", "nothing", "--backbone", "dit"], "unknown method 'nothing'"),
        (["--method", "plain", "--backbone", "dit", "--size", "huge"], "'backbone.size' is 'huge'"),
        (["--method", "plain", "--backbone", "dit", "backbone.width"], "not of the form key=value"),
        (["--method", "plain", "--backbone", "dit", "--steps", "0"], "expected at least 1"),
        (["--method", "plain", "--backbone", "dit", "--batch", "0"], "'train.batch_size' is 0"),
        (["--method", "plain", "--backbone", "dit", "--data", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_timed_is_one_line(caplog, arguments, line):
    assert cli(["time", *arguments]) == 2
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert line in record.message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(caplog):
    assert cli(["time", "--method", "plain", "--backbone", "dit", "--size", "tiny", "--device", "cuda"]) == 2
    assert "torch sees no GPU here" in caplog.text


def test_the_step_that_is_timed_trains():
    """The shared step lowers the loss of a batch that it repeats; with a learning rate of zero it does not."""
    means = {}
    for lr in (1e-2, 1e-12):
        settings = run_config("edm", "egnn", lr=lr, amsgrad=False).train
        model = model_of("edm", "egnn", dtype=torch.float32)
        x0, _, _, _ = states(dtype=torch.float32)
        state = TrainingState.at_start(model.named_weights(), settings)
        for _ in range(20):
            losses, norm, clipped = training_step(
                BatchLoss(model), [x0], [Streams(0).at(0)], settings, state, settings.lr
            )
        assert (losses.shape, norm.shape, clipped.shape) == ((len(x0),), (), ())
        means[lr] = losses.mean().item()
        before = training_loss(model_of("edm", "egnn", dtype=torch.float32), x0, Streams(0).at(0)).mean().item()
        means["start"] = before
    assert means[1e-2] < 0.9 * means["start"]
    assert means[1e-12] == pytest.approx(means["start"], rel=1e-4)


def test_clouds_have_the_density_and_spacing_they_claim():
    data = mini.load(mini.MiniConfig())
    made = timing.clouds(60, 3, data)
    assert made.n_atoms.tolist() == [60] * 3
    assert set(made.numbers.tolist()) <= set(data.elements)
    for _, x in made:
        distances = np.linalg.norm(x[:, None] - x, axis=-1) + 10 * np.eye(60)
        assert distances.min() > timing.SPACING
        assert len(x) / (4 / 3 * np.pi * np.linalg.norm(x, axis=1).max() ** 3) > timing.DENSITY * 0.99
    assert np.array_equal(made.positions, timing.clouds(60, 3, data).positions)


WITHOUT = """
import sys
for name in {blocked}:
    sys.modules[name] = None
from bench.cli.main import main as cli
code = cli("time --method symdiff --backbone egnn --size tiny --batch 2 --steps 1 --threads 1 --json".split())
import bench.run.train
import numpy as np
from bench.config.run import SampleConfig
from bench.run.model import Model
from bench.run.sample import sample_prompt
from bench.run.timing import run_config
from bench.structures.dataset import Facts
from bench.tasks.contract import Prompt
model = Model.build(run_config("symdiff", "dit", "tiny", None, []), Facts((1, 6, 7, 8, 9), 18.0, {{3: 1, 4: 1}}))
made = sample_prompt(model, Prompt(0, np.arange(2), np.array([3, 4]), 4), SampleConfig(n_steps=2))
sys.exit(code or made.n_atoms.tolist() != [3, 4])
"""


def run_without(blocked: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "QM9_DIR"}
    code = WITHOUT.format(blocked=blocked)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_timing_and_sampling_run_where_only_the_networks_packages_are():
    """A GPU machine need have neither chemistry nor launchers."""
    done = run_without(["rdkit", "submitit", "omegaconf", "matplotlib", "pandas", "beartype"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backbone"] == "egnn"
    assert run_without(["safetensors"]).returncode != 0  # control: what is blocked cannot be had


# ---------------------------------------------------------------------- the floor


def analytic_products(backbone: str, x0: State, width: int, depth: int) -> float:
    """Multiplications and additions of the large layers of one forward pass, counted by hand."""
    A, P, H = len(x0.x), x0.layout.n_pairs, width
    edges = P - A  # without i = j
    if backbone == "egnn":  # two layers of H x H on pairs; on atoms two first layers split in two, and the node's two
        return depth * (2 * edges * 2 * H * H + 2 * A * (4 * H * H + 3 * H * H))
    # qkv, output, SwiGLU of ratio 4 (4 H wide in, 2 H back) on atoms; attention on pairs; adaLN on molecules
    return depth * (2 * A * (3 + 1 + 4 + 2) * H * H + 4 * P * H + 2 * len(x0) * 6 * H * H)


@pytest.mark.parametrize(("method", "backbone"), [("edm", "egnn"), ("plain", "dit")])
def test_counted_operations_are_those_of_a_count_by_hand(method, backbone):
    """What is left out of the formula, embeddings and distances, is a few per cent; a missing layer would be 12 %."""
    cfg = timing.run_config(method, backbone, "small", None, ["backbone.width=192", "backbone.depth=3"])
    data = mini.load(mini.MiniConfig())
    model = timing.Model.build(cfg, data.facts)
    x0 = model.task.encode(data.train.select(np.arange(1000, 1020)))
    counted = training_work(model, x0, Streams(0).at(0)).flops
    expected = 3 * analytic_products(backbone, x0, 192, 3)
    assert expected < counted < 1.1 * expected
    assert not counted < 1.1 * 3 * analytic_products(backbone, x0, 192, 2)  # control: a layer fewer is told apart


def test_floor_is_the_slower_of_arithmetic_and_traffic():
    device = Machine(flops_per_second=10.0, bytes_per_second=5.0)
    assert Work(100.0, 5.0).seconds(device) == 10.0
    assert Work(10.0, 500.0).seconds(device) == 100.0


def test_peaks_of_the_machine_are_positive(monkeypatch):
    monkeypatch.setattr("bench.run.roofline.SIDES", {"cpu": (64,)})
    monkeypatch.setattr("bench.run.roofline.COPIED", 2**10)
    found = machine("cpu", torch.float32, repeats=1)
    assert found.flops_per_second > 0
    assert found.bytes_per_second > 0


# ---------------------------------------------------------------------- equibench scaling


def fake_cell(arguments, n_atoms: int, batch: int) -> dict[str, Any]:
    if n_atoms == 181:
        return {"error": "out of memory"}
    return {
        "step_seconds": 1e-3 * n_atoms**2 * batch,
        "step_memory_mb": 3.0 * n_atoms * batch,
        "molecules": "synthetic",
    }


def test_scaling_writes_cells_and_exponents(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "time_cell", fake_cell)
    out = tmp_path / "runs" / "scaling.json"
    arguments = ["scaling", "--method", "plain", "--backbone", "egnn", "dit", "--size", "tiny", "-o", str(out)]
    assert cli(arguments) == 0
    record = json.loads(out.read_text())
    assert len(record["rows"]) == 2 * (6 + 4)
    assert [row["value"] for row in record["rows"] if "error" in row] == [181, 181]
    found = {(f["backbone"], f["axis"], f["cost"]): f["exponent"] for f in record["fits"]}
    for backbone in ("egnn", "dit"):
        assert found[backbone, "atoms", "step_seconds"] == pytest.approx(2)
        assert found[backbone, "atoms", "step_memory_mb"] == pytest.approx(1)
        assert found[backbone, "batch", "step_seconds"] == pytest.approx(1)
    text = capsys.readouterr().out
    assert "out of memory" in text
    assert "synthetic clouds" in text


def test_an_exponent_lies_in_its_interval_and_noise_widens_it():
    x = np.array([9, 18, 29, 44, 90, 181])
    rng = np.random.default_rng(0)
    widths = []
    for noise in (0.01, 0.3):
        slope, low, high = scaling.exponent(x, 2e-3 * x**1.7 * np.exp(noise * rng.normal(size=6)))
        assert low < 1.7 < high
        assert low < slope < high
        widths.append(high - low)
    assert widths[0] < 0.1 < widths[1]


def test_two_cells_make_no_exponent():
    rows = [{"method": "m", "backbone": "b", "axis": "atoms", "value": n, **fake_cell([], n, 1)} for n in (9, 18, 181)]
    assert scaling.fits(rows) == []


def test_a_cell_is_timed_in_a_process_of_its_own():
    """For once really; a cell that fails says why."""
    arguments = ["--backbone", "dit", "--size", "tiny", "--steps", "1", "--threads", "1"]
    row = scaling.time_cell([*arguments, "--method", "plain"], 9, 2)
    assert (row["atoms"], row["batch"]) == (18, 2)
    assert row["step_memory_mb"] >= 0
    assert "unknown method" in scaling.time_cell([*arguments, "--method", "nothing"], 9, 2)["error"]


def test_a_method_that_fits_no_chosen_backbone_is_refused():
    with pytest.raises(ValueError, match="nothing to time: method 'edm' needs an equivariant backbone"):
        scaling.sweep(["edm"], ["dit"], [9], [1], [])
