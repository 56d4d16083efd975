"""What networks have in common: how they are called, their last hidden activations, their loss."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked

AXIS = "batch"
"""Name of the axis over which batch normalisation takes its means."""


class Network(eqx.Module):
    """f(x) = W_L (m * h(x)) + b_L: a last layer on the activations h, of which dropout hides some.

    One call is one example: ``network(image, key=None, state=None)``. With a key it is a call of
    training: entries of h are 0 with the chance ``dropout`` and the others divided by 1 - dropout,
    and batch normalisation takes the statistics of the batch. Without one it is evaluation. Only a
    network with batch normalisation needs a state, :func:`lrdyn.networks.initial_state` at first;
    whoever gives one gets the outputs and the new state back. :func:`apply` calls a batch.
    """

    dropout: float = eqx.field(static=True, default=0.0, kw_only=True)
    """Chance with which training hides an entry."""

    @abstractmethod
    def hidden(self, image: Array, key: Key[Array, ""] | None, state: PyTree) -> tuple[Any, PyTree]:
        """Last hidden activations h of one example before dropout, and the new state."""

    @abstractmethod
    def last(self, features: Array) -> Array:
        """Outputs of the last layer, W_L h + b_L."""

    @property
    @abstractmethod
    def penultimate(self) -> str:
        """Path of the weights before the last layer: see :func:`lrdyn.networks.penultimate`."""

    def features(
        self, image: Float[Array, "..."], *, key: Key[Array, ""] | None = None, state: PyTree = None
    ) -> Any:
        """h(x), the last hidden activations before dropout; with a state, (h, new state)."""
        hidden, new_state = self.hidden(image, split_key(key, 2)[0], state)
        return hidden if state is None else (hidden, new_state)

    def __call__(
        self, image: Float[Array, "..."], *, key: Key[Array, ""] | None = None, state: PyTree = None
    ) -> Any:
        """f(x); with a state, (f(x), new state)."""
        inner, outer = split_key(key, 2)
        hidden, new_state = self.hidden(image, inner, state)
        outputs = self.last(apply_dropout(hidden, self.dropout, outer))
        return outputs if state is None else (outputs, new_state)


@checked
def split_key(key: Key[Array, ""] | None, count: int) -> list[Key[Array, ""] | None]:
    """Split a random key into so many; without a key as many times None.

    Example:
        >>> split_key(None, 2)
        [None, None]
    """
    checks.integer("count", count)
    # Each is an object of its own, of some hundred bytes.
    checks.allocation({"count": count}, (count, 100), dtype=bool)
    return [None] * count if key is None else list(jax.random.split(key, count))


@checked
def apply_dropout(
    hidden: Float[Array, "..."], dropout: float, key: Key[Array, ""] | None
) -> Float[Array, "..."]:
    """The product m * h, m = 0 with chance ``dropout``, else 1 / (1 - dropout); without a key h.

    Example:
        >>> apply_dropout(jnp.ones(6), 0.5, jax.random.key(1)).tolist()
        [2.0, 2.0, 0.0, 0.0, 2.0, 0.0]
    """
    rate = checked_dropout(dropout)
    return eqx.nn.Dropout(rate)(hidden, key=key, inference=key is None)


@checked
def apply(
    network: Callable[..., Any],
    images: Float[Array, "batch ..."],
    *,
    key: Key[Array, ""] | None = None,
    state: PyTree = None,
) -> Any:
    """Call a network, or its ``features``, on a batch of examples.

    Args:
        network: a network of this package, or its method ``features``.
        images: the examples along the first axis. Several devices may share it.
        key: for training; each example gets one of its own. None to evaluate.
        state: statistics of batch normalisation.

    Returns:
        Outputs, an example a row; with a state, the outputs and the new state.

    Raises:
        ValueError: a network with batch normalisation got no state.

    Example:
        >>> from lrdyn.networks import mlp
        >>> apply(mlp(jax.random.key(0), (4, 3)), jnp.ones((5, 4))).shape
        (5, 3)
    """
    keys = None if key is None else jax.random.split(key, len(images))

    def apply_one(image: Array, key: Key[Array, ""] | None) -> Any:
        return network(image, key=key, state=state)

    axes = (0, None if keys is None else 0)
    out_axes = 0 if state is None else (0, None)
    return jax.vmap(apply_one, in_axes=axes, out_axes=out_axes, axis_name=AXIS)(images, keys)


@checked
def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Float[Array, ""]:
    """Mean of -log softmax(f(x))_y; NaN if a traced label has no output.

    Args:
        logits: f(x), an example a row.
        labels: y, from 0.

    Raises:
        ValueError: there are fewer classes than labels.

    Example:
        >>> round(float(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
        1.3863
    """
    checks.integer("labels", labels, 0, axes=(len(logits),))
    enough_classes(logits.shape[1], labels)
    logs = jax.nn.log_softmax(logits, axis=1)
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))


@checked
def enough_classes(classes: int, labels: Int[Array, "n"] | Int[np.ndarray, "n"]) -> int:
    """The number of classes, if every label is below it. Traced labels are not looked at.

    Raises:
        ValueError: a label is not.

    Example:
        >>> enough_classes(3, np.array([0, 3]))
        Traceback (most recent call last):
        ValueError: classes: got 3, wanted at least 4: there is a label 3
    """
    checks.integer("classes", classes)
    checks.integer("labels", labels, 0, axes=("n",))
    largest = -1 if isinstance(labels, Tracer) else int(np.asarray(labels).max())
    if largest >= classes:
        checks.refuse("classes", classes, f"at least {largest + 1}: there is a label {largest}")
    return classes


@checked
def checked_dropout(dropout: float) -> float:
    """A chance from 0 to below 1.

    Example:
        >>> checked_dropout(1.0)
        Traceback (most recent call last):
        lrdyn.core.checks.OutsideDomain: dropout: got 1.0, wanted at least 0, below 1
    """
    domain = "at least 0, below 1"
    return float(checks.floats("dropout", dropout, (), lambda x: (x >= 0) & (x < 1), domain))
