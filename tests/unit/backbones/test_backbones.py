"""Every backbone learns, and docs/backbones.md has the sizes that the code has.

`python tests/unit/backbones/test_backbones.py` writes the page's table again.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.config.run import RunConfig, build
from bench.data import mini
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.registry import backbones
from bench.run.model import Model
from bench.run.train import training_loss
from bench.streams import Streams

PAGE = Path(__file__).parents[3] / "docs" / "backbones.md"
TABLE = re.compile(r"(?<=<!-- sizes -->\n).*?(?=<!-- end of sizes -->)", flags=re.DOTALL)
# backbones of molecules; docs/toys.md has the others
MOLECULAR = [name for name in backbones if not getattr(backbones[name].build, "one_size", False)]
F, N_ATOMS = 6, 18  # QM9: five elements and the charge; 18.0 atoms on average


# ---------------------------------------------------------------------- learning


def losses(backbone: str, lr: float, n_steps: int = 25) -> list[float]:
    """Training loss on one batch of the embedded set with the same times and noise at every step."""
    page = {"method": {"name": "plain"}, "backbone": {"name": backbone, "size": "tiny"}, "data": {"name": "mini"}}
    cfg = build(RunConfig, {"study": "tests", **page})
    data = mini.load(mini.MiniConfig())
    model = Model.build(cfg, data.facts)
    x0 = model.task.encode(data.train.select(np.arange(16)))
    optimiser = torch.optim.Adam(model.parameters(), lr)
    values = []
    for _ in range(n_steps):
        loss = training_loss(model, x0, Streams(0).at(0)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize("backbone", MOLECULAR)
def test_loss_falls_on_the_embedded_set(backbone):
    """A few steps on one batch bring the loss down by a fifth at least; without a learning rate it stays."""
    falling = losses(backbone, lr=1e-2)
    assert falling[-1] < 0.8 * falling[0]
    assert np.mean(falling[-5:]) < np.mean(falling[5:10])
    assert len(set(losses(backbone, lr=0.0, n_steps=3))) == 1


# ---------------------------------------------------------------------- the page


def multiply_adds(network: torch.nn.Module) -> int:
    """Of the matrix products in one prediction for one molecule of 18 atoms; on 'meta', so nothing is computed."""
    z = State({"x": torch.zeros(N_ATOMS, 3), "h": torch.zeros(N_ATOMS, F)}, Layout([N_ATOMS])).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(z, torch.zeros(1, device="meta"))
    return counter.get_total_flops() // 2


def table() -> str:
    lines = ["| backbone | size | options | parameters | million multiply-adds |", "|---|---|---|---:|---:|"]
    for name in MOLECULAR:
        entry = backbones[name]
        for size, options in entry.build.sizes.items():
            with torch.device("meta"):
                network = entry.build(entry.config(**options), {"x": 3, "h": F})
            n = f"{sum(p.numel() for p in network.parameters()):,}".replace(",", " ")
            chosen = ", ".join(f"{key} {value}" for key, value in options.items())
            lines.append(f"| `{name}` | {size} | {chosen} | {n} | {multiply_adds(network) / 1e6:.1f} |")
    return "\n".join(lines) + "\n"


def test_sizes_on_the_page_are_those_of_the_code():
    written = TABLE.search(PAGE.read_text())
    assert written is not None
    assert written[0] == table(), "run `python tests/unit/backbones/test_backbones.py`"


def test_multiply_adds_are_counted():
    """A linear layer on 18 atoms, and the products of one EGNN block that grow with pairs."""

    class One(torch.nn.Linear):
        def forward(self, z, t):
            return super().forward(z.h)

    assert multiply_adds(One(F, 5)) == N_ATOMS * F * 5
    entry = backbones["egnn"]
    counts = [multiply_adds(entry.build(entry.config(width=64, depth=depth), {"x": 3, "h": F})) for depth in (1, 2)]
    in_pairs = (
        N_ATOMS * (N_ATOMS - 1) * (2 * 64 * 64)
    )  # message and strength of the coordinates, beside what each atom does once
    assert in_pairs < counts[1] - counts[0] < 1.6 * in_pairs


def test_every_backbone_has_a_section():
    for name in MOLECULAR:
        assert f"\n## `{name}`" in PAGE.read_text()


if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text()))
