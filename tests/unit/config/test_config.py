"""Configuration: every fault is one line that names the key, what came and what was expected."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import for_molecules, run_config

from bench.config.run import (
    Clip,
    ConfigError,
    LaunchConfig,
    RunConfig,
    TrainConfig,
    build,
    read_run,
    reason_to_skip,
    resolve,
    weights_run,
)
from bench.config.study import load_study, resolve_study, selection, set_dotted, study_names
from bench.records.inputs import parse_yaml
from bench.registry import backbones, methods

PAGE: dict[str, Any] = {
    "study": "s",
    "base": {
        "method": "plain",
        "backbone": {"name": "dit", "size": "tiny"},
        "data": {"name": "mini"},
        "train": {"lr": 1e-4},
    },
}


def base(**changes: Any) -> dict[str, Any]:
    return {"study": "s", **PAGE["base"], **changes}


def test_a_page_becomes_typed_options():
    cfg = build(RunConfig, base(group="SO3", train={"clip": "queue", "lr": 1, "n_steps": 5}))
    assert cfg.group == "SO3"
    assert cfg.train.clip is Clip.QUEUE
    assert cfg.train.lr == 1.0
    assert isinstance(cfg.train.lr, float)
    assert cfg.method.to_plain() == {"name": "plain"}
    assert isinstance(cfg.backbone.options, backbones["dit"].config)
    assert cfg.backbone.options.width == backbones["dit"].build.sizes["tiny"]["width"]


SCALARS = [
    ("train.lr", "1e-4", 1e-4),
    ("train.lr", "1", 1.0),
    ("train.max_seconds", "1e3", 1000.0),
    ("train.lr", "'1e-4'", "'train.lr' is '1e-4', expected float"),
    ("train.max_seconds", "1:30", "'train.max_seconds' is '1:30', expected float"),
    ("seed", "010", "'seed' is '010', expected int; write it without the leading zero, 10"),
    ("launch.timeout_min", "24:00:00", "'launch.timeout_min' is '24:00:00', expected int; write one number, without"),
    ("seed", "2024-01-01", "'seed' is '2024-01-01', expected int"),
    ("seed", "1.0", "'seed' is 1.0, expected int"),
    ("seed", "[1", "not readable as YAML"),
    ("train.bf16", "on", "'train.bf16' is 'on', expected bool"),
    ("group", "3", "'group' is 3, expected str"),
    ("launch.slurm_options", "account", "'launch.slurm_options' is 'account', expected a mapping"),
    ("launch.slurm_options", "{nodes: 1.5}", "'launch.slurm_options.nodes' is 1.5, expected str or int or bool"),
    ("launch.slurm_options", "account=x", "'launch.slurm_options' is 'account=x', expected a mapping"),
    ("train.device", "gpu", "'train.device' is 'gpu', expected cpu, cuda or cuda:N"),
    ("train.device", "cuda:one", "'train.device' is 'cuda:one', expected cpu, cuda or cuda:N"),
    ("backbone.width", "3", "'backbone.width' cannot be set: 'backbone' is 'egnn', expected a mapping"),
    ("measures.likelihood", "3", "'measures.likelihood' is 3, expected its options or null"),
    ("measures.likelihod", "{}", "unknown measure 'likelihod'; did you mean 'likelihood'"),
]


@pytest.mark.parametrize(("key", "text", "expected"), SCALARS)
def test_a_scalar_is_what_it_looks_like_or_refused_in_one_line(tmp_path: Path, key: str, text: str, expected: Any):
    file = tmp_path / "mine.yaml"
    file.write_text("study: s\nbase: {method: plain, backbone: egnn, data: mini}\n")
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=re.escape(expected.removeprefix("'backbone.width' "))) as caught:
            load_study(str(file), [f"{key}={text}"])
        assert "\n" not in str(caught.value)
    else:
        run = load_study(str(file), [f"{key}={text}"]).runs[0]
        found = getattr(run.train, key.removeprefix("train."))
        assert (found, type(found)) == (expected, float)


CASES = [  # as in a study file that YAML 1.1 misreads: times to base 60, numbers to base 8
    ("time: 24:00:00", {"time": "24:00:00"}),
    ("account: 0123", {"account": "0123"}),
    ("begin: 16:00", {"begin": "16:00"}),
    ("nodes: 2", {"nodes": 2}),
    ("nice: 0", {"nice": 0}),
    ("exclusive: true", {"exclusive": True}),
    ("constraint: '[rack1*2&rack2*4]'", {"constraint": "[rack1*2&rack2*4]"}),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_options_of_slurm_are_what_is_written(text: str, expected: dict[str, Any]):
    launch = build(LaunchConfig, {"slurm_options": parse_yaml(f"{{{text}}}")})
    assert launch.sbatch_options == {"requeue": True, **expected}


@pytest.mark.parametrize("off", ["false", "null"])
def test_an_option_of_slurm_can_be_switched_off(off: str):
    """One of our own too; control: it is on by itself."""
    assert build(LaunchConfig, {"slurm_options": parse_yaml(f"{{requeue: {off}, x: {off}}}")}).sbatch_options == {}
    assert build(LaunchConfig, {}).sbatch_options == {"requeue": True}


@pytest.mark.parametrize(
    "text", ["a\nrm -rf x", "a\r", "a;b", "a'b", 'a"b', "a b", "$(a)", "`a`", "a\\b", "\x1b[2J", "", "é"]
)
def test_what_a_batch_script_could_obey_is_refused(text: str):
    """In values and names of options and in the partition. Control: a plain word."""
    pages = [{"slurm_partition": text}, {"slurm_options": {"account": text}}, {"slurm_options": {text: "x"}}]
    for page in pages:
        with pytest.raises(ConfigError, match=r"'launch\.slurm_") as caught:
            build(LaunchConfig, page)
        assert str(caught.value).isprintable()
    build(LaunchConfig, {"slurm_partition": "gpu", "slurm_options": {"account": "chemistry"}})


def test_a_study_needs_text_for_a_name(tmp_path: Path):
    for text, message in (("2024", "'study' is 2024, expected text; write it in quotes"), ("''", "'study' is ''")):
        (tmp_path / "mine.yaml").write_text(f"study: {text}\nbase: {{method: plain, backbone: egnn, data: mini}}\n")
        with pytest.raises(ConfigError, match=message):
            load_study(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("study: '2024'\nbase: {method: plain, backbone: egnn, data: mini}\n")
    assert load_study(str(tmp_path / "mine.yaml")).name == "2024"  # control


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trian": {}}, "unknown key 'trian'; did you mean 'train'"),
        ({"train": {"learning_rate": 1}}, "unknown key 'train.learning_rate'"),
        ({"train": {"n_steps": "many"}}, "'train.n_steps' is 'many', expected int"),
        ({"train": {"n_steps": True}}, "'train.n_steps' is True, expected int"),
        ({"train": {"n_steps": 1.5}}, "'train.n_steps' is 1.5, expected int"),
        ({"train": {"lr": "fast"}}, "'train.lr' is 'fast', expected float"),
        ({"train": {"clip": "hard"}}, "'train.clip' is 'hard', expected one of queue, norm"),
        ({"train": 3}, "train is 3, expected a mapping"),
        ({"method": {"name": "symdif"}}, "unknown method 'symdif'; did you mean 'symdiff'"),
        ({"method": {}}, "'method.name' is missing; choose from"),
        ({"method": {"name": "plain", "depth": 3}}, "unknown key 'method.depth'; it has no options"),
        ({"backbone": {"name": "dit", "size": "tny"}}, "'backbone.size' is 'tny'; did you mean 'tiny'"),
        ({"backbone": {"name": "dit", "width": "wide"}}, "'backbone.width' is 'wide', expected int"),
        ({"method": {"name": "plain", "size": "tiny"}}, "'method.size' is 'tiny'; plain has no named sizes"),
    ],
)
def test_a_fault_is_one_line_that_names_the_key(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(RunConfig, base(**changes))
    assert "\n" not in str(caught.value)


def test_a_required_key_is_named():
    with pytest.raises(ConfigError, match="'data' is missing; it has no default"):
        build(RunConfig, {k: v for k, v in base().items() if k != "data"})


def test_explicit_options_override_a_named_size():
    cfg = build(RunConfig, base(backbone={"name": "dit", "size": "tiny", "depth": 3}))
    assert (cfg.backbone.options.depth, cfg.backbone.options.width) == (
        3,
        backbones["dit"].build.sizes["tiny"]["width"],
    )


@pytest.mark.parametrize("name", [m for m in methods if hasattr(methods[m].build, "sizes")])
def test_methods_may_have_named_sizes_like_backbones(name):
    for size, options in methods[name].build.sizes.items():
        cfg = build(RunConfig, base(method={"name": name, "size": size}))
        assert dataclasses.asdict(cfg.method.options).items() >= options.items()


def test_a_page_written_and_read_is_the_same_run(tmp_path: Path):
    cfg = run_config("symdiff", "dit", n_steps=7, clip="queue")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg.to_dict(), sort_keys=False))
    assert read_run(tmp_path) == cfg
    with pytest.raises(ConfigError, match="no run folder"):
        read_run(tmp_path / "nowhere")


def test_identity_follows_what_decides_the_weights():
    cfg = build(RunConfig, base())
    identity = cfg.identity("f")
    for changes in (
        {"seed": 1},
        {"group": "SO3"},
        {"train": {"lr": 2e-4}},
        {"train": {"batch_size": 8}},
        {"method": "haar"},
        {"backbone": {"name": "dit", "size": "small"}},
        {"diffusion": {"n_levels": 2000}},
    ):
        assert build(RunConfig, base(**changes)).identity("f") != identity, changes
    assert cfg.identity("other data") != identity


def test_identity_ignores_what_does_not():
    """What is logged, which kernels run, and the study a run belongs to."""
    identity = build(RunConfig, base()).identity("f")
    for changes in (
        {"study": "other"},
        {"train": {"lr": 1e-4, "log_every": 7, "checkpoint_seconds": 1.0}},
        {"train": {"lr": 1e-4, "kernels": "off"}},
    ):
        assert build(RunConfig, base(**changes)).identity("f") == identity, changes


@pytest.mark.parametrize(
    ("changes", "trains_alike"),
    [
        ({"train": {"lr": 1e-4, "n_steps": 7}}, False),  # a run is never extended
        ({"train": {"lr": 1e-4, "max_seconds": 7}}, False),
        ({"sample": {"n_molecules": 3}}, True),
        ({"sample": {"n_steps": 10}}, True),
        ({"measures": {"likelihood": {"n_passes": 1}}}, True),
        ({"measures": {"likelihood": None}}, True),
    ],
)
def test_every_setting_of_a_result_names_the_run_and_weights_depend_on_those_of_training_alone(changes, trains_alike):
    before, after = build(RunConfig, base()), build(RunConfig, base(**changes))
    assert after.run_name("f") != before.run_name("f")
    assert (after.training_identity("f") == before.training_identity("f")) == trains_alike


# ---------------------------------------------------------------------- studies


def test_a_grid_is_the_product_of_its_lists_and_grids_are_united():
    grid = [
        {"method": ["plain", "haar"], "seed": [0, 1]},
        {"method": [{"name": "edm"}], "backbone": ["egnn"], "train.lr": [1e-3]},
    ]
    runs = resolve_study({**PAGE, "grid": grid}, "here").runs
    assert [(r.method.name, r.seed, r.train.lr) for r in runs] == [
        ("plain", 0, 1e-4),
        ("plain", 1, 1e-4),
        ("haar", 0, 1e-4),
        ("haar", 1, 1e-4),
        ("edm", 0, 1e-3),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"seed": 3}}, "grid key 'seed' is 3, expected a list"),
        ({"grid": {"seed": []}}, "expected a list of values"),
        ({"bse": {}}, "unknown key 'bse'; did you mean 'base'"),
        ({"study": None}, "'study' is missing"),
        ({"launch": {"cluster": "cloud"}}, "'launch.cluster' is 'cloud', expected local, debug or slurm"),
        ({"launch": {"gpus": 1}}, "unknown key 'launch.gpus'"),
    ],
)
def test_a_fault_of_a_study_page_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        resolve_study({**PAGE, **change}, "here")


def test_arguments_override_a_study(tmp_path: Path):
    page = tmp_path / "mine.yaml"
    page.write_text(yaml.safe_dump({**PAGE, "grid": {"seed": [0, 1]}}))
    study = load_study(str(page), ["train.n_steps=3", "launch.n_parallel=1"])
    assert [run.train.n_steps for run in study.runs] == [3, 3]
    assert study.launch.n_parallel == 1
    with pytest.raises(ConfigError, match="not of the form key=value"):
        load_study(str(page), ["train.n_steps"])
    with pytest.raises(ConfigError, match=r"unknown key 'train\.steps'"):
        load_study(str(page), ["train.steps=3"])
    page.write_text("a: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_study(str(page))
    with pytest.raises(ConfigError, match="no study at 'qm9_smok'; did you mean 'qm9_smoke'"):
        load_study("qm9_smok")


GRIDS = [
    {"method": ["plain", "haar"], "seed": [0, 1], "train.lr": [1e-3, 1e-4]},
    {"method": ["edm"], "backbone": ["egnn"], "seed": [0]},
]


def grid_study(folder: Path, *overrides: str) -> list[RunConfig]:
    page = folder / "mine.yaml"
    page.write_text(yaml.safe_dump({**PAGE, "grid": GRIDS}))
    return load_study(str(page), list(overrides)).runs


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=7", [("plain", 7), ("haar", 7), ("edm", 7)]),
        ("seed=[0,2]", [("plain", 0), ("plain", 2), ("haar", 0), ("haar", 2), ("edm", 0), ("edm", 2)]),
        ("method=symdiff", [("symdiff", 0), ("symdiff", 1), ("symdiff", 0)]),
        ("group=SO3", [("plain", 0), ("plain", 1), ("haar", 0), ("haar", 1), ("edm", 0)]),
    ],
)
def test_an_argument_takes_the_place_of_a_grid_s_values(tmp_path: Path, override: str, expected: list):
    """In all grids; control: a key of no grid leaves them as they are."""
    runs = grid_study(tmp_path, override, "train.lr=0.5")
    assert [(run.method.name, run.seed) for run in runs] == expected
    assert {run.train.lr for run in runs} == {0.5}
    assert {run.group for run in runs} == {"SO3" if override.startswith("group") else "O3"}


@pytest.mark.parametrize(("override", "axis"), [("backbone.size=tiny", "backbone"), ("train={lr: 1}", "train.lr")])
def test_an_argument_that_a_grid_would_hide_is_refused(tmp_path: Path, override: str, axis: str):
    with pytest.raises(ConfigError, match=f"the study's grid sets '{axis}'; give '{axis}=...' whole"):
        grid_study(tmp_path, override)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["method=haar"], 4),
        (["method=[haar,edm]", "seed=0"], 3),
        (["seed=0", "seed=1"], 9),
        (["backbone=egnn"], 1),
        (["backbone={name: dit, size: tiny}"], 8),
        (["backbone.size=tiny", "train.lr=1e-3"], 4),
        ([], 9),
    ],
)
def test_runs_are_chosen_by_their_settings(tmp_path: Path, only: list[str], expected: int):
    runs = grid_study(tmp_path)
    assert sum(map(selection(only, runs), runs)) == expected


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["method=symdiff"], r"no run of this study has method \['symdiff'\]; there are plain, haar, edm"),
        (["sed=0"], "no run of this study has a setting 'sed'; give one such as method"),
        (["method=edm", "seed=1"], "no run of this study has all of method=edm seed=1"),
        (["haar"], "not of the form key=value"),
    ],
)
def test_a_choice_without_runs_is_refused(tmp_path: Path, only: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        selection(only, grid_study(tmp_path))


@pytest.mark.parametrize("name", study_names())
def test_every_study_of_ours_resolves(name):
    study = load_study(name)
    assert study.runs
    assert study.name == name


@pytest.mark.parametrize(
    ("name", "other", "changed"),
    [
        ("qm9_bf16", "qm9_laptop", {"train.bf16": True}),
        ("symdiff_kernels", "qm9_laptop", {"measures.likelihood.n_mixture_draws": 8}),
        ("qm9_data", "qm9_laptop", {}),
        ("qm9_length", "qm9_laptop", {}),
    ],
)
def test_studies_that_are_read_beside_another_differ_from_it_in_what_they_say_alone(name, other, changed):
    base = load_study(other).page["base"]
    assert (load_study(name).page["base"] != base) == bool(changed)
    for key, value in changed.items():
        set_dotted(base, key, value)
    assert load_study(name).page["base"] == base


def test_the_smoke_study_runs_every_plug_in_and_shows_a_refusal():
    runs = load_study("qm9_smoke").runs
    fitting = [cfg for cfg in runs if reason_to_skip(cfg) is None]
    assert {cfg.method.name for cfg in fitting} == set(methods)
    assert {cfg.backbone.name for cfg in fitting} == set(for_molecules())
    assert 0 < len(fitting) < len(runs)
    assert {cfg.method.name for cfg in load_study("qm9_laptop").runs} != set(methods)  # control


def test_cells_without_sense_are_skipped_with_a_reason():
    for method in methods:
        for backbone in for_molecules():
            reason = reason_to_skip(run_config(method, backbone))
            wanted = methods[method].build.needs_equivariant_backbone and not backbones[backbone].build.equivariant
            assert (reason is not None) == wanted
            assert reason is None or f"got {backbone!r}; choose e3 or egnn or visnet" in reason
            if reason is not None and (other := methods[method].build.otherwise) is not None:
                assert reason.endswith(f"or method {other!r}")
                assert reason_to_skip(run_config(other, backbone)) is None


def test_a_method_that_trains_nothing_names_the_run_that_does():
    for method in methods:
        parent = weights_run(run_config(method, "dit"))
        if methods[method].build.weights_of is None:
            assert parent is None
        else:
            assert parent is not None
            assert parent.method.name == methods[method].build.weights_of
            assert methods[parent.method.name].build.weights_of is None


def borrowing(parent: Any) -> RunConfig:
    page = {"name": "orbit_average", "n_draws": 2, "weights_of": parent}
    return dataclasses.replace(run_config("plain", "dit"), method=resolve(methods, page, "method"))


def test_the_run_to_take_weights_from_can_be_chosen_with_its_options():
    """By name, or by name and options, checked like any others; only a method that has no `predict` of its own."""
    by_name, by_page = weights_run(borrowing({"name": "plain"})), weights_run(borrowing({"name": "haar"}))
    assert by_name is not None
    assert by_page is not None
    assert (by_name.method.name, by_page.method.name) == ("plain", "haar")
    assert build(RunConfig, borrowing("plain").to_dict()).method.options.weights_of == {"name": "plain"}
    assert reason_to_skip(borrowing({"name": "plain"})) is None
    for parent in ("symdiff", "symdiff_haar", "orbit_average"):
        reason = reason_to_skip(borrowing({"name": parent}))
        assert reason is not None
        assert f"{parent!r} was not: that method defines predict" in reason
    with pytest.raises(ConfigError, match="unknown method 'plein'; did you mean 'plain'"):
        weights_run(borrowing({"name": "plein"}))
    with pytest.raises(ValueError, match="'n_draws' of orbit_average is 0, expected at least 1"):
        resolve(methods, {"name": "orbit_average", "n_draws": 0}, "method")


def test_defaults_are_the_published_training():
    cfg = TrainConfig()
    assert (cfg.batch_size, cfg.lr, cfg.weight_decay, cfg.ema_decay, cfg.clip, cfg.clip_norm) == (
        256,
        2e-4,
        1e-12,
        0.9999,
        "norm",
        2.0,
    )


def test_the_group_is_the_first_of_the_task_unless_it_is_given():
    page = {"study": "s", "method": "plain", "backbone": "mlp", "data": {"name": "toys", "toy": "planar_one"}}
    assert build(RunConfig, page).group == "O3"
    assert build(RunConfig, page | {"task": "planar"}).group == "SO2"
    assert build(RunConfig, page | {"task": "rigid", "group": "O3"}).group == "O3"
    with pytest.raises(ConfigError, match="'group' is 'O3', expected SO2 for task 'planar'"):
        build(RunConfig, page | {"task": "planar", "group": "O3"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diffusion": {"precision": 0.7}}, "'diffusion.precision' is 0.7"),
        ({"train": {"weight_decay": -1.0}}, "'train.weight_decay' is -1.0, expected 0 or more"),
        ({"train": {"keep_best": True, "log_every": 3, "valid_every": 5}}, "a multiple of train.log_every = 3"),
        ({"measures": {"likelihood": {"name": "optimum"}}}, "'measures.likelihood.name' is 'optimum'"),
        ({"sample": {"weights": "best"}}, "'sample.weights' is 'best'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, message):
    page = {"study": "s", "method": "plain", "backbone": "dit", "data": "mini"}
    build(RunConfig, page)
    with pytest.raises(ConfigError, match=message):
        build(RunConfig, page | change)
