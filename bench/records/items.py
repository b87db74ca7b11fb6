"""Items: a value of each molecule, of which a value in eval.json is the mean or the ratio of sums.

They let differences of runs be paired molecule by molecule, since all runs of a study share the test molecules, and the
sizes and noise of their samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.inputs import NpzError, read_arrays, truncate
from bench.records.schema import RecordError
from bench.records.store import write_atomically

if TYPE_CHECKING:
    import numpy as np  # loaded where items are read or written: `equibench status` needs none

    from bench.records.values import Value


def items_of(values: Iterable[Value]) -> dict[str, np.ndarray]:
    """The items of the scalars that have them, by name."""
    return {value.name: value.items for value in values if value.items is not None and not value.at}


def write_items(path: Path, items: Mapping[str, np.ndarray]) -> None:
    """Write items by the name of their value, as compressed float32; equal items give equal bytes.

    Args:
        items: [M], whose mean over the items that are not NaN is the value, or [M, 2], numerators and denominators
            whose sums have the value as their ratio; NaN where an item was not measured.
    Raises:
        RecordError: another shape, or arrays of different lengths.
        OSError: no space, no permission; what was there before is untouched.
    """
    import numpy as np

    arrays = {name: np.asarray(array, dtype=np.float32) for name, array in items.items()}
    _check(arrays, path)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(path, content.getvalue())


def read_items(path: Path) -> dict[str, np.ndarray]:
    """Items by the name of their value; none where there is no file (a run of an older version).

    Raises:
        RecordError: damaged, or arrays that are no items.
        OSError: not a regular file.
    """
    if not path.exists():
        return {}
    try:
        arrays = read_arrays(path)
    except NpzError as error:
        raise RecordError(f"{path}: {error}") from error
    _check(arrays, path)
    return arrays


def _check(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    lengths = {len(array) for array in arrays.values() if array.ndim}
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.shape not in [(n, *more) for n in lengths for more in ((), (2,))]:
            raise RecordError(
                f"{path}: items of {truncate(name)!r} are {array.dtype} of shape {array.shape}, "
                "expected floats [M] or [M, 2]"
            )
    if len(lengths) > 1:
        raise RecordError(f"{path}: items have {' and '.join(map(str, sorted(lengths)))} rows, expected one length")
