"""Checkpoints in the layout of the published ones become runs that give the published outputs and can be sampled.

The published files are not here. Checkpoints are made of the reference weights (`tests/parity/README.md`), which carry
the published names, and of what `EnVariationalDiffusion` adds to them: the prefix `dynamics.`, `gamma.gamma`, `buffer`.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import bench
from bench.backbones.dit import DiT, DiTConfig
from bench.backbones.egnn import EGNN, EGNNConfig
from bench.cli.main import main
from bench.data import qm9
from bench.published import weights as reader
from bench.published.parity import Comparison, Fixture
from bench.records.schema import MANIFEST
from bench.records.store import read_json
from bench.structures.fetch import CannotStartError
from bench.structures.structures import Structures
from bench.symmetry.published import PublishedError, StateDict
from methods.symdiff import RotationKernel, SymDiffConfig
from methods.symdiff_as_released import PUBLISHED_NAMES, released_rotation

FOLDER = Path(__file__).parent
TOLERANCE = 1e-5
SIZES = {"sizes": {5: 1, 9: 3}}
# heads, which no shape tells; that our own 'tiny' DiT is as wide as this one says nothing of it
PAGES: dict[str, dict[str, Any]] = {
    "egnn": SIZES,
    "dit": {**SIZES, "backbone": {"n_heads": 4}},
    "symdiff": {**SIZES, "backbone": {"n_heads": 4}, "method": {"kernel_heads": 2}},
}


def fixture(name: str) -> Fixture:
    return Fixture.read(FOLDER / f"{name}.npz")


def state_dict(name: str) -> dict[str, Tensor]:
    """As `generative_model_ema.npy` of the public codes holds it."""
    gamma = fixture("noise_schedule")["gamma_T1000_s1e-05"]
    network = {f"dynamics.{key}": value for key, value in fixture(name).weights.items()}
    return {"buffer": torch.zeros(1), "gamma.gamma": gamma, **network}


def write_page(tmp_path: Path, page: dict[str, Any]) -> str:
    path = tmp_path / "page.yaml"
    path.write_text(yaml.safe_dump(page))
    return str(path)


def imported(tmp_path: Path, content: Any, page: dict[str, Any], name: str = "generative_model_ema.npy") -> int:
    """`equibench import` of a state dict or of raw bytes into tmp_path/published/run."""
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    out = str(tmp_path / "published" / "run")
    return main(["--quiet", "import", str(path), "-o", out, "--page", write_page(tmp_path, page)])


# ---------------------------------------------------------------------- what comes out


@torch.no_grad()
@pytest.mark.parametrize(("name", "method"), [("egnn", "edm"), ("dit", "plain"), ("symdiff", None)])
def test_an_imported_network_gives_the_published_output(tmp_path, name, method):
    assert imported(tmp_path, state_dict(name), PAGES[name]) == 0
    run, stored = bench.load_run(tmp_path / "published" / "run"), fixture(name)
    z_t, level = stored.state("z_t"), stored.level
    if method:
        assert run.cfg.method.name == method
        eps = run.denoiser(z_t, level)
    else:
        R = released_rotation(run.model.method.kernel, z_t, stored["base_rotation"], stored["encoder_noise"], level.t)
        assert Comparison.of("gamma", R, stored["gamma"]).error <= TOLERANCE
        eps = run.model.denoiser(z_t.rotate(R.mT), level).rotate(R)
    assert Comparison.of("eps", eps, stored["eps"]).error <= TOLERANCE
    assert not Comparison.of("eps", eps, 1.003 * stored["eps"]).passes


def test_features_have_the_published_order_and_scales(tmp_path):
    """One-hot H C N O F over 4, then the nuclear charge over 10; the schedule is the file's."""
    assert imported(tmp_path, state_dict("egnn"), PAGES["egnn"]) == 0
    task, stored = bench.load_run(tmp_path / "published" / "run").model.task, fixture("variational_bound")
    x0 = task.encode(Structures(stored.array("z"), stored.array("positions"), stored.layout.ptr.numpy()))
    assert torch.allclose(x0.h, torch.cat([stored["onehot"] / 4, stored["z"][:, None] / 10], dim=1).float())
    assert (task.process.path.n_levels, task.process.cfg.precision) == (1000, 1e-5)


