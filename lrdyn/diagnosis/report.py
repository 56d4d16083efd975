"""Diagnose an update between two sets of weights: its ranks, its bulk, and what LoRA would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdyn.adapters.memory import state_bytes, weights_held
from lrdyn.adapters.methods import FULL, LORA
from lrdyn.core import checks, show
from lrdyn.core.selection import Patterns
from lrdyn.diagnosis import comparison, reading
from lrdyn.diagnosis.comparison import Pair
from lrdyn.diagnosis.spectrum import Spectrum, measured, one_thread, rounding, values_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lrdyn.figures.tables import Cell

BYTES = 4
"""Bytes of an entry of the weights and of Adam's state: both are float32."""


class MatrixUpdate(NamedTuple):
    """What is said of the update of one matrix, W after - W before."""

    name: str
    rows: int
    columns: int
    norm: float
    """Frobenius norm of the update."""
    relative: float
    """The norm of the update over that of W before."""
    rank: int
    """Singular values above what rounding makes."""
    effective_rank: float
    stable_rank: float
    energy: float
    """Share of the squared norm in the first k singular values."""
    outside: float
    """Share of the squared norm in all other singular values, 1 - energy."""
    rank_90: int
    """Smallest rank with 90 % of the squared norm; 0 if there is no update."""
    rank_99: int
    mean_before: float
    """Mean of the singular values of W behind the first k, before."""
    mean_after: float
    spread_before: float
    """Standard deviation of these singular values over their mean; NaN if there are none."""
    spread_after: float
    rounding: float
    """Largest singular value that rounding of the stored types makes, about."""
    values: np.ndarray
    """All singular values of the update."""

    @property
    def shape(self) -> str:
        """Rows and columns in words."""
        return f"{self.rows} x {self.columns}"

    @property
    def cells(self) -> list[Cell]:
        """What stands in the table, as :data:`SHOWN` has it; a dash for what there is not."""
        cells = (getattr(self, name) for name in SHOWN.values())
        return ["-" if np.isnan(cell) else cell for cell in cells]

    @property
    def full(self) -> int:
        """Parameters of the matrix: full fine-tuning trains all."""
        return self.rows * self.columns

    def lora(self, rank: int) -> int:
        """Parameters of LoRA's factors: r (m + n)."""
        return weights_held(LORA, self.rows, self.columns, rank) - self.full


class Diagnosis(NamedTuple):
    """What the update between two sets of weights is like: see :func:`lrdyn.diagnose`."""

    matrices: tuple[MatrixUpdate, ...]
    changed: dict[str, float]
    """Norms, biases and the like that changed, with ||after - before|| / ||before||."""
    notes: dict[str, str]
    """What is not compared, or not as a whole, and why."""
    k: int

    def table(self) -> str:
        """The report as text."""
        from lrdyn.figures.tables import Grid, as_text

        rows = [[matrix.name, matrix.shape, *matrix.cells] for matrix in self.matrices]
        title = f"update; energy outside of the first {self.k}; bulk: values of W behind these"
        grid = Grid(("", "matrix", "m x n", *SHOWN), {title: rows})
        return as_text(grid, mathematics=False) + "\n".join(["", *self.lines()])

    def lines(self) -> list[str]:
        """Costs, what else changed, and what is not compared."""
        lines = [
            self._cost("90 %", [matrix.rank_90 for matrix in self.matrices]),
            self._cost("99 %", [matrix.rank_99 for matrix in self.matrices]),
        ]
        if self.changed:
            changes = comparison.listed(self.changed)
            lines.append(f"no matrices, and changed (by how much of their norm): {changes}")
        return [show.printable(line) for line in lines + comparison.as_lines(self.notes)]

    def _cost(self, share: str, ranks: list[int]) -> str:
        """What LoRA at these ranks trains and holds, beside full fine-tuning."""
        used = [(matrix, r) for matrix, r in zip(self.matrices, ranks, strict=True) if r]
        trained = sum(matrix.lora(r) for matrix, r in used)
        full = sum(matrix.full for matrix in self.matrices)
        state = sum(state_bytes(LORA, W.rows, W.columns, r, BYTES) for W, r in used)
        whole = sum(state_bytes(FULL, W.rows, W.columns, 1, BYTES) for W in self.matrices)
        here, there = BYTES * (full + trained) + state, BYTES * full + whole
        return (
            f"{share} of the energy: LoRA trains {trained:,} parameters ({trained / full:.3g} "
            f"of {full:,}); weights and Adam's state {_size(here)}, in full {_size(there)}"
        )

    def csv(self) -> str:
        """Every number, one line a matrix."""
        from lrdyn.figures.tables import Grid, as_csv

        names = [name for name in MatrixUpdate._fields if name not in ("name", "values")]
        more = ("parameters", "lora_parameters_90", "lora_parameters_99")

        def row(matrix: MatrixUpdate) -> list[Cell]:
            costs = (matrix.full, matrix.lora(matrix.rank_90), matrix.lora(matrix.rank_99))
            return [*(getattr(matrix, name) for name in names), *costs]

        sections = {matrix.name: [row(matrix)] for matrix in self.matrices}
        return as_csv(Grid(("matrix", *names, *more), sections), mathematics=False)

    def plot(self) -> Figure:
        """Spectra of the updates, energy outside of r, and the bulk before and after."""
        from lrdyn.diagnosis import pictures

        return pictures.diagnosed(self)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        rows = [("matrix", "m x n", *SHOWN)]
        for matrix in self.matrices:
            cells = (cell if isinstance(cell, str) else f"{cell:.4g}" for cell in matrix.cells)
            rows.append((matrix.name, matrix.shape, *cells))
        return "<br>".join([show.table(rows), *map(show.html.escape, self.lines())])


