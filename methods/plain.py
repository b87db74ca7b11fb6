"""No symmetry anywhere: the baseline of the ablation."""

from __future__ import annotations

from bench.references import HOOGEBOOM_2022, ZHANG_2024
from bench.registry import methods
from bench.symmetry.contract import Method, NoOptions
from bench.symmetry.published import PublishedWeights


@methods.register("plain", NoOptions)
class Plain(Method):
    """Plain diffusion on the data as stored; the network may exploit stored orientations."""

    references = (HOOGEBOOM_2022, ZHANG_2024)  # the core without its network; the row 'DiT'
    published = PublishedWeights(
        "SymDiff's DiTGaussian_dynamics",
        frozenset({"gaussian_embedder", "xh_embedder", "pos_embedder", "model"}),
        backbone="dit",
        trunk="model",
        notes=("names do not tell whether these weights saw rotated data; `method` says it",),
    )
