"""The learned vector field and the exact one, on a slice of the state space of a toy.

A state of the slice is a clean shape, scaled by alpha, whose first point is moved over a grid in its first two
coordinates (one on a line) while the others stay. The field is -E[eps | z_t] at that point: sigma times the score.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from bench.geometry.layout import Layout
from bench.measure.contract import Subject
from bench.measure.optimum import optimum_of
from bench.records.values import Kind, Value
from bench.references import EQUIBENCH
from bench.registry import measures
from bench.streams import Streams

AXES = ("x", "y")
REACH = 1.6  # half the width of the grid, in distances of the farthest point of a shape; on a torus it is the cell
FIELDS = {"field": "Learned field", "field_exact": "Exact field"}


@dataclass
class FieldConfig:
    """Options: noise levels, evenly spaced between the ends of the path, and grid points along each axis."""

    n_levels: int = 1  # noise levels, evenly spaced between the ends of the path
    n_grid: int = 9  # grid points along each axis

    def __post_init__(self) -> None:
        for key, least in {"n_levels": 1, "n_grid": 2}.items():
            if getattr(self, key) < least:
                raise ValueError(f"'{key}' of field is {getattr(self, key)}, expected at least {least}")


@measures.register("field", FieldConfig, references=(EQUIBENCH,))
@torch.no_grad()
def measure(subject: Subject, cfg: FieldConfig) -> list[Value]:
    """The learned vector field and the exact one at each point of a grid, along each axis of it (toys).

    Raises:
        ValueError: the training set is not that of a toy, or its states have several parts.
    """
    optimum, process, made = optimum_of(subject), subject.process, list[Value]()
    if len(process.spaces) != 1:
        raise ValueError(f"measure 'field' takes states of one part, got {', '.join(process.spaces)}")
    ((part, space),) = process.spaces.items()
    shape = optimum.shapes.parts[part][: int(optimum.shapes.n_atoms[0])]
    reach = REACH * float(shape.norm(dim=1).max())
    line = torch.linspace(-reach, reach, cfg.n_grid, dtype=shape.dtype, device=shape.device)
    if not space.linear:
        line = torch.arange(cfg.n_grid, dtype=shape.dtype, device=shape.device) / cfg.n_grid
    axes = AXES[: shape.shape[1]]
    points = torch.cartesian_prod(*[line] * len(axes)).view(-1, len(axes))
    layout = Layout([len(shape)] * len(points), subject.device)
    first = torch.arange(len(points), device=shape.device) * len(shape)
    for place in process.path.grid(cfg.n_levels + 1, subject.device)[1:-1]:
        subject.on_batch()
        level = process.path.at(place.expand(len(points)), torch.float64)
        rows = (level.alpha[0] * shape).repeat(len(points), 1)
        rows[first, : len(axes)] = points
        z_t = process.spaces.wrap(optimum.candidate(0, layout).replace(**{part: rows}))
        rng = Streams(subject.seed, subject.device).at(5_000_000)
        output = subject.predict(z_t.to(dtype=torch.float32), level.to(dtype=torch.float32), rng.method)
        learned = process.parametrisation.noise(output.to(dtype=torch.float64), z_t, level)
        for (name, label), noise in zip(FIELDS.items(), (learned, optimum(z_t, level)), strict=True):
            arrows = -noise.parts[part][first]
            for (i, point), (c, along) in itertools.product(enumerate(points.tolist()), enumerate(axes)):
                at = {"t": round(level.t[0].item(), 6), **dict(zip(axes, point, strict=True)), "along": along}
                made.append(Value(name, label, arrows[i, c].item(), kind=Kind.DIAGNOSTIC, at=at))
    return made
