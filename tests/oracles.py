"""Problems, independent oracles for them, and the one way in which the tests compare.

The oracles are plain NumPy loops over float64 copies of the data, with gradients written by hand.
They share no code with the library.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import xarray as xr

import lrdyn as lr
from lrdyn.verification.judging.judging import residuals
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.statement import Experiment, Scenario
from tests.jobs import claims_job

# Comparing ------------------------------------------------------------------------------------


def double(tree: Any) -> Any:
    """Float64 NumPy copies; a list is an array, other containers are trees."""
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64), tree, is_leaf=lambda x: isinstance(x, list)
    )


def largest(tree: Any) -> float:
    """Largest absolute entry of all leaves; NumPy's max keeps a NaN, where Python's would not."""
    return float(np.max([np.max(np.abs(x)) for x in jax.tree.leaves(double(tree))]))


def residual(actual: Any, expected: Any, scale: float | None = None) -> float:
    """Largest difference over all leaves, relative to ``scale`` (default: the largest entry)."""
    actual, expected = double((actual, expected))
    chex.assert_trees_all_equal_shapes(actual, expected)
    rest = jax.tree.map(np.subtract, actual, expected)
    return largest(rest) / (largest(expected) if scale is None else scale)


def assert_close(
    actual: Any, expected: Any, *, steps: int = 1, size: int = 1, scale: float | None = None
) -> None:
    """An identity holds, at the tolerance of the precision in which ``actual`` was computed."""
    dtype = jnp.result_type(*jax.tree.leaves(actual))
    limit = tolerance("identity", dtype, steps=steps, size=size)
    actual, expected = double((actual, expected))
    limit *= largest(expected) if scale is None else scale
    chex.assert_tree_all_finite(actual)
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=limit, strict=True)


def assert_zero(actual: Any, **how: Any) -> None:
    """Everything in ``actual`` vanishes beside ``scale``."""
    assert_close(actual, jax.tree.map(np.zeros_like, actual), **how)


def assert_apart(actual: Any, expected: Any, scale: float | None = None) -> None:
    """An identity fails beyond any doubt: half of all digits differ."""
    dtype = jnp.result_type(*jax.tree.leaves(actual))
    assert residual(actual, expected, scale) > np.sqrt(np.finfo(dtype).eps)


class Compiled:
    """The functions of a module, each compiled once: integers and shapes are static.

    Arguments may be NumPy's: in float32 they are rounded on the way in.
    """

    STATIC = (int, tuple[int, int], tuple[int, ...], Sequence[int])

    def __init__(self, module: ModuleType):
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)
        parameters = inspect.signature(function).parameters.values()
        static = [p.name for p in parameters if p.annotation in self.STATIC]
        compiled = jax.jit(function, static_argnames=static)
        setattr(self, name, compiled)
        return compiled


def refuses(*cases: tuple[Callable[[], Any], str]) -> Callable[..., None]:
    """Make a test: each call raises a ValueError that says so."""

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(("call", "message"), cases)
    def test(call, message):
        with pytest.raises(ValueError, match=message):
            call()

    return test


def judged(
    theorem: Experiment, scenario: Scenario, flags: Any, seeds: Any = (0,), dtype: str = "float64"
) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Results of a scenario, and how each claim was judged; a swept flag may have many values."""
    settings = {flag.name: flag.default("quick") for flag in theorem.flags} | flags
    swept = [flag.name for flag in theorem.flags if flag.swept]
    settings |= {name: np.atleast_1d(settings[name]).tolist() for name in swept}
    job = claims_job(theorem, scenario, settings, seeds, "/", dtype, optimize=False)
    (found,) = job.run().values()
    return found, {c.id: residuals(c, scenario, found, dtype) for c in scenario.claims}


# Problems -------------------------------------------------------------------------------------


