"""A run's configuration: typed dataclasses, built from plain data; unknown keys and wrong types are refused.

The options of a plug-in (`PlugIn`) are an instance of its own dataclass. `bench.config.study` reads studies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.config.typed import ConfigError, build, convert, plain, require, shown
from bench.diffusion.process import DiffusionConfig
from bench.diffusion.sampler import Sampler
from bench.records.inputs import YamlError, is_folder_name, read_yaml
from bench.records.store import RunFolder
from bench.registry import (
    PluginError,
    PluginFile,
    Registry,
    backbones,
    datasets,
    measures,
    methods,
    nearest,
    tasks,
)
from bench.symmetry.contract import Method

MAX_LEVELS = 1_000_000
DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?")
# what sbatch takes in an option, and nothing that a shell reads as the end of one: no spaces, quotes or line breaks
PLAIN = re.compile(r"[\w.,:/@%+=*&|!^~()\[\]-]+", re.ASCII)


class Clip(enum.StrEnum):
    """Gradient clipping of the published runs: EDM's queue of norms, or SymDiff's constant global norm."""

    QUEUE = "queue"
    NORM = "norm"


class OptimiserName(enum.StrEnum):
    """AdamW as in all published runs, or Muon on hidden matrices (`bench.run.optimiser.Optimiser`)."""

    ADAMW = "adamw"
    MUON = "muon"


class Weights(enum.StrEnum):
    """Which averaged weights are sampled and measured: those of the last step, or of the lowest validation loss."""

    LAST = "last"
    BEST = "best"


class Kernels(enum.StrEnum):
    """Accelerated networks (`bench.kernels`) on a CPU with a C compiler, or plain torch."""

    AUTO = "auto"
    OFF = "off"


@dataclass
class TrainConfig:
    """Optimisation; defaults are those of the published SymDiff QM9 runs unless a comment says otherwise."""

    n_steps: int = 100_000  # optimiser steps
    batch_size: int = 256  # molecules of a step, over all micro-batches and ranks
    lr: float = 2e-4  # learning rate
    warmup_steps: int = 0  # linear warm-up from zero
    cooldown_fraction: float = 0.0  # fraction of the run, at its end, over which the rate falls linearly to zero
    # the learning rate is multiplied by `lr_decay` every `lr_decay_every` steps
    lr_decay: float = 1.0
    lr_decay_every: int = 1000  # optimiser steps between two of these falls
    # stop after this many seconds of training steps (equal time instead of equal steps); n_steps still applies
    max_seconds: float | None = None
    optimiser: OptimiserName = OptimiserName.ADAMW
    adam_beta2: float = 0.999  # decay of AdamW's second moments
    amsgrad: bool = True  # keeps the large second moments of the first steps: much smaller steps in short runs
    weight_decay: float = 1e-12  # decoupled from the gradient, as in AdamW
    ema_decay: float = 0.9999  # per step, of the moving average of the weights that is sampled and measured
    clip: Clip = Clip.NORM
    clip_norm: float = 2.0  # largest gradient norm with `clip: norm`
    log_every: int = 100  # validation and checkpoints happen only at these steps, and at the last one
    valid_every: int = 1000  # steps between validations; in effect, common multiples with log_every
    n_valid: int = 512  # molecules of the validation split in the validation loss
    keep_best: bool = False  # also keep the averaged weights of the lowest validation loss
    checkpoint_seconds: float = 120.0  # least time between checkpoints, each written at the next logging step
    # autocast of training steps; weights, optimiser, sampling and evaluation stay in float32
    bf16: bool = False
    compile: bool = False  # torch.compile of the networks; falls back to eager with one line
    n_threads: int = 1  # CPU threads of a run (of each rank)
    device: str = "cpu"  # cpu, cuda or cuda:N
    # C kernels on a CPU with a compiler, where they exist (auto), or plain torch; changes results by rounding alone
    kernels: Kernels = Kernels.AUTO
    accumulate: int = 1  # gradient accumulation: micro-batches per batch
    n_processes: int = 1  # ranks that share each batch, on one machine; for torchrun see `bench.run.spawn`

    def __post_init__(self) -> None:
        counts = (
            "n_steps",
            "batch_size",
            "log_every",
            "valid_every",
            "n_valid",
            "n_threads",
            "accumulate",
            "n_processes",
            "lr_decay_every",
        )
        require("train", **{key: (n := getattr(self, key), n >= 1, "at least 1") for key in counts})
        require(
            "train",
            lr=(self.lr, 0 < self.lr < math.inf, "a positive number"),
            warmup_steps=(self.warmup_steps, self.warmup_steps >= 0, "0 or more"),
            cooldown_fraction=(self.cooldown_fraction, 0 <= self.cooldown_fraction <= 1, "a number from 0 to 1"),
            lr_decay=(self.lr_decay, 0 < self.lr_decay <= 1, "a number above 0 and at most 1"),
            adam_beta2=(self.adam_beta2, 0 <= self.adam_beta2 < 1, "a number from 0 to below 1"),
            ema_decay=(self.ema_decay, 0 <= self.ema_decay < 1, "a number from 0 to below 1"),
            clip_norm=(self.clip_norm, self.clip_norm > 0, "a positive number"),
            weight_decay=(self.weight_decay, self.weight_decay >= 0, "0 or more"),
            valid_every=(
                self.valid_every,
                not self.keep_best or self.valid_every % self.log_every == 0,
                f"a multiple of train.log_every = {self.log_every}, with train.keep_best",
            ),
            max_seconds=(
                self.max_seconds,
                self.max_seconds is None or self.max_seconds > 0,
                "a positive number or null",
            ),
            device=(self.device, DEVICE.fullmatch(self.device) is not None, "cpu, cuda or cuda:N"),
        )


@dataclass
class SampleConfig:
    """Sampling for the evaluation."""

    n_molecules: int = 10_000  # samples to draw and evaluate
    n_steps: int = 1000  # sampling steps, at most `diffusion.n_levels`
    sampler: Sampler = Sampler.ANCESTRAL
    weights: Weights = Weights.LAST  # `best` needs train.keep_best
    batch_size: int = 250  # molecules drawn together
    seed: int = 0  # of the sampler's random numbers

    def __post_init__(self) -> None:
        require(
            "sample",
            **{k: (n := getattr(self, k), n >= 1, "at least 1") for k in ("n_molecules", "n_steps", "batch_size")},
        )


@dataclass
class LaunchConfig:
    """How runs are executed through submitit; never part of a result."""

    cluster: str = "local"  # local, debug (in this interpreter) or slurm
    n_parallel: int = 2  # runs at a time on a local machine
    timeout_min: int = 1440  # of a job; a run that reaches it is requeued and resumes from its checkpoint
    cpus_per_task: int = 1  # at least; a run requests a core for each of its threads and ranks
    gpus_per_node: int = 0  # at least, for a run with `train.device: cuda`, which requests one for each rank
    mem_gb: float | None = None  # per run; default: the cluster's
    slurm_partition: str | None = None  # default: the cluster's
    slurm_array_parallelism: int = 16  # runs of the study in Slurm at a time, pending or running
    slurm_signal_delay_s: int = 90  # seconds before the time limit at which a job is signalled to requeue itself
    # further options of sbatch, {account: chemistry, exclusive: true}: true is an option without a value, and false or
    # null leaves one out
    slurm_options: dict[str, str | int | bool | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = ("n_parallel", "timeout_min", "cpus_per_task", "slurm_array_parallelism")
        require("launch", **{key: (n := getattr(self, key), n >= 1, "at least 1") for key in counts})
        delay, limit = self.slurm_signal_delay_s, 60 * self.timeout_min
        if self.cluster == "slurm":
            expected = f"less than the {limit} s of launch.timeout_min"
            require("launch", slurm_signal_delay_s=(delay, 0 < delay < limit, expected))
        for key in self.slurm_options:
            named = re.fullmatch("[a-z][a-z0-9_-]*", key) is not None
            require("launch", slurm_options=(key, named, "names of sbatch's options, such as account"))
        given = {f"slurm_options.{key}": value for key, value in self.slurm_options.items()}
        for key, value in {"slurm_partition": self.slurm_partition, **given}.items():
            plain = value is None or PLAIN.fullmatch(str(value)) is not None
            require("launch", **{key: (value, plain, "letters, digits and .,:/@%+=*&|!^~()[]_- alone")})

    @property
    def sbatch_options(self) -> dict[str, str | int | bool]:
        """Options of sbatch that are on; True: without a value."""
        # requeue preempted jobs and those of lost nodes, whatever the cluster's default
        given = {"requeue": True, **self.slurm_options}
        return {key: value for key, value in given.items() if value is not None and value is not False}


@dataclass(frozen=True)
class PlugIn:
    """A method, backbone, data set, task or measure as a run is configured with it.

    Attributes:
        name: as registered.
        size: named size from which unset options were taken, or None.
        options: instance of the plug-in's own dataclass.
    """

    name: str
    size: str | None
    options: Any

    @classmethod
    def from_plain(cls, given: Any, where: str) -> PlugIn:
        """From a name or a mapping; a measure from its options alone, since its key is its name."""
        if not where.startswith("measures."):
            return resolve(KINDS[where], given, where)
        if not isinstance(given, Mapping):
            raise ConfigError(f"'{where}' is {shown(given)}, expected its options or null")
        name = where.removeprefix("measures.")
        if given.get("name", name) != name:
            raise ConfigError(f"'{where}.name' is {shown(given['name'])}, expected {name!r} or nothing")
        return resolve(measures, {**given, "name": name}, where)

    def to_plain(self) -> dict[str, Any]:
        """Name, size where there is one, and all options beside them."""
        return {"name": self.name, **({} if self.size is None else {"size": self.size}), **plain(self.options)}


KINDS = {"method": methods, "backbone": backbones, "data": datasets, "task": tasks}  # key of a run -> its registry


def resolve(registry: Registry, given: Any, where: str) -> PlugIn:
    """Resolve a plug-in from its name, or from a mapping with its name, size and options.

    Args:
        where: key for messages, such as 'method'.
    Raises:
        ConfigError: no such plug-in, size or option, or an option of another type.
    """
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        raise ConfigError(f"'{where}' is {shown(given)}, expected a name or a mapping with 'name'")
    if "name" not in given:
        raise ConfigError(f"'{where}.name' is missing; choose from {', '.join(registry)}")
    name, size = given["name"], given.get("size")
    options = {key: value for key, value in given.items() if key not in ("name", "size")}
    try:
        entry = registry[name]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if size is not None:
        sizes = getattr(entry.build, "sizes", {})
        if not isinstance(size, str) or size not in sizes:
            raise ConfigError(
                f"'{where}.size' is {shown(size)}; "
                f"{nearest(str(size), sizes) if sizes else f'{name} has no named sizes'}"
            )
        options = {**sizes[size], **options}
    return PlugIn(name, size, build(entry.config, options, where))


@dataclass
class RunConfig:
    """One run. `build` makes it from plain data; a plug-in there is a name, or a mapping with its name and options."""

    study: str  # name of the study, and of its folder
    method: PlugIn  # the equivariance strategy
    backbone: PlugIn  # the network
    data: PlugIn  # the data set
    plugins: list[PluginFile] = field(default_factory=list)  # files whose plug-ins it may use besides those installed
    seed: int = 0  # of the initial weights and of all draws of training
    task: PlugIn = field(default_factory=lambda: resolve(tasks, "denovo", "task"))  # the problem to solve
    group: str | None = None  # the symmetry group of the data; by default the first of the task's
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    # measures of the trained model: name -> options. The likelihood is measured in any case, unless `likelihood: null`
    measures: dict[str, PlugIn | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.measures = {"likelihood": resolve(measures, "likelihood", "measures"), **self.measures}
        groups = list(tasks[self.task.name].build.groups)
        self.group = groups[0] if self.group is None else self.group
        if self.group not in groups:
            raise ConfigError(
                f"'group' is {shown(self.group)}, expected {' or '.join(groups)} for task {self.task.name!r}"
            )
        if not is_folder_name(self.study):
            raise ConfigError(f"'study' is {shown(self.study)}, expected a name that a folder can have")
        most = self.diffusion.n_levels
        require("diffusion", n_levels=(most, 1 <= most <= MAX_LEVELS, f"a number from 1 to {MAX_LEVELS}"))
        require(
            "sample", n_steps=(self.sample.n_steps, self.sample.n_steps <= most, f"at most diffusion.n_levels = {most}")
        )
        kept = self.train.keep_best or self.sample.weights is Weights.LAST
        require("sample", weights=(self.sample.weights.value, kept, "last, unless train.keep_best is true"))
        scale = getattr(self.backbone.options, "time_scale", 1.0)
        as_published = scale == 1 or not self.diffusion.edm_compat
        require("backbone", time_scale=(scale, as_published, "1, as published, with diffusion.edm_compat"))

    @classmethod
    def check_plain(cls, values: Mapping[str, Any]) -> None:
        """Raise ConfigError for a plug-in file that is not loaded: an untrusted record must not make us execute one."""
        for file in convert(list[PluginFile], values.get("plugins") or [], "plugins"):
            if not file.is_loaded:
                raise ConfigError(f"needs plug-in {file.path}; if you trust that file, give --plugin {file.path}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary of every setting, as written to config.yaml."""
        return plain(self)

    def identity(self, fingerprint: str) -> str:
        """Hash of everything that determines the result: training, sampling and measures."""
        return _hash(self._decisive(fingerprint))

    def training_identity(self, fingerprint: str) -> str:
        """Hash of everything that determines the trained weights, with data set and plug-in files by their content.

        Not part of it: the study, kernels, where the data lies, and, unless `train.keep_best` depends on them, the
        intervals of logging and validation.
        """
        return _hash({k: v for k, v in self._decisive(fingerprint).items() if k not in ("sample", "measures")})

    def _decisive(self, fingerprint: str) -> dict[str, Any]:
        settings = self.to_dict()
        del settings["study"]
        chosen_by = () if self.train.keep_best else ("log_every", "valid_every", "n_valid")
        for key in (*chosen_by, "checkpoint_seconds", "kernels"):
            del settings["train"][key]
        hashes = sorted(file["sha256"] for file in settings.pop("plugins"))
        return settings | {"data": fingerprint} | ({"plugins": hashes} if hashes else {})

    def run_name(self, fingerprint: str) -> str:
        """Folder name: method-backbone-seed-hash."""
        return f"{self.method.name}-{self.backbone.name}-s{self.seed}-{self.identity(fingerprint)}"


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


