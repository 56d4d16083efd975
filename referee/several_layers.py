"""Theorem 3 and Example 4.1: dropout after each of several layers, and of single weights."""

import math
from collections.abc import Sequence

import numpy as np

from referee.dropout import SavedNetwork
from referee.masks import Mask, expected, masks, nuclear, square
from referee.redone import Redone, saved_sides
from referee.results import Point


def deep(point: Point) -> tuple[SavedNetwork, list[np.ndarray]]:
    """The network, and three layers made of its parts."""
    of, middle = SavedNetwork(point), point.case["middle"]
    k = len(middle)
    return of, [of.first[:k], middle, of.second[:, :k]]


def through(
    layers: Sequence[np.ndarray], inputs: np.ndarray, mask: Mask, keep: float
) -> np.ndarray:
    """Layers with masks over theta on every hidden one."""
    hidden, place = layers[0] @ inputs, 0
    for layer in layers[1:]:
        hidden = layer @ (mask[place : place + len(hidden), None] / keep * hidden)
        place += layer.shape[1]
    return hidden


def added_to_layers(layers: Sequence[np.ndarray], inputs: np.ndarray, keep: float) -> float:
    """Penalty of masks of both hidden layers, over all of them."""
    whole = layers[2] @ layers[1] @ layers[0] @ inputs
    units = len(layers[0]) + len(layers[1])
    return expected(masks(units, keep), lambda m: square(through(layers, inputs, m, keep) - whole))


def joint_penalty(layers: Sequence[np.ndarray], inputs: np.ndarray, keep: float) -> float:
    """Penalty ``tr M_L - tr(W C W^T)``, without the difference of two traces."""
    odds = (1 - keep) / keep
    plain = layers[0] @ inputs @ inputs.T @ layers[0].T
    more = np.zeros_like(plain)
    for layer in layers[1:]:
        spread = np.diag(np.diag(plain + more))
        more, plain = layer @ (more + odds * spread) @ layer.T, layer @ plain @ layer.T
    return float(np.trace(more))


def strength(keep: float, widths: Sequence[int]) -> float:
    """``nu = prod_i (1 + (1-theta)/(theta d_i)) - 1``."""
    return math.expm1(math.fsum(math.log1p((1 - keep) / keep / d) for d in widths))


def layers_penalty(point: Point) -> Redone:
    """The expected loss with dropout after each of two hidden layers, over all masks."""
    of, layers = deep(point)
    whole = layers[2] @ layers[1] @ layers[0] @ of.inputs
    theory = square(of.target - whole) + joint_penalty(layers, of.inputs, of.keep)
    units = len(layers[0]) + len(layers[1])
    loss = lambda m: square(of.target - through(layers, of.inputs, m, of.keep))  # noqa: E731
    measured = expected(masks(units, of.keep), loss)
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "layers"))


def layers_bound(point: Point) -> Redone:
    """Dropout of two hidden layers adds at least ``nu ||Z||_*^2``."""
    of, layers = deep(point)
    whole = layers[2] @ layers[1] @ layers[0] @ of.inputs
    theory = strength(of.keep, [len(layers[0]), len(layers[1])]) * nuclear(whole) ** 2
    measured = added_to_layers(layers, of.inputs, of.keep)
    return Redone(theory, measured, None, 1.0, "at least", *saved_sides(point, "layers_bound"))


def layers_schatten(point: Point) -> Redone:
    """Dropout of two hidden layers adds at least the bound with the 2/3-norm."""
    of, layers = deep(point)
    whole = layers[2] @ layers[1] @ layers[0] @ of.inputs
    # Beyond the narrowest layer values are rounding, whose power 2/3 is not small.
    values = np.linalg.svd(whole, compute_uv=False)[: len(layers[0])]
    first, second = (of.odds / len(layer) for layer in layers[:2])
    theory = (first + second) * values.sum() ** 2 + first * second * np.sum(values ** (2 / 3)) ** 3
    measured = added_to_layers(layers, of.inputs, of.keep)
    return Redone(theory, measured, None, 1.0, "at least", *saved_sides(point, "layers_schatten"))


def layers_rank_one(point: Point) -> Redone:
    """For a map of rank one spread evenly the penalty is ``nu ||Z||_*^2``."""
    of, layers = deep(point)
    column, row, d = point.case["column"], point.case["row"], len(layers[1])
    theory = strength(of.keep, [d, d]) * square(np.outer(column, row @ of.inputs))
    # Every unit has the same share of the map.
    even = np.full(d, d**-0.5)
    even_layers = [np.outer(even, row), np.outer(even, even), np.outer(column, even)]
    measured = added_to_layers(even_layers, of.inputs, of.keep)
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "layers_rank_one"))


def layers_rank_two(point: Point) -> Redone | None:
    """For two equal singular values spread evenly the bound with the 2/3-norm is attained."""
    of, layers = deep(point)
    d = len(layers[1])
    if d < 2:
        return None
    # Of the identity on two dimensions: nuclear norm 2, and (1 + 1)^3 = 8.
    theory = 2 * of.odds / d * 4 + (of.odds / d) ** 2 * 8
    # Vectors evenly around a circle are a tight frame; two of them must be orthogonal instead.
    angles = 2 * np.pi * np.arange(d) / d if d > 2 else np.array([0, np.pi / 2])
    turned = np.sqrt(2 / d) * np.stack([np.cos(angles), np.sin(angles)])
    measured = added_to_layers([turned.T, turned.T @ turned, turned], np.eye(2), of.keep)
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "layers_rank_two"))


TINY = 3
"""Most rows and columns of a layer whose weights are masked one by one."""


def dropconnect(point: Point, of_first: bool) -> Redone:
    """Masks on the weights of one layer, the first or the second."""
    of = SavedNetwork(point)
    first, second = of.first[:TINY, :TINY], of.second[:TINY, :TINY]
    inputs, target = of.inputs[:TINY], of.target[:TINY]
    theory = square(target - second @ first @ inputs)
    if of_first:
        each = np.outer(np.sum(second**2, 0), np.sum(inputs**2, 1)) * first**2
    else:
        each = np.sum(second**2, 0) * np.sum((first @ inputs) ** 2, 1)
    theory += of.odds * float(each.sum())

    def loss(mask: Mask) -> float:
        layer = first if of_first else second
        masked = layer * mask.reshape(layer.shape) / of.keep
        output = second @ masked @ inputs if of_first else masked @ first @ inputs
        return square(target - output)

    measured = expected(masks((first if of_first else second).size, of.keep), loss)
    name = "dropconnect_input" if of_first else "dropconnect_output"
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, name))


CLAIMS = {
    "dropout": {
        "layers": layers_penalty,
        "layers_bound": layers_bound,
        "layers_rank_one": layers_rank_one,
        "layers_schatten": layers_schatten,
        "layers_rank_two": layers_rank_two,
        "dropconnect_input": lambda point: dropconnect(point, True),
        "dropconnect_output": lambda point: dropconnect(point, False),
    }
}
"""Scenario -> claim -> both of its sides."""
