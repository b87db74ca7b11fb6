"""The floors of the house (docs/architecture.md), held by reading syntax trees; each check has a fabricated file that
breaks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

from bench.registry import methods

ROOT = Path(__file__).parents[2]
OURS = ("bench", "methods", "analysis")

# From the ground up. A file imports from floors below its own or from its own package: never up, and never sideways
# between packages of one floor. The files of the ground floor count as one package.
FLOORS = (
    ("bench.registry", "bench.references", "bench.streams"),
    ("bench.records", "bench.geometry"),
    ("bench.structures", "bench.diffusion", "bench.nn"),
    ("bench.symmetry", "bench.backbones", "bench.data", "bench.metrics"),
    ("bench.config", "bench.tasks", "bench.measure", "bench.kernels", "bench.mini"),
    ("bench.run",),
    ("bench.launch", "bench.published"),
    ("bench.cli",),
)
GROUND = FLOORS[0]
FLOOR_OF_METHODS = 3.5  # above the third floor, and what lies on the fourth never sees them
HIDDEN_FROM_METHODS = ("bench.data", "bench.metrics")  # so that no method can see a test set
FOR_ANALYSIS = "bench.records"
CALLS_ANALYSIS = "bench.cli"  # besides the package's own door, `bench`; both inside functions
CALLS_KERNELS = "bench.run"  # alone, so that the folder can be deleted
PLUG_INS = ("methods", "bench.backbones", "bench.data", "bench.tasks", "bench.measure")  # found through the registry

NEVER_AT_MODULE_LEVEL = ("submitit", "omegaconf", "e3nn", "torch_geometric")  # nor rdkit, but in WITH_RDKIT
WITH_RDKIT = (
    *("bench.structures.sdf", "bench.structures.chemistry", "bench.structures.perception"),
    *("bench.metrics", "bench.mini", "analysis.figures"),
)
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
    """`from bench.structures import files` names the module bench.structures.files, and `from bench.structures.files
    import read` does so too."""
    inner = ROOT.joinpath(*module.split("."), name)
    return f"{module}.{name}" if inner.is_dir() or inner.with_suffix(".py").is_file() else module


def covers(entry: str, module: str) -> bool:
    return module == entry or module.startswith(f"{entry}.")


def any_covers(entries: tuple[str, ...], module: str) -> bool:
    return any(covers(entry, module) for entry in entries)


def place(module: str) -> tuple[float, str] | None:
    """Floor of a module and its package."""
    if covers("methods", module):
        return FLOOR_OF_METHODS, "methods"
    for floor, packages in enumerate(FLOORS):
        for package in packages:
            if covers(package, module):
                return floor, "ground floor" if package in GROUND else package
    return None


# ---------------------------------------------------------------------- floors


def floor_faults(module: str, source: str) -> list[str]:
    """Imports against the rule of floors, deferred ones too."""
    faults = []
    for imported in imports(source):
        if imported.module.split(".")[0] not in OURS or imported.module == "bench":
            continue
        at = f"{module}:{imported.line} imports {imported.module}"
        if covers("analysis", module):
            if not any_covers(("analysis", FOR_ANALYSIS), imported.module):
                faults.append(f"{at}; analysis reads records alone")
        elif covers("analysis", imported.module):
            if not (covers(CALLS_ANALYSIS, module) or module == "bench") or not imported.deferred:
                faults.append(f"{at}; only {CALLS_ANALYSIS} and bench/__init__.py do, inside functions")
        elif module == "bench":
            if not imported.deferred:
                faults.append(f"{at} at module level")
        else:
            mine, theirs = place(module), place(imported.module)
            if mine is None or theirs is None:
                faults.append(f"{at}, and one of them stands on no floor")
            elif theirs[1] != mine[1] and theirs[0] >= mine[0]:
                faults.append(f"{at}, {'sideways' if theirs[0] == mine[0] else 'up'}")
            elif mine[1] == "methods" and any_covers(HIDDEN_FROM_METHODS, imported.module):
                faults.append(f"{at}, which no method sees")
    return faults


def kernel_faults(module: str, source: str) -> list[str]:
    """Imports of `bench.kernels` from anywhere but the one package that installs them."""
    return [
        f"{module}:{imported.line} imports {imported.module}; only {CALLS_KERNELS} does"
        for imported in imports(source)
        if covers("bench.kernels", imported.module) and not any_covers((CALLS_KERNELS, "bench.kernels"), module)
    ]


def name_faults(module: str, source: str) -> list[str]:
    """Imports in bench/ of a plug-in's file, from outside of its own package."""
    return [
        f"{module}:{imported.line} imports {imported.module} by name"
        for imported in imports(source)
        for package in PLUG_INS
        # `contract` says what a plug-in of the package is; kernels replace the forward of networks that they know
        if covers(package, imported.module)
        and imported.module not in (package, f"{package}.contract")
        and not any_covers((package, "bench.kernels"), module)
    ]


