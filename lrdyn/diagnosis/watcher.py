"""Watch a training loop of any framework: how the update W(t) - W(0) of each matrix is shaped."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from lrdyn.core import checks, show
from lrdyn.core.selection import Patterns
from lrdyn.diagnosis import comparison, reading, theorem_2
from lrdyn.diagnosis.on_device import OnDevice
from lrdyn.diagnosis.reading import Leaves
from lrdyn.diagnosis.spectrum import (
    NOT_FINITE,
    Matrix,
    Measures,
    blas_threads,
    is_sketched,
    measure_spectrum,
    rounding,
    spectrum,
    square_sums,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

SIDES = ("left", "right")
ABOUT = {
    "norm": "Frobenius norm of W(t) - W(0)",
    "rank": "singular values above rounding, at least this many where it is seen; "
    "-1 where an entry is not finite",
    "effective_rank": "exp of the entropy of singular values over their sum; where not all were "
    "seen, the most that it can be",
    "effective_rank_least": "the least that it can be; the same where all were seen",
    "stable_rank": "squared Frobenius norm over squared spectral norm",
    "energy": "share of the squared norm in the first k singular values",
    "singular_values": "the first k singular values",
    "seen": "how many singular values were computed",
    "angle_to_last": "principal angles in radians to the first k directions at the call before",
    "angle_to_first": "principal angles in radians to those at the first call with an update",
    "bulk_drift": "W(t) - W(0) over W(0), both behind the first k directions of the update",
    "bulk_along_start": "share of the squared norm of the update behind its first k directions "
    "that is along W(0); NaN where all singular values behind them are rounding",
    "energy_chance": "energy of a Gaussian matrix of that size",
    "angle_chance": "angle_to_first of two random spaces of as many dimensions",
    "bulk_drift_chance": "what 2.5 % of the updates that know nothing of W(0) exceed either way",
    "bulk_along_start_chance": "bulk_along_start of an update that knows nothing of W(0), the mean",
}
"""Names in the dataset, and what they are."""
REACH = (
    "In brackets: what a random update of that size has. In a deep linear network from an "
    "orthogonal start Theorem 2 says, of the 2K directions for a target of rank K: they stay "
    "(angle 0), and behind them W moves as a whole, along W(0). Of other networks it promises "
    "nothing."
)
"""What is said below the table of Theorem 2's quantities."""


class Observation(NamedTuple):
    """What was measured of one matrix at one call of the recorder."""

    measures: Measures
    values: np.ndarray
    """The first k, padded with NaN."""
    computed: int
    to_last: np.ndarray
    """Principal angles to the directions of the call before, sides x k."""
    to_first: np.ndarray
    """Principal angles to the first directions that there were, sides x k."""
    bulk: theorem_2.Bulk
    """What the update does behind its first directions."""


class Quantity(NamedTuple):
    """One of Theorem 2's quantities of one matrix."""

    value: float
    text: str
    """With what chance gives in brackets."""
    seen: bool
    """Whether it is more than that."""


BEYOND = ("energy", "angle", "drift")
"""Quantities of which there can be more than chance gives."""
Directions = tuple[np.ndarray, np.ndarray]
"""Left and right singular vectors, as columns, of the values above rounding among the first k."""


