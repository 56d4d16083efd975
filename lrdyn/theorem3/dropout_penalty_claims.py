"""Theorem 3, part A: dropout of linear networks, of several layers and of weights."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.initialization import gaussians
from lrdyn.core.masking import MaskDistribution, bernoulli_masks, exact_expectation
from lrdyn.core.spectra import singular_values
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem3 import dropout_penalties, several_dropout_layers
from lrdyn.theorem3.dropout_units import (
    COPIES,
    equalised,
    least,
    measure_units,
    minorant,
    predict_units,
    strengths,
    unit_losses,
    unit_penalties,
    without_last,
    wrong_factors,
)
from lrdyn.theorem3.network import (
    MOST_MASKS,
    Network,
    added_by_masks,
    make_network,
    masked_layers,
    missing,
    nuclear,
    only,
)

DEEP = 5
"""Most units of each of two hidden layers whose masks are enumerated together: 1024 losses."""

TINY = 3
"""Most rows and columns of a layer whose weights are masked one by one: 512 losses."""


class Dropout(eqx.Module):
    """A network of two layers, a deeper one and a tiny one out of its parts."""

    network: Network
    middle: Float[Array, "k k"]
    """A layer between W_1 and W_2, of their first k units."""
    column: Float[Array, "m"]
    row: Float[Array, "d"]
    """Of a rank-one map."""
    deep_masks: MaskDistribution
    """Of two hidden layers of k units."""
    weight_masks: MaskDistribution
    """Of the single weights of one layer of the tiny network."""

    @property
    def deep(self) -> Weights:
        """Three layers."""
        units, (first, second) = len(self.middle), self.network.weights
        return first[:units], self.middle, second[:, :units]

    @property
    def tiny(self) -> tuple[Weights, Float[Array, "d n"], Float[Array, "m n"]]:
        """Two layers of a few weights, their inputs and their target."""
        one = self.network
        first, second = (W[:TINY, :TINY] for W in one.weights)
        return (first, second), one.inputs[:TINY], one.target[:TINY]

    @property
    def hidden(self) -> tuple[int, int]:
        """Widths of the hidden layers of the deeper network."""
        return len(self.middle), len(self.middle)


def make_case(key: Key[Array, ""], *, rows: int, cols: int, width: int, keep_prob: Any) -> Dropout:
    """Draw a network and a layer in its middle."""
    width = min(width, MOST_MASKS)
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


# Several layers, and masks on single weights -------------------------------------------------


def _deep_loss(case: Dropout, penalty: Array) -> Float[Array, ""]:
    product = end_to_end(case.deep) @ case.network.inputs
    return jnp.sum((case.network.target - product) ** 2) + penalty


def _layer_bounds(case: Dropout, widths: tuple[int, ...]) -> dict[str, Array]:
    """The bound on the penalty of the deeper network, and that of two maps that are simple."""
    inputs, nu = (
        case.network.inputs,
        several_dropout_layers.layers_strength(case.network.keep_prob, widths),
    )
    rank_one = case.column[:, None] * (case.row @ inputs)[None, :]
    norm = nuclear(end_to_end(case.deep) @ inputs)
    return {
        "layers_bound": nu * norm**2,
        "layers_rank_one": nu * jnp.sum(rank_one**2),
        "layers_rank_two": 4 * nu,
    }


def _schatten_bounds(case: Dropout) -> dict[str, Array]:
    """The bound that takes the rank into account, for these two."""
    theta, (units, _) = case.network.keep_prob, case.hidden
    # Rounding errors in place of zeros would count: their cube root is not small.
    values = singular_values(end_to_end(case.deep) @ case.network.inputs)[:units]
    return {
        "layers_schatten": several_dropout_layers.layers_schatten_bound(values, theta, case.hidden),
        "layers_rank_two": several_dropout_layers.layers_schatten_bound(
            jnp.ones(2, values.dtype), theta, case.hidden
        ),
    }


def _dropconnect_loss(case: Dropout, layer: int) -> Float[Array, ""]:
    """Expected loss under masks on the weights of one layer."""
    tiny, seen, target = case.tiny
    penalty = several_dropout_layers.dropconnect_penalty(
        tiny, seen, case.network.keep_prob, layer=layer
    )
    return jnp.sum((target - end_to_end(tiny) @ seen) ** 2) + penalty


def predict(case: Dropout) -> dict[str, Array]:
    """Expected losses, least penalties and factors from norms and formulas."""
    inputs = case.network.inputs
    penalty = several_dropout_layers.layers_penalty(
        case.deep, inputs @ inputs.T, case.network.keep_prob
    )
    return {
        **predict_units(case.network),
        **_layer_bounds(case, case.hidden),
        **_schatten_bounds(case),
        "layers": _deep_loss(case, penalty),
        "dropconnect_input": _dropconnect_loss(case, 1),
        "dropconnect_output": _dropconnect_loss(case, 2),
    }


def _losses(case: Dropout, deep: MaskDistribution, single: MaskDistribution) -> dict[str, Array]:
    """Expected losses of the deeper network, and with masks on single weights."""
    theta, target = case.network.keep_prob, case.network.target

    def deep_loss(mask: Array):
        output = masked_layers(case.deep, case.network.inputs, mask / theta)
        return jnp.sum((target - output) ** 2)

    def weights_loss(mask: Array):
        """With masks on the weights of W_1, and with masks on those of W_2."""
        (first, second), seen, wanted = case.tiny
        scaled = mask / theta
        products = (
            second @ (first * scaled.reshape(first.shape)),
            (second * scaled.reshape(second.shape)) @ first,
        )
        return jnp.stack([jnp.sum((wanted - W @ seen) ** 2) for W in products])

    dropconnect = exact_expectation(weights_loss, *single)
    return {
        "layers": exact_expectation(deep_loss, *deep),
        "dropconnect_input": dropconnect[0],
        "dropconnect_output": dropconnect[1],
    }


def _deep_penalties(case: Dropout, divisor: Any) -> dict[str, Array]:
    """What masks over a divisor add to the output of layers, over all masks of all layers."""
    (units, _), inputs = case.hidden, case.network.inputs
    # The layers of the identity on two dimensions, spread evenly.
    frame = dropout_penalties.equalized_factors(jnp.eye(2, dtype=inputs.dtype), units)[0]

    def added(weights: Weights, seen: Array):
        def output(mask: Array):
            return masked_layers(weights, seen, mask / divisor)

        scale = (case.network.keep_prob / divisor) ** 2
        return added_by_masks(output, case.deep_masks, scale * (end_to_end(weights) @ seen))

    own = added(case.deep, inputs)
    return {
        "layers_bound": own,
        "layers_schatten": own,
        "layers_rank_one": added(
            several_dropout_layers.equalized_layers(case.column, case.row, case.hidden), inputs
        ),
        "layers_rank_two": added((frame.T, frame.T @ frame, frame), jnp.eye(2, dtype=inputs.dtype)),
    }


def measure(case: Dropout) -> dict[str, Array]:
    """Expected losses over all masks, and penalties of factors."""
    return {
        **measure_units(case.network),
        **_losses(case, case.deep_masks, case.weight_masks),
        **_deep_penalties(case, case.network.keep_prob),
    }


# Claims --------------------------------------------------------------------------------------


def _two_units(one: Outcome) -> bool:
    return int(one.point["width"]) >= 2


CLAIMS = (
    Claim("penalty",
          "E ||Y - W_2 diag(R/theta) W_1 X||_F^2 = ||Y - W_2 W_1 X||_F^2 + ((1-theta)/theta) sum_i "
          "||w_{2,i}||^2 ||w_{1,i}^T X||^2, over all 2^h masks"),
    Claim("unscaled_masks",
          "E ||Y - W_2 diag(R) W_1 X||_F^2 = ||Y - theta W_2 W_1 X||_F^2 + theta (1-theta) sum_i "
          "..."),
    Claim("factorisations",
          "every factorisation of Z has a penalty of at least ((1-theta)/(theta h)) ||Z||_*^2",
          kind="bound", residual=missing("factorisations")),
    Claim("equalised", "the equalised factors have terms of the same norm, ||Z||_*/h"),
    Claim("equalised_product", "their product is Z"),
    Claim("equalised_penalty", "their penalty is ((1-theta)/(theta h)) ||Z||_*^2: the minimum"),
    Claim("width_free",
          "with theta(h') = p/(h' - (h'-1) p) the least penalty is ((1-p)/p) ||Z||_*^2 for h' = h "
          "and 3 h (theta(h') is a rounded number: an error of it counts 1/(1 - theta(h)) times)",
          condition="rounded_chance"),
    Claim("envelope_above",
          "networks of a single unit have the mean Z and, at theta = p, the mean penalty ((1-p)/p) "
          "||Z||_*^2: no convex function below the penalties is larger at Z"),
    Claim("envelope_below",
          "((1-p)/p) (2 ||Z||_* <U V^T, M> - ||Z||_*^2), affine in M and ((1-p)/p) ||Z||_*^2 at "
          "M = Z, lies below the penalty of every single unit M: the squared nuclear norm is the "
          "convex envelope", kind="bound", residual=missing("envelope_below")),
    Claim("fixed_keep_prob",
          "at fixed theta the penalty of k copies of every unit is 1/k of it: it vanishes with "
          "width"),
    Claim("layers",
          "dropout after each hidden layer adds tr M_L - tr(W C W^T), M_{l+1} = W_{l+1} (M_l + "
          "((1-theta)/theta) Diag M_l) W_{l+1}^T, over all masks of all layers"),
    Claim("layers_bound",
          "that is at least nu ||W C^(1/2)||_*^2, nu = prod_i (1 + (1-theta)/(theta d_i)) - 1",
          kind="bound", residual=missing("layers_bound")),
    Claim("layers_rank_one", "and equal to it for a rank-one map spread evenly over the units"),
    Claim("layers_schatten",
          "it is at least (lambda/d_1 + lambda/d_2) ||Z||_*^2 + lambda^2/(d_1 d_2) (sum_i "
          "sigma_i^(2/3))^3, Z = W X, lambda = (1-theta)/theta: more than nu ||Z||_*^2 beyond rank "
          "one", kind="bound", residual=missing("layers_schatten")),
    Claim("layers_rank_two",
          "and equal to that for two equal singular values spread evenly: at rank two nu ||Z||_*^2 "
          "is not attained (if there are two units or more)", applies=_two_units),
    Claim("dropconnect_input",
          "masks on the weights of W_1 add ((1-theta)/theta) sum_ik ||w_{2,i}||^2 W_{1,ik}^2 "
          "||x_k||^2, over all masks"),
    Claim("dropconnect_output", "masks on the weights of W_2 add what dropout adds"),
)  # fmt: skip

# Controls ------------------------------------------------------------------------------------
# Each returns what its controls look at, and no more: a control is compiled like a claim.


def _without_width(case: Dropout) -> dict[str, Array]:
    """The width dropped, from c and from nu."""
    return least(case.network, 1) | _layer_bounds(case, (1,) * len(case.hidden))


def _wrong_formulas(case: Dropout) -> dict[str, Array]:
    """Another wrong formula for each of these claims."""
    network = case.network
    left, right = network.factors
    theta = network.keep_prob
    penalty = dropout_penalties.dropout_penalty(left, right, theta)
    scaled = dropout_penalties.dropout_loss(left, right, network.target, theta)
    first, second, third = case.deep
    hidden = first @ network.inputs
    apart = dropout_penalties.dropout_penalty(third @ second, hidden, theta)
    apart += dropout_penalties.dropout_penalty(third, second @ hidden, theta)
    return {
        "penalty": scaled - (1 - theta) * penalty,
        "unscaled_masks": scaled,
        "equalised": jnp.full(network.width, nuclear(network.product)),
        "equalised_product": without_last(network),
        "width_free": strengths(network, network.width) * nuclear(network.product) ** 2,
        "equalised_penalty": strengths(network, network.width) * nuclear(network.product),
        "envelope_above": dropout_penalties.odds(theta) * nuclear(network.product),
        "envelope_below": minorant(network, slope=4.0),
        "layers_schatten": 10 * _schatten_bounds(case)["layers_schatten"],
        "fixed_keep_prob": jnp.full(len(COPIES), penalty),
        "layers": _deep_loss(case, apart),
        "dropconnect_input": _dropconnect_loss(case, 2),
        "dropconnect_output": _dropconnect_loss(case, 1),
    }


def _other_masks(case: Dropout) -> dict[str, Array]:
    """Losses over masks kept with probability theta^2, though divided by theta."""
    squared, (units, _) = case.network.keep_prob**2, case.hidden
    single = bernoulli_masks(case.weight_masks.support.shape[1], squared)
    own = bernoulli_masks(case.network.width, squared)
    return {
        **unit_losses(case.network, own),
        **_losses(case, bernoulli_masks(2 * units, squared), single),
    }


def _masks_not_divided(case: Dropout) -> dict[str, Array]:
    """Penalties of masks that are not divided by theta."""
    one = jnp.ones_like(case.network.keep_prob)
    equal = equalised(case.network)
    return unit_penalties(case.network, equal, one) | _deep_penalties(case, one)


def _wrong_factors(case: Dropout) -> dict[str, Array]:
    return wrong_factors(case.network)


CONTROLS = (
    Control("penalty_without_width", "c with h dropped", "equalised_penalty",
            predict=_without_width),
    Control("bound_without_width", "c with h dropped", "factorisations", predict=_without_width),
    Control("nuclear_norm_not_squared", "c ||Z||_* in place of c ||Z||_*^2", "equalised_penalty",
            predict=_wrong_formulas),
    Control("dropout_rate_for_odds", "1 - theta in place of (1-theta)/theta", "penalty",
            predict=_wrong_formulas),
    Control("scaled_for_unscaled", "the formula of scaled masks for masks that are not",
            "unscaled_masks", predict=_wrong_formulas),
    Control("factors_not_rotated", "factors of the SVD", "equalised", measure=_wrong_factors),
    Control("one_factor_rotated", "only the left factor rotated", "equalised_product",
            measure=_wrong_factors),
    Control("fixed_theta_width_free", "fixed theta claimed to be width-free", "width_free",
            measure=_wrong_factors),
    Control("copies_change_nothing",
            "the penalty of copies at fixed theta claimed to be that of one", "fixed_keep_prob",
            predict=_wrong_formulas),
    Control("layers_apart", "the penalties of the layers one by one, added", "layers",
            predict=_wrong_formulas),
    Control("layers_without_width", "nu with the widths dropped", "layers_rank_one",
            predict=_without_width),
    Control("layers_bound_without_width", "nu with the widths dropped", "layers_bound",
            predict=_without_width),
    Control("input_masks_as_dropout", "masks on W_1 taken for dropout", "dropconnect_input",
            predict=_wrong_formulas),
    Control("output_masks_as_input", "masks on W_2 taken for masks on W_1", "dropconnect_output",
            predict=_wrong_formulas),
    Control("equalised_not_shared", "terms of norm ||Z||_*", "equalised", predict=_wrong_formulas),
    Control("last_direction_lost", "Z without its smallest direction", "equalised_product",
            predict=_wrong_formulas),
    Control("width_free_with_width", "c with its h at every width", "width_free",
            predict=_wrong_formulas),
    Control("envelope_not_squared", "((1-p)/p) ||Z||_*", "envelope_above",
            predict=_wrong_formulas),
    Control("envelope_too_steep", "twice the slope", "envelope_below", predict=_wrong_formulas),
    Control("schatten_bound_tenfold", "ten times the bound", "layers_schatten",
            predict=_wrong_formulas),
    Control[Dropout]("bound_at_rank_two", "nu ||Z||_*^2 claimed to be attained at rank two",
            "layers_rank_two", predict=lambda case: _layer_bounds(case, case.hidden)),
    *(
        Control(f"{claim}_of_other_masks", "masks kept with probability theta^2 in the run", claim,
                measure=_other_masks)
        for claim in ("penalty", "unscaled_masks", "layers", "dropconnect_input",
                      "dropconnect_output")
    ),
    *(
        Control(f"{claim}_not_divided", "masks that are not divided by theta in the run", claim,
                measure=_masks_not_divided)
        for claim in ("factorisations", "equalised_penalty", "fixed_keep_prob", "envelope_above",
                      "envelope_below", "layers_bound", "layers_rank_one", "layers_schatten",
                      "layers_rank_two")
    ),
)  # fmt: skip

DROPOUT = Scenario(
    "dropout", make_case, predict, measure, CLAIMS, CONTROLS,
    dims={
        "factorisations": ("factorisation",),
        "equalised": ("unit",),
        "equalised_product": ("row", "column"),
        "width_free": ("copies",),
        "equalised_penalty": ("copies",),
        "fixed_keep_prob": ("copies",),
        "envelope_below": ("single",),
    },
    narrow=only("dropout"), sides="norms of Z and formulas against all masks enumerated",
    at={"mask": "dropout", "keep_prob": 0.5, "width": 4},
)  # fmt: skip
