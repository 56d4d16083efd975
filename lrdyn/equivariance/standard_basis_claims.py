"""Entry-wise optimisers keep Theorem 2's blocks where its frame is the standard basis.

The proof for optimisers that do not see the basis uses signed permutations of the bulk alone. So an
optimiser that commutes with those keeps the blocks if all matrices of the frame are signed
permutations. If it works entry by entry, the corner of 2r + 1 is a run of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import initialization
from lrdyn.core.condition import perturb_updates, twins
from lrdyn.core.descent import Trajectory, simulate
from lrdyn.core.factorization import Weights, factorization_loss
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.equivariance.trial import change_bases, signed_permutations
from lrdyn.theorem2 import setting
from lrdyn.theorem2.setting import weights_claim, zero_claim
from lrdyn.theorem2.subspace import reduced_start
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.hypotheses import Extent, at_most
from lrdyn.verification.stating.statement import Control, Outcome, Scenario

ENTRYWISE: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "lion": optax.lion,
    "rmsprop": optax.rmsprop,
    "adagrad": optax.adagrad,
}
"""Optimisers each of whose entries sees its own gradients alone."""
COUPLED: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "lamb": optax.lamb,
    "adafactor": lambda rate: optax.adafactor(rate, min_dim_size_to_factor=2),
}
"""Optimisers that take sums over entries besides: those of a layer, of its rows and columns."""
COORDINATEWISE = ENTRYWISE | COUPLED
"""Word of ``--coordinatewise`` -> optimiser that commutes with signed permutations."""


class CornerRun(Recorded):
    """Layers ``eps_l V_l V_{l-1}^T`` and the target ``V_L blkdiag(corner, 0) V_0^T``."""

    bases: tuple[Float[Array, "d d"], ...]
    """V_0, ..., V_L: the frame."""
    scales: Float[Array, "depth"]
    """eps_l."""
    corner: Float[Array, "s s"]
    """Phi~, s = 2r."""
    learning_rate: Float[Array, ""]
    coordinatewise: str = eqx.field(static=True)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser, as optax has it."""
        return COORDINATEWISE[self.coordinatewise](self.learning_rate)


class CornerTheory(NamedTuple):
    """A run of 2r and one dimension more."""

    corner: Float[Array, "step layer row column"] = ABSENT
    """Layers of the same optimiser on blkdiag(Phi~, 0) of width 2r + 1, from eps_l I."""
    first_slope: Float[Array, ""] = ABSENT
    """Smallest entry of the bulk's first gradients, prod_{k != l} eps_k prod_k eps_k over l."""
    corner_condition: Float[Array, ""] = ABSENT
    """By how much that run amplifies a small error."""
    corner_compared: Int[Array, ""] = ABSENT
    """Last step that is compared."""


