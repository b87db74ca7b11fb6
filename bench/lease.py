"""`equibench lease`: a run on a machine that is lent for a while, which has no job system, no network and no RDKit.

    plan    here: a run of a study and its data, as a folder to take along
    there   there: checks, training, sampling and likelihood until time is up, then all that is worth it into a parcel
    score   here: out of the parcel into runs/, and scored, so that it is a run like any other

`there` imports neither rdkit, submitit nor omegaconf. docs/lease.md shows how the three go together.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import records
from bench.locks import locked
from bench.reading import is_folder_name

if TYPE_CHECKING:
    from bench.clock import Deadline
    from bench.config import RunConfig
    from bench.data.dataset import DataSet
    from bench.runners import Item

log = logging.getLogger("equibench")

ROOT = Path(__file__).parents[1]
LEASE = ".lease"  # folder to take along
CHECKS = ".checks"  # folder in runs/ of what `there --checks` has found
CUDA_TESTS = "pytest -o addopts= -p no:cacheprovider -q -rs -k cuda tests/property"
GRACE = 15.0  # seconds for the cell or the test that is under way when time is up
RESERVE_SECONDS = 30.0  # of those given: for the last checkpoint and the parcel
NOT_FINISHED = os.EX_TEMPFAIL  # exit code: the same command goes on
MIB = 1 << 20
TAR_MARGIN = 1 << 15  # bytes that a tar takes beside a file's content, more than enough

PLAN: dict[str, Any] = {  # lease.json
    "schema": int,
    "written_by": str,
    "created": str,
    "code": records.CODE,
    "digest": str,  # of that code
    "data": records.MANIFEST["data"],
    "runs": list,  # their configurations; one that others need comes before them
}
PARCEL: dict[str, Any] = {  # parcel.json, beside the parts of a tar
    "schema": int,
    "runs": list,  # STUDY/RUN
    "n_parts": int,
    "sha256": str,  # of the parts, joined
    "left_behind": list,  # files that had no room, with their size
}


def add_arguments(parser: argparse.ArgumentParser, runs: Path, results: Path) -> None:
    """The three verbs; runs/ and results/ are where the other commands have them."""
    parser.set_defaults(runs=runs, results=results)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    command = verbs.add_parser("plan", help="here: write the next run of a study, and its data, into a folder")
    command.add_argument("study", help="as for `equibench run`, e.g. qm9_lease")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.max_seconds=600")
    command.add_argument("--only", metavar="NAME", default="", help="beginning of its name (default: the first to do)")
    command.add_argument("-o", "--out", type=Path, default=Path(LEASE), help="folder to write (default %(default)s)")

    command = verbs.add_parser("there", help="there: train, sample and bound until time is up, and pack the parcel")
    command.add_argument("lease", type=Path, nargs="?", default=Path(LEASE), help="that folder (default %(default)s)")
    command.add_argument("--seconds", type=float, required=True, help="until this command has to have ended")
    command.add_argument("--out", type=Path, required=True, help="folder that is brought home")
    command.add_argument("--checks", type=float, metavar="SECONDS", help="first CUDA tests and timings, for so long")
    command.add_argument("--mib", type=float, default=60, help="that may be brought home (default %(default)s)")
    command.add_argument("--part-mib", type=float, default=15, help="and of a file of it (default %(default)s)")

    command = verbs.add_parser("score", help="here: unpack the parcel into runs/ and score what is finished")
    command.add_argument("parcel", type=Path, help="folder that was brought home")


def run(args: argparse.Namespace) -> int:
    """`equibench lease`."""
    if args.verb == "plan":
        print(plan(args.study, args.overrides, args.only, args.runs, args.results, args.out))  # noqa: T201
        return 0
    if args.verb == "there":
        return there(args)
    return score(args.parcel, args.runs)


# ---------------------------------------------------------------------- here, before


def plan(study_name: str, overrides: list[str], name: str, runs: Path, results: Path, out: Path) -> str:
    """Write the folder to take along; returns a line on it.

    Raises:
        ConfigError: no such study or run, nothing to do, or several processes asked for.
        DataError: the data cannot be had.
    """
    from bench import files
    from bench.config import ConfigError
    from bench.evaluate import package_version
    from bench.execute import load_data
    from bench.provenance import code_version, now
    from bench.runners import plan as items_of
    from bench.runners import write_plan
    from bench.studies import load_study

    study = load_study(study_name, overrides)
    items = items_of(study, runs)
    chosen = choose(items, name, results / study.name)
    if any(item.cfg.train.n_processes > 1 for item in chosen):
        raise ConfigError("train.n_processes is more than 1; on a lent machine a run is one process")
    write_plan(study, items, runs / study.name, study_name)  # for report and publish
    data = load_data(chosen[0].cfg)
    for split, structures in data.splits.items():
        files.write(out / "data" / f"{split}.npz", structures)
    record = {
        "schema": records.SCHEMA_VERSION,
        "written_by": package_version(),
        "created": now(),
        "code": code_version(),
        "digest": code_digest(),
        "data": data.record(),
        "runs": [item.cfg.page() for item in chosen],
    }
    records.write_json(out / "lease.json", record, PLAN)
    size = sum(path.stat().st_size for path in out.rglob("*.*")) / MIB
    return f"{out}: {' and '.join(item.folder.name for item in chosen)} on {data.label}, {size:.1f} MiB"


def choose(items: list[Item], name: str, published: Path) -> list[Item]:
    """The first run without a result whose name begins so; without a name, the first that trains its own weights.

    A run that samples with another's weights comes after that one, since weights may be too large to be brought home.
    """
    from bench.config import ConfigError

    def is_open(item: Item) -> bool:
        return item.status not in ("done", "skipped") and not (published / item.folder.name / "eval.json").exists()

    left = [item for item in items if is_open(item)]
    found = [item for item in left if item.folder.name.startswith(name) and (name or item.needs is None)]
    if not found:
        names = ", ".join(item.folder.name for item in left) or "none"
        raise ConfigError(f"no run {f'{name!r} ' if name else ''}is left to be made; left are: {names}")
    item = found[0]
    if item.needs is None:
        return [item]
    if item.needs not in left:
        raise ConfigError(
            f"{item.folder.name} samples with the weights of {item.needs.folder.name}, which has its result already; "
            "`equibench run` makes it where those weights are"
        )
    return [item.needs, item]


def code_digest() -> str:
    """SHA-256 of the code that makes a run, to know a copy of it without its repository."""
    digest = hashlib.sha256()
    for path in sorted(path for package in ("bench", "methods") for path in (ROOT / package).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------- there


def there(args: argparse.Namespace) -> int:
    """Do of the planned runs what there is time for, and pack; 0: all of it, NOT_FINISHED, or 1: a run has failed."""
    started = time.monotonic()
    from bench.clock import Deadline, TimeUpError
    from bench.config import RunConfig, build
    from bench.execute import execute, reason_of
    from bench.provenance import CODE_VARIABLE

    deadline = Deadline(started + args.seconds - RESERVE_SECONDS)
    planned = records.read_json(args.lease / "lease.json", PLAN)
    changed = {} if planned["digest"] == code_digest() else {"dirty": True}
    os.environ[CODE_VARIABLE] = json.dumps(planned["code"] | changed)
    runs = [build(RunConfig, page) for page in planned["runs"]]
    if args.checks:
        until = Deadline(min(deadline.at, time.monotonic() + args.checks))
        check_machine(runs[0], args.lease / "data", until, args.runs / CHECKS)
    data = read_data(planned["data"], args.lease / "data")
    folders, code = [], 0
    for cfg in runs:
        folders.append(args.runs / cfg.study / cfg.run_name(data.fingerprint))
        try:
            execute(cfg, folders[-1], data=data, deadline=deadline, score=False)
        except TimeUpError:
            log.info("time is up; the same command goes on from here")
            code = NOT_FINISHED
            break
        except Exception as error:  # the run's record and log tell more of it, and are worth bringing home
            log.error("%s: %s", folders[-1].name, reason_of(error))
            code = 1
            break
    left_behind = pack(folders, args.runs, args.out, int(args.mib * MIB), int(args.part_mib * MIB))
    for line in left_behind:
        log.warning("no room for %s", line)
    log.info("%s: %s", args.out, "all is made; bring it home and score it" if code == 0 else "what there is so far")
    return code


def read_data(record: dict[str, Any], folder: Path) -> DataSet:
    """The data set that `plan` has written."""
    from bench import files
    from bench.data.dataset import SPLITS, DataSet

    train, valid, test = (files.read(folder / f"{split}.npz") for split in SPLITS)
    name, label, source, notes = (record[key] for key in ("name", "label", "source", "notes"))
    return DataSet(name, label, source, tuple(record["elements"]), train, valid, test, notes)


def check_machine(cfg: RunConfig, data: Path, deadline: Deadline, out: Path) -> None:
    """The CUDA tests, then the timings of docs/performance.md, as far as time allows; what lies there is not repeated.

    Each is a process of its own, whose failure is a line in the log and does not stop the run.
    """
    device = cfg.train.device.partition(":")[0]
    tests, timings = out / "tests.txt", out / f"{device}.json"
    out.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def check(path: Path, *command: str) -> str:
        left = deadline.at - time.monotonic()
        if path.exists() or left < 0:
            return ""
        more = ["--seconds", str(left)] if path == timings else []
        line = [sys.executable, "-m", *command, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(line, cwd=ROOT, env=environment, process_group=0, **pipes)
        try:
            said, complained = process.communicate(timeout=left + GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started, which would go on beside the run
            process.communicate()
            log.warning("%s: stopped after %.0f s", command[0], left + GRACE)
            return ""
        log.info("%s: code %d; %s", command[0], process.returncode, last_line(said or complained))
        return said

    if said := check(tests, *CUDA_TESTS.split()):
        records.write_atomically(tests, said.encode())
    own = ["--data", str(data.absolute())] if cfg.data["name"] == "qm9" else []
    check(timings, "perf.performance", "--device", device, *own, "-o", str(timings.absolute()))


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def pack(folders: Iterable[Path], runs: Path, out: Path, n_bytes: int, part_bytes: int) -> list[str]:
    """Write the runs and the checks as a tar in parts, as far as there is room: weights last, and no optimiser state.

    Returns:
        what had no room, a line each.
    """
    from bench.checkpoint import save_average
    from bench.sample import WEIGHTS

    folders, left_behind = [folder for folder in folders if (folder / "manifest.json").exists()], []
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(fileobj=content, mode="w") as tar:

        def add(path: Path, name: Path, mtime: float) -> None:
            size = path.stat().st_size
            if content.tell() + size + TAR_MARGIN > n_bytes:
                left_behind.append(f"{name} ({size / MIB:.1f} MiB)")
                return
            info = tar.gettarinfo(path, str(name))
            info.mtime = mtime
            with path.open("rb") as file:
                tar.addfile(info, file)

        for folder in [runs / CHECKS, *folders]:
            for path in sorted(folder.rglob("*")):
                is_state = ".safetensors" in path.name  # WEIGHTS too, which come last
                if path.is_file() and not (is_state or path.name == "lock" or path.name.startswith(".")):
                    add(path, path.relative_to(runs), path.stat().st_mtime)
        for folder in folders:
            if (source := trained_weights(folder)) is not None:
                made = Path(scratch) / f"{folder.name}.safetensors"
                save_average(made, source)
                # not the time of packing: samples are older than that, and would seem to be of other weights
                add(made, folder.relative_to(runs) / WEIGHTS, source.stat().st_mtime)
    tarred = content.getvalue()
    for old in out.glob("parcel.*"):
        old.unlink()
    parts = [tarred[i : i + part_bytes] for i in range(0, len(tarred), part_bytes)]
    for i, part in enumerate(parts):
        records.write_atomically(out / part_name(i), part)
    record = {
        "schema": records.SCHEMA_VERSION,
        "runs": [folder.relative_to(runs).as_posix() for folder in folders],
        "n_parts": len(parts),
        "sha256": hashlib.sha256(tarred).hexdigest(),
        "left_behind": left_behind,
    }
    records.write_json(out / "parcel.json", record, PARCEL)  # last, so that it stands for a whole parcel
    return left_behind


def part_name(i: int) -> str:
    return f"parcel.{i:02d}"


def trained_weights(folder: Path) -> Path | None:
    """The file with the weights of a run that has been trained to its end; before that nothing could use them."""
    from bench.checkpoint import STATE, about_of
    from bench.config import read_run
    from bench.optimise import progress
    from bench.sample import weights_file

    path = weights_file(folder, None)
    if not path.exists():
        return None
    about = about_of(path)
    ended = path.name != STATE or progress(about["step"], about["seconds"], read_run(folder).train) >= 1
    return path if ended else None


# ---------------------------------------------------------------------- here, after


def score(source: Path, runs: Path) -> int:
    """Unpack a parcel into runs/ and score what is finished; 0: all of it is, else NOT_FINISHED.

    Raises:
        ValueError: the parcel is damaged, or would overwrite a run that was trained here.
        DataError: other data are here than there.
    """
    parcel = records.read_json(source / "parcel.json", PARCEL)
    content = b"".join((source / part_name(i)).read_bytes() for i in range(parcel["n_parts"]))
    if hashlib.sha256(content).hexdigest() != parcel["sha256"]:
        raise ValueError(f"{source}: the parts are not those that parcel.json was written for; bring all of them again")
    unfinished = 0
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        extract(tar, CHECKS, runs)
        for name in parcel["runs"]:
            if not all(map(is_folder_name, name.split("/"))):
                raise ValueError(f"{source}: parcel.json names a run {name!r}, expected STUDY/RUN")
            with locked(runs / name):
                outcome = score_one(tar, name, runs, parcel["left_behind"])
            unfinished += outcome is not None
            log.info("%s: %s", name, outcome or "done")
    if any((runs / CHECKS).glob("*")):
        log.info("checks of the lent machine: %s", runs / CHECKS)
    return NOT_FINISHED if unfinished else 0


def score_one(tar: tarfile.TarFile, name: str, runs: Path, left_behind: list[str]) -> str | None:
    """Unpack and score one run; None, or why it has no result yet."""
    from bench.checkpoint import STATE
    from bench.config import read_run
    from bench.evaluate import score_run, versions
    from bench.execute import TO_BE_SCORED, check_data, is_done, load_data
    from bench.provenance import code_version, now

    folder = runs / name
    if (folder / STATE).exists():
        raise ValueError(f"{folder} was trained here; move it away to have the one of the lent machine")
    if (folder / "config.yaml").exists() and is_done(read_run(folder), folder):
        log.warning("%s is done already and stays as it is; move it away to have it unpacked again", folder)
        return None
    extract(tar, name, runs)
    manifest = records.read_json(folder / "manifest.json", records.MANIFEST)
    if manifest["reason"] != TO_BE_SCORED:
        return f"{manifest['status']}, {manifest['reason'] or 'and not finished'}"
    cfg = read_run(folder)
    data = load_data(cfg)
    check_data(cfg, data, folder)
    score_run(cfg, data, folder)
    scored = {
        "code": code_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "left_behind": [line for line in left_behind if line.startswith(f"{name}/")],
        "at": now(),
    }
    manifest |= {"status": "done", "reason": None, "updated": scored["at"], "scored": scored}
    records.write_json(folder / "manifest.json", manifest, records.MANIFEST)
    return None


def extract(tar: tarfile.TarFile, name: str, runs: Path) -> None:
    """Unpack one folder, of which no file can come to lie outside of runs/."""
    members = [member for member in tar.getmembers() if member.name.startswith(f"{name}/")]
    runs.mkdir(parents=True, exist_ok=True)
    tar.extractall(runs, members, filter="data")
