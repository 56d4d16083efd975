"""Compressed Deep LoRA beside the run of full width: Corollary 1 around a pretrained matrix W_0.

From an orthogonal start, with T - W_0 of rank r, the adapters

    f   = W_0 + W_L ... W_1                 of full width d,
    f_C = W_0 + U (W_L ... W_1) V^T         of width 2r, U and V from a gradient and frozen,

are sqrt(d - 2r) prod_l |rho_l| apart in the Frobenius norm at every step of descent, rho_l the
scalars of Theorem 2. With the products at their starts subtracted they are equal.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from lrdyn import adapters
from lrdyn.adapters import DeepFactors
from lrdyn.adapters.methods import compressed_factors, full_width_layers
from lrdyn.core import initialization, linalg
from lrdyn.core.condition import conditions
from lrdyn.core.descent import simulate
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.corollary1.compression import compression_error
from lrdyn.theorem2 import setting
from lrdyn.theorem2.setting import DeepFactorization
from lrdyn.verification.running.evaluate import Once, each_time
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal, Zero, start_of
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

ASPECTS = (1.0, 1.5, 2.0)
"""Rows over columns of the matrices whose distance is shown."""


class AroundPretrained(DeepFactorization):
    """A run of full width around W_0, and what its rectangular relatives are drawn from."""

    pretrained: Float[Array, "d d"] = eqx.field(kw_only=True)
    draw: Key[Array, ""] = eqx.field(kw_only=True)


class CompressedTheory(NamedTuple):
    """Error of Corollary 1, from the scalar recursions alone."""

    deep_lora: Float[Array, "step"] = ABSENT
    """sqrt(d - 2r) prod_l |rho_l|."""
    scale: Float[Array, ""] = ABSENT
    """Largest Frobenius norm of the two changes of W that are subtracted."""
    condition: Float[Array, ""] = ABSENT
    """By how much theory's own run amplifies a small error of its product."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which theory's own run diverges, or -1."""
    centred_condition: Float[Array, ""] = ABSENT
    """The condition with the product at the start subtracted, which is another run."""
    centred_diverges: Int[Array, ""] = ABSENT
    """Step at which that one diverges, or -1."""


class CompressedMeasured(NamedTuple):
    """Differences of the adapters of full width and the compressed ones, both trained."""

    deep_lora: Float[Array, "step"] = ABSENT
    """||f - f_C||_F."""
    deep_lora_centred: Float[Array, "step"] = ABSENT
    """||f - f_C||_F with the products at their starts subtracted."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run of full width diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""
    distance: Float[Array, "aspect"] = ABSENT
    """||f - f_C||_F / ||T - W_0||_F at the end, for W of other shapes: read by no claim."""
    aspect: Float[Array, "aspect"] = ABSENT
    """Rows over columns of these."""


def make_around_pretrained(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    rank: int,
    init_scale: Array,
    learning_rate: Array,
    steps: int,
    target_condition: Any = 2.0,
) -> AroundPretrained:
    """Draw a run that meets the hypotheses; the target T is W_0 + Phi."""
    run_key, weight_key, draw = jax.random.split(key, 3)
    (W,) = initialization.gaussian_layers(weight_key, (dim, dim), jnp.ones(1))
    return setting.make_case(
        run_key,
        dim=dim,
        depth=depth,
        rank=rank,
        init_scale=init_scale,
        init_spread=1.0,
        weight_decay=0.0,
        decay_spread=1.0,
        learning_rate=learning_rate,
        target_scale=1.0,
        target_condition=target_condition,
        steps=steps,
        of=partial(AroundPretrained, pretrained=W, draw=draw),
    )


