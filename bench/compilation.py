"""torch.compile of the networks' inner functions, with a fall-back to eager that the record states.

Batches are ragged, so a network as a whole would be compiled anew for every combination of sizes. What is compiled are
the functions of flat tensors that a module names in `compilable`, with a dynamic leading dimension. On a CPU,
what `pair_mlp`, `dit_passes` and `gaussians` in `bench.backbones` do in C is not among them.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from bench.data.dataset import DataSet
from bench.model import Model
from bench.records import disk_error
from bench.streams import Streams
from bench.train import training_loss

log = logging.getLogger("equibench")


def compile_networks(model: Model, data: DataSet) -> str:
    """Compile in place and try one training step of two molecules.

    Returns:
        'inductor', or 'eager (why)' where compilation does not work here, for instance without a C++ compiler.
    """
    compiled = []
    for module in model.modules():
        for name in getattr(module, "compilable", ()):
            setattr(module, name, torch.compile(getattr(module, name), dynamic=True))
            compiled.append((module, name))
    if not compiled:
        return "eager (no part of this network is compiled)"
    device = next(model.parameters()).device
    x0 = model.diffusion.encode(data.train.select(np.arange(min(2, len(data.train)))), device)
    try:
        training_loss(model, x0, Streams(0, device).at(0)).mean().backward()
    except Exception as error:  # whatever the compiler's tool chain raises
        if disk_error(error):  # the compiler's cache; the next call would compile
            raise
        for module, name in compiled:
            delattr(module, name)  # the class's own function shows again
        reason = f"eager (torch.compile failed: {str(error).strip().splitlines()[0][:120]})"
        log.warning("running without compilation: %s", reason)
        return reason
    finally:
        model.zero_grad(set_to_none=True)
    return "inductor"
