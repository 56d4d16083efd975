"""Theorem 2: gradient descent on deep factorisation lives in a 2r-dimensional subspace.

Started from ``W_l(0) = eps_l * orthogonal`` on ``f = 1/2 ||W_L ... W_1 - Phi||_F^2``, square layers
and rank Phi <= r < d / 2, gradient descent keeps for all t

    W_l(t) = U_l blkdiag( Wt_l(t), rho_l(t) I ) V_l^T,      V_{l+1} = U_l,
    rho_l(t+1) = rho_l(t) (1 - eta lambda_l - eta prod_{k != l} rho_k(t)^2),   rho_l(0) = eps_l,
    Wt_l: gradient descent on 1/2 ||Wt_L ... Wt_1 - Phi~||_F^2 from eps_l I,   2r x 2r,
    f(t) = 1/2 ||Wt_L ... Wt_1 - Phi~||_F^2 + (d - 2r)/2 prod_l rho_l^2.

On half the mean over the d^2 entries the run is the same with eta / d^2 and lambda d^2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lrdyn.core import linalg
from lrdyn.core.descent import gradient_descent, iterate
from lrdyn.core.factorization import Weights, end_to_end, mean_factorization_loss
from lrdyn.core.spectra import singular_values
from lrdyn.theorem2 import setting, subspace
from lrdyn.theorem2.classifier_claims import CLASSIFICATION
from lrdyn.theorem2.collapse_claims import COLLAPSE
from lrdyn.theorem2.setting import DeepFactorization, weights_claim, zero_claim
from lrdyn.theorem2.subspace import product_of_others, reduced_spectra
from lrdyn.verification.running.evaluate import Once, each_time
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal, Form, start_of
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario, Theorem


class FactorizationTheory(NamedTuple):
    """A whole run, from the frame, 2r x 2r blocks and L scalars."""

    rho: Float[Array, "step layer"] = ABSENT
    """rho_l, the value that d - 2r singular values of a layer share, up to its sign."""
    reduced: Float[Array, "step layer row column"] = ABSENT
    """Wt_l, layers of gradient descent on the 2r-dimensional problem from eps_l I."""
    singular_values: Float[Array, "step layer index"] = ABSENT
    """Singular values of W_l: of Wt_l, and d - 2r times |rho_l|; largest first."""
    loss: Float[Array, "step"] = ABSENT
    """1/2 ||Wt_L ... Wt_1 - Phi~||_F^2 + (d - 2r) / 2 prod_l rho_l^2."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which theory's own run diverges, or -1."""
    condition: Float[Array, ""] = ABSENT
    """By how much theory's own run amplifies a small error: the largest of the next three."""
    condition_inner: Float[Array, ""] = ABSENT
    """Amplification in the moving blocks."""
    condition_off_block: Float[Array, ""] = ABSENT
    """Amplification between the moving blocks and the bulk."""
    condition_bulk: Float[Array, ""] = ABSENT
    """Amplification in the bulk."""
    last_compared: Int[Array, ""] = ABSENT
    """Last step at which both sides are compared; of gradient descent the last of the run."""


