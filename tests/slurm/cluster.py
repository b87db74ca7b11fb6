"""A real Slurm of one node, for tests: `python tests/slurm/cluster.py start|stop FOLDER` as root on Debian or Ubuntu.
`install` alone installs what is missing, or says in one line why it cannot.

Controller, node daemon and munge run from one folder that holds their configuration, state, logs and key; nothing of
the machine's own Slurm is touched. The node claims more cores than there are, so that small runs lie side by side. A
job of the partition `high` takes the place of jobs of `low`, which go back into the queue. No accounting, as on many
small clusters.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sdiag")
N_CORES = 8
SECONDS = 60.0  # for anything the daemons are waited for

# KillWait is short, or every cancelled job would take half a minute. Slurm looks at time limits every 30 seconds.
CONFIGURATION = """
ClusterName=equibench
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.own.pid
SlurmdPidFile={folder}/slurmd.own.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=64
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
KillWait=3
MinJobAge=3600
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={node} NodeAddr=127.0.0.1 Sockets=1 CoresPerSocket={n_cores} ThreadsPerCore=1 RealMemory=4096 Gres=gpu:2
PartitionName=low Nodes={node} Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=high Nodes={node} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
GRES = "NodeName={node} Name=gpu File=/dev/null,/dev/zero\n"  # in name only: there is no GPU behind them


def install() -> str | None:
    """None where the programs are there, or could be installed; else a line on why not."""
    if not sys.platform.startswith("linux"):
        return f"a Slurm of one node needs Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "a Slurm of one node needs root, to install its packages and to start its daemons"
    if not (missing := [name for name in PROGRAMS if shutil.which(name) is None]):
        return None
    if shutil.which("apt-get") is None:
        return f"{', '.join(missing)} not found, and there is no apt-get to install {' and '.join(PACKAGES)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for line in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *line], env=environment, capture_output=True, text=True, check=False)
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    why = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return f"apt-get could not install {' and '.join(PACKAGES)}: {why}" if missing else None


