"""How much a run amplifies small errors of its data: its condition, by two twins."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.spectra import half_of_the_digits


@checked
def relative_response(
    first: Float[Array, "*shape"],
    second: Float[Array, "*shape"],
    scale: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Largest difference of two arrays over a scale, inside a traced program.

    The scale is their largest entry if none is given. The response is 0 for two arrays of zeros and
    NaN if any entry is not finite.

    Args:
        first: the one array.
        second: the other, of the same shape.
        scale: what their difference is divided by.

    Example:
        >>> float(relative_response(jnp.array([1.0, 4.0]), jnp.array([1.0, 3.0])))
        0.25
    """
    if scale is None:
        scale = jnp.maximum(jnp.max(jnp.abs(first)), jnp.max(jnp.abs(second)))
    difference = jnp.abs(first - second)
    # XLA's maximum over vectors of NaN can be -inf, which would pass for a small residual.
    lost = ~jnp.all(jnp.isfinite(difference))
    largest = jnp.where(lost, jnp.nan, jnp.max(difference))
    return jnp.where(largest == 0, 0.0, largest / jnp.where(scale == 0, 1.0, scale))


class Twins(NamedTuple):
    """A run and its two disturbed copies: what :func:`twins` returns."""

    run: PyTree
    """What the run returned."""
    far: PyTree
    """What it returned for the disturbed data."""
    near: PyTree
    """What it returned for data that were disturbed less."""
    disturbances: tuple[float, float]
    """How far the data of both were moved, relative to their largest entries."""
    rounded: PyTree = None
    """What it returned for data that were moved by one rounding, if that was asked for."""


