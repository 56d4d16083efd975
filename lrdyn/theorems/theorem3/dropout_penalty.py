"""Theorem 3, part A: dropout of linear networks, of several layers and of weights."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import dropout, linalg
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussians
from lrdyn.masking import MaskDistribution, bernoulli_masks, exact_expectation
from lrdyn.theorem import Claim, Control, Scenario
from lrdyn.theorems.theorem3.network import (
    MOST_MASKS,
    Network,
    make_network,
    missing,
    nuclear,
    only,
)

DEEP = 5
"""Most units of each of two hidden layers whose masks are enumerated together: 1024 losses."""

TINY = 3
"""Most rows and columns of a layer whose weights are masked one by one: 512 losses."""

COPIES = (1, 3)
"""Widths, as multiples of h, at which a claim about all widths is tested."""


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
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers of the deeper network."""
        return (len(self.middle),) * 2


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


# Penalty and factorisations ------------------------------------------------------------------


def _terms(left: Array, right: Array) -> Float[Array, "h"]:
    return jnp.linalg.norm(left, axis=0) * jnp.linalg.norm(right, axis=1)


def _strengths(network: Network, width: int) -> Float[Array, "copies"]:
    """The strength c at all COPIES of a width."""
    theta = network.keep_prob
    return jnp.stack([dropout.dropout_strength(theta, copies * width) for copies in COPIES])


def _least(network: Network, width: int) -> dict[str, Array]:
    """The least penalties of its product, if its layers have that width."""
    least = _strengths(network, width) * nuclear(network.product) ** 2
    factorisations = jnp.full(len(network.mixers) + 1, least[0])
    return {"factorisations": factorisations, "equalised_penalty": least}


def _predict_units(network: Network) -> dict[str, Array]:
    left, right = network.factors
    product, theta, norm = network.product, network.keep_prob, nuclear(network.product)
    penalty = dropout.dropout_penalty(left, right, theta)
    return _least(network, network.width) | {
        "penalty": dropout.dropout_loss(left, right, network.target, theta),
        "unscaled_masks": jnp.sum((network.target - theta * product) ** 2) + theta**2 * penalty,
        "equalised": jnp.full(network.width, norm / network.width),
        "equalised_product": product,
        "width_free": jnp.full(len(COPIES), dropout.odds(theta) * norm**2),
        "fixed_keep_prob": penalty / jnp.asarray(COPIES, product.dtype),
    }


def _equalised(network: Network) -> list[tuple[Array, Array]]:
    """Equalised factors of Z, of h units and of its copies."""
    width = network.width
    return [dropout.equalized_factors(network.product, copies * width) for copies in COPIES]


def _penalties(
    factors: Iterable[tuple[Array, Array]], chances: Iterable[Any]
) -> Float[Array, "factors"]:
    pairs = zip(factors, chances, strict=True)
    return jnp.stack([dropout.dropout_penalty(*pair, chance) for pair, chance in pairs])


def _measure_units(network: Network) -> dict[str, Array]:
    (left, right), theta = network.factors, network.keep_prob

    def losses(mask: Array):
        """With masks that are divided by theta, and with masks that are not."""
        products = (left * (mask / theta)[None, :]) @ right, (left * mask[None, :]) @ right
        return jnp.stack([jnp.sum((network.target - product) ** 2) for product in products])

    mixed = jax.vmap(lambda G, H: dropout.dropout_penalty(left @ G, H @ right, theta))(
        network.mixers, network.unmixers
    )
    equal, same = _equalised(network), [theta] * len(COPIES)
    copied = [(jnp.tile(left, (1, k)) / k, jnp.tile(right, (k, 1))) for k in COPIES]
    free = [dropout.width_free_keep_prob(theta, copies * network.width) for copies in COPIES]
    expected, fixed = exact_expectation(losses, *network.masks), _penalties(equal, same)
    return {
        "penalty": expected[0],
        "unscaled_masks": expected[1],
        "factorisations": jnp.append(mixed, fixed[0]),
        "equalised": _terms(*equal[0]),
        "equalised_product": equal[0][0] @ equal[0][1],
        "equalised_penalty": fixed,
        "width_free": _penalties(equal, free),
        "fixed_keep_prob": _penalties(copied, same),
    }


# Several layers, and masks on single weights -------------------------------------------------


def _deep_loss(case: Dropout, penalty: Array) -> Float[Array, ""]:
    product = end_to_end(case.deep) @ case.network.inputs
    return jnp.sum((case.network.target - product) ** 2) + penalty


def _layer_bounds(case: Dropout, widths: tuple[int, ...]) -> dict[str, Array]:
    """The bound on the penalty of the deeper network, and that of the rank-one map."""
    inputs, nu = case.network.inputs, dropout.layers_strength(case.network.keep_prob, widths)
    rank_one = case.column[:, None] * (case.row @ inputs)[None, :]
    norm = nuclear(end_to_end(case.deep) @ inputs)
    return {"layers_bound": nu * norm**2, "layers_rank_one": nu * jnp.sum(rank_one**2)}


