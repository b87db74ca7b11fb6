"""The report of a study: tables, figures, report.md and a self-contained index.html, from stored records alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

from analysis.figures import curves, fields, molecules, pareto, positions, scaling, values
from analysis.html import Section, html_page, markdown_page
from analysis.labels import MISSING
from analysis.load import load
from analysis.study import Frame, Study
from analysis.tables import main, measured, paired, power, published, stability
from analysis.tables.render import Cell, Table
from bench.records.store import write_atomically
from bench.records.values import Kind

# Each has `build`, `caption`, `absent`. `scaling` is apart: it draws the whole study, all subsets of its data.
FIGURES: tuple[tuple[str, ModuleType], ...] = (
    ("Learning curves", curves),
    ("Quality against cost", pareto),
    ("All values", values),
    ("Values by position", positions),
    ("Vector fields", fields),
    ("Sampled molecules", molecules),
)


def build(study_folder: Path, out: Path | None = None, reference: str | None = None) -> Path:
    """Build the report of a live or published study and return its folder.

    Args:
        study_folder: `runs/<study>` or `results/<study>`.
        out: defaults to `<study_folder>/report`. A study with runs on several data sets gets one report for each: the
            one with most evaluated runs here, the others in sub-folders named after data set and fingerprint.
        reference: the row that others are compared with (`analysis.stats.references`).
    Raises:
        FileNotFoundError: the folder holds no run. ValueError: no such `reference`. OSError: `out` cannot be written.
    """
    out = Path(study_folder) / "report" if out is None else Path(out)
    whole = load(study_folder)
    first, *others = whole.parts()
    links = {f"{part.runs['data.name'].dropna().iloc[0]}-{_fingerprint(part)[:8]}": part for part in others}
    for name, part in links.items():
        _write(part, out / name, reference)
    _write(first, out, reference, {name: main.data_label(part) for name, part in links.items()}, whole)
    return out


def print_table(study: Study) -> str:
    """The main table as wide as the terminal, 120 columns where there is none; a block for each data set."""
    width = shutil.get_terminal_size((120, 24)).columns
    return "\n\n".join(main.print_table(part, width) for part in study.parts())


def _fingerprint(study: Study) -> str:
    return str(study.runs["data.fingerprint"].replace("", None).dropna().iloc[0])


def _write(
    study: Study,
    out: Path,
    reference: str | None,
    links: Mapping[str, str] = MappingProxyType({}),
    whole: Study | None = None,
) -> None:
    main.build(study, out)
    paired.build(study, out, reference)
    power.build(study, out, reference)
    published.build(study, out)
    measured.build(study, out)
    stability.build(study, out)
    sections = _sections(study, out, reference, links, whole or study)
    done, wanted = study.progress
    lead = f"{done} of {wanted} runs done. {main.data_label(study)}."
    write_atomically(out / "report.md", markdown_page(study.name, lead, sections, out).encode())
    write_atomically(out / "index.html", html_page(study.name, lead, done < wanted, sections).encode())


def _sections(study: Study, out: Path, reference: str | None, links: Mapping[str, str], whole: Study) -> list[Section]:
    table, needed = paired.paired_table(study, reference), power.power_table(study, reference)
    sections = [
        Section(
            "What was compared",
            _compared(study),
            [f"Also in this study, on other data: {label} (folder {name}/)." for name, label in links.items()],
        ),
        Section("Main table", tables=main.panels(study, main.main_table(study))),
    ]
    if table is not None:
        sections.append(Section("Paired differences", tables=[table]))
    if needed is not None:
        sections.append(Section("How many seeds it takes", tables=[needed]))
    beside = published.published_table(study)
    if beside is not None:
        sections.append(Section("Published beside ours", tables=[beside]))
    for sweep in scaling.sweeps(whole):
        if paths := scaling.build(whole, sweep, out):
            sections.append(Section(sweep.title, figure=paths[0], caption=scaling.caption(sweep)))
    reasons = {"Data efficiency, training length and other sweeps": scaling.absent(whole)}
    for title, figure in FIGURES:
        if paths := figure.build(study, out):
            sections.append(Section(title, figure=paths[0], caption=figure.caption(study)))
        reasons[title] = figure.absent(study)
    sections += _measured(study, out)
    if (steady := stability.stability_table(study)) is not None:
        sections.append(Section("Training stability", tables=[steady]))
    if left_out := [f"{title}: {why}." for title, why in reasons.items() if why]:
        sections.append(Section("Figures that are not drawn", bullets=left_out))
    sections += [
        _incomplete(study),
        Section("How to read this, and what it does not show", bullets=_reading(study)),
        Section(
            "Provenance",
            ["Every run of this report. Numbers come from the records of these runs and from nowhere else."],
            tables=[_provenance(study)],
        ),
    ]
    return sections


def _measured(study: Study, out: Path) -> list[Section]:
    """A section for each measure with values that nothing above shows: its curves, and its scalars as a table."""
    sections = []
    for measure in study.measures:
        paths, table = positions.build(study, out, measure), measured.measured_table(study, measure)
        if paths or table is not None:
            about = {"figure": paths[0], "caption": positions.caption(study)} if paths else {}
            sections.append(Section(f"Measured: {measure}", tables=[table] if table is not None else [], **about))
    return sections


def _compared(study: Study) -> list[str]:
    tried = [group for group in study.groups if (study.of(*group)["status"] != "skipped").any()]
    methods = [f"{' on '.join(group)} ({main.guarantee(study, group)})" for group in tried]
    notes = study.runs["data.notes"].dropna() if "data.notes" in study.runs else []
    data = dict.fromkeys(str(note) for entry in notes for note in entry)
    told = " ".join(f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in data)
    out = [
        f"Methods, with the symmetry that each guarantees in brackets: {'; '.join(methods)}.",
        f"Data: {main.data_label(study)}. {told}".strip(),
    ]
    if "config.train.lr" in study.runs:
        by_rate: dict[str, list[str]] = {}
        for group in tried:
            for rate in dict.fromkeys(f"{value:g}" for value in study.of(*group)["config.train.lr"].dropna()):
                by_rate.setdefault(rate, []).append(" / ".join(group))
        words = [f"{rate} for {'all' if len(by_rate) == 1 else ', '.join(names)}" for rate, names in by_rate.items()]
        out.append(f"Learning rate: {'; '.join(words)}.")
    return out


def _reading(study: Study) -> list[str]:
    n_seeds = len({int(seed) for seed in study.counted["seed"]})
    rows = study.counted[study.counted["n_steps"] > 0]
    trained = rows["eval.step" if "eval.step" in rows else "n_steps"]  # the clock may have ended them
    same = "All trained rows took the same number of optimiser steps."
    steps = same if trained.nunique() < 2 else "Trained rows differ in optimiser steps (see Provenance)."
    out = [
        f"Seeds: {n_seeds}. The spread over seeds is between trainings; in brackets is what the finite number of "
        "molecules leaves open of these trained models. With few seeds the spread and every test on it are rough, and "
        "a missing difference is no proof of equality.",
        f"{steps} Equal steps is not equal seconds: read quality beside the cost columns, and the curves against "
        "seconds.",
        "Rows on different backbones differ in more than the strategy; only rows on one backbone isolate it.",
        "The order of methods may change with model size, data and budget, and these are the ones stated above and "
        "no others. Published numbers come from other trainings; no test compares ours with them.",
    ]
    if main.has_data_row(study):
        out.insert(
            0,
            "The data row is what the data set's own held-out structures get under the same code. A rule that is not "
            "exact gives them less than a perfect value, so the data row, not perfection, is the mark to reach.",
        )
    if study.of_kind(Kind.LIKELIHOOD):
        out.append(
            "A likelihood rewards knowing how the stored structures are oriented, which no sample needs: a better one "
            "without equivariance may be no more than that."
        )
    return out


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
        [
            Table(
                ["Run", "Method", "Backbone", "Seed", "Status", "Reason"],
                rows,
                "Failed, skipped, running, missing and unreadable runs.",
                n_text=6,
            )
        ],
    )


def _reason(run: Frame) -> str:
    told = _word(run["reason"])
    return "not finished when this report was made" if run["status"] == "running" and told == MISSING else told


def _word(value: object) -> str:
    if value is None or value != value:
        return MISSING
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _provenance(study: Study) -> Table:
    columns = {"Run": "run", "Seed": "seed", "Status": "status", "Commit": "code.commit", "Uncommitted": "code.dirty"}
    columns |= {"Steps": "eval.step", "Samples": "eval.n_samples", "Sampling steps": "eval.n_sampling_steps"}
    columns |= {"Device": "environment.device", "Type": "environment.dtype", "Threads": "environment.n_threads"}
    columns |= {"Compile": "environment.compile", "Weights from": "weights_from", "Created": "created"}
    rows = []
    for _, run in study.runs.iterrows():
        words = {title: _word(run.get(key)) for title, key in columns.items()}
        words["Commit"], words["Created"] = words["Commit"][:10], words["Created"][:16].replace("T", " ")
        words["Uncommitted"] = {"True": "yes", "False": "no"}.get(words["Uncommitted"], MISSING)
        rows.append([Cell(word) for word in words.values()])
    return Table(list(columns), rows, main.provenance(study), n_text=len(columns))
