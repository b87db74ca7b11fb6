"""Plug-ins are found by being there, and faults of one are named without hurting the others."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import bench.registry as registry_module
from bench.config.run import ConfigError, RunConfig, build, read_run, trusted_run
from bench.config.study import load_study
from bench.references import Reference, bibliography
from bench.registry import (
    REGISTRIES,
    PluginError,
    PluginFile,
    Registry,
    UnknownNameError,
    load_file,
    measures,
    methods,
    nearest,
    registered_by,
)

PLUG_IN = """
from dataclasses import dataclass
from {package} import registry

@dataclass
class Config:
    a: int = 1

@registry.register("{name}", Config)
class Thing:
    \"\"\"First line.

    More.
    \"\"\"
"""

METHOD = """
from bench.references import EQUIBENCH
from bench.registry import methods
from bench.symmetry.contract import Method, NoOptions

@methods.register("{name}", NoOptions)
class Theirs(Method):
    \"\"\"A method of a stranger.\"\"\"

    references = (EQUIBENCH,)
"""


def packaged(folder: Path, package: str) -> Registry:
    """A registry whose package in `folder` has one file that registers and one that does not import."""
    (folder / package).mkdir(parents=True)
    init = f"from bench.registry import Registry\nregistry = Registry('thing', {package!r})\n"
    (folder / package / "__init__.py").write_text(init)
    (folder / package / "good.py").write_text(PLUG_IN.format(package=package, name="good"))
    (folder / package / "broken.py").write_text("import a_package_that_nobody_has\n")
    return Registry("thing", package, folder)


@pytest.fixture
def registry(tmp_path: Path, request: pytest.FixtureRequest):
    package = f"plugins_{abs(hash(request.node.name))}"
    made = packaged(tmp_path, package)
    made.discover()
    made.entries = sys.modules[package].registry.entries
    yield made
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


@pytest.fixture
def clean():
    """Forget what a test registers."""
    before = [dict(registry.entries) for registry in REGISTRIES]
    files, broken = dict(registry_module._loaded_files), dict(registry_module.unavailable_entry_points)
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.entries = entries
    registry_module._loaded_files.clear()
    registry_module._loaded_files.update(files)
    registry_module.unavailable_entry_points.clear()
    registry_module.unavailable_entry_points.update(broken)


# ---------------------------------------------------------------------- files of a package


def test_a_file_that_is_there_is_found(registry):
    """In a folder that `sys.path` does not hold."""
    assert str(registry.root) not in sys.path
    assert list(registry) == ["good"]
    assert registry["good"].summary == "First line."
    assert registry["good"].config().a == 1
    assert registry["good"].build.registered_name == "good"


def test_what_a_file_registers_before_it_fails_is_forgotten(tmp_path, monkeypatch):
    """Control: what a sound file registers stays."""
    package = "plugins_that_fail_late"
    made = packaged(tmp_path, package)
    monkeypatch.setattr(registry_module, "under_test", made, raising=False)
    for name, end in (("good", ""), ("broken", "import a_package_that_nobody_has\n")):
        text = f"from bench.registry import under_test\n@under_test.register({name!r}, int)\nclass A: pass\n"
        (tmp_path / package / f"{name}.py").write_text(text + end)
    assert list(made) == ["good"]
    assert list(made.unavailable) == ["broken"]


def test_a_file_that_does_not_import_is_listed_with_its_error(registry):
    list(registry)
    assert "a_package_that_nobody_has" in registry.unavailable["broken"]
    with pytest.raises(UnknownNameError, match="cannot be imported"):
        registry["broken"]


def test_an_unknown_name_gets_the_nearest_one(registry):
    with pytest.raises(UnknownNameError, match="unknown thing 'god'; did you mean 'good'"):
        registry["god"]
    assert nearest("xyz", ["b", "a"]) == "choose from a, b"


def test_one_name_belongs_to_one_file(registry):
    list(registry)
    with pytest.raises(ValueError, match="is registered by"):
        registry.register("good", dict)(type("Other", (), {"__module__": "elsewhere"}))


def test_an_absent_package_is_empty(tmp_path):
    absent = Registry("thing", "bench.nothing_of_that_name", tmp_path)
    assert list(absent) == []
    with pytest.raises(UnknownNameError, match="unknown thing 'x'; choose from none"):
        absent["x"]


def test_a_package_of_that_name_from_elsewhere_is_named(registry, tmp_path):
    other = Registry("thing", registry.package, tmp_path / "elsewhere")
    (other.root / other.package).mkdir(parents=True)
    (other.root / other.package / "__init__.py").touch()
    with pytest.raises(ImportError, match=rf"{registry.package}.* was imported before"):
        other.discover()


# ---------------------------------------------------------------------- what every plug-in of ours has


@pytest.mark.parametrize("found", REGISTRIES, ids=lambda registry: registry.kind)
def test_every_plug_in_of_ours_imports_and_has_a_summary_and_a_reference(found):
    names = list(found)
    assert names or not (found.root / found.package.replace(".", "/")).exists()
    assert found.unavailable == {}
    assert all(found[name].summary for name in names)
    assert [name for name in names if not found[name].references] == []
    assert all(isinstance(reference, Reference) for name in names for reference in found[name].references)


def test_the_bibliography_names_each_work_once():
    references = [ref for registry in REGISTRIES for name in registry for ref in registry[name].references]
    text = bibliography(references)
    assert text.count("@") == len({reference.key for reference in references}) < len(references)
    assert all(line.count("{") == line.count("}") for entry in text.split("\n\n") for line in entry.splitlines()[1:-1])
    assert "title         = {{SymDiff: Equivariant Diffusion via Stochastic Symmetrisation}}" in text
    assert "author        = {Zhang, Leo and Ashouritaklimi, Kianoosh and Teh, Yee Whye and Cornish, Rob}" in text


def test_a_reference_that_cannot_be_found_or_confused_is_refused():
    with pytest.raises(ValueError, match="can be found nowhere"):
        Reference("a2020b", "Title", ("A, B.",), 2020)
    works = [Reference("a2020b", title, ("A, B.",), 2020, arxiv="2001.00001") for title in ("One", "Two")]
    with pytest.raises(ValueError, match="two works have the key 'a2020b'"):
        bibliography(works)


# ---------------------------------------------------------------------- files that a user names


def test_a_file_that_is_named_is_registered_once(clean, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(METHOD.format(name="theirs"))
    module = load_file(path)
    assert [(registry.kind, entry.name) for registry, entry in registered_by(module)] == [("method", "theirs")]
    (tmp_path / "copy.py").write_bytes(path.read_bytes())
    assert load_file(tmp_path / "copy.py") is module


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "does not exist"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError"),
        ("x = (\n", "SyntaxError"),
        ("x = 1\n", "it registers nothing"),
        (
            METHOD.format(name="plain"),
            "'plain' is registered by methods.plain and again by equibench_plugin_mine",
        ),
        (METHOD.format(name="half") + "raise RuntimeError('after')\n", "RuntimeError: after"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_leaves_nothing(clean, tmp_path, content, why):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    before = list(methods)
    with pytest.raises(PluginError, match=why) as error:
        load_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(methods) == before


def test_an_entry_point_is_loaded_and_a_broken_one_is_listed(clean, monkeypatch):
    class Point:
        dist = None

        def __init__(self, name, load):
            self.name, self.load = name, load

    def load():
        measures.register("of_a_package", dict)(type("Measure", (), {"__doc__": "A measure."}))

    def fail():
        raise ImportError("its own requirement is missing")

    points = [Point("good", load), Point("bad", fail)]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points if group == "equibench.plugins" else [])
    monkeypatch.setattr(registry_module, "_entry_points_are_loaded", False)
    registry_module._load_entry_points()
    assert "of_a_package" in measures
    assert registry_module.unavailable_entry_points == {"bad": "ImportError: its own requirement is missing"}


def test_the_group_of_entry_points_is_the_documented_one():
    assert registry_module.entry_points is importlib.metadata.entry_points
    assert registry_module.GROUP in (registry_module.ROOT / "docs" / "extending.md").read_text()


# ---------------------------------------------------------------------- in a study and in a run's record

STUDY = """
study: theirs
plugins: [{file}]
base: {{data: {{name: mini}}, backbone: {{name: dit, size: tiny}}, method: {{name: {name}}}}}
"""


def study_file(folder: Path, name: str) -> Path:
    (folder / "mine.py").write_text(METHOD.format(name=name))
    (folder / "study.yaml").write_text(STUDY.format(file="mine.py", name=name))
    return folder / "study.yaml"


def test_a_study_names_plug_ins_relative_to_itself_and_its_runs_record_them(clean, tmp_path):
    (run,) = load_study(str(study_file(tmp_path, "in_study"))).runs
    recorded = run.to_dict()["plugins"]
    assert recorded == [{"path": str(tmp_path / "mine.py"), "sha256": PluginFile.at(tmp_path / "mine.py").sha256}]


def test_the_content_of_a_plug_in_is_part_of_a_runs_identity_and_its_place_is_not(clean, tmp_path):
    names = []
    for folder, extra in (("a", ""), ("b", ""), ("c", "# changed\n")):
        (tmp_path / folder).mkdir()
        path = study_file(tmp_path / folder, "identical")
        (path.parent / "mine.py").write_text(METHOD.format(name="identical") + extra)
        methods.entries.pop("identical", None)
        registry_module._loaded_files.clear()
        names.append(load_study(str(path)).runs[0].run_name("data"))
    assert names[0] == names[1] != names[2]


def test_a_missing_plug_in_of_a_study_is_one_line(clean, tmp_path):
    path = study_file(tmp_path, "missing")
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ConfigError, match=rf"study.yaml: plug-in {tmp_path / 'mine.py'} does not exist"):
        load_study(str(path))


def test_a_worker_loads_what_its_run_names_and_refuses_another_content(clean, tmp_path):
    page = load_study(str(study_file(tmp_path, "for_worker"))).runs[0].to_dict()
    forget(page)
    assert trusted_run(page).method.name == "for_worker"
    forget(page)
    (tmp_path / "mine.py").write_text(METHOD.format(name="for_worker") + "# changed\n")
    with pytest.raises(ConfigError, match=r"mine\.py has changed: its SHA-256 is"):
        trusted_run(page)


def test_a_record_alone_executes_nothing(clean, tmp_path):
    """The file that a stranger's config.yaml names is executed only where the user names it too."""
    page = load_study(str(study_file(tmp_path, "recorded"))).runs[0].to_dict()
    forget(page)
    touched = tmp_path / "touched"
    (tmp_path / "mine.py").write_text(METHOD.format(name="recorded") + f"open({str(touched)!r}, 'w').close()\n")
    page["plugins"] = [vars(PluginFile.at(tmp_path / "mine.py"))]
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(page))
    with pytest.raises(ConfigError, match=r"needs plug-in .*mine\.py; if you trust that file, give --plugin"):
        read_run(run)
    assert not touched.exists()
    load_file(tmp_path / "mine.py")
    assert read_run(run).method.name == "recorded"
    assert touched.exists()


