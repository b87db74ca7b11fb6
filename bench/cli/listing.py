"""`equibench list`: what can be compared, a line each; plug-ins that do not import are shown with their error."""

from __future__ import annotations

from bench.config.run import ConfigError, RunConfig, build, reason_to_skip
from bench.config.study import STUDIES, study_names, study_of
from bench.registry import Registry, backbones, datasets, methods


def listing() -> str:
    """Methods, backbones, data sets and studies."""
    parts = [
        _section("methods", methods, lambda build: f"[{build.guarantee}]"),
        _section("backbones", backbones, lambda build: "[equivariant]" if build.equivariant else "[not equivariant]"),
        _section("data sets", datasets, lambda _: ""),
    ]
    lines = ["studies"]
    for name in study_names():
        text = (STUDIES / f"{name}.yaml").read_text()
        first = text.splitlines()[0].removeprefix("#").strip() if text.startswith("#") else ""
        lines.append(f"  {name:24}{study_of(name):16} {first}")
    return "\n\n".join([*parts, "\n".join(lines)])


def matrix() -> str:
    """Which method runs on which backbone, at default options, and why others do not, or change nothing there."""
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
    page = {"study": "matrix", "method": {"name": method}, "backbone": {"name": backbone}, "data": {"name": "mini"}}
    try:
        return reason_to_skip(build(RunConfig, page))
    except ConfigError as error:  # an option without a default
        return str(error)


def _note(method: str, backbone: str) -> str | None:
    """What the method says of equivariant backbones, if this is one."""
    why = methods[method].build.on_equivariant_backbone
    return f"on an equivariant backbone, {why}" if why and backbones[backbone].build.equivariant else None


def _row(name: str, cells: list[str]) -> str:
    return f"{name:24}{''.join(f'{cell:12}' for cell in cells)}".rstrip()


def _section(title: str, registry: Registry, mark) -> str:
    lines = [title]
    for name in registry:
        entry = registry[name]
        sizes = getattr(entry.build, "sizes", {})
        more = f" Sizes: {', '.join(sizes)}." if sizes else ""
        lines.append(f"  {name:24}{mark(entry.build):16} {entry.summary}{more}")
    lines += [f"  {name:24}unavailable: {error}" for name, error in sorted(registry.unavailable.items())]
    return "\n".join(lines)
