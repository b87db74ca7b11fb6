"""Numbers of the published code, reproduced: EDM `fce07d7` and SymDiff `8aad5a2`, float32 on CPU, random weights.

The files and what they hold: `tests/parity/README.md`. Tolerance: max |a - b| / max |b| <= 1e-5; a stored value changed
by 0.3 % is refused by the same comparison.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ELEMENTS, generator, relative_error
from torch import Tensor

from bench.backbones.dit import DiT, DiTConfig
from bench.backbones.egnn import EGNN, EGNNConfig
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.process import Diffusion, DiffusionConfig, weighted_error
from bench.diffusion.sampler import decoder_step, reverse_coefficients, reverse_step
from bench.diffusion.schedule import NoiseLevel, polynomial_2
from bench.groups import gram_schmidt
from bench.method import symmetrised
from bench.molecules import Layout, Molecules
from bench.published import dit_state, egnn_state, transformer_state
from bench.structures import Structures
from methods.symdiff import PUBLISHED_NAMES, RotationKernel, SymDiffConfig
from methods.symdiff_as_released import SymDiffAsReleased

FOLDER = Path(__file__).parent
TOLERANCE = 1e-5
N_FEATURES = 6


class Stored:
    """One file of published numbers."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.config: dict[str, Any] = json.loads(str(self.arrays["config"])) if "config" in self.arrays else {}

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    @property
    def weights(self) -> dict[str, Tensor]:
        return {key[6:]: torch.from_numpy(value) for key, value in self.arrays.items() if key.startswith("param:")}

    @property
    def layout(self) -> Layout:
        return Layout(self.arrays["num_atoms"].tolist())

    def state(self, key: str) -> Molecules:
        return Molecules(self[key][:, :3], self[key][:, 3:], self.layout)

    @property
    def level(self) -> NoiseLevel:
        """The stored time is continuous, so the table has no level for it; networks see t alone."""
        t = self["t"][:, 0]
        return NoiseLevel(t, *(torch.full_like(t, torch.nan) for _ in range(3)))


def close(ours: Tensor | Molecules, published: Tensor) -> bool:
    """The comparison of every test here."""
    if isinstance(ours, Molecules):
        ours = torch.cat([ours.x, ours.h], dim=1)
    return relative_error(ours.double(), published.double()) <= TOLERANCE


def agree(ours: Tensor | Molecules, published: Tensor) -> bool:
    """Close to what is stored, and not to what is stored with its largest value changed by 0.3 %."""
    changed = published.clone()
    changed.view(-1)[published.abs().argmax()] *= 1.003
    assert not close(ours, changed), "the comparison is too weak to notice 0.3 %"
    return close(ours, published)


def egnn(stored: Stored) -> Denoiser:
    network = EGNN(EGNNConfig(width=stored.config["hidden_nf"], depth=stored.config["n_layers"]), N_FEATURES)
    network.load_state_dict(egnn_state(stored.weights))
    return Denoiser(network)


def dit(stored: Stored, trunk: str) -> DiT:
    c = stored.config
    network = DiT(DiTConfig(c["hidden_size"], c["depth"], c["num_heads"], c["K"], int(c["mlp_ratio"])), N_FEATURES)
    network.load_state_dict(dit_state(stored.weights, trunk))
    return network


# ---------------------------------------------------------------------- schedule and networks


@pytest.mark.parametrize(("n_levels", "precision"), [(1000, 1e-5), (500, 1e-5), (1000, 1e-4)])
def test_schedule_is_the_published_one(n_levels, precision):
    """T1: gamma_0..gamma_T of the published polynomial_2 schedule."""
    stored = Stored("noise_schedule")[f"gamma_T{n_levels}_s{precision:g}"]
    assert agree(torch.from_numpy(polynomial_2(n_levels, precision)), stored)


@torch.no_grad()
def test_egnn_gives_the_published_output():
    stored = Stored("egnn")
    assert agree(egnn(stored)(stored.state("z_t"), stored.level), stored["eps"])


@torch.no_grad()
def test_dit_gives_the_published_output():
    stored = Stored("dit")
    assert agree(Denoiser(dit(stored, "model"))(stored.state("z_t"), stored.level), stored["eps"])


@torch.no_grad()
def test_one_changed_weight_breaks_parity():
    """The fixtures see every part of a network: each parameter changed alone moves the output beyond tolerance."""
    for name, network in (("egnn", lambda s: egnn(s)), ("dit", lambda s: Denoiser(dit(s, "model")))):
        stored = Stored(name)
        denoiser = network(stored)
        for key, p in denoiser.named_parameters():
            if key == "backbone.readout.bias":  # its last entry is that of the dropped time channel
                continue
            kept = p.clone()
            p.view(-1)[0] += 1.0
            out = denoiser(stored.state("z_t"), stored.level)
            # softmax and layer norms are blind to some single biases (those of keys, for one)
            if not close(out, stored["eps"]):
                p.copy_(kept)
                continue
            p.add_(torch.randn(p.shape, generator=generator(1)))
            assert not close(denoiser(stored.state("z_t"), stored.level), stored["eps"]), key
            p.copy_(kept)


# ---------------------------------------------------------------------- SymDiff


def rotation_kernel(stored: Stored) -> RotationKernel:
    c = stored.config
    k = dit(stored, "k")
    cfg = SymDiffConfig(
        c["enc_hidden_size"], c["enc_depth"], c["enc_num_heads"], int(c["enc_mlp_ratio"]), c["dec_hidden_features"]
    )
    kernel = RotationKernel(cfg, k.pair_embedding)
    kernel.load_state_dict(transformer_state(stored.weights, PUBLISHED_NAMES, "gamma_enc"))
    return kernel


