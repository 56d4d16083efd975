"""What the study trains: a LLaMA on windows of a text, and which of its matrices are projected."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key, PyTree

from lrdyn.adapters.model import choose_by_path
from lrdyn.core import linalg
from lrdyn.core.selection import name_of
from lrdyn.data import language
from lrdyn.networks import Llama, cross_entropy

KINDS = ("query", "key", "value", "output", "gate", "up", "down")
"""Kinds of matrices of a block; all of them are projected, the tables and the gains are not."""
PROJECTED = re.compile(rf"blocks\..*\.({'|'.join(KINDS)})")
"""Paths of the matrices that are projected."""


@lru_cache(maxsize=2)
def read_text(text: str, vocabulary: int) -> language.Text:
    """Read a text once in a process, see :func:`lrdyn.data.language.read_text`."""
    return language.read_text(text, vocabulary=vocabulary)


def next_token_loss(net: Llama, windows: Integer[Array, "batch length_plus_1"]) -> Float[Array, ""]:
    """Mean cross-entropy of all tokens of windows but their first, in nats a token."""
    tokens = windows.astype(jnp.int32)  # a text in bytes is one of unsigned ones
    logits, labels = net(tokens[:, :-1]), tokens[:, 1:]
    # A loss is summed in float32 at least, whatever the type of the weights.
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return cross_entropy(wide.reshape(-1, wide.shape[-1]), labels.ravel())


def choose_maps(method: Any, rank: int) -> Callable[[Any, PyTree], PyTree]:
    """Maps as a method chooses them for the matrices of the blocks; all else is trained as it is.

    Args:
        method: a value of Algorithm 1.
        rank: r.
    """
    return choose_by_path(method, select=PROJECTED, rank=rank, extra="*")


def is_projected(path: tuple[Any, ...]) -> bool:
    """Whether the matrix at a path is projected."""
    return PROJECTED.fullmatch(name_of(path)) is not None


def by_kind(tree: PyTree) -> dict[str, Float[Array, "layer m n"]]:
    """The projected matrices of all blocks, stacked, by their kinds.

    Args:
        tree: a LLaMA, or a gradient of its shape.
    """
    found: dict[str, list[Array]] = {kind: [] for kind in KINDS}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_projected(path):
            found[name_of(path).rpartition(".")[2]].append(leaf)
    return {kind: jnp.stack(leaves) for kind, leaves in found.items()}


def orthonormal(key: Key[Array, ""] | None, like: Float[Array, "m n"], rank: int) -> Array:
    """An orthonormal basis of r random directions of the shorter side of a matrix.

    Args:
        key: random key.
        like: the matrix.
        rank: r.
    """
    assert key is not None
    length = min(like.shape)
    drawn = jax.random.normal(key, (length, min(rank, length)), jnp.float32)
    return linalg.orthogonal_factor(drawn).astype(like.dtype)


def stable_rank(values: Float[Array, "*some k"]) -> Float[Array, "*some"]:
    """||G||_F^2 / ||G||_2^2 from singular values."""
    return jnp.sum(values**2, axis=-1) / values[..., 0] ** 2


def rank_of_share(values: Float[np.ndarray, "*some k"], share: float) -> Int[np.ndarray, "*some"]:
    """How many singular values hold this share of the squared norm.

    Example:
        >>> rank_of_share(np.array([3.0, 1.0, 0.1]), 0.99).item()
        2
    """
    shares = np.cumsum(values**2, axis=-1) / np.sum(values**2, axis=-1, keepdims=True)
    return np.asarray(1 + np.sum(shares < share, axis=-1))
