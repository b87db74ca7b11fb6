"""Networks on lists of pairs in arrays of fixed sizes, as on a GPU, are those on blocks; all seen on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graphs import SIZES, difference, step
from support import generator, model_of, relative_error, states

from bench.geometry.layout import Layout
from bench.kernels.native import operations_of_torch
from bench.nn import static
from bench.nn.pairs import pair_input
from bench.nn.static import StaticLayout, capacity

PAIRS = [("plain", "dit"), ("edm", "egnn"), ("plain", "gdm"), ("edm", "e3"), ("symdiff", "dit")]
TESTS = Path(__file__).parents[1]


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(static, "DEVICES", {"cpu"})
    with operations_of_torch():
        yield


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_lists_of_pairs_give_what_blocks_do(pair, monkeypatch):
    """Values and gradients to 1e-12. Control: one filler pair that is a real atom's."""
    expected = step(model_of(*pair))
    monkeypatch.setattr(static, "DEVICES", {"cpu"})
    assert difference(step(model_of(*pair)), expected) < 1e-12

    def wrong(self: StaticLayout, layout: Layout) -> None:
        right(self, layout)
        self.i[-1], self.j[-1], self.slots[1, 5] = 0, 1, 0

    right = StaticLayout.__init__
    monkeypatch.setattr(StaticLayout, "__init__", wrong)
    assert difference(step(model_of(*pair)), expected) > 1e-6


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_autocast_reaches_them(pair):
    """bf16 on lists is near float32, and (control) not the same."""
    model = model_of(*pair, dtype=torch.float32)
    _, _, level, z_t = states(SIZES, dtype=torch.float32)
    single = model.predict(z_t, level, generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        half = model.predict(z_t, level, generator(1))
    assert 1e-6 < relative_error(half, single) < 0.1
    assert half.x.dtype == half.h.dtype == torch.float32


def test_distances_are_not_rounded_by_autocast():
    """Control: a product that autocast reaches."""
    layout, rng = StaticLayout(Layout(SIZES)), generator(2)
    ab, D, W = (torch.randn(n, K, generator=rng) for n, K in ((layout.n_total, 8), (layout.n_pairs, 2), (2, 4)))
    expected = pair_input(ab, D, W, layout)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pair_input(ab, D, W, layout), expected)
        assert relative_error((D @ W).float(), expected - pair_input(ab, 0 * D, W, layout)) > 1e-4


def n_graphs(pair: tuple[str, str], dynamic: bool | None) -> int:
    """Compiled for a few batches; in a process without type checks, through which nothing can be compiled."""
    command = [sys.executable, str(Path(__file__).with_name("graphs.py")), *pair, json.dumps(dynamic)]
    path = os.pathsep.join(str(folder) for folder in (TESTS.parent, TESTS))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["difference"] < 1e-12
    return result["graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_network_is_one_graph_for_all_batches(pair):
    """One for the first batch and one for lengths that vary, of each of the model's networks, without a break.

    Control: with every length fixed there are more.
    """
    networks = 2 if pair[0] == "symdiff" else 1
    assert n_graphs(pair, dynamic=None) == 2 * networks
    if pair == ("edm", "egnn"):
        assert n_graphs(pair, dynamic=False) > 2


def test_few_capacities_and_little_filler():
    """Eight per power of two, at most an eighth more, and at least as many as are needed."""
    found = {n: capacity(n) for n in range(1, 4097)}
    assert all(n <= c <= max(n * 9 / 8, n) or n < 16 for n, c in found.items())
    assert all(found[n] >= n for n in found)
    assert len({c for n, c in found.items() if 2048 < n <= 4096}) == 8


def test_filler_belongs_to_no_molecule():
    layout = StaticLayout(Layout(SIZES))
    n_atoms, n_pairs = sum(SIZES), sum(n * n for n in SIZES)
    assert layout.n_molecules == len(SIZES) + 1
    assert (layout.molecule[n_atoms:] == len(SIZES)).all()
    assert (layout.i[n_pairs:] == layout.n_total - 1).all()
    assert torch.equal(layout.molecule[layout.i[:n_pairs]], layout.molecule[layout.j[:n_pairs]])
    assert len({(int(i), int(j)) for i, j in zip(layout.i[:n_pairs], layout.j[:n_pairs], strict=True)}) == n_pairs
