"""Standard output and standard error that a command does not depend on: what is lost there stops no work.

A closed pipe (`| head`), a full disk or a closed descriptor would end a study in the middle, or lose its exit code.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class BestEffort:
    """A text stream whose first failed write is kept in `error`, and which writes nothing from then on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def writable(self) -> bool:
        """False once a write has failed: who writes without end may stop."""
        return self.error is None

    def _try(self, call: Any) -> None:
        if self.error is None:
            try:
                call()
            except OSError as error:
                self.error = error
                with contextlib.suppress(OSError, ValueError):  # what is buffered must not fail again at exit
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def best_effort() -> Iterator[BestEffort]:
    """Within this context both standard streams are best effort; yields the output."""
    for number in (0, 1, 2):  # the next file opened would take a free number, and receive what is printed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Python has None in place of a stream that was closed when it started
    before = sys.stdout, sys.stderr
    out, err = (BestEffort(stream or Path(os.devnull).open("w")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    try:
        yield out
        out.flush()
        err.flush()
    finally:
        sys.stdout, sys.stderr = before
