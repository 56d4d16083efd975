"""Corollary 1: the compressed network and its error."""

import numpy as np

from referee.descent import amplification, chain, descend
from referee.redone import Redone, largest, saved_sides
from referee.results import Point, once
from referee.theorem2 import (
    FactorizationCase,
    factorization_diverges,
    frame,
    rho,
    setting_of,
)


def compressed_product(of: FactorizationCase, rank: int) -> np.ndarray:
    """``f_C(t)``: the frame padded to 2 r^ columns, the inner layers trained."""
    frames = frame(of.layers, of.target, rank)
    k = 2 * rank
    onto, back = frames[-1][:, :k], frames[0][:, :k]
    goal = onto.T @ of.target @ back
    if of.optimizer != "gradient_descent":
        # The compressed network carries the bulk's scalar, for norms of the full layers.
        inner = of.reduced(goal, k, len(of.target) - k)[:, :, :k, :k]
        products = [chain(list(layers)) for layers in inner]
    else:
        start = [s * np.eye(k) for s in of.scales]
        residual = lambda whole: whole - goal  # noqa: E731
        products = descend(start, residual, of.rate, of.decay, of.times, chain)
    return np.array([onto @ small @ back.T for small in products])


@once
def error_identity(point: Point) -> Redone | None:
    """``||f - f_C||_F = sqrt(d - 2 r^) prod |rho_l|`` for every width that was compressed to."""
    if (of := setting_of(point)) is None:
        return None
    ranks = [int(r) for r in point.case["ranks"]]
    products = np.prod(np.abs(rho(of)), axis=1)
    theory = np.array([np.sqrt(len(of.target) - 2 * r) * products for r in ranks])
    run = lambda start: of.dense(start, chain)  # noqa: E731
    whole = run(of.layers)
    measured = np.array(
        [np.linalg.norm(whole - compressed_product(of, r), axis=(1, 2)) for r in ranks]
    )
    # The difference of two products is rounded like the products.
    scale = largest([np.linalg.norm(whole, axis=(1, 2)).max(), np.abs(theory).max()])
    condition = amplification(run, of.layers, float(np.abs(whole).max()), whole)
    # A point by hand has no saved sides.
    predicted, found = (
        side[:, : len(of.times)] if np.ndim(side) else side for side in saved_sides(point, "error")
    )
    return Redone(theory, measured, scale, condition, "equal", predicted, found)


def error_bound(point: Point, first_alone: bool = False) -> Redone | None:
    """``||f - f_C||_F <= sqrt(d - 2 r^) prod eps_l``, wherever every step contracts.

    With ``first_alone`` both sides at the start, where they are equal whatever follows.
    """
    if (of := setting_of(point)) is None or (redone := error_identity(point)) is None:
        return None
    if of.optimizer != "gradient_descent":
        # Momentum and Muon overshoot: rho itself is compared with eps.
        ratio = rho(of) / of.scales
    else:
        # All steps: between two records a factor could pass 1.
        every = of._replace(times=list(range(max(of.times) + 1)))
        path = rho(every)
        ratio = path[1:] / np.where(path[:-1], path[:-1], 1)
    # A factor of exactly 1, as of a tiny step, may round above it.
    if np.max(np.abs(ratio), initial=0) > 1 + 1e-12 and not first_alone:
        return None
    bound = np.sqrt(len(of.target) - 2 * point.case["ranks"]) * np.prod(of.scales)
    measured = np.asarray(redone.run)
    if first_alone:
        saved = (point.found["bound"], point.found["error_measured"][:, 0])
        return Redone(bound, measured[:, 0], redone.scale, 1.0, "equal", *saved)
    saved = np.broadcast_to(point.found["bound"][:, None], measured.shape)
    whole = np.broadcast_to(bound[:, None], measured.shape)
    return redone._replace(theory=whole, run=measured, kind="at most", saved_theory=saved)


def bound_attained(point: Point) -> Redone | None:
    """At the start the bound is attained."""
    return error_bound(point, first_alone=True)


def parameters(point: Point) -> Redone | None:
    """``L d^2``, ``4 d r^ + 4 L r^^2``, and ``4 L r^^2`` that are trained."""
    d, depth = len(point.case["target"]), len(point.case["scales"])
    theory = np.array(
        [
            [depth * d * d, 4 * d * r + 4 * depth * r * r, 4 * depth * r * r]
            for r in point.case["ranks"]
        ]
    )
    # Counted from shapes, where theory has a formula.
    shapes = [[(2 * r, 2 * r)] * depth for r in point.case["ranks"]]
    inner = np.array([sum(a * b for a, b in layers) for layers in shapes])
    outer = 4 * d * point.case["ranks"]
    dense = sum(w.size for w in point.parts("weights"))
    measured = np.stack([np.full_like(inner, dense), inner + outer, inner], axis=1)
    saved = saved_sides(point, "parameters")
    return Redone(theory, measured, 1.0, 1.0, "count", *saved)


CLAIMS = {
    "compression": {
        "error_identity": error_identity,
        "error_bound": error_bound,
        "bound_attained": bound_attained,
        "parameters": parameters,
    },
}
"""Scenario -> claim -> both of its sides."""
DIVERGES = {"compression": factorization_diverges}
"""Scenario -> whether the run of a point diverges, where nothing is claimed."""
