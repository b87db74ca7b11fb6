"""C files are compiled once for a processor, and where that fails one line says so."""

import logging
import os
import shutil
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
    """Cached libraries; each has its checksum beside it, and there is nothing else."""
    found = sorted((tmp_path / "cache" / "equibench").iterdir())
    libraries = [path for path in found if path.suffix == ".so"]
    assert found == sorted([*libraries, *(path.with_suffix(".sha256") for path in libraries)])
    return libraries


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


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda so, _: so.write_bytes(so.read_bytes()[:5000]), id="cut"),
        pytest.param(lambda so, _: so.write_bytes(flipped(so.read_bytes())), id="flipped"),
        pytest.param(lambda so, _: so.write_bytes(b""), id="empty"),
        pytest.param(lambda _, known: known.write_text("0" * 64), id="checksum of another"),
        pytest.param(lambda _, known: known.unlink(), id="without a checksum"),
        pytest.param(lambda so, _: so.chmod(0o666), id="writable by all"),
        pytest.param(lambda so, _: so.chmod(0o664), id="writable by the group"),
        pytest.param(lambda _, known: known.chmod(0o666), id="checksum writable by all"),
        pytest.param(lambda so, _: so.symlink_to(so.rename(so.with_suffix(".other"))), id="link"),
    ],
)
def test_a_library_that_is_not_as_it_was_made_is_made_again_and_not_loaded(damage, source, tmp_path, monkeypatch):
    """Control: one that is as it was made is not compiled again."""
    doubled(source)
    (made,) = files(tmp_path)
    content, compiled = made.read_bytes(), []
    compile_ = native._compiled
    monkeypatch.setattr(native, "_compiled", lambda *args: compiled.append(args) or compile_(*args))
    library.cache_clear()
    doubled(source)
    assert compiled == []
    made.rename(tmp_path / "kept")  # this process has it mapped: damage a copy
    made.write_bytes(content)
    damage(made, made.with_suffix(".sha256"))
    loaded: list[bytes] = []
    load = native.Library.__init__
    spied = lambda self, path: loaded.append(path.read_bytes()) or load(self, path)  # noqa: E731
    monkeypatch.setattr(native.Library, "__init__", spied)
    library.cache_clear()
    assert doubled(source) == [2.0, 4.0, 3.0]
    assert len(compiled) == 1
    assert [len(one) for one in loaded] == [len(content)]
    library.cache_clear()
    doubled(source)
    assert len(compiled) == 1  # it is whole again


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_folder_that_others_may_write_is_not_used(mode, source, tmp_path, caplog):
    """Not even for what lies there already and would load. Control: the test before."""
    doubled(source)
    (made,) = files(tmp_path)
    before = made.stat().st_mtime_ns
    made.parent.chmod(mode)
    library.cache_clear()
    with caplog.at_level(logging.WARNING, "equibench"):
        assert doubled(source) == [2.0, 4.0, 3.0]
    assert "other users own it or may write it (chmod go-w), so compiled code is not kept there" in caplog.text
    assert [made.stat().st_mtime_ns, *files(tmp_path)] == [before, made]


def test_the_umask_of_groups_and_a_link_to_another_disk_do_no_harm(source, tmp_path):
    doubled(source)
    cache = tmp_path / "cache" / "equibench"
    shutil.rmtree(cache)
    (tmp_path / "disk").mkdir()
    cache.symlink_to(tmp_path / "disk")
    before = os.umask(0o002)
    try:
        library.cache_clear()
        assert doubled(source) == [2.0, 4.0, 3.0]
    finally:
        os.umask(before)
    (made,) = files(tmp_path)
    assert native._is_whole(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["library", "checksum", "folder"])
def test_what_another_user_owns_is_not_used(what, source, tmp_path, monkeypatch):
    doubled(source)
    (made,) = files(tmp_path)
    os.chown({"library": made, "checksum": made.with_suffix(".sha256"), "folder": made.parent}[what], 12345, 12345)
    compiled = []
    compile_ = native._compiled
    monkeypatch.setattr(native, "_compiled", lambda *args: compiled.append(args) or compile_(*args))
    library.cache_clear()
    assert doubled(source) == [2.0, 4.0, 3.0]
    assert len(compiled) == 1


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
    assert len(files(tmp_path)) == 1  # of the fixture
