"""Theorem 2: gradient descent on deep factorisation lives in a 2r-dimensional subspace."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lrdyn.core import linalg
from lrdyn.core.condition import conditions
from lrdyn.core.descent import gradient_descent, iterate
from lrdyn.core.factorization import Weights, end_to_end, mean_factorization_loss
from lrdyn.core.spectra import singular_values
from lrdyn.engine.statement import Claim, Control, Scenario, Theorem
from lrdyn.theorem2 import setting, subspace
from lrdyn.theorem2.classifier_claims import CLASSIFICATION, COLLAPSE
from lrdyn.theorem2.setting import DIMS, DeepFactorization, weights_claim, zero_claim
from lrdyn.theorem2.subspace import product_of_others, reduced_spectra


def predict(case: DeepFactorization) -> dict[str, Array]:
    """The whole run from the frame, 2r x 2r blocks and L scalars."""
    dim, moving, bulk = len(case.target), 2 * case.rank, case.bulk
    runs = setting.theory_run(case, jnp.stack)
    inner = setting.parts_of(runs.run.records, moving)["inner"]
    found = conditions(runs, lambda run: setting.parts_of(run.records, moving))
    return {
        "rho": bulk,
        "reduced": inner,
        "singular_values": jax.vmap(lambda W, b: reduced_spectra(W, b, dim))(inner, bulk),
        "loss": _moving_loss(case, inner) + _bulk_loss(case, bulk),
        "diverges": runs.run.diverged_at,
        "condition": jnp.max(jnp.stack(jax.tree.leaves(found))),
        **{f"condition_{name}": condition for name, condition in found.items()},
    }


def _moving_loss(
    case: DeepFactorization, inner: Float[Array, "times depth s s"]
) -> Float[Array, "times"]:
    products = jax.vmap(lambda layers: end_to_end(tuple(layers)))(inner)
    return 0.5 * linalg.frobenius(products - case.reduced_target[None]) ** 2


def _bulk_loss(case: DeepFactorization, bulk: Float[Array, "times depth"]) -> Float[Array, "times"]:
    return 0.5 * (len(case.target) - 2 * case.rank) * jnp.prod(bulk, axis=1) ** 2


def measure(
    case: DeepFactorization,
    optimizer: optax.GradientTransformation | None = None,
    fixed: subspace.Frame | None = None,
) -> dict[str, Array]:
    """Dense gradient descent with automatic gradients, or another optimiser, or frame."""
    names = ("rho", "reduced", "singular_values", "loss", "off_block", "bulk_deviation")
    fixed = case.frame if fixed is None else fixed
    return setting.dense_run(case, fixed, *names, optimizer=optimizer)


CLAIMS = (
    zero_claim("off_block", "U_l^T W_l(t) V_l has zero off-diagonal blocks for all t "
               "(the formula is that of the frame: the other side is 0)",
               condition="condition_off_block"),
    zero_claim("bulk", "its bulk block is a multiple of the identity (the other side is 0)",
               "bulk_deviation",
               condition="condition_bulk"),
    weights_claim("rho", "rho_l(t+1) = rho_l(t) (1 - eta lambda_l - eta prod_{k != l} rho_k(t)^2)",
                  condition="condition_bulk"),
    weights_claim("reduced", "Wt_l is gradient descent on the 2r-dimensional problem from eps_l I",
                  condition="condition_inner"),
    weights_claim("spectra",
                  "singular values of W_l(t) are those of Wt_l(t) and |rho_l(t)|, d - 2r times",
                  "singular_values", condition="condition"),
    Claim("loss", "f(t) = 1/2 ||Wt_L...Wt_1 - Phi~||^2 + (d - 2r)/2 prod rho_l^2",
          condition="condition", undecided=setting.undecided_below("loss")),
)  # fmt: skip


def _wrong_rho(
    others: Callable[[Float[Array, "depth"]], Float[Array, "depth"]],
) -> Callable[[DeepFactorization], dict[str, Array]]:
    """The recursion with the product over the other layers replaced."""

    def predict_wrong(case: DeepFactorization) -> dict[str, Array]:
        def step(_: Array, values: Array) -> Array:
            return values * (1 - case.learning_rate * (case.weight_decay + others(values)))

        return {"rho": iterate(step, case.scales, case.times, lambda values: values)[1]}

    return predict_wrong


def _adam(case: DeepFactorization) -> dict[str, Array]:
    return measure(case, optax.adam(0.1 * case.learning_rate))


def _frame_of_the_rows(case: DeepFactorization) -> dict[str, Array]:
    """Blocks in a frame that spans row(Phi), and otherwise whatever completes it."""
    rows = linalg.svd(case.target)[2][: case.rank].T
    return measure(case, fixed=subspace.propagate(case.weights, linalg.complete_basis(rows)))


def _one_entry(row: int, column: int) -> Callable[[DeepFactorization], dict[str, Array]]:
    """Layers with one entry off the blocks."""

    def measure_wrong(case: DeepFactorization) -> dict[str, Array]:
        (U, V), mixed = case.frame, jnp.zeros_like(case.target).at[row, column].set(0.1)
        layers = tuple(W + u @ mixed @ v.T for W, u, v in zip(case.weights, U, V, strict=True))
        found = subspace.blocks(case.frame, layers, 2 * case.rank).off_block
        return {"off_block": jnp.broadcast_to(found, (len(case.steps), len(layers)))}

    return measure_wrong


def _transposed(case: DeepFactorization) -> dict[str, Array]:
    run = subspace.reduced_dynamics(case.reduced_target.T, *case.rates, case.times)
    return {"reduced": jnp.stack(run.records, axis=1)}


def _bulk_beyond_r(case: DeepFactorization) -> dict[str, Array]:
    right, rank = predict(case), case.rank
    values = jax.vmap(lambda W: singular_values(W)[:, :rank])(right["reduced"])
    shape = (*right["rho"].shape, len(case.target) - rank)
    still = jnp.broadcast_to(jnp.abs(right["rho"])[:, :, None], shape)
    both = jnp.concatenate([values, still], axis=2)
    return {"singular_values": jnp.sort(both, axis=2, descending=True)}


def _loss_without_bulk(case: DeepFactorization) -> dict[str, Array]:
    right = predict(case)
    return {"loss": right["loss"] - _bulk_loss(case, right["rho"])}


CONTROLS = (
    *setting.departures("off_block"),
    *(Control(f"adam{suffix}", "Adam instead of gradient descent", claim, measure=_adam)
      for suffix, claim in {"": "off_block", "_bulk": "bulk", "_rho": "rho", "_reduced": "reduced",
                            "_spectra": "spectra", "_loss": "loss"}.items()),
    Control("frame_of_the_rows", "V_{1,1} spans row(Phi) alone", "off_block",
            measure=_frame_of_the_rows),
    Control("bulk_frame_of_the_rows", "V_{1,1} spans row(Phi) alone", "bulk",
            measure=_frame_of_the_rows),
    Control("entry_above", "an entry above the bulk block", "off_block",
            measure=_one_entry(0, -1)),
    Control("entry_below", "an entry beside the bulk block", "off_block",
            measure=_one_entry(-1, 0)),
    Control("rho_without_product", "rho recursion without the product term", "rho",
            predict=_wrong_rho(jnp.zeros_like)),
    Control("rho_not_squared", "rho recursion with the product not squared", "rho",
            predict=_wrong_rho(product_of_others)),
    Control("target_transposed", "reduced target transposed", "reduced", predict=_transposed),
    Control("bulk_counted_d_minus_r", "|rho_l| counted d - r times, r values beside it", "spectra",
            predict=_bulk_beyond_r),
    Control("loss_without_bulk", "loss of the reduced run alone", "loss",
            predict=_loss_without_bulk),
)  # fmt: skip

FACTORIZATION = Scenario[DeepFactorization](
    "factorization", setting.make_case, predict, measure, CLAIMS, CONTROLS,
    hypotheses=setting.HYPOTHESES, dims=DIMS, **setting.RUN,
    # The product and its square differ only where the scales are not 1.
    at=setting.AT | {"init_scale": 0.7},
    sides="2r x 2r layers and L scalars against dense layers, automatic gradients, optax",
)  # fmt: skip


def _mean_names(arrays: dict[str, Array], *kept: str) -> dict[str, Array]:
    """Arrays of a run under the names of the scenario about the mean loss."""
    renamed = {f"mean_{name}": arrays[name] for name in ("rho", "reduced")}
    return renamed | {name: arrays[name] for name in kept}


def _measure_mean_loss(
    case: DeepFactorization, decay_factor: float | None = None
) -> dict[str, Array]:
    names, entries = ("rho", "reduced", "singular_values"), case.target.size
    decay = case.weight_decay / (decay_factor or entries)
    rule = gradient_descent(case.learning_rate * entries, decay)

    def loss(weights: Weights) -> Float[Array, ""]:
        return mean_factorization_loss(weights, case.target)

    found = setting.dense_run(case, case.frame, *names, loss=loss, optimizer=rule)
    return _mean_names(found, "singular_values", "diverged_at", "step")


def _mean_transposed(case: DeepFactorization) -> dict[str, Array]:
    return {"mean_reduced": _transposed(case)["reduced"]}


MEAN_LOSS = Scenario[DeepFactorization](
    "mean_loss", setting.make_case,
    lambda case: _mean_names(predict(case), "condition", "diverges"), _measure_mean_loss,
    (weights_claim("mean_loss",
                   "1/2 mean over d^2 entries: the same trajectory with eta / d^2 and lambda d^2",
                   "mean_rho", "mean_reduced", condition="condition"),),
    (Control("decay_not_rescaled", "mean loss with eta / d^2 but lambda as it was", "mean_loss",
             measure=lambda case: _measure_mean_loss(case, 1.0)),
     Control("mean_target_transposed", "reduced target transposed", "mean_loss",
             predict=_mean_transposed)),
    hypotheses=setting.HYPOTHESES, **setting.RUN,
    dims=DIMS | {"mean_rho": DIMS["rho"], "mean_reduced": DIMS["reduced"]},
    narrow=setting.first_shapes, at=setting.AT | {"weight_decay": 1e-3},
    sides="the same, against the mean loss with eta d^2 and lambda / d^2",
)  # fmt: skip

THEOREM2 = Theorem(
    "theorem2",
    "gradient descent on deep factorisation lives in a 2r-dimensional subspace",
    setting.FLAGS,
    (FACTORIZATION, MEAN_LOSS, CLASSIFICATION, COLLAPSE),
    prepare=setting.prepare,
    check=setting.check,
    axes=setting.AXES,
    numbers=setting.numbers,
)
