"""Published numbers beside ours, for studies that repeat a published experiment.

`results/reference/published.csv` holds them: task and data set of the experiment, our name of the quantity and of the
method, the row's own name in the paper, mean and standard deviation over seeds, source, and what differs in how they
were obtained. No test is made between the two: published seeds are few, and their numbers come from other code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.labels import MISSING
from analysis.stats import evaluated, summarise
from analysis.study import Frame, Study
from analysis.tables.main import label
from analysis.tables.render import Cell, Table, csv, latex
from bench.records.store import write_atomically

PUBLISHED = Path(__file__).parents[2] / "results" / "reference" / "published.csv"


def build(study: Study, out: Path) -> list[Path]:
    """Write published.csv and published.tex; nothing where nothing was published for this study."""
    table = published_table(study)
    if table is None:
        return []
    rows = [[cell.plain for cell in row] for row in table.rows]
    contents = {
        "published.csv": csv(pd.DataFrame(rows, columns=pd.Index(table.header))),
        "published.tex": latex([table], label(study, "published")),
    }
    for name, content in contents.items():
        write_atomically(out / name, content.encode())
    return [out / name for name in contents]


def published_table(study: Study, file: Path = PUBLISHED) -> Table | None:
    """Published mean and spread, and ours with the median; None where nothing was published for this study."""
    rows = _of_study(study, file)
    if rows is None:
        return None
    columns, cells = {column.name: column for column in study.columns}, []
    names = study.counted.drop_duplicates(["method", "backbone"]).set_index(["method", "backbone"])
    for _, row in rows.iterrows():
        column = columns.get(row["quantity"])
        theirs = f"{row['mean']:.3g}"
        for group in evaluated(study):
            name = names.loc[[group]].iloc[0]
            if column is None or (name["method.name"], name["backbone.name"]) != (row["method"], row["backbone"]):
                continue
            ours = summarise(study, group, column)
            cells.append(
                [
                    Cell(column.label),
                    Cell(str(row["row"])),
                    Cell(group[0]),
                    Cell(theirs, f"±{row['sd']:.3g} ({row['n_seeds']:g})"),
                    Cell(f"{ours.mean:.3g}", f"±{ours.sd:.3g} ({ours.n})" if ours.n > 1 else ""),
                    Cell(f"{np.median(list(ours.values.values())):.3g}" if ours.n else MISSING),
                ]
            )
    if not cells:
        return None
    sources = "; ".join(dict.fromkeys(rows["source"]))
    differs = [f"Published: {reason}." for reason in dict.fromkeys(rows["differs"].dropna())]
    return Table(
        ["Quantity", "Published row", "Our row", "Published", "Ours", "Our median"],
        cells,
        f"Published ({sources}) beside ours: mean ± standard deviation over seeds (their number), and our median.",
        n_text=3,
        notes=differs,
        files=("published.csv", "published.tex"),
    )


def _of_study(study: Study, file: Path) -> Frame | None:
    keys = {"config.task.name", "data.name"}
    if not file.exists() or not keys <= set(study.runs):
        return None
    rows = pd.read_csv(file)
    here = set(study.counted[sorted(keys)].itertuples(index=False, name=None))
    chosen = rows[[pair in here for pair in zip(rows["task"], rows["data"], strict=True)]]
    return chosen if len(chosen) else None
