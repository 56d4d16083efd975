"""Diagnose an update between two sets of weights: its ranks, its bulk, and what LoRA would cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np  # noqa: F401  (the example)

from lrdyn.adapters.memory import state_bytes
from lrdyn.adapters.methods import FULL, LORA
from lrdyn.core import checks, show
from lrdyn.core.selection import Patterns
from lrdyn.diagnosis import advice, comparison, reading, unfolding
from lrdyn.diagnosis.comparison import Compared
from lrdyn.diagnosis.products import Products
from lrdyn.diagnosis.updates import SHOWN, MatrixUpdate, Settings, examine_all
from lrdyn.system.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lrdyn.figures.tables import Cell

BYTES = 4
"""Bytes of an entry of the weights and of Adam's state: both are float32."""
MANY = 24
"""Matrices that are listed one by one; of more there is the table by kind."""


class Diagnosis(NamedTuple):
    """What the update between two sets of weights is like: see :func:`lrdyn.diagnose`."""

    matrices: tuple[MatrixUpdate, ...]
    changed: dict[str, float]
    """Norms, biases and the like that changed, with ||after - before|| / ||before||."""
    notes: dict[str, str]
    """What is not compared, or not as a whole, and why."""
    k: int

    def answer(self) -> list[str]:
        """Which r the update needs and what that costs, in sentences."""
        return advice.sentences(self.matrices, bool(self.changed), noted=bool(self.notes))

    def table(self, *, every: bool = False) -> str:
        """Report of the update as text: the answer, and tables of its matrices.

        Args:
            every: list each matrix, also of more than :data:`MANY`.
        """
        lines = [*self.answer(), "", *advice.table(self.matrices)]
        if every or len(self.matrices) <= MANY:
            lines += ["", *advice.matrix_rows(self.matrices, SHOWN)]
        if any(not math.isnan(matrix.mean_before) for matrix in self.matrices):
            lines += ["", *self._bulk_lines()]
        if any(matrix.intruders is not None for matrix in self.matrices):
            lines += ["", *self._intruder_lines()]
        return "\n".join([*lines, "", *self.lines()])

    def _bulk_lines(self) -> list[str]:
        """The singular values of W behind the first k, before and after."""
        rows: list[tuple[str, ...]] = [
            ("bulk: values of W", "mean before", "after", "spread before", "after")
        ]
        for matrix in self.matrices:
            numbers = (
                matrix.mean_before,
                matrix.mean_after,
                matrix.spread_before,
                matrix.spread_after,
            )
            shown = ["-" if math.isnan(x) else f"{x:.3g}" for x in numbers]
            rows.append((show.shortened(matrix.name.removesuffix(".weight"), 32), *shown))
        return show.aligned(rows)

    def _intruder_lines(self) -> list[str]:
        """New directions among the first k, beside those of an update with random directions."""
        rows: list[tuple[str, ...]] = [(f"intruders of the first {self.k}", "found", "by chance")]
        for matrix in self.matrices:
            counts = (matrix.intruders, matrix.intruders_by_chance)
            shown = ["-" if count is None else str(count) for count in counts]
            rows.append((show.shortened(matrix.name.removesuffix(".weight"), 32), *shown))
        return show.aligned(rows)

    def lines(self) -> list[str]:
        """Lines of text: what LoRA costs, what else changed, and what is not compared."""
        lines = []
        if any(matrix.norm > 0 for matrix in self.matrices):
            lines += [
                self._cost("90 %", [matrix.rank_90 for matrix in self.matrices]),
                self._cost("99 %", [matrix.rank_99 for matrix in self.matrices]),
            ]
        if self.changed:
            changes = comparison.list_changes(self.changed)
            lines.append(f"changed besides the matrices (by this share of the norm): {changes}")
        return [show.make_printable(line) for line in lines + comparison.note_lines(self.notes)]

    def _cost(self, share: str, ranks: list[int | None]) -> str:
        """What LoRA at these ranks trains and holds, beside full fine-tuning."""
        # A matrix that did not move needs no adapter.
        used = [(matrix, r) for matrix, r in zip(self.matrices, ranks, strict=True) if r != 0]
        if unknown := sum(r is None for _, r in used):
            return f"{share}: r is larger than the sketch shows for {unknown} matrices"
        known = [(matrix, r) for matrix, r in used if r is not None]
        trained = sum(matrix.lora(r) for matrix, r in known)
        full = sum(matrix.full for matrix in self.matrices)
        state = sum(state_bytes(LORA, W.rows, W.columns, r, BYTES) for W, r in known)
        whole = sum(state_bytes(FULL, W.rows, W.columns, 1, BYTES) for W in self.matrices)
        here, there = BYTES * (full + trained) + state, BYTES * full + whole
        if trained >= full:
            return (
                f"{share}: LoRA would train {trained:,} parameters, {trained / full:.3g} times the "
                f"{full:,} of full training: not worth it"
            )
        return (
            f"{share}: LoRA trains {trained:,} of {full:,} parameters ({trained / full:.3g}); "
            f"weights and Adam's state {_format_size(here)}, in full {_format_size(there)}"
        )

    def csv(self) -> str:
        """Every number as CSV, one line for each matrix."""
        from lrdyn.figures.tables import Grid, as_csv

        rows = self._rows()
        names = [name for name in rows[0] if name != "matrix"] if rows else []

        def cells(row: Mapping[str, Any]) -> list[Cell]:
            return ["" if row[name] is None else row[name] for name in names]

        sections = {row["matrix"]: [cells(row)] for row in rows}
        return as_csv(Grid(("matrix", *names), sections), mathematics=False)

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for matrix in self.matrices:
            row = {
                n: x for n, x in matrix._asdict().items() if n not in ("name", "noise", "values")
            }
            noise = matrix.noise
            ranks = {90: matrix.rank_90, 99: matrix.rank_99}
            rows.append(
                {"matrix": matrix.name}
                | row
                | {
                    "noise_edge": None if noise is None else noise.edge,
                    "above_noise": None if noise is None else noise.above,
                    "noise_distance": None if noise is None else noise.distance,
                    "parameters": matrix.full,
                }
                | {
                    f"lora_parameters_{share}": None if r is None else matrix.lora(r)
                    for share, r in ranks.items()
                }
            )
        return rows

    def json(self) -> str:
        """Every number, with the singular values, as JSON; null for what there is not."""

        def finite_or_none(x: Any) -> Any:
            return None if isinstance(x, float) and not math.isfinite(x) else x

        matrices = [
            {name: finite_or_none(x) for name, x in row.items()}
            | {"singular_values": matrix.values.tolist()}
            for row, matrix in zip(self._rows(), self.matrices, strict=True)
        ]
        content = {
            "answer": " ".join(self.answer()),
            "k": self.k,
            "matrices": matrices,
            "changed": {name: finite_or_none(x) for name, x in self.changed.items()},
            "notes": self.notes,
        }
        return json.dumps(content, indent=1, allow_nan=False)

    def plot(self) -> Figure:
        """A page: ranks by kind of layer, spectra of the updates with their noise floors, costs."""
        from lrdyn.diagnosis import pictures

        return pictures.plot_diagnosis(self.matrices, self.k)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        rows = [("matrix", "m x n", *SHOWN)]
        rows += [(matrix.name, matrix.shape, *map(str, matrix.cells)) for matrix in self.matrices]
        answer = show.html.escape(" ".join(self.answer()))
        return "<br>".join([answer, show.table(rows), *map(show.html.escape, self.lines())])


