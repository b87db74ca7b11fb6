"""The declared guarantee of every registered method on every backbone that it accepts.

Methods and backbones are discovered, so a new plug-in is tested without an edit here. Each check is a function of
`bench.run.contract`, and each is shown a deliberately wrong model that it must catch.
"""

import pytest
import torch
from support import noised
from torch import Tensor, nn

from bench.geometry.groups import O3, SO3, RotationGroup
from bench.geometry.state import State
from bench.registry import backbones, methods
from bench.run.contract import (
    ELEMENTS_OF_GROUPS,
    GROUP_NAMES,
    TOLERANCE,
    Z_MAX,
    atoms_of,
    batch_error,
    batch_loss_error,
    centre_of_mass_drift,
    coincident_gradients_are_finite,
    core,
    drift,
    fitting_pairs,
    for_molecules,
    generator,
    gradients,
    law_change,
    model_of,
    orthogonal,
    permutation_error,
    recorded_draws,
    relative_error,
    replayed_draws,
    rotation_error,
    run_config,
    states,
    subset,
    translated_error,
    turned,
)
from bench.run.train import training_loss
from bench.streams import Streams
from bench.symmetry.contract import Guarantee, Method

PAIRS = fitting_pairs()
OVER_GROUPS = pytest.mark.parametrize(("group", "determinant"), ELEMENTS_OF_GROUPS, ids=GROUP_NAMES)


def with_guarantee(guarantee: Guarantee) -> list[tuple[str, str]]:
    return [(m, b) for m, b in PAIRS if methods[m].build.guarantee is guarantee]


# ---------------------------------------------------------------------- exact


@OVER_GROUPS
@pytest.mark.parametrize(("method", "backbone"), with_guarantee(Guarantee.EXACT))
def test_exact_method_turns_with_its_input(method, backbone, group, determinant, precision):
    model = model_of(method, backbone, group, dtype=precision)
    assert rotation_error(model, precision, determinant) < TOLERANCE[precision]


@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("backbone", [b for b in for_molecules() if backbones[b].build.equivariant])
def test_equivariant_backbone_turns_with_its_input(backbone, determinant, precision):
    """T10: f(Rz) = R f(z) for det R = +1 and -1, to 1e-9 in float64 and 1e-4 in float32."""
    assert rotation_error(model_of("plain", backbone, dtype=precision), precision, determinant) < TOLERANCE[precision]


@pytest.mark.parametrize("backbone", [b for b in for_molecules() if not backbones[b].build.equivariant])
def test_other_backbones_do_not_turn_with_their_input(backbone):
    """T11: DiT with random non-zero weights is not equivariant; keeps the tests of symmetry from being vacuous."""
    for determinant in (1, -1):
        assert rotation_error(model_of("plain", backbone), torch.float64, determinant) > 0.1


# ---------------------------------------------------------------------- in law


@OVER_GROUPS
@pytest.mark.parametrize(("method", "backbone"), with_guarantee(Guarantee.IN_LAW))
def test_in_law_method_turns_with_input_under_translated_draws(method, backbone, group, determinant, precision):
    """T15: base R0 at z and Q R0 at Q z, all other draws alike, turn the prediction by Q and leave features alone."""
    error = translated_error(lambda g: model_of(method, backbone, g, precision), precision, group, determinant)
    assert error < TOLERANCE[precision]


@pytest.mark.parametrize("group", [O3(), SO3()], ids=["O3", "SO3"])
@pytest.mark.parametrize("control", ["plain", "symdiff_as_released"])
def test_translated_draws_expose_methods_without_the_guarantee(control, group):
    """T15: the check refuses plain DiT, and SymDiff composed as in the released code."""
    assert translated_error(lambda g: model_of(control, "dit", g), torch.float64, group, 1) > 0.1


def test_in_law_draws_differ_from_call_to_call():
    """The guarantee is not kept by ignoring the generator."""
    _, _, level, z_t = states()
    for method, backbone in with_guarantee(Guarantee.IN_LAW):
        if not backbones[backbone].build.equivariant:
            model = model_of(method, backbone)
            pair = [model.predict(z_t, level, generator(seed)) for seed in (1, 2)]
            assert relative_error(pair[0], pair[1]) > 0.1


# ---------------------------------------------------------------------- where a method changes nothing


@pytest.mark.parametrize("method", [m for m in methods if methods[m].build.predict is not Method.predict])
def test_a_method_that_changes_nothing_on_an_equivariant_backbone_says_so(method):
    """Predictions are those of the bare network on such backbones, and of none that declares it elsewhere."""
    _, _, level, z_t = states()
    for backbone in [b for m, b in PAIRS if m == method]:
        model = model_of(method, backbone)
        error = relative_error(model.predict(z_t, level, generator(1)), model.denoiser(z_t, level))
        declared = methods[method].build.on_equivariant_backbone is not None
        if backbones[backbone].build.equivariant:
            assert (error < 1e-9) == declared, f"error {error:.1e}: `on_equivariant_backbone` should say why"
        elif declared:
            assert error > 1e-2


