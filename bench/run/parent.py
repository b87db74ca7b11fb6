"""End a worker when its parent dies, so that nobody writes into a run whose lock is free (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel send SIGKILL to this worker when its parent dies; elsewhere than on Linux it finishes alone.

    Args:
        parent: PID of the parent; one that is dead already ends this worker at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