class Watcher:
    """A recorder: call it with the parameters and the step; see :func:`lrdyn.watch`."""

    def __init__(self, params0: PyTree, select: Patterns, *, k: int):
        """Begin to watch the matrices of ``params0`` that fit, of which copies are held."""
        start = Leaves("params0", params0)
        names = list(reading.matrices(start.infos, select))
        if not names:
            among = comparison.first_names(reading.matrices(start.infos, "*"))
            checks.refuse("select", repr(select), f"a pattern of some matrices among {among}")
        checks.allocation({"k": k}, (len(names), 5, k), dtype="float64")  # what a call leaves
        self.k = k
        # A copy: torch trains in place, and JAX may be given the memory back.
        self._start = {name: self._copied(name, start) for name in names}
        self._squares = {name: square_sums(W) for name, W in self._start.items()}
        self._types = {name: start.infos[name].dtype for name in names}
        self._first: dict[str, Directions] = {}
        self._last: dict[str, Directions] = {}
        self._steps: list[int] = []
        self._rows: list[list[Observation]] = []

    def __call__(self, params: PyTree, step: int) -> None:
        """Look at the parameters of a step.

        Args:
            params: with the same matrices as ``params0``.
            step: its number, above that of the call before.

        Raises:
            ValueError: a matrix is missing, traced or has another shape, or the step is no later.
        """
        checks.integer("step", step, self._steps[-1] + 1 if self._steps else 0)
        now = Leaves("params", params)
        for name, W in self._start.items():
            known = now.infos.get(name)
            if known is None or known.shape != W.shape or not reading.is_matrix(known):
                got = f"{known.dtype} of shape {known.shape}" if known else "no such array"
                checks.refuse(f"params[{name!r}]", got, f"floating-point numbers of {W.shape}")
        # Beside a training that uses all cores more threads only wait for each other.
        with blas_threads(1):
            self._rows.append([self._look(name, now) for name in self._start])
        self._steps.append(int(step))

    def _copied(self, name: str, start: Leaves) -> Matrix:
        """One matrix at the start: where it lies, if it is so large that it may stay there."""
        placed = start.on_device(name)
        if placed is not None and is_sketched(placed.shape, self.k) and _in_range(placed):
            return placed.copy()
        return np.array(reading.widen(start[name]))

    def _ends(self, name: str, now: Leaves) -> tuple[Matrix, Matrix, Matrix]:
        """One matrix at the start and now, and the update: on a device, or all on the CPU."""
        before, after = self._start[name], now.on_device(name)
        if isinstance(before, OnDevice) and after is not None:
            before = before.beside(after)
            update = after - before
            if _in_range(after) and _in_range(update):
                return before, after, update
        before = before.on_cpu() if isinstance(before, OnDevice) else before
        after = reading.widen(now[name])
        return before, after, after - before

    def _look(self, name: str, now: Leaves) -> Observation:
        """Measure one matrix, and remember its directions."""
        before, after, update = self._ends(name, now)
        k = min(self.k, *before.shape)
        nothing = np.full((len(SIDES), self.k), np.nan)
        if isinstance(update, np.ndarray) and not np.isfinite(update).all():
            return Observation(NOT_FINITE, nothing[0], 0, nothing, nothing, theorem_2.UNKNOWN)
        # Each look is compared with the first and with the one before: from one draw all three
        # would lean the same way.
        draw = 1 + len(self._rows) % 2 if name in self._first else 0
        leading = spectrum(update, k, draw)
        epsilons = reading.epsilon(self._types[name]), reading.epsilon(now.infos[name].dtype)
        measures = measure_spectrum(
            leading,
            k=k,
            side=max(update.shape),
            eps=reading.epsilon(update.dtype.name),
            floor=rounding(self._squares[name], square_sums(after), epsilons),
        )
        count = min(measures.rank, k)
        # Copies: views that are kept would keep the rest alive.
        directions = leading.left[:, :count].copy(), leading.right[:, :count].copy()
        last, first = self._last.get(name), self._first.get(name, directions)
        # Of an update of 0, at the first step perhaps, there are no directions to remember.
        if measures.rank:
            self._first.setdefault(name, directions)
            self._last[name] = directions
        values = np.append(leading.values[:k], np.full(self.k - k, np.nan))
        bulk = theorem_2.bulk(update, before, *directions)
        # Behind directions that are all there are above rounding lies rounding.
        bulk = bulk if measures.rank > count else bulk._replace(along=math.nan)
        return Observation(
            measures,
            values,
            leading.computed,
            to_last=_angles(directions, last, self.k),
            to_first=_angles(directions, first, self.k),
            bulk=bulk,
        )

    def scalars(self) -> dict[str, float]:
        """What the last call measured, as flat numbers: for a logger of any kind.

        Returns:
            ``matrix/quantity`` -> a float; what is not known, such as an angle at the first call,
            is not there. Angles are means of both sides, in radians.

        Raises:
            ValueError: the recorder was not called yet.

        Example:
            >>> recorder = watch({"W": np.zeros((3, 3))}, k=1)
            >>> recorder({"W": np.diag([3.0, 1.0, 0.0])}, 1)
            >>> {name: round(value, 3) for name, value in recorder.scalars().items()}["W/rank"]
            2.0
        """
        if not self._rows:
            checks.refuse("recorder", "no call yet", "recorder(params, step) before")
        numbers = {}
        for name, row in zip(self._start, self._rows[-1], strict=True):
            quantities = {x: getattr(row.measures, x) for x in Measures._fields}
            quantities["largest_singular_value"] = row.values[0]
            for field, angles in (("angle_to_last", row.to_last), ("angle_to_first", row.to_first)):
                known = angles[np.isfinite(angles)]
                quantities[field] = np.mean(known) if len(known) else math.nan
            quantities |= {"bulk_drift": row.bulk.drift, "bulk_along_start": row.bulk.along}
            numbers |= {f"{name}/{x}": float(y) for x, y in quantities.items() if math.isfinite(y)}
        return numbers

    @property
    def dataset(self) -> xr.Dataset:
        """What was measured so far: axes ``step``, ``matrix``, ``side``, ``direction``."""
        import xarray as xr

        shape = (len(self._rows), len(self._start))
        observations = [observation for row in self._rows for observation in row]

        def stack(
            value_of: Callable[[Observation], Any], *more: int, dtype: Any = float
        ) -> np.ndarray:
            values = [value_of(observation) for observation in observations]
            return np.array(values, dtype).reshape(*shape, *more)

        axes = ("step", "matrix")
        angles, sides = (*axes, "side", "direction"), (len(SIDES), self.k)
        arrays = {
            "norm": (axes, stack(lambda x: x.measures.norm)),
            "rank": (axes, stack(lambda x: x.measures.rank, dtype=int)),
            "effective_rank": (axes, stack(lambda x: x.measures.effective_rank)),
            "effective_rank_least": (axes, stack(lambda x: x.measures.effective_rank_least)),
            "stable_rank": (axes, stack(lambda x: x.measures.stable_rank)),
            "energy": (axes, stack(lambda x: x.measures.energy)),
            "seen": (axes, stack(lambda x: x.computed, dtype=int)),
            "singular_values": ((*axes, "direction"), stack(lambda x: x.values, self.k)),
            "angle_to_last": (angles, stack(lambda x: x.to_last, *sides)),
            "angle_to_first": (angles, stack(lambda x: x.to_first, *sides)),
            "bulk_drift": (axes, stack(lambda x: x.bulk.drift)),
            "bulk_along_start": (axes, stack(lambda x: x.bulk.along)),
            "energy_chance": (
                "matrix",
                [
                    theorem_2.energy_chance(*W.shape, min(self.k, *W.shape))
                    for W in self._start.values()
                ],
            ),
            "angle_chance": (angles, self._angle_chance().reshape(*shape, *sides)),
            "bulk_drift_chance": (axes, stack(lambda x: x.bulk.drift_chance)),
            "bulk_along_start_chance": (axes, stack(lambda x: x.bulk.along_chance)),
        }
        variables = {
            name: xr.Variable(dims, array, {"long_name": ABOUT[name]})
            for name, (dims, array) in arrays.items()
        }
        names: Mapping[str, Any] = {
            "step": self._steps,
            "matrix": list(self._start),
            "side": list(SIDES),
            "direction": np.arange(1, self.k + 1),
            "rows": ("matrix", [W.shape[0] for W in self._start.values()]),
            "columns": ("matrix", [W.shape[1] for W in self._start.values()]),
        }
        return xr.Dataset(variables, names, {"k": self.k})

    def _angle_chance(self) -> np.ndarray:
        """Angles of random spaces of as many dimensions as there are angles: calls x matrices."""
        angles = np.full((len(self._rows), len(self._start), len(SIDES), self.k), np.nan)
        for step, row in enumerate(self._rows):
            for place, (observation, W) in enumerate(zip(row, self._start.values(), strict=True)):
                for side, dim in enumerate(W.shape):
                    count = int(np.isfinite(observation.to_first[side]).sum())
                    if count:
                        angles[step, place, side, :count] = theorem_2.angle_chance(dim, count).value
        return angles

    def plot(self) -> Figure:
        """Ranks, energy, drift of the bulk and angles over the steps, beside chance."""
        from lrdyn.diagnosis import pictures

        return pictures.plot_watch(self.dataset)

    def __repr__(self) -> str:
        lines = show.aligned(self._table())
        if self._rows:
            lines += ["", *show.aligned(self._chance_rows())]
            lines += textwrap.wrap(self._chance_sentence(), 80)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        tables = [show.table(self._table())]
        if self._rows:
            tables += [show.table(self._chance_rows())]
            tables.append(show.html.escape(self._chance_sentence()))
        return "<br>".join(tables)

    def _table(self) -> list[tuple[str, ...]]:
        """Rows of a table: ranks and energy of each matrix at the last call."""
        columns = ("rank", "effective_rank", "stable_rank", "energy")
        when = f"at step {self._steps[-1]}" if self._steps else "not called yet"
        rows = [(f"matrix, {when}", *(name.replace("_", " ") for name in columns))]
        last = self._rows[-1] if self._rows else ()
        for (name, start), observation in zip(self._start.items(), last, strict=False):
            measures = observation.measures
            cells = {x: f"{getattr(measures, x):.4g}" for x in columns}
            # Where not all values were computed, the effective rank is known as a range.
            least = f"{measures.effective_rank_least:.4g}"
            if least != cells["effective_rank"]:
                cells["effective_rank"] = f"{least} to {cells['effective_rank']}"
            # Where all values that were computed count, there may be more.
            more = "+" if 0 < measures.rank == observation.computed < min(start.shape) else ""
            rows.append((name, cells["rank"] + more, *list(cells.values())[1:]))
        return rows

    def _chance_rows(self) -> list[tuple[str, ...]]:
        """Theorem 2's quantities at the last call, each with what chance gives in brackets."""
        rows: list[tuple[str, ...]] = [
            ("matrix", f"energy in {self.k}", "angle to first", "bulk drift", "along W(0)")
        ]
        for name, quantities in self._quantities().items():
            cells = ["-" if math.isnan(value) else text for value, text, _ in quantities.values()]
            rows.append((name, *cells))
        return rows

    def _chance_sentence(self) -> str:
        """How many matrices have more of each quantity than chance gives."""
        matrices = self._quantities().values()
        counts = {name: sum(quantities[name].seen for quantities in matrices) for name in BEYOND}
        words = [f"{name} of {count}" for name, count in counts.items()]
        return f"Beyond chance, of {len(self._start)} matrices: {', '.join(words)}. {REACH}"

    def _quantities(self) -> dict[str, dict[str, Quantity]]:
        """Matrix -> quantity -> what it is at the last call."""
        quantities = {}
        for (name, W), observation in zip(self._start.items(), self._rows[-1], strict=True):
            bulk, energy = observation.bulk, observation.measures.energy
            usual = theorem_2.energy_chance(*W.shape, min(self.k, *W.shape))
            is_seen = not math.isnan(bulk.along)  # else what lies there is rounding
            angle, random, low = math.nan, math.nan, math.nan
            if np.isfinite(observation.to_last).any():  # at the first call it is to itself
                angle = float(np.degrees(np.nanmean(observation.to_first)))
                random, low = self._mean_angles(observation, W.shape)
            quantities[name] = {
                "energy": Quantity(
                    energy, f"{energy:.3g} ({usual:.2g})", energy > theorem_2.MORE * usual
                ),
                "angle": Quantity(angle, f"{angle:.0f} ({random:.0f}) deg", angle < low),
                "drift": Quantity(
                    bulk.drift if is_seen else math.nan,
                    f"{bulk.drift:.2g} (+-{bulk.drift_chance:.1g})",
                    is_seen and abs(bulk.drift) > bulk.drift_chance,
                ),
                "along W(0)": Quantity(
                    bulk.along, f"{bulk.along:.3g} ({bulk.along_chance:.2g})", False
                ),
            }
        return quantities

    def _mean_angles(self, observation: Observation, shape: tuple[int, ...]) -> tuple[float, float]:
        """Mean angle of random spaces in degrees, and the low end of their band."""
        counts = np.isfinite(observation.to_first).sum(axis=1)
        laws = [
            theorem_2.angle_chance(dim, int(count))
            for dim, count in zip(shape, counts, strict=True)
        ]
        means = (np.mean([getattr(law, end) for law in laws]) for end in ("value", "low"))
        value, low = (float(np.degrees(mean)) for mean in means)
        return value, low