# ---------------------------------------------------------------------- runs


@contextlib.contextmanager
def naming(where: str | Path) -> Iterator[None]:
    """Prefix ConfigErrors with the file that they concern."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def trusted_run(settings: Any) -> RunConfig:
    """The configuration that a launcher passes to its worker; executes the plug-in files that it names."""
    load_plugins(settings)
    return build(RunConfig, settings)


def load_plugins(settings: Any) -> None:
    """Execute the plug-in files that a run's configuration names, each as recorded.

    Raises:
        ConfigError: a file is missing, has changed or fails to load.
    """
    try:
        for file in settings.get("plugins") or ():
            build(PluginFile, file, "plugins").load()
    except PluginError as error:
        raise ConfigError(str(error)) from error


def read_run(folder: Path, trusted: bool = False) -> RunConfig:
    """The configuration of a run's folder.

    Args:
        trusted: execute the plug-in files that it names; otherwise they have to be loaded already.
    """
    path = RunFolder(folder).config
    try:
        settings = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{folder} is no run folder: it has no config.yaml") from None
    except (YamlError, OSError) as error:
        raise ConfigError(str(error)) from error
    with naming(path):
        return trusted_run(settings) if trusted else build(RunConfig, settings)


def weights_run(cfg: RunConfig) -> RunConfig | None:
    """The run whose weights a method that trains nothing uses; None for other methods.

    A method may leave the choice to an option `weights_of`, which holds the other method's name and options.
    """
    name = methods[cfg.method.name].build.weights_of
    if name is None:
        return None
    chosen = getattr(cfg.method.options, "weights_of", name)
    return dataclasses.replace(cfg, method=resolve(methods, chosen, "method.weights_of"))


def takes_states(backbone: str, cfg: RunConfig) -> bool:
    """Whether a backbone accepts the task's states: some need all states to have one size."""
    return tasks[cfg.task.name].build.one_size or not getattr(backbones[backbone].build, "one_size", False)


