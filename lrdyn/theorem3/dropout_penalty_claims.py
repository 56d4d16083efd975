"""Example 4.1 of Theorem 3: dropout of linear networks, of several layers and of weights."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.initialization import gaussians
from lrdyn.core.masking import MaskDistribution, bernoulli_masks, exact_expectation
from lrdyn.core.spectra import singular_values
from lrdyn.theorem3 import dropconnect, dropout_penalties, several_dropout_layers
from lrdyn.theorem3.dropout_units import (
    COPIES,
    drop_last_direction,
    equalised_factors,
    least_penalties,
    measure_units,
    minorant,
    predict_units,
    strengths,
    unit_losses,
    unit_penalties,
    wrong_factors,
)
from lrdyn.theorem3.network import (
    DECOMPOSED,
    MOST_MASKS,
    EnumeratedNetwork,
    lower_bound,
    make_network,
    mask_penalty,
    masked_layers,
    nuclear_norm,
    restrict_mask,
    true_widths,
)
from lrdyn.verification.stating.fields import ABSENT, arrays_in
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

DEEP = 5
"""Most units of each of two hidden layers whose masks are enumerated together: 1024 losses."""

TINY = 3
"""Most rows and columns of a layer whose weights are masked one by one: 512 losses."""


class Dropout(eqx.Module):
    """A network of two layers, a deeper one and a tiny one out of its parts."""

    network: EnumeratedNetwork
    middle: Float[Array, "k k"]
    """A layer between W_1 and W_2, of their first k units."""
    column: Float[Array, "m"]
    row: Float[Array, "d"]
    """Factors u and v of a map of rank one, u v^T."""
    deep_masks: MaskDistribution
    """Masks of two hidden layers of k units."""
    weight_masks: MaskDistribution
    """Masks of the single weights of one layer of the tiny network."""

    @property
    def deep(self) -> Weights:
        """Layers of the deeper network: the first k units of W_1 and W_2, and one between them."""
        units, (first, second) = len(self.middle), self.network.weights
        return first[:units], self.middle, second[:, :units]

    @property
    def tiny(self) -> tuple[Weights, Float[Array, "d n"], Float[Array, "m n"]]:
        """Two layers of a few weights, their inputs and their target."""
        network = self.network
        first, second = (W[:TINY, :TINY] for W in network.weights)
        return (first, second), network.inputs[:TINY], network.target[:TINY]

    @property
    def hidden(self) -> tuple[int, int]:
        """Widths of the hidden layers of the deeper network."""
        return len(self.middle), len(self.middle)


class DropoutTheory(NamedTuple):
    """Losses and penalties from norms and formulas, Z = W_2 W_1 X and c = (1-theta)/(theta h)."""

    penalty: Float[Array, ""] = ABSENT
    """Fit and ``(1-theta)/theta sum_i ||u_i||^2 ||v_i||^2``: expected loss of masks over theta."""
    unscaled_masks: Float[Array, ""] = ABSENT
    """Expected loss with masks that are not divided by theta."""
    factorisations: Float[Array, "factorisation"] = ABSENT
    """c ||Z||_*^2, the lower bound for each factorisation."""
    equalised: Float[Array, "unit"] = ABSENT
    """||Z||_* / h, for each unit."""
    equalised_product: Float[Array, "row column"] = ABSENT
    """Z."""
    equalised_penalty: Float[Array, "copies"] = ABSENT
    """c ||Z||_*^2 at h and 3 h units."""
    width_free: Float[Array, "copies"] = ABSENT
    """``(1-p)/p ||Z||_*^2``, the least penalty at theta(h) whatever the width."""
    rounded_chance: Float[Array, ""] = ABSENT
    """By how much the odds at theta(h) amplify the rounding of theta(h)."""
    fixed_keep_prob: Float[Array, "copies"] = ABSENT
    """Penalty of k copies of every unit at fixed theta, 1/k of that of one."""
    envelope_above: Float[Array, ""] = ABSENT
    """``(1-p)/p ||Z||_*^2``, which is the mean penalty of networks of a single unit."""
    envelope_below: Float[Array, "single"] = ABSENT
    """Affine function of networks of a single unit that touches the envelope at Z."""
    layers: Float[Array, ""] = ABSENT
    """Expected loss with dropout after each of two hidden layers."""
    layers_bound: Float[Array, ""] = ABSENT
    """nu ||Z||_*^2 of three layers, nu = prod_i (1 + (1-theta)/(theta d_i)) - 1."""
    layers_rank_one: Float[Array, ""] = ABSENT
    """nu ||Z||_*^2 of a map of rank one."""
    layers_schatten: Float[Array, ""] = ABSENT
    """Bound on the penalty of three layers that takes the rank into account."""
    layers_rank_two: Float[Array, ""] = ABSENT
    """That bound for two equal singular values."""
    dropconnect_input: Float[Array, ""] = ABSENT
    """Expected loss with masks on the weights of W_1."""
    dropconnect_output: Float[Array, ""] = ABSENT
    """Expected loss with masks on the weights of W_2."""


class DropoutMeasured(NamedTuple):
    """Sums over all masks, and penalties of factors by the masks of each unit."""

    penalty: Float[Array, ""] = ABSENT
    """Loss summed over all masks over theta."""
    unscaled_masks: Float[Array, ""] = ABSENT
    """Loss summed over all masks that are not divided by theta."""
    factorisations: Float[Array, "factorisation"] = ABSENT
    """Penalties of factorisations of Z, the equalised one last."""
    equalised: Float[Array, "unit"] = ABSENT
    """||u_i|| ||v_i|| of the equalised factors."""
    equalised_product: Float[Array, "row column"] = ABSENT
    """Product of the equalised factors."""
    equalised_penalty: Float[Array, "copies"] = ABSENT
    """Penalty of equalised factors of h and 3 h units."""
    width_free: Float[Array, "copies"] = ABSENT
    """Their penalty at theta(h)."""
    fixed_keep_prob: Float[Array, "copies"] = ABSENT
    """Penalty of k copies of every unit at fixed theta."""
    envelope_above: Float[Array, ""] = ABSENT
    """Mean penalty of networks of a single unit whose mean is Z."""
    envelope_below: Float[Array, "single"] = ABSENT
    """Penalties of networks of a single unit."""
    layers: Float[Array, ""] = ABSENT
    """Loss of three layers summed over all masks of both hidden layers."""
    layers_bound: Float[Array, ""] = ABSENT
    """Penalty that these masks add for three layers."""
    layers_rank_one: Float[Array, ""] = ABSENT
    """Penalty for a map of rank one, spread evenly."""
    layers_schatten: Float[Array, ""] = ABSENT
    """Penalty for three layers, as in ``layers_bound``, against the other bound."""
    layers_rank_two: Float[Array, ""] = ABSENT
    """Penalty for a map of two equal singular values, spread evenly."""
    dropconnect_input: Float[Array, ""] = ABSENT
    """Loss of the tiny network summed over all masks of the weights of W_1."""
    dropconnect_output: Float[Array, ""] = ABSENT
    """Loss of the tiny network summed over all masks of the weights of W_2."""


def make_case(key: Key[Array, ""], *, rows: int, cols: int, width: int, keep_prob: Any) -> Dropout:
    """Draw a network and a layer in its middle."""
    units = min(width, DEEP)
    data, layers = (rows, cols), [(width, rows), (rows, width)]
    shapes = [data, data, (2, width), *layers, (units, units), (2, rows)]
    *draws, middle, vectors = gaussians(key, shapes)
    network = make_network(draws, keep_prob)
    return Dropout(
        network=network,
        middle=middle / np.sqrt(units),
        column=vectors[0],
        row=vectors[1],
        deep_masks=bernoulli_masks(2 * units, network.keep_prob),
        weight_masks=bernoulli_masks(min(rows, TINY) * min(width, TINY), network.keep_prob),
    )


# Theory: several layers, and masks on single weights -----------------------------------------


def _deep_loss(case: Dropout, penalty: Array) -> Float[Array, ""]:
    product = end_to_end(case.deep) @ case.network.inputs
    return jnp.sum((case.network.target - product) ** 2) + penalty


def _layer_bounds(case: Dropout, widths: tuple[int, ...]) -> DropoutTheory:
    """Bound of the penalty of the deeper network, and penalties of two simple maps."""
    inputs = case.network.inputs
    nu = several_dropout_layers.layers_strength(case.network.keep_prob, widths)
    rank_one = case.column[:, None] * (case.row @ inputs)[None, :]
    norm = nuclear_norm(end_to_end(case.deep) @ inputs)
    return DropoutTheory(
        layers_bound=nu * norm**2,
        layers_rank_one=nu * jnp.sum(rank_one**2),
        layers_rank_two=4 * nu,  # of the identity on two dimensions, of nuclear norm 2
    )


def _schatten_bound(case: Dropout) -> Float[Array, ""]:
    """The bound on the penalty of the deeper network that takes the rank into account."""
    # Rounding errors in place of zeros would count: their cube root is not small.
    values = singular_values(end_to_end(case.deep) @ case.network.inputs)[: len(case.middle)]
    return several_dropout_layers.layers_schatten_bound(values, case.network.keep_prob, case.hidden)


def _dropconnect_loss(case: Dropout, layer: int) -> Float[Array, ""]:
    """Expected loss under masks on the weights of one layer."""
    (first, second), inputs, target = case.tiny
    penalty = dropconnect.dropconnect_penalty(
        (first, second), inputs, case.network.keep_prob, layer=layer
    )
    return jnp.sum((target - second @ first @ inputs) ** 2) + penalty


def predict(case: Dropout) -> DropoutTheory:
    """Expected losses, least penalties and factors from norms and formulas."""
    inputs, theta = case.network.inputs, case.network.keep_prob
    penalty = several_dropout_layers.layers_penalty(case.deep, inputs @ inputs.T, theta)
    bounds = _layer_bounds(case, case.hidden)
    return DropoutTheory(
        **predict_units(case.network),
        layers=_deep_loss(case, penalty),
        layers_bound=bounds.layers_bound,
        layers_rank_one=bounds.layers_rank_one,
        layers_schatten=_schatten_bound(case),
        layers_rank_two=several_dropout_layers.layers_schatten_bound(
            jnp.ones(2, inputs.dtype), theta, case.hidden
        ),
        dropconnect_input=_dropconnect_loss(case, 1),
        dropconnect_output=_dropconnect_loss(case, 2),
    )


# Measurement ---------------------------------------------------------------------------------


def _losses(case: Dropout, deep: MaskDistribution, single: MaskDistribution) -> DropoutMeasured:
    """Expected losses of the deeper network, and with masks on single weights.

    Masks are divided by the theta of the case, whatever the distributions are.
    """
    theta = case.network.keep_prob

    def deep_loss(mask: Array) -> Array:
        output = masked_layers(case.deep, case.network.inputs, mask / theta)
        return jnp.sum((case.network.target - output) ** 2)

    def weights_losses(mask: Array) -> Array:
        """Losses with a mask on the weights of W_1, and with one on those of W_2."""
        (first, second), inputs, target = case.tiny
        scaled = mask / theta
        products = (
            second @ (first * scaled.reshape(first.shape)),
            (second * scaled.reshape(second.shape)) @ first,
        )
        return jnp.stack([jnp.sum((target - W @ inputs) ** 2) for W in products])

    dropconnect = exact_expectation(weights_losses, *single)
    return DropoutMeasured(
        layers=exact_expectation(deep_loss, *deep),
        dropconnect_input=dropconnect[0],
        dropconnect_output=dropconnect[1],
    )


def _deep_penalties(case: Dropout, divisor: Array) -> DropoutMeasured:
    """Penalties of masks over a divisor for several layers, over all masks of all layers."""
    inputs = case.network.inputs
    # The layers of the identity on two dimensions, spread evenly.
    eye = jnp.eye(2, dtype=inputs.dtype)
    frame = dropout_penalties.equalized_factors(eye, len(case.middle))[0]

    def added_penalty(weights: Weights, inputs: Array) -> Array:
        def output(mask: Array) -> Array:
            return masked_layers(weights, inputs, mask / divisor)

        # The mean of the output: each of two masks over a divisor has the mean theta / divisor.
        scale = (case.network.keep_prob / divisor) ** 2
        return mask_penalty(output, case.deep_masks, scale * (end_to_end(weights) @ inputs))

    of_network = added_penalty(case.deep, inputs)
    rank_one = several_dropout_layers.equalized_layers(case.column, case.row, case.hidden)
    return DropoutMeasured(
        layers_bound=of_network,
        layers_schatten=of_network,
        layers_rank_one=added_penalty(rank_one, inputs),
        layers_rank_two=added_penalty((frame.T, frame.T @ frame, frame), eye),
    )


def measure(case: Dropout) -> DropoutMeasured:
    """Expected losses over all masks, and penalties of factors."""
    return DropoutMeasured(
        **measure_units(case.network),
        **arrays_in(_losses(case, case.deep_masks, case.weight_masks)),
        **arrays_in(_deep_penalties(case, case.network.keep_prob)),
    )


def _has_two_units(outcome: Outcome[DropoutTheory, DropoutMeasured]) -> bool:
    return int(outcome.point["width"]) >= 2


# What is broken ------------------------------------------------------------------------------
# Each function returns what its controls look at and no more: what is returned is compiled.


def _without_width(case: Dropout) -> DropoutTheory:
    """The width dropped, from c and from nu."""
    bounds = _layer_bounds(case, (1,) * len(case.hidden))
    return DropoutTheory(**least_penalties(case.network, 1), **arrays_in(bounds))


def _wrong_formulas(case: Dropout) -> DropoutTheory:
    """Another wrong formula for each of these claims."""
    network = case.network
    left, right = network.factors
    theta, norm = network.keep_prob, nuclear_norm(network.product)
    penalty = dropout_penalties.dropout_penalty(left, right, theta)
    scaled = dropout_penalties.dropout_loss(left, right, network.target, theta)
    first, second, third = case.deep
    hidden = first @ network.inputs
    layer_by_layer = dropout_penalties.dropout_penalty(third @ second, hidden, theta)
    layer_by_layer += dropout_penalties.dropout_penalty(third, second @ hidden, theta)
    return DropoutTheory(
        # penalty - (1 - theta) penalty is theta penalty, of 1 - theta in place of the odds.
        penalty=scaled - (1 - theta) * penalty,
        unscaled_masks=scaled,
        equalised=jnp.full(network.width, norm),
        equalised_product=drop_last_direction(network),
        width_free=strengths(network, network.width) * norm**2,
        equalised_penalty=strengths(network, network.width) * norm,
        envelope_above=dropout_penalties.odds(theta) * norm,
        envelope_below=minorant(network, slope=4.0),
        layers_schatten=10 * _schatten_bound(case),
        fixed_keep_prob=jnp.full(len(COPIES), penalty),
        layers=_deep_loss(case, layer_by_layer),
        dropconnect_input=_dropconnect_loss(case, 2),
        dropconnect_output=_dropconnect_loss(case, 1),
    )


def _bound_at_rank_two(case: Dropout) -> DropoutTheory:
    bounds = _layer_bounds(case, case.hidden)
    return DropoutTheory(layers_rank_two=bounds.layers_rank_two)


def _other_masks(case: Dropout) -> DropoutMeasured:
    """Losses over masks kept with probability theta^2, though divided by theta."""
    squared = case.network.keep_prob**2
    deep = bernoulli_masks(case.deep_masks.support.shape[1], squared)
    single = bernoulli_masks(case.weight_masks.support.shape[1], squared)
    return DropoutMeasured(
        **unit_losses(case.network, bernoulli_masks(case.network.width, squared)),
        **arrays_in(_losses(case, deep, single)),
    )


def _masks_not_divided(case: Dropout) -> DropoutMeasured:
    """Penalties of masks that are not divided by theta."""
    network, divisor = case.network, jnp.ones_like(case.network.keep_prob)
    return DropoutMeasured(
        **unit_penalties(network, equalised_factors(network), divisor),
        **arrays_in(_deep_penalties(case, divisor)),
    )


def _wrong_factors(case: Dropout) -> DropoutMeasured:
    return DropoutMeasured(**wrong_factors(case.network))


# The scenario --------------------------------------------------------------------------------

DROPOUT = Scenario[Dropout, DropoutTheory, DropoutMeasured](
    "dropout",
    make_case,
    predict,
    measure,
    theory=DropoutTheory,
    measured=DropoutMeasured,
    claims=(
        Claim(
            "penalty",
            "E ||Y - W_2 diag(R/theta) W_1 X||_F^2 = ||Y - W_2 W_1 X||_F^2 + ((1-theta)/theta) "
            "sum_i ||w_{2,i}||^2 ||w_{1,i}^T X||^2 over all 2^h masks R of dropout",
        ),
        Claim(
            "unscaled_masks",
            "E ||Y - W_2 diag(R) W_1 X||_F^2 = ||Y - theta W_2 W_1 X||_F^2 + theta (1-theta) "
            "sum_i ||w_{2,i}||^2 ||w_{1,i}^T X||^2 over all 2^h masks R, not divided by theta",
        ),
        lower_bound(
            "factorisations",
            "every factorisation of Z with h units has a dropout penalty of at least "
            "((1-theta)/(theta h)) ||Z||_*^2",
        ),
        Claim(
            "equalised",
            "all units of the equalised factors U, V of Z have terms of the same norm, ||u_i|| "
            "||v_i|| = ||Z||_*/h",
        ),
        Claim(
            "equalised_product",
            "the product of the equalised factors of Z is Z",
            steps=DECOMPOSED,
        ),
        Claim(
            "equalised_penalty",
            "the dropout penalty of the equalised factors of Z is the least one, "
            "((1-theta)/(theta h)) ||Z||_*^2",
        ),
        Claim(
            "width_free",
            "with theta(h') = p/(h' - (h'-1) p) the least dropout penalty is ((1-p)/p) ||Z||_*^2 "
            "at the widths h' = h and 3 h (theta(h') is a rounded number: an error of it counts "
            "1/(1 - theta(h)) times)",
            condition=lambda theory: theory.rounded_chance,
        ),
        Claim(
            "envelope_above",
            "the networks of single units whose mean is Z have, at theta = p, the mean penalty "
            "((1-p)/p) ||Z||_*^2: no convex function below the penalties is larger at Z",
        ),
        lower_bound(
            "envelope_below",
            "((1-p)/p) (2 ||Z||_* <U V^T, M> - ||Z||_*^2), affine in M and ((1-p)/p) ||Z||_*^2 "
            "at M = Z = U Sigma V^T, lies below the penalty of every single unit M: the squared "
            "nuclear norm is the convex envelope",
        ),
        Claim(
            "fixed_keep_prob",
            "at fixed theta, k copies of every hidden unit have 1/k of the dropout penalty: it "
            "vanishes with the width",
        ),
        Claim(
            "layers",
            "dropout after each hidden layer adds tr M_L - tr(W C W^T) to the expected loss, "
            "M_{l+1} = W_{l+1} (M_l + ((1-theta)/theta) Diag M_l) W_{l+1}^T, M_1 = W_1 C W_1^T, "
            "C = X X^T, over all masks of all layers",
        ),
        lower_bound(
            "layers_bound",
            "dropout after each hidden layer, of widths d_i, adds at least nu ||W C^(1/2)||_*^2, "
            "nu = prod_i (1 + (1-theta)/(theta d_i)) - 1, C = X X^T",
        ),
        Claim(
            "layers_rank_one",
            "for a rank-one map W spread evenly over the units, dropout after each hidden layer "
            "adds exactly nu ||W C^(1/2)||_*^2, nu = prod_i (1 + (1-theta)/(theta d_i)) - 1",
        ),
        lower_bound(
            "layers_schatten",
            "dropout after each of two hidden layers adds at least (lambda/d_1 + lambda/d_2) "
            "||Z||_*^2 + lambda^2/(d_1 d_2) (sum_i sigma_i^(2/3))^3, Z = W X, lambda = "
            "(1-theta)/theta: more than nu ||Z||_*^2 beyond rank one",
        ),
        Claim(
            "layers_rank_two",
            "for two equal singular values spread evenly over two or more units, dropout after "
            "each of two hidden layers adds exactly (lambda/d_1 + lambda/d_2) ||Z||_*^2 + "
            "lambda^2/(d_1 d_2) (sum_i sigma_i^(2/3))^3, lambda = (1-theta)/theta: nu ||Z||_*^2 "
            "is not attained at rank two",
            applies=_has_two_units,
        ),
        Claim(
            "dropconnect_input",
            "masks on the single weights of W_1 add ((1-theta)/theta) sum_ik ||w_{2,i}||^2 "
            "W_{1,ik}^2 ||x_k||^2 to the expected loss, x_k the rows of X, over all masks",
        ),
        Claim(
            "dropconnect_output",
            "masks on the single weights of W_2 add what dropout adds, ((1-theta)/theta) sum_i "
            "||w_{2,i}||^2 ||w_{1,i}^T X||^2, over all masks",
        ),
    ),
    controls=(
        *(
            Control(control, statement, claim, predict=_without_width)
            for control, statement, claim in (
                ("penalty_without_width", "c with h dropped", "equalised_penalty"),
                ("bound_without_width", "c with h dropped", "factorisations"),
                ("layers_without_width", "nu with the widths dropped", "layers_rank_one"),
                ("layers_bound_without_width", "nu with the widths dropped", "layers_bound"),
            )
        ),
        *(
            Control(control, statement, claim, measure=_wrong_factors)
            for control, statement, claim in (
                ("factors_not_rotated", "factors of the SVD, not rotated", "equalised"),
                ("one_factor_rotated", "only the left factor rotated", "equalised_product"),
                ("fixed_theta_width_free", "fixed theta claimed to be width-free", "width_free"),
            )
        ),
        *(
            Control(control, statement, claim, predict=_wrong_formulas)
            for control, statement, claim in (
                (
                    "nuclear_norm_not_squared",
                    "c ||Z||_* in place of c ||Z||_*^2",
                    "equalised_penalty",
                ),
                ("dropout_rate_for_odds", "1 - theta in place of (1-theta)/theta", "penalty"),
                (
                    "scaled_for_unscaled",
                    "the formula of scaled masks for masks that are not",
                    "unscaled_masks",
                ),
                (
                    "copies_change_nothing",
                    "the penalty of copies at fixed theta claimed to be that of one",
                    "fixed_keep_prob",
                ),
                ("layers_apart", "the penalties of the layers one by one, added", "layers"),
                ("input_masks_as_dropout", "masks on W_1 taken for dropout", "dropconnect_input"),
                (
                    "output_masks_as_input",
                    "masks on W_2 taken for masks on W_1",
                    "dropconnect_output",
                ),
                ("equalised_not_shared", "terms of norm ||Z||_*", "equalised"),
                ("last_direction_lost", "Z without its smallest direction", "equalised_product"),
                ("width_free_with_width", "c with its h at every width", "width_free"),
                ("envelope_not_squared", "((1-p)/p) ||Z||_*", "envelope_above"),
                ("envelope_too_steep", "an affine function of twice the slope", "envelope_below"),
                (
                    "schatten_bound_tenfold",
                    "ten times the bound with the 2/3-norm",
                    "layers_schatten",
                ),
            )
        ),
        Control(
            "bound_at_rank_two",
            "nu ||Z||_*^2 claimed to be attained at rank two",
            "layers_rank_two",
            predict=_bound_at_rank_two,
        ),
        *(
            Control(
                f"{claim}_of_other_masks",
                "masks kept with probability theta^2 in the run",
                claim,
                measure=_other_masks,
            )
            for claim in (
                "penalty",
                "unscaled_masks",
                "layers",
                "dropconnect_input",
                "dropconnect_output",
            )
        ),
        *(
            Control(
                f"{claim}_not_divided",
                "masks that are not divided by theta in the run",
                claim,
                measure=_masks_not_divided,
            )
            for claim in (
                "factorisations",
                "equalised_penalty",
                "fixed_keep_prob",
                "envelope_above",
                "envelope_below",
                "layers_bound",
                "layers_rank_one",
                "layers_schatten",
                "layers_rank_two",
            )
        ),
    ),
    narrow=lambda settings: true_widths(restrict_mask("dropout")(settings), MOST_MASKS),
    summed=lambda case: (case.network.matrices, case.middle, case.column, case.row),
    sides="norms of Z and formulas against all masks enumerated",
    at={"mask": "dropout", "keep_prob": 0.5, "width": 4},
)
