"""The state of ``optax.contrib.galore``: a projector on the larger side, and small moments.

For W of m x n and rank r it holds P of max(m, n) x r, two moments of r x min(m, n) (transposed if
m < n) and two step counters: r (max + 2 min) entries, where GaLore as published holds
r (min + 2 max).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.adapters import memory
from lrdyn.adapters.methods import FULL, GALORE, OPTAX_GALORE
from lrdyn.adapters.projectors import choose_projectors
from lrdyn.galore.path_claims import AT
from lrdyn.galore.releases import running_release, unseen_release
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Claim, Control, Scenario

GALORE_OF_OPTAX = FULL._replace(memory=OPTAX_GALORE)
"""GaLore of optax is an optimiser, by which W is trained as in full training."""


class Layers(NamedTuple):
    """Shapes alone: nothing is drawn and nothing is run."""

    weights: tuple[Float[Array, "m n"], Float[Array, "n m"]]
    """A layer and its transpose: one is tall and one is wide, unless both are square."""
    rank: int


class StateTheory(NamedTuple):
    """Shapes and bytes of the state, from r times the sides."""

    optax_shapes: Int[Array, "layer size"] = ABSENT
    """Rows and columns of P, and of each moment."""
    optax_held: Int[Array, "layer"] = ABSENT
    """Bytes of P, moments and counters."""


class StateMeasured(NamedTuple):
    """Shapes and bytes of the arrays of optax's state."""

    optax_shapes: Int[Array, "layer size"] = ABSENT
    """Rows and columns of P, and of the first moment."""
    optax_held: Int[Array, "layer"] = ABSENT
    """Bytes of all arrays of the state of one layer."""
    optax_release: Int[Array, "release_number"] = ABSENT
    """The release of optax that ran."""


def make_layers(key: Key[Array, ""], *, rows: int, cols: int, rank: int) -> Layers:
    """Take the shapes from the flags."""
    return Layers((jnp.ones((rows, cols)), jnp.ones((cols, rows))), rank)


def predict_state(case: Layers) -> StateTheory:
    """Shapes with P on the larger side, and bytes from the formula of Table 1."""

    def shapes(m: int, n: int) -> list[int]:
        r = min(case.rank, m, n)
        return [m, r, r, n] if m >= n else [n, r, m, r]

    return StateTheory(
        optax_shapes=jnp.asarray([shapes(*jnp.shape(W)) for W in case.weights]),
        optax_held=_bytes_by_formula(OPTAX_GALORE, case),
    )


def _bytes_by_formula(method: memory.Held, case: Layers) -> Int[Array, "layer"]:
    r = case.rank
    held = [
        memory.state_bytes(method, W.shape[0], W.shape[1], r, W.dtype.itemsize)
        for W in case.weights
    ]
    return jnp.asarray(held)


def bytes_of(state: PyTree) -> int:
    """Bytes of the arrays of a state, or of what has their shapes.

    Example:
        >>> bytes_of({"count": jnp.zeros((), jnp.int32), "moment": jnp.zeros(3, jnp.float32)})
        16
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def measure_state(
    case: Layers, optimizer: optax.GradientTransformation | None = None
) -> StateMeasured:
    """Look at the arrays that optax makes, with Adam unless another optimiser is given."""
    # Shapes do not depend on the step size: any will do.
    adam = optax.contrib.galore(1.0, rank=case.rank)
    rule = optax.contrib.galore(1.0, rank=case.rank, base_optimizer=optimizer)
    shapes = []
    for W in case.weights:
        state = jax.eval_shape(adam.init, W)[0]
        # Names of optax's own state: an attribute that is gone is an error here, and no silent
        # pass.
        shapes.append(state.projector.shape + state.base_optimizer_state.mu.shape)
    return StateMeasured(
        optax_shapes=jnp.asarray(shapes),
        optax_held=jnp.asarray([bytes_of(jax.eval_shape(rule.init, W)) for W in case.weights]),
        optax_release=running_release(),
    )


def _published_state(case: Layers) -> StateTheory:
    """P claimed on the smaller side."""

    def shapes(m: int, n: int) -> list[int]:
        r = case.rank
        return [m, r, r, n] if m <= n else [n, r, m, r]

    return StateTheory(
        optax_shapes=jnp.asarray([shapes(*jnp.shape(W)) for W in case.weights]),
        optax_held=_bytes_by_formula(GALORE, case),
    )


def _published_shapes(case: Layers) -> StateMeasured:
    """Shapes of this library's projectors on the smaller side, and of the moments behind them."""

    def arrays(weights: PyTree) -> list[tuple[Array, Array]]:
        projectors = choose_projectors(weights, case.rank, "smaller")
        return [(P.basis, P.project(W)) for P, W in zip(projectors, weights, strict=True)]

    pairs = jax.eval_shape(arrays, case.weights)
    return StateMeasured(
        optax_shapes=jnp.asarray([basis.shape + moment.shape for basis, moment in pairs])
    )


def _momentum_state(case: Layers) -> StateMeasured:
    return measure_state(case, optax.trace(0.9))


STATE = Scenario[Layers, StateTheory, StateMeasured](
    "optax_state",
    make_layers,
    predict_state,
    measure_state,
    theory=StateTheory,
    measured=StateMeasured,
    claims=(
        Claim(
            "optax_shapes",
            "the state of optax.contrib.galore holds P of max(m, n) x r and moments of r x "
            "min(m, n) (transposed if m < n)",
            kind="exact",
            reads=lambda theory, run: (run.optax_release,),
            undecided=lambda outcome: unseen_release(outcome.measured.optax_release),
            sides="r times the sides against the arrays of optax's state",
        ),
        Claim(
            "optax_held",
            "with Adam the state of optax.contrib.galore holds nr + 2mr entries for m <= n, and "
            "two int32, in bytes",
            kind="exact",
            reads=lambda theory, run: (run.optax_release,),
            undecided=lambda outcome: unseen_release(outcome.measured.optax_release),
            carries=False,
            sides="a formula in m, n, r against arrays counted",
        ),
    ),
    controls=(
        Control(
            "smaller_side_claimed",
            "P claimed on the smaller side",
            "optax_shapes",
            predict=_published_state,
        ),
        Control(
            "published_shapes",
            "the state of GaLore as published",
            "optax_shapes",
            measure=_published_shapes,
        ),
        Control(
            "published_state_claimed",
            "mr + 2nr entries claimed, and one int32: GaLore as published",
            "optax_held",
            predict=_published_state,
        ),
        Control(
            "momentum_in_optax",
            "momentum in the place of Adam",
            "optax_held",
            measure=_momentum_state,
        ),
    ),
    traced=False,
    sides="shapes in m, n, r against the arrays of optax's state",
    at=AT,
)
