"""Optional acceleration on a CPU, in C: faster methods for known networks, put in place after a model is built.

Without this folder everything runs, slower. Nothing imports it but `bench.run.acceleration`.
"""

from __future__ import annotations

from torch import nn

from bench.kernels import dit_passes, pair_mlp


def install(model: nn.Module) -> list[str]:
    """Replace methods of a model's networks where a kernel is for them; values and gradients differ by rounding.

    Returns:
        names of the kernels installed: none on another device than a CPU, without a C compiler, or for other networks.
    """
    if any(p.device.type != "cpu" for p in model.parameters()):
        return []
    kernels = {"pair_mlp": pair_mlp.install, "dit_passes": dit_passes.install}
    return [name for name, install_in in kernels.items() if install_in(model)]