class FactorizationMeasured(NamedTuple):
    """Dense layers that descend, in the frame of the start."""

    rho: Float[Array, "step layer"] = ABSENT
    """Mean of the diagonal of the bulk block U_{l,2}^T W_l V_{l,2}."""
    reduced: Float[Array, "step layer row column"] = ABSENT
    """Moving block U_{l,1}^T W_l V_{l,1}."""
    singular_values: Float[Array, "step layer index"] = ABSENT
    """Singular values of W_l, largest first."""
    loss: Float[Array, "step"] = ABSENT
    """f = 1/2 ||W_L ... W_1 - Phi||_F^2."""
    off_block: Float[Array, "step layer"] = ABSENT
    """Largest entry of the two off-diagonal blocks."""
    bulk_deviation: Float[Array, "step layer"] = ABSENT
    """Largest entry of the bulk block less rho_l I."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def predict(case: DeepFactorization) -> FactorizationTheory:
    """The whole run from the frame, 2r x 2r blocks and L scalars."""
    dim, moving = len(case.target), 2 * case.rank
    runs = setting.theory_run(case, jnp.stack)
    bulk = setting.bulk_of(case, runs.run.records)
    inner = setting.layer_blocks(runs.run.records, moving)["inner"]
    # Each claim has the amplification of its own blocks: bulk and moving part are apart to first
    # order.
    last, of_parts = setting.conditions_in_window(
        case, runs, lambda layers: setting.layer_blocks(layers, moving)
    )
    products = jax.vmap(lambda layers: end_to_end(tuple(layers)))(inner)
    moving_loss = 0.5 * linalg.frobenius(products - case.reduced_target[None]) ** 2
    return FactorizationTheory(
        rho=bulk,
        reduced=inner,
        singular_values=jax.vmap(lambda W, b: reduced_spectra(W, b, dim))(inner, bulk),
        loss=moving_loss + _bulk_loss(case, bulk),
        diverges=runs.run.diverged_at,
        # Spectra and losses mix all blocks.
        condition=jnp.max(jnp.stack(jax.tree.leaves(of_parts))),
        condition_inner=of_parts["inner"],
        condition_off_block=of_parts["off_block"],
        condition_bulk=of_parts["bulk"],
        last_compared=last,
    )


def _bulk_loss(case: DeepFactorization, bulk: Float[Array, "times depth"]) -> Float[Array, "times"]:
    return 0.5 * (len(case.target) - 2 * case.rank) * jnp.prod(bulk, axis=1) ** 2


def measure(
    case: DeepFactorization,
    optimizer: optax.GradientTransformation | None = None,
    fixed: subspace.Frame | None = None,
) -> FactorizationMeasured:
    """Dense layers with automatic gradients and the optimiser of the case, optax's own.

    Controls train with another optimiser, or measure in another frame.
    """
    fixed = case.frame if fixed is None else fixed
    return _measured_of(setting.dense_run(case, fixed, optimizer=optimizer))


def read_factorization(
    case: DeepFactorization, records: tuple[Float[Array, "step d d"], ...]
) -> FactorizationMeasured:
    """The same of dense layers that somebody else trained, from their records."""
    return _measured_of(setting.read_dense_run(case, case.frame, records))


def _measured_of(run: setting.DenseRun) -> FactorizationMeasured:
    return FactorizationMeasured(
        rho=run.rho,
        reduced=run.reduced,
        singular_values=run.singular_values,
        loss=run.loss,
        off_block=run.off_block,
        bulk_deviation=run.bulk_deviation,
        diverged_at=run.diverged_at,
        step=run.step,
    )


def _wrong_rho(
    others: Callable[[Float[Array, "depth"]], Float[Array, "depth"]],
) -> Callable[[DeepFactorization], FactorizationTheory]:
    """Make a theory whose recursion has something else for the product over the other layers."""

    def predict_wrong(case: DeepFactorization) -> FactorizationTheory:
        def step(_: Array, values: Array) -> Array:
            return values * (1 - case.learning_rate * (case.weight_decay + others(values)))

        records = iterate(step, case.scales, case.times, lambda values: values)[1]
        return FactorizationTheory(rho=records)

    return predict_wrong


def _adam(case: DeepFactorization) -> FactorizationMeasured:
    # A first step of Adam moves every entry by its rate, however small the gradient.
    return measure(case, optax.adam(0.1 * case.learning_rate))


def _frame_of_the_rows(case: DeepFactorization) -> FactorizationMeasured:
    """Blocks in a frame of row(Phi) and arbitrary directions, without those of the start."""
    # Half of the space of step 1: without Q^T col(Phi).
    rows = linalg.svd(case.target)[2][: case.rank].T
    return measure(case, fixed=subspace.propagate(case.weights, linalg.complete_basis(rows)))


def _add_one_entry(row: int, column: int) -> Callable[[DeepFactorization], FactorizationMeasured]:
    """Make a run that returns the layers of the start with one entry outside of the blocks."""

    def measure_wrong(case: DeepFactorization) -> FactorizationMeasured:
        (U, V), mixed = case.frame, jnp.zeros_like(case.target).at[row, column].set(0.1)
        layers = tuple(W + u @ mixed @ v.T for W, u, v in zip(case.weights, U, V, strict=True))
        off_block = subspace.blocks(case.frame, layers, 2 * case.rank).off_block
        every_step = (len(case.steps), len(layers))
        return FactorizationMeasured(off_block=jnp.broadcast_to(off_block, every_step))

    return measure_wrong


def _transpose_target(case: DeepFactorization) -> FactorizationTheory:
    run = subspace.reduced_dynamics(case.reduced_target.T, *case.rates, case.times)
    return FactorizationTheory(reduced=jnp.stack(run.records, axis=1))


def _bulk_beyond_r(case: DeepFactorization, once: Once = each_time) -> FactorizationTheory:
    right, rank = once(predict, case), case.rank
    # As if only r directions moved, where 2r do: those of Phi and those of the start.
    values = jax.vmap(lambda W: singular_values(W)[:, :rank])(right.reduced)
    shape = (*right.rho.shape, len(case.target) - rank)
    still = jnp.broadcast_to(jnp.abs(right.rho)[:, :, None], shape)
    both = jnp.concatenate([values, still], axis=2)
    return FactorizationTheory(singular_values=jnp.sort(both, axis=2, descending=True))


def _loss_without_bulk(case: DeepFactorization, once: Once = each_time) -> FactorizationTheory:
    right = once(predict, case)
    return FactorizationTheory(loss=right.loss - _bulk_loss(case, right.rho))


def _loss(outcome: Outcome[FactorizationTheory, FactorizationMeasured]) -> Form:
    within = setting.compared_steps(outcome, _last)
    predicted, measured = outcome.predicted.loss[within], outcome.measured.loss[within]
    return Equal(predicted, measured, null=start_of(predicted))


_underflow: Callable[[Outcome[FactorizationTheory, FactorizationMeasured]], str]
_underflow = setting.undecided_by_underflow(lambda theory: theory.loss)


def _loss_cannot_be_judged(outcome: Outcome[FactorizationTheory, FactorizationMeasured]) -> str:
    return _underflow(outcome) or setting.closed_window(_last)(outcome)


def _last(theory: Any) -> Any:
    return theory.last_compared


FACTORIZATION = Scenario[DeepFactorization, FactorizationTheory, FactorizationMeasured](
    "factorization",
    setting.make_case,
    predict,
    measure,
    apart=True,
    theory=FactorizationTheory,
    measured=FactorizationMeasured,
    claims=(
        zero_claim(
            "off_block",
            "in the frame U_l, V_l that start and target fix, the off-diagonal blocks of U_l^T "
            "W_l(t) V_l are 0 for all l and t (theory gives the frame; the blocks are compared "
            "with 0)",
            lambda run: run.off_block,
            moves=lambda theory: theory.reduced,
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition_off_block,
            last=_last,
        ),
        zero_claim(
            "bulk",
            "in the frame of Theorem 2 the bulk block U_{l,2}^T W_l(t) V_{l,2} is a multiple of "
            "the identity for all l and t (what is left beside the multiple is compared with 0)",
            lambda run: run.bulk_deviation,
            moves=lambda theory: theory.reduced,
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition_bulk,
            last=_last,
        ),
        weights_claim(
            "rho",
            "the bulk singular values follow rho_l(t+1) = rho_l(t) (1 - eta lambda_l - eta "
            "prod_{k != l} rho_k(t)^2) from rho_l(0) = eps_l; under another optimiser its own "
            "recursion, in which a norm counts rho_l d - 2r times",
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition_bulk,
            last=_last,
        ),
        weights_claim(
            "reduced",
            "the moving blocks Wt_l = U_{l,1}^T W_l V_{l,1} follow gradient descent (or the "
            "optimiser) on the problem of width 2r with the target U_{L,1}^T Phi V_{1,1}, from "
            "eps_l I",
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition_inner,
            last=_last,
        ),
        weights_claim(
            "spectra",
            "the singular values of W_l(t) are those of the moving block Wt_l(t) and, d - 2r "
            "times, |rho_l(t)|",
            lambda theory, run: (theory.singular_values, run.singular_values),
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition,
            last=_last,
        ),
        Claim(
            "loss",
            "the loss is f(t) = 1/2 ||Wt_L...Wt_1 - Phi~||^2 + (d - 2r)/2 prod_l rho_l^2 for all "
            "t, Phi~ = U_{L,1}^T Phi V_{1,1}",
            form=_loss,
            reads=lambda theory, run: (theory.loss, run.loss, theory.last_compared, run.step),
            condition=lambda theory: theory.condition,
            undecided=_loss_cannot_be_judged,
        ),
    ),
    controls=(
        *setting.departures("off_block"),
        *(
            Control(id, "Adam instead of gradient descent", claim, measure=_adam)
            for id, claim in {
                "adam": "off_block",
                "adam_bulk": "bulk",
                "adam_rho": "rho",
                "adam_reduced": "reduced",
                "adam_spectra": "spectra",
                "adam_loss": "loss",
            }.items()
        ),
        *(
            Control(
                id,
                "V_{1,1} spans row(Phi) and r arbitrary directions",
                claim,
                measure=_frame_of_the_rows,
            )
            for id, claim in {
                "frame_of_the_rows": "off_block",
                "bulk_frame_of_the_rows": "bulk",
            }.items()
        ),
        Control(
            "entry_above",
            "layers of the start with an entry above the bulk block",
            "off_block",
            measure=_add_one_entry(0, -1),
        ),
        Control(
            "entry_below",
            "layers of the start with an entry beside the bulk block",
            "off_block",
            measure=_add_one_entry(-1, 0),
        ),
        Control(
            "rho_without_product",
            "rho recursion without the product term",
            "rho",
            predict=_wrong_rho(jnp.zeros_like),
        ),
        Control(
            "rho_not_squared",
            "rho recursion with the product not squared",
            "rho",
            predict=_wrong_rho(product_of_others),
        ),
        Control(
            "target_transposed",
            "reduced target transposed",
            "reduced",
            predict=_transpose_target,
        ),
        Control(
            "bulk_counted_d_minus_r",
            "|rho_l| counted d - r times, r values beside it",
            "spectra",
            predict=_bulk_beyond_r,
        ),
        Control(
            "loss_without_bulk",
            "loss of the reduced run alone",
            "loss",
            predict=_loss_without_bulk,
        ),
    ),
    hypotheses=setting.HYPOTHESES,
    steps="steps",
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    # The product and its square differ only where the scales are not 1.
    at=setting.AT | {"init_scale": 0.7},
    sides="2r x 2r layers and L scalars against dense layers, automatic gradients, optax",
)


class MeanLossTheory(NamedTuple):
    """Descent on the mean loss, predicted as that on the sum with other rates."""

    mean_rho: Float[Array, "step layer"] = ABSENT
    """rho_l of the theorem."""
    mean_reduced: Float[Array, "step layer row column"] = ABSENT
    """Its moving blocks."""
    condition: Float[Array, ""] = ABSENT
    """By how much theory's own run amplifies a small error."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which theory's own run diverges, or -1."""


class MeanLossMeasured(NamedTuple):
    """Dense layers that descend on the mean loss, in the frame of the start."""

    mean_rho: Float[Array, "step layer"] = ABSENT
    """Mean of the diagonal of the bulk block."""
    mean_reduced: Float[Array, "step layer row column"] = ABSENT
    """Moving block."""
    singular_values: Float[Array, "step layer index"] = ABSENT
    """Singular values of W_l, largest first."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def predict_mean_loss(case: DeepFactorization) -> MeanLossTheory:
    """Theorem 2 itself: a mean changes nothing but the rates."""
    theory = predict(case)
    return MeanLossTheory(
        mean_rho=theory.rho,
        mean_reduced=theory.reduced,
        condition=theory.condition,
        diverges=theory.diverges,
    )


