"""Ranks that are known before a training: of W, of gradients, and of Adam's step from them.

Of k gradients G_1, ..., G_k of a matrix, each of another batch at the same weights, the mean is the
direction of a step of descent, and

    mean_i G_i / sqrt(mean_i G_i^2),

entry by entry and 0 where all are 0, that of Adam's, whose two averages these are. How far such
ranks tell that of the update which a training makes is measured by the study
``rank_before_training``.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lrdyn.core import checks, show
from lrdyn.core.selection import Patterns
from lrdyn.data.tensors import Info
from lrdyn.diagnosis import advice, comparison, noise, reading, unfolding
from lrdyn.diagnosis.spectrum import blas_threads, values_of
from lrdyn.diagnosis.updates import rank_with
from lrdyn.system.progress import Progress, Silent

SHARE = 0.9
"""Share of the squared norm that a rank holds."""
HEAD = ("kind of layer", "of", "m x n", "W", "one gradient", "mean of k", "Adam's step", "noise")
MANY = 24
"""Matrices that are listed one by one."""


class MatrixGradients(NamedTuple):
    """Ranks with 90 % of the squared norm, of one matrix before its training."""

    name: str
    rows: int
    columns: int
    weights: int
    """Of W."""
    gradient: int
    """Of the first gradient; 0 if it is 0."""
    mean: int
    """Of the mean of all gradients."""
    adam: int | None
    """Of Adam's step from these gradients; None of a single one, which gives signs alone."""
    above_noise: int | None
    """Singular values of the mean gradient above its noise floor; None where there is none."""
    agreement: float
    """k ||mean||^2 / the mean of ||G_i||^2: 1 where gradients have nothing in common, k where they
    are equal; NaN if all are 0."""


class GradientReport(NamedTuple):
    """What gradients say of the ranks of an update that is still to come: see :func:`gradients`."""

    matrices: tuple[MatrixGradients, ...]
    k: int
    """How many gradients there are."""
    notes: dict[str, str]
    """What is not looked at, and why."""

    def answer(self) -> list[str]:
        """What is known, and what it is worth, in sentences."""
        moved = [matrix for matrix in self.matrices if matrix.gradient]
        if not moved:
            return ["All gradients are 0: they say nothing of an update."]
        where = "of Adam's step" if self.k > 1 else "of the gradient"
        ranks = [matrix.gradient if matrix.adam is None else matrix.adam for matrix in moved]
        least, most = min(ranks), max(ranks)
        span = f"r = {least}" if least == most else f"r = {least} to {most}"
        found = [
            f"{span} {where} holds 90 % of its squared norm ({self.k} "
            f"{'gradient' if self.k == 1 else 'gradients'}, {len(moved)} matrices).",
            *FOUND,
        ]
        if self.k == 1:
            found.append("Give the gradients of several batches: of one there is no Adam's step.")
        return found

    def table(self, *, every: bool = False) -> str:
        """Report as text.

        Args:
            every: list each matrix, also of more than :data:`MANY`.
        """
        kinds: dict[str, list[MatrixGradients]] = {}
        for matrix in self.matrices:
            kinds.setdefault(advice.kind_of(matrix.name), []).append(matrix)
        answer = [line for said in self.answer() for line in textwrap.wrap(said, 80)]
        lines = [*answer, "", *show.aligned([HEAD, *map(_row, kinds, kinds.values())])]
        if every or len(self.matrices) <= MANY:
            rows = [_row(one.name.removesuffix(".weight"), [one]) for one in self.matrices]
            each = [("matrix", *HEAD[1:]), *rows]
            lines += ["", *show.aligned([(row[0], *row[2:]) for row in each])]
        notes = map(show.make_printable, comparison.note_lines(self.notes))
        return "\n".join([*lines, "", *notes]).rstrip()

    def json(self) -> str:
        """Every number as JSON; null for what there is not."""
        matrices = [
            {n: None if isinstance(x, float) and np.isnan(x) else x for n, x in m._asdict().items()}
            for m in self.matrices
        ]
        content = {"answer": " ".join(self.answer()), "k": self.k}
        return json.dumps(content | {"matrices": matrices, "notes": self.notes}, indent=1)

    def __str__(self) -> str:
        return self.table()


FOUND = (
    "Read the order of the matrices, not the rank: in the study rank_before_training ranks of "
    "gradients put the matrices in about the order of their updates, in a small language model and "
    "in an encoder; those of W did so in the language model alone.",
    "The rank itself was off by factors of 1.3 to 10. Under Adam a tenth of the training tells "
    "more: tune that far, then lrdyn diagnose BASE TUNED.",
)
"""What the study found (docs/studies.md)."""


