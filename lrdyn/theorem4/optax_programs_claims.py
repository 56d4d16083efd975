"""Theorem 4, the implementation: what is read off the programs and the state of optax's GaLore."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key, PyTree

from lrdyn.adapters.maps import choose_projectors
from lrdyn.engine.programs import equations
from lrdyn.engine.statement import Claim, Control, Scenario
from lrdyn.theorem4 import optax_galore_claims
from lrdyn.theorem4.optax_galore_claims import Training


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, rank: int, period: int, optimizer: str
) -> Training:
    """A case of which nothing but the shapes is used."""
    return Training(
        {"first": jnp.ones((rows, cols)), "second": jnp.ones((cols, rows)), "bias": jnp.ones(rows)},
        jnp.ones((cols, cols)), jnp.ones((cols, cols)), jnp.ones(()),
        optimizer, rank, period, steps=(0, period),
    )  # fmt: skip


def predict(case: Training) -> dict[str, Array]:
    """Shapes of projector and moments of each layer, and where SVDs stand in each program."""

    def of(m: int, n: int):
        r = min(case.rank, m, n)
        return [m, r, r, n] if m >= n else [n, r, m, r]

    shapes = [of(*case.weights[name].shape) for name in ("first", "second")]
    return {
        "optax_shapes": jnp.asarray(shapes),
        "optax_svds": jnp.asarray([[0, 2], [0, 2], [2, 0], [0, 2]]),
    }


def measure(case: Training) -> dict[str, Array]:
    """Shapes in the state that optax makes, and SVDs counted in traced programs."""
    moment = optax.contrib.galore(1.0, rank=case.rank)
    state = jax.eval_shape(moment.init, case.weights)[0]
    projectors, moments = state.projector, state.base_optimizer_state.mu
    shapes = [projectors[name].shape + moments[name].shape for name in ("first", "second")]
    return {"optax_shapes": jnp.asarray(shapes), "optax_svds": _svds(case)}


def svds(function: Callable, *arguments: Any) -> tuple[int, int]:
    """Count the SVDs in a traced program: outside of every ``cond``, and within one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def choose(x):
        ...     return jax.lax.cond(x[0, 0] > 0, lambda x: jnp.linalg.svd(x)[0], lambda x: x, x)
        >>> svds(choose, jnp.ones((2, 2))), svds(jax.vmap(choose), jnp.ones((3, 2, 2)))
        ((0, 1), (1, 0))
    """
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    places = [within for one, within in equations(program) if one.primitive.name == "svd"]
    return places.count(False), places.count(True)


@functools.lru_cache
def _svds_of_programs(
    rows: int, cols: int, rank: int, period: int, optimizer: str
) -> tuple[tuple[int, int], ...]:
    """SVDs of one step of a run and of two batches, and of a whole batched run of ours.

    The first batch makes its states itself, the other one has them from ``vmap(init)``.
    """
    # Shapes decide: the same numbers for all seeds and precisions, and tracing takes time.
    sizes = {"rows": rows, "cols": cols, "rank": rank, "period": period, "optimizer": optimizer}
    case = make_case(jax.random.key(0), **sizes)
    batch = jax.tree.map(lambda array: jnp.stack([array, array]), case)

    def init(case: Training):
        return optax_galore_claims.rule_of(case).init(case.weights)

    def update(case: Training, state: PyTree):
        return optax_galore_claims.rule_of(case).update(case.weights, state, case.weights)

    def from_the_start(case: Training):
        return update(case, init(case))

    def ours(case: Training):
        return optax_galore_claims.galore_path(
            case, lambda G: choose_projectors(G, case.rank, "larger")
        )

    return (
        svds(from_the_start, case),
        svds(jax.vmap(from_the_start), batch),
        svds(jax.vmap(update), batch, jax.eval_shape(jax.vmap(init), batch)),
        svds(jax.vmap(ours), batch),
    )


def _svds(case: Training) -> Int[Array, "program 2"]:
    sizes = case.weights["first"].shape
    return jnp.asarray(_svds_of_programs(*sizes, case.rank, case.period, case.optimizer))


def _published_shapes(case: Training) -> dict[str, Array]:
    """Those of GaLore on the smaller side, as published."""

    def seen(weights: PyTree):
        maps = choose_projectors(weights, case.rank, "smaller")
        return {n: (maps[n].basis, maps[n].project(weights[n])) for n in ("first", "second")}

    pairs = jax.eval_shape(seen, case.weights).values()
    return {"optax_shapes": jnp.asarray([basis.shape + moment.shape for basis, moment in pairs])}


def _init_inside(case: Training) -> dict[str, Array]:
    return {"optax_svds": _svds(case)[np.array([0, 1, 1, 3])]}


def _wrong(case: Training) -> dict[str, Array]:
    """P on the smaller side; SVDs that stand within a cond whatever is batched."""
    m, n, r = *case.weights["first"].shape, case.rank
    shapes = [[m, r, r, n], [m, r, n, r]] if m <= n else [[n, r, m, r], [n, r, r, m]]
    return {"optax_shapes": jnp.asarray(shapes), "optax_svds": jnp.asarray([[0, 2]] * 4)}


CLAIMS = (
    Claim("optax_shapes",
          "its state holds P of max(m, n) x r and moments of r x min(m, n) (transposed if m < n)",
          kind="exact", sides="r times the sides against the arrays of optax's state"),
    Claim("optax_svds",
          "its SVDs stand within a cond in a run and in a batch whose states are made inside the "
          "batched function, outside of any cond (at every step) with a state from vmap(init); "
          "those of the nested scan stand within a cond", kind="exact"),
)  # fmt: skip

CONTROLS = (
    Control("smaller_side_claimed", "P claimed on the smaller side", "optax_shapes",
            predict=_wrong),
    Control("no_select", "every SVD claimed to stand within a cond", "optax_svds", predict=_wrong),
    Control("published_shapes", "the state of GaLore as published", "optax_shapes",
            measure=_published_shapes),
    Control("state_made_inside",
            "a batch whose states are made inside, in place of vmap(init)", "optax_svds",
            measure=_init_inside),
)  # fmt: skip

OPTAX_PROGRAMS = Scenario(
    "optax_programs", make_case, predict, measure, CLAIMS, CONTROLS,
    dims={"optax_shapes": ("layer", "size"), "optax_svds": ("program", "place")},
    narrow=optax_galore_claims.one_optimizer, traced=False,
    sides="reasoning on `cond` under `vmap` against SVDs counted in traced programs",
    at=optax_galore_claims.AT,
)  # fmt: skip
