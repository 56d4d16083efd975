"""Compressed Deep LoRA beside the run of full width: Corollary 1 around a pretrained matrix."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from lrdyn import adapters
from lrdyn.adapters import DeepFactors
from lrdyn.adapters.methods import compressed_factors, full_width_layers
from lrdyn.core import initialization, linalg
from lrdyn.core.condition import conditions
from lrdyn.core.descent import simulate
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.corollary1.compression import compression_error
from lrdyn.engine.claims import on_scale
from lrdyn.engine.statement import Arrays, Claim, Control, Scenario
from lrdyn.theorem2 import setting
from lrdyn.theorem2.setting import DeepFactorization

ASPECTS = (1.0, 1.5, 2.0)
"""Rows over columns of the matrices whose distance is shown."""


class Adapted(DeepFactorization):
    """A run of full width around W_0, and what its rectangular relatives are drawn from."""

    pretrained: Float[Array, "d d"] = eqx.field(kw_only=True)
    draw: Key[Array, ""] = eqx.field(kw_only=True)


def make_case(
    key: Key[Array, ""], *, dim: int, depth: int, rank: int, init_scale: Array,
    learning_rate: Array, steps: int,
) -> Adapted:  # fmt: skip
    """Draw a run that meets the hypotheses; the target T is W_0 + Phi."""
    run_key, weight_key, draw = jax.random.split(key, 3)
    run = setting.make_case(
        run_key, dim=dim, depth=depth, rank=rank, init_scale=init_scale, init_spread=1.0,
        weight_decay=0.0, decay_spread=1.0, learning_rate=learning_rate, target_scale=1.0,
        steps=steps,
    )  # fmt: skip
    (W,) = initialization.gaussian_layers(weight_key, (dim, dim), jnp.ones(1))
    return Adapted(**vars(run), pretrained=W, draw=draw)


def predict(case: Adapted) -> dict[str, Array]:
    """The error of Corollary 1 from the scalar recursions alone."""
    dim = len(case.target)
    pair = setting.theory_run(case, end_to_end)
    return {
        "deep_lora": compression_error(case.bulk, dim, case.rank),
        # The bulk of the centred product is at its start and has no gradient.
        "deep_lora_centred": jnp.zeros(len(case.steps), case.bulk.dtype),
        # Of what is subtracted: it goes from the product at the start to the target.
        "scale": jnp.maximum(np.sqrt(dim) * jnp.prod(case.scales), linalg.frobenius(case.target)),
        "condition": conditions(pair, lambda run: run.records),
        "diverges": pair.run.diverged_at,
    }


def _trained(
    case: Adapted, layers: Weights, pretrained: Array, target: Array, *, compress: bool,
    centred: bool, frame_rate: float = 0.0, inputs: Array | None = None, adam: bool = False,
    quartic: float = 0.0,
) -> tuple[Array, Array]:  # fmt: skip
    """The changes of W at the recorded steps, and when the run diverged.

    ``quartic`` adds so much of the fourth powers of the residual's entries to the loss.
    """
    net, goal = {"W": pretrained}, {"W": target}
    factors = tuple(reversed(layers))
    if compress:
        factors, _ = compressed_factors(layers, pretrained - target, 2 * case.rank)
    adapter = DeepFactors(factors, start=factors if centred else None, framed=compress)
    trained, fixed = adapters.split({"W": adapter})
    eta = case.learning_rate
    rule = optax.adam(eta / 10) if adam else optax.sgd(eta)
    if compress:
        frame = optax.sgd(frame_rate * eta) if frame_rate else optax.set_to_zero()
        labels = adapters.labels(trained)
        rule = optax.multi_transform({"inner": rule, "frame": frame}, labels)

    def loss(trained: dict) -> Array:
        W = adapters.apply(net, adapters.joined(trained, fixed))["W"]
        X = jnp.eye(target.shape[1], dtype=target.dtype) if inputs is None else inputs
        residual = W @ X - goal["W"] @ X
        return 0.5 * jnp.sum(residual**2) + quartic * jnp.sum(residual**4)

    def record(trained: dict) -> Array:
        return adapters.merge(net, adapters.joined(trained, fixed))["W"] - pretrained

    run = simulate(loss, trained, rule, case.times, record=record)
    return run.records, run.diverged_at


def _both(case: Adapted, *, one_side: bool = False, centred: bool, **how: Any):
    """The distance of the two runs, and when the full one diverged."""
    shared = {name: how[name] for name in ("inputs", "adam", "quartic") if name in how}
    of = partial(_trained, case, case.weights, case.pretrained, case.pretrained + case.target)
    full, lost = of(compress=False, centred=centred, **shared)
    small, _ = of(compress=True, centred=centred != one_side, **how)
    return linalg.frobenius(full - small), lost


def measure(case: Adapted, **how: Any) -> dict[str, Array]:
    """Train the adapters of full width and the compressed ones, and subtract."""
    plain, lost = _both(case, centred=False, **how)
    centred, _ = _both(case, centred=True, **how)
    return {
        "deep_lora": plain,
        "deep_lora_centred": centred,
        "diverged_at": lost,
        "step": jnp.asarray(case.steps),
    }


def distances(case: Adapted, predicted: Arrays, measured: Arrays) -> dict[str, Array]:
    """Between the two at the end, for W of other shapes: shown, and read by no claim."""
    return {
        "distance": jnp.stack([_rectangular(case, aspect)[-1] for aspect in ASPECTS]),
        "aspect": jnp.asarray(ASPECTS, case.target.dtype),
    }


def _rectangular(case: Adapted, aspect: float) -> Float[Array, "step"]:
    """The distance over ||T - W_0|| at each step, for W of aspect * d rows."""
    n, depth = len(case.target), len(case.weights)
    m = round(aspect * n)
    one, two = jax.random.split(case.draw)
    layers = tuple(
        W * s for W, s in zip(full_width_layers(one, (m, n), depth, 1.0), case.scales, strict=True)
    )
    values = initialization.spaced_singular_values(case.rank)
    target = initialization.low_rank_target(two, (m, n), values)
    of = partial(_trained, case, layers, jnp.zeros_like(target), target, centred=False)
    (full, _), (small, _) = of(compress=False), of(compress=True)
    return linalg.frobenius(full - small) / linalg.frobenius(target)


def _claim(name: str, statement: str) -> Claim:
    return Claim(
        name, statement, residual=on_scale(name, lambda one: one.predicted["scale"]),
        reads=(name, "scale"), condition="condition",
    )  # fmt: skip


CLAIMS = (
    _claim("deep_lora",
           "W_0 + W_L ... W_1 and W_0 + U (W_L ... W_1) V^T of width 2 r, U and V from a gradient "
           "and frozen: ||f - f_C||_F = sqrt(d - 2 r) prod_l |rho_l| at every step of descent from "
           "an orthogonal start, if T - W_0 has rank r"),
    _claim("deep_lora_centred",
           "less the products at their starts, on both sides: the two are equal, the bulk stays"),
)  # fmt: skip


def _raw(case: Adapted) -> dict[str, Array]:
    X = jax.random.normal(case.draw, case.target.shape) / np.sqrt(len(case.target))
    return measure(case, inputs=X)


def _half_as_high_again(case: Adapted) -> dict[str, Array]:
    distance = _rectangular(case, ASPECTS[1]) * linalg.frobenius(case.target)
    return measure(case) | {"deep_lora": distance}


# Each once, so that the controls of both claims share its runs.
_FOURTH_POWERS, _ADAM = partial(measure, quartic=1.0), partial(measure, adam=True)
_TRAINED_FRAME, _ONE_SIDE = partial(measure, frame_rate=1.0), partial(measure, one_side=True)


def _controls(claim: str, prefix: str) -> tuple[Control[Any], ...]:
    return (
        Control(f"{prefix}gaussian_start", "Gaussian start", claim,
                setting.toward_gaussian, "orthogonal_start"),
        Control(f"{prefix}rank_above_r", "T - W_0 of rank above r", claim,
                setting.add_tail, "rank_at_most_r"),
        Control(f"{prefix}raw_inputs", "inputs that are not whitened", claim, measure=_raw),
        Control(f"{prefix}fourth_powers", "a loss with fourth powers of the residual", claim,
                measure=_FOURTH_POWERS),
        Control(f"{prefix}adam", "Adam in the place of plain descent", claim,
                measure=_ADAM),
        Control(f"{prefix}trained_frame", "U and V trained at the same rate", claim,
                measure=_TRAINED_FRAME),
        Control(f"{prefix}one_side_centred", "the start subtracted on one side alone", claim,
                measure=_ONE_SIDE),
    )  # fmt: skip


COMPRESSED = Scenario[Adapted](
    "compressed", make_case, predict, measure, CLAIMS,
    (*_controls("deep_lora", "full_"), *_controls("deep_lora_centred", "centred_"),
     Control("full_not_square", "W of half as many rows again", "deep_lora",
             measure=_half_as_high_again)),
    hypotheses={name: setting.HYPOTHESES[name]
                for name in ("orthogonal_start", "rank_at_most_r")},
    dims={"deep_lora": ("step",), "deep_lora_centred": ("step",), "distance": ("aspect",),
          "step": ("step",), "aspect": ("aspect",)},
    **setting.RUN, compare=distances,
    at={"dim": 12, "depth": 3, "rank": 2, "init_scale": 1.0, "learning_rate": 0.1, "steps": 50},
    sides="rho, a scalar recursion, against the difference of two adapters that are trained",
)  # fmt: skip
