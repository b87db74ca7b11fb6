"""How often a model's networks are compiled for batches of other sizes: `graphs.py METHOD BACKBONE`.

Prints a JSON object: `graphs`, and the largest `difference` of predictions and gradients from those not compiled.
"""

import json
import sys

from support import generator, model_of, relative_error, states
from torch import Tensor

from bench.run.compile import compiled
from bench.run.model import Model

SIZES = (3, 5, 5, 9, 1, 2)  # not sorted, and one atom alone


def step(model: Model, sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    """Predictions, and gradients of all weights, in float64."""
    model.zero_grad()
    _, _, level, z_t = states(sizes)
    out = model.predict(z_t, level, generator(1))
    (out.x.square().sum() + out.h.square().sum()).backward()
    return [out.x, out.h, *(p.grad for p in model.parameters() if p.grad is not None)]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(relative_error(x, y) for x, y in zip(found, expected, strict=True) if y.abs().max() > 0)


def main(method: str, backbone: str) -> dict[str, float]:
    from torch._dynamo.testing import CompileCounterWithBackend

    model, plain = model_of(method, backbone), model_of(method, backbone)
    counter = CompileCounterWithBackend("aot_eager")
    for network in (model.denoiser.backbone, *model.method.children()):
        network.forward = compiled(network.forward, backend=counter)
    batches = (SIZES, (4, 4, 4), (9, 8, 7, 6, 5, 4, 3), (2, 2, 2, 2, 11), (6,) * 9)
    worst = max(difference(step(model, sizes), step(plain, sizes)) for sizes in batches)
    return {"graphs": counter.frame_count, "difference": worst}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
