"""Our networks against the padded reference, one training step each on the same batch: `make perf`.

PERF_SIZE=published times the published sizes (minutes); QM9_DIR real molecules of QM9. Times are shown, never asserted.
"""

import os
from typing import Any

import pytest
import torch

from bench.run.batches import Batches
from bench.run.optimiser import TrainingState
from bench.run.train import BatchLoss, training_step
from bench.streams import Streams
from performance.cell import built, measured
from performance.padded import use_reference
from performance.ratios import compared

SIZE = os.environ.get("PERF_SIZE", "small")
ROUNDS = {"rounds": 3, "warmup_rounds": 1, "iterations": 1}
PAIRS = [("edm", "egnn"), ("plain", "dit"), ("symdiff", "dit")]
REFERENCE: dict[tuple[str, str], tuple[float, float]] = {}  # median seconds, peak MiB


@pytest.mark.parametrize("kind", ["reference", "float32", "bf16"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_training_step(benchmark: Any, pair: tuple[str, str], kind: str):
    given = {"method": pair[0], "backbone": pair[1], "size": SIZE, "threads": torch.get_num_threads()}
    given["bf16"] = kind == "bf16"
    reference = kind == "reference"
    cfg, model, data = built(**given)
    if reference:
        use_reference(cfg, model)
    x0 = Batches(data.train, model.task, cfg.train.batch_size, cfg.seed)(0)
    state, loss_of = TrainingState.at_start(model.named_weights(), cfg.train), BatchLoss(model)
    benchmark.group = f"step of {'-'.join(pair)}, {SIZE}, {len(x0)} molecules of {data.label}"
    rng = Streams(0).at(0)
    benchmark.pedantic(lambda: training_step(loss_of, x0, rng, cfg.train, state, cfg.train.lr), **ROUNDS)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    peak = measured("step", n_steps=1, reference=reference, **given)["peak_memory_mb"]
    if reference:
        REFERENCE[pair] = seconds, peak
        compared(benchmark, kind, seconds, seconds, ours=peak, reference=peak)
    else:
        other, other_peak = REFERENCE.get(pair, (None, None))
        memory = {"ours": peak} if other_peak is None else {"ours": peak, "reference": other_peak}
        compared(benchmark, kind, seconds, other, **memory)
