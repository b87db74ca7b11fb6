"""What submitit executes: one run, in a process of its own under one that watches, so that no death goes unrecorded.

    launcher (equibench run) -> submitit's controller -> `Job`, which watches -> `python -m bench.launch.job`, the run

The watching process loads neither torch nor data, and survives where memory runs out. It dies of what ends submitit's
jobs; the run under it dies with it, or, of SIGTERM and SIGUSR2, which Slurm sends to both, leaves the answer to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from bench.records import store as records
from bench.records.lock import BusyError, locked
from bench.run.interpreter import environment, python

BUSY = "another process is working on it"
GRACE_SECONDS = 5.0  # of a run that is asked to stop, before it is killed
SETTLE_SECONDS = 1.0  # where the whole job is being killed, the run is not to blame, and this process dies meanwhile
ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # to stop; of any other signal a run dies as a failure
LEFT = (signal.SIGTERM, signal.SIGUSR2)  # by a run to the process that watches it


class Job:
    """One run. A failure is in the manifest already, so it is returned, not raised."""

    def __init__(self, here: bool = False) -> None:
        """here: in this process, for a debugger; then nothing watches."""
        self.here = here
        self.child: subprocess.Popen | None = None

    def __call__(self, page: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
        """None, or a line on why there is no result."""
        return (work if self.here else self.watch)(page, folder, n_parallel, until)

    def watch(self, page: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
        """Start the run's process and wait for what it says, or for its death."""
        ours, theirs = os.pipe()
        command = python("bench.launch.job", folder, str(n_parallel), until, str(theirs), str(os.getpid()))
        try:
            with blocked(LEFT):  # for the child too, until it ignores them
                # a group of its own, so that the processes that it starts can be ended with it
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    pass_fds=(theirs,),
                    process_group=0,
                    text=True,
                    env=environment(),
                )
            os.close(theirs)
            # in a thread: `checkpoint` interrupts this one, and would wait for the lock that a wait here holds
            waiter = threading.Thread(target=self.child.wait, daemon=True)
            waiter.start()
            with contextlib.suppress(BrokenPipeError), cast(IO[str], self.child.stdin) as stdin:
                stdin.write(json.dumps(page))  # to no avail where the process is dead already; its code says why
            waiter.join()
        except subprocess.SubprocessError as error:
            # `scontrol requeue`, which submitit calls after `checkpoint`, has failed: Slurm queues the job again by
            # itself, or never will. A result would tell the launcher that the job is over; without one it looks
            raise SystemExit(1) from error
        finally:
            self.stop()
        with os.fdopen(ours) as pipe:
            said = pipe.read()
        if said:
            return json.loads(said)
        why = death(self.child.returncode)
        if -self.child.returncode in ASKED:
            return f"{why}; {records.CONTINUES}"
        time.sleep(SETTLE_SECONDS)
        record_failure(Path(folder), why)
        return why

    def stop(self) -> None:
        """End the run, if it has not ended, and what it has left behind."""
        if self.child is None:
            return
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def checkpoint(self, *args: Any) -> Any:
        """On a time limit or a preemption: the same job once more, which goes on from the run's own checkpoint."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Job(self.here), *args)


@contextlib.contextmanager
def blocked(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Signals that come to this thread in here come at the end; a process that starts in here has them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(page: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
    """The run itself; None, or a line on why there is no result."""
    from bench.config.run import trusted_run
    from bench.run.execute import Until, execute, reason_of

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    try:
        execute(trusted_run(page), Path(folder), n_parallel, Until(until))
    except BusyError:
        return BUSY
    except Exception as error:  # a run must not take the study down
        return reason_of(error)
    return None


def death(code: int) -> str:
    """A line on a process that ended without saying why."""
    if code >= 0:
        return f"ended with exit code {code} and no word; see `equibench logs`"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    memory = ", as where memory runs out" if -code == signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}{memory})"


def record_failure(folder: Path, reason: str) -> None:
    """Write into a run's record, if it has one that says 'running', that it has failed."""
    path = folder / "manifest.json"
    with contextlib.suppress(BusyError, FileNotFoundError, records.RecordError), locked(folder):
        manifest = records.read_json(path, records.MANIFEST)
        if manifest["status"] == "running":
            records.write_json(path, manifest | {"status": "failed", "reason": reason}, records.MANIFEST)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone (Linux; elsewhere it finishes its run alone)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # gone before this was asked for
            sys.exit(1)


def main() -> None:
    """python -m bench.launch.job FOLDER N_PARALLEL UNTIL PIPE PARENT, the configuration on the standard input."""
    folder, n_parallel, until, pipe, parent = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:6])
    die_with(parent)
    for number in LEFT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT)  # which `Job` has blocked
    said = json.dumps(work(json.load(sys.stdin), folder, n_parallel, until))
    with os.fdopen(pipe, "w") as file:
        file.write(said)


if __name__ == "__main__":
    main()
