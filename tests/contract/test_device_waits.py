"""The orbit targets never make the host wait for the device: no value is read back and nothing is copied to it.

Seen without a GPU in the operations that are dispatched: on the CPU those that read values or make tensors out of
Python's or numpy's numbers, on the meta device also every host tensor that takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from support import core, generator, model_of, states
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.geometry import matrix_fisher
from bench.geometry.groups import O3, SO3, Group
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.symmetry.contract import Method, NoOptions, Setting
from bench.symmetry.orbit import OrbitTargetConfig, Proposal
from bench.symmetry.permutations import Permutations
from methods.orbit_rb import OrbitRB
from methods.orbit_rb_exact import OrbitRBExact

READS_BACK = {
    *("_linalg_svd", "_linalg_eigh", "linalg_eig", "_linalg_check_errors"),  # convergence, asked on the host
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"),
}
FROM_HOST = {"lift_fresh", "lift_fresh_copy"}  # torch.tensor, from_numpy, new_tensor, an index that is a list


class WaitError(AssertionError):
    """The host would have waited."""


class NoWaits(TorchDispatchMode):
    """Refuses operations by which, on a GPU, the host waits for the device. `device` is where all tensors must be."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        inputs = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        masks = name in ("index", "index_put_") and any(v.dtype == torch.bool for v in inputs[1:])
        lengths = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        elsewhere = any(v.device.type != self.device for v in inputs)
        moved = name == "_to_copy" and (kwargs or {}).get("device") not in (None, inputs[0].device)
        if name in READS_BACK | FROM_HOST or masks or lengths or elsewhere or moved:
            raise WaitError(f"{func} makes the host wait for the device, or copies to it")
        return func(*args, **(kwargs or {}))


def exact(group: Group) -> Method:
    return OrbitRBExact(NoOptions(), Setting(group, torch.nn.Identity(), {"x": 3, "h": 1}))


def sampled(group: Group, **options: Any) -> Method:
    return OrbitRB(OrbitTargetConfig(8, **options), Setting(group, torch.nn.Identity(), {"x": 3, "h": 1}))


HOOKS = {
    "exact SO3": exact(SO3()),
    "exact O3": exact(O3()),
    "uniform": sampled(O3()),
    "local SO3": sampled(SO3(), proposal=Proposal.LOCAL),
    "local O3": sampled(O3(), proposal=Proposal.LOCAL),
    "local classes": sampled(O3(), proposal=Proposal.LOCAL, permutations=Permutations.CLASSES),
    "shared all": sampled(O3(), shared_draws=True, permutations=Permutations.ALL),
}


def batch(device: str) -> Noised:
    """A noised batch; which atom belongs to which molecule is on the device, as after noising."""
    x0, eps, level, z_t = states(dtype=torch.float32)
    x0 = x0.to(device)
    x0.mean_over_atoms(x0.x)
    eps, z_t = (State({"x": z.x.to(device), "h": z.h.to(device)}, x0.layout) for z in (eps, z_t))
    return Noised(x0, eps, z_t, level.to(device), core().process.spaces)


@contextmanager
def drawn_on(device: str) -> Iterator[None]:
    """torch.randn and torch.rand draw on `device`, which the meta device has no generators for."""

    def on_device(make: Any) -> Any:
        return lambda *shape, generator=None, **kwargs: make(*shape, **{**kwargs, "device": device})

    with mock.patch.multiple(torch, **{name: on_device(getattr(torch, name)) for name in ("randn", "rand")}):
        yield


def target(method: Method, device: str) -> None:
    both = batch(device)
    with drawn_on(device):
        method.target(both, generator(0))  # the first call copies the quadrature's nodes
    with drawn_on(device), NoWaits(device):
        method.target(both, generator(0))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", HOOKS)
def test_orbit_targets_never_wait_for_the_device(name, device):
    """T22: the closed form and the sampled average read no value back and copy nothing to the device."""
    target(HOOKS[name], device)


NETWORKS = [("plain", "dit"), ("edm", "egnn"), ("plain", "gdm"), ("edm", "e3"), ("edm", "visnet"), ("symdiff", "dit")]


@pytest.mark.parametrize("pair", NETWORKS, ids=str)
def test_networks_never_wait_for_the_device(pair, monkeypatch):
    """Forward and backward. Control: a network that looks at what it computed."""
    model = model_of(*pair, dtype=torch.float32)
    both = batch("cpu")

    def step() -> None:
        out = model.predict(both.z_t, both.level, generator(0))
        (out.x.square().sum() + out.h.square().sum()).backward()

    step()  # the first call makes the index lists
    with NoWaits("cpu"):
        step()
    forward = model.denoiser.backbone.forward
    monkeypatch.setattr(model.denoiser.backbone, "forward", lambda z, t: forward(z, t) if z.x.isfinite().all() else z)
    with pytest.raises(WaitError), NoWaits("cpu"):
        step()


def by_lapack(F: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    U, s, Vt = torch.linalg.svd(F)
    return U, s, Vt.mT


def copying(s: torch.Tensor) -> torch.Tensor:
    return s * s.new_tensor([1.0, 1.0, -1.0])


def indexing(s: torch.Tensor) -> torch.Tensor:
    return torch.cat([s[:, [0, 1]], -s[:, 2:]], dim=1)


def reading(s: torch.Tensor) -> torch.Tensor:
    return s if bool((s[:, 2] == 0).all()) else -s


@pytest.mark.parametrize("name", ["exact O3", "local O3"])
@pytest.mark.parametrize(
    ("replaced", "by"),
    [("proper_svd", by_lapack), ("_mirrored", copying), ("_mirrored", indexing), ("_mirrored", reading)],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_wait_for_the_device_is_noticed(name, replaced, by):
    """T22: the check refuses LAPACK's SVD, constants made on the host, lists as indices, decisions on values."""
    with mock.patch.object(matrix_fisher, replaced, by), pytest.raises(WaitError):
        target(HOOKS[name], "cpu")


def test_host_tensors_are_noticed():
    """T22: the check refuses nodes that are copied at every call."""
    with mock.patch.object(matrix_fisher, "_nodes", matrix_fisher._nodes.__wrapped__), pytest.raises(WaitError):
        target(HOOKS["exact O3"], "meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", HOOKS)
def test_cuda_sees_no_wait(name):
    """T22: as above, by the debug mode of CUDA."""
    both = batch("cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    HOOKS[name].target(both, rng)
    torch.cuda.set_sync_debug_mode("error")
    try:
        HOOKS[name].target(both, rng)
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.linalg.svd(both.level.alpha[:1, None, None].expand(1, 3, 3))
    finally:
        torch.cuda.set_sync_debug_mode("default")
