"""Parameter counts of the published networks, exact (spec 2, 3.1). Nothing is allocated: weights live on 'meta'."""

import pytest
import torch

from bench.backbones.dit import DiT, DiTConfig
from bench.backbones.e3 import E3, E3Config
from bench.backbones.egnn import EGNN, EGNNConfig
from bench.backbones.gdm import GDM, GDMConfig
from bench.geometry.groups import O3
from bench.registry import backbones, methods
from bench.run.contract import for_molecules
from bench.symmetry.contract import Setting

QM9, GEOM = 6, 16  # features: five elements and a charge; sixteen elements

# spec 3.1: the published SymDiff holds a final layer of the kernel's encoder that never receives a gradient
NEVER_TRAINED = {"published": 33_024, "published_large": 93_744}


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for module in modules for p in module.parameters()}.values())


def egnn(n_features: int, **options: int) -> int:
    with torch.device("meta"):
        return count(EGNN(EGNNConfig(**options), {"x": 3, "h": n_features}))


def dit(n_features: int, **options: int) -> int:
    with torch.device("meta"):
        return count(DiT(DiTConfig(**options), {"x": 3, "h": n_features}))


def gdm(n_features: int, **options: int) -> int:
    with torch.device("meta"):
        return count(GDM(GDMConfig(**options), {"x": 3, "h": n_features}))


def symdiff(size: str) -> tuple[int, int]:
    """All parameters, and those of the kernel network with its embedding of time (spec 3.1: k)."""
    method = methods["symdiff"]
    with torch.device("meta"):
        channels = {"x": 3, "h": QM9}
        backbone = DiT(DiTConfig(**DiT.sizes[size]), channels)
        built = method.build(method.config(**method.build.sizes[size]), Setting(O3(), backbone, channels))
    return count(backbone, built), count(backbone.trunk, backbone.modulation, backbone.head)


@pytest.mark.parametrize(
    ("n_features", "width", "depth", "expected"),
    [
        (QM9, 256, 9, 5_339_920),
        (GEOM, 256, 4, 2_380_565),
        (QM9, 192, 9, 3_009_616),
        (QM9, 256, 16, 9_490_199),
    ],
)
def test_egnn_has_the_published_count(n_features, width, depth, expected):
    """T36: EDM networks of several sizes; one more channel or feature gives another count."""
    assert egnn(n_features, width=width, depth=depth) == expected
    assert egnn(n_features, width=width + 1, depth=depth) != expected
    assert egnn(n_features + 1, width=width, depth=depth) != expected


def test_dit_has_the_published_count():
    """T36: DiT 28 965 553, and 115 512 943 at the size of SymDiff*; one Gaussian more gives another count."""
    assert dit(QM9, **DiT.sizes["published"]) == 28_965_553
    assert dit(QM9, **DiT.sizes["published_large"]) == 115_512_943
    assert dit(QM9, **{**DiT.sizes["published"], "embedding_width": 185}) != 28_965_553


def test_gdm_has_the_published_count():
    """T36: GDM 3 555 859 at width 256 and depth 9; one more channel or feature gives another count."""
    assert gdm(QM9, **GDM.sizes["published"]) == 3_555_859
    assert gdm(QM9, width=257, depth=9) != 3_555_859
    assert gdm(QM9 + 1, width=256, depth=9) != 3_555_859


def e3_by_hand(C: int, G: int, n_basis: int, n_features: int, paths: list[list[int]]) -> int:
    """Weights and biases of an E3 of lmax 2; `paths` has each block's number of products by degree of output."""
    total = (n_features + 1) * C + C + C  # embedding, position
    l_in = 1
    for of_block in paths:
        n_out = len(of_block)
        total += (2 * C + n_basis) * C + C + C * 3 * G + 3 * G  # radial weights, for harmonics of degree 0, 1, 2
        total += (l_in + 1) * C * C + C + sum(of_block) * C * C + C  # source, gather; a bias on scalars alone
        total += (1 + n_out) * C * C + C + n_out * C * C + n_out * C  # node update and gates
        l_in = n_out - 1
    return total + C + C * n_features + n_features  # velocity, readout


def test_e3_has_the_count_of_its_formula():
    """T36: counted by hand: paths of even l1 + l2 + l3 from degrees 0-1, 0-2, 0-2 and, for the readout, to 0-1."""
    paths = [[2, 3, 2], [3, 4, 4], [3, 4, 4], [3, 4]]
    with torch.device("meta"):
        small = count(E3(E3Config(**E3.sizes["small"]), {"x": 3, "h": QM9}))
    assert small == e3_by_hand(32, 8, 24, QM9, paths)
    assert small != e3_by_hand(32, 8, 24, QM9, [*paths[:3], [3, 4, 4]])


@pytest.mark.parametrize(
    ("size", "in_all", "k"), [("published", 31_195_834, 28_926_345), ("published_large", 123_309_408, 115_360_521)]
)
def test_symdiff_has_the_published_count_without_the_layer_that_never_trains(size, in_all, k):
    """T36: SymDiff 31 195 834 and SymDiff* 123 309 408 hold 33 024 and 93 744 parameters that never train."""
    assert symdiff(size) == (in_all - NEVER_TRAINED[size], k)
    assert symdiff(size)[0] != in_all


def test_published_sizes_are_the_defaults():
    """T36: a network built without options is the published one."""
    assert EGNNConfig() == EGNNConfig(**EGNN.sizes["published"])
    assert DiTConfig() == DiTConfig(**DiT.sizes["published"])
    assert GDMConfig() == GDMConfig(**GDM.sizes["published"])
    assert E3Config() == E3Config(**E3.sizes["medium"])  # nothing of it is published
    entry = methods["symdiff"]
    assert entry.config() == entry.config(**entry.build.sizes["published"])
    assert egnn(GEOM, **EGNN.sizes["published_geom"]) == 2_380_565


@pytest.mark.parametrize("name", for_molecules())
def test_named_sizes_grow(name):
    """T36: 'tiny', 'small', 'medium', 'published' of a backbone are in that order."""
    entry = backbones[name]
    ordered = [size for size in ("tiny", "small", "medium", "published") if size in entry.build.sizes]
    with torch.device("meta"):
        counts = [count(entry.build(entry.config(**entry.build.sizes[size]), {"x": 3, "h": QM9})) for size in ordered]
    assert counts == sorted(set(counts))
