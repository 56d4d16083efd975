"""Records of a run from files: one a step in a folder, or one .npz with a leading axis."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.data import arrays, tensors
from lrdyn.recorded_runs.records import natural_order
from lrdyn.verification.stating.mistakes import BadInput

SUFFIXES = (".npz", ".safetensors")
STEP = "step"
"""Array of a single .npz that has the recorded steps."""


def read_records(path: Path) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Read ``(t, arrays by name)`` for every record, in the order of the steps.

    Args:
        path: a folder with one file a record, ``.npz`` or ``.safetensors``, whose step is the last
            number in its name (``step_000100.npz``); or one ``.npz`` with ``step``, integers, and
            arrays that have a record for each along their first axis.

    Raises:
        BadInput: there is no record, or a name without a number.
        lrdyn.data.guarded.Refused: a file is damaged, a pickle, or has a NaN in it (safetensors).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for t in (0, 10):
        ...     np.savez(folder / f"step_{t}.npz", W1=np.eye(2))
        >>> [t for t, _ in read_records(folder)]
        [0, 10]
    """
    if path.is_file():
        return _stacked(path)
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES] if path.is_dir() else []
    if not files:
        raise BadInput(f"{path}: got no record, wanted files like step_000100.npz, or one .npz")
    return [(_step_of(file), _file(file)) for file in sorted(files, key=_step_of)]


def _step_of(file: Path) -> int:
    numbers = re.findall(r"\d+", file.stem)
    if not numbers:
        raise BadInput(f"{file}: got a name without a number, wanted its step, step_000100.npz")
    return int(numbers[-1])


def _file(file: Path) -> dict[str, np.ndarray]:
    opened: Any = (arrays if file.suffix == ".npz" else tensors).opened(file)
    return {name: opened[name] for name in sorted(opened.infos, key=natural_order)}


def _stacked(path: Path) -> list[tuple[int, dict[str, np.ndarray]]]:
    if path.suffix != ".npz":
        raise BadInput(f"{path}: got a {path.suffix or 'plain'} file, wanted .npz or a folder")
    named: Mapping[str, np.ndarray] = _file(path)
    steps = named.get(STEP)
    if steps is None or steps.ndim != 1 or steps.dtype.kind not in "iu":
        raise BadInput(f"{path}: got no array {STEP!r} of integers, wanted the recorded steps")
    others = {name: array for name, array in named.items() if name != STEP}
    for name, array in others.items():
        if array.ndim < 1 or len(array) != len(steps):
            got = f"{name!r} of shape {array.shape}"
            raise BadInput(f"{path}: got {got}, wanted a first axis of {len(steps)} records")
    return [
        (int(step), {name: array[place].copy() for name, array in others.items()})
        for place, step in enumerate(steps)
    ]
