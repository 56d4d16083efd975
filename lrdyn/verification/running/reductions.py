"""Reductions of results that are too many to keep: worst points, quantiles, histograms.

A reduction makes a few numbers of the arrays of a part, and of two such one. These are counts,
extremes and chosen points, no sums of floating-point numbers: parts may arrive in any order, and
the result has the same bits.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.core import checks
from lrdyn.verification.stating.points import Points

if TYPE_CHECKING:
    import xarray

Numbers = Mapping[str, np.ndarray]


class Reduction(abc.ABC):
    """A summary of one result that can be made part by part."""

    of: str
    """Name of the result."""

    @abc.abstractmethod
    def summarise(self, values: np.ndarray) -> Numbers:
        """Summarise a part, whose points are the first axis of ``values``."""

    @abc.abstractmethod
    def merge(self, first: Numbers, second: Numbers) -> Numbers:
        """Merge the summaries of two parts."""

    @abc.abstractmethod
    def label(self, name: str, numbers: Numbers, points: Points) -> dict[str, Any]:
        """Variables of a dataset: name -> dimensions and values."""

    def locate(self, numbers: Numbers, indices: np.ndarray) -> Numbers:
        """Replace indices of points within a part by their indices in the sweep."""
        return numbers


@dataclass(frozen=True)
class Worst(Reduction):
    """The points at which a result is largest.

    Of a result with axes of its own the largest entry of each point counts. Points that have a NaN
    are left out and counted in ``NAME_nan``. Of equal values the first point is kept.

    The dataset gets ``NAME``, the values in decreasing order, ``NAME_point``, their places in the
    sweep, and ``NAME_AXIS`` for each axis of the points.

    Args:
        of: name of the result.
        count: how many points are kept.

    Raises:
        ValueError: ``count`` < 1.

    Example:
        >>> import lrdyn
        >>> points = lrdyn.product(x=range(100))
        >>> reduced = lrdyn.sweep(lambda x: {"y": -(x - 40) ** 2}, points,
        ...                       reduce={"top": Worst("y", 3)})
        >>> reduced["top"].values.tolist(), reduced["top_x"].values.tolist()
        ([0.0, -1.0, -1.0], [40, 39, 41])
    """

    of: str
    count: int = 10

    def __post_init__(self) -> None:
        checks.integer("count", self.count)

    def summarise(self, values: np.ndarray) -> Numbers:
        """The largest values of a part and their places."""
        flat = np.asarray(values, np.float64).reshape(len(values), -1)
        missing = np.isnan(flat).any(axis=1)
        places = np.flatnonzero(~missing)
        return self._keep_largest(flat[places].max(axis=1, initial=-np.inf), places, missing.sum())

    def _keep_largest(self, values: np.ndarray, places: np.ndarray, missing: Any) -> Numbers:
        # The last key counts first: by value, and among equal ones by place, whatever order parts
        # have.
        order = np.lexsort((places, -values))[: self.count]
        return {"values": values[order], "places": places[order], "nan": np.asarray(missing)}

    def merge(self, first: Numbers, second: Numbers) -> Numbers:
        """The largest values of two parts."""
        values, places = (np.append(first[n], second[n]) for n in ("values", "places"))
        return self._keep_largest(values, places, first["nan"] + second["nan"])

    def locate(self, numbers: Numbers, indices: np.ndarray) -> Numbers:
        """Replace places in the part by those in the sweep."""
        return {**numbers, "places": indices[numbers["places"]]}

    def label(self, name: str, numbers: Numbers, points: Points) -> dict[str, Any]:
        """Values, places and axes of the points."""
        place = f"{name}_place"
        variables = {name: (place, numbers["values"]), f"{name}_point": (place, numbers["places"])}
        for axis in points.axes:
            variables[f"{name}_{axis}"] = place, points.column(axis)[numbers["places"]]
        return variables | {f"{name}_nan": ((), numbers["nan"])}


@dataclass(frozen=True)
class Quantiles(Reduction):
    """Quantiles of all entries of a result, each to a share of itself.

    Entries are counted in bins whose ends are powers of (1 + within) / (1 - within), on both sides
    of 0, as by Masson, Rim and Lee (DDSketch, 2019): no sample is drawn. The quantile q is that of
    the entry of rank floor(q (n - 1)), NaN left out; the smallest and the largest are exact.

    The dataset gets ``NAME`` over ``NAME_q``, and ``NAME_nan``.

    Args:
        of: name of the result.
        at: shares, from 0 to 1.
        within: largest error, relative to the quantile.

    Raises:
        ValueError: a share is not in [0, 1], or ``within`` not in (0, 1).

    Example:
        >>> import lrdyn
        >>> reduced = lrdyn.sweep(lambda x: {"y": x + 1}, lrdyn.product(x=range(1000)),
        ...                       reduce={"y": Quantiles("y", (0.0, 0.5, 1.0))})
        >>> [round(v) for v in reduced["y"].sel(y_q=[0.0, 1.0]).values.tolist()]
        [1, 1000]
        >>> abs(float(reduced["y"].sel(y_q=0.5)) / 500 - 1) < 0.01
        True
    """

    of: str
    at: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    within: float = 0.01

    def __post_init__(self) -> None:
        if not all(0 <= q <= 1 for q in self.at):
            raise ValueError(f"at: got {list(self.at)}, wanted shares from 0 to 1")
        if not 0 < self.within < 1:
            raise ValueError(f"within: got {self.within}, wanted a number between 0 and 1")

    @property
    def _ratio(self) -> float:
        # The middle of a bin between x and ratio x is then within ``within`` of all its numbers.
        return (1 + self.within) / (1 - self.within)

    def summarise(self, values: np.ndarray) -> Numbers:
        """How many entries are in each bin."""
        flat = np.asarray(values, np.float64).ravel()
        there = flat[~np.isnan(flat)]
        # Signed bins in the order of the numbers; 0 is between them, infinity at the ends.
        # Below the smallest normal number the width of a
        # bin would be less than what numbers differ by.
        finite = np.clip(np.abs(there), np.finfo(float).tiny, np.finfo(float).max)
        place = np.ceil(np.log(finite) / np.log(self._ratio)) + self._offset
        place = np.where(there == 0, 0, np.sign(there) * place).astype(np.int64)
        bins, counts = np.unique(place, return_counts=True)
        # The ends are kept beside the bins: the smallest and the largest entry stay exact.
        ends = np.array([there.min(initial=np.inf), there.max(initial=-np.inf)])
        return {
            "bins": bins,
            "counts": counts,
            "ends": ends,
            "nan": np.array(len(flat) - len(there)),
        }

    @property
    def _offset(self) -> float:
        """Offset that makes every bin of a positive number positive."""
        return 1 - np.floor(np.log(np.finfo(float).tiny) / np.log(self._ratio))

    def merge(self, first: Numbers, second: Numbers) -> Numbers:
        """Add the counts of two parts."""
        bins, where = np.unique(np.append(first["bins"], second["bins"]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, where, np.append(first["counts"], second["counts"]))
        low, high = (
            np.minimum(first["ends"], second["ends"])[0],
            np.maximum(first["ends"], second["ends"]),
        )
        return {"bins": bins, "counts": counts, "ends": np.array([low, high[1]])} | {
            "nan": first["nan"] + second["nan"]
        }

    def label(self, name: str, numbers: Numbers, points: Points) -> dict[str, Any]:
        """Each quantile, as the middle of its bin."""
        total, q = int(numbers["counts"].sum()), np.asarray(self.at, float)
        quantiles = np.full(len(q), np.nan)
        if total:
            ranks = np.floor(q * (total - 1))
            at = numbers["bins"][np.searchsorted(np.cumsum(numbers["counts"]), ranks, side="right")]
            with np.errstate(over="ignore"):  # the last bin ends beyond the largest number
                # 2 ratio^k / (ratio + 1) has the same relative distance to both ends of the bin.
                middle = 2 / (self._ratio + 1) * self._ratio ** (np.abs(at) - self._offset)
            # The middle of an outermost bin may lie beyond the entries that are in it.
            quantiles = np.clip(np.where(at == 0, 0.0, np.sign(at) * middle), *numbers["ends"])
            quantiles = np.where(ranks == 0, numbers["ends"][0], quantiles)
            quantiles = np.where(ranks == total - 1, numbers["ends"][1], quantiles)
        axis = f"{name}_q"
        return {name: (axis, quantiles), axis: (axis, q), f"{name}_nan": ((), numbers["nan"])}


@dataclass(frozen=True)
class Histogram(Reduction):
    """How many entries of a result lie between given edges.

    A bin holds its lower edge, the last one both. The dataset gets ``NAME`` over ``NAME_bin``,
    ``NAME_edge``, and how many entries are below, above and no number: ``NAME_below``,
    ``NAME_above``, ``NAME_nan``.

    Args:
        of: name of the result.
        edges: increasing, two or more.

    Raises:
        ValueError: the edges do not increase, or there are fewer than two.

    Example:
        >>> import lrdyn
        >>> reduced = lrdyn.sweep(lambda x: {"y": x / 10}, lrdyn.product(x=range(10)),
        ...                       reduce={"y": Histogram("y", (0.0, 0.25, 0.5))})
        >>> reduced["y"].values.tolist(), int(reduced["y_above"])
        ([3, 3], 4)
    """

    of: str
    edges: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or not all(np.diff(self.edges) > 0):
            raise ValueError(f"edges: got {list(self.edges)}, wanted two or more that increase")

    def summarise(self, values: np.ndarray) -> Numbers:
        """How many entries are in each bin, and how many in none."""
        flat, edges = np.asarray(values, np.float64).ravel(), np.asarray(self.edges, float)
        return {
            "counts": np.histogram(flat[~np.isnan(flat)], edges)[0],
            "below": np.sum(flat < edges[0]),
            "above": np.sum(flat > edges[-1]),
            "nan": np.sum(np.isnan(flat)),
        }

    def merge(self, first: Numbers, second: Numbers) -> Numbers:
        """Add the counts of two parts."""
        return {name: first[name] + second[name] for name in first}

    def label(self, name: str, numbers: Numbers, points: Points) -> dict[str, Any]:
        """The counts of the bins, their edges, and the entries outside."""
        outside = {f"{name}_{n}": ((), numbers[n]) for n in ("below", "above", "nan")}
        edges = {f"{name}_edge": (f"{name}_edge", np.asarray(self.edges, float))}
        return {name: (f"{name}_bin", numbers["counts"])} | edges | outside


Reductions = Mapping[str, Reduction]
"""Name in the dataset -> the reduction that is kept under it."""


def check(reductions: Reductions, outputs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a reduction of something that is not a result.

    Raises:
        ValueError: there is one.
    """
    there = set.intersection(*(set(names) for names in outputs))
    for name, reduction in reductions.items():
        if reduction.of not in there:
            raise ValueError(
                f"reduce: got {reduction.of!r} for {name!r}, wanted a result out of {sorted(there)}"
            )