def circles(files: Mapping[str, str]) -> list[list[str]]:
    """Groups of files that import one another in a circle, imports inside functions counted."""
    graph = nx.DiGraph()
    for module, source in files.items():
        graph.add_edges_from((module, imported.module) for imported in imports(source) if imported.module in files)
    groups = [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]
    return sorted(groups) + [[node] for node in nx.nodes_with_selfloops(graph)]


def package_faults(module: str, source: str) -> list[str]:
    """What must load only when it is used, and torch in tables."""
    faults = []
    for imported in imports(source):
        top = imported.module.split(".")[0]
        may = any_covers(WITH_RDKIT, module)
        if not imported.deferred and (top in NEVER_AT_MODULE_LEVEL or (top == "rdkit" and not may)):
            faults.append(f"{module}:{imported.line} imports {top} at module level")
        if top == "torch" and covers("analysis", module):
            faults.append(f"{module}:{imported.line} imports torch, which tables do without")
    return faults


def method_faults(module: str, source: str, names: set[str]) -> list[str]:
    """String constants of a file of bench/ that are a registered method's name."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        word = node.value if isinstance(node, ast.Constant) else None
        if isinstance(word, str) and word in names and (module, word) not in OTHER_MEANINGS:
            faults.append(f"{module}:{node.lineno} names the method {word!r}")
    return faults


def all_faults(check: Callable[[str, str], list[str]], *packages: str) -> list[str]:
    return [fault for module, source in sources(*packages).items() for fault in check(module, source)]


def test_every_file_of_bench_stands_on_a_floor():
    assert [module for module in sources("bench") if module != "bench" and place(module) is None] == []
    assert place("bench.nowhere") is None


def test_imports_go_down():
    assert all_faults(floor_faults, *OURS) == []


@pytest.mark.parametrize(
    ("module", "source", "how"),
    [
        ("bench.geometry.groups", "from bench.diffusion.schedule import NoiseLevel", "up"),
        ("bench.geometry.groups", "from bench.records.store import read_json", "sideways"),
        ("bench.registry", "def f():\n    from bench.records.store import read_json", "up"),
        ("bench.diffusion.process", "from bench.symmetry.contract import Method", "up"),
        ("bench.nn.pairs", "from bench.diffusion.schedule import NoiseLevel", "sideways"),
        ("bench.metrics.stability", "from bench.data import qm9", "sideways"),
        ("bench.backbones.egnn", "from bench.symmetry.contract import Method", "sideways"),
        ("bench.backbones.egnn", "from bench.kernels import pair_mlp", "up"),
        ("bench.tasks.denovo", "from bench.config.run import RunConfig", "sideways"),
        ("bench.run.train", "from bench.launch.submit import plan", "up"),
        ("bench.launch.submit", "from bench.published.weights import Published", "sideways"),
        ("bench.launch.submit", "def show():\n    from analysis.report import build", "only bench.cli"),
        ("bench.cli.results", "from analysis.report import build", "only bench.cli"),
        ("bench", "from analysis.load import load", "inside functions"),
        ("methods.plain", "from bench.data.qm9 import load", "no method sees"),
        ("methods.plain", "def peek():\n    from bench.metrics.scores import score", "no method sees"),
        ("methods.plain", "from bench.config.run import RunConfig", "up"),
        ("analysis.load", "from bench.config.run import RunConfig", "records alone"),
        ("analysis.load", "from bench.registry import methods", "records alone"),
        ("bench", "from bench.run.sample import load_run", "at module level"),
        ("bench.nowhere", "from bench.records.store import read_json", "on no floor"),
    ],
)
def test_an_import_against_the_rule_is_found(module: str, source: str, how: str):
    (fault,) = floor_faults(module, source)
    assert how in fault


def test_what_the_rule_allows_is_let_through():
    assert floor_faults("bench.geometry.groups", "if TYPE_CHECKING:\n    from bench.launch.submit import plan") == []
    assert floor_faults("methods.plain", "from bench.symmetry.contract import Method\nimport bench.nn.pairs") == []
    assert floor_faults("methods.b", "from methods.a import A") == []
    assert floor_faults("bench.cli.results", "def show():\n    from analysis.report import build") == []
    assert floor_faults("bench.registry", "from bench.references import Reference") == []
    assert floor_faults("bench", "def results():\n    from analysis.load import load") == []


def test_no_files_import_one_another_in_a_circle():
    assert circles(sources("bench", "methods")) == []


def test_a_circle_is_found():
    """Also where one of its imports is inside a function; not where it is for types alone."""
    files = {"bench.a": "import bench.b", "bench.b": "def f():\n    import bench.c", "bench.c": "import bench.a"}
    assert circles(files) == [["bench.a", "bench.b", "bench.c"]]
    files["bench.b"] = "if TYPE_CHECKING:\n    import bench.c"
    assert circles(files) == []


def test_kernels_are_installed_from_one_place():
    assert all_faults(kernel_faults, *OURS) == []


@pytest.mark.parametrize("module", ["bench.backbones.dit", "bench.launch.job", "methods.symdiff"])
def test_a_kernel_that_is_imported_elsewhere_is_found(module: str):
    source = "def f():\n    from bench.kernels import install"
    assert len(kernel_faults(module, source)) == 1
    assert kernel_faults("bench.run.model", source) == []


def test_bench_finds_plug_ins_through_the_registry():
    assert all_faults(name_faults, "bench") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bench.run.model", "from bench.backbones.dit import DiT"),
        ("bench.mini.card", "def f():\n    from bench.data import qm9"),
        ("bench.run.train", "from methods.haar import Haar"),
        ("bench.run.evaluate", "import bench.tasks.denovo"),
    ],
)
def test_a_plug_in_that_is_imported_by_name_is_found(module: str, source: str):
    assert len(name_faults(module, source)) == 1


def test_a_plug_in_may_build_on_its_neighbour():
    assert name_faults("bench.backbones.gdm", "from bench.backbones.egnn import MessagePassing") == []


# ---------------------------------------------------------------------- libraries and names


def test_libraries_load_when_they_are_used():
    assert all_faults(package_faults, *OURS) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bench.backbones.dit", "import torch_geometric.nn"),
        ("bench.backbones.e3", "from e3nn import o3"),
        ("bench.launch.submit", "import submitit"),
        ("bench.run.sample", "from rdkit import Chem"),
        ("bench.config.study", "from omegaconf import OmegaConf"),
        ("bench.structures.sizes", "try:\n    from rdkit import Chem\nexcept ImportError:\n    pass"),
        ("analysis.stats", "def f():\n    import torch"),
    ],
)
def test_a_library_out_of_place_is_found(module: str, source: str):
    assert len(package_faults(module, source)) == 1


def test_a_deferred_import_is_let_through():
    assert package_faults("bench.config.study", "def load():\n    from omegaconf import OmegaConf") == []
    assert package_faults("bench.metrics.validity", "from rdkit import Chem") == []


def test_no_file_of_bench_names_a_method():
    names = set(methods)
    assert len(names) > 1
    assert all_faults(lambda module, source: method_faults(module, source, names), "bench") == []


def test_a_file_that_names_a_method_is_found():
    names = {"one", "two"}
    assert len(method_faults("bench.run.train", "if cfg.method == 'one':\n    pass", names)) == 1
    assert method_faults("bench.run.train", "'one of several'", names) == []


# ---------------------------------------------------------------------- what a process loads


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after running `code`."""
    show = "\nimport sys; print('loaded', *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + show], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split()[1:])


