"""Conformers: the positions of a molecule's atoms, given its bond graph and stereochemistry.

State: x [A, 3] with zero centre of mass in each molecule. Context: the bond graph (`bench.nn.graph`), which is never
noised. Chirality is given, so the law of conformers is invariant under rotations and not under reflections: group O3 is
the wrong choice, kept as a control, under which mirror images are drawn as often as the molecules asked for. Under
SO3_automorphisms, orbit averages also run over permutations of atoms that the graph does not tell apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bench.diffusion.process import DiffusionConfig, Process
from bench.geometry.automorphisms import RotationsAndAutomorphisms
from bench.geometry.groups import O3, SO3, Group
from bench.geometry.layout import Layout
from bench.geometry.spaces import Centred, Spaces
from bench.geometry.state import State
from bench.nn.graph import GRAPH
from bench.records.store import read_json, write_json
from bench.records.values import Value
from bench.references import Reference
from bench.registry import tasks
from bench.structures.dataset import DataSet, Facts, grouped
from bench.structures.ensembles import Ensembles
from bench.structures.graphs import bond_graphs
from bench.structures.structures import Structures
from bench.tasks.contract import N_DRAWN, Evaluation, Prompt, Task

log = logging.getLogger("equibench")

PER_REFERENCE = 2  # samples for each reference conformer
ORDER_SEED = 0  # of the permutation from which test molecules are taken, so that all runs are judged on the same ones

GANEA_2021 = Reference(
    "ganea2021geomol",
    "GeoMol: Torsional Geometric Generation of Molecular 3D Conformer Ensembles",
    (
        *("Ganea, Octavian-Eugen", "Pattanaik, Lagnajit", "Coley, Connor W.", "Barzilay, Regina"),
        *("Jensen, Klavs F.", "Green, William H.", "Jaakkola, Tommi S."),
    ),
    2021,
    arxiv="2106.07802",
)
HASSAN_2024 = Reference(
    "hassan2024etflow",
    "ET-Flow: Equivariant Flow-Matching for Molecular Conformer Generation",
    (*("Hassan, Majdi", "Shenoy, Nikhil", "Lee, Jungyoon", "Stärk, Hannes", "Thaler, Stephan", "Beaini, Dominique"),),
    2024,
    arxiv="2410.22388",
)


@dataclass
class ConformerOptions:
    """Options."""

    scale_position: float = 1.0  # angstrom per unit of the scaled positions
    max_automorphisms: int = 64  # of a molecule; a larger group counts as the identity alone (group SO3_automorphisms)

    def __post_init__(self) -> None:
        if not self.scale_position > 0:
            raise ValueError(f"'task.scale_position' is {self.scale_position}, expected a positive length")
        if self.max_automorphisms < 1:
            raise ValueError(f"'task.max_automorphisms' is {self.max_automorphisms}, expected at least 1")


@tasks.register("conformers", ConformerOptions)
class Conformers(Task):
    """Conformer ensembles: positions, given the bond graph; twice as many samples as references."""

    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {
        "SO3": SO3,
        "SO3_automorphisms": RotationsAndAutomorphisms,
        "O3": O3,
    }
    references = (GANEA_2021, HASSAN_2024)
    context = GRAPH

    def __init__(self, cfg: ConformerOptions, diffusion: DiffusionConfig, group: str, facts: Facts) -> None:
        self.cfg, self.facts = cfg, facts
        self.group: Group = self.chosen_group(group)
        averaged = isinstance(self.group, RotationsAndAutomorphisms)
        self.max_automorphisms = cfg.max_automorphisms if averaged else None
        self.process = Process(Spaces({"x": Centred(3)}), diffusion, facts.mean_atoms)

    def encode(
        self, structures: Structures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Scaled, centred positions, with the bond graphs as context.

        Raises:
            ValueError: structures without bond graphs.
        """
        x = torch.from_numpy(np.ascontiguousarray(structures.positions)).to(device, dtype) / self.cfg.scale_position
        given = ensembles_of(structures)
        context = bond_graphs(given.graphs, given.molecule, device, self.max_automorphisms)
        return State({"x": x}, Layout(structures.n_atoms, device), context).centred()

    def decode(self, state: State) -> Structures:
        """Positions in angstrom, with the nuclear charges of the context."""
        assert state.context is not None
        positions = (state.x * self.cfg.scale_position).cpu().numpy()
        return Structures(state.context["z"].cpu().numpy(), positions, state.ptr.cpu().numpy())

    def prompts(self, n: int, batch_size: int, seed: int, data: DataSet | None = None) -> list[Prompt]:
        """Batches to sample: 2 L conformers for the L references of each test molecule, smallest molecules first.

        Molecules are taken in one fixed order, whatever the seed, as long as their conformers are at most n in all.

        Raises:
            ValueError: no data set is given, or n is not enough for one molecule.
        """
        del seed
        if data is None:
            raise ValueError(
                "task 'conformers' samples for given molecules, and there is no data set to take them from"
            )
        test = ensembles_of(data.test)
        chosen = judged_molecules(test, n)
        molecule = np.repeat(chosen, PER_REFERENCE * np.bincount(test.molecule, minlength=len(test.graphs))[chosen])
        sizes = test.graphs.n_atoms[molecule]
        order = np.argsort(sizes, kind="stable")
        prompts = []
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            context = bond_graphs(test.graphs, molecule[places], max_automorphisms=self.max_automorphisms)
            prompts.append(Prompt(start // batch_size, places, sizes[places], int(sizes.max()), context))
        return prompts

    def evaluate(self, samples: Structures, data: DataSet, cache: Path) -> Evaluation:
        """Coverage and RMSD of ensembles, chirality and failures; data: one half of each ensemble against the other."""
        from bench.metrics.conformer_rows import Row, row_samples  # here: they load RDKit
        from bench.metrics.conformers import evaluate_ensembles

        test = ensembles_of(data.test)
        chosen = judged_molecules(test, len(samples))
        references = [(test.graphs.mol(k, test.conformers(k)), test.conformers(k)) for k in chosen.tolist()]
        rows = samples.positions.reshape(-1, 3)
        drawn, start = [], 0
        for mol, known in references:
            n = PER_REFERENCE * len(known) * mol.GetNumAtoms()
            drawn.append(rows[start : start + n].reshape(-1, mol.GetNumAtoms(), 3))
            start += n
        path = cache / f"conformers-{data.fingerprint}-{len(chosen)}-rdkit{metadata.version('rdkit')}.json"
        if not path.exists():
            log.info("comparing halves of the test ensembles (once)")
            known, second = row_samples(Row.HALVES, references)
            halves = evaluate_ensembles(known, second) if known else []  # no ensemble of one conformer has halves
            write_json(path, {"values": [value.to_dict() for value in halves]})
        data_values = [Value.from_dict(value, str(path)) for value in read_json(path)["values"]]
        shown = np.repeat(chosen, [len(some) for some in drawn])[:N_DRAWN]
        return Evaluation(
            evaluate_ensembles(references, drawn), data_values, [kekule_bonds(test, k) for k in shown.tolist()]
        )


def ensembles_of(structures: Structures) -> Ensembles:
    """Structures that have bond graphs; raises ValueError for others."""
    if not isinstance(structures, Ensembles):
        raise ValueError(
            "task 'conformers' needs molecules with bond graphs, and this data set has none; choose data 'conformers', "
            "'mini_conformers', 'geom_qm9' or 'geom_drugs'"
        )
    return structures


def judged_molecules(test: Ensembles, n_samples: int) -> np.ndarray:
    """The molecules that `n_samples` samples are for: the first of one permutation whose 2 L add up to no more.

    Raises:
        ValueError: not even the first one has its samples.
    """
    order = np.random.default_rng(ORDER_SEED).permutation(test.present)
    needed = PER_REFERENCE * np.bincount(test.molecule, minlength=len(test.graphs))[order]
    n = int(np.searchsorted(np.cumsum(needed), n_samples, side="right"))
    if not n:
        raise ValueError(
            f"sample.n_molecules is {n_samples}, and the first test molecule needs {needed[0]} samples: twice its "
            f"{needed[0] // PER_REFERENCE} reference conformers; all {len(order)} need {grouped(int(needed.sum()))}"
        )
    return order[:n]


def kekule_bonds(test: Ensembles, index: int) -> np.ndarray:
    """Bonds of a molecule as an sdf holds them: rows of two atoms and the order 1 to 3."""
    from bench.structures.sdf import bonds_of

    bonds = bonds_of(test.graphs.mol(index))
    assert bonds is not None  # types 1 to 4 have a Kekule form, or the molecule would have been refused
    return bonds
