import hashlib
import http.server
import socket
import threading

import pytest

from bench.data import download
from bench.structures.fetch import Artefact, CannotStartError, DownloadError, fetch

CONTENT = bytes(range(256)) * 1000
PATIENT = 5.0  # seconds; nothing here waits for it
IMPATIENT = 0.2


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at any path but /404; notes the Range of each request; can misbehave.

    `cut` holds, for the next requests, after how many bytes to hang up; `ranges` says whether Range is understood.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked, self.cut, self.ranges = CONTENT, [], [], True

    def url(self, path="file"):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path == "/404":
            self.send_error(404)
            return
        content = self.server.content
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = self.server.cut.pop(0) if self.server.cut else len(content)
        self.wfile.write(content[start : start + stop])

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


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
    return Artefact("file.bin", urls, len(content), hashlib.sha256(content).hexdigest())


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/file"


def test_a_file_is_downloaded_once(server, tmp_path):
    path = fetch(artefact(server.url()), tmp_path / "new" / "cache", PATIENT)
    assert path.read_bytes() == CONTENT
    assert fetch(artefact(server.url()), path.parent, PATIENT) == path
    assert server.asked == [None]
    assert not (path.parent / "file.bin.part").exists()


def test_a_damaged_file_in_the_cache_is_replaced(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT[::-1])
    assert fetch(artefact(server.url()), tmp_path, PATIENT).read_bytes() == CONTENT


def test_what_came_earlier_is_carried_on_by_range(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(artefact(server.url()), tmp_path, PATIENT).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_server_without_ranges_starts_afresh(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    assert fetch(artefact(server.url()), tmp_path, PATIENT).read_bytes() == CONTENT


def test_a_lost_connection_is_taken_up_again(server, tmp_path):
    server.cut = [100_000, 50_000]
    assert fetch(artefact(server.url()), tmp_path, PATIENT).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_download_that_no_longer_advances_breaks_off_and_keeps_what_came(server, tmp_path):
    server.cut = [1000, *[0] * 20]
    with pytest.raises(DownloadError, match=r"broke off after 1000 of 256000 bytes.*carries on") as raised:
        fetch(artefact(server.url()), tmp_path, PATIENT)
    assert not isinstance(raised.value, CannotStartError)
    server.cut = []
    assert fetch(artefact(server.url()), tmp_path, PATIENT).read_bytes() == CONTENT


@pytest.mark.parametrize("had", [0, len(CONTENT), len(CONTENT) + 1])
def test_another_content_is_refused_and_deleted(server, tmp_path, had):
    server.content = CONTENT[::-1]
    (tmp_path / "file.bin.part").write_bytes((server.content + b"x")[:had])
    with pytest.raises(DownloadError, match=r"expected .*deleted.*by hand from http"):
        fetch(artefact(server.url()), tmp_path, PATIENT)
    assert not (tmp_path / "file.bin.part").exists()
    assert not (tmp_path / "file.bin").exists()


def test_the_next_mirror_is_asked_when_one_does_not_have_the_file(server, tmp_path):
    urls = (closed_port(), server.url("404"), server.url())
    assert fetch(artefact(*urls), tmp_path, PATIENT).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_page_in_place_of_the_file_does_not_count_as_a_start(server, tmp_path):
    server.content = b"<html>please sign in</html>"
    with pytest.raises(CannotStartError, match="offered 27 bytes, expected 256000"):
        fetch(artefact(server.url()), tmp_path, PATIENT)


@pytest.mark.parametrize(
    ("url", "reason"),
    [(closed_port(), "refused"), ("http://nowhere.invalid/file", "nowhere.invalid: "), ("nonsense", "unknown url")],
    ids=["closed port", "unknown host", "nonsense"],  # the port differs from process to process
)
def test_no_network_is_told_in_one_line(tmp_path, url, reason):
    with pytest.raises(CannotStartError, match=f"cannot download file.bin.*{reason}") as raised:
        fetch(artefact(url), tmp_path, PATIENT)
    assert "\n" not in str(raised.value)


def test_a_server_that_never_answers_is_given_up_and_the_next_one_asked(server, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(CannotStartError, match=r"within 0\.2 s.*no answer"):
            fetch(artefact(url), tmp_path, IMPATIENT)
        assert fetch(artefact(url, server.url()), tmp_path, 2 * IMPATIENT + 1).read_bytes() == CONTENT


def test_a_hanging_name_resolver_is_given_up(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait() and [])
    try:
        with pytest.raises(CannotStartError, match="no answer"):
            fetch(artefact("http://hangs.invalid/file"), tmp_path, IMPATIENT)
        assert not release.is_set()  # control: it was not the resolver that came back
    finally:
        release.set()


def test_a_first_mirror_that_is_slow_still_wins_over_a_second_that_fails(server, tmp_path, monkeypatch):
    refused, begin = threading.Event(), download._begin

    def slow_first(url, had, size):
        if url == server.url():
            assert refused.wait(PATIENT)
            return begin(url, had, size)
        try:
            return begin(url, had, size)
        finally:
            refused.set()

    monkeypatch.setattr(download, "_begin", slow_first)
    assert fetch(artefact(server.url(), closed_port()), tmp_path, 2.0).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_to_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStartError, match=r"cannot write to the cache folder .*EQUIBENCH_CACHE"):
        fetch(artefact(closed_port()), tmp_path / "file", PATIENT)
