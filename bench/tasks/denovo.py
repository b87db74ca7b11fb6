"""De novo generation of molecules: elements and positions, given only the number of atoms.

State: x [A, 3] with zero centre of mass in each molecule, and features h [A, F]: one channel per element (one-hot) and,
with `include_charges`, one channel with the nuclear charge, divided by the scales [1, 4, 10] of the published runs
(Hoogeboom et al., arXiv:2203.17003).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from bench.diffusion.decoder import Decoder
from bench.diffusion.process import DiffusionConfig, Process
from bench.geometry.groups import O3, SO3, Group
from bench.geometry.layout import Layout
from bench.geometry.spaces import Centred, Euclidean, Spaces
from bench.geometry.state import State
from bench.records.store import read_json, write_json
from bench.records.values import Value
from bench.references import HOOGEBOOM_2022
from bench.registry import tasks
from bench.structures.dataset import DataSet, Facts
from bench.structures.structures import Structures
from bench.tasks.contract import N_DRAWN, Evaluation, Task

if TYPE_CHECKING:
    from bench.metrics.stability import BondRule

log = logging.getLogger("equibench")

N_METRICS = 7  # in the name of the cached file, so that one of fewer metrics is not read


@dataclass
class DenovoConfig:
    """Options; the defaults are those of all published QM9 runs."""

    include_charges: bool = True  # nuclear charges as a channel beside the one-hot elements
    scale_position: float = 1.0  # angstrom per unit of the scaled positions
    scale_onehot: float = 4.0  # one-hot elements are divided by it
    scale_charge: float = 10.0  # nuclear charges are divided by it


@tasks.register("denovo", DenovoConfig)
class Denovo(Task):
    """De novo molecules: elements and positions, given the number of atoms (EDM's problem)."""

    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {"O3": O3, "SO3": SO3}
    references = (HOOGEBOOM_2022,)

    def __init__(self, cfg: DenovoConfig, diffusion: DiffusionConfig, group: str, facts: Facts) -> None:
        self.cfg, self.facts = cfg, facts
        self.elements = tuple(facts.elements)
        self.group: Group = self.chosen_group(group)
        decoder = Decoder(
            len(self.elements), cfg.include_charges, cfg.scale_position, cfg.scale_onehot, cfg.scale_charge
        )
        self.n_features = len(self.elements) + int(cfg.include_charges)
        spaces = Spaces({"x": Centred(3), "h": Euclidean(self.n_features)})
        self.process = Process(spaces, diffusion, facts.mean_atoms, decoder)

    def encode(
        self, structures: Structures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Scaled, centred states of molecules.

        Raises:
            ValueError: an element outside the training set.
        """
        index = np.searchsorted(self.elements, structures.numbers)
        known = np.asarray(self.elements)[np.minimum(index, len(self.elements) - 1)] == structures.numbers
        if not known.all():
            raise ValueError(
                f"nuclear charges {sorted(set(structures.numbers[~known].tolist()))} are not among "
                f"the model's elements {self.elements}"
            )
        h = np.zeros((len(index), self.n_features))
        h[np.arange(len(index)), index] = 1 / self.cfg.scale_onehot
        if self.cfg.include_charges:
            h[:, -1] = structures.numbers / self.cfg.scale_charge
        x = torch.from_numpy(np.ascontiguousarray(structures.positions)).to(device, dtype) / self.cfg.scale_position
        layout = Layout(structures.n_atoms, device)
        return State({"x": x, "h": torch.from_numpy(h).to(device, dtype)}, layout).centred()

    def decode(self, state: State) -> Structures:
        """Elements by the largest one-hot channel, positions in angstrom.

        All one-hot channels take part, with or without a charge channel (the published code drops the last element
        when there is none). The charge channel is a feature only; it does not decide the element.
        """
        index = state.h[:, : len(self.elements)].argmax(1).cpu().numpy()
        return Structures(
            numbers=np.asarray(self.elements, dtype=np.int64)[index],
            positions=(state.x * self.cfg.scale_position).cpu().numpy(),
            ptr=state.ptr.cpu().numpy(),
        )

    def evaluate(self, samples: Structures, data: DataSet, cache: Path) -> Evaluation:
        """EDM's stability, validity, uniqueness and novelty, by EDM's bonds or, where its table lacks an element of the
        data, by RDKit's; all None for elements that neither knows."""
        from bench.metrics.molecules import evaluate_molecules, undefined_values  # here: they load RDKit
        from bench.metrics.stability import UnknownElementError, natural_rule, perceived

        try:
            rule = natural_rule(data.train)
        except UnknownElementError as error:
            reason = f"{data.label}: {error}"
            log.warning("samples are not evaluated: %s", reason)
            undefined = [replace(v, definition=f"not evaluated: {reason}") for v in undefined_values()]
            return Evaluation(undefined, undefined, [])
        train_smiles, data_values = reference(data, rule, cache)
        found = evaluate_molecules(samples, train_smiles, bonds=perceived(samples, rule))
        bonds = [found.bonds[i] for i in range(min(N_DRAWN, len(samples)))]
        return Evaluation(_by(rule, found.values()), data_values, bonds)


def _by(rule: BondRule, values: list[Value]) -> list[Value]:
    """Values whose definition names the rule of the bonds where it is not EDM's."""
    from bench.metrics.stability import BondRule

    if rule is BondRule.EDM:
        return values
    return [replace(value, definition=f"{value.definition}; bonds by {rule.description}") for value in values]


def reference(data: DataSet, rule: BondRule, cache: Path) -> tuple[list[str], list[Value]]:
    """SMILES of the training split and the data's own values on the test split; computed once per data set."""
    from bench.metrics.molecules import evaluate_molecules
    from bench.metrics.stability import BondRule, perceived
    from bench.metrics.validity import smiles_of

    # RDKit versions differ in which molecules they accept
    by = "" if rule is BondRule.EDM else f"-{rule}"
    path = cache / f"reference{N_METRICS}-{data.fingerprint}{by}-rdkit{metadata.version('rdkit')}.json"
    if not path.exists():
        log.info("evaluating the data set itself (once), bonds by %s", rule.description)
        train_smiles = sorted({s for s in smiles_of(data.train, bonds=perceived(data.train, rule)) if s is not None})
        evaluation = evaluate_molecules(data.test, train_smiles, bonds=perceived(data.test, rule))
        values = [value.to_dict() for value in _by(rule, evaluation.values())]
        write_json(path, {"train_smiles": train_smiles, "values": values})
    known = read_json(path)
    return known["train_smiles"], [Value.from_dict(value, str(path)) for value in known["values"]]
