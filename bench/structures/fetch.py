"""Download one published file of known SHA-256 into the cache: from its address through pooch, or a wheel through pip.

Either downloads to a temporary name; the checksum is verified before the file is moved into place, and a file that is
already there is verified and not downloaded again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.records.inputs import one_line, truncate
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

    @property
    def in_cache(self) -> bool:
        """Whether the cache has a file of this name, verified or not."""
        return (cache_folder() / self.name).is_file()


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

    folder = _made(cache_folder() if folder is None else folder)
    pooch.get_logger().setLevel("ERROR")  # failures are raised, and reported below
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        timeout=(CONNECT_SECONDS, STALL_SECONDS),
        headers={"User-Agent": "equibench", "Accept-Encoding": "identity"},
    )
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


def fetch_wheel(wheel: Artefact, folder: Path | None = None) -> Path:
    """Path of a verified wheel in `folder` (default: the cache), downloaded by pip from the registry it is set up for.

    The wheel is neither installed nor imported, and nothing of it is executed: a source distribution, whose download
    would build it, is refused.

    Args:
        wheel: its name begins with PROJECT-VERSION-.
    Raises:
        CannotStartError: there is no pip, it could not get the wheel, or the folder cannot be created.
        DownloadError: the file could not be written, or the registry has another one of this name.
    """
    folder = _made(cache_folder() if folder is None else folder)
    path = folder / wheel.name
    if path.is_file() and wheel.is_at(path):
        return path
    requirement = "==".join(wheel.name.split("-")[:2])
    log.info("downloading %s from the package registry", wheel.name)
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    options += ["--retries", "1", *([] if sys.stderr.isatty() else ["--quiet"])]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    try:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            # -P: nothing of the working directory is imported
            command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", made, requirement]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                raise CannotStartError(f"cannot download {wheel.name} (pip: {_said(done.stderr)})")
            if not wheel.is_at(Path(made, wheel.name)):
                raise DownloadError(
                    f"the package registry has another {wheel.name}, whose SHA-256 is wrong; fetch it by hand from "
                    f"{wheel.urls[0]} into {folder}"
                )
            Path(made, wheel.name).replace(path)
    except OSError as error:
        raise DownloadError(_unwritable(folder, error)) from error
    return path


def _said(errors: str) -> str:
    """pip's first error, else its last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no reason given"]
    first = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
    return truncate(first.removeprefix("ERROR:").strip(), 160)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStartError(_unwritable(folder, error)) from error
    return folder


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