def predict_compression(case: AroundPretrained) -> CompressedTheory:
    """The error of Corollary 1 from the scalar recursions alone."""
    dim = len(case.target)

    def examine_run(centred: Array) -> tuple[Float[Array, ""], Int[Array, ""]]:
        pair = setting.theory_run(case, end_to_end, centred)
        return conditions(pair, lambda run: run.records), pair.run.diverged_at

    # 0 and 1: nothing subtracted, and the product at the start.
    condition, diverges = jax.vmap(examine_run)(jnp.arange(2, dtype=case.target.dtype))
    return CompressedTheory(
        deep_lora=compression_error(case.bulk, dim, case.rank),
        # The scale of what is subtracted, which goes from the product at the start to the target.
        scale=jnp.maximum(np.sqrt(dim) * jnp.prod(case.scales), linalg.frobenius(case.target)),
        condition=condition[0],
        diverges=diverges[0],
        centred_condition=condition[1],
        centred_diverges=diverges[1],
    )


def train_adapter(
    case: AroundPretrained,
    layers: Weights,
    pretrained: Float[Array, "m n"],
    target: Float[Array, "m n"],
    *,
    compress: bool,
    centred: Any = 0.0,
    frame_rate: float = 0.0,
    inputs: Float[Array, "n examples"] | None = None,
    adam: bool = False,
    quartic: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "step m n"], Int[Array, ""]]:
    """Train one adapter on ||W X - T X||_F^2 / 2 by descent.

    Args:
        case: its rank, rate and steps.
        layers: W_1, ..., W_L at the start.
        pretrained: W_0.
        target: T.
        compress: whether to train the compressed adapter, or that of full width.
        centred: how many times the product at the start is subtracted.
        frame_rate: rate of U and V, in that of the layers; 0 freezes them.
        inputs: X, the identity if it is None.
        adam: Adam in the place of plain descent.
        quartic: adds so much of the fourth powers of the residual's entries to the loss.

    Returns:
        The changes of W at the recorded steps, and when the run diverged.
    """
    net = {"W": pretrained}
    factors = tuple(reversed(layers))
    if compress:
        # The gradient at W_0 with X X^T = I: its singular vectors are those of T - W_0.
        factors, _ = compressed_factors(layers, pretrained - target, 2 * case.rank)
    # A multiple of the start is subtracted: one factor carries the multiple.
    start = (jnp.asarray(centred, target.dtype) * factors[0], *factors[1:])
    adapter = DeepFactors(factors, start=start, framed=compress)
    trained, fixed = adapters.split({"W": adapter})
    eta = case.learning_rate
    # A first step of Adam moves every entry by its rate, however small the gradient.
    rule = optax.adam(eta / 10) if adam else optax.sgd(eta)
    if compress:
        frame = optax.sgd(frame_rate * eta) if frame_rate else optax.set_to_zero()
        labels = adapters.labels(trained)
        rule = optax.multi_transform({"inner": rule, "frame": frame}, labels)
    X = jnp.eye(target.shape[1], dtype=target.dtype) if inputs is None else inputs

    def loss(trained: dict) -> Array:
        W = adapters.apply(net, adapters.joined(trained, fixed))["W"]
        residual = W @ X - target @ X
        squares = 0.5 * jnp.sum(residual**2)
        return squares if quartic is None else squares + quartic * jnp.sum(residual**4)

    def record(trained: dict) -> Array:
        return adapters.merge(net, adapters.joined(trained, fixed))["W"] - pretrained

    run = simulate(loss, trained, rule, case.times, record=record)
    return run.records, run.diverged_at


Trained = tuple[Float[Array, "centred step d d"], Int[Array, "centred"]]
"""Changes of W, and when the runs diverged."""


def _train_both(case: AroundPretrained, *, compress: bool, **how: Any) -> Trained:
    """Changes of W, from the product at the start and with that subtracted, in one program."""
    target = case.pretrained + case.target
    train = partial(train_adapter, case, case.weights, case.pretrained, target)
    return jax.vmap(lambda centred: train(compress=compress, centred=centred, **how))(jnp.arange(2))


def _train_full(case: AroundPretrained) -> Trained:
    return _train_both(case, compress=False)


def _train_compressed(
    case: AroundPretrained,
) -> tuple[Float[Array, "centred step d d"], Int[Array, "centred"]]:
    return _train_both(case, compress=True)


def _distance_between(
    full: Float[Array, "centred step d d"], small: Float[Array, "centred step d d"]
) -> CompressedMeasured:
    plain, centred = linalg.frobenius(full - small)
    return CompressedMeasured(deep_lora=plain, deep_lora_centred=centred)


