"""The submitit job: a supervisor that executes a run in a child process (the worker) and records crashes.

    launcher (equibench run) -> submitit's controller or Slurm -> `Job`, the supervisor -> python -m bench.launch.job

The supervisor loads neither torch nor data, so it survives when memory runs out. The worker dies with it (Linux). Slurm
sends SIGTERM and SIGUSR2 to both: the worker ignores them, submitit's handlers in the supervisor answer.
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

BUSY = "another worker has it"
GRACE_SECONDS = 5.0  # between SIGINT to a worker and SIGKILL
SETTLE_SECONDS = 1.0  # if the whole job is being killed, the supervisor dies meanwhile and records no failure
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # requests to stop; death by any other signal is a failure
SUPERVISED = (signal.SIGTERM, signal.SIGUSR2)  # ignored by the worker, answered by the supervisor


class Job:
    """One run, as submitit calls it. The worker records failures, so they are returned and not raised."""

    def __init__(self, here: bool = False) -> None:
        """here: execute the run in this process, without a supervisor, e.g. for a debugger."""
        self.here = here
        self.child: subprocess.Popen | None = None

    def __call__(self, config: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
        """None, or one line on why the run was not executed to its end."""
        return (work if self.here else self.supervise)(config, folder, n_parallel, until)

    def supervise(self, config: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
        """Start the worker and wait for its result, or for its death."""
        ours, theirs = os.pipe()
        command = python("bench.launch.job", folder, str(n_parallel), until, str(theirs), str(os.getpid()))
        try:
            with blocked(SUPERVISED):  # inherited by the worker, until it ignores them
                # in a process group of its own, so that whatever it starts can be killed with it
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    pass_fds=(theirs,),
                    process_group=0,
                    text=True,
                    env=environment(),
                )
            os.close(theirs)
            # in a thread: the signal handler calls `checkpoint` in this one, and `stop` would wait for Popen's lock
            waiter = threading.Thread(target=self.child.wait, daemon=True)
            waiter.start()
            with contextlib.suppress(BrokenPipeError), cast(IO[str], self.child.stdin) as stdin:
                stdin.write(json.dumps(config))  # a broken pipe means that the worker is dead; see its exit code
            waiter.join()
        except subprocess.SubprocessError as error:
            # `scontrol requeue`, which submitit calls after `checkpoint`, has failed: Slurm requeues the job by itself,
            # or never. With a result the launcher would take the job as finished; without one it asks squeue
            raise SystemExit(1) from error
        finally:
            self.stop()
        with os.fdopen(ours) as pipe:
            result = pipe.read()
        if result:
            return json.loads(result)
        why = death(self.child.returncode)
        if -self.child.returncode in STOPS:
            return f"{why}; {records.CONTINUES}"
        time.sleep(SETTLE_SECONDS)
        record_failure(Path(folder), why)
        return why

    def stop(self) -> None:
        """Stop the worker, if it runs, and kill whatever it has started."""
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
        """Called by submitit on a time limit or a preemption: requeue the job; the run resumes from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Job(self.here), *args)


@contextlib.contextmanager
def blocked(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Hold back signals to this thread until the end of the block; a child started within inherits the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(config: dict[str, Any], folder: str, n_parallel: int, until: str) -> str | None:
    """Execute the run in this process; None, or one line on why it was not executed to its end."""
    from bench.config.run import trusted_run
    from bench.run.execute import Until, execute, reason_of

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    try:
        execute(trusted_run(config), Path(folder), n_parallel, Until(until))
    except BusyError:
        return BUSY
    except Exception as error:  # a failed run must not stop the study
        return reason_of(error)
    return None


def death(code: int) -> str:
    """One line on a worker that died without a result, from its exit code."""
    if code >= 0:
        return f"died with exit code {code} and without a result; see `equibench logs`"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    memory = ", as where memory runs out" if -code == signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}{memory})"


def record_failure(folder: Path, reason: str) -> None:
    """Record a failure in the manifest of a run that says 'running'."""
    path = RunFolder(folder).manifest
    with contextlib.suppress(BusyError, FileNotFoundError, schema.RecordError), locked(folder):
        manifest = records.read_json(path, schema.MANIFEST)
        if manifest["status"] == "running":
            records.write_json(path, manifest | {"status": "failed", "reason": reason}, schema.MANIFEST)


def main() -> None:
    """python -m bench.launch.job FOLDER N_PARALLEL UNTIL PIPE PARENT, the configuration on the standard input."""
    folder, n_parallel, until, pipe, parent = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:6])
    die_with(parent)
    for number in SUPERVISED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED)  # blocked by `Job.supervise`
    result = json.dumps(work(json.load(sys.stdin), folder, n_parallel, until))
    with os.fdopen(pipe, "w") as file:
        file.write(result)


if __name__ == "__main__":
    main()
