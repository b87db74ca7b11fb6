"""No symmetry at all: the floor of the ablation."""

from __future__ import annotations

from bench.method import Method, NoOptions
from bench.registry import methods


@methods.register("plain", NoOptions)
class Plain(Method):
    """Plain diffusion on the data as stored; the network may exploit stored orientations."""