def watch(params0: PyTree, select: Patterns = "*", *, k: int = 8) -> Watcher:
    """A recorder for a training loop of your own, in any framework.

    Called with the parameters and the step it keeps, for the update W(t) - W(0) of each matrix,
    rank, effective and stable rank, the share of its energy in the first k singular values, these
    values, and the principal angles between its first k directions now, at the call before and at
    the first one. Theorem 2's quantities stand beside what a random update of that size has
    (:mod:`lrdyn.diagnosis.theorem_2`). ``recorder.dataset`` is an ``xarray`` dataset that grows
    with each call, ``recorder.plot()`` its figure.

    Where the shorter side of a matrix is 8 (k + 10) or more, a randomised range finder computes
    k + 10 singular values in 10 (k + 10) m n multiplications or so; the dataset has as ``seen`` how
    many were. The rank is then the number of these above rounding, and of the effective rank the
    dataset has the most and the least that the energy left allows. Smaller matrices are
    decomposed.

    Matrices of JAX or torch that large and in the memory of an accelerator stay there, with a copy
    of W(0) in float32: the range finder's products are computed there. Smaller ones are copied to
    the CPU at each call.

    Args:
        params0: the parameters before the training: a module of torch, or a tree of arrays of
            NumPy, JAX, torch (a ``state_dict``), or of what else has ``__dlpack__`` or
            ``__array__``. The matrices that are watched are copied.
        select: which matrices: a glob or a regular expression on their paths, or a list of them.
        k: how many directions.

    Raises:
        ValueError: no matrix fits, or k is no integer >= 1.

    Example:
        >>> W = np.zeros((4, 3))
        >>> recorder = watch({"layer": {"W": W, "b": np.zeros(3)}}, k=2)
        >>> for step in (1, 2):
        ...     W += np.outer([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, step])
        ...     recorder({"layer": {"W": W}}, step)
        >>> recorder.dataset["rank"].squeeze("matrix").values
        array([1, 1])
        >>> recorder.dataset["angle_to_first"].sel(step=2, side="right").values[0, 0].round(3)
        np.float64(0.197)
    """
    checks.integer("k", k)
    reading.checked_patterns("select", select)
    return Watcher(params0, select, k=int(k))


