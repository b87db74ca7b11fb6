"""The table of docs/reliability.md: `make test-faults`, or `python -m faults.table [CAMPAIGN ...]`.

Runs the campaigns beside this file, or those named, each of which prints rows as JSON (`faults.kills.row`). After each,
its rows replace those it had in results/reliability.json and the page is made again, so that what was measured before
another campaign fails is kept. `--render` makes the page alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from analysis.readme import filled
from bench.records.store import read_json, write_atomically, write_json
from bench.run.code import code_version
from bench.run.provenance import device_name, now

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RECORD = ROOT / "results" / "reliability.json"
MARKS = "<!-- measured:begin -->", "<!-- measured:end -->"
CAMPAIGNS = ("kills", "launchers", "disk", "hostile", "surroundings", "on_slurm")
NONE_YET = "not measured"


def measured(campaign: str) -> dict[str, Any]:
    """What a campaign finds, and of which code and machine.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    line = [sys.executable, "-m", f"faults.{campaign}"]
    rows = json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)
    return {"code": code_version(), "device": device_name("cpu"), "created": now(), "rows": rows}


def record() -> dict[str, Any]:
    """What was measured so far."""
    return read_json(RECORD) if RECORD.exists() else {"schema": 1, "campaigns": {}}


def table(record: dict[str, Any]) -> str:
    """A line for each fault, and where each campaign was run."""
    found = {name: record["campaigns"][name] for name in CAMPAIGNS if name in record["campaigns"]}
    if not found:
        return NONE_YET
    rows = [row for campaign in found.values() for row in campaign["rows"]]
    trials, losses = (sum(row[key] for row in rows) for key in ("trials", "losses"))
    lines = [f"{trials} trials, {losses} losses.", "", "| fault | trials | losses | |", "|---|---|---|---|"]
    lines += [f"| {row['fault']} | {row['trials']} | {row['losses']} | {row['detail']} |" for row in rows]
    lines.append("")
    for name, campaign in found.items():
        commit = (campaign["code"]["commit"] or "unknown")[:10]
        lines.append(f"- `faults.{name}`: {campaign['device']}, commit {commit}, {campaign['created']}")
    return "\n".join(lines)


def rendered() -> str:
    """The page with the record's table."""
    return filled(PAGE.read_text(), table(record()), *MARKS)


def main(argv: list[str] | None = None) -> int:
    """Measure and write; 1 when something was lost."""
    parser = argparse.ArgumentParser(prog="python -m faults.table", description=__doc__)
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"of {', '.join(CAMPAIGNS)}; all by default")
    parser.add_argument("--render", action="store_true", help="make the page from the record that lies there")
    given = parser.parse_args(argv)
    if unknown := set(given.campaigns) - set(CAMPAIGNS):
        parser.error(f"no campaign {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}")
    for name in [] if given.render else given.campaigns or CAMPAIGNS:
        found = measured(name)
        if not found["rows"]:  # it cannot be run here, and what another machine has found stays
            print(f"{name}: no trials on this machine", file=sys.stderr)
            continue
        write_json(RECORD, {"schema": 1, "campaigns": {**record()["campaigns"], name: found}})
        write_atomically(PAGE, rendered().encode())
    write_atomically(PAGE, rendered().encode())
    return int(any(row["losses"] for campaign in record()["campaigns"].values() for row in campaign["rows"]))


if __name__ == "__main__":
    sys.exit(main())
