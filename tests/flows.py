"""What tests of flows share: small molecules with bonds, many copies of one, and each path and prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from bench.diffusion.parametrisation import Parametrisation
from bench.diffusion.paths import PathName, Prior
from bench.diffusion.process import DiffusionConfig, Process
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.spaces import Centred, Spaces
from bench.geometry.state import State

F64 = torch.float64
Bonds = Sequence[tuple[int, int]]
FORK: Bonds = ((0, 1), (1, 2), (1, 3), (3, 4))  # atoms 0 and 2 can change places
RING: Bonds = ((0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (4, 5))
PAIR: Bonds = ((0, 1),)
GRAPHS: list[Bonds] = [FORK, RING, PAIR]
SIZES = [5, 6, 2]
SETTINGS = [(prior, bridge) for prior in Prior for bridge in (0.0, 0.5)]
OVER_SETTINGS = pytest.mark.parametrize(("prior", "bridge"), SETTINGS, ids=[f"{p}-{b}" for p, b in SETTINGS])


def flow(prior: Prior, bridge: float = 0.0, of: Parametrisation = Parametrisation.VELOCITY) -> Process:
    cfg = DiffusionConfig(path=PathName.LINEAR, prior=prior, bridge_noise=bridge, parametrisation=of)
    return Process(Spaces({"x": Centred(3)}), cfg)


def context(graphs: Sequence[Bonds], sizes: Sequence[int], copies: int = 1, **more: Any) -> Batch:
    """Bonds of molecules one after the other, in both directions; the whole list `copies` times."""
    starts = torch.tensor([0, *sizes]).cumsum(0)
    bonds = [start + torch.tensor(bonds).T for bonds, start in zip(graphs, starts.tolist(), strict=False)]
    one = torch.cat([torch.cat([b, b.flip(0)], dim=1) for b in bonds], dim=1)
    shift = starts[-1] * torch.arange(copies)
    return Batch(_base_cls=Data, edge_index=(one[:, None] + shift[:, None]).flatten(1), **more)


def batch(x: Tensor | None = None, seed: int = 0) -> State:
    """One clean molecule of each graph, centred."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(SIZES), 3, generator=rng, dtype=F64) if x is None else x
    return State({"x": x}, Layout(SIZES), context(GRAPHS, SIZES)).centred()


def copies(x: Tensor, bonds: Bonds, n: int, automorphisms: Tensor | None = None) -> State:
    """n molecules with the positions x [N, 3] and the same bonds; `automorphisms` [G, N] go into the context."""
    N = len(x)
    more = {}
    if automorphisms is not None:
        table = (automorphisms.T[None] + N * torch.arange(n)[:, None, None]).flatten(0, 1)
        more = {"automorphisms": table, "n_automorphisms": torch.full((n,), len(automorphisms))}
    return State({"x": x.repeat(n, 1)}, Layout([N] * n), context([bonds], [N], n, **more)).centred()


def at(process: Process, t: float | Sequence[float], n: int = 1) -> Level:
    """The level of one time for n molecules, or of a time for each."""
    times = [t] * n if isinstance(t, int | float) else list(t)
    return process.path.at(torch.tensor(times, dtype=F64), F64)


def laplacian(bonds: Bonds, n: int) -> Tensor:
    adjacent = torch.zeros(n, n, dtype=F64)
    for i, j in bonds:
        adjacent[i, j] = adjacent[j, i] = 1
    return torch.diag(adjacent.sum(1)) - adjacent


def covariance(prior: Prior, bridge: float, bonds: Bonds, n: int, t: float) -> Tensor:
    """Of one coordinate of z_t given x0 [N, N], from the definition of the path."""
    centring = torch.eye(n, dtype=F64) - 1 / n
    of_prior = centring if prior is Prior.GAUSSIAN else torch.linalg.pinv(laplacian(bonds, n))
    return t**2 * of_prior + bridge**2 * t * (1 - t) * centring
