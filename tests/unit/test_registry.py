"""Plug-ins are found by being there, and faults of one are named without hurting the others."""

import sys
from pathlib import Path

import pytest

from bench.registry import Registry, UnknownNameError, backbones, datasets, methods, nearest

PLUG_IN = """
from dataclasses import dataclass
from {package} import registry

@dataclass
class Config:
    a: int = 1

@registry.register("{name}", Config)
class Thing:
    \"\"\"First line.

    More.
    \"\"\"
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Registry:
    package = f"plugins_{abs(hash(request.node.name))}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from bench.registry import Registry\nregistry = Registry('thing', {package!r})\n"
    )
    (folder / "good.py").write_text(PLUG_IN.format(package=package, name="good"))
    (folder / "broken.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    made: Registry = __import__(package).registry
    yield made  # type: ignore[misc]
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def test_a_file_that_is_there_is_found(registry):
    assert list(registry) == ["good"]
    assert registry["good"].summary == "First line."
    assert registry["good"].config().a == 1
    assert registry["good"].build.registered_name == "good"


def test_a_file_that_does_not_import_is_listed_with_its_error(registry):
    list(registry)
    assert "a_package_that_nobody_has" in registry.unavailable["broken"]
    with pytest.raises(UnknownNameError, match="cannot be imported"):
        registry["broken"]


def test_an_unknown_name_gets_the_nearest_one(registry):
    with pytest.raises(UnknownNameError, match="unknown thing 'god'; did you mean 'good'"):
        registry["god"]
    assert nearest("xyz", ["b", "a"]) == "choose from a, b"


def test_one_name_belongs_to_one_file(registry):
    list(registry)
    with pytest.raises(ValueError, match="is registered by"):
        registry.register("good", dict)(type("Other", (), {"__module__": "elsewhere"}))


@pytest.mark.parametrize("found", [methods, backbones, datasets], ids=lambda registry: registry.kind)
def test_every_plug_in_of_ours_imports_and_has_a_summary(found):
    assert list(found)
    assert found.unavailable == {}
    assert all(found[name].summary for name in found)
