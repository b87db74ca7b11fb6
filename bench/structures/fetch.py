"""Fetch one file of known size and checksum: mirrors, resume, and an early end where there is no network.

Opening a connection happens in threads that are left behind when the time is up, because a hanging name resolver
knows no timeout. What has come so far lies in `<file>.part` and is carried on by an HTTP Range request.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from bench.records.inputs import cut, said
from bench.structures.dataset import DataError

log = logging.getLogger(__name__)

START_SECONDS = 9.0  # for all mirrors together; the promise to users is 10
STALL_SECONDS = 30.0  # without a byte, once a download runs
MAX_STALLS = 3  # attempts in a row that bring nothing
CHUNK = 1 << 16


class DownloadError(DataError):
    """A download that broke off or brought the wrong file; one line says what to do."""


class CannotStartError(DownloadError):
    """No mirror began to send the file in time, or there is nowhere to put it."""


class _InterruptedError(Exception):
    """The connection was lost while the file was coming."""


@dataclass(frozen=True)
class Artefact:
    """A file as published: its name, its mirrors in order of preference, its size in bytes and its SHA-256."""

    name: str
    urls: tuple[str, ...]
    size: int
    sha256: str

    def fault(self, path: Path) -> str | None:
        """What tells the file at `path` from the published one, or None when nothing does."""
        size = path.stat().st_size
        if size != self.size:
            return f"{size} bytes, expected {self.size}"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        return None if found == self.sha256 else f"SHA-256 {found[:16]}..., expected {self.sha256[:16]}..."


def fetch(artefact: Artefact, folder: Path, start_seconds: float = START_SECONDS) -> Path:
    """Path of the file in `folder`, downloaded and verified if it is not there yet.

    Raises:
        CannotStartError: no mirror began to send within `start_seconds`, or the folder cannot be written to.
        DownloadError: the download broke off (what came is kept) or brought another file (which is deleted).
    """
    target, part, lock = (folder / f"{artefact.name}{suffix}" for suffix in ("", ".part", ".lock"))
    for path in (target, part, lock):
        # through a link, another file would be written; a pipe would never end
        if (path.is_symlink() and path != target) or (path.exists() and not path.is_file()):
            raise CannotStartError(f"{path} is in the way: expected a regular file or none; remove it")
    with _locked(lock):
        if target.exists() and artefact.fault(target) is None:
            return target
        _complete(artefact, part, start_seconds)
        fault = artefact.fault(part)
        if fault:
            part.unlink()
            raise DownloadError(
                f"{artefact.name} came with {fault}; it was deleted. Run the command again, "
                f"or fetch it by hand from {artefact.urls[0]}"
            )
        part.replace(target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Runs that start together would write one .part file: the others wait here and find the file done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise CannotStartError(
            f"cannot write to the cache folder {path.parent} ({error.strerror}); set EQUIBENCH_CACHE to another one"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _complete(artefact: Artefact, part: Path, start_seconds: float) -> None:
    """Download into `part` what is still lacking there, over as many connections as it takes."""
    begun, stalls = False, 0
    while (had := part.stat().st_size if part.exists() else 0) < artefact.size:
        try:
            response, chunk = _first_answer(artefact, had, start_seconds)
            begun = True
            _receive(artefact, part, had, response, chunk)
        except (_InterruptedError, CannotStartError) as error:
            if not begun:
                raise
            stalls = 0 if part.stat().st_size > had else stalls + 1
            if stalls == MAX_STALLS or isinstance(error, CannotStartError):
                raise DownloadError(
                    f"the download of {artefact.name} broke off after {part.stat().st_size} of {artefact.size} bytes "
                    f"({error}); the same command carries on from there"
                ) from error
        except OSError as error:
            raise DownloadError(
                f"cannot write {part} ({said(error)}); make room, the same command carries on from there"
            ) from error


def _first_answer(artefact: Artefact, had: int, seconds: float) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask one mirror after the other, not waiting for the slow; the first that sends the right thing wins."""
    answers: queue.SimpleQueue[tuple[str, tuple[http.client.HTTPResponse, bytes] | Exception]] = queue.SimpleQueue()

    def ask(url: str) -> None:
        try:
            answers.put((url, _begin(url, had, artefact.size)))
        except Exception as error:  # handed to the waiting thread, whatever it is
            answers.put((url, error))

    deadline = time.monotonic() + seconds
    waiting, asked, faults = deque(artefact.urls), 0, {}
    while waiting or asked > len(faults):
        if waiting:
            threading.Thread(target=ask, args=(waiting.popleft(),), daemon=True).start()
            asked += 1
        share = (deadline - time.monotonic()) / (len(waiting) + 1)
        try:
            url, answer = answers.get(timeout=max(share, 0.0))
        except queue.Empty:
            if not waiting:
                break
            continue
        if not isinstance(answer, Exception):
            return answer
        faults[url] = _reason(answer)
    said = "; ".join(f"{urlsplit(url).netloc}: {faults.get(url, 'no answer')}" for url in artefact.urls)
    raise CannotStartError(f"cannot download {artefact.name} within {seconds:g} s ({said})")


def _begin(url: str, had: int, size: int) -> tuple[http.client.HTTPResponse, bytes]:
    """Open one mirror and read the first bytes; OSError unless it offers the rest of a file of `size` bytes."""
    headers = {"User-Agent": "equibench"} | ({"Range": f"bytes={had}-"} if had else {})
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=STALL_SECONDS)
    # Sign-in pages and robot checks answer 200 or 202 as well: what gives them away is the length.
    offered, content_range = response.headers.get("Content-Length"), response.headers.get("Content-Range", "")
    partial = response.status == 206
    if response.status not in (200, 206):
        fault = f"HTTP status {response.status}"
    elif partial and not content_range.startswith(f"bytes {had}-"):
        fault = f"sent {content_range!r}, asked for byte {had} onwards"
    elif offered is not None and int(offered) != size - had * partial:
        fault = f"offered {offered} bytes, expected {size - had * partial}"
    else:
        return response, response.read1(CHUNK)
    response.close()
    raise OSError(fault)


def _receive(artefact: Artefact, part: Path, had: int, response: http.client.HTTPResponse, chunk: bytes) -> None:
    """Write the first bytes and all that follow; a server that knows no ranges starts the file afresh."""
    resumed = response.status == 206
    log.info("downloading %s (%d bytes) from %s", artefact.name, artefact.size, urlsplit(response.url).netloc)
    bar = tqdm(total=artefact.size, initial=had * resumed, unit="B", unit_scale=True, desc=artefact.name, disable=None)
    came = had * resumed
    with response, bar, part.open("ab" if resumed else "wb") as file:
        while chunk:
            came += len(chunk)
            if came > artefact.size:  # of a server that states no length; it could go on for ever
                part.unlink()
                raise DownloadError(
                    f"{urlsplit(response.url).netloc} sent more than the {artefact.size} bytes of {artefact.name}; "
                    f"what came was deleted. Run the command again, or fetch it by hand from {artefact.urls[0]}"
                )
            file.write(chunk)
            bar.update(len(chunk))
            try:
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _InterruptedError(_reason(error)) from error
    if part.stat().st_size < artefact.size:
        raise _InterruptedError("the server stopped sending")


def _reason(error: Exception) -> str:
    """One line out of what urllib raises."""
    cause = getattr(error, "reason", error)  # of a URLError; a string in an HTTPError
    status = f"HTTP status {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
    return status + (said(cause) if isinstance(cause, Exception) else cut(str(cause)))
