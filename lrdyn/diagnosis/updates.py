"""Measures of the update of one matrix, and the examination of many matrices on all cores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lrdyn.adapters.memory import weights_held
from lrdyn.adapters.methods import LORA
from lrdyn.data import tensors
from lrdyn.diagnosis import comparison, noise, reading
from lrdyn.diagnosis.comparison import ArrayPair, Compared
from lrdyn.diagnosis.cores import Told, map_on_cores
from lrdyn.diagnosis.decomposition import Decomposition, Wanted, decompose, decompose_product
from lrdyn.diagnosis.intruders import find_intruders
from lrdyn.diagnosis.noise import Noise
from lrdyn.diagnosis.spectrum import (
    OVERSAMPLING,
    Spectrum,
    is_sketched,
    measure_spectrum,
    norm,
    rounding_of,
    square_sums,
    values_of,
)
from lrdyn.system.progress import Progress

if TYPE_CHECKING:
    from lrdyn.figures.tables import Cell


class MatrixUpdate(NamedTuple):
    """Norms, ranks and spectrum of the update of one matrix, W after - W before."""

    name: str
    rows: int
    columns: int
    norm: float
    """Frobenius norm of the update."""
    relative: float
    """The norm of the update over that of W before; NaN if there is no W before."""
    rank: int
    """Singular values above what rounding makes, of those that were computed."""
    effective_rank: float
    """Effective rank; an upper bound where not all singular values were computed."""
    stable_rank: float
    energy: float
    """Share of the squared norm in the first k singular values."""
    outside: float
    """Share of the squared norm in all other singular values, 1 - energy."""
    rank_90: int | None
    """Smallest rank with 90 % of the squared norm; 0 if there is no update, None if it is more
    than a sketch is wide."""
    rank_99: int | None
    mean_before: float
    """Mean of the singular values of W behind the first k, before; NaN if not asked for."""
    mean_after: float
    spread_before: float
    """Standard deviation of these singular values over their mean; NaN if there are none."""
    spread_after: float
    intruders: int | None
    """Of the first k directions of W after, those that are none of W before; None if not asked."""
    intruders_by_chance: int | None
    """How many there would be if the update had random directions."""
    rounding: float
    """Largest singular value that rounding of the stored types makes, about."""
    beyond: float
    """Share of the squared norm behind the singular values that were computed, at most."""
    noise: Noise | None
    """The noise floor; None where the values do not follow the law of noise."""
    values: np.ndarray
    """The singular values of the update: all, those of the sketch, or the r of an adapter."""

    @property
    def shape(self) -> str:
        """Rows and columns in words."""
        return f"{self.rows} x {self.columns}"

    @property
    def full(self) -> int:
        """Parameters of the matrix: full fine-tuning trains all."""
        return self.rows * self.columns

    @property
    def rank_noise(self) -> int | None:
        """Singular values above the noise floor; None where there is no floor."""
        return None if self.noise is None else self.noise.above

    @property
    def energy_above_noise(self) -> float:
        """Share of the squared norm in the values above the noise floor; NaN without one."""
        if self.noise is None or not self.norm:
            return math.nan
        return float(np.sum(self.values[: self.noise.above] ** 2)) / self.norm**2

    @property
    def is_sketched(self) -> bool:
        """Whether only the first singular values were computed."""
        return len(self.values) < min(self.rows, self.columns) and self.beyond > 0

    def lora(self, rank: int) -> int:
        """Parameters of LoRA's factors: r (m + n)."""
        return weights_held(LORA, self.rows, self.columns, rank) - self.full

    def rank_text(self, rank: int | None) -> str:
        """An r in words: ``>64`` where it is more than a sketch of 64 shows."""
        return f">{len(self.values)}" if rank is None else str(rank)

    @property
    def cells(self) -> list[Cell]:
        """What stands in the table of all matrices, as :data:`SHOWN` has it."""
        more = "+" if self.is_sketched and self.rank == len(self.values) else ""
        cells = [self.relative, f"{self.rank}{more}", self.stable_rank]
        ranks = map(self.rank_text, (self.rank_90, self.rank_99))
        shown = ["-" if math.isnan(x) else f"{x:.3g}" for x in (cells[0], cells[2])]
        above = "-" if self.noise is None else str(self.noise.above)
        return [shown[0], cells[1], shown[1], *ranks, above]