def summarise(reductions: Reductions, arrays: Numbers) -> Numbers:
    """Summarise the arrays of a part by all reductions, in one mapping."""
    return {
        f"{name}.{key}": np.asarray(value)
        for name, reduction in reductions.items()
        for key, value in reduction.summarise(arrays[reduction.of]).items()
    }


class RunningReductions:
    """Summaries of all parts so far.

    Args:
        reductions: what is to be kept.
        points: of the sweep.
    """

    def __init__(self, reductions: Reductions, points: Points):
        self.reductions, self.points = reductions, points
        self.numbers: dict[str, Numbers] = {}

    def place(self, indices: np.ndarray, numbers: Numbers) -> None:
        """Merge the summaries of a part with these points."""
        for name, reduction in self.reductions.items():
            head = f"{name}."
            mine = {k[len(head) :]: v for k, v in numbers.items() if k.startswith(head)}
            mine = reduction.locate(mine, indices)
            known = self.numbers.get(name)
            self.numbers[name] = mine if known is None else reduction.merge(known, mine)

    def dataset(self) -> "xarray.Dataset":
        """The summaries as a labelled dataset."""
        import xarray  # 0.3 s and pandas: not at import

        variables: dict[str, Any] = {}
        for name, reduction in self.reductions.items():
            variables |= reduction.label(name, self.numbers[name], self.points)
        coordinates = {n: v for n, v in variables.items() if v[0] == n}
        return xarray.Dataset(
            {n: v for n, v in variables.items() if n not in coordinates}, coordinates
        )
