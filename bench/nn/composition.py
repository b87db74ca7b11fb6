"""Compositions as inputs of networks: the element of each site, which no group changes.

A task whose `context` is `COMPOSITION` gives each state a PyTorch Geometric batch with `z`, the nuclear charges of
its sites in their order (`bench.structures.graphs.compositions`); one whose context is `DESCRIBED` also `text`, for
each crystal a vector made of its description in words (`bench.structures.prompts`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.geometry.state import State
from bench.nn.linear import Float32Linear

COMPOSITION = "composition"  # what a task's `context` is called, and what a backbone that reads it has in `contexts`
DESCRIBED = "composition with text"  # likewise, of a task that gives descriptions as well
MAX_NUMBER = 100  # elements of an embedding, as in DiffCSP


def numbers_of(z: State) -> Int[Tensor, "A"]:
    """Nuclear charges of the sites; raises ValueError where the state has none in its context."""
    if z.context is None or "z" not in z.context:
        raise ValueError(
            "a network built for compositions got a state without one in its context; choose a task that gives it"
        )
    return z.context["z"]


class TextHead(nn.Module):
    """A description's vector as features, as in TGDMat but for its dropout of 0.1, which would draw random numbers."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        self.first, self.second = Float32Linear(n_in, width), Float32Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, z: State) -> Float[Tensor, "B H"]:
        """Raises ValueError where the state has no descriptions in its context."""
        if z.context is None or "text" not in z.context:
            raise ValueError(
                "a network built for described crystals got a state without descriptions in its context; "
                "choose a task that gives them"
            )
        h = self.first(z.context["text"])
        return self.norm(h + self.second(F.gelu(h)))


def require_crystals(backbone: str, channels: dict[str, int], context: str | None) -> None:
    """Raise ValueError for states other than those of crystals."""
    if context not in (COMPOSITION, DESCRIBED) or channels != {"frac": 3, "cell": 9}:
        raise ValueError(
            f"backbone {backbone!r} takes fractions and cells of given compositions, got parts "
            f"{', '.join(channels)}; choose task 'crystals', or another backbone"
        )


def harmonics(turns: Float[Tensor, "N D"], orders: range) -> Float[Tensor, "N features"]:
    """sin|cos(2 pi k x) for each order k and column, which have the period 1."""
    k = torch.arange(orders.start, orders.stop, device=turns.device, dtype=turns.dtype)
    angle = (2 * math.pi) * (turns[:, :, None] * k).flatten(1)
    return torch.cat([angle.sin(), angle.cos()], dim=1)
