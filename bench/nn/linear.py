"""Input and output layers of networks, and access to the state parts that they read and write."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.state import State


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context in which autocast is disabled."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()  # the meta device


class Float32Linear(nn.Linear):
    """`torch.nn.Linear` in the precision of its weights, also under autocast.

    Inputs and outputs of a network stay float32: bf16 cannot resolve times t that differ by 1/1000.
    """

    def forward(self, input: Float[Tensor, "... K"]) -> Float[Tensor, "... H"]:
        with without_autocast(input.device):
            return super().forward(input.to(self.weight.dtype))


def features_of(z: State) -> Float[Tensor, "A F"]:
    """The part "h"; [A, 0] where a state has none."""
    return z.parts["h"] if "h" in z.parts else z.x.new_empty(len(z.x), 0)


def answer(z: State, x: Float[Tensor, "A D"], h: Float[Tensor, "A F"]) -> State:
    """A network's output: z with its parts replaced, without "h" where z has none."""
    return z.replace(x=x, h=h) if "h" in z.parts else z.replace(x=x)
