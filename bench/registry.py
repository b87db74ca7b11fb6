"""The registry: methods, backbones, data sets, tasks and measures enter it by one decorator, `@register(name, Config)`.

A plug-in is found in one of three places, none of which has to be edited when it is added:

- a file of the package that belongs to its kind (`methods/`, `bench/backbones/`, `bench/data/`, `bench/tasks/`,
  `bench/measure/`). These lie where `bench` is installed, and are found there whatever `sys.path` holds: a folder
  `methods/` in the working directory does not hide ours. A package that is absent counts as empty.
- an installed package with an entry point in the group `equibench.plugins`, which names the module to import.
- a file that the user names (`--plugin FILE`, `plugins: [FILE]` in a study file), which `load_file` executes.

A file of a package, or an entry point, that fails to import is listed as unavailable with its error.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bench.references import Reference

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]  # of the installation: holds `bench` and `methods`
GROUP = "equibench.plugins"


class UnknownNameError(ValueError):
    """No plug-in has this name; the message suggests the closest one."""


class PluginError(ValueError):
    """A plug-in file cannot be used; the message, one line, names the file and the reason."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean X?' for the closest known name, or the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known) or 'none (there are none yet)'}"


@dataclass(frozen=True)
class Entry:
    """One registered plug-in: its name, what builds it, the dataclass of its options, and its first docstring line."""

    name: str
    build: Any
    config: type
    summary: str

    @property
    def references(self) -> tuple[Reference, ...]:
        """Papers to cite: a class attribute `references`, or the argument of the decorator."""
        return tuple(getattr(self.build, "references", ()))


@dataclass
class Registry:
    """Plug-ins of one kind.

    Attributes:
        kind: what an entry is called in messages, e.g. 'method'.
        package: import name of the package whose files are the plug-ins.
        root: folder that contains the package's top level.
        unavailable: file or entry point -> why it could not be imported.
    """

    kind: str
    package: str
    root: Path = ROOT
    entries: dict[str, Entry] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    _discovered: bool = False

    def register(self, name: str, config: type, references: tuple[Reference, ...] = ()) -> Callable[[T], T]:
        """Class or function decorator; raises ValueError when two plug-ins claim one name.

        Args:
            references: papers to cite; a class may hold them in its attribute `references` instead.
        """

        def enter(build: Any) -> Any:
            other = self.entries.get(name)
            if other is not None and other.build.__module__ != build.__module__:
                raise ValueError(
                    f"{self.kind} {name!r} is registered by {other.build.__module__} and again by {build.__module__}"
                )
            summary = (build.__doc__ or "").strip().partition("\n")[0]
            self.entries[name] = Entry(name, build, config, summary)
            build.registered_name = name
            if references:
                build.references = references
            return build

        return enter

    def discover(self) -> None:
        """Import every file of the package once, then the entry points of installed packages."""
        if self._discovered:
            return
        names = _files(self.package, self.root)
        self._discovered = True
        for name in names:
            try:
                importlib.import_module(f"{self.package}.{name}")
            except Exception as error:  # any fault of a user's file must not take the listing down
                broken = [
                    key for key, entry in self.entries.items() if entry.build.__module__ == f"{self.package}.{name}"
                ]
                for key in broken:  # registered before the fault
                    del self.entries[key]
                self.unavailable[name] = f"{type(error).__name__}: {error}"
        _load_entry_points()

    def __getitem__(self, name: str) -> Entry:
        self.discover()
        if not isinstance(name, str):
            raise UnknownNameError(f"the name of a {self.kind} is {name!r:.80}, expected text")
        if name not in self.entries:
            if name in self.unavailable:
                raise UnknownNameError(f"{self.kind} {name!r} cannot be imported: {self.unavailable[name]}")
            raise UnknownNameError(f"unknown {self.kind} {name!r}; {nearest(name, self.entries)}")
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        self.discover()
        return iter(sorted(self.entries))


methods = Registry("method", "methods")
backbones = Registry("backbone", "bench.backbones")
datasets = Registry("data set", "bench.data")
tasks = Registry("task", "bench.tasks")
measures = Registry("measure", "bench.measure")
REGISTRIES = (methods, backbones, datasets, tasks, measures)


