"""The submitit job: a supervisor that executes a run in a child interpreter and records crashes.

    launcher (equibench run) -> submitit's controller -> `Job`, the supervisor -> `python -m bench.launch.job`, the run

The supervisor loads neither torch nor data, so it survives when memory runs out. If it dies, the run dies with it.
Slurm sends SIGTERM and SIGUSR2 to both; the run ignores them, and the supervisor answers through submitit.
"""

from __future__ import annotations

import contextlib
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

from bench.records import schema
from bench.records import store as records
from bench.records.lock import BusyError, locked
from bench.records.store import RunFolder
from bench.run.interpreter import environment, python
from bench.run.parent import die_with

BUSY = "another worker holds it"
GRACE_SECONDS = 5.0  # between SIGINT and SIGKILL
SETTLE_SECONDS = 1.0  # before a failure is recorded: if the whole job is being killed, the supervisor dies meanwhile
ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # requests to stop; death by other signals is a failure
LEFT = (signal.SIGTERM, signal.SIGUSR2)  # ignored by the run, answered by its supervisor


class Job:
    """One run under supervision. A failure is recorded in the manifest, so it is returned, not raised."""

    def __init__(self, here: bool = False) -> None:
        """here: execute the run in this interpreter, without supervision, for a debugger."""
        self.here = here
        self.child: subprocess.Popen | None = None

    def __call__(self, config: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
        """None, or one line on why there is no result."""
        return (work if self.here else self.watch)(config, folder, n_parallel, until)

    def watch(self, config: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
        """Start the run in a child interpreter and wait for its result or its death."""
        ours, theirs = os.pipe()
        command = python("bench.launch.job", folder, str(n_parallel), until, str(theirs), str(os.getpid()))
        try:
            with blocked(LEFT):  # inherited by the child, until it ignores them
                # a process group of its own, so that its children can be killed with it
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    pass_fds=(theirs,),
                    process_group=0,
                    text=True,
                    env=environment(),
                )
            os.close(theirs)
            # wait in another thread: `checkpoint` interrupts this one, and a wait here would hold Popen's lock
            waiter = threading.Thread(target=self.child.wait, daemon=True)
            waiter.start()
            with contextlib.suppress(BrokenPipeError), cast(IO[str], self.child.stdin) as stdin:
                stdin.write(json.dumps(config))  # a broken pipe means that the child has died; its exit code says why
            waiter.join()
        except subprocess.SubprocessError as error:
            # `scontrol requeue`, called by submitit after `checkpoint`, has failed. With a result the launcher would
            # consider the job finished; without one it asks the queue whether Slurm requeues it
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
        """End the run and its children."""
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
        """On a time limit or a preemption: resubmit the job, which resumes from the run's checkpoint."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Job(self.here), *args)


@contextlib.contextmanager
def blocked(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Block signals within this context: they are delivered at its end, and children inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(config: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
    """Execute the run; None, or one line on why there is no result."""
    from bench.config.run import trusted_run
    from bench.run.execute import Until, execute, reason_of

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    try:
        execute(trusted_run(config), Path(folder), n_parallel, Until(until))
    except BusyError:
        return BUSY
    except Exception as error:  # one failing run must not stop the study
        return reason_of(error)
    return None


def death(code: int) -> str:
    """One line on a run that ended without a result."""
    if code >= 0:
        return f"ended with exit code {code} and no result; see `equibench logs`"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    memory = ", as where memory runs out" if -code == signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}{memory})"


def record_failure(folder: Path, reason: str) -> None:
    """Set the status of a run from 'running' to 'failed'."""
    path = RunFolder(folder).manifest
    with contextlib.suppress(BusyError, FileNotFoundError, schema.RecordError), locked(folder):
        manifest = records.read_json(path, schema.MANIFEST)
        if manifest["status"] == "running":
            records.write_json(path, manifest | {"status": "failed", "reason": reason}, schema.MANIFEST)


def main() -> None:
    """python -m bench.launch.job FOLDER N_PARALLEL UNTIL PIPE PARENT, the configuration on the standard input."""
    folder, n_parallel, until, pipe, parent = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:6])
    die_with(parent)
    for number in LEFT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT)  # blocked by `Job`
    said = json.dumps(work(json.load(sys.stdin), folder, n_parallel, until))
    with os.fdopen(pipe, "w") as file:
        file.write(said)


if __name__ == "__main__":
    main()
