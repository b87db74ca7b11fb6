"""Crystal structure prediction: the cell and the fractional coordinates of a crystal, given its composition.

State: frac [A, 3] on the torus, cell [B, 9], the lattice vectors in the standard orientation, row by row, in angstrom.
Context: the elements of the sites, which are never noised. Fractions take the variance-exploding path, cells the cosine
path, both at one t, as in DiffCSP (Jiao et al., arXiv:2309.04475). The origin of a cell is arbitrary, so the law of
fractions is invariant under common shifts; because the orientation is a standard one, rotations never enter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from bench.diffusion.paths import PathName
from bench.diffusion.process import DiffusionConfig, Process
from bench.geometry.groups import Group
from bench.geometry.layout import Layout
from bench.geometry.spaces import Euclidean, Spaces, Torus
from bench.geometry.state import State
from bench.geometry.torus import TorusShift
from bench.nn.composition import COMPOSITION, DESCRIBED, MAX_NUMBER
from bench.records.store import read_json, write_json
from bench.records.values import Value
from bench.references import DAS_2025, JIAO_2023, TONG_2025
from bench.registry import tasks
from bench.structures.dataset import DataSet, Facts, grouped
from bench.structures.graphs import compositions
from bench.structures.lattices import crystals, fractions_of
from bench.structures.prompts import HASHED, Described
from bench.structures.structures import Structures
from bench.tasks.contract import Evaluation, Prompt, Task

if TYPE_CHECKING:
    from torch_geometric.data import Batch

log = logging.getLogger("equibench")

ORDER_SEED = 0  # of the permutation from which test crystals are taken, so that all runs are judged on the same ones


@dataclass
class CrystalOptions:
    """Options."""

    # weight of the cell's squared error beside that of the fractions; null: as in DiffCSP, whose loss is the sum of the
    # two mean squared errors, so a third of the mean number of sites
    cell_weight: float | None = None
    # sampler 'predictor_corrector': a Langevin step of this size at the least noise, times the square of sigma over the
    # least one elsewhere. The default is DiffCSP's for MP-20 and MPTS-52; for Perov-5 it has 5e-7, for Carbon-24 5e-6
    corrector_step: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.corrector_step < math.inf:
            raise ValueError(f"'task.corrector_step' is {self.corrector_step}, expected a positive number")
        if self.cell_weight is not None and not self.cell_weight > 0:
            raise ValueError(f"'task.cell_weight' is {self.cell_weight}, expected a positive number or null")


@tasks.register("crystals", CrystalOptions)
class Crystals(Task):
    """Crystal structures: cell and fractions, given the composition; one sample for each test crystal."""

    groups: ClassVar[Mapping[str, Callable[[], Group]]] = {"torus": TorusShift}
    references = (JIAO_2023, TONG_2025)
    context = COMPOSITION
    # crystals differ in size; but backbones of crystals are marked `one_size`, so that tasks of molecules, whose states
    # have no cell, refuse them. Other backbones with that mark read no composition and are refused here for that
    one_size = True

    def __init__(self, cfg: CrystalOptions, diffusion: DiffusionConfig, group: str, facts: Facts) -> None:
        if facts.elements[-1] > MAX_NUMBER:
            raise ValueError(f"element {facts.elements[-1]} in the data, expected at most {MAX_NUMBER}")
        self.facts = facts
        self.group: Group = self.chosen_group(group)
        weight = facts.mean_atoms / 3 if cfg.cell_weight is None else cfg.cell_weight
        self.process = Process(
            Spaces({"frac": Torus(3), "cell": Euclidean(9, per_molecule=True)}),
            diffusion,
            facts.mean_atoms,
            own_paths={"cell": PathName.COSINE},
            weights={"cell": weight},
            corrector_step=cfg.corrector_step,
        )

    def encode(
        self, structures: Structures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Fractions and cells, with the compositions as context.

        Raises:
            ValueError: structures without cells.
        """
        frac = torch.from_numpy(fractions_of(structures)).to(device, dtype)
        assert structures.cells is not None  # else there are no fractions
        cell = torch.from_numpy(np.ascontiguousarray(structures.cells)).flatten(1).to(device, dtype)
        layout = Layout(structures.n_atoms, device)
        return self.process.spaces.wrap(State({"frac": frac, "cell": cell}, layout, self.given(structures, device)))

    def given(self, structures: Structures, device: torch.device | str = "cpu") -> Batch:
        """The context of these crystals' states."""
        return compositions(structures, device)

    def decode(self, state: State) -> Structures:
        """Crystals in angstrom, of the elements of the context."""
        assert state.context is not None
        numbers, frac, ptr = (x.cpu().numpy() for x in (state.context["z"], state.frac, state.ptr))
        return crystals(numbers, frac, state.cell.cpu().numpy().reshape(-1, 3, 3), ptr)

    def prompts(self, n: int, batch_size: int, seed: int, data: DataSet | None = None) -> list[Prompt]:
        """Batches to sample: one crystal for the composition of each test crystal, smallest first, at most n.

        Crystals are taken in one fixed order, whatever the seed.

        Raises:
            ValueError: no data set is given.
        """
        del seed
        if data is None:
            raise ValueError(
                "task 'crystals' samples for given compositions, and there is no data set to take them from"
            )
        chosen = judged_crystals(data.test, n)
        sizes = chosen.n_atoms
        order = np.argsort(sizes, kind="stable")
        prompts = []
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            context = self.given(chosen.select(places))
            prompts.append(Prompt(start // batch_size, places, sizes[places], int(sizes.max()), context))
        return prompts

    def evaluate(self, samples: Structures, data: DataSet, cache: Path) -> Evaluation:
        """Match rate and RMSE against the test crystals, validity, volumes, densities, cells; data: those crystals
        themselves."""
        from bench.metrics.crystals import evaluate_crystals, version  # here: it asks for pymatgen

        test = judged_crystals(data.test, len(samples))
        values = evaluate_crystals(samples, test)
        path = cache / f"crystals-{data.fingerprint}-{len(test)}-{version()}.json"
        if not path.exists():
            log.info("comparing %s test crystals with themselves (once)", grouped(len(test)))
            write_json(path, {"values": [value.to_dict() for value in evaluate_crystals(test, test)]})
        data_values = [Value.from_dict(value, str(path)) for value in read_json(path)["values"]]
        return Evaluation(values, data_values)


@tasks.register("crystals_text", CrystalOptions)
class DescribedCrystals(Crystals):
    """Crystal structures, given the composition and a description in words, which the data set encodes."""

    references = (JIAO_2023, TONG_2025, DAS_2025)
    context = DESCRIBED

    def given(self, structures: Structures, device: torch.device | str = "cpu") -> Batch:
        """Compositions and descriptions; raises ValueError for crystals without."""
        if not isinstance(structures, Described):
            raise ValueError(
                f"task 'crystals_text' asks for descriptions, and these crystals have none; set data.text to "
                f"'{HASHED}' or to the folder of a text encoder, or choose task 'crystals'"
            )
        return compositions(structures, device, structures.vectors)


def judged_crystals(test: Structures, n_samples: int) -> Structures:
    """The test crystals that `n_samples` samples are for: the first of one permutation."""
    return test.select(np.random.default_rng(ORDER_SEED).permutation(len(test))[:n_samples])
