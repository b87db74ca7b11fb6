"""Symmetry from the architecture: an exactly equivariant backbone and nothing else."""

from __future__ import annotations

from bench.references import HOOGEBOOM_2022
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method, NoOptions
from bench.symmetry.published import PublishedWeights


@methods.register("edm", NoOptions)
class EDM(Method):
    """Intrinsically equivariant diffusion: the denoiser commutes with every rotation and reflection."""

    guarantee = Guarantee.EXACT
    needs_equivariant_backbone = True
    otherwise = "plain"
    references = (HOOGEBOOM_2022,)
    published = PublishedWeights(
        "EDM's EGNN_dynamics_QM9",
        frozenset({"egnn"}),
        backbone="egnn",
        trunk="egnn",
        assumed={"tanh": True, "norm_constant": 1, "normalization_factor": 1, "aggregation_method": "sum"},
    )
