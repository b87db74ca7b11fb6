"""The report of a study: tables, figures, report.md and a self-contained index.html, from stored records alone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from analysis.figures import curves, molecules, pareto
from analysis.labels import MISSING
from analysis.load import Study, load
from analysis.tables import main, paired
from analysis.tables.render import Cell, Table, html, markdown
from bench.records import write_atomically

FIGURES: tuple[tuple[str, Callable[[Study, Path], list[Path]], Callable[[Study], str]], ...] = (
    ("Learning curves", curves.build, curves.caption),
    ("Quality against cost", pareto.build, pareto.caption),
    ("Sampled molecules", molecules.build, lambda _: molecules.caption()),
)


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then a list, a table and a figure where there are any."""

    title: str
    paragraphs: Sequence[str] = ()
    bullets: Sequence[str] = ()
    table: Table | None = None
    figure: Path | None = None
    caption: str = ""


def build(study_folder: Path, out: Path | None = None) -> Path:
    """Build the report of a live or published study and return the folder it stands in.

    Args:
        study_folder: `runs/<study>` or `results/<study>`.
        out: defaults to `<study_folder>/report`. A study that holds runs on several data sets gets one report for each:
            the one with most evaluated runs here, the others in sub-folders named after data set and fingerprint.
    Raises:
        FileNotFoundError: the folder holds no run. OSError: `out` cannot be written.
    """
    out = Path(study_folder) / "report" if out is None else Path(out)
    first, *others = load(study_folder).parts()
    links = {f"{part.runs['data.name'].dropna().iloc[0]}-{_fingerprint(part)[:8]}": part for part in others}
    for name, part in links.items():
        _write(part, out / name, {})
    _write(first, out, {name: main.data_label(part) for name, part in links.items()})
    return out


def print_table(study: Study) -> str:
    """The main table for a terminal of 120 columns; a block for each data set of the study."""
    return "\n\n".join(main.print_table(part) for part in study.parts())


def _fingerprint(study: Study) -> str:
    return str(study.runs["data.fingerprint"].replace("", None).dropna().iloc[0])


def _write(study: Study, out: Path, links: dict[str, str]) -> None:
    main.build(study, out)
    paired.build(study, out)
    sections = _sections(study, out, links)
    done, wanted = study.progress
    lead = f"{done} of {wanted} runs done. {main.data_label(study)}."
    write_atomically(out / "report.md", _markdown(study.name, lead, sections, out).encode())
    write_atomically(out / "index.html", _html(study.name, lead, done < wanted, sections).encode())


def _sections(study: Study, out: Path, links: dict[str, str]) -> list[Section]:
    table = paired.paired_table(study)
    sections = [
        Section(
            "What was compared",
            _compared(study),
            [f"Also in this study, on other data: {label} (folder {name}/)." for name, label in links.items()],
        ),
        Section("Main table", table=main.main_table(study)),
    ]
    if table is not None:
        sections.append(Section("Paired differences", table=table))
    for title, build_figure, caption in FIGURES:
        paths = build_figure(study, out)
        if paths:
            sections.append(Section(title, figure=paths[0], caption=caption(study)))
    sections += [
        _incomplete(study),
        Section("How to read this, and what it does not show", bullets=_reading(study)),
        Section(
            "Provenance",
            ["Every run of this report. Numbers come from the records of these runs and from nowhere else."],
            table=_provenance(study),
        ),
    ]
    return sections


def _compared(study: Study) -> list[str]:
    methods = [f"{' on '.join(group)} ({main.guarantee(study, group)})" for group in study.groups]
    notes = study.runs["data.notes"].dropna() if "data.notes" in study.runs else []
    data = list(dict.fromkeys(str(note) for entry in notes for note in entry))
    out = [
        f"{len(study.methods)} equivariance strategies, guarantee in brackets: {'; '.join(methods)}.",
        f"Data: {main.data_label(study)}. {' '.join(note.rstrip('.') + '.' for note in data)}".strip(),
    ]
    rates = {group: study.of(*group) for group in study.groups}
    if "config.train.lr" in study.runs:
        by_rate: dict[str, list[str]] = {}
        for group, runs in rates.items():
            for rate in dict.fromkeys(f"{value:g}" for value in runs["config.train.lr"].dropna()):
                by_rate.setdefault(rate, []).append(" / ".join(group))
        words = [f"{rate} for {'all' if len(by_rate) == 1 else ', '.join(names)}" for rate, names in by_rate.items()]
        out.append(f"Learning rate: {'; '.join(words)}.")
    return out


def _reading(study: Study) -> list[str]:
    n_seeds = len({int(seed) for seed in study.counted["seed"]})
    labels = study.counted["data.label"].nunique()
    points = [
        "The data row is the score of the data set's own molecules under the same code: bond look-up tables do not give real "
        "molecules 100 %, so the data row, not 100 %, is the mark to reach.",
        f"Seeds: {n_seeds}. The spread over seeds is between trainings; the value in brackets is sampling noise within them. "
        "With few seeds both the spread and every test on it are rough, and a missing difference is no proof of equality.",
        "Rows share optimiser steps and batches. Equal steps is not equal seconds: read quality beside the cost columns, and the "
        "curves against seconds.",
        "Rows on different backbones differ in more than the strategy; only rows on one backbone isolate it.",
        "Small models and short trainings: the order of methods may change with size, data and budget. Published numbers come "
        "from longer trainings of larger models and stand apart; they are not compared here.",
        "The NLL is a bound, and looser for methods that draw a rotation in the prediction (≤). It rewards knowing how the stored molecules are "
        "oriented, which no sample needs: a better NLL without equivariance may be no more than that.",
        "Uniqueness is counted among valid samples, novelty among unique ones. High novelty can mean leaving the distribution.",
    ]
    return points if labels < 2 else [*points, "Data labels differ between runs of one fingerprint: see Provenance."]