def _in_range(matrix: OnDevice) -> bool:
    """Whether its sum of squares is finite: float32 leaves its range in one, as NaN does."""
    return math.isfinite(matrix.inner(matrix))


def _angles(directions: Directions, other: Directions | None, k: int) -> np.ndarray:
    """Principal angles of both sides, increasing, padded with NaN."""
    padded = np.full((len(SIDES), k), math.nan)
    for row, mine, theirs in zip(padded, directions, other or (), strict=False):
        angles = principal_angles(mine, theirs)
        row[: len(angles)] = angles
    return padded


def principal_angles(U: np.ndarray, V: np.ndarray) -> np.ndarray:
    """Principal angles between the spans of orthonormal columns, increasing, in radians.

    There are as many as the smaller number of columns, which may be 0. Cosines are the singular
    values of U^T V, sines those of V - U U^T V; small angles are lost in the former, large ones in
    the latter. What SciPy has orthonormalises both anew, which takes most of a call of the
    recorder.

    Args:
        U: d x a.
        V: d x b.

    Example:
        >>> principal_angles(np.eye(3)[:, :1], np.eye(3)[:, 1:]).round(4).tolist()
        [1.5708]

    Reference:
        Björck and Golub, Numerical methods for computing angles between linear subspaces, 1973.
    """
    if U.shape[1] < V.shape[1]:
        U, V = V, U
    shared = U.T @ V
    cosines = np.linalg.svd(shared, compute_uv=False)
    sines = np.linalg.svd(V - U @ shared, compute_uv=False)[::-1]
    return np.arctan2(sines, cosines)