def released_rotation(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """f(R0^-1 x) R0^-1 as in the released code, with rows orthonormalised (fix_qr), which ours never does."""
    monkeypatch.setattr("methods.symdiff.gram_schmidt", lambda M: gram_schmidt(M.mT).mT)
    base, z = stored["base_rotation"], stored.state("z_t")
    f = rotation_kernel(stored)(z.rotate(base.mT), stored["encoder_noise"], stored["t"][:, 0])
    return SymDiffAsReleased.compose(base, f)


@torch.no_grad()
def test_rotation_kernel_gives_the_published_matrix(monkeypatch):
    stored = Stored("symdiff")
    assert agree(released_rotation(stored, monkeypatch), stored["gamma"])


@torch.no_grad()
def test_symdiff_as_released_gives_the_published_output(monkeypatch):
    """The released composition from our parts; our own SymDiff differs from it on purpose, and visibly."""
    stored = Stored("symdiff")
    R = released_rotation(stored, monkeypatch)
    denoiser = Denoiser(dit(stored, "k"))
    assert agree(symmetrised(denoiser, stored.state("z_t"), stored.level, R), stored["eps"])

    base = stored["base_rotation"]
    corrected = symmetrised(denoiser, stored.state("z_t"), stored.level, base @ (R @ base))
    assert not close(corrected, stored["eps"])


def test_published_layers_that_never_train_are_left_out():
    weights = Stored("symdiff").weights
    state = transformer_state(weights, PUBLISHED_NAMES, "gamma_enc")
    assert not any("final_layer" in name for name in state)
    with pytest.raises(KeyError, match="no parameter"):
        transformer_state({"gamma_enc.blocks.0.unknown.weight": torch.zeros(1)}, PUBLISHED_NAMES, "gamma_enc")
    with pytest.raises(KeyError, match="no parameter"):
        egnn_state({"egnn.e_block_0.gcl_0.unknown.weight": torch.zeros(1)})


# ---------------------------------------------------------------------- likelihood, training loss, sampling


@pytest.fixture(scope="module")
def bound() -> Stored:
    return Stored("variational_bound")


def core_and_data(stored: Stored, **options: Any) -> tuple[Diffusion, Molecules]:
    diffusion = Diffusion(DiffusionConfig(**options), ELEMENTS, mean_atoms=18.0)
    ptr = np.concatenate([[0], np.cumsum(stored.arrays["num_atoms"])])
    return diffusion, diffusion.encode(Structures(stored.arrays["z"], stored.arrays["positions"], ptr))


@torch.no_grad()
def test_every_term_of_the_bound_is_the_published_one(bound):
    """T3: KL prior, constants, volume and the whole bound at stored times and noise."""
    diffusion, x0 = core_and_data(bound)
    terms = diffusion.bound_terms(x0, egnn(bound), bound["t_int"][:, 0], bound.state("eps"), bound.state("eps0"))
    assert agree(terms["constants"], bound["neg_log_constants"])
    assert agree(torch.stack(list(terms.values())).sum(0), bound["nll_without_size_prior"])
    assert (bound["delta_log_px"] == 0).all()  # positions are not scaled, so the change of volume is nothing
    # stored in float32 as a difference of numbers near 1: 1e-7 of those is 3e-3 of it
    assert relative_error(terms["prior"], bound["kl_prior"].double()) < 5e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("key", "times"), [("l2_train_loss_official_padded", "t_int"), ("l2_train_loss_with_t0", "t_int_with_zero")]
)
def test_training_loss_is_the_published_one_with_its_padded_denominator(bound, key, times):
    """The published loss adds the prior's KL, a constant without gradient; ours leaves it out."""
    diffusion, x0 = core_and_data(bound, edm_compat=True)
    assert int(x0.layout.sizes.max()) == bound.config["padded_atoms"]
    level, eps = diffusion.schedule.at(bound[times][:, 0]), bound.state("eps")
    z_t = diffusion.noising(x0, eps, level)
    eps_hat = egnn(bound)(z_t, level)
    loss = diffusion.training_loss(weighted_error(eps_hat, eps, level), eps_hat, eps, x0, z_t, level)
    assert agree(loss + bound["kl_prior"], bound[key])


@torch.no_grad()
def test_reverse_step_is_the_published_one(bound):
    diffusion, _ = core_and_data(bound)
    s, t = (torch.tensor([round(1000 * bound.config[key])]) for key in ("ancestral_s", "ancestral_t"))
    z_t = bound.state("z_t")
    (step,) = reverse_coefficients(diffusion.schedule, s, t)
    z_s = reverse_step(z_t, egnn(bound)(z_t, diffusion.schedule.at(t.expand(len(z_t)))), bound.state("eps"), step)
    assert agree(z_s, bound["ancestral_zs"])


@torch.no_grad()
def test_last_step_is_the_published_one(bound):
    diffusion, _ = core_and_data(bound)
    z_0 = bound.state("z_t")
    level = diffusion.schedule.at(torch.zeros(len(z_0), dtype=torch.int64))
    final = decoder_step(z_0, egnn(bound)(z_0, level), bound.state("eps0"), level)
    assert agree(final.x, bound["final_x"])
    onehot = bound["final_onehot"].argmax(1)
    assert diffusion.decode(final).numbers.tolist() == [ELEMENTS[i] for i in onehot.tolist()]
    charge = torch.round(final.h[:, -1] * diffusion.cfg.scale_charge)
    assert torch.equal(charge, bound["final_charge"][:, 0].to(charge.dtype))
