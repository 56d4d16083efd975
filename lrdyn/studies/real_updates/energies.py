"""The energies of an update: from its singular values, and from the files entry by entry."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.diagnosis import comparison, reading
from lrdyn.diagnosis.comparison import ArrayPair
from lrdyn.diagnosis.spectrum import blas_threads, leading_triples, rounding, square_sums, values_of
from lrdyn.diagnosis.updates import rank_with
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.statement import Claim, Control, Scenario

SHARES = (0.9, 0.99)
"""Shares of the energy for which the smallest rank is given."""


class EnergyTheory(NamedTuple):
    """What follows from the entries of both files alone."""

    energy: Float[np.ndarray, "matrix"] = ABSENT
    """||W after - W before||_F^2, a sum over entries."""
    tail: Float[np.ndarray, "matrix"] = ABSENT
    """||W after - W before - B A||_F^2, B A the nearest matrix of rank r, entry by entry."""


class EnergyMeasured(NamedTuple):
    """What the singular values of the update say."""

    energy: Float[np.ndarray, "matrix"] = ABSENT
    """Sum of their squares."""
    tail: Float[np.ndarray, "matrix"] = ABSENT
    """Sum of the squares behind the first r, the smallest r with .9 of the energy."""
    values: Float[np.ndarray, "matrix index"] = ABSENT
    """All of them, the largest first, NaN behind them."""
    rank_with: Int[np.ndarray, "matrix share"] = ABSENT
    """Smallest ranks with .9 and .99 of the energy; 0 where nothing moved."""
    floor: Float[np.ndarray, "matrix"] = ABSENT
    """Largest singular value that rounding of the stored types makes, about."""
    shape: Int[np.ndarray, "matrix side"] = ABSENT
    """Rows and columns."""
    name: Int[np.ndarray, "matrix letter"] = ABSENT
    """Its name as numbers of letters, 0 behind them."""


class CheckpointPair(NamedTuple):
    """Two sets of weights, by their places, and the pattern of the matrices that are compared."""

    before: str
    after: str
    select: str
    outputs: int
    dtype: Any
    """Type in which everything is computed."""


def make_checkpoints(
    key: Key[Array, ""], *, before: str, after: str, select: str, outputs: int
) -> CheckpointPair:
    """Case of two checkpoints, of which nothing is read yet."""
    return CheckpointPair(before, after, select, outputs, np.dtype(jnp.zeros(()).dtype))


def pairs(case: CheckpointPair) -> Iterator[ArrayPair]:
    """Matrices of both, one after the other, in the precision of the run."""
    before, after = (reading.weights(n, getattr(case, n)) for n in ("before", "after"))
    both = comparison.compare(before, after, case.select)
    for pair in comparison.pairs(both, both.matrices, {}):
        cast = [None if a is None else a.astype(case.dtype) for a in (pair.before, pair.after)]
        factors = pair.factors and tuple(factor.astype(case.dtype) for factor in pair.factors)
        yield pair._replace(stored_before=cast[0], stored_after=cast[1], factors=factors)


def predict_energies(case: CheckpointPair) -> EnergyTheory:
    """Sums over entries: of the update, and of what its nearest matrix of rank r leaves."""
    energies, tails = [], []
    with blas_threads(1):
        for pair in pairs(case):
            update = pair.update
            # In float64: a sum of millions of squares in float32 is no theory to compare with.
            energies.append(np.sum(update.astype(np.float64) ** 2))
            r = rank_with(values_of(update), SHARES[0])
            left, values, right = (
                leading_triples(update, r) if r else (update[:, :0], 0.0, update[:0].T)
            )
            tails.append(np.sum((update - (left * values) @ right.T).astype(np.float64) ** 2))
    return EnergyTheory(energy=np.array(energies), tail=np.array(tails))


def measure_energies(case: CheckpointPair) -> EnergyMeasured:
    """Singular values of each update, and what follows from them."""
    values, ranks, floors, shapes, names = [], [], [], [], []
    with blas_threads(1):
        for pair in pairs(case):
            spectrum = values_of(pair.update)
            values.append(spectrum)
            ranks.append([rank_with(spectrum, share) for share in SHARES])
            epsilons = reading.epsilon(pair.types[0]), reading.epsilon(pair.types[1])
            after = pair.whole_after
            before = after if pair.before is None else pair.before
            floors.append(rounding(square_sums(before), square_sums(after), epsilons))
            shapes.append(pair.update.shape)
            names.append([ord(letter) for letter in pair.name])
    heads = np.array(ranks)[:, 0]
    return EnergyMeasured(
        energy=np.array([np.sum(spectrum**2) for spectrum in values]),
        tail=np.array([np.sum(v[r:] ** 2) for v, r in zip(values, heads, strict=True)]),
        values=pad_rows(values, np.nan),
        rank_with=np.array(ranks),
        floor=np.array(floors),
        shape=np.array(shapes),
        name=pad_rows(names, 0),
    )


def pad_rows(rows: list[Any], rest: float | int) -> np.ndarray:
    """Rows of unequal length as one array.

    Example:
        >>> pad_rows([[1, 2], [3]], 0).tolist()
        [[1, 2], [3, 0]]
    """
    longest = max(map(len, rows))
    return np.array([[*row, *[rest] * (longest - len(row))] for row in rows])


def without_the_largest(case: CheckpointPair) -> EnergyMeasured:
    """Measure the sum of squares without the largest singular value."""
    run = measure_energies(case)
    return EnergyMeasured(energy=run.energy - run.values[:, 0] ** 2)


def of_the_weights(case: CheckpointPair) -> EnergyTheory:
    """Predict ||W after||_F^2 in the place of the squared norm of the update."""
    energies = [np.sum(pair.whole_after.astype(np.float64) ** 2) for pair in pairs(case)]
    return EnergyTheory(energy=np.array(energies))


def one_rank_less(case: CheckpointPair) -> EnergyMeasured:
    """Measure the squares behind the first r - 1 values in the place of r."""
    run = measure_energies(case)
    ranks = np.maximum(run.rank_with[:, 0] - 1, 0)
    tails = [np.nansum(v[r:] ** 2) for v, r in zip(run.values, ranks, strict=True)]
    return EnergyMeasured(tail=np.array(tails))


def _relative(name: str) -> Any:
    """Both sides over the energy of the update, 1 where nothing moved."""

    def form(outcome: Any) -> Equal:
        energy = outcome.predicted.energy
        size = np.where(energy > 0, energy, 1)
        predicted, measured = (
            getattr(side, name) for side in (outcome.predicted, outcome.measured)
        )
        return Equal(predicted / size, measured / size, 1.0)

    return form


ENERGIES = Scenario[CheckpointPair, EnergyTheory, EnergyMeasured](
    "energies",
    make_checkpoints,
    predict_energies,
    measure_energies,
    theory=EnergyTheory,
    measured=EnergyMeasured,
    claims=(
        Claim(
            "energy",
            "the squares of the singular values of an update add up to ||W after - W before||_F^2",
            form=_relative("energy"),
        ),
        Claim(
            "tail",
            "what the nearest matrix of rank r leaves of it, entry by entry, is the sum of the "
            "squares behind the first r, r the smallest with .9 of the energy",
            form=_relative("tail"),
            reads=lambda theory, run: (theory.tail, run.tail, theory.energy),
            carries=False,  # nothing is left where the update has few ranks
        ),
    ),
    controls=(
        Control(
            "energy_without_the_largest",
            "without the largest singular value",
            "energy",
            measure=without_the_largest,
        ),
        Control(
            "energy_of_the_weights",
            "the weights after the training in the place of the update",
            "energy",
            predict=of_the_weights,
        ),
        Control(
            "tail_of_one_rank_less",
            "the squares behind the first r - 1",
            "tail",
            measure=one_rank_less,
        ),
    ),
    sides="sums over the entries of both files against singular values",
    traced=False,
)
