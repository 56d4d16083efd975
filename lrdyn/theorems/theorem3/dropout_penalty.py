"""Theorem 3, part A: dropout of linear networks, of several layers and of weights."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.dropout import (
    dropconnect_penalty,
    dropout_loss,
    dropout_penalty,
    dropout_strength,
    equalize,
    equalized_factors,
    equalized_layers,
    layers_penalty,
    layers_strength,
    odds,
    width_free_keep_prob,
)
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussians
from lrdyn.masking import MaskDistribution, bernoulli_masks, block_masks, exact_expectation
from lrdyn.spectra import singular_values
from lrdyn.theorem import Claim, Control, Outcome, Statement

LARGEST = 12
"""Most independent masks whose combinations are enumerated here: 4096 losses."""

DEEP = 5
"""Most units of each of two hidden layers whose masks are enumerated together: 1024 losses."""

TINY = 3
"""Most rows and columns of a layer whose weights are masked one by one: 512 losses."""

COPIES = (1, 3)
"""Widths, as multiples of h, at which a claim about all widths is tested."""


class Network(eqx.Module):
    """Layers, data, and every mask of what is masked."""

    weights: Weights
    """W_1 and W_2."""
    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    keep_prob: Float[Array, ""]
    mixers: Float[Array, "mixers h h"]
    """Invertible G with other factors of the same product, W_2 G and G^-1 W_1."""
    unmixers: Float[Array, "mixers h h"]
    """G^-1."""
    masks: MaskDistribution
    """Of the hidden units."""
    block: int = eqx.field(static=True)

    @property
    def factors(self) -> tuple[Float[Array, "m h"], Float[Array, "h n"]]:
        """U and V of two layers, whose product is the prediction."""
        return self.weights[-1], self.weights[0] @ self.inputs


def reflection(vector: Float[Array, "d"]) -> Float[Array, "d d"]:
    """Orthogonal matrix without the cost of a decomposition, ``I - 2 v v^T / ||v||^2``."""
    outer = vector[:, None] * vector[None, :]
    return jnp.eye(len(vector), dtype=vector.dtype) - 2 * outer / jnp.sum(vector**2)


def make_network(draws: Sequence[Array], keep_prob: Any, block: int = 1) -> Network:
    """A network from Gaussian matrices: Y, X, two vectors of h entries, and the layers."""
    target, inputs, vectors, *weights = draws
    width = len(weights[0])
    keep_prob = jnp.asarray(keep_prob, target.dtype)
    # Reflections times diagonals: invertible, and the inverse is known.
    reflections = jax.vmap(reflection)(vectors)
    scales = jnp.stack([jnp.linspace(1.0, 3.0, width), jnp.linspace(2.0, 0.5, width)])
    return Network(
        weights=tuple(W / np.sqrt(max(W.shape)) for W in weights),
        inputs=inputs,
        target=target,
        keep_prob=keep_prob,
        mixers=reflections * scales[:, None, :],
        unmixers=reflections / scales[:, :, None],
        masks=block_masks(width, block, keep_prob),
        block=block,
    )


def only(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Settings of a statement about one kind of mask."""
    return lambda settings: (
        settings | {"mask": tuple(name for name in settings["mask"] if name == kind)}
    )


def nuclear(matrix: Float[Array, "m n"]) -> Float[Array, ""]:
    """Nuclear norm."""
    return jnp.sum(singular_values(matrix))


def missing(name: str) -> Callable[[Outcome], float]:
    """Residual of a bound: by how much what is measured falls below what is predicted."""

    def residual(one: Outcome) -> float:
        below, above = one.predicted[name], one.measured[name]
        return float(np.max(np.maximum(below - above, 0.0) / np.maximum(below, above)))

    return residual


# Penalty and factorisations ------------------------------------------------------------------


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


def _dropout(key: Key[Array, ""], *, rows: int, cols: int, width: int, keep_prob: Any) -> Dropout:
    width = min(width, LARGEST)
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


def _terms(left, right) -> Float[Array, "h"]:
    return jnp.linalg.norm(left, axis=0) * jnp.linalg.norm(right, axis=1)


def _strengths(network: Network) -> Float[Array, "copies"]:
    """The strength c at the widths of all COPIES."""
    width = len(network.weights[0])
    return jnp.stack([dropout_strength(network.keep_prob, copies * width) for copies in COPIES])


