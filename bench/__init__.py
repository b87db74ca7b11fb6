"""The shared experiment: whatever must be the same for every method. `load_run` gives a trained run to Python."""

import os
from typing import TYPE_CHECKING, Any

# OpenMP's threads that have nothing to do turn in a loop on a core that other threads want (`bench.kernels.threads`): 300 000
# times by default; 10 000 are enough between operations. It is read when torch is loaded, so a program that
# loads torch first does without. What the user says goes.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:
    from bench.run.sample import load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    # lazily, so that `bench.records.store` and the analysis that reads it need no torch
    if name == "load_run":
        from bench.run.sample import load_run

        return load_run
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