@checked
def twins(run: Callable[[PyTree], PyTree], data: PyTree, *, rounded: bool = False) -> Twins:
    """Run, and run twice more from data that are a little wrong.

    Args:
        run: maps the data to a PyTree of arrays, for example a target and a start to the weights at
            the recorded steps.
        data: PyTree; a twin gets data whose every array of floating-point numbers is disturbed by
            machine epsilon to the power 1/2 (far) or 3/4 (near), relative to its largest entry, and
            each in a direction of its own: one alone may lie across what grows.
        rounded: whether there is a third one, whose data are disturbed by machine epsilon.

    Example:
        >>> runs = twins(lambda x: 2 * x, jnp.ones(3))
        >>> apart = [float(jnp.max(twin - runs.run)) for twin in (runs.far, runs.near)]
        >>> [bool(a <= 2.1 * d) for a, d in zip(apart, runs.disturbances, strict=True)]
        [True, True]
    """
    arrays, rest = eqx.partition(data, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    if not leaves:
        checks.refuse("data", type(data).__name__, "an array of floating-point numbers in it")
    # eps^(1/2) and eps^(3/4). Two sizes tell amplification from chaos: a linear response grows with
    # its disturbance, while in a bounded chaotic run both end equally far away.
    far = half_of_the_digits(leaves[0].dtype)
    near = far**1.5
    sizes = [far, near, *([far**2] if rounded else [])]

    lanes = _disturb(leaves, sizes)
    results = jax.vmap(lambda twin: run(eqx.combine(twin, rest)))(structure.unflatten(lanes))
    each, whole = jax.tree.flatten(results)
    parts = list(zip(*map(jnp.unstack, each), strict=True)) or [()] * (1 + len(sizes))
    first, second, third, *fourth = map(whole.unflatten, parts)
    return Twins(first, second, third, (far, near), fourth[0] if rounded else None)


def _disturb(leaves: Sequence[Array], sizes: Sequence[float]) -> list[Array]:
    """Each array and, behind it, copies of it that are moved by so much of its largest entry."""
    alike: dict[Any, list[int]] = {}
    for number, leaf in enumerate(leaves):
        alike.setdefault((leaf.shape, leaf.dtype), []).append(number)
    lanes = {}
    for (shape, dtype), numbers in alike.items():  # together, for all of one shape take one program
        arrays = jnp.stack([leaves[number] for number in numbers]).reshape(len(numbers), -1)
        place, far = jnp.arange(arrays.shape[1], dtype=dtype), jnp.asarray(sizes, dtype)
        # Fixed patterns without symmetries, so that no invariant of the run can hide an error. They
        # are cosines of squares, not random numbers: a condition is the same in every run.
        squares = (place[None] + np.arange(len(sizes), dtype=dtype)[:, None]) ** 2
        patterns = jnp.cos(np.asarray(numbers, dtype)[:, None, None] + squares[None])
        moves = (jnp.max(jnp.abs(arrays), axis=1)[:, None] * far[None])[:, :, None] * patterns
        both = jnp.concatenate([arrays[:, None], arrays[:, None] + moves], axis=1)
        lanes |= zip(numbers, jnp.unstack(both.reshape(len(numbers), -1, *shape)), strict=True)
    return [lanes[number] for number in range(len(leaves))]


@checked
def perturb_updates(
    optimizer: optax.GradientTransformation, push: tuple[Float[Array, "..."], ...], steps: int
) -> optax.GradientTransformation:
    """An optimiser each of whose updates has a relative error, of size ``push - 1`` in total.

    It is relative to the largest weight and has two parts, each of which adds up to ``push - 1``
    over the steps of a run. 1 / steps of it is the same at every step. The other, over sqrt(steps),
    is multiplied by the cosine of a square, (t + place of the entry)^2: it has no period and adds
    like a random walk. Without this a twin would take the steps of another smooth map, and a run
    along an orbit that has become unstable stays at the orbit of that map as long as it stayed at
    its own, while any noise ends the delay.

    Args:
        optimizer: of the run, whose parameters are a tuple of arrays.
        push: an array of ones for each of them, which a twin disturbs.
        steps: of the run.

    Example:
        >>> rule = perturb_updates(optax.sgd(1.0), (jnp.full(2, 1.5),), 10)
        >>> weights = (jnp.array([4.0, 2.0]),)
        >>> rule.update((jnp.zeros(2),), rule.init(weights), weights)[0][0].round(3).tolist()
        [0.832, 0.542]
    """
    checks.integer("steps", steps)

    def begin(params: Any) -> Array:
        return jnp.zeros((), jnp.int32)

    def move(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        size = jnp.max(jnp.stack([jnp.max(jnp.abs(W)) for W in params]))

        @cache  # of one step: layers of one shape share it
        def share(shape: tuple[int, ...], dtype: Any) -> Array:
            place = state + jnp.arange(math.prod(shape)).reshape(shape)
            noise = jnp.cos(place.astype(dtype) ** 2)
            # The constant part adds up like steps, the irregular one like sqrt(steps): these are
            # the two terms of the tolerance of an identity.
            return 1 / steps + noise / steps**0.5

        def perturb(U: Array, p: Array) -> Array:
            return U + size * (p - 1) * share(p.shape, p.dtype)

        return jax.tree.map(perturb, updates, push), state + 1

    return optax.chain(optimizer, optax.GradientTransformation(begin, move))


@checked
def conditions(
    runs: Twins,
    look: Callable[[PyTree], PyTree] = lambda result: result,
    *,
    roundings: float | None = None,
) -> PyTree:
    """Condition of each array of a run: the factor by which a small error of the data is amplified.

    Args:
        runs: the run and its twins.
        look: maps what the run returned to the arrays whose condition is asked for.
        roundings: by how many roundings a run may differ that amplifies none. Where the twin that
            was disturbed by one differs by more, the condition is at least by how many times more:
            a step that loses digits does so in every run, and twins that are further apart than
            these digits do not show it.

    Returns:
        In place of each array of floating-point numbers the response of a twin over its
        disturbance, the larger of both and at least 1. All responses are relative to one scale, the
        largest entry of all these arrays. If one of them is no longer small (above 10 %), or not
        finite, the twin is no small error of anything, and all conditions are infinite. So they are
        where one does not grow with the disturbance, at least like its square root: such a run
        is bounded and chaotic, and all errors end at the size of what it wanders in, be that as
        small as it may.

    Example:
        >>> runs = twins(lambda x: {"far": 50 * (x - 1), "near": x}, jnp.ones(3))
        >>> {name: 10 < float(c) < 60 for name, c in conditions(runs).items()}
        {'far': True, 'near': False}
    """
    run, far, near = (eqx.filter(look(side), eqx.is_inexact_array) for side in runs[:3])
    leaves, structure = jax.tree.flatten(run)
    pairs = list(map(jnp.stack, zip(*map(jax.tree.leaves, (far, near)), strict=True)))
    scale = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in (*leaves, *pairs)]))
    # One scale for all arrays: a small one would be divided by its own size, of which rounding is
    # a large part. Axes: array, far or near.
    of_twins = jax.vmap(relative_response, (None, 0, None))
    responses = jnp.stack(
        [of_twins(leaf, pair, scale) for leaf, pair in zip(leaves, pairs, strict=True)]
    )
    # Divided by their disturbances both are equal for a linear response. A run is never better than
    # its data, hence 1 at least.
    coarse, fine = jnp.maximum(1.0, responses / jnp.asarray(runs.disturbances)[None]).T
    # fine / coarse exceeds this where a response grows more slowly than the square root of its
    # disturbance, the mark of chaos; above 10 % a response is no longer that to a small error.
    most = (runs.disturbances[0] / runs.disturbances[1]) ** 0.5
    known = jnp.all((responses[:, 0] < 0.1) & (fine <= most * coarse))
    largest = jnp.maximum(coarse, fine)
    if roundings is not None:
        if runs.rounded is None:
            checks.refuse("runs", "no rounded twin", "those of twins(..., rounded=True)")
        last = jax.tree.leaves(eqx.filter(look(runs.rounded), eqx.is_inexact_array))
        apart = [relative_response(a, b, scale) for a, b in zip(leaves, last, strict=True)]
        lost = jnp.stack(apart) / (roundings * jnp.finfo(scale.dtype).eps)
        # A comparison with NaN is false: a twin that is lost leaves nothing known.
        known, largest = known & jnp.all(lost < jnp.inf), jnp.maximum(largest, lost)
    return structure.unflatten(jnp.where(known, largest, jnp.inf))


def with_condition(
    run: Callable[[PyTree], PyTree], data: PyTree, *, roundings: float | None = None
) -> tuple[PyTree, PyTree]:
    """Run, and measure by how much the run amplifies a small error of its data.

    Beyond the edge of stability gradient descent can be bounded and chaotic: a theorem that is
    exact in exact arithmetic then says nothing about the last digits of a computed run.

    Args:
        run: maps the data to a PyTree of arrays, see :func:`twins`.
        data: PyTree with arrays of floating-point numbers.
        roundings: by how many roundings a run may differ that amplifies none; a third twin shows
            the digits that the run itself loses, see :func:`conditions`.

    Returns:
        What ``run`` returns, and the condition of each of its arrays, see :func:`conditions`.

    Example:
        >>> result, condition = with_condition(lambda x: 1 + 100 * (x - 1), jnp.ones(3))
        >>> result.tolist(), 50 < float(condition) < 150
        ([1.0, 1.0, 1.0], True)
    """
    runs = twins(run, data, rounded=roundings is not None)
    return runs.run, conditions(runs, roundings=roundings)
