"""A linearised model of somebody's own, from a file of features and targets.

``.npz`` and ``.safetensors`` hold two arrays, ``features`` and ``targets``. The features are

* N x p: vectors x_k of a linear layer, whose K x p matrix is updated: ``z_kc = <W_c, x_k>``;
* N x m x n: derivatives of one output in an m x n matrix;
* N x K x m x n: derivatives of K outputs;

the targets N or N x K numbers (squared error), or N integers, classes from 0 on (cross-entropy).
``.npy`` and ``.csv`` hold a table: vectors x_k, and the target in the last column, a class where
all of them are the integers 0, ..., K - 1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

from lrdyn.data import arrays, guarded
from lrdyn.diagnosis import reading
from lrdyn.studies.lora_landscape.problem import CROSS_ENTROPY, SQUARED

NONE = "none"
"""The value of ``--features`` where no file is given."""
MOST = 2**28
"""Bytes of a table as text, at most."""
WANTED = "a .npy, .npz, .csv or .safetensors of features and targets"


class Features(NamedTuple):
    """A linearised model on labelled examples."""

    features: Float[np.ndarray, "N K m n"]
    """G_kc."""
    targets: Float[np.ndarray, "N K"]
    loss: str


def read_features(name: str) -> Features:
    r"""Read features and targets.

    Args:
        name: the path of the file, see the head of this module.

    Raises:
        ValueError: the file cannot be read, lacks an array, or its arrays do not fit together.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "features.csv")
        >>> _ = path.write_text("1,2,0\n3,4,1\n5,6,0\n")
        >>> found = read_features(str(path))
        >>> found.features.shape, found.loss, found.targets.tolist()
        ((3, 2, 2, 2), 'cross_entropy', [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    """
    path = Path(name)
    try:
        if path.suffix in (".csv", ".npy"):
            table = _read_csv(path) if path.suffix == ".csv" else arrays.read_npy(path)
            if table.ndim != 2 or min(table.shape) < 2:
                _refuse(name, f"an array of shape {table.shape}", "rows of features and a target")
            features, targets = table[:, :-1], table[:, -1]
            if _are_classes(targets):
                targets = targets.astype(int)
        elif path.suffix in (".npz", ".safetensors"):
            features, targets = _named(name, reading.weights("--features", path))
        else:
            _refuse(name, f"a file {path.suffix or 'without a suffix'}", WANTED)
    except OSError as error:
        _refuse(name, str(error.strerror), "a file that can be read")
    except guarded.Refused as error:
        _refuse(name, error.why or str(error), WANTED)
    return fit_together(name, np.asarray(features, float), targets)


def fit_together(name: str, features: np.ndarray, targets: np.ndarray) -> Features:
    """Features and targets as derivatives of outputs, and the loss that the targets ask for.

    Args:
        name: what they are called in messages.
        features: N x p, N x m x n or N x K x m x n.
        targets: N or N x K numbers, or N classes.

    Raises:
        ValueError: they do not fit together.

    Example:
        >>> fit_together("mine", np.ones((3, 2)), np.array([0.5, 1.0, 2.0])).features.shape
        (3, 1, 1, 2)
    """
    finite = np.all(np.isfinite(features)) and np.all(np.isfinite(targets))
    if not finite or np.max(np.abs(features), initial=0) > 1e6:
        _refuse(name, "numbers that are infinite, or features above 1e6", "numbers up to 1e6")
    classes = targets.ndim == 1 and targets.dtype.kind in "iu"
    if targets.ndim not in (1, 2) or len(targets) != len(features) or not targets.size:
        got = f"targets of shape {targets.shape} for features of shape {features.shape}"
        _refuse(name, got, "a target for each example")
    if classes and not _are_classes(targets):
        got = f"classes {', '.join(map(str, np.unique(targets)[:5]))}"
        _refuse(name, got, "two classes or more, integers from 0 on that all occur")
    one_hot = np.eye(int(targets.max()) + 1)[targets] if classes else np.asarray(targets, float)
    one_hot = one_hot.reshape(len(targets), -1)
    outputs = one_hot.shape[1]
    if features.ndim == 2:
        # z_kc = <e_c x_k^T, W>.
        features = np.einsum("cd,kp->kcdp", np.eye(outputs), features)
    elif features.ndim == 3:
        features = features[:, None]
    if features.ndim != 4 or features.shape[1] != outputs:
        got = f"features of shape {features.shape} for {outputs} outputs"
        _refuse(name, got, "features N x p, N x m x n for one output, or N x K x m x n for K")
    return Features(features, one_hot, CROSS_ENTROPY if classes else SQUARED)


def _are_classes(targets: np.ndarray) -> bool:
    """Whether the targets are the integers 0, ..., K - 1, two of them or more, and each occurs."""
    found = np.unique(targets)
    return len(found) > 1 and np.array_equal(found, np.arange(len(found)))


def _named(name: str, found: Any) -> tuple[np.ndarray, np.ndarray]:
    wanted = ("features", "targets")
    infos: Mapping[str, Any] = found.infos
    if missing := [array for array in wanted if array not in infos]:
        _refuse(name, f"no array {missing[0]}", "the arrays features and targets")
    return found["features"], np.asarray(found["targets"])


def _read_csv(path: Path) -> np.ndarray:
    """Rows of numbers with commas between them; a first line of words is a heading."""
    text = guarded.content(path, most=MOST).decode("utf-8", "replace")
    lines = [line.split(",") for line in text.splitlines() if line.strip()]
    try:
        return np.array([[float(cell) for cell in line] for line in lines])
    except ValueError:
        lines = lines[1:]
    try:
        return np.array([[float(cell) for cell in line] for line in lines])
    except ValueError:
        _refuse(str(path), "cells that are no numbers, or rows of unequal length", "numbers")


def _refuse(name: str, got: str, wanted: str) -> NoReturn:
    raise ValueError(f"--features: got {name!r} ({got}), wanted {wanted}")
