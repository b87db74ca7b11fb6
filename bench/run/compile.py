"""torch.compile of the networks on a GPU, with a fall-back to eager that the record states.

Networks there run on arrays of a few fixed sizes (`bench/nn/static.py`), so that each is compiled as a whole,
once for the first batch and once for lengths that vary, and each size is recorded as a CUDA graph. Random draws, hooks
and the optimiser are outside. On a CPU what is worth compiling is C (`bench/kernels/native.py`).
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from bench.nn import static
from bench.records.store import disk_error
from bench.run.model import Model
from bench.run.train import training_loss
from bench.streams import Streams
from bench.structures.dataset import DataSet

log = logging.getLogger("equibench")


def compile_networks(model: Model, data: DataSet) -> str:
    """Compile in place and try one training step of two molecules.

    Returns:
        'inductor with CUDA graphs', or 'eager (why)' where nothing is compiled or compilation does not work here, for
        instance without a C++ compiler.
    """
    device = next(model.parameters()).device
    if device.type not in static.DEVICES:
        return f"eager (networks are compiled on a GPU, not on {device.type})"
    compiled = []
    for module in model.modules():
        if name := getattr(module, "static_function", None):
            setattr(module, name, torch.compile(getattr(module, name), mode="reduce-overhead"))
            compiled.append((module, name))
    if not compiled:
        return "eager (no network of this model names a `static_function`)"
    x0 = model.task.encode(data.train.select(np.arange(min(2, len(data.train)))), device)
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
    return "inductor with CUDA graphs"