def measure_compression(case: AroundPretrained, once: Once = each_time) -> CompressedMeasured:
    """Train the adapters of full width and the compressed ones, and subtract."""
    (full, diverged_at), (small, _) = once(_train_full, case), once(_train_compressed, case)
    return _distance_between(full, small)._replace(
        diverged_at=diverged_at[0], step=jnp.asarray(case.steps)
    )


def _rectangular_distances(
    case: AroundPretrained, aspects: tuple[float, ...]
) -> Float[Array, "aspect step"]:
    """The distance over ||T - W_0|| at each step, for W of aspect * d rows, aspect >= 1.

    All have as many rows as the highest: rows of zeros below a matrix change nothing, and the
    problems of all aspects are one program.
    """
    n, depth = len(case.target), len(case.weights)
    keys, values = jax.random.split(case.draw), initialization.spaced_singular_values(case.rank)
    heights = [round(aspect * n) for aspect in aspects]

    def draw(m: int) -> tuple[Weights, Array]:
        # Semi-orthogonal where W is not square, which the theorem does not cover.
        layers = full_width_layers(keys[0], (m, n), depth, 1.0)
        *inner, last = (W * scale for W, scale in zip(layers, case.scales, strict=True))
        target = initialization.low_rank_target(keys[1], (m, n), values)
        below = ((0, max(heights) - m), (0, 0))
        return (*inner, jnp.pad(last, below)), jnp.pad(target, below)

    def distance(layers: Weights, target: Array) -> Float[Array, "step"]:
        train = partial(train_adapter, case, layers, jnp.zeros_like(target), target)
        (full, _), (small, _) = train(compress=False), train(compress=True)
        return linalg.frobenius(full - small) / linalg.frobenius(target)

    every = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(draw, heights))
    return jax.vmap(distance)(*every)


def distances(
    case: AroundPretrained, theory: CompressedTheory, run: CompressedMeasured
) -> CompressedMeasured:
    """Distances of the two adapters at the end, for W of other shapes: read by no claim."""
    return CompressedMeasured(
        distance=_rectangular_distances(case, ASPECTS)[:, -1],
        aspect=jnp.asarray(ASPECTS, case.target.dtype),
    )


# Controls ----------------------------------------------------------------------------------------


def _other_losses(case: AroundPretrained) -> CompressedMeasured:
    """Distances under two other losses: with raw inputs, and with fourth powers of the residual.

    Both in one program: the controls of either claim share it.
    """
    eye = jnp.eye(len(case.target), dtype=case.target.dtype)
    # X X^T is near the identity in the mean, but far from it in each draw.
    raw = jax.random.normal(case.draw, eye.shape, eye.dtype) / np.sqrt(len(eye))

    def train_with(inputs: Array, quartic: Array) -> CompressedMeasured:
        train = partial(_train_both, case, inputs=inputs, quartic=quartic)
        return _distance_between(train(compress=False)[0], train(compress=True)[0])

    return jax.vmap(train_with)(jnp.stack([raw, eye]), jnp.arange(2, dtype=eye.dtype))


def _raw_inputs(case: AroundPretrained, once: Once = each_time) -> CompressedMeasured:
    return jax.tree.map(lambda both: both[0], once(_other_losses, case))


def _fourth_powers(case: AroundPretrained, once: Once = each_time) -> CompressedMeasured:
    return jax.tree.map(lambda both: both[1], once(_other_losses, case))


def _adam(case: AroundPretrained) -> CompressedMeasured:
    train = partial(_train_both, case, adam=True)
    return _distance_between(train(compress=False)[0], train(compress=True)[0])


def _trained_frame(case: AroundPretrained, once: Once = each_time) -> CompressedMeasured:
    return _distance_between(
        once(_train_full, case)[0], _train_both(case, compress=True, frame_rate=1.0)[0]
    )


def _one_side(case: AroundPretrained, once: Once = each_time) -> CompressedMeasured:
    # Reversed: the plain run of one adapter beside the centred one of the other.
    return _distance_between(once(_train_full, case)[0], once(_train_compressed, case)[0][::-1])


