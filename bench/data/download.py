"""Fetch one file of known size and checksum: mirrors, resume, and an early end where there is no network.

Opening a connection happens in a thread that is left behind when the time is up, because a hanging name resolver
knows no timeout. What has come so far lies in `<file>.part` and is carried on by an HTTP Range request.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from bench.data.dataset import DataError

log = logging.getLogger(__name__)

START_SECONDS = 10.0  # for all mirrors together
STALL_SECONDS = 30.0  # without a byte, once a download runs
CHUNK = 1 << 16


class DownloadError(DataError):
    """A download that broke off or brought the wrong file; one line says what to do."""


class CannotStartError(DownloadError):
    """No mirror began to send the file in time."""


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
        CannotStartError: no mirror began to send within `start_seconds`; whatever came earlier is kept.
        DownloadError: the download broke off (what came is kept) or brought another file (which is deleted).
        OSError: the folder cannot be written to.
    """
    target, part = folder / artefact.name, folder / f"{artefact.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{artefact.name}.lock"):
        if target.exists() and artefact.fault(target) is None:
            return target
        attempts_without_progress = 0
        while (had := part.stat().st_size if part.exists() else 0) < artefact.size:
            try:
                _transfer(artefact, part, had, start_seconds)
            except CannotStartError as error:
                if attempts_without_progress == 0:
                    raise
                raise DownloadError(_broke_off(artefact, part, str(error))) from error
            except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
                attempts_without_progress = 1 if part.stat().st_size > had else attempts_without_progress + 1
                if attempts_without_progress == 3:
                    raise DownloadError(_broke_off(artefact, part, _reason(error))) from error
        fault = artefact.fault(part)
        if fault:
            part.unlink()
            raise DownloadError(
                f"{artefact.name} came with {fault}; it was deleted. Run the command again, "
                f"or fetch it by hand from {artefact.urls[0]}"
            )
        os.replace(part, target)
    return target


def _broke_off(artefact: Artefact, part: Path, reason: str) -> str:
    return (
        f"the download of {artefact.name} broke off after {part.stat().st_size} of {artefact.size} bytes ({reason}); "
        "the same command carries on from there"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Runs that start together would write one .part file: the others wait here and find the file done."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _transfer(artefact: Artefact, part: Path, had: int, start_seconds: float) -> None:
    """Append to `part` until the server stops sending; raises what the connection raises."""

    def begin(url: str) -> tuple[http.client.HTTPResponse, bytes]:
        return _begin(url, had, artefact)

    response, chunk = first_answer(artefact.urls, begin, start_seconds)
    resumed = response.status == 206
    log.info("downloading %s (%d bytes) from %s", artefact.name, artefact.size, urlsplit(response.url).hostname)
    bar = tqdm(
        total=artefact.size, initial=had if resumed else 0, unit="B", unit_scale=True, desc=artefact.name, disable=None
    )
    with response, bar, part.open("ab" if resumed else "wb") as file:
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = response.read(CHUNK)
    if part.stat().st_size < artefact.size:
        raise ConnectionError("the server stopped sending")


def _begin(url: str, had: int, artefact: Artefact) -> tuple[http.client.HTTPResponse, bytes]:
    """Open one mirror and read the first bytes; raises OSError unless it offers the rest of a file of the right size."""
    headers = {"User-Agent": "equibench", **({"Range": f"bytes={had}-"} if had else {})}
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=STALL_SECONDS)
    # A sign-in page or a robot check answers 200 or 202 as well: what gives it away is the length.
    offered = response.headers.get("Content-Length")
    start = response.headers.get("Content-Range", "")
    expected = artefact.size - had if response.status == 206 else artefact.size
    if response.status == 206 and not start.startswith(f"bytes {had}-"):
        fault = f"sent range {start!r}, asked for {had}-"
    elif response.status not in (200, 206):
        fault = f"answered HTTP {response.status}"
    elif offered is not None and int(offered) != expected:
        fault = f"offered {offered} bytes, expected {expected}"
    else:
        return response, response.read(CHUNK)
    response.close()
    raise OSError(fault)


def first_answer[T](urls: Sequence[str], begin: Callable[[str], T], seconds: float) -> T:
    raise NotImplementedError
