"""YAML pages that nobody vouches for: plain data, from a file of a page's size.

`yaml.safe_load` runs no code, but aliases of aliases grow without bound, a key that comes twice hides the first, and
dates, binary strings and sets are nothing that a page holds. All of these are refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bench.records.inputs import cut, said, size_of

MAX_BYTES = 1 << 18
MAX_NODES = 20_000  # with aliases written out
MAX_DEPTH = 40
PLAIN = [f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")]
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class PageError(ValueError):
    """A page that cannot be read; one line: file, what came, what was expected."""


class _Loader(yaml.SafeLoader):
    """Counts what is composed, aliases as what they stand for, before anything is made of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.n_nodes, self.depth, self.expanded = 0, 0, {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, is_alias = self.n_nodes, self.check_event(yaml.AliasEvent)
        self.n_nodes, self.depth = self.n_nodes + 1, self.depth + 1
        if self.depth > MAX_DEPTH:
            raise PageError(f"nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self.expanded:
                raise PageError("an alias stands inside what it stands for")
            self.n_nodes += self.expanded[id(node)]
        else:
            self.expanded[id(node)] = self.n_nodes - before
        if self.n_nodes > MAX_NODES:
            raise PageError(f"holds more than {MAX_NODES} values, aliases written out")
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise PageError(f"line {key.start_mark.line + 1}: key {cut(key.value)!r} comes twice")
                seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        node.value.encode()  # half of a surrogate pair, which no file could be written with
        return node


_Loader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in PLAIN} | {
    None: yaml.SafeLoader.construct_undefined
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_page(path: Path) -> Any:
    """What a YAML file holds: mappings, lists, text, numbers, booleans and null.

    Raises:
        PageError: no UTF-8, no YAML, anything but plain data, or more of it than a page holds.
        OSError: missing, no regular file, or more than MAX_BYTES long.
    """
    size_of(path, MAX_BYTES)
    try:
        loader = _Loader(path.read_bytes().decode("utf-8-sig"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except PageError as error:
        raise PageError(f"{path}: {error}; write it out plainly") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise PageError(f"{path}: not readable as YAML ({line}{cut(error.problem or error.context or '')})") from error
    except Exception as error:  # of numbers that only look like numbers, PyYAML raises whatever Python does
        raise PageError(f"{path}: not readable as YAML ({said(error)})") from error
