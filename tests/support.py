"""What tests share beside the checks of `bench.run.contract`, which they find here too."""

from __future__ import annotations

from pathlib import Path

from bench.run.contract import (  # noqa: F401
    ELEMENTS,
    ELEMENTS_OF_GROUPS,
    GROUP_NAMES,
    MEAN_ATOMS,
    SIZES,
    TOLERANCE,
    Z_MAX,
    atoms_of,
    core,
    fitting_pairs,
    generator,
    level_of,
    model_of,
    orthogonal,
    permutation,
    permuted,
    plug_in,
    randomise,
    recorded_draws,
    relative_error,
    replayed_draws,
    run_config,
    states,
    structures,
    subset,
    turned,
    two_sample_z,
    z_score,
)


def with_another_term(source: Path, right: str, wrong: str, folder: Path) -> Path:
    """A copy of a C file, with the headers beside it, in which one term is another: a control."""
    text = source.read_text()
    assert right in text
    for header in source.parent.glob("*.h"):
        (folder / header.name).write_text(header.read_text())
    changed = folder / source.name
    changed.write_text(text.replace(right, wrong))
    return changed
