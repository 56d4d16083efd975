"""Corollary 1: the compressed network and its error."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.claims import relative_difference
from lrdyn.compression import (
    CompressedNetwork,
    bulk_contracts,
    compress,
    compressed_product,
    compression_bound,
    compression_error,
    count,
    parameter_counts,
)
from lrdyn.factorization import Weights, end_to_end, factorization_loss
from lrdyn.spectra import singular_values
from lrdyn.subspace import Frame, blocks, frame, reduced_dynamics, reduced_target, rho
from lrdyn.theorem import Claim, Control, Flag, Outcome, Statement, Theorem, at_least
from lrdyn.theorems.deep_factorization import (
    AT,
    AXES,
    FLAGS,
    HYPOTHESES,
    RUN,
    DeepFactorization,
    Move,
    check,
    conditioned_run,
    departures,
    make_case,
    prepare,
    run,
)

SHAPES = {"dim": (12,), "depth": (3,), "rank": (2,)}
"""Quick values of the flags that are compiled one by one: fewer than for Theorem 2."""

EXCESS = Flag(
    "excess_rank",
    (1,),
    at_least(0),
    int,
    "r^ - r",
    "compress to r^ = r and to this much more: inner layers are 2 r^ x 2 r^",
    (1, 5),
    shapes=True,
)


class Compression(eqx.Module):
    """A run of deep factorisation and the size of its compressed network."""

    run: DeepFactorization
    ranks: tuple[int, ...] = eqx.field(static=True)
    """The r^ of the compressed networks: r, and beyond."""


def make_compression(key: Key[Array, ""], *, excess_rank: int, **flags: Any) -> Compression:
    """Draw a run that meets the hypotheses of Corollary 1, from the flags."""
    ranks = (flags["rank"], flags["rank"] + excess_rank)
    return Compression(make_case(key, **flags), ranks)


def check_compression(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the corollary."""
    check(point)
    rank = point["rank"] + point["excess_rank"]
    if point["dim"] <= 2 * rank:
        raise ValueError(
            f"--excess-rank: got {point['excess_rank']} with d = {point['dim']} and "
            f"r = {point['rank']}, wanted d > 2 r^"
        )


def _bulk(case: DeepFactorization) -> Float[Array, "times depth"]:
    return rho(case.scales, case.learning_rate, case.weight_decay, np.asarray(case.steps))


def predict(case: Compression) -> dict[str, Array]:
    """Error and bound from the scalar recursion alone, parameters from the formula."""
    one, dim = case.run, case.run.target.shape[0]
    bulk = _bulk(one)
    fixed = frame(one.weights, one.target, one.rank)
    _, condition = conditioned_run(one, reduced_target(fixed, one.target, 2 * one.rank), end_to_end)
    counts = [parameter_counts(dim, len(one.weights), rank) for rank in case.ranks]
    return {
        "error": jnp.stack([compression_error(bulk, dim, rank) for rank in case.ranks]),
        "bound": jnp.stack([compression_bound(one.scales, dim, rank) for rank in case.ranks]),
        "rho": bulk,
        "contraction": _contraction(one),
        "condition": condition,
        "parameters": jnp.asarray([[c["full"], c["compressed"], c["inner"]] for c in counts]),
    }


def _contraction(case: DeepFactorization) -> Float[Array, ""]:
    every = rho(case.scales, case.learning_rate, case.weight_decay, np.arange(case.steps[-1] + 1))
    return bulk_contracts(every, case.learning_rate, case.weight_decay)


def train_compressed(
    case: DeepFactorization, fixed: Frame, rank: int
) -> tuple[Float[Array, "times d d"], CompressedNetwork]:
    """Train a compressed network, inner layers only, from ``eps_l I``."""
    trained = reduced_dynamics(
        reduced_target(fixed, case.target, 2 * rank),
        case.scales,
        case.learning_rate,
        case.weight_decay,
        np.asarray(case.steps),
        record=lambda inner: compressed_product(compress(fixed, inner)),
    )
    return trained.records, compress(fixed, trained.params)


def measure(case: Compression) -> dict[str, Array]:
    """Train the full and the compressed networks and subtract them."""
    one = case.run
    fixed = frame(one.weights, one.target, one.rank)

    def record(weights: Weights):
        return (
            end_to_end(weights),
            blocks(fixed, weights, 2 * one.rank),
            singular_values(jnp.stack(weights)),
            factorization_loss(weights, one.target),
        )

    full = run(one, record)
    product, seen, values, losses = full.records
    trained = [train_compressed(one, fixed, rank) for rank in case.ranks]
    compressed = jnp.stack([products for products, _ in trained])
    counts = [[count(one.weights), count(net), count(net.inner)] for _, net in trained]
    return {
        "error": jnp.linalg.norm(product[None] - compressed, axis=(2, 3)),
        "rho": seen.rho,
        "off_block": seen.off_block,
        "singular_values": values,
        "loss": losses,
        "compressed_loss": 0.5 * jnp.sum((compressed - one.target[None, None]) ** 2, axis=(2, 3)),
        "scale": jnp.max(jnp.linalg.norm(product, axis=(1, 2))),
        "parameters": jnp.asarray(counts),
        "diverged_at": full.diverged_at,
        "step": jnp.asarray(one.steps),
    }