def _predict_units(network: Network) -> dict[str, Array]:
    left, right = network.factors
    product = left @ right
    width, norm = left.shape[1], nuclear(product)
    theta, copies = network.keep_prob, jnp.asarray(COPIES, product.dtype)
    fit = jnp.sum((network.target - theta * product) ** 2)
    least = _strengths(network) * norm**2
    return {
        "penalty": dropout_loss(left, right, network.target, theta),
        "unscaled_masks": fit + theta**2 * dropout_penalty(left, right, theta),
        "factorisations": jnp.full(len(network.mixers) + 1, least[0]),
        "equalised": jnp.full(width, norm / width),
        "equalised_product": product,
        "equalised_penalty": least,
        "width_free": jnp.full(len(COPIES), odds(theta) * norm**2),
        "fixed_keep_prob": dropout_penalty(left, right, theta) / copies,
    }


def _measure_units(network: Network) -> dict[str, Array]:
    left, right = network.factors
    width, theta = left.shape[1], network.keep_prob

    def losses(mask):
        """With masks that are divided by theta, and with masks that are not."""
        products = (left * (mask / theta)[None, :]) @ right, (left * mask[None, :]) @ right
        return jnp.stack([jnp.sum((network.target - product) ** 2) for product in products])

    penalties = jax.vmap(lambda G, H: dropout_penalty(left @ G, H @ right, theta))(
        network.mixers, network.unmixers
    )
    equal = equalized_factors(left @ right, width)
    expected = exact_expectation(losses, *network.masks)
    wide, fixed, copied = [], [], []
    for copies in COPIES:
        chance = width_free_keep_prob(theta, copies * width)
        factors = equal if copies == 1 else equalized_factors(left @ right, copies * width)
        wide.append(dropout_penalty(*factors, chance))
        fixed.append(dropout_penalty(*factors, theta))
        several = jnp.tile(left, (1, copies)) / copies, jnp.tile(right, (copies, 1))
        copied.append(dropout_penalty(*several, theta))
    return {
        "penalty": expected[0],
        "unscaled_masks": expected[1],
        "factorisations": jnp.append(penalties, fixed[0]),
        "equalised": _terms(*equal),
        "equalised_product": equal[0] @ equal[1],
        "equalised_penalty": jnp.stack(fixed),
        "width_free": jnp.stack(wide),
        "fixed_keep_prob": jnp.stack(copied),
    }


# Several layers, and masks on single weights -------------------------------------------------


def _predict_layers(case: Dropout) -> dict[str, Array]:
    inputs, theta = case.network.inputs, case.network.keep_prob
    nu = layers_strength(theta, case.hidden)
    product = end_to_end(case.deep) @ inputs
    one = case.column[:, None] * (case.row @ inputs)[None, :]
    tiny, seen, target = case.tiny
    fit = jnp.sum((target - end_to_end(tiny) @ seen) ** 2)
    return {
        "layers": jnp.sum((case.network.target - product) ** 2)
        + layers_penalty(case.deep, inputs @ inputs.T, theta),
        "layers_bound": nu * nuclear(product) ** 2,
        "layers_rank_one": nu * jnp.sum(one**2),
        "dropconnect_input": fit + dropconnect_penalty(tiny, seen, theta, layer=1),
        "dropconnect_output": fit + dropconnect_penalty(tiny, seen, theta, layer=2),
    }


def _measure_layers(case: Dropout) -> dict[str, Array]:
    inputs, theta = case.network.inputs, case.network.keep_prob
    moment = inputs @ inputs.T
    even = equalized_layers(case.column, case.row, case.hidden)

    def deep_loss(mask):
        first, *rest = case.deep
        hidden = first @ inputs
        for W, kept in zip(rest, jnp.split(mask / theta, len(rest)), strict=True):
            hidden = W @ (kept[:, None] * hidden)
        return jnp.sum((case.network.target - hidden) ** 2)

    def weights_loss(mask):
        """With masks on the weights of W_1, and with masks on those of W_2."""
        (first, second), seen, target = case.tiny
        scaled = mask / theta
        products = (
            second @ (first * scaled.reshape(first.shape)),
            (second * scaled.reshape(second.shape)) @ first,
        )
        return jnp.stack([jnp.sum((target - W @ seen) ** 2) for W in products])

    dropconnect = exact_expectation(weights_loss, *case.weight_masks)
    return {
        "layers": exact_expectation(deep_loss, *case.deep_masks),
        "layers_bound": layers_penalty(case.deep, moment, theta),
        "layers_rank_one": layers_penalty(even, moment, theta),
        "dropconnect_input": dropconnect[0],
        "dropconnect_output": dropconnect[1],
    }


