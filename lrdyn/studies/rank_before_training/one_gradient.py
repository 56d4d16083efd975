"""What activations and a gradient guarantee of an update: the identity that carries the verdict.

With X the inputs of a matrix and Delta the derivatives of the loss in its outputs, a token a
column, its gradient is G = Delta X^T, so that by Horn's inequality

    sigma_j(G) <= ||Delta||_2 sigma_j(X),

and the rank of G is at most the number of tokens. After t steps of descent with step size eta the
update is -eta [Delta_0 ... Delta_{t-1}] [X_0 ... X_{t-1}]^T, and

    sigma_j(W(t) - W(0)) <= eta ||[Delta_0 ... Delta_{t-1}]||_2 sigma_j([X_0 ... X_{t-1}]).

That is all that holds in general: a bound of the update of plain descent, from activations along
the way. Whether the spectra at the start *predict* its rank, also under Adam, is measured
(:mod:`lrdyn.studies.rank_before_training.trainings`).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn import networks
from lrdyn.core.spectra import singular_values
from lrdyn.networks.llama_network import Llama, llama
from lrdyn.studies.rank_before_training.layers import (
    gradients_of,
    inputs_and_slopes,
    matrices_of,
    replace_matrices,
)
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtMost, Equal
from lrdyn.verification.stating.statement import Claim, Control, Scenario

WIDTH, HIDDEN, LETTERS, LENGTH = 8, 12, 11, 5
"""Of the small model: its width, hidden units, tokens that there are, tokens of its text.

