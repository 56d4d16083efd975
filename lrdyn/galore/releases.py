"""Releases of optax on which its GaLore was examined, and what a newer one means.

optax may change what its GaLore computes. That would make no claim of this project false, so that
on a release which nobody has looked at every claim is undecided, and its controls are open.
"""

import re

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from lrdyn.verification.stating.claims import UNSEEN_RELEASE

RELEASES = ("0.2.8",)
"""Releases of optax on which the claims were judged, the newest last: those of the locks in
``requirements/``."""


def release_numbers(release: str) -> tuple[int, ...]:
    """The three numbers of a release; what is behind them does not count.

    Example:
        >>> release_numbers("0.2.9.dev0"), release_numbers("1.0")
        ((0, 2, 9), (1, 0, 0))
    """
    numbers = [int(number) for number in re.findall(r"\d+", release)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def running_release() -> Int[Array, "release_number"]:
    """The release of optax that runs, which is saved beside what it computed."""
    return jnp.asarray(release_numbers(optax.__version__), jnp.int32)


def unseen_release(release: Int[Array, "release_number"] | np.ndarray) -> str:
    """Why nothing is judged that a newer release computed; empty for one that was looked at.

    Args:
        release: its numbers, as :func:`running_release` has them.

    Example:
        >>> unseen_release(np.array([0, 2, 8]))
        ''
        >>> unseen_release(np.array([1, 0, 0]))
        'unseen release: computed by optax 1.0.0, seen on 0.2.8'
    """
    computed = tuple(np.asarray(release).tolist())
    if computed <= release_numbers(RELEASES[-1]):
        return ""
    name = ".".join(map(str, computed))
    return f"{UNSEEN_RELEASE}computed by optax {name}, seen on {', '.join(RELEASES)}"
