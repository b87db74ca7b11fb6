"""torch.compile of a model's networks, with a fall-back to eager execution that the record states."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.geometry.state import State
from bench.nn.padded import slots_of
from bench.nn.pairs import pairs_of
from bench.records.store import disk_error
from bench.run.model import Model
from bench.run.train import training_loss
from bench.streams import Streams
from bench.structures.dataset import DataSet

log = logging.getLogger("equibench")


def compile_networks(model: Model, data: DataSet) -> str:
    """Compile the backbone and the method's own networks in place, and test them on one step of two molecules.

    Shapes are dynamic: batches differ in atoms and pairs. Random draws, hooks and the optimiser stay eager.

    Returns:
        'inductor', or 'eager (why)' where compilation does not work, for instance without a C++ compiler.
    """
    device = next(model.parameters()).device
    networks = [model.denoiser.backbone, *model.method.children()]
    for network in networks:
        network.forward = compiled(network.forward)
    x0 = model.task.encode(data.train.select(np.arange(min(2, len(data.train)))), device)
    try:
        training_loss(model, x0, Streams(0, device).at(0)).mean().backward()
    except Exception as error:  # the compiler's tool chain may raise anything
        if disk_error(error):  # no room for the compiler's cache: not a reason to fall back
            raise
        for network in networks:
            del network.forward  # restores the class's method
        reason = f"eager (torch.compile failed: {str(error).strip().splitlines()[0][:120]})"
        log.warning("running without compilation: %s", reason)
        return reason
    finally:
        model.zero_grad(set_to_none=True)
    return "inductor"


def compiled(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A network's function compiled for dynamic shapes; index lists of the layout are made outside, in numpy."""
    function = torch.compile(forward, dynamic=True, **options)

    def call(z: State, *others: Any) -> Any:
        _ = pairs_of(z.layout), pairs_of(z.layout, include_self=True), slots_of(z.layout)
        _ = z.layout.molecule, z.layout.n_atoms, z.layout.n_total, z.layout.n_molecules
        return function(z, *others)

    return call
