"""The shared experiment: whatever must be the same for every method.

From Python (docs/python.md): `results` reads the records of a study, `load_run` loads a trained run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.load import load as results
    from bench.run.sample import load_run

__all__ = ["load_run", "results"]


def __getattr__(name: str) -> Any:
    # lazily, so that `bench.records.store` and the analysis that reads it need no torch
    if name == "load_run":
        from bench.run.sample import load_run

        return load_run
    if name == "results":
        from analysis.load import load

        return load
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