SHOWN = ("moved", "rank", "stable", "r 90 %", "r 99 %", "noise")
"""Headings of the table of all matrices."""


NOISE = "noise"
"""The rank that is asked for by this word: singular values above the noise floor."""


class Examined(NamedTuple):
    """One matrix: the measures of its update, and factors of the rank that was asked for."""

    pair: ArrayPair
    """The pair, without its arrays."""
    update: MatrixUpdate
    factors: tuple[np.ndarray, np.ndarray] | None
    missed: float
    """||update - B A||."""
    digest: bytes
    """Equal for tied weights, where factors were wanted."""


class Settings(NamedTuple):
    """Settings of an examination of updates."""

    k: int
    sketch: int | None = None
    """Width of the range finder; None for exact values."""
    bulk: bool = False
    """Whether W before and W after are decomposed, too."""
    intruders: bool = False
    """Whether directions of W after that W before does not have are counted."""


def examine_all(
    both: Compared,
    names: Sequence[str],
    notes: dict[str, str],
    settings: Settings,
    *,
    wanted: Callable[[str], Wanted | None] = lambda name: None,
    progress: Progress | None = None,
) -> list[Examined]:
    """Examine matrices side by side, one a core; each core has one of them in memory.

    Args:
        both: what is compared.
        names: which of it, in the order of the result.
        notes: where it is noted what is left out.
        settings: how.
        wanted: name -> the rank of its factors, see
            :func:`lrdyn.diagnosis.decomposition.decompose`.
        progress: is told of each that is done, by the multiplications that it takes.

    Example:
        >>> sides = (reading.weights("", {"W": W}) for W in (np.eye(2), np.diag([3.0, 1.0])))
        >>> both = comparison.compare(*sides, "*")
        >>> [matrix.update.rank for matrix in examine_all(both, both.matrices, {}, Settings(1))]
        [1]
    """
    counts = [multiplications(both, name, settings) for name in names]

    def examine(name: str) -> tuple[Examined | None, dict[str, str]]:
        own: dict[str, str] = {}
        examined = None
        for pair in comparison.pairs(both, (name,), own):
            examined = examine_pair(pair, settings, wanted(name))
        return examined, own

    done = map_on_cores(examine, names, counts, Told(progress, counts))
    for _, own in done:
        notes |= own
    return [examined for examined, _ in done if examined is not None]


def multiplications(both: Compared, name: str, settings: Settings) -> float:
    """How many multiplications the update of a matrix takes, about; an adapter's far fewer.

    Args:
        both: what is compared.
        name: of the matrix.
        settings: of the examination.

    Example:
        >>> sides = (reading.weights("", {"W": np.eye(20)}) for _ in range(2))
        >>> multiplications(comparison.compare(*sides, "*"), "W", Settings(1))
        16000.0
    """
    m, n = (both.after if name in both.after.infos else both.before).infos[name].shape
    short = min(m, n)
    if settings.sketch is not None and is_sketched((m, n), settings.sketch):
        count = 10.0 * m * n * (settings.sketch + OVERSAMPLING)
    else:
        count = float(m * n * short + short**3)
    # Vectors, of both sides.
    more = 8.0 * m * n * short if settings.intruders else 0.0
    return count * (3 if settings.bulk else 1) + more