SHOWN = {
    "relative": "relative",
    "rank": "rank",
    "effective": "effective_rank",
    "stable": "stable_rank",
    "r, 90 %": "rank_90",
    "r, 99 %": "rank_99",
    "outside": "outside",
    "bulk before": "mean_before",
    "after": "mean_after",
    "spread before": "spread_before",
    "spread after": "spread_after",
}
"""Heading of a column -> what stands in it."""


def diagnose(before: Any, after: Any, *, select: Patterns = "*", k: int = 8) -> Diagnosis:
    """How the update between two sets of weights is shaped, and what LoRA in its place would cost.

    One matrix is in memory at a time. Singular values are exact (:mod:`lrdyn.diagnosis.spectrum`):
    of W before, W after and their difference, in some m^2 n + 2 m^3 multiplications each (m <= n).
    A singular value counts into the rank if it is above what rounding makes: of the decomposition,
    and of the stored types, whose errors in bfloat16 are often larger than the update.

    Args:
        before: weights before the training: a ``.safetensors`` file, a
            ``.safetensors.index.json``, a folder with either, an ``.npz``, or a tree of arrays of
            any framework.
        after: weights after it, likewise.
        select: which matrices: a glob or a regular expression on their names, or a list of them.
        k: how many singular values are the first ones.

    Returns:
        The report: it prints as a table, and has ``csv()`` and ``plot()``. What is missing on a
        side, has another shape or is not finite is named in ``notes``, and the rest is done. Rows
        that were added, as of an embedding, are left out of the comparison and named.

    Raises:
        ValueError: no matrix fits that both sides have, or an argument is wrong.
        Refused: a file is damaged, a pickle, or of another format.
        OSError: a file cannot be read.

    Example:
        >>> W = np.diag([4.0, 3.0, 2.0, 1.0])
        >>> report = diagnose({"W": W, "b": np.ones(2)}, {"W": W + 0.1, "b": np.zeros(3)}, k=1)
        >>> report.matrices[0].rank, report.matrices[0].rank_99, report.notes
        (1, 1, {'b': 'shape (2,) before and (3,) after'})
    """
    checks.integer("k", k)
    reading.checked_patterns("select", select)
    first, second = reading.weights("before", before), reading.weights("after", after)
    both = comparison.compared(first, second, select)
    notes = dict(both.notes)
    every = comparison.pairs(both, both.matrices, notes)
    with one_thread():
        rows = tuple(of_pair(pair, int(k)) for pair in every)
    return Diagnosis(rows, comparison.differing(both, notes), notes, int(k))


def of_pair(pair: Pair, k: int) -> MatrixUpdate:
    """Measure the update of one matrix, and the matrix before and after.

    Example:
        >>> pair = Pair("W", np.eye(2), np.diag([3.0, 1.0]), ("float64", "float64"))
        >>> update = of_pair(pair, 1)
        >>> update.rank, update.mean_before, update.mean_after
        (1, 1.0, 1.0)
    """
    update = pair.update
    floor = rounding(
        *pair[1:3], epsilons=(reading.epsilon(pair.types[0]), reading.epsilon(pair.types[1]))
    )
    values, before, after = map(values_of, (update, pair.before, pair.after))
    nothing = update[:, :0]
    spectrum = Spectrum(values, len(values), nothing, nothing.T)
    measures = measured(
        spectrum,
        k=min(k, len(values)),
        side=max(update.shape),
        eps=reading.epsilon(update.dtype.name),
        floor=floor,
    )
    start = float(np.linalg.norm(before))
    mean_before, spread_before = _bulk(before, k)
    mean_after, spread_after = _bulk(after, k)
    return MatrixUpdate(
        name=pair.name,
        rows=update.shape[0],
        columns=update.shape[1],
        norm=measures.norm,
        relative=measures.norm / start if start else np.inf,
        rank=measures.rank,
        effective_rank=measures.effective_rank,
        stable_rank=measures.stable_rank,
        energy=measures.energy,
        outside=1 - measures.energy,
        rank_90=rank_with(values, 0.9),
        rank_99=rank_with(values, 0.99),
        mean_before=mean_before,
        mean_after=mean_after,
        spread_before=spread_before,
        spread_after=spread_after,
        rounding=floor,
        values=values,
    )


def rank_with(values: np.ndarray, share: float) -> int:
    """Smallest r whose first r singular values have this share of the squared norm; 0 of nothing.

    Example:
        >>> rank_with(np.array([3.0, 1.0, 0.0]), 0.9), rank_with(np.zeros(2), 0.9)
        (1, 0)
    """
    sums = np.cumsum(values**2)
    if not sums[-1]:
        return 0
    # A share that is reached exactly must not be missed by a rounding of the sum.
    enough = sums >= share * sums[-1] * (1 - len(values) * np.finfo(float).eps)
    return int(np.argmax(enough)) + 1


def _bulk(values: np.ndarray, k: int) -> tuple[float, float]:
    """Mean of the values behind the first k, and their standard deviation over it."""
    rest = values[k:]
    if not len(rest):
        return np.nan, np.nan
    mean = float(np.mean(rest))
    return mean, float(np.std(rest)) / mean if mean else np.nan


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