Fewer tokens than the width: the rank of a gradient is that of the text."""
STEPS = 3
SHARED = "attention.value"


class SmallModel(eqx.Module):
    """A small LLaMA with a text for each step."""

    net: Llama
    texts: Int[Array, "step one length_plus_1"]
    rate: Float[Array, ""]
    shared: Float[Array, ""]
    """How much of each value matrix is added to the queries of its block; 0: it is used once."""

    def loss(self, net: Llama, text: Int[Array, "one length_plus_1"]) -> Float[Array, ""]:
        """Mean cross-entropy of the next token."""
        logits = net(text[:, :-1])
        return networks.cross_entropy(logits.reshape(-1, LETTERS), text[:, 1:].ravel())

    def used(self, net: Llama) -> Llama:
        """The network with its queries as they act."""
        mixed = {}
        for path, W in matrices_of(net, is_of_a_block).items():
            if path.endswith(SHARED):
                query = path.replace(SHARED, "attention.query")
                mixed[query] = matrices_of(net, is_of_a_block)[query] + self.shared * W
        return replace_matrices(net, mixed)


class GradientTheory(NamedTuple):
    """What follows from inputs and slopes."""

    gradient: Float[Array, "entry"] = ABSENT
    """Delta X^T of all matrices of the blocks, one behind the other."""
    gradient_size: Float[Array, "entry"] = ABSENT
    """The sum of the sizes of its terms: the scale of its rounding."""
    gradient_values: Float[Array, "value"] = ABSENT
    """||Delta||_2 sigma_j(X)."""
    update_values: Float[Array, "value"] = ABSENT
    """eta ||[Delta_0 ...]||_2 sigma_j([X_0 ...])."""


class GradientMeasured(NamedTuple):
    """What automatic differentiation and descent give."""

    gradient: Float[Array, "entry"] = ABSENT
    """G of all matrices of the blocks."""
    gradient_values: Float[Array, "value"] = ABSENT
    """sigma_j(G)."""
    largest: Float[Array, "value"] = ABSENT
    """Scale of the rounding of each: ||Delta||_F ||X||_F, which sums of absolute values reach."""
    update_values: Float[Array, "value"] = ABSENT
    """sigma_j(W(t) - W(0))."""
    largest_update: Float[Array, "value"] = ABSENT
    """Scale of the rounding of each: ||W(t)||_F, of which the update is a difference."""


def is_of_a_block(path: str) -> bool:
    """Whether a path is that of a matrix of a block, not of the embedding or the head.

    Example:
        >>> is_of_a_block("blocks.0.mlp.up"), is_of_a_block("head")
        (True, False)
    """
    return path.startswith("blocks.")


def make_small_model(key: Key[Array, ""], *, small_depth: int, small_rate: Any) -> SmallModel:
    """A model of Gaussian matrices, and random texts."""
    net_key, text_key = jax.random.split(key)
    net = llama(net_key, vocabulary=LETTERS, width=WIDTH, depth=small_depth, heads=2, hidden=HIDDEN)
    # Matrices of order 1: at the usual .02 the blocks hardly do anything.
    net = jax.tree.map(lambda W: W * WIDTH**-0.5 / 0.02 if W.ndim == 2 else W, net)
    texts = jax.random.randint(text_key, (STEPS, 1, LENGTH + 1), 0, LETTERS)
    return SmallModel(net, texts, jnp.asarray(small_rate), jnp.zeros(()))


def _together(parts: dict[str, Array]) -> Array:
    # Sorted: JAX returns a dictionary in the order of its keys.
    return jnp.concatenate([jnp.ravel(parts[path]) for path in sorted(parts)])


def _padded(values: Array) -> Array:
    """As many values as a matrix of the blocks has: the others are 0."""
    return jnp.zeros(WIDTH, values.dtype).at[: min(len(values), WIDTH)].set(values[:WIDTH])


def _bounds(slopes: dict[str, Array], inputs: dict[str, Array], place: int = 0) -> Array:
    """A singular value of Delta, the largest one, times those of X."""
    return _together(
        {
            path: singular_values(slopes[path])[place] * _padded(singular_values(X))
            for path, X in inputs.items()
        }
    )


def _of_first_text(case: SmallModel) -> tuple[dict[str, Array], dict[str, Array]]:
    """X and Delta of the first step, each matrix used once."""
    return inputs_and_slopes(case.net, lambda net: case.loss(net, case.texts[0]), is_of_a_block)


def _sum_of_terms(slopes: Array, inputs: Array) -> Array:
    """Terms delta_i x_i^T, token by token: automatic differentiation has them in one product."""
    terms = [jnp.outer(slopes[:, i], inputs[:, i]) for i in range(inputs.shape[1])]
    return sum(terms[1:], terms[0])


def predict_gradient(case: SmallModel) -> GradientTheory:
    """Products of slopes and inputs, along a descent that takes no derivative in a matrix."""
    net, seen = case.net, []
    for text in case.texts:
        inputs, slopes = inputs_and_slopes(
            case.used(net), lambda net, text=text: case.loss(net, text), is_of_a_block
        )
        seen.append((inputs, slopes))
        moved = {
            path: W - case.rate * slopes[path] @ inputs[path].T
            for path, W in matrices_of(net, is_of_a_block).items()
        }
        net = replace_matrices(net, moved)
    inputs, slopes = seen[0]
    paths = list(inputs)
    all_inputs, all_slopes = (
        {path: jnp.hstack([step[side][path] for step in seen]) for path in paths} for side in (0, 1)
    )
    return GradientTheory(
        gradient=_together({path: _sum_of_terms(slopes[path], inputs[path]) for path in paths}),
        gradient_size=_together(
            {path: jnp.abs(slopes[path]) @ jnp.abs(inputs[path]).T for path in paths}
        ),
        gradient_values=_bounds(slopes, inputs),
        update_values=case.rate * _bounds(all_slopes, all_inputs),
    )


def measure_gradient(case: SmallModel) -> GradientMeasured:
    """Gradients by automatic differentiation, and descent along them."""

    def gradients(net: Llama, text: Array) -> dict[str, Array]:
        return gradients_of(net, lambda net: case.loss(case.used(net), text), is_of_a_block)

    start = matrices_of(case.net, is_of_a_block)
    first, net = gradients(case.net, case.texts[0]), case.net
    for text in case.texts:
        slopes = gradients(net, text)
        now = matrices_of(net, is_of_a_block)
        net = replace_matrices(net, {path: now[path] - case.rate * slopes[path] for path in now})
    end = matrices_of(net, is_of_a_block)
    ones = jnp.ones(WIDTH)
    return GradientMeasured(
        gradient=_together(first),
        gradient_values=_together({path: singular_values(G) for path, G in first.items()}),
        largest=_together({path: jnp.linalg.norm(G) * ones for path, G in first.items()}),
        update_values=_together({path: singular_values(end[path] - start[path]) for path in end}),
        largest_update=_together({path: jnp.linalg.norm(W) * ones for path, W in end.items()}),
    )


def _share(key: Key[Array, ""], case: SmallModel, amount: Array) -> SmallModel:
    """Let the value matrices act in the queries, too."""
    return eqx.tree_at(lambda case: case.shared, case, amount * jnp.ones_like(case.shared))


def _with_least_slope(case: SmallModel) -> GradientTheory:
    """The least singular value of Delta in the place of the largest."""
    inputs, slopes = _of_first_text(case)
    return GradientTheory(gradient_values=_bounds(slopes, inputs, -1))


def _of_first_step(case: SmallModel) -> GradientTheory:
    """Activations of the first text alone, where those of every step are asked for."""
    return GradientTheory(update_values=case.rate * predict_gradient(case).gradient_values)


def _without_last_token(case: SmallModel) -> GradientTheory:
    inputs, slopes = _of_first_text(case)
    return GradientTheory(
        gradient=_together({p: slopes[p][:, :-1] @ inputs[p][:, :-1].T for p in inputs})
    )


ONE_GRADIENT = Scenario[SmallModel, GradientTheory, GradientMeasured](
    "one_gradient",
    make_small_model,
    predict_gradient,
    measure_gradient,
    theory=GradientTheory,
    measured=GradientMeasured,
    claims=(
        Claim(
            "gradient",
            "the gradient of a matrix is Delta X^T, X its inputs and Delta the derivatives of the "
            "loss in its outputs, a token a column",
            form=lambda outcome: Equal(
                outcome.predicted.gradient,
                outcome.measured.gradient,
                # Delta itself is a sum over what lies above: an entry's own terms may be small.
                scale=np.max(outcome.predicted.gradient_size),
            ),
            reads=lambda theory, run: (theory.gradient, run.gradient, theory.gradient_size),
        ),
        Claim(
            "gradient_values",
            "sigma_j(G) <= ||Delta||_2 sigma_j(X): no more directions than there are tokens, and "
            "none that the activations do not have",
            kind="bound",
            form=lambda outcome: AtMost(
                outcome.measured.gradient_values,
                outcome.predicted.gradient_values,
                scale=outcome.measured.largest,
            ),
            reads=lambda theory, run: (theory.gradient_values, run.gradient_values, run.largest),
        ),
        Claim(
            "update_values",
            "after t steps of descent sigma_j(W(t) - W(0)) <= eta ||[Delta_0 ...]||_2 "
            "sigma_j([X_0 ...]), activations and slopes of all steps side by side",
            kind="bound",
            form=lambda outcome: AtMost(
                outcome.measured.update_values,
                outcome.predicted.update_values,
                scale=outcome.measured.largest_update,
            ),
            reads=lambda theory, run: (
                theory.update_values,
                run.update_values,
                run.largest_update,
            ),
        ),
    ),
    controls=(
        Control(
            "gradient_shared",
            "a matrix that is used twice, for values and added to the queries",
            "gradient",
            case=_share,
            breaks="each_matrix_is_used_once",
            amounts=(0.1, 1.0),
            amount_label="share of W_V in the queries",
        ),
        Control(
            "gradient_without_a_token",
            "without the last token",
            "gradient",
            predict=_without_last_token,
        ),
        Control(
            "gradient_values_least",
            "the least singular value of Delta in the place of the largest",
            "gradient_values",
            predict=_with_least_slope,
        ),
        Control(
            "update_values_first_step",
            "the activations of the first step in the place of those of all",
            "update_values",
            predict=_of_first_step,
        ),
    ),
    hypotheses={"each_matrix_is_used_once": lambda case: case.shared == 0},
    sides="products of inputs and slopes against automatic differentiation, and Horn's inequality "
    "against the SVD of a run",
)
