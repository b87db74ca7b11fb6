"""docs/settings.md is what the dataclasses say, and every setting says what it means."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.cli.main import main
from bench.config.run import Clip, LaunchConfig, RunConfig, SampleConfig, TrainConfig
from bench.config.settings import settings
from bench.diffusion.process import DiffusionConfig
from bench.registry import REGISTRIES, Entry, Registry

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"
PARTS = [RunConfig, DiffusionConfig, TrainConfig, SampleConfig, LaunchConfig]


def ours(registry: Registry) -> dict[str, Entry]:
    """Plug-ins that lie in the repository, without those that other tests have registered."""
    found = {name: registry[name] for name in registry}
    return {name: entry for name, entry in found.items() if entry.config.__module__.startswith(("bench.", "methods."))}


OPTIONS = [entry.config for registry in REGISTRIES for entry in ours(registry).values()]


def test_the_page_is_what_the_code_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`equibench settings > docs/settings.md` renews it."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "entries", ours(registry))
    assert main(["settings"]) == 0
    assert PAGE.read_text() == capsys.readouterr().out


@pytest.mark.parametrize("cls", [*PARTS, *dict.fromkeys(OPTIONS)], ids=lambda cls: cls.__name__)
def test_every_setting_says_what_it_means(cls: type):
    """In a comment at its field. All fields are there but those that are sections."""
    found = settings(cls)
    assert [one.key for one in found if not one.meaning] == []
    sections = {"diffusion", "train", "sample"} if cls is RunConfig else set()
    assert {one.key for one in found} == {f.name for f in dataclasses.fields(cls)} - sections


@dataclass
class Base:
    first: int  # of the base


@dataclass
class Made(Base):
    """Options."""

    needed: float
    # in two
    # lines
    wait_seconds: float | None = None
    clip: Clip = Clip.QUEUE
    names: dict[str, Any] = field(default_factory=dict)  # a | b

    bare: bool = False

    def method(self) -> None:
        self.other: int = 3  # no field


def test_a_field_is_read_with_its_comment():
    """Control: one without a comment has no meaning."""
    assert {one.key: (one.type, one.default, one.unit, one.meaning) for one in settings(Made)} == {
        "first": ("int", "required", "", "of the base"),
        "needed": ("float", "required", "", ""),
        "wait_seconds": ("float or null", "`null`", "s", "in two lines"),
        "clip": (
            "`queue`, `norm`",
            "`queue`",
            "",
            "Gradient clipping of the published runs: EDM's queue of norms, or SymDiff's constant global norm",
        ),
        "names": ("mapping", "`{}`", "", "a | b"),
        "bare": ("bool", "`false`", "", ""),
    }
    assert settings(Made, "x.")[4].row() == "| `x.names` | mapping | `{}` |  | a \\| b |"
