"""The example, the flags, and the loop of Algorithm 1 with a sign of noise at each step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from lrdyn.adapters.algorithm_1 import Choice, Method, algorithm1
from lrdyn.adapters.projectors import Side
from lrdyn.core import linalg
from lrdyn.core.initialization import gaussians, orthogonal
from lrdyn.core.spectra import half_of_the_digits, singular_values
from lrdyn.galore_noise import stall
from lrdyn.shared_flags import PERIOD, RANK, SIDE, SIDES, STEPS
from lrdyn.theorem4.problems import OPTIMIZER
from lrdyn.verification.stating.flags import Domain, Flag, at_least, between, one_of
from lrdyn.verification.stating.hypotheses import Extent, above, at_most

POLICIES = ("reset", "keep")
FLAGS = (
    Flag("dim", (8,), at_least(3), int, "n", "width of X", (6, 10), shapes=True, most=12),
    RANK.at((2,), paper=(1, 2, 3), help="columns of P, and rank of the noise"),
    PERIOD.at((10,), paper=(1, 10, 25), symbol="T_0", most=25),
    SIDE.at(("left",), paper=SIDES),
    OPTIMIZER,
    Flag(
        "state",
        ("reset",),
        one_of(*POLICIES),
        str,
        help="what becomes of the optimiser's state at a refresh",
        paper=POLICIES,
        shapes=True,
    ),
    Flag(
        "learning_rate",
        (0.02,),
        Domain(1e-4, 0.5),
        symbol="eta",
        help="step size",
        paper=(0.01, 0.03, 0.1),
        # Larger steps stop sooner, before rounding has added up.
        float32=(0.05, 0.1, 0.2),
    ),
    Flag(
        "noise",
        (1.0,),
        between(1e-3, 1e3),
        symbol="sigma",
        help="size of the noise; the target's singular values are half of it to four times it",
        paper=(0.1, 1.0),
    ),
    STEPS.at((400,), paper=(1200,), float32=(200,)),
)
SMALL = {"optimizer": ("sgd", "adam"), "noise": (0.7,)}
"""Settings of a run of seconds."""
SMALLEST, LARGEST = 0.5, 4.0
"""Singular values of D over sigma: some are below it from the start."""


class NoisyExample(eqx.Module):
    """f, its noise, and the signs of a run."""

    target: Float[Array, "k k"]
    """D."""
    start: Float[Array, "n n"]
    """X at the start: 0."""
    signs: Float[Array, "steps"]
    """zeta_t, 1 or -1."""
    noise: Float[Array, ""]
    """sigma."""
    learning_rate: Float[Array, ""]
    rank: int = eqx.field(static=True)
    period: int = eqx.field(static=True)
    side: Side = eqx.field(static=True)
    optimizer: str = eqx.field(static=True, default="sgd")
    state: str = eqx.field(static=True, default="reset")

    @property
    def values(self) -> Float[Array, "k"]:
        """s_i at the start X = 0: the singular values of D."""
        return singular_values(self.target)

    @property
    def refreshes(self) -> int:
        """Refreshes of the run, all of whose periods are whole."""
        return len(self.signs) // self.period

    @property
    def schedule(self) -> stall.Schedule:
        """The values of SGD over the run."""
        return stall.schedule(
            self.values, self.noise, self.learning_rate, self.period, self.rank, self.refreshes
        )

    def cost(self, X: Float[Array, "n n"], sign: Any) -> Float[Array, ""]:
        """``f(X) + zeta sigma <C, X>``, whose gradient is the stochastic one."""
        k = len(self.target)
        true = 0.5 * jnp.sum(X[:k] ** 2) + jnp.sum(self.target * X[:k, :k])
        return true + sign * self.noise * jnp.trace(X[k:, k:])

    def true_values(self, X: Float[Array, "n n"]) -> Float[Array, "k"]:
        """s_i at X: the singular values of X_TT + D."""
        k = len(self.target)
        return singular_values(X[:k, :k] + self.target)


def make_case(
    key: Key[Array, ""],
    *,
    dim: int,
    rank: int,
    period: int,
    side: Side,
    learning_rate: Any,
    noise: Any,
    steps: int,
    optimizer: str = "sgd",
    state: str = "reset",
) -> NoisyExample:
    """Draw D and the signs; values are spread evenly in their logarithm, at random places."""
    k = dim - rank
    left, right, places, signs = gaussians(key, [(k, k), (k, k), (1, k), (1, steps)])
    noise = jnp.asarray(noise, left.dtype)
    spread = jnp.log(LARGEST / SMALLEST)
    # The normal distribution function of a normal number is even between 0 and 1.
    values = noise * SMALLEST * jnp.exp(spread * jax.scipy.stats.norm.cdf(places[0]))
    whole = max(1, steps // period) * period
    return NoisyExample(
        target=(orthogonal(left) * values[None]) @ orthogonal(right),
        start=jnp.zeros((dim, dim), left.dtype),
        signs=jnp.where(signs[0, :whole] < 0, -1.0, 1.0).astype(left.dtype),
        noise=noise,
        learning_rate=jnp.asarray(learning_rate, left.dtype),
        rank=rank,
        period=period,
        side=side,
        optimizer=optimizer,
        state=state,
    )


def check(point: Mapping[str, Any]) -> None:
    """Refuse an example without true rows, and a run without a period."""
    if point["rank"] >= point["dim"]:
        raise ValueError(f"--rank: got {point['rank']} with --dim {point['dim']}, wanted less")
    if point["period"] > point["steps"]:
        raise ValueError(
            f"--steps: got {point['steps']} with --period {point['period']}, wanted at least that"
        )


def numbers(point: Mapping[str, Any]) -> int:
    """Numbers of a case: X, its gradient and its factors."""
    return 8 * point["dim"] ** 2


class NoisyRun(NamedTuple):
    """A run of Algorithm 1 on the example."""

    weights: Float[Array, "refresh n n"]
    """X at each refresh, before it, and at the end."""
    moved: Float[Array, "steps"]
    """Largest change of an entry of the true rows in each step."""


def run(
    case: NoisyExample,
    method: Method,
    optimizer: optax.GradientTransformation | None = None,
    choose: Choice | None = None,
) -> NoisyRun:
    """Algorithm 1 with one sign of noise a step; a refresh sees that of its step."""
    rule = algorithm1(
        method,
        optax.sgd(case.learning_rate) if optimizer is None else optimizer,
        rank=case.rank,
        period=case.period,
        side=case.side,
        state=case.state,  # pyright: ignore[reportArgumentType]
        choose=choose,
    )
    k = len(case.target)

    def cost_at(sign: Array) -> Callable:
        return lambda X: (case.cost(X, sign), None)

    def step(state: Any, sign: Array) -> tuple[Any, Array]:
        before = rule.weights(state)
        _, _, state = rule.step(cost_at(sign), state)
        return state, jnp.max(jnp.abs((rule.weights(state) - before)[:k]))

    def one_period(state: Any, place: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        number, signs = place
        before = rule.weights(state)
        assert rule.refresh is not None
        key = jax.random.fold_in(jax.random.key(0), number)
        state = rule.refresh(key, cost_at(signs[0]), state)
        state, moved = jax.lax.scan(step, state, signs)
        return state, (before, moved)

    signs = case.signs.reshape(-1, case.period)
    places = jnp.arange(len(signs)), signs
    end, (weights, moved) = jax.lax.scan(one_period, rule.begin(case.start), places)
    return NoisyRun(jnp.concatenate([weights, rule.weights(end)[None]]), moved.ravel())


def seen_to_move(case: NoisyExample, moved: Float[Array, "steps"]) -> Array:
    """Whether each step moved the true rows: by more than half of the digits of a step.

    A step that takes a value above sigma moves some entry by eta sigma (1 - eta)^{T_0} / n or more,
    at the end of a period; where that is below the threshold nothing is claimed of the last step.
    """
    return moved > half_of_the_digits(moved.dtype) * case.learning_rate * case.noise


def last_move(case: NoisyExample, moved: Float[Array, "steps"]) -> Array:
    """The last step that moved them, or -1."""
    return jnp.max(jnp.where(seen_to_move(case, moved), jnp.arange(len(moved)), -1))


@above("distance of the values from another choice, over sigma")
def separated(case: NoisyExample) -> Extent:
    """No value near sigma, or near the next one where that is left out.

    From half of the digits on rounding turns vectors by so little that its square, by which the
    values change, is rounding again.
    """
    return Extent(jnp.min(case.schedule.gap), half_of_the_digits(case.target.dtype))


@at_most("largest | |zeta_t| - 1 |")
def noise_of_one_size(case: NoisyExample) -> Extent:
    """Noise that is sometimes small lets the rows move again."""
    return Extent(jnp.max(jnp.abs(jnp.abs(case.signs) - 1)), 0.0)


@at_most("largest entry of |Y| at the start, over sigma")
def nothing_beside(case: NoisyExample) -> Extent:
    """Y = 0: the stochastic gradient is block diagonal."""
    k = len(case.target)
    return Extent(jnp.max(jnp.abs(case.start[:k, k:])) / case.noise, 0.0)


HYPOTHESES = {"noise_of_one_size": noise_of_one_size, "nothing_beside": nothing_beside}


def break_noise(key: Key[Array, ""], case: NoisyExample, amount: Any) -> NoisyExample:
    """Between signs and Gaussian numbers."""
    draws = gaussians(key, [(1, len(case.signs))])[0][0]
    return dataclasses.replace(case, signs=case.signs + amount * (draws - case.signs))


def break_start(key: Key[Array, ""], case: NoisyExample, amount: Any) -> NoisyExample:
    """A Gaussian Y of this size, over sigma."""
    k = len(case.target)
    Y = amount * case.noise * gaussians(key, [(k, case.rank)])[0]
    return dataclasses.replace(case, start=case.start.at[:k, k:].set(Y))


def one_at_a_time(function: Callable[[NoisyExample], Any], case: NoisyExample) -> Any:
    """Run one case at a time on a CPU: there a batched SVD over several devices can deadlock."""
    arrays, rest = eqx.partition(case, eqx.is_array)
    return linalg.sequential_on_cpu(lambda arrays: function(eqx.combine(arrays, rest)))(arrays)