def _dropconnect_loss(case: Dropout, layer: int) -> Float[Array, ""]:
    """Expected loss under masks on the weights of one layer."""
    tiny, seen, target = case.tiny
    penalty = dropout.dropconnect_penalty(tiny, seen, case.network.keep_prob, layer=layer)
    return jnp.sum((target - end_to_end(tiny) @ seen) ** 2) + penalty


def predict(case: Dropout) -> dict[str, Array]:
    """Expected losses, least penalties and factors from norms and formulas."""
    inputs = case.network.inputs
    penalty = dropout.layers_penalty(case.deep, inputs @ inputs.T, case.network.keep_prob)
    return {
        **_predict_units(case.network),
        **_layer_bounds(case, case.hidden),
        "layers": _deep_loss(case, penalty),
        "dropconnect_input": _dropconnect_loss(case, 1),
        "dropconnect_output": _dropconnect_loss(case, 2),
    }


def measure(case: Dropout) -> dict[str, Array]:
    """Expected losses over all masks, and penalties of factors."""
    inputs, theta = case.network.inputs, case.network.keep_prob
    even = dropout.equalized_layers(case.column, case.row, case.hidden)

    def deep_loss(mask: Array):
        first, *rest = case.deep
        hidden = first @ inputs
        for W, kept in zip(rest, jnp.split(mask / theta, len(rest)), strict=True):
            hidden = W @ (kept[:, None] * hidden)
        return jnp.sum((case.network.target - hidden) ** 2)

    def weights_loss(mask: Array):
        """With masks on the weights of W_1, and with masks on those of W_2."""
        (first, second), seen, target = case.tiny
        scaled = mask / theta
        products = (
            second @ (first * scaled.reshape(first.shape)),
            (second * scaled.reshape(second.shape)) @ first,
        )
        return jnp.stack([jnp.sum((target - W @ seen) ** 2) for W in products])

    dropconnect = exact_expectation(weights_loss, *case.weight_masks)
    return _measure_units(case.network) | {
        "layers": exact_expectation(deep_loss, *case.deep_masks),
        "layers_bound": dropout.layers_penalty(case.deep, inputs @ inputs.T, theta),
        "layers_rank_one": dropout.layers_penalty(even, inputs @ inputs.T, theta),
        "dropconnect_input": dropconnect[0],
        "dropconnect_output": dropconnect[1],
    }


# Claims --------------------------------------------------------------------------------------

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
          "and 3 h"),
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
    Claim("dropconnect_input",
          "masks on the weights of W_1 add ((1-theta)/theta) sum_ik ||w_{2,i}||^2 W_{1,ik}^2 "
          "||x_k||^2, over all masks"),
    Claim("dropconnect_output", "masks on the weights of W_2 add what dropout adds"),
)  # fmt: skip

# Controls ------------------------------------------------------------------------------------
# Each returns what its controls look at, and no more: a control is compiled like a claim.


def _without_width(case: Dropout) -> dict[str, Array]:
    """The width dropped, from c and from nu."""
    return _least(case.network, 1) | _layer_bounds(case, (1,) * len(case.hidden))


def _wrong_formulas(case: Dropout) -> dict[str, Array]:
    """Another wrong formula for each of these claims."""
    network = case.network
    left, right = network.factors
    theta = network.keep_prob
    penalty = dropout.dropout_penalty(left, right, theta)
    scaled = dropout.dropout_loss(left, right, network.target, theta)
    first, second, third = case.deep
    hidden = first @ network.inputs
    apart = dropout.dropout_penalty(third @ second, hidden, theta)
    apart += dropout.dropout_penalty(third, second @ hidden, theta)
    return {
        "penalty": scaled - (1 - theta) * penalty,
        "unscaled_masks": scaled,
        "equalised_penalty": _strengths(network, network.width) * nuclear(network.product),
        "fixed_keep_prob": jnp.full(len(COPIES), penalty),
        "layers": _deep_loss(case, apart),
        "dropconnect_input": _dropconnect_loss(case, 2),
        "dropconnect_output": _dropconnect_loss(case, 1),
    }


def _wrong_factors(case: Dropout) -> dict[str, Array]:
    """Factors from the SVD alone, and the left one of them rotated alone; theta fixed."""
    network = case.network
    left, values, right = linalg.svd(network.product)
    width, roots = network.width, jnp.sqrt(values[: network.width])
    one, other = left[:, :width] * roots[None, :], roots[:, None] * right[:width]
    return {
        "equalised": _terms(one, other),
        "equalised_product": dropout.equalize(one, one.T)[0] @ other,
        "width_free": _penalties(_equalised(network), [network.keep_prob] * len(COPIES)),
    }


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
    },
    narrow=only("dropout"), sides="norms of Z and formulas against all masks enumerated",
    at={"mask": "dropout", "keep_prob": 0.5, "width": 4},
)  # fmt: skip