class CornerMeasured(NamedTuple):
    """Dense layers in the frame."""

    corner: Float[Array, "step layer row column"] = ABSENT
    """First 2r + 1 rows and columns of V_l^T W_l V_{l-1}."""
    corner_off_block: Float[Array, "step layer"] = ABSENT
    """Largest entry of its two off-diagonal blocks."""
    corner_bulk: Float[Array, "step layer"] = ABSENT
    """Largest entry of its bulk block less its first entry times I."""
    corner_scale: Float[Array, "step"] = ABSENT
    """Largest entry of all layers."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def make_corner(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    rank: int,
    init_scale: Any,
    init_spread: Any,
    learning_rate: Any,
    target_scale: Any,
    target_condition: Any,
    steps: int,
    coordinatewise: str,
) -> CornerRun:
    """Draw a corner of rank r, and a frame of signed permutations."""
    of_bases, of_corner = jax.random.split(key)
    values = setting.target_values(rank, target_scale, target_condition)
    return CornerRun(
        steps=recorded_steps(steps, at_most=26),
        bases=signed_permutations(of_bases, depth + 1, dim),
        scales=initialization.layer_scales(init_scale, init_spread, depth),
        corner=initialization.low_rank_target(of_corner, (2 * rank, 2 * rank), values),
        learning_rate=jnp.asarray(learning_rate, values.dtype),
        coordinatewise=coordinatewise,
    )


def predict_corner(case: CornerRun) -> CornerTheory:
    """Run the corner by itself, with one dimension of the bulk, and twins of it.

    An optimiser that takes sums over entries rounds those of the bulk differently: its condition is
    that of all dimensions of the bulk, each with an error of its own.
    """
    moving, dim = len(case.corner), len(case.bases[0])
    width = moving + 1 if case.coordinatewise in ENTRYWISE else dim

    def run(data: tuple[Array, Weights, Weights]) -> Trajectory:
        goal, start, push = data
        rule = perturb_updates(case.optimizer, push, case.steps[-1])
        return simulate(
            lambda W: factorization_loss(W, goal), start, rule, case.times, record=jnp.stack
        )

    start = reduced_start(case.scales, width)
    inner = jnp.pad(jnp.ones_like(case.corner), (0, width - moving))
    target = jnp.pad(case.corner, (0, width - moving))
    # A twin has the zeros of the run: with others an entry-wise rule has another path at once.
    shape = jnp.where(jnp.arange(width) < moving, inner, jnp.eye(width))

    def within(data: tuple[Array, Weights, Weights]) -> Trajectory:
        goal, start, push = data
        kept = tuple(jnp.where(shape > 0, W, 0.0) for W in start)
        pushes = tuple(jnp.where(shape > 0, p, 1.0) for p in push)
        return run((goal * inner, kept, pushes))

    runs = twins(within, (target, start, jax.tree.map(jnp.ones_like, start)))
    last, condition = setting.windowed_conditions(case.times, dim, runs, lambda records: records)
    return CornerTheory(
        corner=runs.run.records[:, :, : moving + 1, : moving + 1],
        first_slope=jnp.min(jnp.prod(case.scales) ** 2 / case.scales),
        corner_condition=condition,
        corner_compared=last,
    )


def measure_corner(case: CornerRun) -> CornerMeasured:
    """Train the dense layers, and look at them in the frame."""
    size, dim = len(case.corner), len(case.bases[0])
    still = tuple(eps * jnp.eye(dim, dtype=case.corner.dtype) for eps in case.scales)
    back = tuple(V.T for V in case.bases)
    target = case.bases[-1] @ jnp.pad(case.corner, (0, dim - size)) @ back[0]

    def record(layers: Weights) -> dict[str, Array]:
        turned = jnp.stack(change_bases(layers, case.bases))
        bulk = turned[:, size:, size:]
        first = bulk[:, :1, :1] * jnp.eye(dim - size)[None]
        off = jnp.maximum(
            jnp.max(jnp.abs(turned[:, :size, size:]), axis=(1, 2)),
            jnp.max(jnp.abs(turned[:, size:, :size]), axis=(1, 2)),
        )
        return {
            "corner": turned[:, : size + 1, : size + 1],
            "corner_off_block": off,
            "corner_bulk": jnp.max(jnp.abs(bulk - first), axis=(1, 2)),
            "corner_scale": jnp.max(jnp.abs(turned)),
        }

    run = simulate(
        lambda layers: factorization_loss(layers, target),
        change_bases(still, back),
        case.optimizer,
        case.times,
        record=record,
    )
    return CornerMeasured(**run.records, step=jnp.asarray(case.steps))


@at_most("largest distance of an entry of the frame from -1, 0 and 1")
def frame_in_coordinates(case: CornerRun) -> Extent:
    """Check that the frame is the standard basis, up to order and signs."""
    entries = jnp.abs(jnp.stack(case.bases))
    apart = jnp.max(jnp.minimum(entries, jnp.abs(entries - 1)))
    return Extent(apart, tolerance("identity", entries.dtype, size=len(case.bases[0])))


def turn_frame(key: Key[Array, ""], case: CornerRun, amount: Array) -> CornerRun:
    """Turn every matrix of the frame, from signed permutations (0) to random bases."""
    dim = len(case.bases[0])
    noise = initialization.gaussians(key, [(dim, dim)] * len(case.bases))
    # A part of a Gaussian matrix, made orthogonal: far from the permutation for an amount of 1.
    turned = (
        initialization.orthogonal(V + amount * G) for V, G in zip(case.bases, noise, strict=True)
    )
    return dataclasses.replace(case, bases=tuple(turned))


def _entrywise(outcome: Outcome[CornerTheory, CornerMeasured]) -> bool:
    return outcome.point["coordinatewise"] in ENTRYWISE


def _last(theory: Any) -> Any:
    return theory.corner_compared


def _scale(run: Any) -> Any:
    return run.corner_scale


def _condition(theory: Any) -> Any:
    return theory.corner_condition


def _unknown(outcome: Outcome[CornerTheory, CornerMeasured]) -> str:
    """Why the path is not known, although theory's twins stay together."""
    # A rule that looks at signs sees what arithmetic makes of 0.
    if float(outcome.predicted.first_slope) < np.finfo(outcome.dtype).tiny:
        return "a gradient is below the smallest number"
    # Twins are half of the digits apart: of a path that is shorter they do not see what becomes.
    path = outcome.predicted.corner
    if setting.largest_change(path) < half_of_the_digits(outcome.dtype) * np.max(np.abs(path)):
        return "the weights move by less than half of their digits"
    return _closed(outcome)