def forget(page: dict) -> None:
    """As in a fresh process."""
    methods.entries.pop(page["method"]["name"], None)
    for file in page["plugins"]:
        registry_module._loaded_files.pop(file["sha256"], None)


def test_a_study_without_plug_ins_keeps_its_names(clean):
    page = {"study": "s", "method": "plain", "backbone": {"name": "dit", "size": "tiny"}, "data": "mini"}
    assert build(RunConfig, page).run_name("data") == build(RunConfig, {**page, "plugins": []}).run_name("data")


# ---------------------------------------------------------------------- what lies in the working directory

HOSTILE = "raise RuntimeError('a file of the working directory was imported')\n"
START = "import sys\nfrom bench.cli.main import main\nsys.exit(main(sys.argv[1:]))"  # as the script `equibench` does


@pytest.fixture
def hostile_folder(tmp_path) -> Path:
    """A study, beside methods/, bench.py, yaml.py and others of our own names and of libraries'."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text(HOSTILE)
    for name in ("bench.py", "yaml.py", "numpy.py", "submitit.py", "torch.py", "json.py"):
        (tmp_path / name).write_text(HOSTILE)
    (tmp_path / "mine.py").write_text(METHOD.format(name="mine"))
    (tmp_path / "study.yaml").write_text(
        "study: here\n"
        "base:\n"
        "  data: {name: mini, n_train: 64}\n"
        "  method: haar\n"
        "  backbone: {name: dit, size: tiny}\n"
        "  train: {n_steps: 2, batch_size: 4, valid_every: 2, n_valid: 8, log_every: 1}\n"
        "  sample: {n_molecules: 2, n_steps: 2, batch_size: 2}\n"
        "  measures: {likelihood: {n_molecules: 2, n_passes: 1}}\n"
        "launch: {cluster: local, n_parallel: 1}\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param("list", id="list"),
        pytest.param("run study.yaml", id="submitit and the worker"),
        pytest.param("run study.yaml launch.cluster=debug", id="in the launcher", marks=pytest.mark.slow),
        pytest.param("run study.yaml train.n_processes=2", id="ranks", marks=pytest.mark.slow),
        pytest.param("plan study.yaml", id="plan", marks=pytest.mark.slow),
        pytest.param("check mine.py", id="check", marks=pytest.mark.slow),
    ],
)
def test_files_of_the_working_directory_do_not_shadow_ours(arguments, hostile_folder):
    done = started(hostile_folder, *arguments.split())
    logs = "".join(p.read_text() for p in hostile_folder.glob("runs/here/.submitit/*/*err"))
    assert done.returncode == 0, done.stdout + done.stderr + logs


def test_an_interpreter_that_looks_there_first_finds_them(hostile_folder):
    """Control."""
    unsafe = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    control = subprocess.run(
        [sys.executable, "-c", "import yaml"], cwd=hostile_folder, capture_output=True, text=True, env=unsafe
    )
    assert "was imported" in control.stderr


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(registry_module.ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONSAFEPATH", None)
    line = [sys.executable, "-P", "-c", START, *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, env=environment)
