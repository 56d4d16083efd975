"""Theorem 4 for any linear map: projected descent is the training of an adapter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.descent import recorded_steps
from lrdyn.initialization import gaussians
from lrdyn.projection import GALORE, RELORA, Iterate, Method, low_rank_descent, project
from lrdyn.theorem import Arrays, Claim, Control, Statement, relative_difference

LONGEST = 60
"""Most steps."""

SCALE = 2.5
"""s, of an adapter theta_0 + s S^T Lambda."""

EPSILON = 0.1
"""What Adam adds to the root of its second moment: not tiny, so that it is seen."""

TINY = (1e-2, 1e-3)
"""Parts of it, at which the gap between equal eps is measured."""

Rules = Mapping[str, Callable[[Any], optax.GradientTransformation]]

LINEAR: Rules = {
    "sgd": lambda eps: optax.sgd(0.03),
    "momentum": lambda eps: optax.sgd(0.01, momentum=0.9),
}
"""Updates that are proportional to the gradients."""

ROOTS: Rules = {
    "adam": lambda eps: optax.adam(0.01, eps=eps),
    "rmsprop": lambda eps: optax.rmsprop(0.005, eps=eps**2),
    "adagrad": lambda eps: optax.adagrad(0.05, initial_accumulator_value=eps**2, eps=eps**2),
}
"""Updates that do not change if gradients and eps are multiplied by the same number. Beside squares
of gradients stands the square of eps. Lion is one of them too, but jumps with a sign."""

OTHERS: Rules = {
    "adamw": lambda eps: optax.adamw(0.05, eps=eps, weight_decay=0.1),
    "lamb": lambda eps: optax.lamb(0.05, eps=eps),
}
"""Updates that look at the parameters."""

RULES = {**LINEAR, **ROOTS, **OTHERS}


class Dense(eqx.Module):
    """Any matrix S on a vector of parameters.

    Args:
        matrix: S.

    Example:
        >>> import jax.numpy as jnp
        >>> S = Dense(jnp.array([[1.0, 2.0]]))
        >>> S.project(jnp.ones(2)).tolist(), S.lift(jnp.ones(1)).tolist()
        ([3.0], [1.0, 2.0])
    """

    matrix: Float[Array, "k n"]

    def project(self, gradient: Float[Array, "n"]) -> Float[Array, "k"]:
        """S g."""
        return self.matrix @ gradient

    def lift(self, coordinates: Float[Array, "k"]) -> Float[Array, "n"]:
        """S^T r."""
        return self.matrix.T @ coordinates


class Adapted(eqx.Module):
    """A regression whose loss is not quadratic, and a linear map of its parameters."""

    matrix: Float[Array, "k n"]
    """S."""
    inputs: Float[Array, "examples n"]
    outputs: Float[Array, "examples"]
    start: Float[Array, "n"]
    """theta_0."""
    rules: tuple[str, ...] = eqx.field(static=True)
    steps: tuple[int, ...] = eqx.field(static=True)


def _case(
    key: Key[Array, ""], *, rows: int, cols: int, rank: int, steps: int, **flags: Any
) -> Adapted:
    shapes = [(rank, rows), (cols, rows), (1, cols), (1, rows)]
    matrix, inputs, outputs, start = gaussians(key, shapes)
    return Adapted(
        matrix=matrix / np.sqrt(rank),
        inputs=inputs,
        outputs=3 * outputs[0],
        start=start[0],
        rules=(*LINEAR, *ROOTS),
        steps=tuple(recorded_steps(steps, 7).tolist()),
    )


# Training ------------------------------------------------------------------------------------


def side_by_side(
    rules: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """An optimiser for each entry of a dictionary, which is given pairs: gradients, parameters.

    Args:
        rules: name -> optimiser.

    Returns:
        An optax transformation of ``(gradients, parameters)``, both dictionaries.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> rule = side_by_side({"a": optax.sgd(1.0), "b": optax.sgd(2.0)})
        >>> both = {"a": jnp.ones(()), "b": jnp.ones(())}
        >>> {name: float(u) for name, u in rule.update((both, both), rule.init(both))[0].items()}
        {'a': -1.0, 'b': -2.0}
    """

    def init(params):
        return {name: rule.init(params[name]) for name, rule in rules.items()}

    def update(pairs, state, params=None):
        gradients, values = pairs
        new = {n: rule.update(gradients[n], state[n], values[n]) for n, rule in rules.items()}
        return {n: u for n, (u, _) in new.items()}, {n: s for n, (_, s) in new.items()}

    return optax.GradientTransformation(init, update)


def telling(method: Method, coordinates: Callable[[Iterate], PyTree]) -> Method:
    """A method that hands the parameters, too, to the optimiser: for those that look at them.

    Args:
        method: :data:`lrdyn.GALORE` or :data:`lrdyn.RELORA`.
        coordinates: the parameters, as the optimiser is to see them.

    Returns:
        The method; its optimiser is given pairs, see :func:`side_by_side`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrdyn.projection import Identity
        >>> method = telling(RELORA, lambda iterate: iterate.adapters)
        >>> begun = method.begin(Iterate(jnp.ones(()), Identity(), None))
        >>> [float(x) for x in method.gradient(lambda w: w**2, begun, 1.0)[1]]
        [2.0, 0.0]
    """

    def gradient(loss, iterate, scale):
        value, gradients = method.gradient(loss, iterate, scale)
        return value, (gradients, coordinates(iterate))

    return method._replace(gradient=gradient)


PROJECTED = telling(GALORE, lambda iterate: project(iterate.maps, iterate.weights))
"""theta <- theta + alpha S^T opt(S g; S theta)."""

ADAPTER = telling(RELORA, lambda iterate: iterate.adapters)
"""Lambda <- Lambda + opt(grad in Lambda; Lambda), from 0."""


def _paths(
    method: Method, case: Adapted, settings: list[tuple[float, float]]
) -> Float[Array, "settings rules times n"]:
    """Train with every optimiser, for each scale and part of eps."""

    def loss(every):
        return sum(_huber(case, theta) for theta in every.values())

    def train(scale, part):
        made = {name: RULES[name](EPSILON * part) for name in case.rules}
        run = low_rank_descent(
            method, loss, dict.fromkeys(case.rules, case.start), side_by_side(made),
            lambda gradients: jax.tree.map(lambda _: Dense(case.matrix), gradients),
            period=case.steps[-1], steps=case.steps, scale=scale,
        )  # fmt: skip
        return jnp.stack([run.records[name] for name in case.rules])

    scales, parts = (jnp.asarray(column) for column in zip(*settings, strict=True))
    return jax.vmap(train)(scales, parts)


def _huber(case: Adapted, theta: Float[Array, "n"]) -> Float[Array, ""]:
    return jnp.mean(jnp.sqrt(1 + (case.inputs @ theta - case.outputs) ** 2))


# Theory and measurement ----------------------------------------------------------------------

ADAPTERS = [(1.0, 1.0), (SCALE, 1.0), *((SCALE, part) for part in TINY)]
"""Scale of the adapter, part of eps."""

MATCHED = [(1.0, 1.0), (SCALE**2, 1.0), (SCALE, 1 / SCALE), *((SCALE, part) for part in TINY)]
"""GaLore's alpha and part of eps: without a scale; for linear rules; for roots; with equal eps."""


def _linear(case: Adapted) -> slice:
    return slice(0, len(LINEAR))


def predict(case: Adapted) -> dict[str, Array]:
    """Train adapters by differentiating in Lambda."""
    plain, scaled, *tiny = _paths(ADAPTER, case, ADAPTERS)
    count = len(LINEAR)
    return {
        "duality": plain,
        "scale_linear": scaled[:count],
        "scale_roots": scaled[count:],
        "same_eps": jnp.stack(tiny)[:, count],
        "same_eps_rate": jnp.ones(()),
    }


def measure(case: Adapted, settings: list[tuple[float, float]] = MATCHED) -> dict[str, Array]:
    """Project full gradients and lift the updates."""
    plain, linear, roots, *tiny = _paths(PROJECTED, case, settings)
    count = len(LINEAR)
    return {
        "duality": plain,
        "scale_linear": linear[:count],
        "scale_roots": roots[count:],
        "same_eps": jnp.stack(tiny)[:, count],
        "step": jnp.asarray(case.steps),
    }
