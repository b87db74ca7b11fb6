"""What a column of the run table is called, in which unit it is shown and which direction is better: one place.

Keys are columns of `Study.runs` (see `analysis.load`). Records hold fractions, seconds and counts; `scale` turns
them into the unit of the label.
"""

from __future__ import annotations

from dataclasses import dataclass

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """One measured quantity.

    Attributes:
        key: column of `Study.runs`.
        label: name with its denominator where one is needed, without unit.
        unit: unit after scaling, '' for a pure number.
        short: name for the terminal, unit included.
        higher_is_better: None where neither direction is better.
        scale: factor from the record's unit to `unit`.
        digits: decimals shown; None means three significant figures.
    """

    key: str
    label: str
    unit: str
    short: str
    higher_is_better: bool | None
    scale: float = 1.0
    digits: int | None = None

    @property
    def name(self) -> str:
        """Column of the CSV tables, in the record's unit."""
        return self.key.removeprefix("eval.").removeprefix("metrics.").removeprefix("cost.").replace(".", "_")

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def show(self, value: float | None, signed: bool = False, like: float | None = None) -> str:
        """A value of the records in the column's unit, with as many decimals as `like`; a dash where there is none."""
        if value is None or value != value:
            return MISSING
        scaled = value * self.scale
        digits = significant((value if like is None else like) * self.scale) if self.digits is None else self.digits
        return f"{scaled:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def significant(value: float, figures: int = 3) -> int:
    """Decimals that show `figures` significant figures; 1234 keeps its integer digits."""
    value, digits = abs(value), figures - 1
    while value >= 10 and digits > 0:
        value, digits = value / 10, digits - 1
    while 0 < value < 1 and digits < 6:
        value, digits = value * 10, digits + 1
    return digits


def _percent(key: str, label: str, short: str) -> Column:
    return Column(f"eval.{key}", label, "%", f"{short} %", True, scale=100.0, digits=1)


ATOM_STABILITY = _percent("metrics.atom_stability", "Atom stability", "atom stab")
MOLECULE_STABILITY = _percent("metrics.molecule_stability", "Molecule stability", "mol stab")
GAP = Column("eval.nll.mixture.gap", "Jensen gap", "nats/molecule", "gap nats", None)
NLL = Column("eval.nll.mean", "NLL", "nats/molecule", "NLL nats", False, digits=1)
STEP_TIME = Column("cost.step_seconds", "Training step", "ms", "step ms", False, scale=1e3)
TRAIN_TIME = Column("cost.train_seconds", "Training", "min", "train min", False, scale=1 / 60)
SAMPLE_TIME = Column("cost.sample_seconds_per_molecule", "Sampling", "ms/molecule", "ms/mol", False, scale=1e3)

# The metrics as EDM's published code defines them; the label names the denominator.
METRICS = (
    ATOM_STABILITY,
    MOLECULE_STABILITY,
    _percent("metrics.validity", "Validity", "valid"),
    _percent("metrics.uniqueness", "Uniqueness of valid", "unique"),
    _percent("metrics.novelty", "Novelty of unique", "novel"),
    _percent("metrics.valid_and_unique", "Valid and unique", "val+uniq"),
)
QUALITY = (*METRICS, NLL)
COST = (
    Column("parameters.total", "Parameters", "10³", "params k", None, scale=1e-3, digits=0),
    STEP_TIME,
    TRAIN_TIME,
    SAMPLE_TIME,
    Column("cost.peak_memory_mb", "Peak memory", "MB", "peak MB", False, digits=0),
)
TRAIN_LOSS = Column("loss", "Training loss", "", "loss", False)
VALID_LOSS = Column("valid_loss", "Validation loss", "", "valid loss", False)

GUARANTEES = {"exact": "exact", "in_law": "in law", "at_optimum": "at optimum", "none": "none"}
