"""Child interpreters that import this installation, whatever lies in the working directory.

`python -m` puts the working directory first on `sys.path`, where a file `yaml.py` or `bench.py` hides the library
or our package. PYTHONSAFEPATH (Python 3.11) prevents this. An installation that is importable only as the working
directory, such as a checkout, is added to PYTHONPATH.
"""

from __future__ import annotations

import os
import site
import sys

from bench.registry import ROOT


def python(module: str, *arguments: str) -> list[str]:
    """Command line that runs one of our modules in a fresh interpreter; start it with `environment()`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This interpreter's environment plus what a child needs."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    places = [place for place in places if place]
    if str(ROOT) not in [*places, *site.getsitepackages(), site.getusersitepackages()]:
        places = [str(ROOT), *places]
    named = {"PYTHONPATH": os.pathsep.join(places)} if places else {}
    return {**os.environ, **named, "PYTHONSAFEPATH": "1"}
