"""What is raised where several processes train one run and one of them fails."""

import errno
import os
import time

import pytest
from bench.run.parallel import start

from bench.records.store import disk_error


def fail(code: int, slow: bool) -> None:
    """Rank 1 fails; the other one ends in an error of its own, as when it loses its connection."""
    import torch.distributed as dist

    if dist.get_rank() == 1:
        time.sleep(3 * slow)
        raise OSError(code, os.strerror(code))
    time.sleep(3 * (not slow))
    raise RuntimeError("lost the connection")


def test_a_full_disk_is_told_whichever_process_ends_first():
    with pytest.raises(OSError, match="No space left on device") as caught:
        start(fail, 2, "cpu", errno.ENOSPC, False)
    assert disk_error(caught.value)


def test_another_error_is_not_one_of_the_disk():
    with pytest.raises(RuntimeError, match=r"process \d of 2: ") as caught:
        start(fail, 2, "cpu", errno.EIO, False)
    assert disk_error(caught.value) is None
