"""ReLoRA, with a frozen factor and with both trained: W is frozen, and takes over s B A."""

from typing import Any

import jax.numpy as jnp
import optax

from lrdyn.adapters.maps import by_svd, draw_projectors
from lrdyn.adapters.memory import DECOMPOSED, PROJECTED, Footprint, Formula
from lrdyn.adapters.method import Method, Parts, Split
from lrdyn.core import checks

FACTORS = Formula("mn + mr + nr")
"""W, B and A."""

RELORA_FROZEN = Method(
    split=lambda parts: Split(parts.coordinates, (parts.weights, parts.maps)),
    parts=lambda split: Parts(*split.frozen, coordinates=split.trained),
    choose=by_svd,
    gradients=True,
    side="smaller",
    state="reset",
    memory=Footprint(
        FACTORS,
        Formula("2nr"),
        1,
        merged=PROJECTED,
        layered=Formula("rb", ("2mb", "nr")),
        refresh=DECOMPOSED,
    ),
)
"""ReLoRA': one factor is frozen at GaLore's P; the other, from 0, is trained and merged every T
steps, and the state of the optimiser is reset. Line 3 of Algorithm 1 chooses P."""

RELORA = Method(
    split=lambda parts: Split((parts.maps, parts.coordinates), parts.weights),
    parts=lambda split: Parts(split.frozen, *split.trained),
    choose=draw_projectors,
    side="right",
    state="reset",
    memory=Footprint(
        FACTORS,
        Formula("2mr + 2nr"),
        1,
        # W + B A and then its gradient, with E, or with the gradients of the trained factors.
        merged=Formula("mn", ("mb", "mr + nr")),
        # A X is kept; with it W X and B (A X), or E, B^T E and the gradient of B, or that of A.
        layered=Formula("rb", ("2mb", "mb + rb + mr", "nr")),
        # B A is formed and added; the rest happens in place.
        refresh=Formula("mn"),
    ),
)
"""ReLoRA as published: both factors are trained; every T steps B A is merged, A drawn anew and B
set to 0 (arXiv 2307.05695). With ``choose`` of another kind the factor that is not 0 starts there:
at GaLore's P, say."""


def jagged(schedule: optax.Schedule, *, period: int, warmup: int, start: int = 0) -> optax.Schedule:
    """ReLoRA's schedule: at each refresh the rate falls to 0 and comes back within a few steps.

    At t = start + T, start + 2 T, ... it is multiplied by 0, 1 / k, 2 / k, ... up to 1, k the
    ``warmup``. The optimiser must keep its count at a refresh, :func:`lrdyn.adapters.reset` with
    ``count=False``. A full-rank warm start of so many steps is a run of :data:`lrdyn.FULL` before.

    Args:
        schedule: the rate without the falls.
        period: T.
        warmup: k, at most T.
        start: when the periods begin.

    Example:
        >>> rate = jagged(optax.constant_schedule(1.0), period=4, warmup=2)
        >>> [float(rate(t)) for t in range(8)]
        [1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    """
    checks.instance("schedule", schedule)
    checks.integer("period", period)
    checks.integer("warmup", warmup, 1, period)
    checks.integer("start", start, 0)

    def rate(count: Any) -> Any:
        since = jnp.asarray(count) - start
        # Integers of 32 bits would be divided in float32.
        share = jnp.minimum(jnp.mod(since, period).astype(float) / warmup, 1.0)
        return schedule(count) * jnp.where(since < period, 1.0, share)

    return rate
