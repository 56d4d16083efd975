"""Theorem 2: gradient descent on deep factorisation lives in a 2r-dimensional subspace."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lrdyn.descent import gradient_descent, iterate, simulate
from lrdyn.factorization import Weights, factorization_loss, mean_factorization_loss
from lrdyn.spectra import singular_values
from lrdyn.subspace import (
    blocks,
    frame,
    product_of_others,
    reduced_spectra,
    reduced_target,
    rho,
)
from lrdyn.theorem import Claim, Control, Statement, Theorem
from lrdyn.theorems.deep_factorization import (
    AT,
    AXES,
    FLAGS,
    HYPOTHESES,
    RUN,
    DeepFactorization,
    check,
    conditioned_run,
    departures,
    first_shapes,
    make_case,
    of_weights,
    prepare,
    run,
    vanishes,
)
from lrdyn.theorems.theorem2.classification import CLASSIFICATION, COLLAPSE


def predict(case: DeepFactorization) -> dict[str, Array]:
    """The whole run from the frame, 2r x 2r blocks and L scalars."""
    dim, size, steps = case.target.shape[0], 2 * case.rank, np.asarray(case.steps)
    target = reduced_target(frame(case.weights, case.target, case.rank), case.target, size)
    inner, condition = conditioned_run(case, target, jnp.stack)
    moving_loss = jax.vmap(lambda layers: factorization_loss(tuple(layers), target))(inner)
    bulk = rho(case.scales, case.learning_rate, case.weight_decay, steps)
    return {
        "rho": bulk,
        "reduced": inner,
        "singular_values": jax.vmap(lambda W, b: reduced_spectra(W, b, dim))(inner, bulk),
        "condition": condition,
        "loss": moving_loss + 0.5 * (dim - size) * jnp.prod(bulk, axis=1) ** 2,
    }


def measure(
    case: DeepFactorization, optimizer: optax.GradientTransformation | None = None
) -> dict[str, Array]:
    """Dense gradient descent with automatic gradients, seen in the frame and by its SVD."""
    fixed = frame(case.weights, case.target, case.rank)

    def record(weights: Weights):
        return (
            blocks(fixed, weights, 2 * case.rank),
            singular_values(jnp.stack(weights)),
            factorization_loss(weights, case.target),
        )

    trajectory = run(case, record, optimizer)
    seen, values, losses = trajectory.records
    return {
        "rho": seen.rho,
        "reduced": seen.inner,
        "singular_values": values,
        "loss": losses,
        "off_block": seen.off_block,
        "bulk_deviation": seen.bulk_deviation,
        "diverged_at": trajectory.diverged_at,
        "step": jnp.asarray(case.steps),
    }


CLAIMS = (
    Claim(
        "off_block",
        "U_l^T W_l(t) V_l has zero off-diagonal blocks for all t",
        **vanishes("off_block"),
    ),
    Claim("bulk", "its bulk block is a multiple of the identity", **vanishes("bulk_deviation")),
    Claim(
        "rho",
        "rho_l(t+1) = rho_l(t) (1 - eta lambda_l - eta prod_{k != l} rho_k(t)^2)",
        **of_weights("rho"),
    ),
    Claim(
        "reduced",
        "Wt_l is gradient descent on the 2r-dimensional problem from eps_l I",
        **of_weights("reduced"),
    ),
    Claim(
        "spectra",
        "singular values of W_l(t) are those of Wt_l(t) and |rho_l(t)|, d - 2r times",
        **of_weights("singular_values"),
    ),
    Claim("loss", "f(t) = 1/2 ||Wt_L...Wt_1 - Phi~||^2 + (d - 2r)/2 prod rho_l^2"),
)


def _wrong_rho(
    others: Callable[[Float[Array, "depth"]], Float[Array, "depth"]],
) -> Callable[[DeepFactorization], dict[str, Array]]:
    """Prediction with the product over the other layers replaced."""

    def predict_wrong(case):
        def step(_, values):
            return values * (1 - case.learning_rate * (case.weight_decay + others(values)))

        wrong = iterate(step, case.scales, np.asarray(case.steps), lambda values: values)[1]
        return predict(case) | {"rho": wrong}

    return predict_wrong


def _adam(case):
    return measure(case, optax.adam(0.1 * case.learning_rate))


def _transposed(case: DeepFactorization) -> dict[str, Array]:
    target = reduced_target(frame(case.weights, case.target, case.rank), case.target, 2 * case.rank)
    inner, condition = conditioned_run(case, target.T, jnp.stack)
    return {"reduced": inner, "condition": condition}


def _bulk_beyond_r(case: DeepFactorization) -> dict[str, Array]:
    right, rank = predict(case), case.rank
    values = jax.vmap(lambda W: singular_values(W)[:, :rank])(right["reduced"])
    shape = (*right["rho"].shape, case.target.shape[0] - rank)
    still = jnp.broadcast_to(jnp.abs(right["rho"])[:, :, None], shape)
    both = jnp.concatenate([values, still], axis=2)
    return right | {"singular_values": jnp.sort(both, axis=2, descending=True)}


def _loss_without_bulk(case: DeepFactorization) -> dict[str, Array]:
    right, rest = predict(case), case.target.shape[0] - 2 * case.rank
    return right | {"loss": right["loss"] - 0.5 * rest * jnp.prod(right["rho"], axis=1) ** 2}


# The product and its square differ only where the scales are not 1.
_SCALED = AT | {"init_scale": 0.7}

FACTORIZATION = Statement(
    "factorization",
    make_case,
    predict,
    measure,
    CLAIMS,
    controls=(
        *departures("off_block", at=_SCALED),
        Control("adam", "Adam instead of gradient descent", "off_block", measure=_adam, at=_SCALED),
        Control("adam_bulk", "Adam instead of gradient descent", "bulk", measure=_adam, at=_SCALED),
        Control(
            "rho_without_product",
            "rho recursion without the product term",
            "rho",
            predict=_wrong_rho(jnp.zeros_like),
            at=_SCALED,
        ),
        Control(
            "rho_not_squared",
            "rho recursion with the product not squared",
            "rho",
            predict=_wrong_rho(product_of_others),
            at=_SCALED,
        ),
        Control(
            "target_transposed",
            "reduced target transposed",
            "reduced",
            predict=_transposed,
            at=_SCALED,
        ),
        Control(
            "bulk_counted_d_minus_r",
            "|rho_l| counted d - r times, r values beside it",
            "spectra",
            predict=_bulk_beyond_r,
            at=_SCALED,
        ),
        Control(
            "loss_without_bulk",
            "loss of the reduced run alone",
            "loss",
            predict=_loss_without_bulk,
            at=_SCALED,
        ),
    ),
    hypotheses=HYPOTHESES,
    dims={
        "rho": ("step", "layer"),
        "reduced": ("step", "layer", "row", "column"),
        "singular_values": ("step", "layer", "index"),
        "loss": ("step",),
        "off_block": ("step", "layer"),
        "bulk_deviation": ("step", "layer"),
        "step": ("step",),
    },
    **RUN,
    sides="2r x 2r layers and L scalars against dense layers, automatic gradients, optax",
)


def _mean_names(predicted: dict[str, Array]) -> dict[str, Array]:
    renamed = {f"mean_{name}": predicted[name] for name in ("rho", "reduced")}
    return renamed | {"condition": predicted["condition"]}


def _measure_mean_loss(
    case: DeepFactorization, decay_factor: float | None = None
) -> dict[str, Array]:
    entries = case.target.size
    fixed = frame(case.weights, case.target, case.rank)
    rule = gradient_descent(
        case.learning_rate * entries, case.weight_decay / (decay_factor or entries)
    )
    trajectory = simulate(
        lambda weights: mean_factorization_loss(weights, case.target),
        case.weights,
        rule,
        np.asarray(case.steps),
        record=lambda weights: (
            blocks(fixed, weights, 2 * case.rank),
            singular_values(jnp.stack(weights)),
        ),
    )
    seen, values = trajectory.records
    return {
        "mean_rho": seen.rho,
        "mean_reduced": seen.inner,
        "singular_values": values,
        "diverged_at": trajectory.diverged_at,
        "step": jnp.asarray(case.steps),
    }


MEAN_LOSS = Statement(
    "mean_loss",
    make_case,
    lambda case: _mean_names(predict(case)),
    _measure_mean_loss,
    (
        Claim(
            "mean_loss",
            "1/2 mean over d^2 entries: the same trajectory with eta / d^2 and lambda d^2",
            **of_weights("mean_rho", "mean_reduced"),
        ),
    ),
    controls=(
        Control(
            "decay_not_rescaled",
            "mean loss with eta / d^2 but lambda as it was",
            "mean_loss",
            measure=lambda case: _measure_mean_loss(case, 1.0),
            at=AT | {"weight_decay": 1e-3},
        ),
    ),
    hypotheses=HYPOTHESES,
    dims={
        "mean_rho": ("step", "layer"),
        "mean_reduced": ("step", "layer", "row", "column"),
        "singular_values": ("step", "layer", "index"),
        "step": ("step",),
    },
    narrow=first_shapes,
    **RUN,
    sides="the same, against the mean loss with eta d^2 and lambda / d^2",
)


THEOREM2 = Theorem(
    "theorem2",
    "gradient descent on deep factorisation lives in a 2r-dimensional subspace",
    FLAGS,
    (FACTORIZATION, MEAN_LOSS, CLASSIFICATION, COLLAPSE),
    prepare=prepare,
    check=check,
    axes=AXES,
)
