"""docs/settings.md: every setting with its type, default, unit and meaning, from the dataclasses that hold them.

The meaning of a field is the comment at the end of its line, or else the comment lines just above it, or else what all
fields of its name mean (`COMMON`), or else what its type says of itself. `equibench settings` prints the page.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.config.run import KINDS, LaunchConfig, PlugIn, RunConfig
from bench.registry import PluginFile, Registry, measures

UNITS = {  # by the end of a name
    "_seconds": "s",
    "_s": "s",
    "_min": "min",
    "_gb": "GB",
    "_angstrom": "Å",
    "_degrees": "degrees",
    "_molecules": "molecules",
    "_atoms": "atoms",
    "_train": "molecules",
    "_valid": "molecules",
    "_every": "steps",
    "_steps": "steps",
    "batch_size": "molecules",
}
# names that mean the same in every plug-in
COMMON = {
    "width": "channels of the hidden layers",
    "depth": "number of blocks",
    "n_heads": "attention heads",
    "mlp_ratio": "hidden width of the blocks' feed-forward layers over `width`",
    "max_atoms": "largest molecule to keep, in all splits; null: any",
    "n_train": "training molecules to keep, drawn with a fixed seed; null: all",
    "turned": "turn each molecule by a random rotation of its own, fixed by its index",
}
HEAD = "| key | type | default | unit | meaning |\n| --- | --- | --- | --- | --- |"
INTRODUCTION = """# Settings

Every setting of a study, made from the code: `equibench settings` prints this page, with `--plugin FILE` also the
options of a plug-in of your own. Keys are written as in `key=value` on the command line; in a study file they are
nested under `base`, and those of `launch` stand beside it ([extending.md](extending.md) shows a whole study). Numbers,
text and truth values are those of YAML 1.2: `1e-4` is a number; `010`, `1:30` and `on` are text.
"""


@dataclass(frozen=True)
class Setting:
    """One row of the page."""

    key: str
    type: str
    default: str
    unit: str
    meaning: str

    def row(self) -> str:
        cells = (f"`{self.key}`", self.type, self.default, self.unit, self.meaning)
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def page() -> str:
    """The page, as Markdown."""
    parts = [INTRODUCTION, "## A run\n", *_table(RunConfig, "")]
    sections = {f.name: typing.get_type_hints(RunConfig)[f.name] for f in dataclasses.fields(RunConfig)}
    for name, kind in {**sections, "launch": LaunchConfig}.items():
        if dataclasses.is_dataclass(kind) and kind is not PlugIn:
            parts += [f"\n## `{name}`\n", *_table(kind, f"{name}.")]
    registries = {**KINDS, "measures": measures}
    for key, registry in registries.items():
        parts += [f"\n## `{key}`: options of each {registry.kind}"]
        for name in registry:
            parts += _plugin(registry, name, f"{key}.{name}." if key == "measures" else f"{key}.")
    return "\n".join(parts) + "\n"


def _plugin(registry: Registry, name: str, prefix: str) -> Iterator[str]:
    entry = registry[name]
    yield f"\n### `{name}`\n\n{entry.summary}\n"
    yield from _table(entry.config, prefix)
    if sizes := getattr(entry.build, "sizes", {}):
        yield "\nNamed sizes (`size`): " + "; ".join(
            f"`{size}`{' ' * bool(options)}{', '.join(f'{key} {value}' for key, value in options.items())}"
            for size, options in sizes.items()
        )


def _table(cls: Any, prefix: str) -> list[str]:
    rows = [setting.row() for setting in settings(cls, prefix)]
    return [HEAD, *rows] if rows else ["No options."]


def settings(cls: Any, prefix: str = "") -> list[Setting]:
    """The settings that a dataclass holds; those that are dataclasses themselves have sections of their own."""
    hints, comments = typing.get_type_hints(cls), _comments(cls)
    found = []
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind) and kind is not PlugIn:
            continue
        unit = next((unit for ending, unit in UNITS.items() if field.name.endswith(ending)), "")
        of_type = _summary(kind) if isinstance(kind, enum.EnumType) else ""
        meaning = comments.get(field.name) or COMMON.get(field.name) or of_type
        found.append(Setting(prefix + field.name, _type(kind), _default(field), unit, meaning))
    return found


def _comments(cls: Any) -> dict[str, str]:
    """Field -> its comment, of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        above: list[str] = []
        for line in inspect.getsource(base).splitlines():
            if comment := re.fullmatch(r" {4}# (.+)", line):
                above.append(comment[1])
                continue
            if field := re.match(r" {4}(\w+): [^#]*(?:# (.+))?$", line):
                found |= {field[1]: meaning} if (meaning := field[2] or " ".join(above)) else {}
            above = []
    return found


def _summary(kind: Any) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).removesuffix(".")


def _type(kind: Any) -> str:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(map(_type, typing.get_args(kind)))
    if typing.get_origin(kind) in (list, tuple):
        return f"list of {_type(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return "mapping"
    if kind is type(None):
        return "null"
    if kind is PlugIn:
        return "name, or mapping with `name`"
    if issubclass(kind, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    return "path" if kind is PluginFile else kind.__name__


def _default(field: Any) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, PlugIn):
        return f"`{value.name}`"
    if isinstance(value, enum.Enum):
        value = value.value
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"
