"""The law of a deterministic sampler's samples in one dimension, by quadrature over the initial noise.

Free of sampling error: a rate of 1e-5, such as that of strays far from any target, is still resolved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.diffusion.sampler import Sampler, sample
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.measure.contract import Subject, is_stochastic
from bench.records.values import Better, Kind, Value
from bench.references import EQUIBENCH
from bench.registry import measures
from bench.streams import Streams


@dataclass
class PushforwardConfig:
    """Options: nodes of the quadrature, and steps of the deterministic sampler."""

    n_nodes: int = 20_000  # nodes of the quadrature
    n_steps: int = 99  # steps of the deterministic sampler

    def __post_init__(self) -> None:
        for key in ("n_nodes", "n_steps"):
            if getattr(self, key) < 2:
                raise ValueError(f"'{key}' of pushforward is {getattr(self, key)}, expected at least 2")


@measures.register("pushforward", PushforwardConfig, references=(EQUIBENCH,))
@torch.no_grad()
def measure(subject: Subject, cfg: PushforwardConfig) -> list[Value]:
    """Distance and W2 of the sampled law to the data's, by quadrature (one point on a line, group of signs).

    Nodes are the midpoints of equal shares of the normal distribution; between two laws on a line W2 is the root mean
    square difference of their quantile functions.

    Nothing for stochastic predictions, for which this is no quadrature.

    Raises:
        ValueError: states are not one point on a line.
    """
    process = subject.process
    distinct, _ = subject.data.train.distinct()
    if list(process.channels.values()) != [1] or set(distinct.n_atoms.tolist()) != {1} or len(distinct) != 1:
        raise ValueError("measure 'pushforward' takes one point on a line; leave it out (measures.pushforward=null)")
    (name,) = process.spaces
    scale = float(subject.encode(distinct, subject.device).parts[name].abs())
    layout = Layout([1] * cfg.n_nodes, subject.device)
    shares = (torch.arange(cfg.n_nodes, device=subject.device, dtype=torch.float64) + 0.5) / cfg.n_nodes
    normal = State({name: torch.special.ndtri(shares)[:, None].float()}, layout)
    start = process.prior(normal)
    if is_stochastic(subject, start, process.path.at(process.path.grid(2, subject.device)[1].expand(cfg.n_nodes))):
        return []
    rng = Streams(subject.seed, subject.device).at(6_000_000)

    def predict(z_t: State, level: Level) -> State:
        return subject.predict(z_t, level, rng.method)

    drawn = sample(process, predict, layout, cfg.n_steps, rng.sampling, subject.on_batch, Sampler.EULER, start=start)
    x = drawn.parts[name][:, 0]
    x = (x.double() / scale).sort().values
    law = torch.where(shares < 0.5, -1.0, 1.0).to(x)
    lower, about = Better.LOWER, "by quadrature over the initial noise, without sampling error"

    def value(key: str, label: str, number: torch.Tensor, kind: Kind = Kind.QUALITY) -> Value:
        return Value(key, label, number.item(), "", lower, kind, definition=about)

    off = x - x.sign()  # a stray is farther than 0.1 from both targets
    return [
        value("rmsd_exact", "Distance to the law, exact", off.abs().mean()),
        value("w2_exact", "W2, exact", (x - law).square().mean().sqrt(), Kind.DIAGNOSTIC),
        value("w2_balanced_exact", "W2, signs balanced, exact", off.square().mean().sqrt()),
        value("stray_exact", "Share of strays", (off.abs() > 0.1).double().mean(), Kind.DIAGNOSTIC),
    ]