def examine_pair(pair: ArrayPair, settings: Settings, wanted: Wanted | None = None) -> Examined:
    """Measure the update of one matrix, and the matrix before and after if that is asked for.

    Args:
        pair: the matrix before and after.
        settings: of the examination.
        wanted: the rank of the factors, from the singular values; without it none are made.

    Example:
        >>> pair = ArrayPair("W", np.eye(2), np.diag([3.0, 1.0]), ("float64", "float64"))
        >>> update = examine_pair(pair, Settings(1, bulk=True)).update
        >>> update.rank, update.mean_before, update.mean_after
        (1, 1.0, 1.0)
    """
    k, start = settings.k, math.nan
    digest = comparison.digest(pair) if wanted is not None else b""
    bulks = [(math.nan, math.nan)] * 2
    if settings.bulk:
        sides = (pair.before, pair.whole_after)
        bulks = [_bulk_spread(values_of(W), k) for W in sides if W is not None]
        bulks = [(math.nan, math.nan)] * (2 - len(bulks)) + bulks
    if pair.factors is not None:
        B, A = pair.factors
        start = math.nan if pair.before is None else norm(pair.before)
        # A product of factors was never stored as a matrix, so that no stored type has rounded it.
        shape, floor, eps = (len(B), A.shape[1]), 0.0, float(np.finfo(np.float32).eps)
        decomposition = decompose_product(B, A, wanted)
        missed = math.sqrt(_squares_behind(decomposition))
    else:
        assert pair.stored_before is not None
        assert pair.stored_after is not None
        update, start, floor = difference(
            pair.stored_before,
            pair.stored_after,
            (reading.epsilon(pair.types[0]), reading.epsilon(pair.types[1])),
        )
        shape, eps = update.shape, reading.epsilon(update.dtype.name)
        decomposition = decompose(update, wanted, settings.sketch)
        missed = 0.0
        if decomposition.factors is not None:
            # Measured, not taken from the values behind the rank: the factors are rounded, too.
            missed = norm(update - decomposition.factors[0] @ decomposition.factors[1])
    update = _measure_update(pair.name, shape, decomposition, k=k, eps=eps, floor=floor)
    (mean_before, spread_before), (mean_after, spread_after) = bulks
    update = update._replace(
        relative=update.norm / start if start else (np.inf if update.norm else 0.0),
        mean_before=mean_before,
        spread_before=spread_before,
        mean_after=mean_after,
        spread_after=spread_after,
    )
    if settings.intruders and pair.before is not None:
        counts = find_intruders(pair.before, pair.whole_after, update.values, k)
        update = update._replace(intruders=counts.found, intruders_by_chance=counts.by_chance)
    # One matrix a core is in memory at a time; the list of all must not hold them.
    light = pair._replace(stored_before=None, stored_after=None, factors=None)
    return Examined(light, update, decomposition.factors, missed, digest)


class Difference(NamedTuple):
    """The difference W after - W before, the norm of W before, and the size of the rounding."""

    update: np.ndarray
    start: float
    """Frobenius norm of W before."""
    rounding: float
    """Largest singular value that rounding of the stored types makes, about."""