def test_augmentation_changes_nothing_on_an_equivariant_backbone():
    """With the noise turned along, example by example; on DiT it does."""
    x0, eps, level, _ = states()
    R = O3().haar(len(x0), generator(5), torch.float64)
    process = core().process
    pairs = process.noised(x0, eps, level), process.noised(x0.rotate(R), eps.rotate(R), level)
    for backbone in for_molecules():
        model = model_of("haar", backbone)
        here, there = (
            model.method.loss(model.predict(both.z_t, level, generator(1)), both.noise, both) for both in pairs
        )
        error = relative_error(there, here)
        assert error < 1e-9 if backbones[backbone].build.equivariant else error > 1e-2


# ---------------------------------------------------------------------- at the optimum


@pytest.mark.parametrize("i", [200, 700])
@pytest.mark.parametrize("method", sorted({m for m, _ in with_guarantee(Guarantee.AT_OPTIMUM)}))
@pytest.mark.parametrize(("group", "determinants"), [(O3(), (1, -1)), (SO3(), (1,))], ids=["O3", "SO3"])
def test_at_optimum_method_makes_the_law_of_state_and_target_invariant(method, group, determinants, i):
    assert law_change(model_of(method, "dit", group).method, 10_000, i, determinants) < Z_MAX


@pytest.mark.slow
@pytest.mark.parametrize("i", [200, 700])
@pytest.mark.parametrize(
    "options",
    [
        {"n_draws": 1},
        {"n_draws": 8, "include_generator": False},
        {"n_draws": 8, "temperature": 0.4},
        {"n_draws": 8, "proposal": "local"},
        {"n_draws": 8, "shared_draws": True},
        {"n_draws": 8, "proposal": "local", "shared_draws": True},
        {"n_draws": 4, "permutations": "classes", "n_permutations": 3},
        {"n_draws": 4, "permutations": "all", "n_permutations": 3, "proposal": "local"},
    ],
    ids=str,
)
def test_every_option_of_orbit_rb_makes_the_law_invariant(options, i):
    """What docs/strategies/orbit_rb.md says: at optimum for every option, the biased ones too."""
    method = model_of("orbit_rb", "dit", **options).method
    sizes = {"n_draws": 16, "n_batches": 200} if options.get("shared_draws") else {"n_draws": 4000}
    assert law_change(method, i=i, **sizes) < Z_MAX


def test_plain_data_have_an_oriented_law():
    plain = model_of("plain", "dit").method
    assert law_change(plain, 10_000, 200) > 10 * Z_MAX
    assert law_change(plain, 16, 200, n_batches=200) > 10 * Z_MAX
    assert law_change(plain, 4000, 700) > Z_MAX


# ---------------------------------------------------------------------- what SO(3) leaves: chirality


@pytest.mark.parametrize("method", ["orbit_rb", "orbit_rb_exact"])
def test_targets_over_rotations_tell_mirror_images_apart(method):
    """T40: over SO(3) the target at a state depends on which mirror image was noised; over O(3) the closed form does
    not, and the sampled average of many local draws hardly."""
    options = {"n_draws": 4000, "proposal": "local", "include_generator": False} if method == "orbit_rb" else {}
    x0, _, _, z_t = states((5, 9, 12))
    level = core().process.path.at(torch.full((3,), 300), torch.float64)
    Q = orthogonal(-1)

    def change(group: RotationGroup) -> float:
        hook = model_of(method, "dit", group, **options).method
        pairs = [noised(x, z_t, level) for x in (x0, turned(x0, Q))]
        targets = [both.clean_of(hook.target(both, generator(1))) for both in pairs]
        return relative_error(targets[1].x, targets[0].x)

    assert change(O3()) < (0.05 if options else 1e-9)
    assert change(SO3()) > 0.2


# ---------------------------------------------------------------------- permutations and batches


class OrderDependent(nn.Module):
    """Control: a network that sees the index of an atom."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: State, t: Tensor) -> State:
        index = torch.arange(len(z.h), dtype=z.h.dtype) - z.per_atom(z.ptr[:-1].to(z.h.dtype))
        return self.inner(z.replace(h=z.h + 0.01 * index[:, None]), t)


class BatchDependent(nn.Module):
    """Control: a network whose output knows the largest molecule of the batch, as padded code does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: State, t: Tensor) -> State:
        out = self.inner(z, t)
        return out.replace(h=out.h + 1e-3 * z.layout.n_largest)


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_prediction_permutes_with_atoms(method, backbone):
    """T8: f(pi z) = pi f(z) for every network, the noise of a rotation kernel permuted along."""
    assert permutation_error(model_of(method, backbone)) < 1e-9