def _predict(case: Dropout) -> dict[str, Array]:
    return _predict_units(case.network) | _predict_layers(case)


def _measure(case: Dropout) -> dict[str, Array]:
    return _measure_units(case.network) | _measure_layers(case)


# Claims --------------------------------------------------------------------------------------

DROPOUT_CLAIMS = (
    Claim(
        "penalty",
        "E ||Y - W_2 diag(R/theta) W_1 X||_F^2 = ||Y - W_2 W_1 X||_F^2 + ((1-theta)/theta) sum_i "
        "||w_{2,i}||^2 ||w_{1,i}^T X||^2, over all 2^h masks",
    ),
    Claim(
        "unscaled_masks",
        "E ||Y - W_2 diag(R) W_1 X||_F^2 = ||Y - theta W_2 W_1 X||_F^2 + theta (1-theta) sum_i ...",
    ),
    Claim(
        "factorisations",
        "every factorisation of Z has a penalty of at least ((1-theta)/(theta h)) ||Z||_*^2",
        kind="bound",
        residual=missing("factorisations"),
    ),
    Claim("equalised", "the equalised factors have terms of the same norm, ||Z||_*/h"),
    Claim("equalised_product", "their product is Z"),
    Claim("equalised_penalty", "their penalty is ((1-theta)/(theta h)) ||Z||_*^2: the minimum"),
    Claim(
        "width_free",
        "with theta(h') = p/(h' - (h'-1) p) the least penalty is ((1-p)/p) ||Z||_*^2 for h' = h "
        "and 3 h",
    ),
    Claim(
        "fixed_keep_prob",
        "at fixed theta the penalty of k copies of every unit is 1/k of it: it vanishes with width",
    ),
)

LAYERS_CLAIMS = (
    Claim(
        "layers",
        "dropout after each hidden layer adds tr M_L - tr(W C W^T), M_{l+1} = W_{l+1} (M_l + "
        "((1-theta)/theta) Diag M_l) W_{l+1}^T, over all masks of all layers",
    ),
    Claim(
        "layers_bound",
        "that is at least nu ||W C^(1/2)||_*^2, nu = prod_i (1 + (1-theta)/(theta d_i)) - 1",
        kind="bound",
        residual=missing("layers_bound"),
    ),
    Claim("layers_rank_one", "and equal to it for a rank-one map spread evenly over the units"),
    Claim(
        "dropconnect_input",
        "masks on the weights of W_1 add ((1-theta)/theta) sum_ik ||w_{2,i}||^2 W_{1,ik}^2 "
        "||x_k||^2, over all masks",
    ),
    Claim("dropconnect_output", "masks on the weights of W_2 add what dropout adds"),
)

# Controls ------------------------------------------------------------------------------------

AT = {"mask": "dropout", "keep_prob": 0.5, "width": 4}


# Each returns what its controls look at, and no more: a control is compiled like a claim.


def _product(case: Dropout) -> Float[Array, "m n"]:
    left, right = case.network.factors
    return left @ right


def _without_width(case: Dropout) -> dict[str, Array]:
    """The width dropped, from c and from nu."""
    theta, inputs = case.network.keep_prob, case.network.inputs
    single = odds(theta) * nuclear(_product(case)) ** 2
    nu = layers_strength(theta, (1,) * len(case.hidden))
    one = jnp.sum(case.column**2) * jnp.sum((case.row @ inputs) ** 2)
    return {
        "equalised_penalty": single / jnp.asarray(COPIES, single.dtype),
        "factorisations": jnp.full(len(case.network.mixers) + 1, single),
        "layers_bound": nu * nuclear(end_to_end(case.deep) @ inputs) ** 2,
        "layers_rank_one": nu * one,
    }


def _wrong_formulas(case: Dropout) -> dict[str, Array]:
    """Another wrong formula for each of these claims."""
    network = case.network
    left, right = network.factors
    theta = network.keep_prob
    penalty = dropout_penalty(left, right, theta)
    scaled = dropout_loss(left, right, network.target, theta)
    tiny, seen, target = case.tiny
    fit = jnp.sum((target - end_to_end(tiny) @ seen) ** 2)
    return {
        "penalty": scaled - (1 - theta) * penalty,
        "unscaled_masks": scaled,
        "equalised_penalty": _strengths(network) * nuclear(left @ right),
        "fixed_keep_prob": jnp.full(len(COPIES), penalty),
        "layers": _layers_apart(case),
        "dropconnect_input": fit + dropconnect_penalty(tiny, seen, theta, layer=2),
        "dropconnect_output": fit + dropconnect_penalty(tiny, seen, theta, layer=1),
    }