def gradients(
    before: Any,
    found: Any,
    *,
    select: Patterns = "*",
    rename: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> GradientReport:
    """Which ranks W, its gradients and Adam's step have before a training.

    Args:
        before: weights before the training, as for :func:`lrdyn.diagnose`.
        found: gradients at these weights under the same names: a file or tree, or a list of them,
            one for each batch. An axis more in front of every array counts k gradients.
        select: which matrices: a glob or a regular expression on their names, or a list of them.
        rename: regular expression -> text, for names of the gradients.
        progress: is told of each matrix that is done.

    Returns:
        The report, which prints as an answer and tables and has ``json()``.

    Raises:
        ValueError: no matrix fits that both have, or gradients have other shapes than W.
        Refused: a file is damaged or of another format.
        OSError: a file cannot be read.

    Example:
        >>> W, G = np.eye(3), np.diag([2.0, 1.0, 0.0])
        >>> report = gradients({"W": W}, [{"W": G}, {"W": 3 * G}])
        >>> report.matrices[0].weights, report.matrices[0].mean, report.matrices[0].adam
        (3, 2, 2)
    """
    reading.checked_patterns("select", select)
    base = reading.weights("before", before)
    listed = found if isinstance(found, list | tuple) else [found]
    if not listed:
        checks.refuse("gradients", "none", "one file or tree, or several")
    sources = [part for one in listed for part in _split(base, one, rename)]
    base = unfolding.unfold(base)
    compared = [comparison.compare(base, unfolding.unfold(one), select) for one in sources]
    notes: dict[str, str] = {}
    for both in compared:
        notes |= {
            name: note.replace(" after", " of a gradient") for name, note in both.notes.items()
        }
    names = [n for n in compared[0].matrices if all(n in both.matrices for both in compared)]
    if other := [
        n for n in names if any("compared on" in both.notes.get(n, "") for both in compared)
    ]:
        checks.refuse("gradients", f"another shape of {other[0]}", "that of W")
    if not names:
        checks.refuse("gradients", "no matrix that all of them have", "the same names in each")
    matrices, told = [], Silent() if progress is None else progress
    told.expect(len(names))
    with blas_threads(1):
        for name in names:
            arrays = (_read_one(both.after, name, notes) for both in compared)
            W = comparison.read_finite(base, name, "before", notes)
            measured = None if W is None else _measure(name, reading.widen(W), arrays)
            if measured is not None:
                matrices.append(measured)
            told.advance(1)
    return GradientReport(tuple(matrices), len(sources), notes)


def _read_one(weights: Any, name: str, notes: dict[str, str]) -> np.ndarray | None:
    """One gradient, None and a note if it is not finite."""
    array = comparison.read_finite(weights, name, "of a gradient", notes)
    return None if array is None else reading.widen(array)


def _measure(name: str, W: np.ndarray, arrays: Iterator[np.ndarray | None]) -> Any:
    first, total, squares, sizes, count = None, np.zeros(W.shape), np.zeros(W.shape), 0.0, 0
    for G in arrays:
        if G is None:
            return None
        first = G if first is None else first
        # In float64: what k gradients have in common may be far below each of them.
        wide = G.astype(np.float64)
        total, squares, count = total + wide, squares + wide**2, count + 1
        sizes += float(np.sum(wide**2))
    assert first is not None
    mean, second = total / count, np.sqrt(squares / count)
    # As Adam's eps: an entry that is 0 in every gradient does not move.
    step = np.divide(mean, second, out=np.zeros_like(mean), where=second > 0)
    spectrum = values_of(mean)
    floor = noise.find_floor(spectrum, W.shape) if spectrum[0] > 0 else None
    return MatrixGradients(
        name,
        *W.shape,
        weights=_rank(W),
        gradient=_rank(first),
        mean=rank_with(spectrum, SHARE) or 0,
        adam=_rank(step) if count > 1 else None,
        above_noise=None if floor is None else floor.above,
        agreement=count**2 * float(np.sum(mean**2)) / sizes if sizes else float("nan"),
    )


def _rank(matrix: np.ndarray) -> int:
    return rank_with(values_of(matrix), SHARE) or 0


def _row(name: str, matrices: Sequence[MatrixGradients]) -> tuple[str, ...]:
    """The median ranks of some matrices."""
    shapes = dict.fromkeys(f"{matrix.rows} x {matrix.columns}" for matrix in matrices)
    ranks = [(m.weights, m.gradient, m.mean, m.adam, m.above_noise) for m in matrices]
    known = [[rank for rank in column if rank is not None] for column in zip(*ranks, strict=True)]
    medians = [f"{np.median(column):g}" if column else "-" for column in known]
    return name, str(len(matrices)), next(iter(shapes)) if len(shapes) == 1 else "several", *medians


class _OneOf:
    """One of k gradients that lie in one file along a first axis."""

    path = None

    def __init__(self, inner: Any, place: int):
        self._inner, self._place = inner, place
        self.infos: dict[str, Info] = {
            name: info._replace(shape=info.shape[1:])
            for name, info in inner.infos.items()
            if info.shape
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._inner[name])[self._place]


def _split(base: Any, source: Any, rename: Mapping[str, str] | None) -> list[Any]:
    """The gradients of a file: one, or as many as a first axis counts.

    Raises:
        ValueError: arrays count another number of gradients each.
    """
    opened = reading.weights("gradients", source, rename)
    counts = {
        opened.infos[name].shape[0]
        for name, info in base.infos.items()
        if name in opened.infos and opened.infos[name].shape[1:] == info.shape
    }
    if not counts:
        return [opened]
    if len(counts) > 1 or 0 in counts:
        numbers = ", ".join(map(str, sorted(counts)))
        checks.refuse("gradients", f"first axes of {numbers}", "as many gradients of each matrix")
    return [unfolding.Unfolded(_OneOf(opened, place)) for place in range(counts.pop())]
