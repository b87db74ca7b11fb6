"""Studies: one YAML file each, which becomes a list of runs.

A study has a `base` (any part of a run's configuration), a `grid` (lists whose product gives the runs; a list of grids
is their union) and `launch` (how to execute, which never changes a result). `key=value` arguments set keys of `base` or
`launch`, or take the place of a grid's values (`seed=[0,1,2]`, `method=haar`). `plugins` lists Python files, relative
to the study, that register plug-ins; loading the study executes them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.run import ConfigError, LaunchConfig, RunConfig, build, load_plugins, naming, require, shown
from bench.records.inputs import YamlError, parse_yaml, read_yaml, truncate
from bench.registry import PluginError, PluginFile, nearest

STUDIES = Path(__file__).parent / "studies"  # those that come with the package
MAX_RUNS = 10_000  # of one study
CLUSTERS = ("local", "debug", "slurm")


@dataclass
class StudyConfig:
    """A resolved study: its runs in order and how to launch them."""

    name: str
    runs: list[RunConfig]
    launch: LaunchConfig
    page: dict[str, Any]


def study_names() -> list[str]:
    """Studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


KEYS = ("study", "plugins", "base", "grid", "launch")


def load_study(name: str, overrides: list[str] | None = None, plugins: Sequence[Path] = ()) -> StudyConfig:
    """Read a study by name or path and apply `key=value` arguments, as `_override` does.

    A run's config.yaml is read as a study of that run alone, named after the run's study with the suffix '-again'.

    Args:
        plugins: plug-in files besides those that the study names.
    Raises:
        ConfigError: no such study, unreadable YAML, an unknown key, a value of the wrong type, an empty grid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else STUDIES / f"{name}.yaml"
    if not path.is_file():
        hint = "" if path.parent != STUDIES else f"; {nearest(name, study_names())}"
        raise ConfigError(f"no study at {name!r}{hint}")
    try:
        plain = read_yaml(path)
    except (YamlError, OSError) as error:
        raise ConfigError(str(error)) from error
    if isinstance(plain, dict) and "method" in plain:
        base = {key: value for key, value in plain.items() if key not in ("study", "plugins")}
        plain = {"study": f"{plain.get('study')}-again", "plugins": plain.get("plugins") or [], "base": base}
    _check_shape(plain, str(path))
    with naming(path):
        files = [
            _plugin(item, path.parent)
            for item in [*(plain.get("plugins") or []), *map(str, map(Path.absolute, plugins))]
        ]
        plain["plugins"] = [dataclasses.asdict(file) for file in files]
        load_plugins(plain)
    for item in overrides or []:
        _override(plain, *parse_override(item))
    return resolve_study(plain, str(path))


def parse_override(argument: str) -> tuple[str, Any]:
    """Key and value of a `key=value` argument; the value is read as in a YAML file.

    Raises:
        ConfigError: it has no '=', or the value is not YAML.
    """
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"argument {argument!r} is not of the form key=value")
    try:
        return key, parse_yaml(value)
    except YamlError as error:
        raise ConfigError(f"argument {truncate(argument)!r}: {error}") from error


def _check_shape(page: Any, where: str) -> None:
    """Raise ConfigError unless the page has the structure that `resolve_study` reads.

    Interpolations (`${...}`) are refused rather than taken as text.
    """
    if not isinstance(page, dict):
        raise ConfigError(f"{where}: expected a mapping with study, base, grid and launch")
    for key in page:
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key {shown(key)}; {nearest(str(key), KEYS)}")
    if page.get("study") is None:
        raise ConfigError(f"{where}: 'study' is missing; give the study a name")
    if not isinstance(page["study"], str):
        raise ConfigError(f"{where}: 'study' is {shown(page['study'])}, expected text; write it in quotes")
    if not isinstance(page.get("plugins") or [], list):
        raise ConfigError(f"{where}: 'plugins' is {shown(page['plugins'])}, expected a list of Python files")
    grids = page.get("grid") or {}
    grids = grids if isinstance(grids, list) else [grids]
    for name, value in (*((key, page.get(key) or {}) for key in ("base", "launch")), *(("grid", g) for g in grids)):
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where}: {name!r} is {shown(value)}, expected a mapping from names")
        if "study" in value:  # its records would lie in one study's folder and name another
            raise ConfigError(f"{where}: 'study' cannot be set for its runs; name it at the top of a file of your own")
    for grid in grids:
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where}: grid key {shown(key)} is {shown(values)}, expected a list of values")
    if (n_runs := sum(math.prod(map(len, grid.values())) for grid in grids)) > MAX_RUNS:
        raise ConfigError(
            f"{where}: the grid asks for {n_runs} runs, expected at most {MAX_RUNS}; write several studies"
        )
    if _has_interpolation(page):
        raise ConfigError(f"{where}: holds '${{...}}', which is not filled in here; write the value out")


def _plugin(item: Any, folder: Path) -> PluginFile:
    """A plug-in file from a path relative to `folder`, or from its record in a run or study."""
    if isinstance(item, dict):
        return build(PluginFile, item, "plugins")
    if not isinstance(item, str):
        raise ConfigError(f"'plugins' holds {shown(item)}, expected the path of a Python file")
    try:
        return PluginFile.at(folder / item)
    except PluginError as error:
        raise ConfigError(str(error)) from error


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_interpolation(inner) for pair in value.items() for inner in pair)
    if isinstance(value, list):
        return any(map(_has_interpolation, value))
    return isinstance(value, str) and "${" in value


def _override(page: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of `launch` or `base`; if a grid sets it, the value, or each of a list, replaces that of all grids.

    Raises:
        ConfigError: a grid sets a part of the key, or a whole that it is part of: the argument would have no effect.
    """
    grids = page.get("grid") or {}
    grids = grids if isinstance(grids, list) else [grids]
    for axis in (axis for grid in grids for axis in grid):
        if key.startswith(f"{axis}.") or axis.startswith(f"{key}."):
            raise ConfigError(f"'{key}' cannot be given here: the study's grid sets '{axis}'; give '{axis}=...' whole")
    if any(key in grid for grid in grids):
        for grid in grids:
            grid[key] = value if isinstance(value, list) else [value]
    else:
        set_dotted(page, key if key.split(".")[0] == "launch" else f"base.{key}", value)