def _incomplete(study: Study) -> Section:
    runs = study.runs[~study.runs["counted"]]
    rows = [
        [
            Cell(str(run["run"])),
            Cell(_word(run["method"])),
            Cell(_word(run["backbone"])),
            Cell(_word(run["seed"])),
            Cell(str(run["status"])),
            Cell(_reason(run)),
        ]
        for _, run in runs.iterrows()
    ]
    rows += [
        [
            Cell(MISSING),
            Cell(method),
            Cell(backbone),
            Cell(str(seed)),
            Cell("missing"),
            Cell("no run of this seed, which other rows have"),
        ]
        for method, backbone, seed in study.missing()
    ]
    title = "Runs that are not in the tables"
    problems = [f"Unreadable: {problem}" for problem in study.problems]
    if not rows:
        return Section(title, ["None: every run of the study is done and evaluated."], problems)
    return Section(
        title,
        (),
        problems,
        Table(
            ["Run", "Method", "Backbone", "Seed", "Status", "Reason"],
            rows,
            "Failed, skipped, running, missing and unreadable runs.",
            n_text=6,
        ),
    )


def _reason(run: pd.Series) -> str:
    if run["status"] == "running":
        return "not finished when this report was made"
    return _word(run["reason"])


def _word(value: object) -> str:
    if value is None or value != value:
        return MISSING
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _provenance(study: Study) -> Table:
    columns = {
        "Run": "run", "Seed": "seed", "Status": "status", "Commit": "code.commit", "Uncommitted changes": "code.dirty", "Steps": "eval.step",
        "Samples": "eval.metrics.n_molecules", "Sampling steps": "eval.n_sampling_steps", "Device": "environment.device", "Type": "environment.dtype",
        "Threads": "environment.n_threads", "Compile": "environment.compile", "Weights from": "weights_from", "Created": "created",
    }  # fmt: skip
    rows = []
    for _, run in study.runs.iterrows():
        words = {title: _word(run.get(key)) for title, key in columns.items()}
        words["Commit"] = words["Commit"][:10]
        words["Uncommitted changes"] = {"True": "yes", "False": "no"}.get(words["Uncommitted changes"], MISSING)
        rows.append([Cell(word) for word in words.values()])
    return Table(list(columns), rows, main.provenance(study), n_text=len(columns))


def _markdown(title: str, lead: str, sections: Sequence[Section], out: Path) -> str:
    parts = [f"# {title}", lead]
    for section in sections:
        parts += [f"## {section.title}", *section.paragraphs]
        if section.bullets:
            parts.append("\n".join(f"- {bullet}" for bullet in section.bullets))
        if section.table is not None:
            parts.append(markdown(section.table).rstrip())
        if section.figure is not None:
            parts += [f"![{section.title}]({section.figure.relative_to(out)})", section.caption]
    return "\n\n".join(parts) + "\n"


_CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5c5c5c; --rule: #d9d9d9; --tint: #f5f6f7; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a3a3a3; --rule: #3a3a3a; --tint: #1f2123; --page: #141516; } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink); background: var(--page);
  max-width: 78rem; margin: 0 auto; padding: 1.5rem 1.1rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; padding-top: .8rem; border-top: 1px solid var(--rule) }
p, li, figcaption { max-width: 46rem; overflow-wrap: anywhere }
.lead { color: var(--soft); margin-top: 0 }
.partial { border-left: 4px solid #d55e00; background: var(--tint); padding: .5rem .8rem; max-width: 46rem }
ul { padding-left: 1.2rem } li { margin: .35rem 0 }
figure { margin: 1rem 0 } figcaption, .note { color: var(--soft); font-size: .85rem; margin: .5rem 0 }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink) }
th, td { padding: .35rem .55rem; text-align: right; white-space: nowrap; vertical-align: top }
th { font-weight: 600; white-space: normal; vertical-align: bottom; border-bottom: 1px solid var(--ink); min-width: 4.2rem }
th.t, td.t { text-align: left } td.t { max-width: 24rem; overflow-wrap: anywhere; white-space: normal; min-width: 4.5rem }
td small { color: var(--soft); font-size: .85em; display: block }
tbody tr:nth-child(even) { background: var(--tint) } tr.data td { border-bottom: 1px solid var(--ink); font-style: italic }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page) } tbody tr:nth-child(even) td:first-child { background: var(--tint) }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; display: block }
"""


def _html(title: str, lead: str, partial: bool, sections: Sequence[Section]) -> str:
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='{'partial' if partial else 'lead'}'>{'Partial: ' if partial else ''}{escape(lead)}</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
        if section.bullets:
            parts.append(f"<ul>{''.join(f'<li>{escape(bullet)}</li>' for bullet in section.bullets)}</ul>")
        if section.table is not None:
            parts.append(html(section.table))
        if section.figure is not None:
            picture = base64.b64encode(section.figure.read_bytes()).decode()
            parts.append(
                f"<figure><img alt='{escape(section.title)}' src='data:image/png;base64,{picture}'>"
                f"<figcaption>{escape(section.caption)}</figcaption></figure>"
            )
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    return (
        f"<!doctype html>\n<html lang='en'><head>{head}<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
