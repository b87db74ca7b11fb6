"""Losses and gradient norms of every pairing on fixed molecules, weights and draws, which a change for speed must keep.

    python tests/parity/golden_losses.py        # writes golden_losses.json beside this file again

The stored ones were made at commit b112dc8, before networks on pairs, Gaussians and attention had backward passes of
their own. They are to be made again only where a method's law or a network's function is meant to change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).with_suffix(".json")
N_STEPS = 3


def losses(method: str, backbone: str, factor: float = 1.0, kernels: bool = False) -> list[list[float]]:
    """[loss, gradient norm] of each step's draws, in float32; all weights times a factor."""
    from support import model_of, run_config, states

    from bench.run.acceleration import accelerate
    from bench.run.train import training_loss
    from bench.streams import Streams

    model = model_of(method, backbone, dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p *= factor
    if kernels:
        accelerate(model, run_config(method, backbone).train)
    x0, _, _, _ = states(dtype=torch.float32)
    rows = []
    for step in range(N_STEPS):
        model.zero_grad(set_to_none=True)
        loss = training_loss(model, x0, Streams(0).at(step)).mean()
        loss.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        rows.append([loss.item(), torch.stack(norms).norm().item()])
    return rows


def main() -> None:
    from support import fitting_pairs

    found = {f"{method} on {backbone}": losses(method, backbone) for method, backbone in fitting_pairs()}
    STORED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
