"""The table of docs/reliability.md: `make test-faults`, or `python -m faults.table`.

Runs the campaigns beside this file, each of which prints rows as JSON (`faults.kills.row`), writes
results/reliability.json and renders the page from it; `--render` renders alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from analysis.readme import filled
from bench.provenance import code_version, device_name, now
from bench.records import read_json, write_atomically, write_json

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RECORD = ROOT / "results" / "reliability.json"
MARKS = "<!-- measured:begin -->", "<!-- measured:end -->"
CAMPAIGNS = ("kills", "hostile", "slurm")
NONE_YET = "not measured"


def measured(arguments: list[str]) -> dict[str, Any]:
    """The record of all campaigns; `arguments` are those of `faults.kills`."""
    rows = []
    for name in CAMPAIGNS:
        if (Path(__file__).parent / f"{name}.py").exists():
            line = [sys.executable, "-m", f"faults.{name}", *(arguments if name == "kills" else [])]
            rows += json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)
    return {"schema": 1, "code": code_version(), "device": device_name("cpu"), "created": now(), "rows": rows}


def table(record: dict[str, Any]) -> str:
    """A line for each fault, and where it was measured."""
    trials, losses = (sum(row[key] for row in record["rows"]) for key in ("trials", "losses"))
    commit = (record["code"]["commit"] or "unknown")[:10]
    lines = [
        f"{trials} trials, {losses} losses; {record['device']}, commit {commit}, {record['created']}.",
        "",
        "| fault | trials | losses | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row['fault']} | {row['trials']} | {row['losses']} | {row['detail']} |" for row in record["rows"]]
    return "\n".join(lines)


def rendered() -> str:
    """The page with the record's table."""
    return filled(PAGE.read_text(), table(read_json(RECORD)) if RECORD.exists() else NONE_YET, *MARKS)


def main(argv: list[str] | None = None) -> int:
    """Measure and write; 1 when something was lost."""
    parser = argparse.ArgumentParser(prog="python -m faults.table", description=__doc__)
    parser.add_argument("--render", action="store_true", help="make the page from the record that lies there")
    given, rest = parser.parse_known_args(argv)
    if not given.render:
        write_json(RECORD, measured(rest))
    write_atomically(PAGE, rendered().encode())
    return int(RECORD.exists() and any(row["losses"] for row in read_json(RECORD)["rows"]))


if __name__ == "__main__":
    sys.exit(main())
