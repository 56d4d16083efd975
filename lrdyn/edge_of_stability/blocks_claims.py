"""Theorem 2 beyond the edge: its blocks are exact at any step size; rounding does not break them.

The block form of Theorem 2 is proven for any eta. What is measured is that rounding across the
blocks is not amplified, where inside of them vectors may be lost and runs may be chaotic.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.spectra import half_of_the_digits
from lrdyn.edge_of_stability import cycles
from lrdyn.theorem2 import setting, subspace
from lrdyn.theorem2.setting import DeepFactorization
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Form, Zero
from lrdyn.verification.stating.statement import Claim, Outcome, Scenario

RANK = 2
"""r: the blocks are 4 x 4."""
SMALLEST_DIM = 2 * RANK + 2
"""Width below which there is no bulk of two dimensions: with one alone the bulk would be a multiple
of the identity whatever happened."""


FARTHEST = 1.5
"""eta / eta_c up to which rounding was seen to stay in its block, at every depth. At 1.9 and 2
there are bounded runs, of three and of four layers, in which it crosses."""
TWINS = 8
"""Reduced runs from targets that are half of the digits apart."""


class BlocksTheory(NamedTuple):
    """What moves: the reduced run."""

    reduced_moves: Float[Array, ""] = ABSENT
    """Largest change of an entry of the reduced layers."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which the reduced run diverges, or -1."""


class BlocksMeasured(NamedTuple):
    """Dense layers in the frame of Theorem 2."""

    off_block: Float[Array, "block_step layer"] = ABSENT
    """Largest entry outside of both blocks."""
    bulk_deviation: Float[Array, "block_step layer"] = ABSENT
    """Largest entry of the bulk less rho_l I."""
    largest: Float[Array, ""] = ABSENT
    """Largest singular value of a layer, over the run."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""


BlocksOutcome = Outcome[BlocksTheory, BlocksMeasured]


def make_case(
    key: Key[Array, ""], *, dim: int, depth: int, edge_ratio: Any, target_scale: Any, steps: int
) -> DeepFactorization:
    """Draw an orthogonal start and a target of singular values s_1 and s_1 / 2."""
    return setting.make_case(
        key,
        dim=max(dim, SMALLEST_DIM),
        depth=depth,
        rank=RANK,
        target_scale=target_scale,
        init_scale=0.4 * target_scale ** (1 / depth),
        init_spread=1.0,
        weight_decay=0.0,
        decay_spread=1.0,
        learning_rate=edge_ratio * cycles.edge(depth, jnp.asarray(target_scale)),
        steps=steps,
    )


def predict(case: DeepFactorization) -> BlocksTheory:
    """The reduced run, of 2r dimensions."""
    target = case.reduced_target
    # Where vectors inside the block are lost the run can be chaotic, and it is an accident whether
    # it diverges: one that does so of several that are hardly apart leaves the case out.
    patterns = jnp.cos(jnp.arange(TWINS * target.size) ** 2).reshape(TWINS, *target.shape)
    near = half_of_the_digits(target.dtype) * jnp.max(jnp.abs(target)) * patterns
    run = jax.vmap(lambda move: subspace.reduced_dynamics(target + move, *case.rates, case.times))(
        near.at[0].set(0.0)
    )
    layers = jnp.stack([records[0] for records in run.records])
    return BlocksTheory(
        reduced_moves=jnp.max(jnp.abs(layers - layers[:, :1])), diverges=jnp.max(run.diverged_at)
    )


def measure(case: DeepFactorization) -> BlocksMeasured:
    """The dense run, in the frame."""
    run = setting.dense_run(case, case.frame)
    return BlocksMeasured(
        off_block=run.off_block,
        bulk_deviation=run.bulk_deviation,
        largest=jnp.max(run.singular_values),
        diverged_at=run.diverged_at,
    )


def _stays_zero(outcome: BlocksOutcome) -> tuple[Form, ...]:
    # Of blocks that were none what moves would be seen in all entries.
    run, moves = outcome.measured, outcome.predicted.reduced_moves
    return tuple(Zero(zero, run.largest, moves) for zero in (run.off_block, run.bulk_deviation))


def _near_enough(outcome: BlocksOutcome) -> bool:
    """Whether the step is of the range that was measured."""
    return outcome.point["edge_ratio"] <= FARTHEST


def _wide_enough(settings: dict[str, Any]) -> dict[str, Any]:
    """One run for all widths without a bulk of two dimensions."""
    widths = {max(dim, SMALLEST_DIM) for dim in settings["dim"]}
    return settings | {"dim": tuple(sorted(widths))}


BLOCKS = Scenario[DeepFactorization, BlocksTheory, BlocksMeasured](
    "blocks",
    make_case,
    predict,
    measure,
    theory=BlocksTheory,
    measured=BlocksMeasured,
    claims=(
        Claim(
            "blocks_beyond_the_edge",
            "the blocks of Theorem 2 are exact at any step size; measured: up to 1.5 times the "
            "edge rounding across them is not amplified, wherever the reduced run stays bounded",
            form=_stays_zero,
            applies=_near_enough,
            reads=lambda theory, run: (
                run.off_block,
                run.bulk_deviation,
                run.largest,
                theory.reduced_moves,
            ),
            sides="0 against dense runs in the frame of Theorem 2",
        ),
    ),
    controls=tuple(
        # So small a tail that the largest singular value stays below that of 2 eta_c.
        dataclasses.replace(control, amount=amount, amounts=(), precision="float64")
        for control in setting.departures("blocks_beyond_the_edge", prefix="edge_")
        for breaks, amount in (("orthogonal_start", 1.0), ("rank_at_most_r", 0.1))
        if control.breaks == breaks
    ),
    hypotheses={name: setting.HYPOTHESES[name] for name in ("orthogonal_start", "rank_at_most_r")},
    narrow=_wide_enough,
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    steps="steps",
    at={"dim": 8, "depth": 3, "edge_ratio": 1.2, "steps": 100},
    sides="0 against dense runs in the frame of Theorem 2",
)
