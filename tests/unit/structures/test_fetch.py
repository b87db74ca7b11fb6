import errno
import hashlib
import http.server
import socket
import sys
import tarfile
import threading
import zipfile

import pytest

from bench.structures import fetch as module
from bench.structures.fetch import Artefact, CannotStartError, DownloadError, cache_folder, fetch, fetch_wheel

CONTENT = bytes(range(256)) * 1000


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path but /404; `cut` holds, for the next requests, after how many bytes to hang up."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked, self.cut = CONTENT, [], []

    def url(self, path="file"):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/404":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        stop = self.server.cut.pop(0) if self.server.cut else None
        self.wfile.write(self.server.content[:stop])

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "default"))


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def artefact(*urls, content=CONTENT):
    return Artefact("file.bin", urls, hashlib.sha256(content).hexdigest())


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/file"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once(server, tmp_path):
    path = fetch(artefact(server.url()), tmp_path / "new" / "cache")
    assert path.read_bytes() == CONTENT
    assert fetch(artefact(server.url()), path.parent) == path
    assert server.asked == ["/file"]
    assert names(path.parent) == ["file.bin"]


def test_the_cache_is_the_folder_of_the_environment(server, tmp_path, monkeypatch):
    assert fetch(artefact(server.url())).parent == tmp_path / "default" == cache_folder()
    monkeypatch.delenv("EQUIBENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "equibench"


def test_a_damaged_file_in_the_cache_is_replaced(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT[::-1])
    assert fetch(artefact(server.url()), tmp_path).read_bytes() == CONTENT


def test_a_broken_connection_is_retried_with_the_next_mirror(server, tmp_path):
    server.cut = [100_000]
    assert fetch(artefact(server.url("a"), server.url("b")), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["/a", "/b"]


def test_a_download_that_breaks_off_leaves_nothing_and_says_what_to_do(server, tmp_path):
    server.cut = [1000, 0]
    with pytest.raises(DownloadError, match=r"broke off.*run the command again, or fetch it by hand") as raised:
        fetch(artefact(server.url(), server.url()), tmp_path / "cache")
    assert not isinstance(raised.value, CannotStartError)
    assert names(tmp_path / "cache") == []


@pytest.mark.parametrize("content", [CONTENT[::-1], b"<html>please sign in</html>"], ids=["another file", "a page"])
def test_another_content_is_refused_and_deleted(server, tmp_path, content):
    server.content = content
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.bin").write_bytes(b"old")
    with pytest.raises(DownloadError, match=r"sent another file, whose SHA-256 is wrong.*by hand from http") as raised:
        fetch(artefact(server.url()), tmp_path / "cache")
    assert not isinstance(raised.value, CannotStartError)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "cache" / "file.bin").read_bytes() == b"old"
    assert names(tmp_path / "cache") == ["file.bin"]


def test_the_next_mirror_is_asked_when_one_does_not_have_the_file(server, tmp_path):
    urls = (closed_port(), server.url("404"), server.url())
    assert fetch(artefact(*urls), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["/404", "/file"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [(closed_port(), "refused"), ("http://nowhere.invalid/file", "nowhere.invalid: "), ("nonsense", "Invalid URL")],
    ids=["closed port", "unknown host", "nonsense"],  # the port differs from worker to worker
)
def test_no_network_is_one_line(tmp_path, url, reason):
    with pytest.raises(CannotStartError, match=f"cannot download file.bin.*{reason}") as raised:
        fetch(artefact(url), tmp_path)
    assert "\n" not in str(raised.value)


def test_a_status_is_named(server, tmp_path):
    with pytest.raises(CannotStartError, match=r"127\.0\.0\.1:\d+: HTTP status 404\)"):
        fetch(artefact(server.url("404")), tmp_path)


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(CannotStartError, match="no answer in time"):
            fetch(artefact(f"http://127.0.0.1:{silent.getsockname()[1]}/file"), tmp_path)


def test_a_cache_that_cannot_be_written_to_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStartError, match=r"cannot write to the cache folder .*EQUIBENCH_CACHE"):
        fetch(artefact(closed_port()), tmp_path / "file")


def test_a_full_disk_is_no_missing_network(server, tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.move", no_space)
    with pytest.raises(DownloadError, match=r"cannot write .*No space left.*EQUIBENCH_CACHE") as raised:
        fetch(artefact(server.url()), tmp_path / "cache")
    assert not isinstance(raised.value, CannotStartError)
    assert names(tmp_path / "cache") == []


# ---------------------------------------------------------------------- wheels


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder from which alone pip takes packages."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    return folder


def wheel_in(folder, content=b"x"):
    """A wheel `some_data` 1.2 in the registry, and as what it is published."""
    path = folder / "some_data-1.2-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: some_data\nVersion: 1.2\nRequires-Dist: nowhere_to_be_found\n"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("some_data/data.csv", content)
        made.writestr("some_data-1.2.dist-info/METADATA", about)
        made.writestr("some_data-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("some_data-1.2.dist-info/RECORD", "")
    return Artefact(path.name, ("https://example.org/some_data",), hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_wheel_comes_from_the_registry_once_and_without_what_it_depends_on(registry, tmp_path):
    wheel = wheel_in(registry)
    path = fetch_wheel(wheel, tmp_path / "cache")
    assert wheel.is_at(path)
    assert names(path.parent) == [wheel.name]
    (registry / wheel.name).unlink()
    assert fetch_wheel(wheel, path.parent) == path
    path.write_bytes(b"damaged")  # control: it is asked for again
    with pytest.raises(CannotStartError):
        fetch_wheel(wheel, path.parent)


def test_another_wheel_of_that_name_is_refused_and_not_kept(registry, tmp_path):
    wheel = wheel_in(registry)
    wheel_in(registry, b"y")
    with pytest.raises(DownloadError, match=r"another some_data-1\.2.*SHA-256.*by hand from https") as raised:
        fetch_wheel(wheel, tmp_path / "cache")
    assert not isinstance(raised.value, CannotStartError)
    assert names(tmp_path / "cache") == []


def test_a_source_distribution_is_never_built(registry, tmp_path):
    """pip would execute its setup.py, here a line that writes a file."""
    setup = tmp_path / "setup.py"
    setup.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with tarfile.open(registry / "some_data-1.2.tar.gz", "w:gz") as made:
        made.add(setup, "some_data-1.2/setup.py")
    with pytest.raises(CannotStartError, match=r"\(pip: .*some_data==1\.2") as raised:
        fetch_wheel(Artefact("some_data-1.2-py3-none-any.whl", ("",), "0"), tmp_path / "cache")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "executed").exists()


def test_a_python_without_pip_is_told(registry, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {sys.executable}: No module named pip >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(CannotStartError, match="No module named pip"):
        fetch_wheel(wheel_in(registry), tmp_path / "cache")


def test_a_file_of_the_working_directory_does_not_hide_pip(registry, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('hidden')")
    monkeypatch.chdir(tmp_path)
    assert fetch_wheel(wheel_in(registry), tmp_path / "cache").is_file()
