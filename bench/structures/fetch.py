"""Download one published file of known SHA-256 into the cache, through pooch.

pooch downloads to a temporary name, verifies the checksum and only then moves the file into place; a file that is
already there is verified and not downloaded again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.records.inputs import one_line
from bench.structures.dataset import DataError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
STALL_SECONDS = 30.0  # without a byte, once a download runs


class DownloadError(DataError):
    """A failed download; one line says why and what to do."""


class CannotStartError(DownloadError):
    """No mirror could be reached, or the cache folder cannot be created."""


@dataclass(frozen=True)
class Artefact:
    """A published file: its name, its mirrors in order of preference and its SHA-256."""

    name: str
    urls: tuple[str, ...]
    sha256: str

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` has the published checksum."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


def cache_folder() -> Path:
    """Folder of downloads and parsed archives: EQUIBENCH_CACHE, else ~/.cache/equibench."""
    return Path(os.environ.get("EQUIBENCH_CACHE") or Path.home() / ".cache" / "equibench")


def fetch(artefact: Artefact, folder: Path | None = None) -> Path:
    """Path of the verified file in `folder` (default: the cache), downloaded if it is not there yet.

    Each mirror is tried once, in order.

    Raises:
        CannotStartError: no mirror could be reached, or the folder cannot be created.
        DownloadError: the download broke off, the file could not be written, or a mirror sent another file.
    """
    import pooch  # here, because pooch and requests take a moment to load and most runs download nothing
    import requests

    folder = cache_folder() if folder is None else folder
    pooch.get_logger().setLevel("ERROR")  # failures are raised, and reported below
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        timeout=(CONNECT_SECONDS, STALL_SECONDS),
        headers={"User-Agent": "equibench", "Accept-Encoding": "identity"},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStartError(_unwritable(folder, error)) from error
    if (folder / artefact.name).is_file() and artefact.is_at(folder / artefact.name):
        return folder / artefact.name
    reasons, began = [], False
    for url in artefact.urls:
        log.info("downloading %s from %s", artefact.name, urlsplit(url).netloc)
        try:
            path = pooch.retrieve(
                url,
                known_hash=f"sha256:{artefact.sha256}",
                fname=artefact.name,
                path=folder,
                downloader=downloader,  # pyright: ignore[reportArgumentType] - pooch's protocol names other parameters
            )
            return Path(path)
        except requests.exceptions.ChunkedEncodingError:
            reason, began = "the connection broke off", True
        except requests.exceptions.RequestException as error:
            reason = _reason(error)
        except ValueError:  # raised by pooch, which has deleted the file
            reason, began = "sent another file, whose SHA-256 is wrong", True
        except OSError as error:
            raise DownloadError(_unwritable(folder, error)) from error
        reasons.append(f"{urlsplit(url).netloc or url}: {reason}")
    message = f"cannot download {artefact.name} ({'; '.join(reasons)})"
    if began:
        raise DownloadError(f"{message}; run the command again, or fetch it by hand from {artefact.urls[0]}")
    raise CannotStartError(message)


def _unwritable(folder: Path, error: OSError) -> str:
    return f"cannot write to the cache folder {folder} ({one_line(error)}); make room or set EQUIBENCH_CACHE"


def _reason(error: Exception) -> str:
    """One short reason out of the chain of exceptions that requests and urllib3 build."""
    import requests

    if isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)  # urllib3's MaxRetryError -> the last failure
    cause = getattr(cause, "__cause__", None) or cause  # -> the operating system's error
    return one_line(cause) if isinstance(cause, Exception) else one_line(error)