def reads_context(backbone: str, cfg: RunConfig) -> bool:
    """Whether a backbone reads what the task gives it beside the states."""
    given = tasks[cfg.task.name].build.context
    return given is None or given in getattr(backbones[backbone].build, "contexts", ())


def reason_to_skip(cfg: RunConfig) -> str | None:
    """Why a combination of method and backbone makes no sense, or None."""
    method, backbone = methods[cfg.method.name].build, backbones[cfg.backbone.name].build
    if not takes_states(cfg.backbone.name, cfg):
        return f"backbone {cfg.backbone.name!r} takes states of one size, those of task {cfg.task.name!r} differ"
    if not reads_context(cfg.backbone.name, cfg):
        given = tasks[cfg.task.name].build.context
        fitting = [name for name in backbones if reads_context(name, cfg)]
        return (
            f"backbone {cfg.backbone.name!r} cannot see the {given} that task {cfg.task.name!r} gives; "
            f"choose {' or '.join(fitting)}"
        )
    if method.needs_equivariant_backbone and not backbone.equivariant:
        fitting = [
            name
            for name in backbones
            if backbones[name].build.equivariant and takes_states(name, cfg) and reads_context(name, cfg)
        ]
        other = "a method without that need" if method.otherwise is None else f"method {method.otherwise!r}"
        return (
            f"method {cfg.method.name!r} needs an equivariant backbone, got {cfg.backbone.name!r}; "
            f"choose {' or '.join(fitting)}, or {other}"
        )
    parent = weights_run(cfg)
    if parent is None:
        return None
    if methods[parent.method.name].build.predict is not Method.predict:
        return (
            f"method {cfg.method.name!r} uses a denoiser that was trained unwrapped, and that of "
            f"{parent.method.name!r} was not: that method defines predict; choose one that does not"
        )
    return reason_to_skip(parent)
