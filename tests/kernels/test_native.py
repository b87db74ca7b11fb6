"""C files are compiled once for a processor, and where that fails one line says so."""

import logging
from pathlib import Path

import pytest
import torch

from bench.kernels import native
from bench.kernels.native import library

DOUBLE = """
#include <stdint.h>
void twice(float *x, int64_t n, float factor, const float *or_nothing) {
    for (int64_t i = 0; i < n; i++) x[i] = or_nothing ? -1 : factor * x[i];
}
"""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    native.warn_once.cache_clear()
    yield
    library.cache_clear()


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "twice.c"
    path.write_text(DOUBLE)
    if library(path) is None:
        pytest.skip("no C compiler")
    library.cache_clear()
    return path


def doubled(source: Path) -> list[float]:
    functions, x = library(source), torch.tensor([1.0, 2.0, 3.0])
    assert functions is not None
    functions.twice(x, 2, 2.0, None)
    return x.tolist()


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "equibench").iterdir())


def test_tensors_integers_floats_and_none_arrive(source):
    assert doubled(source) == [2.0, 4.0, 3.0]


def test_a_library_is_compiled_once_and_again_when_its_source_changes(source, tmp_path, monkeypatch):
    doubled(source)
    (made,) = files(tmp_path)
    before = made.stat().st_mtime_ns
    library.cache_clear()
    assert doubled(source) == [2.0, 4.0, 3.0]
    assert [made.stat().st_mtime_ns, *files(tmp_path)] == [before, made]
    source.write_text(DOUBLE.replace("factor *", "3 *"))
    library.cache_clear()
    assert doubled(source) == [3.0, 6.0, 3.0]
    monkeypatch.setattr(native, "_processor", lambda: "another")
    library.cache_clear()
    doubled(source)
    assert len(files(tmp_path)) == 3


def test_a_constant_has_a_library_of_its_own(source, tmp_path):
    source.write_text(DOUBLE.replace("factor *", "FACTOR *"))
    before = len(files(tmp_path))
    for factor in (3, 4, 3):
        functions, x = library(source, FACTOR=factor), torch.ones(2)
        assert functions is not None
        functions.twice(x, 2, 2.0, None)
        assert x.tolist() == [factor, factor]
    assert len(files(tmp_path)) == before + 2


def test_without_a_place_to_keep_it_it_works_all_the_same(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert doubled(source) == [2.0, 4.0, 3.0]


def test_a_library_that_does_not_load_is_made_again(source, tmp_path, monkeypatch):
    doubled(source)
    (good,) = files(tmp_path)
    made = tmp_path / "other" / "equibench" / good.name
    made.parent.mkdir(parents=True)
    made.write_bytes(b"cut")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    library.cache_clear()
    assert doubled(source) == [2.0, 4.0, 3.0]
    assert made.stat().st_size > 1000


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("no-such-compiler", "install a C compiler"),
        ("false", "exit status 1"),
        ("cc --no-such-option", "no-such-option"),
    ],
)
def test_without_a_compiler_one_line_says_so(compiler, said, source, monkeypatch, caplog):
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING, "equibench"):
        assert library(source) is None
        assert library(source) is None
        assert library(source, WIDTH=3) is None
    (record,) = caplog.records
    assert said in record.message
    assert "\n" not in record.message


def test_a_file_with_a_mistake_is_one_line_and_leaves_nothing(source, tmp_path, caplog):
    source.write_text("void f( {")
    with caplog.at_level(logging.WARNING, "equibench"):
        assert library(source) is None
    assert len(caplog.records) == 1
    assert files(tmp_path) == [path for path in files(tmp_path) if path.suffix == ".so"]