def _half_as_high_again(case: AroundPretrained) -> CompressedMeasured:
    distance = _rectangular_distances(case, ASPECTS[1:2])[0] * linalg.frobenius(case.target)
    return CompressedMeasured(deep_lora=distance)


def _controls(
    claim: str, prefix: str
) -> tuple[Control[Any, CompressedTheory, CompressedMeasured], ...]:
    """Controls of either claim: departures from the hypotheses, and other runs."""
    moves = (
        ("gaussian_start", "Gaussian start", setting.move_toward_gaussian, "orthogonal_start"),
        ("rank_above_r", "T - W_0 of rank above r", setting.add_tail, "rank_at_most_r"),
    )
    runs = (
        ("raw_inputs", "inputs that are not whitened", _raw_inputs),
        ("fourth_powers", "a loss with fourth powers of the residual", _fourth_powers),
        ("adam", "Adam in the place of plain descent", _adam),
        ("trained_frame", "U and V trained at the same rate", _trained_frame),
        ("one_side_centred", "the start subtracted on one side alone", _one_side),
    )
    return (
        *(
            Control(prefix + name, text, claim, case=move, breaks=hypothesis)
            for name, text, move, hypothesis in moves
        ),
        *(Control(prefix + name, text, claim, measure=run) for name, text, run in runs),
    )


def _compare_distance(
    outcome: Outcome[CompressedTheory, CompressedMeasured],
) -> tuple[Equal, Equal]:
    """Compare the distance with its formula, told apart from 0 and from that of the starts."""
    theory, run = outcome.predicted, outcome.measured
    from_none = Equal(theory.deep_lora, run.deep_lora, theory.scale)
    return from_none, from_none._replace(null=start_of(theory.deep_lora))


COMPRESSED = Scenario[AroundPretrained, CompressedTheory, CompressedMeasured](
    "compressed",
    make_around_pretrained,
    predict_compression,
    measure_compression,
    theory=CompressedTheory,
    measured=CompressedMeasured,
    claims=(
        Claim(
            "deep_lora",
            "if T - W_0 has rank r and the start is orthogonal, f = W_0 + W_L ... W_1 and f_C = "
            "W_0 + U (W_L ... W_1) V^T of width 2 r, U and V from a gradient and frozen, have "
            "the distance ||f - f_C||_F = sqrt(d - 2 r) prod_l |rho_l| at every step of descent",
            form=_compare_distance,
            reads=lambda theory, run: (theory.deep_lora, run.deep_lora, theory.scale),
            condition=lambda theory: theory.condition,
        ),
        Claim(
            "deep_lora_centred",
            "with the products at the start subtracted on both sides, Deep LoRA of full width "
            "and its compressed form of width 2 r are equal at every step: the bulk does not "
            "move",
            # The bulk of the centred product has no gradient. Were it to move as that of the plain
            # one does, the distance of that one would be left.
            form=lambda outcome: Zero(
                outcome.measured.deep_lora_centred,
                scale=outcome.predicted.scale,
                alternative=outcome.predicted.deep_lora,
            ),
            reads=lambda theory, run: (
                run.deep_lora_centred,
                theory.deep_lora,
                theory.scale,
                theory.centred_diverges,
            ),
            undecided=lambda outcome: "diverges" if outcome.predicted.centred_diverges >= 0 else "",
            condition=lambda theory: theory.centred_condition,
        ),
    ),
    controls=(
        *_controls("deep_lora", "full_"),
        *_controls("deep_lora_centred", "centred_"),
        Control(
            "full_not_square",
            "W of half as many rows again",
            "deep_lora",
            measure=_half_as_high_again,
        ),
    ),
    hypotheses={name: setting.HYPOTHESES[name] for name in ("orthogonal_start", "rank_at_most_r")},
    compare=distances,
    steps="steps",
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    at={
        "dim": 12,
        "depth": 3,
        "rank": 2,
        "init_scale": 1.0,
        "learning_rate": 0.1,
        "steps": 50,
    },
    sides="rho, a scalar recursion, against the difference of two adapters that are trained",
)
