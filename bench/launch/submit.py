"""The launcher: submits the runs of a study, resumes interrupted ones and reports failures.

Several launchers may work on one study: a lock gives each run to one worker at a time (`bench.records.lock`), and
launchers use each other's results. On Slurm a launcher also waits for jobs that others have left in the queue.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from bench.config.run import LaunchConfig, RunConfig
from bench.config.study import StudyConfig
from bench.launch.choose import changes, last_checkpoint, set_aside, some, with_needed
from bench.launch.items import Item, plan, write_plan
from bench.launch.job import BUSY
from bench.launch.progress import Progress
from bench.launch.submission import Submission, job_name, outcome
from bench.records import store as records
from bench.records.lock import Holder, holder
from bench.records.store import RunFolder
from bench.run.execute import Until

log = logging.getLogger("equibench")

POLL_SECONDS = 0.5


def run_study(
    study: StudyConfig,
    runs_root: Path,
    retry: bool = False,
    argument: str | None = None,
    until: Until = Until.EVALUATED,
    only: Callable[[RunConfig], bool] = lambda _: True,
    force: bool = False,
) -> list[Item]:
    """Execute the missing runs; returns the items asked for. Failures are recorded and do not stop other runs.

    Args:
        retry: also retry failed runs.
        argument: the study as the user named it.
        until: the stage at which each run stops.
        only: which runs of the study to execute, besides those whose weights they need.
        force: set finished ones aside and execute them again.
    Raises:
        KeyboardInterrupt: interrupted, with a line on what is saved. Jobs on this machine are stopped; those in Slurm
            continue.
    """
    everything = plan(study, runs_root, until)
    study_folder = runs_root / study.name
    write_plan(study, everything, study_folder, argument or study.name)
    items = with_needed(everything, only)
    for line in changes(study_folder, everything):
        log.warning("%s", line)
    for item in items:
        if force and only(item.cfg) and item.status == "done":
            log.info("%s is set aside as %s", item.folder.name, set_aside(item.folder))
    # failed runs are repeated only on request: their cause seldom goes away by itself
    wanted = ("new", "running", "failed") if retry else ("new", "running")
    waiting = [item for item in items if item.status in wanted]  # parents come first
    log.info("%s: %d runs, %d to do", study.name, len(items), len(waiting))
    if waiting:
        with Progress(study.name, len(waiting)) as progress:
            try:
                work_off(waiting, study.launch, Submission(study.launch, study_folder), progress)
            except KeyboardInterrupt:
                if study.launch.cluster == "local":  # SIGINT to the launcher alone does not reach its jobs
                    for item in items:
                        if item.job is not None and not item.job.done():
                            item.job.cancel()
                raise KeyboardInterrupt(interrupted(study, items)) from None
    return items


def interrupted(study: StudyConfig, items: list[Item]) -> str:
    """One line on what an interrupted launcher leaves."""
    done, begun = (sum(item.status == word for item in items) for word in ("done", "running"))
    steps = {i.folder.name: last_checkpoint(i.folder) for i in items if i.status == "running"}
    saved = some([f"{name} to step {step}" for name, step in steps.items() if step])
    line = f"interrupted: {done} of {len(items)} runs done, {begun} begun{', saved ' if saved else ''}{saved}"
    on_slurm = f"; jobs in Slurm go on, `scancel --name {job_name(study.name)}` stops them"
    return f"{line}; {records.CONTINUES}{on_slurm if study.launch.cluster == 'slurm' else ''}"


def work_off(waiting: list[Item], launch: LaunchConfig, submit: Submission, progress: Progress) -> None:
    """Submit runs as slots become free, until none is waiting or running."""
    at_a_time = {"debug": 1, "local": launch.n_parallel, "slurm": launch.slurm_array_parallelism}[launch.cluster]
    running: list[Item] = []
    while waiting or running:
        for item in [i for i in running if i.job.done()]:
            running.remove(item)
            item.outcome = outcome(item)
            if item.outcome == BUSY:  # another launcher was faster: use its result when it is done
                item.shared = True
                waiting.append(item)
                continue
            progress.finished(item, item.outcome or "done")
        ready, elsewhere = sort_waiting(waiting, submit.by_others(waiting))
        # launchers on one machine share its slots; one on another machine has its own
        taken = len(running) + sum(
            launch.cluster == "slurm" or (who is not None and who.is_here) for who in elsewhere.values()
        )
        starting: list[Item] = []
        for item in ready[: max(0, at_a_time - taken)]:
            waiting.remove(item)
            if item.status == "done":
                progress.finished(item, "done by another launcher")
            elif item.shared and item.status == "failed":
                item.outcome = f"failed under another launcher: {item.reason}"
                progress.finished(item, item.outcome)
            elif item.needs is not None and item.needs.status != "done":
                item.outcome = f"not started: it needs {item.needs.folder.name}, which is {item.needs.status}"
                progress.finished(item, item.outcome)
            else:
                starting.append(item)
        refused = submit(starting)
        waiting += refused
        running += [item for item in starting if item not in refused]
        progress.show([*running, *(item for item in waiting if item.folder in elsewhere)])
        if waiting or running:
            time.sleep(0.0 if launch.cluster == "debug" else POLL_SECONDS)


def sort_waiting(waiting: list[Item], queued: set[str]) -> tuple[list[Item], dict[Path, Holder | None]]:
    """Items that can start, and those held elsewhere: folder -> holder, or None for a job in Slurm's queue.

    Items in neither are waiting for their parents.
    """
    ready: list[Item] = []
    elsewhere: dict[Path, Holder | None] = {}
    for item in waiting:
        needs = item.needs
        if needs is not None and (needs in waiting or (needs.job is not None and not needs.job.done())):
            continue
        who = holder(RunFolder(item.folder).lock)
        if who is None and item.folder.name not in queued:
            ready.append(item)
        else:
            item.shared, elsewhere[item.folder] = True, who
    return ready, elsewhere