def diagnose(
    before: Any,
    after: Any = None,
    *,
    select: Patterns = "*",
    k: int = 8,
    sketch: int | None = None,
    bulk: bool = False,
    intruders: bool = False,
    rename: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """How the update between two sets of weights is shaped, and what LoRA in its place would cost.

    On each core one matrix is in memory at a time. Singular values are exact
    (:mod:`lrdyn.diagnosis.spectrum`), in some m^2 n + 2 m^3 multiplications (m <= n), or those of a
    sketch. A singular value counts into the rank if it is above what rounding makes: of the
    decomposition, and of the stored types, whose errors in bfloat16 are often larger than the
    update. The update of an adapter is decomposed from its factors.

    Args:
        before: weights before the training: a file or a folder, as
            :func:`lrdyn.data.checkpoints.located` finds it, a model's name in the hub's cache, an
            ``.npz``, an adapter of PEFT, or a tree of arrays of any framework.
        after: weights after it, likewise; none for an adapter alone.
        select: which matrices: a glob or a regular expression on their names, or a list of them.
        k: how many singular values are the first ones.
        sketch: of large matrices compute so many singular values, by a range finder: an r that
            needs more is then not known.
        bulk: whether the singular values of W before and after behind the first k are described,
            which takes three times as long.
        intruders: whether directions among the first k of W after are counted that W before does
            not have, beside those that an update with random directions would bring
            (:mod:`lrdyn.diagnosis.intruders`); takes as long.
        rename: regular expression -> text, for names of ``after``.
        progress: is told of each matrix that is done.

    Returns:
        The report: it prints as an answer and tables, and has ``csv()``, ``json()`` and ``plot()``.
        What is missing on a side, has another shape or is not finite is named in ``notes``, and the
        rest is done. Rows that were added, as of an embedding, are left out of the comparison and
        named.

    Raises:
        ValueError: no matrix fits that both sides have, or an argument is wrong.
        Refused: a file is damaged, quantised, a pickle that torch does not read, or of another
            format.
        OSError: a file cannot be read.

    Example:
        >>> W = np.diag([4.0, 3.0, 2.0, 1.0])
        >>> report = diagnose({"W": W, "b": np.ones(2)}, {"W": W + 0.1, "b": np.zeros(3)}, k=1)
        >>> report.matrices[0].rank, report.matrices[0].rank_99, report.notes
        (1, 1, {'b': 'shape (2,) before and (3,) after'})
    """
    settings = checked_settings(k, sketch, bulk)._replace(intruders=bool(intruders))
    both = open_sides(before, after, select, rename, unfolded=True)
    notes = dict(both.notes)
    examined = examine_all(both, both.matrices, notes, settings, progress=progress)
    rows = tuple(matrix.update for matrix in examined)
    return Diagnosis(rows, comparison.relative_changes(both, notes), notes, settings.k)


def checked_settings(k: int, sketch: int | None, bulk: bool) -> Settings:
    """Settings of an examination, after a check of each."""
    checks.integer("k", k)
    if sketch is not None:
        checks.integer("sketch", sketch)
    return Settings(int(k), None if sketch is None else int(sketch), bool(bulk))


def open_sides(
    before: Any,
    after: Any,
    select: Patterns,
    rename: Mapping[str, str] | None = None,
    *,
    unfolded: bool = False,
) -> Compared:
    """Open both sides, an adapter beside the base that it is of.

    Args:
        before: as for :func:`diagnose`.
        after: likewise.
        select: likewise.
        rename: likewise.
        unfolded: whether kernels and stacked experts are matrices.

    Raises:
        ValueError: there is no ``after``, and ``before`` is no adapter; or nothing can be compared.
    """
    reading.checked_patterns("select", select)
    first = reading.weights("before", before)
    if after is None:
        if not isinstance(first, Products):
            checks.refuse("after", "nothing beside weights", "weights after the training")
        return comparison.compare(reading.Leaves("before", {}), first, select)
    second = reading.weights("after", after, rename)
    config, notes = reading.config_of(first), {}
    if unfolded and not isinstance(first, Products):
        notes = unfolding.orientation_notes(first.infos, config)
        first = unfolding.unfold(first)
        second = second if isinstance(second, Products) else unfolding.unfold(second)
    if isinstance(second, Products) and not isinstance(first, Products):
        second = second.with_base(first, config)
    elif isinstance(first, Products) and not isinstance(second, Products):
        checks.refuse("before", "an adapter beside weights", "weights, or adapters on both sides")
    both = comparison.compare(first, second, select)
    shown = {name.partition("[")[0] for name in both.matrices}
    ways = {name: note for name, note in notes.items() if name in shown}
    return both._replace(notes=both.notes | unfolding.grouped_notes(ways))


def _format_size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