def test_the_record_says_where_the_weights_come_from(tmp_path):
    assert imported(tmp_path, state_dict("symdiff"), PAGES["symdiff"]) == 0
    folder = tmp_path / "published" / "run"
    manifest = read_json(folder / "manifest.json", MANIFEST)
    assert (manifest["status"], manifest["study"], manifest["n_steps"]) == ("imported", "published", 0)
    record = manifest["imported"]
    content = (tmp_path / "generative_model_ema.npy").read_bytes()
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["file"] == "generative_model_ema.npy"
    assert "DiT_DitGaussian_dynamics" in record["network"]
    assert record["unused"][0] == "buffer"
    assert len(record["unused"]) == 5  # and the kernel's final layer, which never trains
    assert "gamma.gamma" in record["schedule"]
    assert manifest["data"]["label"] == "qm9, not read"
    assert "sizes are those of 4 molecules" in manifest["data"]["notes"][0]
    assert read_json(folder / "data.json")["sizes"] == {"5": 1, "9": 3}
    page = yaml.safe_load((folder / "config.yaml").read_text())
    assert page["backbone"] | {"n_heads": 4, "width": 32, "depth": 2, "embedding_width": 16} == page["backbone"]
    assert page["method"] | {"kernel_heads": 2, "kernel_width": 16, "noise_dims": 3} == page["method"]
    assert page["diffusion"]["edm_compat"]


@pytest.mark.parametrize("name", ["egnn", "dit", "symdiff"])
def test_an_imported_run_is_sampled_and_scored(tmp_path, capsys, name):
    page = {key: value for key, value in PAGES[name].items() if key != "sizes"}  # those of the data set
    assert imported(tmp_path, state_dict(name), {**page, "data": "mini"}) == 0
    folder = tmp_path / "published" / "run"
    assert read_json(folder / "manifest.json")["data"]["label"] == "mini (embedded, GFN2-xTB)"
    out = str(tmp_path / "a.xyz")
    assert main(["--quiet", "sample", str(folder), "-n", "4", "--steps", "3", "-o", out]) == 0
    assert main(["--quiet", "score", out, "--json"]) == 0
    assert '"n_molecules": 4' in capsys.readouterr().out