def _layers_apart(case: Dropout) -> Float[Array, ""]:
    first, second, third = case.deep
    hidden = first @ case.network.inputs
    product = third @ second @ hidden
    alone = dropout_penalty(third @ second, hidden, case.network.keep_prob)
    alone += dropout_penalty(third, second @ hidden, case.network.keep_prob)
    return jnp.sum((case.network.target - product) ** 2) + alone


def _wrong_factors(case: Dropout) -> dict[str, Array]:
    """Factors from the SVD alone, and the left one of them rotated alone; theta fixed."""
    left, values, right = linalg.svd(_product(case))
    width, theta = len(case.network.weights[0]), case.network.keep_prob
    one = left[:, :width] * jnp.sqrt(values[:width])[None, :]
    other = jnp.sqrt(values[:width])[:, None] * right[:width]
    wide = [equalized_factors(_product(case), copies * width) for copies in COPIES]
    return {
        "equalised": _terms(one, other),
        "equalised_product": equalize(one, one.T)[0] @ other,
        "width_free": jnp.stack([dropout_penalty(*factors, theta) for factors in wide]),
    }


DROPOUT = Statement(
    "dropout",
    _dropout,
    _predict,
    _measure,
    (*DROPOUT_CLAIMS, *LAYERS_CLAIMS),
    controls=(
        Control(
            "penalty_without_width",
            "c with h dropped",
            "equalised_penalty",
            predict=_without_width,
            at=AT,
        ),
        Control(
            "bound_without_width",
            "c with h dropped",
            "factorisations",
            predict=_without_width,
            at=AT,
        ),
        Control(
            "nuclear_norm_not_squared",
            "c ||Z||_* in place of c ||Z||_*^2",
            "equalised_penalty",
            predict=_wrong_formulas,
            at=AT,
        ),
        Control(
            "dropout_rate_for_odds",
            "1 - theta in place of (1-theta)/theta",
            "penalty",
            predict=_wrong_formulas,
            at=AT,
        ),
        Control(
            "scaled_for_unscaled",
            "the formula of scaled masks for masks that are not",
            "unscaled_masks",
            predict=_wrong_formulas,
            at=AT,
        ),
        Control(
            "factors_not_rotated",
            "factors of the SVD",
            "equalised",
            measure=_wrong_factors,
            at=AT,
        ),
        Control(
            "one_factor_rotated",
            "only the left factor rotated",
            "equalised_product",
            measure=_wrong_factors,
            at=AT,
        ),
        Control(
            "fixed_theta_width_free",
            "fixed theta claimed to be width-free",
            "width_free",
            measure=_wrong_factors,
            at=AT,
        ),
        Control(
            "copies_change_nothing",
            "the penalty of copies at fixed theta claimed to be that of one",
            "fixed_keep_prob",
            predict=_wrong_formulas,
            at=AT,
        ),
        Control(
            "layers_apart",
            "the penalties of the layers one by one, added",
            "layers",
            predict=_wrong_formulas,
            at=AT,
        ),
        Control(
            "layers_without_width",
            "nu with the widths dropped",
            "layers_rank_one",
            predict=_without_width,
            at=AT,
        ),
        Control(
            "layers_bound_without_width",
            "nu with the widths dropped",
            "layers_bound",
            predict=_without_width,
            at=AT,
        ),
        Control(
            "input_masks_as_dropout",
            "masks on W_1 taken for dropout",
            "dropconnect_input",
            predict=_wrong_formulas,
            at=AT,
        ),
        Control(
            "output_masks_as_input",
            "masks on W_2 taken for masks on W_1",
            "dropconnect_output",
            predict=_wrong_formulas,
            at=AT,
        ),
    ),
    dims={
        "factorisations": ("factorisation",),
        "equalised": ("unit",),
        "equalised_product": ("row", "column"),
        "width_free": ("copies",),
        "equalised_penalty": ("copies",),
        "fixed_keep_prob": ("copies",),
    },
    narrow=only("dropout"),
    sides="norms of Z and formulas against all masks enumerated",
)