def test_order_dependent_network_is_caught():
    """T8: the check refuses a network that sees an atom's index."""
    model = model_of("plain", "dit")
    model.denoiser.backbone = OrderDependent(model.denoiser.backbone)
    assert permutation_error(model) > 1e-4


@pytest.mark.parametrize("molecules", [[2], [4, 0], [5, 4, 3, 2, 1, 0]], ids=["alone", "two", "reversed"])
@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_prediction_ignores_the_rest_of_the_batch(method, backbone, molecules):
    """T9: a molecule's prediction is the same alone, in other company and in another order."""
    assert batch_error(model_of(method, backbone), molecules) < 1e-9


def test_batch_dependent_network_is_caught():
    """T9: the check refuses an output that depends on the largest molecule of the batch."""
    model = model_of("plain", "egnn")
    model.denoiser.backbone = BatchDependent(model.denoiser.backbone)
    assert batch_error(model, [2]) > 1e-4


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_training_loss_of_a_molecule_ignores_the_rest_of_the_batch(method, backbone):
    """T9: losses of a batch equal those of its molecules alone, every draw following its molecule."""
    assert batch_loss_error(model_of(method, backbone)) < 1e-9


def test_padded_denominator_makes_the_loss_depend_on_the_batch():
    """T9: the published denominator (`edm_compat`), kept as an option, is what the check above would refuse."""
    model = model_of("plain", "egnn")
    model.process.cfg.edm_compat = True
    x0 = states()[0]
    with recorded_draws() as drawn:
        together = training_loss(model, x0, Streams(0).at(0))
    with replayed_draws(drawn, x0.layout, [2], atoms_of(x0.layout, [2])):
        alone = training_loss(model, subset(x0, [2]), Streams(0).at(0))
    assert relative_error(alone, together[2:3]) > 0.5


# ---------------------------------------------------------------------- centre of mass, gradients


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_states_targets_and_predictions_have_no_centre_of_mass(method, backbone, precision):
    """T7: |sum_n x_n| < 1e-4 max |x| for states, targets and outputs."""
    assert centre_of_mass_drift(model_of(method, backbone, dtype=precision), precision) < TOLERANCE[precision]


@pytest.mark.parametrize("backbone", for_molecules())
def test_raw_network_output_has_a_centre_of_mass(backbone):
    """T7: without the denoiser's projection the same check fails for a network that is not built on differences."""
    _, _, level, z_t = states()
    raw = model_of("plain", backbone).denoiser.backbone(z_t, level.t)
    if not backbones[backbone].build.equivariant:
        assert drift(raw) > 1e-2
    assert drift(raw.replace(x=raw.x + 1)) > 1e-2


@pytest.mark.parametrize("backbone", for_molecules())
def test_prediction_ignores_where_a_centred_state_came_from(backbone):
    """T10: x and x + c give one prediction once centred; without centring DiT does not."""
    _, _, level, z_t = states()
    model = model_of("plain", backbone)
    moved = z_t.replace(x=z_t.x + 3.0)
    here = model.denoiser(z_t, level)
    assert relative_error(model.denoiser(moved.centred(), level), here) < 1e-9
    error = relative_error(model.denoiser(moved, level), here)
    assert error < 1e-9 if backbones[backbone].build.equivariant else error > 1e-2


@pytest.mark.parametrize(("method", "backbone"), [(m, b) for m, b in PAIRS if methods[m].build.weights_of is None])
def test_every_weight_receives_a_finite_gradient(method, backbone):
    """No weight is idle: of those that the loss can reach, all have finite and some non-zero gradients."""
    found = gradients(model_of(method, backbone, dtype=torch.float32))
    assert found.not_finite == set()
    if not backbones[backbone].build.equivariant:  # a rotation kernel moves nothing around an equivariant network
        assert found.idle == set()


def test_coincident_atoms_give_finite_gradients():
    """Two atoms in one place, where a distance has no derivative, do not spoil a step."""
    for backbone in for_molecules():
        assert coincident_gradients_are_finite(model_of("plain", backbone, dtype=torch.float32))


def test_battery_finds_every_registered_plug_in():
    """Nothing is left out: each method meets a backbone, each backbone a method, no file is unavailable."""
    assert {m for m, _ in PAIRS} == set(methods)
    assert {b for _, b in PAIRS} == set(for_molecules())
    assert methods.unavailable == {}
    assert backbones.unavailable == {}
    assert {methods[m].build.guarantee for m in methods} == set(Guarantee)
    assert run_config("edm", "dit").method.name == "edm"  # a cell without sense can be written, and is then skipped
