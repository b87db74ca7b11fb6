"""Protein backbones: C-alpha traces, or N, C-alpha and C, given the number of residues alone.

State: x [A, 3] in nanometres, with zero centre of mass in each chain. Context: the order along the chain
(`bench.nn.chain`), which is never noised. `diffusion.path: linear` is the setting of Proteina's flow matching on
C-alphas (Geffner et al., arXiv:2503.00710), on which Orbit Diffusion was finetuned. Amino acids are left-handed and
helices turn to the right, so the law of backbones is invariant under rotations and not under reflections: group O3 is
the wrong choice, kept as a control, under which half of all helices turn to the left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool

from bench.diffusion.process import DiffusionConfig, Process
from bench.geometry.groups import O3, SO3, Group
from bench.geometry.layout import Layout
from bench.geometry.spaces import Centred, Spaces
from bench.geometry.state import State
from bench.nn.chain import CHAIN
from bench.records.store import read_json, write_json
from bench.records.values import Value
from bench.references import Reference
from bench.registry import tasks
from bench.structures.chains import ChainAtoms
from bench.structures.dataset import DataSet, Facts
from bench.structures.graphs import chains_of
from bench.structures.structures import Structures
from bench.tasks.contract import N_DRAWN, Evaluation, Prompt, Task

log = logging.getLogger("equibench")

GEFFNER_2025 = Reference(
    "geffner2025proteina",
    "Proteina: Scaling Flow-based Protein Structure Generative Models",
    ("Geffner, Tomas", "Didi, Kieran", "Zhang, Zuobai", "{others}"),
    2025,
    arxiv="2503.00710",
)


@dataclass
class ProteinOptions:
    """Options."""

    scale_position: float = 10.0  # angstrom per unit of the scaled positions, which are nanometres

    def __post_init__(self) -> None:
        if not self.scale_position > 0:
            raise ValueError(f"'task.scale_position' is {self.scale_position}, expected a positive length")


@tasks.register("proteins", ProteinOptions)
class Proteins(Task):
    """Protein backbones: C-alpha traces or N, C-alpha, C, given the number of residues."""

    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {"SO3": SO3, "O3": O3}
    references = (GEFFNER_2025,)
    context = CHAIN

    def __init__(self, cfg: ProteinOptions, diffusion: DiffusionConfig, group: str, facts: Facts) -> None:
        known = {atoms.elements: atoms for atoms in ChainAtoms}
        if facts.elements not in known:
            raise ValueError(
                "task 'proteins' needs backbones of C-alpha, or of N, C-alpha and C, and this data set has the "
                f"elements {list(facts.elements)}; choose data 'proteins' or 'mini_proteins'"
            )
        self.cfg, self.facts = cfg, facts
        self.atoms = known[facts.elements]
        self.group: Group = self.chosen_group(group)
        self.process = Process(Spaces({"x": Centred(3)}), diffusion, facts.mean_atoms)

    @property
    def per_residue(self) -> int:
        return len(self.atoms.numbers)

    def encode(
        self, structures: Structures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Scaled, centred positions, with the order along the chains as context.

        Raises:
            ValueError: structures that are no backbones of the kind that the model was built for.
        """
        numbers = np.array(self.atoms.numbers)
        if (structures.n_atoms % len(numbers)).any() or (structures.numbers.reshape(-1, len(numbers)) != numbers).any():
            raise ValueError(
                f"task 'proteins' needs residues of atoms with the nuclear charges {numbers.tolist()}, in this order"
            )
        x = torch.from_numpy(np.ascontiguousarray(structures.positions)).to(device, dtype) / self.cfg.scale_position
        context = chains_of(structures.n_atoms, self.per_residue, device)
        return State({"x": x}, Layout(structures.n_atoms, device), context).centred()

    def decode(self, state: State) -> Structures:
        """Positions in angstrom; the elements are those of the kind of backbone."""
        positions = (state.x * self.cfg.scale_position).cpu().numpy()
        numbers = np.tile(self.atoms.numbers, len(positions) // self.per_residue).astype(np.int64)
        return Structures(numbers, positions, state.ptr.cpu().numpy())

    def prompts(self, n: int, batch_size: int, seed: int, data: DataSet | None = None) -> list[Prompt]:
        """Batches to sample: n lengths drawn from the training set's histogram, with the order along the chain."""
        drawn = super().prompts(n, batch_size, seed, data)
        return [replace(prompt, context=chains_of(prompt.sizes, self.per_residue)) for prompt in drawn]

    def evaluate(self, samples: Structures, data: DataSet, cache: Path) -> Evaluation:
        """Backbone geometry against the test split, novelty against the training split; data: the validation split."""
        from bench.metrics.proteins import evaluate_backbones, version

        path = cache / f"proteins-{data.fingerprint}-{version()}.json"
        if not path.exists():
            log.info("evaluating the data set itself (once)")
            known = evaluate_backbones(data.valid, data.test, data.train)
            write_json(path, {"values": [value.to_dict() for value in known]})
        data_values = [Value.from_dict(value, str(path)) for value in read_json(path)["values"]]
        finite = samples.is_finite()
        values = of_all_samples(evaluate_backbones(samples.select(finite), data.test, data.train), finite)
        shown = [bonds_along(int(n)) for n in samples.n_atoms[:N_DRAWN]]
        return Evaluation(values, data_values, shown)


def of_all_samples(values: Sequence[Value], finite: Bool[np.ndarray, "S"]) -> list[Value]:
    """Values of the finite samples alone, with items for all S samples: NaN for one that is not finite."""

    def spread(items: np.ndarray | None) -> np.ndarray | None:
        if items is None:
            return None
        whole = np.full((len(finite), *items.shape[1:]), np.nan)
        whole[finite] = items
        return whole

    return [replace(value, items=spread(value.items)) for value in values]


def bonds_along(n_atoms: int) -> np.ndarray:
    """Neighbours along a chain as single bonds: rows of two atoms and the order. C-alphas count as bonded."""
    first = np.arange(n_atoms - 1)
    return np.stack([first, first + 1, np.ones_like(first)], axis=1)
