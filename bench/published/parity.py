"""`equibench parity`: compares this code with numbers of the published code.

A fixture is an npz file in the layout of tests/parity/README.md: inputs, a state dict under published names, a JSON
`config` and outputs. The arrays present determine its kind. Each output is compared by max |ours - published| /
max |published|; the published side is float32.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.config.run import resolve
from bench.diffusion import likelihood
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.paths import VariancePreserving, polynomial_2
from bench.diffusion.process import DiffusionConfig, Process, squared_error
from bench.diffusion.sampler import reverse_coefficients, reverse_step
from bench.geometry.groups import O3
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.spaces import Centred, Euclidean, Spaces
from bench.geometry.state import State
from bench.published.weights import CONFIG_NAMES, ELEMENTS, Reading, recognise, understand
from bench.records.inputs import NpzError, one_line, read_arrays, truncate
from bench.records.store import parse
from bench.registry import backbones, methods, tasks
from bench.structures.dataset import Facts
from bench.structures.structures import Structures
from bench.symmetry.contract import Setting
from bench.symmetry.published import PublishedError, StateDict
from bench.symmetry.symmetrise import symmetrised
from bench.tasks.contract import Task

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
SCHEDULE = "gamma_T"


class FixtureError(ValueError):
    """A file that is not a fixture, or a damaged one; the message is one line."""


@dataclass(frozen=True)
class Fixture:
    """One file of published inputs and outputs: all arrays by name."""

    arrays: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> Fixture:
        """Raises FixtureError: the file is missing, no npz, or damaged."""
        try:
            return cls(read_arrays(path))
        except OSError as error:
            raise FixtureError(one_line(error)) from error
        except NpzError as error:
            raise FixtureError(str(error)) from error

    def array(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise FixtureError(f"array {name!r} is missing; it has {truncate(', '.join(self.arrays), 200)}")
        return self.arrays[name]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.array(name))

    @property
    def config(self) -> dict[str, Any]:
        return parse(str(self.array("config")))

    @property
    def weights(self) -> StateDict:
        """The state dict, under published names."""
        return StateDict({key[6:]: self[key] for key in self.arrays if key.startswith("param:")})

    @property
    def layout(self) -> Layout:
        sizes, n_atoms = self.array("num_atoms"), len(self.array("z_t" if "z_t" in self.arrays else "positions"))
        if sum(sizes.tolist()) != n_atoms:
            raise FixtureError(f"array 'num_atoms' sums to {sum(sizes.tolist())}, expected {n_atoms}")
        return Layout(sizes.tolist())

    @property
    def level(self) -> Level:
        """The stored time is continuous, so the table has no level for it; networks only see t."""
        t = self["t"][:, 0]
        return Level(t, *(torch.full_like(t, torch.nan) for _ in range(2)))

    def state(self, name: str) -> State:
        """A stored [A, 3 + F] as positions and features."""
        return State({"x": self[name][:, :3], "h": self[name][:, 3:]}, self.layout)


@dataclass(frozen=True)
class Comparison:
    """One quantity: `error` is max |ours - published| / max |published|."""

    quantity: str
    error: float

    @classmethod
    def of(cls, quantity: str, ours: Tensor | np.ndarray | State, published: Tensor | np.ndarray) -> Comparison:
        if isinstance(ours, State):
            ours = torch.cat([ours.x, ours.h], dim=1)
        a, b = (np.asarray(values, dtype=np.float64) for values in (ours, published))
        if a.shape != b.shape:
            raise FixtureError(f"array {quantity!r} has shape {b.shape}, expected {a.shape}")
        difference, scale = np.abs(a - b).max(initial=0), np.abs(b).max(initial=0)
        # from a zero reference, anything else is infinitely far
        return cls(quantity, float(difference / scale) if scale > 0 else (0.0 if difference == 0 else math.inf))

    @property
    def passes(self) -> bool:
        return self.error <= TOLERANCE  # false for NaN


def compare(fixture: Fixture) -> tuple[str, list[Comparison]]:
    """The kind of a fixture, and the comparison of each of its quantities.

    Raises:
        FixtureError: it is of no known kind, or arrays are missing or inconsistent.
    """
    try:
        with torch.no_grad():
            if any(name.startswith(SCHEDULE) for name in fixture.arrays):
                return "noise schedule", list(_schedule(fixture))
            if "bond_order_sum" in fixture.arrays:
                return "metrics", list(_metrics(fixture))
            if not fixture.weights:
                raise FixtureError(
                    f"of no known kind; expected a noise schedule ({SCHEDULE}*), metrics (bond_order_sum) or a "
                    f"network (param:*), got {truncate(', '.join(fixture.arrays), 200) or 'no arrays'}"
                )
            reading, backbone, method = build(fixture)
            spaces = Spaces({"x": Centred(3), "h": Euclidean(reading.n_features)})
            if "nll_without_size_prior" in fixture.arrays:
                return f"core, {reading.weights.network}", list(_core(fixture, Denoiser(backbone, spaces)))
            return reading.weights.network, list(_network(fixture, reading, Denoiser(backbone, spaces), method))
    except FixtureError:
        raise
    except PublishedError as error:
        raise FixtureError(str(error)) from error
    except Exception as error:  # inconsistent arrays or config fail wherever they are first used together
        raise FixtureError(f"its arrays do not fit together ({type(error).__name__}: {one_line(error)})") from error


def build(fixture: Fixture) -> tuple[Reading, nn.Module, nn.Module]:
    """Backbone and method according to a fixture's `config`, with its weights."""
    published, config = fixture.weights, fixture.config
    _, weights = recognise(published)
    for key, value in weights.assumed.items():
        if config.get(key, value) != value:
            raise FixtureError(f"config has {key} = {config[key]!r}; only the published {value!r} is supported")
    own = _options(config, weights.own.config_names) if weights.own else {}
    reading = understand(published, own, _options(config, CONFIG_NAMES[weights.backbone]))
    for device in ("meta", "cpu"):  # shapes first: a damaged file may describe a network too large for memory
        with torch.device(device):
            channels = {"x": 3, "h": reading.n_features}
            backbone = backbones[weights.backbone].build(
                resolve(backbones, reading.backbone, "backbone").options, channels
            )
            setting = Setting(O3(), backbone, channels)
            method = methods[reading.method["name"]].build(resolve(methods, reading.method, "method").options, setting)
            reading.load(published, backbone, method)
    return reading, backbone, method


