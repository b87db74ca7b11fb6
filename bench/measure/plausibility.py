"""Plausibility of a run's samples of molecules, beside held-out data and data with noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.measure.contract import Subject
from bench.metrics.plausibility import DATA, SAMPLES, Effort, are_molecules, judge, rows_of
from bench.metrics.references import PLAUSIBILITY
from bench.metrics.stability import UnknownElementError, natural_rule
from bench.records.values import Kind, Value
from bench.registry import measures
from bench.structures.elements import Contents

EVALUATED = ("validity", "connected_and_valid")  # of samples: the evaluation of the run has them


@dataclass
class PlausibilityConfig(Effort):
    """Options: how many molecules of each set the slow metrics take."""


@measures.register("plausibility", PlausibilityConfig, references=PLAUSIBILITY)
def measure(subject: Subject, cfg: PlausibilityConfig) -> list[Value]:
    """Plausibility of samples against test molecules: bonds, PoseBusters, strain, distributions.

    Of the samples as scalars; of as many test molecules (floor) and of these with noise of 0.05 and 0.1 angstrom
    (ceiling) at {'of': 'data'}, {'of': 'noise 0.05'}, {'of': 'noise 0.1'}. All against the other test molecules.

    Raises:
        ValueError: there are no samples, or the data are not molecules.
        MissingPackageError: PoseBusters or tblite is missing and not left out.
    """
    samples, test = subject.samples, subject.data.test
    if samples is None or not len(samples):
        raise ValueError("measure 'plausibility' judges samples, and this run has none; sample first")
    strange = ValueError(f"measure 'plausibility' takes molecules, got {subject.data.label}; leave it out")
    try:
        rule = natural_rule(subject.data.train)  # that of the evaluation
        if not are_molecules(test, rule):
            raise strange
        rows, others = rows_of(Contents(samples), Contents(test), seed=subject.seed)
        found = judge(rows, others, rule, cfg, subject.seed, on_row=subject.on_batch)
    except UnknownElementError as error:
        raise strange from error
    values = [value for value in found.pop(SAMPLES) if value.name not in EVALUATED]
    about = {DATA: "as many test molecules, against the others"}
    for row, of_row in found.items():
        note = about.get(row, f"{about[DATA]}, with noise on each coordinate: {row} angstrom")
        values += [
            replace(value, kind=Kind.DIAGNOSTIC, at={"of": row}, definition=f"{note}; {value.definition}".strip("; "))
            for value in of_row
        ]
    return values
