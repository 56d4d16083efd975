"""The starts of compressed networks, in which hidden entries play no part: claim and controls."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.completion import recovery
from lrdyn.completion.problem import (
    DEPTH,
    CompletionMeasured,
    CompletionTheory,
    Recovery,
    hide_unseen,
)
from lrdyn.core import linalg
from lrdyn.core.spectra import singular_values
from lrdyn.corollary1.compression import CompressedNetwork, compressed_product
from lrdyn.verification.stating.forms import Equal, scale_of_each
from lrdyn.verification.stating.statement import Claim, Control


def spectral_start(case: Recovery, scale: float | Float[Array, ""]) -> CompressedNetwork:
    """The compressed network whose outer factors are singular subspaces of the surrogate."""
    return recovery.spectral_network(case.surrogate, 2 * case.rank, scale, DEPTH)


def begin(case: Recovery) -> Float[Array, "part d d"]:
    """Product and basis at the start of compressed networks of scale 1, and slope of the loss."""
    start = compressed_product(spectral_start(case, 1.0))
    columns = case.basis.columns
    return jnp.stack([start, columns @ columns.T, jax.grad(case.loss)(start)])


def predict_start(case: Recovery) -> CompletionTheory:
    """Starts with 0 in place of every hidden entry of Phi, and the amplification of errors."""
    zeroed = hide_unseen(case)
    start = begin(zeroed)
    return CompletionTheory(start=start, start_condition=_condition(zeroed, start))


def _condition(case: Recovery, start: Float[Array, "part d d"]) -> Float[Array, ""]:
    """Amplification of rounding errors of a start: largest values over gaps, and over an angle.

    U_2r V_2r^T of the surrogate turns by the rounding of sigma_1 over sigma_2r - sigma_{2r+1}, and
    is not determined without that gap; the slope adds as much on its own scale, the largest entry.
    The basis joins the top-r subspaces of G and G^T W_1: their gaps, over the sine of their angle.
    """
    G, r = case.gradient, case.rank
    H = G.T @ case.weights[0]
    spectral = _gap_condition(singular_values(case.surrogate), 2 * r)
    weight = case.mask.size / jnp.sum(case.mask)
    slope = jnp.maximum(1.0, weight / jnp.max(jnp.abs(start[2])))
    tops = [linalg.svd(matrix)[2][:r] for matrix in (G, H)]
    angle = linalg.svdvals(jnp.concatenate(tops))[-1]
    gaps = [_gap_condition(singular_values(matrix), r) for matrix in (G, H)]
    return jnp.maximum(spectral * slope, jnp.maximum(*gaps) / angle)


def _gap_condition(values: Float[Array, "k"], rank: int) -> Float[Array, ""]:
    gap = values[rank - 1] - values[rank]
    return jnp.where(gap > 0, values[0] / jnp.where(gap > 0, gap, 1.0), jnp.inf)


def _double_one_entry(case: Recovery) -> Recovery:
    """The case with the largest observed entry of its target doubled."""
    place = jnp.argmax(case.mask * jnp.abs(case.target))
    entry = jnp.arange(case.target.size).reshape(case.target.shape) == place
    return dataclasses.replace(case, target=jnp.where(entry, 2 * case.target, case.target))


START = Claim[CompletionTheory, CompletionMeasured](
    "start",
    "hidden entries play no part at the start: with 0 in place of each of them the compressed "
    "networks start from the same subspaces and the loss has the same slope there (of masks, not "
    "of recovery: the verdict does not rest on it)",
    form=lambda outcome: Equal(
        outcome.predicted.start,
        outcome.measured.start,
        scale_of_each(outcome.predicted.start, outcome.measured.start),
    ),
    reads=lambda theory, run: (theory.start, run.start, theory.hidden),
    applies=lambda outcome: outcome.predicted.hidden > 0,
    condition=lambda theory: theory.start_condition,
    steps=1,
    carries=False,
    sides="Phi with 0 in place of hidden entries against Phi",
)

START_CONTROLS: tuple[Control[Recovery, CompletionTheory, CompletionMeasured], ...] = (
    Control(
        "start_of_the_target",
        "the start has seen all entries",
        "start",
        measure=lambda case: CompletionMeasured(
            start=begin(dataclasses.replace(case, mask=jnp.ones_like(case.mask)))
        ),
    ),
    Control(
        "one_entry_off",
        "the largest observed entry of Phi doubled",
        "start",
        predict=lambda case: CompletionTheory(start=begin(hide_unseen(_double_one_entry(case)))),
    ),
)