def resolve_study(page: dict[str, Any], where: str) -> StudyConfig:
    """The runs of a study, in grid order."""
    _check_shape(page, where)
    grids = page.get("grid") or {}
    runs = []
    for grid in grids if isinstance(grids, list) else [grids]:
        for combination in itertools.product(*grid.values()):
            run: dict[str, Any] = json.loads(json.dumps(page.get("base") or {}))
            with naming(where):
                for key, value in zip(grid, combination, strict=True):
                    set_dotted(run, key, value)
                runs.append(build(RunConfig, {"study": page["study"], "plugins": page.get("plugins") or [], **run}))
    with naming(where):
        launch = build(LaunchConfig, page.get("launch") or {}, "launch")
        require("launch", cluster=(launch.cluster, launch.cluster in CLUSTERS, "local, debug or slurm"))
    return StudyConfig(page["study"], runs, launch, page)


def selection(only: Sequence[str], runs: Sequence[RunConfig]) -> Callable[[RunConfig], bool]:
    """Whether a run has the values of all `key=value` arguments: one of a list, a plug-in by its name, or options.

    Raises:
        ConfigError: none of the runs has; the message names the values that there are.
    """
    wanted: dict[str, list[Any]] = {}
    for key, value in map(parse_override, only):
        wanted.setdefault(key, []).extend(value if isinstance(value, list) else [value])

    def fits(cfg: RunConfig, key: str) -> bool:
        found = _setting(cfg, key)
        if isinstance(found, dict):
            return any(found["name"] == v if isinstance(v, str) else found == found | v for v in wanted[key])
        return found in wanted[key]

    for key in wanted:
        if not any(fits(cfg, key) for cfg in runs):
            values = [value for cfg in runs if (value := _setting(cfg, key)) is not None]
            if not values:
                raise ConfigError(
                    f"no run of this study has a setting {key!r}; give one such as method, seed, train.lr"
                )
            there = dict.fromkeys(str(v["name"] if isinstance(v, dict) else v) for v in values)
            raise ConfigError(f"no run of this study has {key} {wanted[key]}; there are {truncate(', '.join(there))}")
    chosen = [cfg for cfg in runs if all(fits(cfg, key) for key in wanted)]
    if not chosen:
        raise ConfigError(f"no run of this study has all of {' '.join(only)}; give fewer of them")
    return lambda cfg: all(fits(cfg, key) for key in wanted)


def _setting(cfg: RunConfig, key: str) -> Any:
    """The value of a dotted key; None where the run's plug-ins have no such option."""
    value: Any = cfg.to_dict()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def set_dotted(page: dict[str, Any], dotted: str, value: Any) -> None:
    """page['a']['b'] = value for the key 'a.b'."""
    *parents, last = dotted.split(".")
    for parent in parents:
        if page.get(parent) is None:
            page[parent] = {}
        page = page[parent]
        if not isinstance(page, dict):
            raise ConfigError(f"'{truncate(dotted)}' cannot be set: '{parent}' is {shown(page)}, expected a mapping")
    page[last] = value


def study_of(name: str) -> str:
    """The study that a study file of the package belongs to (several may share one); else the name itself."""
    path = STUDIES / f"{name}.yaml"
    return str(read_yaml(path)["study"]) if path.is_file() else name