TRAINING = """
import bench.run.execute, bench.run.sample, bench.run.train
from bench.registry import backbones, datasets, methods
print(*methods, *backbones, *datasets)
data = datasets["mini"].build(datasets["mini"].config())
"""


def test_training_and_sampling_load_neither_chemistry_nor_launchers():
    """Nor does asking for a data set, which imports the files of all of them."""
    loaded = loaded_by(TRAINING)
    assert "torch" in loaded
    assert loaded.isdisjoint({"rdkit", "submitit", "omegaconf", "torch_geometric"})


def test_the_command_line_starts_without_torch():
    code = "from bench.cli.main import main\ntry: main(['--help'])\nexcept SystemExit as end: assert not end.code"
    assert loaded_by(code).isdisjoint({"torch", "rdkit", "submitit", "omegaconf", "pandas"})


def test_plug_ins_are_listed_without_what_a_network_needs():
    """e3nn takes as long to load as torch."""
    assert loaded_by("from bench.cli.plugins import listing, matrix; listing(); matrix()").isdisjoint({"e3nn", "sympy"})
    assert "e3nn" in loaded_by(
        "from bench.backbones.e3 import E3, E3Config; E3(E3Config(8, 1, 1, 4), {'x': 3, 'h': 2})"
    )


def test_tables_build_without_torch():
    loaded = loaded_by("import analysis.report")
    assert "pandas" in loaded
    assert loaded.isdisjoint({"torch", "omegaconf", "submitit"})


def test_what_is_loaded_is_seen():
    assert "rdkit" in loaded_by("import rdkit")
