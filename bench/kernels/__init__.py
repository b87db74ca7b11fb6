"""Optional CPU kernels in C that replace methods of known networks after a model is built.

Everything runs without this folder, more slowly. Only `bench.run.acceleration` imports it.
"""

from __future__ import annotations

from torch import nn

from bench.kernels import dit_passes, pair_mlp


def install(model: nn.Module) -> list[str]:
    """Replace methods of a model's networks by kernels; values and gradients agree to rounding.

    Returns:
        names of the kernels installed; none off the CPU, without a C compiler, or for networks without kernels.
    """
    if any(p.device.type != "cpu" for p in model.parameters()):
        return []
    kernels = {"pair_mlp": pair_mlp.install, "dit_passes": dit_passes.install}
    return [name for name, install_in in kernels.items() if install_in(model)]
