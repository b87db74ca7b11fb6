"""Verbs on plug-ins and their options: list, settings, check."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cli.verbs import AddVerb, add_plugin
from bench.records.inputs import printable
from bench.registry import (
    Registry,
    backbones,
    datasets,
    load_file,
    measures,
    methods,
    registered_by,
    tasks,
    unavailable_entry_points,
)


def add_verbs(add: AddVerb) -> None:
    command = add("list", list_all, "methods, backbones, data sets, tasks, measures and studies, one per line")
    command.add_argument("--matrix", action="store_true", help="which method runs on which backbone, and why not")
    add_plugin(command)

    add_plugin(add("settings", settings, "every setting with type, default, unit and meaning, as docs/settings.md"))

    command = add("check", check, "test the methods and backbones of a file against the contract")
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Python file that registers them")
    add_plugin(command)


def list_all(args: argparse.Namespace) -> int:
    """`equibench list`."""
    print(printable(matrix() if args.matrix else listing(), keep="\n"))  # noqa: T201
    return 0


def settings(args: argparse.Namespace) -> int:
    """`equibench settings`."""
    from bench.config.settings import page

    del args  # its plug-ins are loaded
    print(page(), end="")  # noqa: T201
    return 0


def check(args: argparse.Namespace) -> int:
    """`equibench check`; 1 when a check fails."""
    from bench.run.check import WORTH, check

    n_failed = 0
    for file in args.files:
        for registry, entry in registered_by(load_file(file)):
            print(f"{registry.kind} {entry.name}: {entry.summary}", flush=True)  # noqa: T201
            if registry not in (methods, backbones):
                print(f"info  nothing to check of a {registry.kind} here")  # noqa: T201
                continue
            if registry is methods:
                print(f"declares {WORTH[entry.build.guarantee]}", flush=True)  # noqa: T201
            results = []
            for result in check(registry, entry):
                results.append(result)
                print(result, flush=True)  # noqa: T201
            failed = [result for result in results if result.passed is False]
            n_failed += len(failed)
            verdict = (
                f"{len(failed)} of {len(results)} checks failed" if failed else f"{len(results)} checks, none failed"
            )
            print(f"{registry.kind} {entry.name}: {verdict}\n")  # noqa: T201
    return int(n_failed > 0)


def listing() -> str:
    """Methods, backbones, data sets, tasks, measures and studies."""
    from bench.config.study import STUDIES, study_names, study_of

    parts = [
        _section("methods", methods, lambda build: f"[{build.guarantee}]"),
        _section("backbones", backbones, lambda build: "[equivariant]" if build.equivariant else "[not equivariant]"),
        *(_section(f"{registry.kind}s", registry) for registry in (datasets, tasks, measures)),
    ]
    if unavailable_entry_points:
        broken = [f"  {name:24}unavailable: {error}" for name, error in sorted(unavailable_entry_points.items())]
        parts.append("\n".join(["plug-ins of installed packages", *broken]))
    lines = ["studies"]
    for name in study_names():
        text = (STUDIES / f"{name}.yaml").read_text()
        first = text.splitlines()[0].removeprefix("#").strip() if text.startswith("#") else ""
        lines.append(f"  {name:24}{study_of(name):16} {first}")
    return "\n\n".join([*parts, "\n".join(lines)])


def matrix() -> str:
    """Which method runs on which backbone at default options, with footnotes: why not, or why it changes nothing."""
    reasons: dict[str, int] = {}

    def number(reason: str) -> str:
        return f"({reasons.setdefault(reason, len(reasons) + 1)})"

    rows = []
    for method in methods:
        cells = []
        for backbone in backbones:
            why, note = _reason(method, backbone), _note(method, backbone)
            cells.append(number(why) if why else f"runs {number(note)}" if note else "runs")
        rows.append(_row(method, cells))
    lines = [_row("", list(backbones)), *rows]
    return "\n".join([*lines, "", *(f"{number(reason)} {reason}" for reason in reasons)])


def _reason(method: str, backbone: str) -> str | None:
    from bench.config.run import ConfigError, RunConfig, build, reason_to_skip

    page = {"study": "matrix", "method": {"name": method}, "backbone": {"name": backbone}, "data": {"name": "mini"}}
    try:
        return reason_to_skip(build(RunConfig, page))
    except ConfigError as error:  # an option without a default
        return str(error)


def _note(method: str, backbone: str) -> str | None:
    """The method's remark on equivariant backbones, if this is one."""
    why = methods[method].build.on_equivariant_backbone
    return f"on an equivariant backbone, {why}" if why and backbones[backbone].build.equivariant else None


def _row(name: str, cells: list[str]) -> str:
    return f"{name:24}{''.join(f'{cell:12}' for cell in cells)}".rstrip()


def _section(title: str, registry: Registry, mark: Callable[[Any], str] = lambda _: "") -> str:
    lines = [title]
    for name in registry:
        entry = registry[name]
        sizes = getattr(entry.build, "sizes", {})
        more = f" Sizes: {', '.join(sizes)}." if sizes else ""
        lines.append(f"  {name:24}{mark(entry.build):16} {entry.summary}{more}")
    lines += [f"  {name:24}unavailable: {error}" for name, error in sorted(registry.unavailable.items())]
    lines += [] if len(lines) > 1 else ["  none"]
    return "\n".join(lines)