def _files(package: str, root: Path) -> list[str]:
    """Import a package from under `root` and list the names of its modules.

    Raises:
        ImportError: a package of that name from elsewhere is in use already.
    """
    folder = root.joinpath(*package.split("."))
    init = folder / "__init__.py"
    if not init.exists():
        return []
    loaded = sys.modules.get(package)
    if loaded is None:
        spec = importlib.util.spec_from_file_location(package, init, submodule_search_locations=[str(folder)])
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[package] = loaded
        spec.loader.exec_module(loaded)
    elif Path(loaded.__file__ or "").resolve() != init.resolve():
        raise ImportError(
            f"a package {package!r} from {loaded.__file__ or list(loaded.__path__)} was imported before that of "
            f"EquiBench ({init}); import `bench.registry` and list `bench.registry.methods` first, or rename it"
        )
    return [module.name for module in pkgutil.iter_modules([str(folder)])]


# ---------------------------------------------------------------------- plug-ins from outside


unavailable_entry_points: dict[str, str] = {}  # 'NAME (package)' -> why it could not be imported
_loaded_files: dict[str, ModuleType] = {}  # SHA-256 of its content -> module
_entry_points_are_loaded = False


def _discover_ours() -> None:
    """Register built-in plug-ins first, so that a name clash is reported for the external file."""
    for registry in REGISTRIES:
        registry.discover()


def _load_entry_points() -> None:
    global _entry_points_are_loaded
    if _entry_points_are_loaded:
        return
    _entry_points_are_loaded = True
    found = entry_points(group=GROUP)
    if found:
        _discover_ours()
    for point in found:
        try:
            point.load()
        except Exception as error:
            package = f" ({point.dist.name})" if point.dist else ""
            unavailable_entry_points[point.name + package] = f"{type(error).__name__}: {error}"


@dataclass
class PluginFile:
    """A Python file that registers plug-ins: where it lies (absolute) and the SHA-256 of its content."""

    path: str
    sha256: str

    @classmethod
    def at(cls, path: Path) -> PluginFile:
        """The file as it is now.

        Raises:
            PluginError: there is no such file, or it cannot be read.
        """
        return cls(str(path.absolute()), hashlib.sha256(_content(path)).hexdigest())

    @property
    def is_loaded(self) -> bool:
        """Whether a file of this content has been executed."""
        return self.sha256 in _loaded_files

    def load(self) -> ModuleType:
        """Execute it; see `load_file`."""
        return load_file(Path(self.path), self.sha256)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PluginError(f"plug-in {path} does not exist; expected a Python file that registers one") from None
    except OSError as error:
        raise PluginError(f"plug-in {path} cannot be read: {error.strerror}") from error


def load_file(path: Path, sha256: str | None = None) -> ModuleType:
    """Execute a Python file whose `@register` decorators add plug-ins; the same content is executed only once.

    This runs the file's code: only for files that the user has named.

    Args:
        sha256: expected checksum of the content, where a record states one.
    Raises:
        PluginError: missing file, checksum mismatch, an error during execution, or nothing registered.
    """
    content = _content(path)
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise PluginError(
            f"plug-in {path} has changed: its SHA-256 is {found[:12]}..., expected {sha256[:12]}...; "
            "execute the study again, which makes new runs"
        )
    if found in _loaded_files:
        return _loaded_files[found]
    _discover_ours()
    before = [dict(registry.entries) for registry in REGISTRIES]
    module = ModuleType(f"equibench_plugin_{path.stem}_{found[:12]}")
    module.__file__ = str(path.absolute())
    sys.modules[module.__name__] = module  # where dataclasses look for the types of fields
    try:
        exec(compile(content, module.__file__, "exec"), module.__dict__)
        if not registered_by(module):
            raise ValueError("it registers nothing; decorate a class, as with @methods.register(name, Options)")
    except Exception as error:
        del sys.modules[module.__name__]
        for registry, entries in zip(REGISTRIES, before, strict=True):
            registry.entries = entries
        raise PluginError(f"plug-in {path} cannot be used: {type(error).__name__}: {error}") from error
    _loaded_files[found] = module
    return module


def registered_by(module: ModuleType) -> list[tuple[Registry, Entry]]:
    """The plug-ins that a module has registered."""
    return [
        (registry, entry)
        for registry in REGISTRIES
        for entry in registry.entries.values()
        if entry.build.__module__ == module.__name__
    ]