_closed = setting.closed_window(_last)

# 0 exactly to where the frame is as far from the standard basis as any.
AMOUNTS = (1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0)

STANDARD_BASIS = Scenario[CornerRun, CornerTheory, CornerMeasured](
    "standard_basis",
    make_corner,
    predict_corner,
    measure_corner,
    theory=CornerTheory,
    measured=CornerMeasured,
    claims=(
        zero_claim(
            "corner_off_block",
            "under an optimiser that commutes with signed permutations, if the frame of Theorem 2 "
            "is the standard basis up to order and signs, the off-diagonal blocks of V_l^T W_l(t) "
            "V_{l-1} are 0 for all l and t",
            lambda run: run.corner_off_block,
            moves=lambda theory: theory.corner,
            scale=_scale,
            condition=_condition,
            last=_last,
        ),
        zero_claim(
            "corner_bulk",
            "under an optimiser that commutes with signed permutations, in a frame of the standard "
            "basis, the bulk block is a multiple of the identity for all l and t",
            lambda run: run.corner_bulk,
            moves=lambda theory: theory.corner,
            scale=_scale,
            condition=_condition,
            last=_last,
        ),
        dataclasses.replace(
            weights_claim(
                "corner",
                "under an optimiser that works entry by entry, in a frame of the standard basis, "
                "the moving block and the bulk's scalar are the same optimiser's run on "
                "blkdiag(Phi~, 0) of width 2r + 1 from eps_l I",
                scale=_scale,
                condition=_condition,
                last=_last,
            ),
            applies=_entrywise,
            undecided=_unknown,
            reads=lambda theory, run: (
                *(theory.corner, run.corner, run.corner_scale, theory.first_slope),
                *setting.window_fields(theory, run, _last),
            ),
        ),
    ),
    controls=(
        *(
            Control(
                f"random_basis_{claim}",
                "the same problem in a random basis",
                claim,
                case=turn_frame,
                breaks="frame_in_coordinates",
                amount=1.0,
                amounts=AMOUNTS,
                amount_label="||noise on the frame||, entry by entry",
            )
            for claim in ("corner_off_block", "corner_bulk", "corner")
        ),
    ),
    hypotheses={"frame_in_coordinates": frame_in_coordinates},
    steps="steps",
    at=setting.AT | {"learning_rate": 1e-2, "coordinatewise": "adam"},
    sides="layers of 2r + 1 against dense layers, the same optimiser of optax on both",
)
