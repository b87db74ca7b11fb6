"""The import rule, held by reading syntax trees; each check has a fabricated file that breaks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.registry import methods

ROOT = Path(__file__).parents[2]
OURS = ("bench", "methods", "analysis")

# A file imports from lines above its own, from its own line, or, where the line stands under APART, from its own
# package alone. An entry covers a module, or a package and all in it.
LINES = [
    line.split()
    for line in (
        "bench.structures.structures bench.structures.files bench.structures.sdf bench.records.npz bench.records.pages bench.records.inputs bench.geometry.state "
        "bench.geometry.matrix_fisher bench.geometry.groups bench.streams bench.records.store bench.registry bench.records.lock bench.launch.queue "
        "bench.launch.launches bench.launch.status bench.run.clock bench.run.denormals bench.kernels.native bench.kernels.threads bench.nn.static",
        "bench.diffusion bench.symmetry.published bench.symmetry.orbit",
        "bench.symmetry.contract bench.backbones bench.data bench.metrics",
        "methods",
        "bench.config.run bench.published.weights bench.published.parity bench.config.study",
        "bench.run.model bench.run.batches bench.run.parts bench.kernels.adamw bench.run.optimiser bench.run.checkpoint",
        "bench.run.parallel bench.run.watch bench.run.resume bench.run.train bench.run.sample bench.run.evaluate bench.run.compile "
        "bench.run.provenance bench.run.execute bench.run.roofline bench.run.timing bench.launch.job",
        "bench.launch.submit bench.launch.plan bench.launch.publish bench.cli.listing bench.cli.score bench.published.importing bench.run.scaling "
        "bench.lease bench.mini.card bench.mini.make",
        "bench.cli.main",
    )
]
APART = (2,)
FORBIDDEN = {"methods": ("bench.data", "bench.metrics")}  # so that no method can see a test set
FOR_ANALYSIS = "bench.records"
LAZY_ANALYSIS = "bench.cli.main"  # alone may call analysis, and inside functions

PLACES = {"torch_geometric": ("bench.data", "bench.backbones.e3"), "e3nn": ("bench.backbones.e3",)}
NEVER_AT_MODULE_LEVEL = ("submitit", "omegaconf", "e3nn")  # anywhere; nor rdkit, but in WITH_RDKIT
MAKING_MINI = ("bench.mini.graphs", "bench.mini.card", "bench.mini.make")
WITH_RDKIT = ("bench.structures.sdf", "bench.metrics", "analysis.figures", *MAKING_MINI)
# words that are also the name of something other than a method
OTHER_MEANINGS = {("bench.metrics.stability", "edm")}  # the bond table of that paper


@dataclass(frozen=True)
class Import:
    """One imported module; `deferred` inside a function, and not counted at all under TYPE_CHECKING."""

    module: str
    line: int
    deferred: bool


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def sources(*packages: str) -> dict[str, str]:
    """Module name -> text, of every file of our packages."""
    return {module_name(p): p.read_text() for package in packages for p in sorted((ROOT / package).rglob("*.py"))}


def imports(source: str) -> Iterator[Import]:
    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            yield from (Import(resolve(node.module or "", alias.name), node.lineno, deferred) for alias in node.names)
        deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deferred)

    return visit(ast.parse(source), False)


def resolve(module: str, name: str) -> str:
    """`from bench import files` names the module bench.structures.files, `from bench.structures.files import read` does so too."""
    inner = ROOT.joinpath(*module.split("."), name)
    return f"{module}.{name}" if inner.is_dir() or inner.with_suffix(".py").is_file() else module


def covers(entry: str, module: str) -> bool:
    return module == entry or module.startswith(f"{entry}.")


def place(module: str) -> tuple[int, str] | None:
    """Line of a module and the entry that covers it."""
    found = ((i, entry) for i, line in enumerate(LINES) for entry in line if covers(entry, module))
    return next(found, None)


def layer_faults(module: str, source: str) -> list[str]:
    faults = []
    for imported in imports(source):
        if imported.module.split(".")[0] not in OURS or imported.module == "bench":
            continue
        at = f"{module}:{imported.line} imports {imported.module}"
        if covers("analysis", module):
            if not covers("analysis", imported.module) and not covers(FOR_ANALYSIS, imported.module):
                faults.append(f"{at}; analysis reads records alone")
        elif covers("analysis", imported.module):
            if module != LAZY_ANALYSIS or not imported.deferred:
                faults.append(f"{at}; only {LAZY_ANALYSIS} does, inside functions")
        elif module == "bench":
            if not imported.deferred:
                faults.append(f"{at} at module level")
        else:
            mine, theirs = place(module), place(imported.module)
            if mine is None or theirs is None:
                faults.append(f"{at}, and one of them stands on no line of LINES")
            elif theirs[0] > mine[0] or (theirs[0] == mine[0] and mine[0] in APART and theirs[1] != mine[1]):
                faults.append(f"{at}, from a line that is not above its own")
            elif any(covers(entry, imported.module) for entry in FORBIDDEN.get(mine[1], ())):
                faults.append(f"{at}; {mine[1]} never sees that")
    return faults


def package_faults(module: str, source: str) -> list[str]:
    """torch-geometric and e3nn outside their places, and what must load only when it is used."""
    faults = []
    for imported in imports(source):
        top = imported.module.split(".")[0]
        if top in PLACES and not any(covers(entry, module) for entry in PLACES[top]):
            faults.append(f"{module}:{imported.line} imports {top}, which belongs to {' and '.join(PLACES[top])}")
        may = any(covers(entry, module) for entry in WITH_RDKIT)
        if not imported.deferred and (top in NEVER_AT_MODULE_LEVEL or (top == "rdkit" and not may)):
            faults.append(f"{module}:{imported.line} imports {top} at module level")
        if top == "torch" and covers("analysis", module):
            faults.append(f"{module}:{imported.line} imports torch, which tables do without")
    return faults


def method_faults(module: str, source: str, names: set[str]) -> list[str]:
    """String constants of a file of bench/ that are a registered method's name, and imports of its file."""
    faults = [
        f"{module}:{imported.line} imports {imported.module}"
        for imported in imports(source)
        if covers("methods", imported.module)
    ]
    for node in ast.walk(ast.parse(source)):
        word = node.value if isinstance(node, ast.Constant) else None
        if isinstance(word, str) and word in names and (module, word) not in OTHER_MEANINGS:
            faults.append(f"{module}:{node.lineno} names the method {word!r}")
    return faults


