"""The registry that methods, backbones and data sets enter by one decorator.

A plug-in is a file in `methods/`, `bench/backbones/` or `bench/data/` whose class or function carries
`@register(name, Config)`. `discover` imports every file of a package at run time, so nothing has to be edited when a
file is added; a file that fails to import is remembered with its error and listed as unavailable.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


class UnknownNameError(ValueError):
    """A name that no plug-in carries; the message names the nearest one."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the closest known name, or the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"


@dataclass(frozen=True)
class Entry:
    """One registered plug-in: its name, what builds it, the dataclass of its options, and its first docstring line."""

    name: str
    build: Any
    config: type
    summary: str


@dataclass
class Registry:
    """Plug-ins of one kind, found in one package.

    Attributes:
        kind: what an entry is called in messages, e.g. 'method'.
        package: import name of the package whose files are the plug-ins.
    """

    kind: str
    package: str
    entries: dict[str, Entry] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    _discovered: bool = False

    def register(self, name: str, config: type) -> Callable[[T], T]:
        """Class or function decorator; raises ValueError when two plug-ins claim one name."""

        def enter(build: Any) -> Any:
            other = self.entries.get(name)
            if other is not None and other.build.__module__ != build.__module__:
                raise ValueError(
                    f"{self.kind} {name!r} is registered by {other.build.__module__} and again by {build.__module__}"
                )
            summary = (build.__doc__ or "").strip().splitlines()[0] if build.__doc__ else ""
            self.entries[name] = Entry(name, build, config, summary)
            build.registered_name = name
            return build

        return enter

    def discover(self) -> None:
        """Import every file of the package once; a file that does not import is listed with its error."""
        if self._discovered:
            return
        self._discovered = True
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            try:
                importlib.import_module(f"{self.package}.{module.name}")
            except Exception as error:  # any fault of a user's file must not take the listing down
                self.unavailable[module.name] = f"{type(error).__name__}: {error}"

    def __getitem__(self, name: str) -> Entry:
        self.discover()
        if not isinstance(name, str):
            raise UnknownNameError(f"the name of a {self.kind} is {name!r:.80}, expected text")
        if name not in self.entries:
            if name in self.unavailable:
                raise UnknownNameError(f"{self.kind} {name!r} cannot be imported: {self.unavailable[name]}")
            raise UnknownNameError(f"unknown {self.kind} {name!r}; {nearest(name, self.entries)}")
        return self.entries[name]

    def __iter__(self):
        self.discover()
        return iter(sorted(self.entries))


methods = Registry("method", "methods")
backbones = Registry("backbone", "bench.backbones")
datasets = Registry("data set", "bench.data")
tasks = Registry("task", "bench.tasks")
measures = Registry("measure", "bench.measure")