def difference(before: np.ndarray, after: np.ndarray, epsilons: tuple[float, float]) -> Difference:
    """Subtract some rows at a time: of stored matrices of 16 bits no full one is built.

    Args:
        before: m x n, as it is stored.
        after: likewise.
        epsilons: machine epsilon of the type of each.

    Example:
        >>> result = difference(np.eye(2, dtype=np.float16), 3 * np.eye(2), (0.0, 0.0))
        >>> result.update.tolist(), round(result.start, 3), result.rounding
        ([[2.0, 0.0], [0.0, 2.0]], 1.414, 0.0)
    """
    rows, columns = before.shape
    kind = np.result_type(*(reading.widen(side[:1]) for side in (before, after)))
    update, squares = np.empty(before.shape, kind), 0.0
    by_row, by_column = np.zeros(rows), np.zeros(columns)
    step = max(1, tensors.PIECE // columns)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        sides = [reading.widen(side[block]) for side in (before, after)]
        np.subtract(sides[1], sides[0], out=update[block])
        sums = [square_sums(side) for side in sides]
        squares += float(np.sum(sums[0].by_row))
        for eps, side_sums in zip(epsilons, sums, strict=True):
            by_row[block] += eps**2 * side_sums.by_row
            by_column += eps**2 * side_sums.by_column
    if not 1e-30 < squares < math.inf:  # float32 may have left its range
        squares = norm(reading.widen(before)) ** 2
    return Difference(update, math.sqrt(squares), rounding_of(by_row, by_column))


def _squares_behind(decomposition: Decomposition) -> float:
    """Squared norm behind the rank of the factors."""
    rank = 0 if decomposition.factors is None else decomposition.factors[0].shape[1]
    return decomposition.rest + float(np.sum(decomposition.values[rank:] ** 2))


def _measure_update(
    name: str,
    shape: tuple[int, ...],
    decomposition: Decomposition,
    *,
    k: int,
    eps: float,
    floor: float,
) -> MatrixUpdate:
    values, rest, short = decomposition.values, decomposition.rest, min(shape)
    others = short - len(values)
    # Values that were not computed count as equal, with the energy that is left.
    spread = math.sqrt(rest / others) if others else 0.0
    nothing = np.zeros((1, 0))
    whole = Spectrum(np.append(values, np.full(others, spread)), len(values), nothing, nothing)
    measures = measure_spectrum(whole, k=min(k, short), side=max(shape), eps=eps, floor=floor)
    total = float(np.sum(values**2)) + rest
    return MatrixUpdate(
        name=name,
        rows=shape[0],
        columns=shape[1],
        norm=measures.norm,
        relative=math.nan,
        rank=measures.rank,
        effective_rank=measures.effective_rank,
        stable_rank=measures.stable_rank,
        energy=measures.energy,
        outside=1 - measures.energy,
        rank_90=rank_with(values, 0.9, rest),
        rank_99=rank_with(values, 0.99, rest),
        mean_before=math.nan,
        mean_after=math.nan,
        spread_before=math.nan,
        spread_after=math.nan,
        intruders=None,
        intruders_by_chance=None,
        rounding=floor,
        beyond=rest / total if total else 0.0,
        noise=noise.find_floor(values, (shape[0], shape[1]), rest),
        values=values,
    )


def rank_with(values: np.ndarray, share: float, rest: float = 0.0) -> int | None:
    """Smallest r whose first r singular values have this share of the squared norm.

    Args:
        values: decreasing.
        share: of the squared norm.
        rest: the squared norm behind these values.

    Returns:
        r; 0 of nothing; None if all these values have less.

    Example:
        >>> rank_with(np.array([3.0, 1.0, 0.0]), 0.9), rank_with(np.zeros(2), 0.9)
        (1, 0)
        >>> rank_with(np.array([3.0, 1.0]), 0.9, rest=2.0) is None
        True
    """
    sums = np.cumsum(values**2)
    total = sums[-1] + rest
    if not total:
        return 0
    # A share that is reached exactly must not be missed by a rounding of the sum.
    enough = sums >= share * total * (1 - len(values) * np.finfo(float).eps)
    return int(np.argmax(enough)) + 1 if enough[-1] else None


def rank_for(share: float) -> Wanted:
    """Rank of the factors that have a share of the squared norm, or all that were computed.

    Example:
        >>> rank_for(0.9)(np.array([3.0, 1.0]), 0.0)
        1
    """
    return partial(_rank_or_all, share)


def rank_above_noise(shape: tuple[int, int], share: float) -> Wanted:
    """Rank of the factors that have what lies above the noise floor, or else a share.

    Args:
        shape: of the matrix.
        share: of the squared norm, where the values have no noise floor.

    Example:
        >>> rank_above_noise((2, 2), 0.9)(np.array([3.0, 1.0]), 0.0)
        1
    """

    def rank(values: np.ndarray, rest: float) -> int:
        found = noise.find_floor(values, shape, rest)
        return _rank_or_all(share, values, rest) if found is None else found.above

    return rank


def _rank_or_all(share: float, values: np.ndarray, rest: float) -> int:
    rank = rank_with(values, share, rest)
    return len(values) if rank is None else rank


def _bulk_spread(values: np.ndarray, k: int) -> tuple[float, float]:
    """Mean of the values behind the first k, and their standard deviation over it."""
    rest = values[k:]
    if not len(rest):
        return np.nan, np.nan
    mean = float(np.mean(rest))
    return mean, float(np.std(rest)) / mean if mean else np.nan