def all_faults(check, *packages: str) -> list[str]:
    return [fault for module, source in sources(*packages).items() for fault in check(module, source)]


def test_imports_run_one_way():
    assert all_faults(layer_faults, *OURS) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bench.geometry.groups", "from bench.diffusion.schedule import NoiseLevel"),
        ("bench.diffusion.process", "from bench.symmetry.contract import Method"),
        ("bench.metrics.stability", "from bench.data import qm9"),
        ("bench.backbones.egnn", "from bench.symmetry.contract import Method"),
        ("methods.plain", "from bench.data.qm9 import load"),
        ("methods.plain", "def peek():\n    from bench.metrics.scores import score"),
        ("methods.plain", "from bench.config.run import RunConfig"),
        ("bench.run.train", "from bench.launch.submit import plan"),
        ("bench.launch.submit", "def show():\n    from analysis.report import build"),
        ("bench.cli.main", "from analysis.report import build"),
        ("analysis.load", "from bench.config.run import RunConfig"),
        ("analysis.load", "from bench.structures import files"),
        ("bench", "from bench.run.sample import load_run"),
        ("bench.nowhere", "from bench.records.store import read_json"),
    ],
)
def test_an_import_against_the_rule_is_found(module: str, source: str):
    assert len(layer_faults(module, source)) == 1


def test_imports_for_types_alone_are_free():
    assert layer_faults("bench.geometry.groups", "if TYPE_CHECKING:\n    from bench.launch.submit import plan") == []


def test_packages_stay_where_they_belong():
    assert all_faults(package_faults, *OURS) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bench.backbones.dit", "import torch_geometric.nn"),
        ("bench.backbones.e3", "from e3nn import o3"),
        ("methods.plain", "def f():\n    from e3nn import o3"),
        ("methods.plain", "def f():\n    from torch_geometric.data import Data"),
        ("bench.launch.submit", "import submitit"),
        ("bench.run.sample", "from rdkit import Chem"),
        ("bench.config.study", "from omegaconf import OmegaConf"),
        ("bench.structures.sizes", "try:\n    from rdkit import Chem\nexcept ImportError:\n    pass"),
        ("analysis.stats", "def f():\n    import torch"),
    ],
)
def test_a_package_out_of_place_is_found(module: str, source: str):
    assert len(package_faults(module, source)) == 1


def test_a_deferred_import_and_the_backbone_that_may_are_let_through():
    assert package_faults("bench.config.study", "def load():\n    from omegaconf import OmegaConf") == []
    assert package_faults("bench.backbones.e3", "import torch_geometric.nn\ndef f():\n    from e3nn import o3") == []


def test_no_file_of_bench_names_a_method():
    names = set(methods)
    assert len(names) > 1
    assert all_faults(lambda module, source: method_faults(module, source, names), "bench") == []


@pytest.mark.parametrize(
    "source", ["if cfg.method == 'one':\n    pass", "from methods import one", "import methods.one"]
)
def test_a_file_that_names_a_method_is_found(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "one.py").touch()
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert len(method_faults("bench.run.train", source, {"one", "two"})) == 1
    assert method_faults("bench.run.train", "'one of several'", {"one", "two"}) == []


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after running `code`."""
    show = "\nimport sys; print('loaded', *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + show], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split()[1:])


def test_training_and_sampling_load_neither_chemistry_nor_launchers():
    loaded = loaded_by("import bench.run.sample, bench.run.train")
    assert "torch" in loaded
    assert loaded.isdisjoint({"rdkit", "submitit", "omegaconf", "torch_geometric"})


def test_the_command_line_starts_without_torch():
    code = "from bench.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code"
    assert loaded_by(code).isdisjoint({"torch", "rdkit", "submitit", "omegaconf", "pandas"})


def test_plug_ins_are_listed_without_what_a_network_needs():
    """e3nn takes as long to load as torch."""
    assert loaded_by("from bench.cli.listing import listing, matrix; listing(); matrix()").isdisjoint({"e3nn", "sympy"})
    assert "e3nn" in loaded_by("from bench.backbones.e3 import E3, E3Config; E3(E3Config(8, 1, 1, 4), 2)")


def test_tables_build_without_torch():
    loaded = loaded_by("import analysis.report")
    assert "pandas" in loaded
    assert loaded.isdisjoint({"torch", "omegaconf", "submitit"})


def test_what_is_loaded_is_seen():
    assert "rdkit" in loaded_by("import rdkit")
