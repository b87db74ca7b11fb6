"""Parameter counts of the published networks, exact (spec 2, 3.1). Nothing is allocated: weights live on 'meta'."""

import pytest
import torch

from bench.backbones.dit import DiT, DiTConfig
from bench.backbones.egnn import EGNN, EGNNConfig
from bench.groups import O3
from bench.method import Setting
from bench.registry import backbones, methods

QM9, GEOM = 6, 16  # features: five elements and a charge; sixteen elements

# spec 3.1: the published SymDiff holds a final layer of the kernel's encoder that never receives a gradient
NEVER_TRAINED = {"published": 33_024, "published_large": 93_744}


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for module in modules for p in module.parameters()}.values())


def egnn(n_features: int, **options: int) -> int:
    with torch.device("meta"):
        return count(EGNN(EGNNConfig(**options), n_features))


def dit(n_features: int, **options: int) -> int:
    with torch.device("meta"):
        return count(DiT(DiTConfig(**options), n_features))


def symdiff(size: str) -> tuple[int, int]:
    """All parameters, and those of the kernel network with its embedding of time (spec 3.1: k)."""
    method = methods["symdiff"]
    with torch.device("meta"):
        backbone = DiT(DiTConfig(**DiT.sizes[size]), QM9)
        built = method.build(method.config(**method.build.sizes[size]), Setting(O3(), backbone, QM9))
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
    """T36: EDM networks of spec section 2; one more channel or feature gives another count."""
    assert egnn(n_features, width=width, depth=depth) == expected
    assert egnn(n_features, width=width + 1, depth=depth) != expected
    assert egnn(n_features + 1, width=width, depth=depth) != expected


def test_dit_has_the_published_count():
    """T36: DiT 28 965 553, and 115 512 943 at the size of SymDiff*; one Gaussian more gives another count."""
    assert dit(QM9, **DiT.sizes["published"]) == 28_965_553
    assert dit(QM9, **DiT.sizes["published_large"]) == 115_512_943
    assert dit(QM9, **{**DiT.sizes["published"], "embedding_width": 185}) != 28_965_553


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
    entry = methods["symdiff"]
    assert entry.config() == entry.config(**entry.build.sizes["published"])
    assert egnn(GEOM, **EGNN.sizes["published_geom"]) == 2_380_565


@pytest.mark.parametrize("name", list(backbones))
def test_named_sizes_grow(name):
    """T36: 'tiny', 'small', 'medium', 'published' of a backbone are in that order."""
    entry = backbones[name]
    ordered = [size for size in ("tiny", "small", "medium", "published") if size in entry.build.sizes]
    with torch.device("meta"):
        counts = [count(entry.build(entry.config(**entry.build.sizes[size]), QM9)) for size in ordered]
    assert counts == sorted(set(counts))