def measure_mean_loss(
    case: DeepFactorization, decay_factor: float | None = None
) -> MeanLossMeasured:
    """Descend on the mean over d^2 entries with eta d^2 and lambda / d^2, or another quotient."""
    # Step 5 of the proof read backwards: eta' = eta d^2 and lambda' = lambda / d^2.
    entries = case.target.size
    rule = gradient_descent(
        case.learning_rate * entries, case.weight_decay / (decay_factor or entries)
    )

    def loss(weights: Weights) -> Float[Array, ""]:
        return mean_factorization_loss(weights, case.target)

    run = setting.dense_run(case, case.frame, loss=loss, optimizer=rule)
    return MeanLossMeasured(
        mean_rho=run.rho,
        mean_reduced=run.reduced,
        singular_values=run.singular_values,
        diverged_at=run.diverged_at,
        step=run.step,
    )


MEAN_LOSS = Scenario[DeepFactorization, MeanLossTheory, MeanLossMeasured](
    "mean_loss",
    setting.make_case,
    predict_mean_loss,
    measure_mean_loss,
    theory=MeanLossTheory,
    measured=MeanLossMeasured,
    claims=(
        weights_claim(
            "mean_loss",
            "gradient descent with eta and lambda on half the mean over d^2 entries takes the "
            "trajectory of half the sum with eta / d^2 and lambda d^2",
            lambda theory, run: (theory.mean_rho, run.mean_rho),
            lambda theory, run: (theory.mean_reduced, run.mean_reduced),
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition,
        ),
    ),
    controls=(
        Control(
            "decay_not_rescaled",
            "mean loss with eta d^2 but lambda as it was",
            "mean_loss",
            measure=lambda case: measure_mean_loss(case, 1.0),
        ),
        Control(
            "mean_target_transposed",
            "reduced target transposed",
            "mean_loss",
            predict=lambda case: MeanLossTheory(mean_reduced=_transpose_target(case).reduced),
        ),
    ),
    hypotheses=setting.HYPOTHESES,
    narrow=setting.first_shapes,
    steps="steps",
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    at=setting.AT | {"weight_decay": 1e-3},
    sides="2r x 2r layers and L scalars against dense layers on the mean loss with eta d^2 and "
    "lambda / d^2",
)

THEOREM2 = Theorem(
    "theorem2",
    "gradient descent on deep factorisation lives in a 2r-dimensional subspace",
    setting.FLAGS,
    (FACTORIZATION, MEAN_LOSS, CLASSIFICATION, COLLAPSE),
    prepare=setting.prepare,
    check=setting.check,
    axes=setting.AXES,
    numbers=setting.numbers,
    title="Theorem 2",
    page="docs/theorems/theorem2.md",
    source="Yaras et al., The Law of Parsimony in Gradient Descent for Learning Deep Linear "
    "Networks; Figure 3 of arXiv 2503.19859",
    small=setting.SMALL,
)