@pytest.mark.parametrize("form", ["legacy", "safetensors", "npz", "bare names", "fixture"])
def test_other_forms_of_the_same_file_give_the_same_weights(tmp_path, form):
    arrays = state_dict("egnn")
    assert imported(tmp_path, arrays, PAGES["egnn"]) == 0
    path, again = tmp_path / f"file.{form}", tmp_path / "again"
    if form == "legacy":
        torch.save(arrays, path, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        save_file(arrays, path)
    elif form == "npz":
        with path.open("wb") as file:
            np.savez(file, **{name: value.numpy() for name, value in arrays.items()})
    elif form == "bare names":
        torch.save(dict(fixture("egnn").weights), path)
    else:
        path = FOLDER / "egnn.npz"
    assert main(["--quiet", "import", str(path), "-o", str(again), "--page", str(tmp_path / "page.yaml")]) == 0
    weights = "weights.safetensors"
    assert (again / weights).read_bytes() == (tmp_path / "published" / "run" / weights).read_bytes()


def test_weights_of_rotated_data_are_named_by_the_page(tmp_path):
    assert imported(tmp_path, state_dict("dit"), {**PAGES["dit"], "method": "haar"}) == 0
    assert bench.load_run(tmp_path / "published" / "run").cfg.method.name == "haar"


# ---------------------------------------------------------------------- sizes that shapes tell


def published_state(module: nn.Module, names: dict[str, str | None], trunk: str) -> dict[str, Tensor]:
    """A module of ours under published names, shapes alone."""
    layers = {ours: theirs for theirs, ours in names.items() if ours}
    blocks = {ours: theirs for theirs, ours in reader._TRUNK.items()}
    state = {}
    for name, value in module.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if name in layers:
            theirs, value = layers[name], value[None]
        elif stem in layers:
            theirs = f"{layers[stem]}.{kind}"
            theirs = f"{trunk}.{theirs}" if theirs.startswith("final_layer") else theirs
        else:
            ours = next(ours for ours in blocks if stem.endswith(ours))
            theirs = f"{trunk}.{stem.removeprefix('trunk.').replace(ours, blocks[ours])}.{kind}"
        theirs = f"{trunk}.{theirs}" if theirs.startswith("x_embedder") else theirs
        state[theirs] = value
    return state


@pytest.mark.parametrize("size", ["published", "published_large"])
def test_published_sizes_are_told_by_shapes_with_their_heads(size):
    """SymDiff and SymDiff*: every option from shapes, and heads from the size that they fit."""
    with torch.device("meta"):
        backbone = DiT(DiTConfig(**DiT.sizes[size]), {"x": 3, "h": 6})
        entry = reader.methods["symdiff_as_released"]
        kernel_config = SymDiffConfig(**entry.build.sizes[size])
        kernel = RotationKernel(kernel_config, backbone.pair_embedding)
    arrays = published_state(backbone, reader._DIT, "k") | published_state(kernel, PUBLISHED_NAMES, "gamma_enc")
    reading = reader.understand(StateDict(arrays), {}, {})
    assert (reading.backbone["size"], reading.method["size"], reading.n_features) == (size, size, 6)
    options = {key: value for key, value in reading.backbone.items() if key not in ("name", "size")}
    assert DiTConfig(**options) == DiTConfig(**DiT.sizes[size])
    told = {key: value for key, value in reading.method.items() if key not in ("name", "size")}
    assert SymDiffConfig(**told) == kernel_config
    narrower = arrays | {"gamma_dec.fc1.weight": torch.empty(63, 128, device="meta")}
    with pytest.raises(PublishedError, match="no shape tells kernel_heads"):
        reader.understand(StateDict(narrower), {}, {})


def test_published_egnn_is_told_by_shapes():
    with torch.device("meta"):
        module = EGNN(EGNNConfig(), {"x": 3, "h": 6})
    layers = {ours: theirs for theirs, ours in reader._EGNN.items()}
    arrays = {}
    for name, value in module.state_dict().items():
        block, _, rest = name.removeprefix("blocks.").partition(".")
        layer, _, kind = rest.rpartition(".")
        theirs = f"e_block_{block}.{layers[layer]}.{kind}" if name.startswith("blocks.") else name
        arrays["egnn." + theirs.replace("readout", "embedding_out")] = value
    reading = reader.understand(StateDict(arrays), {}, {})
    assert reading.backbone == {"name": "egnn", "size": "published", "width": 256, "depth": 9}
    assert set(reading.backbone_names.values()) == set(module.state_dict())


# ---------------------------------------------------------------------- what is refused


class Executed:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["torch", "pickle", "legacy"])
def test_a_file_that_would_execute_something_is_refused(tmp_path, caplog, form):
    trap = {**state_dict("egnn"), "trap": Executed(tmp_path / "trap")}
    if form == "torch":
        content = saved(trap)
    elif form == "pickle":
        content = pickle.dumps(trap)
    else:
        buffer = io.BytesIO()
        torch.save(trap, buffer, _use_new_zipfile_serialization=False)
        content = buffer.getvalue()
    assert imported(tmp_path, content, PAGES["egnn"]) == 2
    assert not (tmp_path / "trap").exists()
    (record,) = caplog.records
    assert "a state dict of tensors alone is read, and nothing is executed" in record.getMessage()
    assert "\n" not in record.getMessage()
    pickle.loads(pickle.dumps(Executed(tmp_path / "trap")))
    assert (tmp_path / "trap").exists()  # the trap is one


def test_arguments_beside_the_checkpoint_are_not_read(tmp_path, caplog):
    (tmp_path / "args.pickle").write_bytes(pickle.dumps(Executed(tmp_path / "trap")))
    assert imported(tmp_path, state_dict("egnn"), PAGES["egnn"]) == 0
    assert not (tmp_path / "trap").exists()
    (tmp_path / "args.pickle").write_bytes(pickle.dumps(Namespace(nf=256)))
    assert main(["--quiet", "import", str(tmp_path / "args.pickle"), "-o", str(tmp_path / "other")]) == 2
    assert "a state dict of tensors alone is read" in caplog.text


def altered(name: str, **arrays: Tensor | None) -> dict[str, Tensor]:
    changed = {**state_dict(name), **{key.replace("__", "."): value for key, value in arrays.items()}}
    return {key: value for key, value in changed.items() if value is not None}


