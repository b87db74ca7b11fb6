"""Typed objects from plain data: dataclasses whose unknown keys and wrong types are refused.

A class may convert itself: `from_plain(value, where)`, and `to_plain()` back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from bench.records.inputs import truncate
from bench.registry import nearest


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, what came and what was expected."""


def shown(value: Any) -> str:
    return truncate(repr(value))


def require(where: str, **conditions: tuple[Any, bool, str]) -> None:
    """Raise ConfigError for the first (value, holds, expected) that does not hold."""
    for key, (value, holds, expected) in conditions.items():
        if not holds:
            raise ConfigError(f"'{where}.{key}' is {shown(value)}, expected {expected}")


def build(cls: Any, values: Any, where: str = "") -> Any:
    """An instance of dataclass `cls` from nested plain values; unknown keys and wrong types raise ConfigError.

    `cls.check_plain(values)` comes first, where there is one.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__} is {shown(values)}, expected a mapping of options")
    if hasattr(cls, "check_plain"):
        cls.check_plain(values)
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in known:
            hint = nearest(str(key), known) if known else "it has no options"
            raise ConfigError(f"unknown key '{prefix}{truncate(str(key))}'; {hint}")
    for f in dataclasses.fields(cls):
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"'{prefix}{f.name}' is missing; it has no default")
    converted = {key: convert(hints[key], value, f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError:
        raise
    except ValueError as error:  # options of a plug-in or of a lower floor that do not fit one another
        raise ConfigError(str(error)) from error


def convert(kind: Any, value: Any, where: str) -> Any:
    """A plain value as an instance of a type annotation; `where` is its key, for messages."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = typing.get_args(kind)
        if value is None and type(None) in kinds:
            return None
        wanted = [k for k in kinds if k is not type(None)]
        if len(wanted) > 1 and type(value) not in wanted:
            names = " or ".join(k.__name__ for k in wanted)
            raise ConfigError(f"'{where}' is {shown(value)}, expected {names}; text in quotes is taken as it stands")
        return convert(type(value) if len(wanted) > 1 else wanted[0], value, where)
    if hasattr(kind, "from_plain"):
        return kind.from_plain(value, where)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except (ValueError, TypeError):
            raise ConfigError(
                f"'{where}' is {shown(value)}, expected one of {', '.join(str(k.value) for k in kind)}"
            ) from None
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"'{where}' is {shown(value)}, expected a list")
        inner = typing.get_args(kind)[0]
        return origin(convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        inner = typing.get_args(kind)[1]
        if inner is Any and isinstance(value, str):  # a method that another one names by its name alone
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{where}' is {shown(value)}, expected a mapping")
        return {str(key): convert(inner, item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"'{where}' is {shown(value)}, expected {kind.__name__}{_how_to_write(value, kind)}")
    if (isinstance(value, float) and math.isnan(value)) or (type(value) is int and not -(2**63) <= value < 2**63):
        raise ConfigError(f"'{where}' is {shown(value)}, expected a number of at most 64 bits")
    return value


def _how_to_write(value: Any, kind: type) -> str:
    """What to write in place of text that YAML 1.1 would read as a number to base 8 or 60."""
    if kind not in (int, float) or not isinstance(value, str):
        return ""
    if re.fullmatch("0[0-9]+", value):
        return f"; write it without the leading zero, {int(value)}"
    if re.fullmatch("[0-9]+(:[0-9]+)+", value):
        return "; write one number, without colons"
    return ""


def plain(value: Any) -> Any:
    """Inverse of `build`."""
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
