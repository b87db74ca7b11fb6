"""Child interpreters that import this installation, whatever lies in the working directory.

`python -m` puts the working directory first on `sys.path`, so that a file `yaml.py` or `bench.py` there is imported in
place of the library or of ours. PYTHONSAFEPATH (Python 3.11) leaves it out. An installation that is found only because
it is the working directory, as a checkout may be, is named in PYTHONPATH.
"""

from __future__ import annotations

import os
import site
import sys

from bench.registry import ROOT


def python(module: str, *arguments: str) -> list[str]:
    """Command line that executes one of our modules in a fresh interpreter; to be started with `environment()`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment of this process with what a child interpreter needs."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    places = [place for place in places if place]
    if str(ROOT) not in [*places, *site.getsitepackages(), site.getusersitepackages()]:
        places = [str(ROOT), *places]
    named = {"PYTHONPATH": os.pathsep.join(places)} if places else {}
    return {**os.environ, **named, "PYTHONSAFEPATH": "1"}
