"""Which runs' weights are published, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.launch import publish
from bench.records.store import RunFolder
from bench.run.checkpoint import about_of, load_average, read_tensors, save_average, write_average


def run_folder(root: Path, name: str, **manifest: object) -> Path:
    """A folder with averaged weights; of its manifest, what the choice reads."""
    known = {"method": {"name": "haar"}, "backbone": {"name": "dit"}, "seed": 0, "n_steps": 10, "status": "done"}
    known |= {"data": {"n_train": 100}, "parameters": {"total": 6}, **manifest}
    (root / name).mkdir(parents=True)
    (root / name / "manifest.json").write_text(json.dumps(known))
    weights = {"w": torch.linspace(-1, 1, 6) / 3}
    write_average(RunFolder(root / name).weights, weights, {"step": 10, "seconds": 1.0})
    return root / name


@pytest.fixture(autouse=True)
def _any_manifest(monkeypatch):
    monkeypatch.setattr(publish, "read_json", lambda path, _: json.loads(path.read_text()))


def published(folders: list[Path], target: Path) -> set[str]:
    publish.publish_weights(folders, target)
    return {path.parent.name for path in target.glob("*/weights.safetensors")}


def test_the_lowest_seed_of_each_method_and_backbone_is_published(tmp_path):
    runs = tmp_path / "runs"
    folders = [
        run_folder(runs, "haar-s2", seed=2),
        run_folder(runs, "haar-s1", seed=1),
        run_folder(runs, "haar-s1-long", seed=1, n_steps=20),
        run_folder(runs, "haar-s0", status="failed"),
        run_folder(runs, "plain-s3", seed=3, method={"name": "plain"}),
        run_folder(runs, "haar-egnn", backbone={"name": "egnn"}),
        run_folder(runs, "large", method={"name": "large"}, parameters={"total": 1_000_001}),
    ]
    stale = RunFolder(tmp_path / "results" / "haar-s2").weights
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier publication")
    assert published(folders, tmp_path / "results") == {"haar-s1-long", "plain-s3", "haar-egnn"}


def test_half_precision_is_said_and_read_as_float32(tmp_path):
    folder = run_folder(tmp_path, "run")
    exact = read_tensors(RunFolder(folder).weights)[0]["average/w"]
    half = tmp_path / "half.safetensors"
    assert save_average(half, RunFolder(folder).weights) == "float16"
    assert about_of(half)["stored"] == "float16"
    assert "stored" not in about_of(RunFolder(folder).weights)
    assert read_tensors(half)[0]["average/w"].dtype == torch.float16
    found = {"w": torch.nn.Parameter(torch.zeros(6))}
    assert load_average(half, found) == 10
    assert found["w"].dtype == torch.float32
    assert torch.equal(found["w"].data, exact.half().float())
    assert not torch.equal(found["w"].data, exact)


def test_numbers_beyond_float16_are_kept_in_bfloat16(tmp_path):
    write_average(tmp_path / "a.safetensors", {"w": torch.tensor([1e6, 1.0])}, {"step": 1, "seconds": 0.0})
    assert save_average(tmp_path / "b.safetensors", tmp_path / "a.safetensors") == "bfloat16"
    found = {"w": torch.nn.Parameter(torch.zeros(2))}
    load_average(tmp_path / "b.safetensors", found)
    assert found["w"].tolist() == pytest.approx([1e6, 1.0], rel=0.01)
