"""The shared experiment: whatever must be the same for every method. `load_run` gives a trained run to Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.run.sample import load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    # lazily, so that `bench.records.store` and the analysis that reads it need no torch
    if name == "load_run":
        from bench.run.sample import load_run

        return load_run
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
