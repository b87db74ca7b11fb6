"""SymDiff in law and in expectation (spec 3.3, 3.4, 6.1): no coupling of draws, only statistics of many."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.backbones.dit import DiT, GaussianPairEmbedding
from bench.diffusion.process import squared_error
from bench.geometry.groups import O3, SO3, RotationGroup, Translated, gram_schmidt
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.rotation_laws import moments, turn
from bench.geometry.state import State
from bench.nn.pairs import differences, pairs_of
from bench.run.contract import (
    ELEMENTS,
    Z_MAX,
    core,
    generator,
    law_z,
    model_of,
    orthogonal,
    randomise,
    relative_error,
    states,
    turned,
    two_sample_z,
    z_score,
)
from bench.run.model import Model
from bench.symmetry.symmetrise import symmetrised
from methods.symdiff import SymDiff


@torch.no_grad()
def strong(model: Model) -> Model:
    """A rotation kernel that depends on what it sees: larger weights, and little of its own noise."""
    if isinstance(model.method, SymDiff):
        kernel = model.method.kernel
        for i, part in enumerate((kernel.trunk, kernel.embedding, kernel.hidden, kernel.matrix)):
            randomise(part, i + 1, scale=1.0)
        kernel.embedding.weight[:, 3 : 3 + kernel.noise_dims] *= 0.2
    return model


def as_released() -> Model:
    return strong(model_of("symdiff_as_released", "dit", dtype=torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("method", ["symdiff", "symdiff_haar"])
def test_predictions_are_equivariant_in_law(method, determinant):
    """T16: mean and second moment of 1e5 draws at Q z and of Q applied to those at z, |z| < 5."""
    assert law_z(strong(model_of(method, "dit", dtype=torch.float32)), 100_000, determinant) < Z_MAX


def test_predictions_are_equivariant_in_law_over_few_draws():
    """T16: the same over 2e4 draws, for the fast tier."""
    assert law_z(strong(model_of("symdiff", "dit", dtype=torch.float32)), 20_000, -1) < Z_MAX


@pytest.mark.parametrize("determinant", [1, -1])
def test_law_refuses_the_released_composition(determinant, record_property):
    """T16: f(R0^-1 x) R0^-1 in place of R0 f(R0^-1 x) fails over the same 2e4 draws; pytest ends with the scores."""
    correct = law_z(strong(model_of("symdiff", "dit", dtype=torch.float32)), 20_000, determinant)
    released = law_z(as_released(), 20_000, determinant)
    scores = f"R0 f (symdiff) {correct:.1f}, f R0^-1 (symdiff_as_released) {released:.1f}"
    record_property("scores", f"in law, largest |z| of 114 moments, det Q = {determinant:+d}: {scores}")
    assert correct < Z_MAX < released


@pytest.mark.parametrize("method", ["symdiff", "symdiff_haar"])
def test_law_over_rotations_tells_mirror_images_apart(method):
    """T40: over SO(3) predictions are equivariant in law under rotations and not under reflections; over O(3) they are
    under both (T16)."""
    model = strong(model_of(method, "dit", SO3(), dtype=torch.float32))
    assert law_z(model, 10_000, 1) < Z_MAX
    assert law_z(model, 10_000, -1) > Z_MAX


@pytest.mark.parametrize("method", ["symdiff", "symdiff_as_released"])
def test_rotations_lie_in_the_group(method):
    """Orthogonal, and over SO(3) without an improper one, also of a kernel whose raw output has either sign."""
    x = states([6], seed=6)[3]
    z_t = State({"x": x.x.repeat(200, 1), "h": x.h.repeat(200, 1)}, Layout([6] * 200))
    level = core().process.path.at(torch.full((200,), 300), torch.float64)

    def determinants(group: RotationGroup, released: bool = False) -> Tensor:
        kernel = strong(model_of(method, "dit", group)).method
        assert isinstance(kernel, SymDiff)
        if released:
            kernel.kernel.proper = False  # the sign of the raw output, whatever the group
        R = kernel.frame(z_t, level, generator(1))
        torch.testing.assert_close(R.mT @ R, torch.eye(3, dtype=R.dtype).expand_as(R), rtol=0, atol=1e-9)
        return torch.linalg.det(R)

    assert (determinants(SO3()) > 0.99).all()
    for mixed in (determinants(O3()), determinants(SO3(), released=True)):  # control: without it both signs occur
        assert mixed.min() < 0 < mixed.max()


def test_released_composition_is_in_law_where_the_kernel_ignores_its_input():
    """T16: f R0^-1 with f independent of y is Haar, so the failure above is that of f(R0^-1 x) R0^-1 and no other."""
    model = as_released()
    with torch.no_grad():
        model.method.kernel.matrix.weight.zero_()  # f is then one constant matrix
    assert law_z(model, 20_000, -1) < Z_MAX


def test_law_refuses_a_network_without_symmetrisation():
    """T16: plain DiT fails."""
    assert law_z(model_of("plain", "dit", dtype=torch.float32), 10_000, 1) > Z_MAX


# ---------------------------------------------------------------------- options of the kernel


@pytest.mark.parametrize("options", [{"noise_dims": 0}, {"atom_types": True}, {"noise_dims": 1, "atom_types": True}])
def test_every_kernel_is_equivariant_under_translated_draws(options):
    """T15: without noise of its own and with atom types as input; the released composition of the same is refused."""
    _, _, level, z_t = states()
    Q = orthogonal(-1)

    def error(method: str) -> float:
        models = [model_of(method, "dit", group, **options) for group in (O3(), Translated(O3(), Q))]
        here, there = (m.predict(z, level, generator(1)) for m, z in zip(models, (z_t, turned(z_t, Q)), strict=True))
        return relative_error(there, turned(here, Q))

    assert error("symdiff") < 1e-9
    assert error("symdiff_as_released") > 0.1


def test_kernel_sees_atom_types_only_where_asked():
    """Other features give another rotation with `atom_types`, and the same one without."""
    _, _, level, z_t = states()
    other = z_t.replace(h=z_t.h.roll(1, dims=0))
    for atom_types, changes in ((True, True), (False, False)):
        method = model_of("symdiff", "dit", atom_types=atom_types).method
        pair = [method.frame(z, level, generator(1)) for z in (z_t, other)]
        assert (relative_error(*pair) > 1e-3) is changes


def test_kernel_without_noise_is_a_function_of_base_and_state():
    """With `noise_dims: 0` nothing is drawn but the base rotation; with noise two calls on one base differ."""

    class OneBase(O3):
        """The same base rotations at every call."""

        def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
            return super().haar(n, generator(7), dtype)

    _, _, level, z_t = states()
    for noise_dims, differ in ((0, False), (3, True)):
        method = model_of("symdiff", "dit", OneBase(), noise_dims=noise_dims).method
        pair = [method.frame(z_t, level, generator(seed)) for seed in (1, 2)]
        assert (relative_error(*pair) > 1e-3) is differ


# ---------------------------------------------------------------------- canonicalisation


class Canonical(nn.Module):
    """A kernel with f(Q y) = Q f(y): Gram-Schmidt on three combinations of the y_n with invariant weights."""

    noise_dims = 0

    def forward(self, y: State, eta: Tensor, t: Tensor) -> Tensor:
        r = y.x.square().sum(1)
        weights = torch.stack([r, r.square(), y.h @ torch.arange(1.0, y.h.shape[1] + 1, dtype=r.dtype)], dim=1)
        return gram_schmidt(y.sum_over_atoms(y.x[:, :, None] * weights[:, None, :]))


def spread_over_bases(method: SymDiff) -> float:
    """Largest change of R over draws of R0 at one state."""
    _, _, level, z_t = states((5, 9, 12))
    draws = torch.stack([method.frame(z_t, level, generator(seed)) for seed in range(5)])
    return (draws - draws[0]).abs().max().item()


def test_equivariant_kernel_canonicalises():
    """T18: f(Q y) = Q f(y) makes R independent of R0 and the prediction deterministic and equivariant; the released
    composition of the same f, and an ordinary f, keep R random."""
    models = {name: model_of(name, "dit") for name in ("symdiff", "symdiff_as_released")}
    assert spread_over_bases(models["symdiff"].method) > 0.1
    for model in models.values():
        model.method.kernel = Canonical()
    assert spread_over_bases(models["symdiff"].method) < 1e-5
    assert spread_over_bases(models["symdiff_as_released"].method) > 0.1

    _, _, level, z_t = states((5, 9, 12))
    Q = orthogonal(-1)
    for name, exact in (("symdiff", True), ("symdiff_as_released", False)):
        here = models[name].predict(z_t, level, generator(1))
        there = models[name].predict(turned(z_t, Q), level, generator(2))
        error = relative_error(there, turned(here, Q))
        assert error < 1e-5 if exact else error > 0.1


def frames_of(method: SymDiff, Q: Tensor | None = None, n: int = 200) -> Tensor:
    """8 draws of R for each of n copies of one molecule [8, n, 3, 3], turned by Q; the same draws of R0 and eta."""
    one = states([5], seed=6)[3]
    z = State({"x": one.x.repeat(n, 1), "h": one.h.repeat(n, 1)}, Layout([5] * n))
    level, rng = core().process.path.at(torch.full((n,), 300), torch.float64), generator(3)
    return torch.stack([method.frame(z if Q is None else turned(z, Q), level, rng) for _ in range(8)]).detach()


def test_frames_tell_a_learned_one_from_haar():
    """T18: canonicalisation has the moments of a single rotation; a kernel that is blind to the frame y has none,
    |z| < 5, and draws the same R at a molecule and at a turned one, which one that sees y does not."""
    Q = orthogonal(-1)
    strong_kernel = strong(model_of("symdiff", "dit")).method
    assert turn(frames_of(strong_kernel), frames_of(strong_kernel, Q)).mean() > 1e-3

    method = model_of("symdiff", "dit").method
    with torch.no_grad():
        method.kernel.embedding.weight[:, :3] = 0  # distances and noise are left
    assert turn(frames_of(method), frames_of(method, Q)).max() < 1e-12
    assert max(z_score(each) for each in moments(frames_of(method))) < Z_MAX

    method.kernel = Canonical()
    for each in moments(frames_of(method)):
        torch.testing.assert_close(each, torch.ones(200, dtype=torch.float64))


# ---------------------------------------------------------------------- Prop. A


def losses(
    model: Model, x0: State, eps: State, level: Level, R: Tensor | None, rotate_noise: bool = True
) -> tuple[Tensor, Tensor]:
    """(symmetrised loss on (x0, eps) with rotation R, plain loss on (R^-1 x0, R^-1 eps)), each [B]."""
    assert R is not None
    process, denoiser = model.process, model.denoiser
    symmetric = squared_error(symmetrised(O3(), R, denoiser, process.noising(x0, eps, level), level), eps)
    back, noise = x0.rotate(R.mT), eps.rotate(R.mT) if rotate_noise else eps
    return symmetric, squared_error(denoiser(process.noising(back, noise, level), level), noise)


def test_symmetrised_loss_is_the_augmentation_loss(precision):
    """T17: with shared R the loss of SymDiff-H on (x, eps) is that of DiT on (R^-1 x, R^-1 eps), example by example,
    and so are its gradients; with noise that is not turned along it is not."""
    x0, eps, level, _ = states(dtype=precision)
    model = model_of("haar", "dit", dtype=precision)
    R = O3().haar(len(x0), generator(5), precision)
    symmetric, plain = losses(model, x0, eps, level, R)
    limit = 1e-5 if precision is torch.float32 else 1e-10
    assert relative_error(symmetric, plain) < limit
    weights = list(model.denoiser.parameters())
    for a, b in zip(*(torch.autograd.grad(value.sum(), weights) for value in (symmetric, plain)), strict=True):
        assert (a - b).abs().max() <= 10 * limit * max(1.0, b.abs().max().item())
    assert relative_error(*losses(model, x0, eps, level, R, rotate_noise=False)) > 1e-2


def projected_gradients(model: Model, how: str, n_batches: int, seed: int) -> Tensor:
    """Batch gradients of one training loss, projected on 16 fixed random directions [n_batches, 16]."""
    task, denoiser = core(), model.denoiser
    weights = list(denoiser.parameters())
    directions = [torch.randn(16, p.numel(), generator=generator(i)) / p.numel() ** 0.5 for i, p in enumerate(weights)]
    x = torch.tensor([[1.5, 0, 0], [-1, 0.5, 0], [-0.5, -0.5, 0.1]])  # an oriented molecule
    h = torch.eye(3, task.n_features) / 4
    B = 64
    x0 = State({"x": (x - x.mean(0)).repeat(B, 1), "h": h.repeat(B, 1)}, Layout([3] * B))
    level = task.process.path.at(torch.full((B,), 300))
    rng, rows = generator(seed), []
    for _ in range(n_batches):
        eps, R = task.process.noise(x0.layout, rng), O3().haar(B, rng)
        clean = x0.rotate(R) if how == "augmented" else x0
        z_t = task.process.noising(clean, eps, level)
        eps_hat = symmetrised(O3(), R, denoiser, z_t, level) if how == "symmetrised" else denoiser(z_t, level)
        gradients = torch.autograd.grad(squared_error(eps_hat, eps).mean(), weights)
        rows.append(sum(d @ g.flatten() for d, g in zip(directions, gradients, strict=True)))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def gradients() -> Callable[[str, int], Tensor]:
    model = model_of("haar", "dit", dtype=torch.float32)
    return lambda how, seed: projected_gradients(model, how, 120, seed)


def test_symmetrised_and_augmented_losses_have_one_expected_gradient(gradients):
    """T17: expected gradients agree, |z| < 5 over independent draws; those of un-augmented data do not."""
    symmetric = gradients("symmetrised", 1)
    assert two_sample_z(symmetric, gradients("augmented", 2)) < Z_MAX
    assert two_sample_z(symmetric, gradients("plain", 3)) > Z_MAX


# ---------------------------------------------------------------------- pair embedding


def test_pair_embedding_is_rotation_invariant():
    """T12: to 1e-6 in float32, for 29 atoms; it does see distances."""
    _, _, _, z = states([29, 29, 12], dtype=torch.float32)
    torch.manual_seed(0)
    embedding = GaussianPairEmbedding(16, 8)
    turned_x = turned(z, orthogonal(-1)).x
    assert relative_error(embedding(turned_x, z.layout), embedding(z.x, z.layout)) < 1e-6
    assert relative_error(embedding(1.01 * z.x, z.layout), embedding(z.x, z.layout)) > 1e-4


def test_distance_of_an_atom_to_itself_is_zero():
    """T12: exactly 0 on the diagonal for more than 25 atoms, where torch.cdist's matrix formula is off by 1e-4."""
    x = states([29], dtype=torch.float32)[3].x + 20.0
    squared = differences(x, pairs_of(Layout([29]), include_self=True)).square().sum(1).view(29, 29)
    assert (squared.diagonal() == 0).all()
    assert torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").diagonal().max() > 1e-4


def test_dit_shares_its_pair_embedding_with_the_kernel():
    """As published: one embedding of distances for both; on another backbone the kernel has its own."""
    shared, own = model_of("symdiff", "dit"), model_of("symdiff", "egnn")
    assert isinstance(shared.denoiser.backbone, DiT)
    assert shared.method.kernel.pair_embedding is shared.denoiser.backbone.pair_embedding
    names = [name for name, _ in own.named_parameters() if "pair_embedding" in name]
    assert names
    assert all(name.startswith("method.") for name in names)
    assert len(ELEMENTS) + 1 == own.task.n_features