class Cluster:
    """One node, its controller and munge, all in one folder; any process may take it up by the folder's name.

    munge runs as its own user, so that user must be able to enter the folder (no folder of pytest's, which are closed).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.node = socket.gethostname().split(".")[0]
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ daemons

    def start(self) -> None:
        """Write the configuration, start the three daemons and wait until the node takes jobs."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)
        ports = dict(zip(("controller_port", "node_port"), free_ports(2), strict=True))
        text = CONFIGURATION.format(folder=self.folder, node=self.node, n_cores=N_CORES, **ports)
        (self.folder / "slurm.conf").write_text(text.lstrip())
        (self.folder / "gres.conf").write_text(GRES.format(node=self.node))
        self.start_munge()
        self.start_controller()
        self.start_node()

    def start_munge(self) -> None:
        home = self.folder / "munge"
        (home / "key").write_bytes(os.urandom(128))
        for path in (home, home / "key"):
            shutil.chown(path, "munge", "munge")
        (home / "key").chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={home / name}" for option, name in files.items()]
        self.daemon("munged", "--foreground", *options, user="munge")
        wait_for((home / "socket").exists, f"munge to open its socket, see {self.folder}/munged.out")

    def start_controller(self) -> None:
        self.daemon("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        wait_for(lambda: "UP" in self.ask("scontrol", "ping"), "the controller to answer")

    def start_node(self) -> None:
        self.daemon("slurmd", "-D", "-N", self.node, "-f", self.environment["SLURM_CONF"])
        wait_for(lambda: self.node_state() in ("IDLE", "MIXED", "ALLOCATED"), "the node to register")

    def daemon(self, *command: str, user: str | None = None) -> None:
        name = command[0]
        with (self.folder / f"{name}.out").open("a") as out:
            process = subprocess.Popen(
                command, env=self.environment, user=user, group=user, stdout=out, stderr=out, start_new_session=True
            )
        (self.folder / f"{name}.pid").write_text(str(process.pid))

    def stop(self) -> None:
        """End jobs and daemons; no process is left."""
        if self.pid("slurmctld"):
            with contextlib.suppress(subprocess.SubprocessError, TimeoutError):  # what is left is killed below
                self.ask("scancel", "--me")
                wait_for(lambda: not self.ask("squeue", "--noheader"), "the jobs to end")
        self.kill_node()
        for name in ("slurmctld", "munged"):
            if pid := self.pid(name):
                send([pid], signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    wait_for(lambda name=name: self.pid(name) is None, f"{name} to end", 10.0)
                send([pid] if self.pid(name) else [], signal.SIGKILL)

    def pid(self, name: str) -> int | None:
        """Of a daemon that runs; None of one that has ended."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / f"{name}.pid").read_text())
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # where it is a child of this process, it would stay as a zombie
            if (Path("/proc") / str(pid) / "comm").read_text().strip() == name:
                return pid
        return None

    # ------------------------------------------------------------------ what happens to a node

    def kill_node(self) -> None:
        """SIGKILL of all that runs on the node, as when the power goes."""
        daemon = self.pid("slurmd")
        send([daemon] if daemon else [], signal.SIGKILL)  # first, or it would report on the deaths of the others
        while pids := self.node_processes():
            send(pids, signal.SIGKILL)
            time.sleep(0.1)
        wait_for(lambda: self.pid("slurmd") is None, "slurmd to end")

    def restart_node(self) -> None:
        """The power goes, the controller notices, and the node comes back (ReturnToService)."""
        self.kill_node()
        self.ask("scontrol", "update", f"NodeName={self.node}", "State=DOWN", "Reason=power")
        self.start_node()
        # the controller has told the node to end its jobs, and says so until it is heard; who starts them again before
        # that has them ended again (therefore Slurm lets them wait two minutes)
        wait_for(self.all_is_said, "the controller's messages to arrive")

    def node_processes(self) -> list[int]:
        """Jobs, and the daemons that start them, by the environment that they have from this cluster."""
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}"
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_text(errors="replace").split("\0")
                is_step = (entry / "comm").read_text().strip() == "slurmstepd"
                if ours in variables and (is_step or any(v.startswith("SLURM_JOB_ID=") for v in variables)):
                    found.append(int(entry.name))
        return found

    # ------------------------------------------------------------------ questions

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=SECONDS)
        return done.stdout.strip()

    def node_state(self) -> str:
        found = re.search(r"State=(\S+)", self.ask("scontrol", "show", "node", self.node))
        return found[1] if found else ""

    def all_is_said(self) -> bool:
        """Whether the controller has no message on its way."""
        counts = re.findall(r"^Agent (?:queue size|count): +(\d+)$", self.ask("sdiag"), flags=re.MULTILINE)
        return counts == ["0", "0"]

    def jobs(self) -> dict[str, dict[str, str]]:
        """Number -> what Slurm knows of the job, also of ended ones; tasks of an array that wait are one job."""
        found = {}
        for line in self.ask("scontrol", "--oneliner", "show", "job", "--all").splitlines():
            job = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if "JobId" not in job:
                continue  # a line that says that there are none
            task = job.get("ArrayTaskId")
            found[f"{job['ArrayJobId']}_{task}" if task else job["JobId"]] = job
        return found


def free_ports(n: int) -> Iterable[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.3)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["stop", folder]:
            Cluster(Path(folder)).stop()
            return 0
        case ["start", _] | ["install"]:
            pass
        case _:
            print("usage: python tests/slurm/cluster.py start FOLDER | stop FOLDER | install", file=sys.stderr)
            return 2
    if reason := install():
        print(reason, file=sys.stderr)
        return 1
    if arguments[0] == "start":
        cluster = Cluster(Path(arguments[1]))
        cluster.start()
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
