"""End a worker when its parent dies, so that it cannot write into a run whose lock has been released (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel send SIGKILL to this worker when its parent dies; elsewhere than on Linux it finishes alone.

    Args:
        parent: PID of the parent; if it is dead already, this worker ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