E0 = "dynamics__egnn__e_block_0__gcl_0__"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (saved(state_dict("egnn"))[:5000], "cut short or damaged"),
        (b"no such thing", "no file of torch.save, or damaged"),
        (saved(torch.zeros(3)), "holds Tensor, expected a state dict"),
        (saved({"step": 3}), "holds dict, expected a state dict: names -> float arrays"),
        (b"\x93NUMPY\x01\x00 array", "is a numpy array, expected a state dict"),
        (
            altered("egnn", dynamics__gnn__weight=torch.zeros(1)),
            "'gnn.weight': no parameter of EDM's EGNN_dynamics_QM9",
        ),
        (altered("egnn", **{f"{E0}extra__bias": torch.zeros(1)}), "'egnn.e_block_0.gcl_0.extra.bias' is no parameter"),
        (altered("egnn", **{f"{E0}node_mlp__0__bias": None}), "no array for blocks.0.node_in.bias of backbone 'egnn'"),
        (
            altered("egnn", **{f"{E0}edge_mlp__0__weight": torch.zeros(32, 80)}),
            "array 'egnn.e_block_0.gcl_0.edge_mlp.0.weight' has shape (32, 80), expected (32, 66)",
        ),
        (altered("egnn", **{f"{E0}edge_mlp__0__bias": torch.full((32,), torch.nan)}), "values that are not finite"),
        (altered("egnn", gamma__gamma=None, gamma__l1__weight=torch.zeros(1, 1)), "learned noise schedule"),
        (altered("egnn", gamma__gamma=torch.linspace(-5, 10, 1001)), "no table of the schedule polynomial_2"),
        ({"weight": torch.zeros(3)}, "names begin with weight; known are"),
        (altered("symdiff", dynamics__gaussian_embedder__more=torch.zeros(1)), "'gaussian_embedder.more' is no param"),
    ],
)
def test_a_file_that_is_no_such_checkpoint_is_refused_in_one_line(tmp_path, caplog, content, words):
    assert imported(tmp_path, content, PAGES["symdiff"] if "gaussian" in words else SIZES) == 2
    (record,) = caplog.records
    assert words in record.getMessage()
    assert "generative_model_ema.npy" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize(
    ("name", "page", "words"),
    [
        ("dit", SIZES, "no shape tells n_heads, and width 32, depth 2"),
        ("symdiff", PAGES["dit"], "no shape tells kernel_heads, and kernel_width 16"),
        ("egnn", {**SIZES, "backbone": {"width": 256}}, "width is given as 256, the arrays have 32"),
        ("egnn", {**SIZES, "backbone": "dit"}, "backbone 'dit' was given, but the names are those of 'egnn'"),
        ("egnn", {**SIZES, "method": "symdiff"}, "'symdiff' has weights of its own"),
        ("symdiff", {**PAGES["symdiff"], "method": "haar"}, "method 'haar' was given, but the names are those of"),
        ("dit", {**PAGES["dit"], "method": "edm"}, "method 'edm' needs an equivariant backbone"),
        ("dit", {**PAGES["dit"], "backbone": {"n_heads": 5}}, "not divisible"),
        ("egnn", {**SIZES, "diffusion": {"precision": 1e-4}}, "given as 0.0001, the file's table has 1e-05"),
        ("egnn", {**SIZES, "task": {"include_charges": False}}, "include_charges is given otherwise"),
        ("egnn", {**SIZES, "elements": [1, 6]}, "the network has 6 features, and 2 elements"),
        ("egnn", {**SIZES, "elements": [6, 1]}, "expected nuclear charges in ascending order"),
        ("egnn", {"data": "mini", "elements": [1, 6]}, "'elements' is [1, 6], mini"),
        ("egnn", {"sizes": {0: 3}}, "'sizes' is not a mapping from numbers of atoms to molecules"),
        ("egnn", {"sizes": {"few": 3}}, "'sizes' is not a mapping from numbers of atoms to molecules"),
        ("egnn", {"size": {3: 3}}, "unknown key 'size'; did you mean 'sizes'?"),
    ],
)
def test_a_page_that_contradicts_the_file_is_refused_in_one_line(tmp_path, caplog, name, page, words):
    assert imported(tmp_path, state_dict(name), page) == 2
    (record,) = caplog.records
    assert words in record.getMessage()
    assert "\n" not in record.getMessage()
    assert not (tmp_path / "published").exists()


def test_sizes_from_a_data_set_out_of_reach_are_refused(tmp_path, caplog, monkeypatch):
    def offline():
        raise CannotStartError("no network")

    monkeypatch.delenv("QM9_DIR", raising=False)
    monkeypatch.setattr(qm9, "from_download", offline)
    assert imported(tmp_path, state_dict("egnn"), {}) == 2
    assert "data set 'qm9' could not be had" in caplog.text
    assert "give `sizes` and `elements`" in caplog.text


def test_a_folder_that_is_there_is_left_alone(tmp_path, caplog):
    assert imported(tmp_path, state_dict("egnn"), SIZES) == 0
    before = (tmp_path / "published" / "run" / "manifest.json").read_bytes()
    assert imported(tmp_path, state_dict("egnn"), SIZES) == 2
    assert "is there already" in caplog.text
    assert (tmp_path / "published" / "run" / "manifest.json").read_bytes() == before
