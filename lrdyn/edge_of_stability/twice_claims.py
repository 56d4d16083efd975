"""Two layers at twice the edge: a chaotic run that is known at every step.

At eta = 2/s a balanced mode obeys ``h(rho) = 3 rho - 2 rho^3 / s``, minus the Chebyshev polynomial
T_3 on the scale of sqrt(2 s). So rho_t = sqrt(2 s) (-1)^t cos(3^t theta), errors grow like 3^t, and
the loss ``(s^2 / 2) cos^2(2 3^t theta)`` has the mean s^2/4.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.edge_of_stability import cycles
from lrdyn.edge_of_stability.dense import AlignedNetwork, draw_bases
from lrdyn.verification.stating.claims import RESOLVED, student_p, tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal, Test
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

CIRCLE = 20_011
"""Parts of the circle, a prime: 3^t p modulo it comes back to p after thousands of steps."""
STARTS = 250
"""Runs of scalar layers from uniform angles."""
AVERAGED = 80
"""Steps over which each is averaged."""


class TwiceTheEdge(eqx.Module):
    """A network at eta = 2/s, a start at a known angle, and angles of many more."""

    network: AlignedNetwork
    numerator: Int[Array, ""]
    """p: the angle is 2 pi p over the parts of the circle."""
    angles: Float[Array, "starts"]
    """Angles of runs of scalar layers, uniform on the circle."""

    @property
    def start(self) -> Float[Array, ""]:
        """Singular value of each layer at the start."""
        return jnp.sqrt(2 * self.network.values[0]) * jnp.cos(self._angle)

    @property
    def _angle(self) -> Float[Array, ""]:
        return 2 * jnp.pi * self.numerator / CIRCLE

    @property
    def steps(self) -> int:
        """Steps until tripled rounding has eaten the digits of the precision."""
        rounding = tolerance("identity", self.angles.dtype, size=len(self.network.values))
        return int(math.log(RESOLVED / rounding) / math.log(3))


class TwiceTheory(NamedTuple):
    """The Chebyshev orbit, and what it averages to."""

    chebyshev_orbit: Float[Array, "time"] = ABSENT
    """rho_t, the singular value of each layer, with its sign."""
    growth: Float[Array, "time"] = ABSENT
    """By how much roundings of all steps so far, relative to sqrt(2 s), have grown at most: the sum
    of 3^(t - j) / |sin(3^j theta)|."""
    mean_loss: Float[Array, ""] = ABSENT
    """s^2 / 4."""
    lyapunov_exponent: Float[Array, ""] = ABSENT
    """ln 3 a step."""


class TwiceMeasured(NamedTuple):
    """A descent of dense layers, and many of scalar ones."""

    chebyshev_orbit: Float[Array, "time"] = ABSENT
    """Diagonal entry of the first layer in its bases."""
    losses: Float[Array, "start"] = ABSENT
    """Loss of each run of scalar layers, averaged over its steps."""
    exponents: Float[Array, "start"] = ABSENT
    """Mean of ln |h'(rho)| along each of them, h' differentiated automatically."""


TwiceOutcome = Outcome[TwiceTheory, TwiceMeasured]


def make_case(key: Key[Array, ""], *, dim: int, target_scale: Any) -> TwiceTheEdge:
    """Draw bases and angles."""
    bases_key, angle_key = jax.random.split(key)
    bases, _ = draw_bases(bases_key, dim, 2)
    scale = jnp.asarray(target_scale, bases.dtype)
    shares = jax.random.uniform(angle_key, (1 + STARTS,))
    # Away from both ends of the interval, where an error of the start is worth more than that of
    # an angle: the sine is at least .3.
    numerator = jnp.round((0.05 + 0.4 * shares[0]) * CIRCLE).astype(jnp.int32)
    return TwiceTheEdge(
        AlignedNetwork(bases, jnp.zeros(dim, bases.dtype).at[0].set(scale), 2 / scale),
        numerator,
        2 * jnp.pi * shares[1:],
    )


def predict(case: TwiceTheEdge) -> TwiceTheory:
    """The orbit from angles that are known exactly, its averages from the uniform angle."""
    s, times = case.network.values[0], jnp.arange(case.steps + 1)
    turns = cycles.triple_turns(case.numerator, CIRCLE, times)
    # An error of rho_j is one of its angle over sin(3^j theta), and angles are tripled.
    sines = jnp.abs(jnp.sin(2 * jnp.pi * turns / CIRCLE))
    return TwiceTheory(
        chebyshev_orbit=cycles.orbit_at_twice_the_edge(case.numerator, CIRCLE, s, times),
        growth=3.0**times * jnp.cumsum(1 / (3.0**times * sines)),
        mean_loss=s**2 / 4,
        lyapunov_exponent=jnp.log(jnp.asarray(3.0, s.dtype)),
    )


def measure(case: TwiceTheEdge) -> TwiceMeasured:
    """Descend with two dense layers, and from many starts with two scalar ones."""
    network, s = case.network, case.network.values[0]
    first = jnp.zeros_like(network.values)

    def dense(weights: Any, _: None) -> tuple[Any, Array]:
        return network.step(weights), network.to_frame(weights)[0, 0, 0]

    weights = network.aligned(first.at[0].set(case.start))
    _, orbit = jax.lax.scan(dense, weights, length=case.steps + 1)

    def loss(layers: Float[Array, "2"]) -> Float[Array, ""]:
        return 0.5 * (layers[0] * layers[1] - s) ** 2

    def step(rho: Array) -> Array:
        return rho - network.learning_rate * jax.grad(loss)(jnp.stack([rho, rho]))[0]

    def average(rho: Array) -> tuple[Array, Array]:
        def advance(rho: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            after, slope = jax.jvp(step, (rho,), (jnp.ones_like(rho),))
            return after, (loss(jnp.stack([rho, rho])), jnp.log(jnp.abs(slope)))

        _, (losses, slopes) = jax.lax.scan(advance, rho, length=AVERAGED)
        return jnp.mean(losses), jnp.mean(slopes)

    losses, exponents = jax.vmap(average)(jnp.sqrt(2 * s) * jnp.cos(case.angles))
    return TwiceMeasured(chebyshev_orbit=orbit, losses=losses, exponents=exponents)


def _compare_orbits(outcome: TwiceOutcome) -> Equal:
    theory = outcome.predicted
    # sqrt(2 s) times what has become of one rounding a step, entry by entry.
    size = np.sqrt(2 * outcome.point["target_scale"])
    return Equal(theory.chebyshev_orbit, outcome.measured.chebyshev_orbit, size * theory.growth)


def _leaves_the_interval(outcome: TwiceOutcome) -> str:
    """Why a mean over many runs is not judged: rounding puts a point beyond sqrt(2 s).

    An orbit within sqrt(eps) of a maximum of h, at which h is sqrt(2 s), is rounded past the end of
    the interval with a chance of order 1, and never comes back.
    """
    expected = STARTS * AVERAGED * np.sqrt(np.finfo(outcome.dtype).eps)
    return "rounding leaves the interval" if expected > 0.01 else ""


def _test_mean(expected: Any, draws: Any, other: float) -> Test:
    """Test that independent starts have the mean of theory, and not so many times as much."""
    return Test(student_p(float(expected), draws), student_p(other * float(expected), draws))


TWICE = Scenario[TwiceTheEdge, TwiceTheory, TwiceMeasured](
    "twice_the_edge",
    make_case,
    predict,
    measure,
    theory=TwiceTheory,
    measured=TwiceMeasured,
    claims=(
        Claim(
            "chebyshev_orbit",
            "at eta = 2/s a balanced mode of two layers is rho_t = sqrt(2 s) (-1)^t cos(3^t "
            "theta), rho_0 = sqrt(2 s) cos(theta), as long as 3^t roundings leave digits",
            form=_compare_orbits,
            reads=lambda theory, run: (
                theory.chebyshev_orbit,
                run.chebyshev_orbit,
                theory.growth,
            ),
            steps=1,
        ),
        Claim(
            "mean_loss",
            "at eta = 2/s the loss has the mean s^2/4 over uniform angles",
            kind="statistical",
            form=lambda outcome: _test_mean(
                outcome.predicted.mean_loss, outcome.measured.losses, 1.2
            ),
            reads=lambda theory, run: (theory.mean_loss, run.losses),
            undecided=_leaves_the_interval,
            precision="float64",
            sides="an average over the angle against runs of scalar layers (Student's test)",
        ),
        Claim(
            "lyapunov_exponent",
            "at eta = 2/s errors grow by a factor of 3 a step, on average over uniform angles",
            kind="statistical",
            form=lambda outcome: _test_mean(
                outcome.predicted.lyapunov_exponent,
                outcome.measured.exponents,
                math.log(2) / math.log(3),
            ),
            reads=lambda theory, run: (theory.lyapunov_exponent, run.exponents),
            undecided=_leaves_the_interval,
            precision="float64",
            sides="ln 3 against derivatives along runs of scalar layers (Student's test)",
        ),
    ),
    controls=(
        Control(
            "angle_doubled",
            "2^t in the place of 3^t",
            "chebyshev_orbit",
            predict=lambda case: TwiceTheory(
                chebyshev_orbit=jnp.sqrt(2 * case.network.values[0])
                * jnp.cos(2.0 ** jnp.arange(case.steps + 1) * case._angle)
            ),
        ),
        Control(
            "mean_square_of_loss",
            "the mean of cos^4 in the place of that of cos^2, 3 s^2 / 16",
            "mean_loss",
            predict=lambda case: TwiceTheory(mean_loss=3 * case.network.values[0] ** 2 / 16),
            precision="float64",
        ),
        Control(
            "exponent_of_the_logistic_map",
            "ln 2 in the place of ln 3",
            "lyapunov_exponent",
            predict=lambda case: TwiceTheory(
                lyapunov_exponent=jnp.log(2 * jnp.ones_like(case.network.values[0]))
            ),
            precision="float64",
        ),
    ),
    at={"depth": 2, "edge_ratio": 1.2},
    sides="cosines of angles that are known exactly against a descent of dense layers",
)