def _options(config: dict[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    """The options that a published configuration sets (it writes ratios as floats)."""
    return {ours: int(config[key]) for key, ours in names.items() if key in config}


# ---------------------------------------------------------------------- kinds of fixtures


def _schedule(fixture: Fixture) -> Iterator[Comparison]:
    for name, stored in fixture.arrays.items():
        match = re.fullmatch(rf"{SCHEDULE}(\d+)_s(.+)", name)
        if match is None:
            raise FixtureError(f"array {truncate(name)!r} is not named {SCHEDULE}<levels>_s<precision>")
        if match[1] != str(len(stored) - 1):
            raise FixtureError(f"array {truncate(name)!r} has {len(stored)} levels, T = 0 included")
        yield Comparison.of(name, polynomial_2(int(match[1]), float(match[2])), stored)


def _network(fixture: Fixture, reading: Reading, denoiser: Denoiser, method: nn.Module) -> Iterator[Comparison]:
    z_t, level = fixture.state("z_t"), fixture.level
    own = reading.weights.own
    if own is None:
        yield Comparison.of("eps", denoiser(z_t, level), fixture["eps"])
        return
    base, noise = fixture["base_rotation"], fixture["encoder_noise"]
    R = own.rotation(getattr(method, own.module), z_t, base, noise, level.t)
    yield Comparison.of("gamma", R, fixture["gamma"])
    yield Comparison.of("eps", symmetrised(O3(), R, denoiser, z_t, level), fixture["eps"])


def _core(fixture: Fixture, denoiser: Denoiser) -> Iterator[Comparison]:
    """The bound with its terms, the training losses, one reverse step and the last."""
    config, layout = fixture.config, fixture.layout
    if config["schedule"] != "polynomial_2":
        raise FixtureError(f"config has schedule {config['schedule']!r}; only 'polynomial_2' is supported")
    position, onehot, charge = map(float, config["norm_values"])
    options = DiffusionConfig(n_levels=config["T"], precision=config["precision"])
    scales = {"scale_position": position, "scale_onehot": onehot, "scale_charge": charge}
    scaled = tasks["denovo"].config(include_charges=True, **scales)
    facts = Facts(ELEMENTS, float(layout.sizes.mean()), {})

    def task_of(options: DiffusionConfig) -> Task:
        return tasks["denovo"].build(scaled, options, "O3", facts)

    task = task_of(options)
    process, decoder = task.process, task.process.decoder
    assert decoder is not None
    structures = Structures(fixture.array("z"), fixture.array("positions"), layout.ptr.numpy())
    x0, eps = task.encode(structures), fixture.state("eps")

    terms = likelihood.bound_terms(process, x0, denoiser, fixture["t_int"][:, 0], eps, fixture.state("eps0"))
    yield Comparison.of(
        "nll_without_size_prior", torch.stack(list(terms.values())).sum(0), fixture["nll_without_size_prior"]
    )
    yield Comparison.of("neg_log_constants", terms["constants"], fixture["neg_log_constants"])
    yield Comparison.of("kl_prior", published_prior_kl(x0, process, torch.float32), fixture["kl_prior"])
    yield Comparison.of("kl_prior (float64)", terms["prior"], published_prior_kl(x0, process, torch.float64))
    volume = 3 * (x0.n_atoms - 1) * math.log(position)
    yield Comparison.of("delta_log_px", -volume, fixture["delta_log_px"])

    padded = task_of(dataclasses.replace(options, edm_compat=True)).process
    if layout.n_largest != config["padded_atoms"]:
        raise FixtureError(f"config has padded_atoms {config['padded_atoms']}, its largest molecule {layout.n_largest}")
    for name, times in (("l2_train_loss_official_padded", "t_int"), ("l2_train_loss_with_t0", "t_int_with_zero")):
        noised = padded.noised(x0, eps, padded.path.at(fixture[times][:, 0]))
        eps_hat = denoiser(noised.z_t, noised.level)
        loss = padded.training_loss(squared_error(eps_hat, eps), eps_hat, eps, noised)
        # the published loss adds the KL of the prior, which has no gradient; ours leaves it out
        yield Comparison.of(name, loss + fixture["kl_prior"], fixture[name])

    z_t = fixture.state("z_t")
    s, t = (torch.tensor([round(config["T"] * config[f"ancestral_{end}"])]) for end in "st")
    (step,) = reverse_coefficients(process.path, s, t)
    z_s = process.spaces.wrap(reverse_step(z_t, denoiser(z_t, process.path.at(t.expand(len(z_t)))), eps, step))
    yield Comparison.of("ancestral_zs", z_s, fixture["ancestral_zs"])

    level = process.path.at(torch.zeros(len(z_t), dtype=torch.int64))
    final = decoder.step(z_t, denoiser(z_t, level), fixture.state("eps0"), level)
    yield Comparison.of("final_x", final.x, fixture["final_x"])
    onehot = task.decode(final).numbers[:, None] == np.array(ELEMENTS)
    yield Comparison.of("final_onehot", onehot, fixture["final_onehot"])
    charges = torch.round(final.h[:, -1:] * charge)
    yield Comparison.of("final_charge", charges, fixture["final_charge"])


def published_prior_kl(x0: State, process: Process, dtype: torch.dtype) -> Tensor:
    """KL_T [B] in the published order of operations, whose float32 result is a difference of numbers near 1.

    Stored values are 1e-3 off for that reason alone; so they are compared with this, and this in float64 with
    `bench.diffusion.likelihood.prior_kl`.
    """
    path = process.path
    assert isinstance(path, VariancePreserving)
    gamma = path.gamma[-1].to(dtype)
    alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    log_ratio = torch.log(1 / sigma)
    features = x0.sum_over_atoms((log_ratio + 0.5 * (sigma**2 + (alpha * x0.h.to(dtype)) ** 2) - 0.5).sum(1))
    dims = 3 * (x0.n_atoms.to(dtype) - 1)
    squares = x0.sum_over_atoms(((alpha * x0.x.to(dtype)) ** 2).sum(1))
    return dims * log_ratio + 0.5 * (dims * sigma**2 + squares) - 0.5 * dims + features


def _metrics(fixture: Fixture) -> Iterator[Comparison]:
    """Counts and strings: an error above zero means that a molecule is evaluated differently."""
    from bench.metrics.molecules import evaluate_molecules

    ptr = fixture.layout.ptr.numpy()
    molecules = Structures(fixture.array("charges").astype(np.int64), fixture.array("positions"), ptr)
    scores = evaluate_molecules(molecules)
    yield Comparison.of("bond_order_sum", scores.bonds.order_sums(molecules), fixture.array("bond_order_sum"))
    yield Comparison.of("molecule_stable", scores.molecule_stable, fixture.array("molecule_stable"))
    yield Comparison.of("valid", scores.valid, fixture.array("valid"))
    same = np.array([smiles or "" for smiles in scores.smiles]) == fixture.array("smiles")
    yield Comparison.of("smiles", same, np.ones(len(molecules)))
    summary = scores.summary()
    for name, value in parse(str(fixture.array("summary"))).items():
        yield Comparison.of(f"summary: {name}", np.array([summary[name]]), np.array([value]))


# ---------------------------------------------------------------------- the command


def run(paths: Sequence[Path], as_json: bool) -> int:
    """Compare and print; 1 if a quantity is off by more than TOLERANCE, 2 if a file cannot be compared."""
    rows, code = [], 0
    width = max(len(path.name) for path in paths)
    if not as_json:
        print(f"{'file':{width}}  {'quantity':32} max|a-b|/max|b|")  # noqa: T201
    for path in paths:
        try:
            kind, comparisons = compare(Fixture.read(path))
        except FixtureError as error:
            log.error("%s: %s", path, error)
            code = 2
            continue
        log.info("%s: %s", path.name, kind)
        for c in comparisons:
            if not as_json:
                print(f"{path.name:{width}}  {c.quantity:32} {c.error:.1e}{'' if c.passes else '  FAILS'}")  # noqa: T201
            rows.append(
                {
                    "file": str(path),
                    "kind": kind,
                    "quantity": c.quantity,
                    "error": c.error if math.isfinite(c.error) else None,
                    "passes": c.passes,
                }
            )
            if not c.passes:
                log.error(
                    "%s: %s is off by %.1e of its largest value, allowed is %.0e", path, c.quantity, c.error, TOLERANCE
                )
                code = max(code, 1)
    if as_json:
        print(json.dumps(rows, indent=1, allow_nan=False))  # noqa: T201
    elif rows:
        passed = sum(row["passes"] for row in rows)
        print(f"{passed} of {len(rows)} quantities within {TOLERANCE:.0e}")  # noqa: T201
    return code