def normal(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Standard Gaussian arrays of numbers that float32 holds exactly."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32).astype(np.float64) for shape in shapes]


def rotated(seed: int, shape: tuple[int, int], values: Any) -> np.ndarray:
    """Matrix with these singular values."""
    left, right = (np.linalg.qr(G)[0] for G in normal(seed, *((n, len(values)) for n in shape)))
    return (left * np.asarray(values)) @ right.T


def masks_of(groups: Sequence[int], keep_prob: float) -> Iterator[tuple[np.ndarray, float]]:
    """Every mask that keeps whole groups of entries, with its probability, one by one."""
    for bits in itertools.product((0, 1), repeat=max(groups) + 1):
        chance = math.prod(keep_prob if bit else 1 - keep_prob for bit in bits)
        yield np.array([bits[group] for group in groups], float), chance


class Problem(NamedTuple):
    weights: lr.core.Weights
    target: jax.Array
    scales: jax.Array


def problem(
    seed: int = 0,
    *,
    dim: int = 9,
    rank: int = 2,
    depth: int = 3,
    scale: float = 0.8,
    spread: float = 1.0,
) -> Problem:
    """Deep factorisation from orthogonal layers with a target of exactly this rank."""
    return _problem(seed, scale, spread, dim, rank, depth)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _problem(seed, scale, spread, dim, rank, depth):
    weights_key, target_key = jax.random.split(jax.random.key(seed))
    scales = lr.core.layer_scales(scale, spread, depth)
    weights = lr.orthogonal_layers(weights_key, (dim,) * (depth + 1), scales)
    target = lr.low_rank_target(target_key, (dim, dim), lr.spaced_singular_values(rank))
    return Problem(weights, target, scales)


class Classification(NamedTuple):
    weights: lr.core.Weights
    inputs: jax.Array
    outputs: jax.Array
    labels: jax.Array
    scales: jax.Array


@partial(jax.jit, static_argnames=("classes", "per_class", "depth"))
def classification(
    seed: int = 0, *, classes: int = 2, per_class: int = 5, depth: int = 3, scale: float = 0.5
) -> Classification:
    """Whitened data in as many dimensions as examples, orthogonal layers, one-hot outputs."""
    weights_key, inputs_key = jax.random.split(jax.random.key(seed))
    dim = classes * per_class
    scales = jnp.full(depth, scale)
    weights = lr.orthogonal_layers(weights_key, (dim,) * depth + (classes,), scales)
    (inputs,) = lr.orthogonal_layers(inputs_key, (dim, dim), jnp.ones(1))
    labels = jnp.repeat(jnp.arange(classes), per_class)
    outputs = (jnp.arange(classes)[:, None] == labels[None]).astype(inputs.dtype)
    return Classification(weights, inputs, outputs, labels, scales)


# Gradient descent -----------------------------------------------------------------------------

Matrices = list[np.ndarray] | tuple[np.ndarray, ...]
Slope = Callable[[np.ndarray], np.ndarray]
"""Derivative of a loss with respect to the product of the layers."""


def product(weights: Matrices, size: int) -> np.ndarray:
    """W_L ... W_1, or the identity of this size if there are no layers."""
    result = np.eye(size)
    for W in weights:
        result = W @ result
    return result


def sum_slope(target: np.ndarray) -> Slope:
    return lambda P: P - target


def mean_slope(target: np.ndarray) -> Slope:
    return lambda P: (P - target) / target.size


def masked_slope(target: np.ndarray, mask: np.ndarray) -> Slope:
    return lambda P: mask * mask * (P - target)


def regression_slope(inputs: np.ndarray, outputs: np.ndarray) -> Slope:
    return lambda P: (P @ inputs - outputs) @ inputs.T


def gradients(weights: Matrices, slope: Slope) -> list[np.ndarray]:
    """(W_L ... W_{l+1})^T slope (W_{l-1} ... W_1)^T for each l."""
    outer = slope(product(weights, weights[0].shape[1]))
    result = []
    for l, W in enumerate(weights):
        after = product(weights[l + 1 :], W.shape[0])
        before = product(weights[:l], weights[0].shape[1])
        result.append(after.T @ outer @ before.T)
    return result


def descend(weights: Any, slope: Slope, eta: float, decays: Any, steps: Any) -> list[np.ndarray]:
    """W_l <- (1 - eta lambda_l) W_l - eta grad_l; one array of layer by time for each layer."""
    weights, seen = [np.array(W, np.float64) for W in weights], []
    for _ in range(max(steps) + 1):
        seen.append(weights)
        moves = zip(weights, gradients(weights, slope), decays, strict=True)
        weights = [(1 - eta * decay) * W - eta * G for W, G, decay in moves]
    return [np.stack(layer)[sorted(steps)] for layer in zip(*seen, strict=True)]


class Optimizer:
    """Textbook rules: gradient descent, heavy ball (0.9), Adam (0.9, 0.999), RMSprop, Adagrad."""

    def __init__(self, kind: str, eta: float, eps: float = 1e-8):
        self.kind, self.eta, self.eps, self.count = kind, eta, eps, 0
        self.first: Any = 0.0
        self.second: Any = eps**2 if kind == "adagrad" else 0.0

    def update(self, g: np.ndarray) -> np.ndarray:
        self.count += 1
        if self.kind == "sgd":
            return -self.eta * g
        if self.kind == "momentum":
            self.first = 0.9 * self.first + g
            return -self.eta * self.first
        if self.kind == "rmsprop":
            self.second = 0.9 * self.second + 0.1 * g * g
            return -self.eta * g / np.sqrt(self.second + self.eps**2)
        if self.kind == "adagrad":
            self.second = self.second + g * g
            return -self.eta * g / np.sqrt(self.second + self.eps**2)
        self.first = 0.9 * self.first + (1 - 0.9) * g
        self.second = 0.999 * self.second + (1 - 0.999) * g * g
        corrected = np.sqrt(self.second / (1 - 0.999**self.count)) + self.eps
        return -self.eta * self.first / (1 - 0.9**self.count) / corrected


def optimise(kind: str, x: np.ndarray, gradient: Slope, eta: float, steps: int) -> np.ndarray:
    x, rule = np.array(x, np.float64), Optimizer(kind, eta)
    for _ in range(steps):
        x = x + rule.update(gradient(x))
    return x


# Theorem 2 ------------------------------------------------------------------------------------


def still_directions(weights: Any, target: Any) -> np.ndarray:
    """Orthonormal basis of N(Psi) meet N(Psi^T W_1(0)), Psi = (W_L ... W_2)(0)^T Phi."""
    weights, target = double(weights), double(target)
    psi = product(weights[1:], len(target)).T @ target
    both = np.concatenate([psi, psi.T @ weights[0]])
    largest = np.linalg.norm(both, 2)
    # The gap in the spectrum is wide: data of size 1 against the round-off of float32 inputs.
    return scipy.linalg.null_space(both, rcond=1e-4) if largest else np.eye(len(target))


def rho(scales: Any, eta: float, decays: Any, steps: Any, power: float = 2.0) -> np.ndarray:
    """The recursion of the bulk in Python scalars; ``power`` 2 is the theorem's."""
    values, seen = [float(s) for s in scales], []
    for _ in range(max(steps) + 1):
        seen.append(values)
        others = [math.prod(values[:l] + values[l + 1 :]) for l in range(len(values))]
        values = [
            value * (1 - eta * decay - eta * abs(other) ** power)
            for value, decay, other in zip(values, decays, others, strict=True)
        ]
    return np.array(seen)[sorted(steps)]


# Collapse -------------------------------------------------------------------------------------


def collapse(features: np.ndarray, labels: np.ndarray) -> float:
    """tr Sigma_W / tr Sigma_B by loops over classes and examples."""
    groups = [features.T[labels == c] for c in np.unique(labels)]
    means = [np.mean(group, axis=0) for group in groups]
    overall = np.mean(means, axis=0)
    both = zip(groups, means, strict=True)
    within = np.mean([np.sum((x - mean) ** 2) for group, mean in both for x in group])
    between = np.mean([np.sum((mean - overall) ** 2) for mean in means])
    return float(within / between)