def _above_bound(one: Outcome) -> float:
    bound, scale = one.predicted["bound"], one.measured["scale"]
    excess = np.max(np.max(one.measured["error"], axis=1) - bound)
    return max(float(excess), 0.0) / max(float(np.max(bound)), float(scale))


CLAIMS = (
    Claim(
        "error_identity",
        "||f(t) - f_C(t)||_F = sqrt(d - 2 r^) prod_l |rho_l(t)| for all t",
        # The difference of two products lives on the scale of the products.
        residual=lambda one: relative_difference(
            one.predicted["error"], one.measured["error"], one.measured["scale"]
        ),
        reads=("error", "scale"),
    ),
    Claim(
        "error_bound",
        "||f(t) - f_C(t)||_F <= sqrt(d - 2 r^) prod_l eps_l "
        "if |1 - eta lambda_l - eta prod_{k != l} rho_k^2| <= 1",
        kind="bound",
        residual=_above_bound,
        reads=("error", "bound", "scale", "contraction"),
        applies=lambda one: one.predicted["contraction"] <= 1,
    ),
    Claim(
        "parameters",
        "L d^2 parameters become 4 d r^ + 4 L r^^2, inner layers 4 L r^^2",
        kind="exact",
    ),
)


def _too_small(key, case, amount):
    return dataclasses.replace(case, ranks=(case.run.rank - 1,))


def _unstable_bulk(key, case, amount):
    """The example of the survey's condition: eta = .6, eps = (2, .1)."""
    scales = jnp.array([2.0, 0.1])
    weights = tuple(
        W * new / old for W, new, old in zip(case.run.weights, scales, case.run.scales, strict=True)
    )
    return dataclasses.replace(
        case, run=dataclasses.replace(case.run, weights=weights, scales=scales)
    )


def _half_of_the_padding(case: Compression) -> dict[str, Array]:
    dim, bulk = case.run.target.shape[0], _bulk(case.run)
    wrong = [compression_error(bulk, dim - rank, 0) for rank in case.ranks]
    return predict(case) | {"error": jnp.stack(wrong)}


def _without_inner_layers(case: Compression) -> dict[str, Array]:
    right = predict(case)
    return right | {"parameters": right["parameters"].at[:, 1].add(-right["parameters"][:, 2])}


COROLLARY_AT = AT | {"excess_rank": 1}


def _in_run(move: Move) -> Move:
    """A departure of the run inside a compression."""
    return lambda key, case, amount: dataclasses.replace(case, run=move(key, case.run, amount))


COMPRESSION = Statement(
    "compression",
    make_compression,
    predict,
    measure,
    CLAIMS,
    controls=(
        *departures("error_identity", prefix="compressed_", at=COROLLARY_AT, wrap=_in_run),
        Control(
            "compressed_below_r",
            "compressed network with r^ = r - 1",
            "error_identity",
            case=_too_small,
            at=COROLLARY_AT,
        ),
        Control(
            "bound_without_condition",
            "the bound at eta = .6, eps = (2, .1), where its condition fails",
            "error_bound",
            case=_unstable_bulk,
            at=COROLLARY_AT | {"depth": 2, "learning_rate": 0.6},
        ),
        Control(
            "error_with_r",
            "error with d - r^ in place of d - 2 r^",
            "error_identity",
            predict=_half_of_the_padding,
            at=COROLLARY_AT,
        ),
        Control(
            "parameters_without_inner",
            "parameter count without the inner layers",
            "parameters",
            predict=_without_inner_layers,
            at=COROLLARY_AT,
        ),
    ),
    hypotheses={
        name: (lambda case, check=check: check(case.run)) for name, check in HYPOTHESES.items()
    }
    | {"compressed_rank_at_least_r": lambda case: jnp.asarray(min(case.ranks) >= case.run.rank)},
    dims={
        "error": ("network", "step"),
        "bound": ("network",),
        "rho": ("step", "layer"),
        "off_block": ("step", "layer"),
        "singular_values": ("step", "layer", "index"),
        "loss": ("step",),
        "compressed_loss": ("network", "step"),
        "parameters": ("network", "count"),
        "step": ("step",),
    },
    **RUN,
    sides="rho and formulas against the difference of two trained networks and against arrays "
    "counted",
)

COROLLARY1 = Theorem(
    "corollary1",
    "a compressed network of width 2 r^ follows the full one with a known error",
    (*(dataclasses.replace(f, quick=SHAPES.get(f.name, f.quick)) for f in FLAGS), EXCESS),
    (COMPRESSION,),
    prepare=prepare,
    check=check_compression,
    axes=AXES,
)
