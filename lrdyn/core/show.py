"""How results show themselves: aligned text, and in a notebook tables with small figures (SVG)."""

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from lrdyn.system.messages import near as near
from lrdyn.system.messages import no_such_file as no_such_file
from lrdyn.system.messages import shortened as shortened
from lrdyn.system.printer import make_printable as make_printable

MOST = 12
"""Curves that a small figure draws."""
WIDTH = 100
"""Columns of a sentence in a terminal."""


def wrapped(text: str, indent: str = "") -> list[str]:
    """A sentence in lines of a terminal, broken at spaces alone: names and formulas stay whole.

    Args:
        text: the sentence.
        indent: what stands before the first line; the others are moved in as far.

    Example:
        >>> wrapped("word " * 25, "- ")[1]
        '  word word word word word word'
    """
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    r"""Rows of cells as lines whose columns are as wide as their widest cell, all printable.

    Example:
        >>> aligned([("a", "b"), ("long\n", "c")])
        ['a       b', 'long\\n  c']
    """
    rows = [[make_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def table(rows: Sequence[Sequence[str]], drawn: Sequence[str] = ()) -> str:
    """Rows of cells as an HTML table, the first as its heading.

    Args:
        rows: cells of text.
        drawn: one more cell for each row, of HTML.

    Example:
        >>> table([("a",), ("1<2",)])
        '<table><tr><th>a</th></tr><tr><td>1&lt;2</td></tr></table>'
    """
    lines = []
    for index, row in enumerate(rows):
        tag = "td" if index else "th"
        # A cell of a few words has no place for a new line.
        words = [cell.replace(" ", "\u00a0") if len(cell) <= 20 else cell for cell in row]
        cells = [f"<{tag}>{html.escape(cell)}</{tag}>" for cell in words]
        cells += [f"<{tag}>{drawn[index]}</{tag}>"] if drawn else []
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def gauge(ratio: float | None, color: str = "#0072b2") -> str:
    """Draw residual over tolerance on a logarithmic line from 1e-6 to 1e6, with a tick at 1."""
    if ratio is None or math.isnan(ratio):
        return ""
    place = 60 + 10 * float(np.clip(np.log10(max(ratio, 1e-300)), -5.7, 5.7))
    return (
        '<svg width="120" height="14"><path d="M0 7H120M60 2V12" stroke="#999"/>'
        f'<circle cx="{place:.1f}" cy="7" r="3.5" fill="{color}"/></svg>'
    )


def curves(values: Iterable[np.ndarray], width: int = 240, height: int = 80) -> str:
    """Draw 1-d arrays as curves on common axes, logarithmic if that is what they need."""
    drawn = [np.asarray(v, float) for v in values][:MOST]
    every = np.concatenate([v[np.isfinite(v)] for v in drawn]) if drawn else np.zeros(0)
    if not every.size:
        return ""
    log = bool(every.min() > 0 and every.max() > 100 * every.min())
    low, high = (math.log10(e) if log else e for e in (float(every.min()), float(every.max())))
    paths = []
    for curve in drawn:
        with np.errstate(divide="ignore", invalid="ignore"):
            ups = np.log10(curve) if log else curve
        xs = np.linspace(2, width - 2, len(ups))
        ys = height - 2 - (height - 4) * (ups - low) / ((high - low) or 1.0)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True) if np.isfinite(y))
        paths.append(f'<polyline points="{points}" fill="none" stroke="#0072b2"/>')
    scale = f"{every.min():.3g} to {every.max():.3g}{', log scale' if log else ''}"
    picture = f'<svg width="{width}" height="{height}">{"".join(paths)}</svg>'
    return f"{picture}<br><small>{scale}</small>"


def recorded_arrays(records: PyTree) -> list[tuple[str, Any]]:
    """The recorded arrays by name, leaf by leaf with its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(records)
    return [(jax.tree_util.keystr(path) or "record", leaf) for path, leaf in leaves]


def record_rows(records: PyTree) -> list[tuple[str, str, str, str]]:
    """A heading, and for each recorded array its name, shape, first and last value."""
    rows = [("record", "shape", "first", "last")]
    for name, leaf in recorded_arrays(records):
        first, last = "", ""
        if np.ndim(leaf) == 1 and np.size(leaf) and not isinstance(leaf, Tracer):
            first, last = (f"{np.asarray(leaf)[i]:.4g}" for i in (0, -1))
        rows.append((name, str(np.shape(leaf)), first, last))
    return rows


def record_curves(records: PyTree) -> str:
    """Draw what was recorded as one number at a time, or as a few."""
    drawn: list[np.ndarray] = []
    for _, leaf in recorded_arrays(records):
        if isinstance(leaf, Tracer) or np.ndim(leaf) not in (1, 2):
            continue
        if np.issubdtype(np.asarray(leaf).dtype, np.floating):
            drawn += list(np.atleast_2d(np.asarray(leaf).T))
    return curves(drawn) if len(drawn) <= MOST else ""


def count(params: PyTree) -> str:
    """Describe a model by its numbers of arrays and entries.

    Example:
        >>> count({"a": np.ones((2, 3)), "b": np.ones(4)})
        '2 arrays, 10 numbers'
    """
    arrays = [leaf for leaf in jax.tree.leaves(params) if hasattr(leaf, "shape")]
    return f"{len(arrays)} arrays, {sum(math.prod(a.shape) for a in arrays):,} numbers"


def shapes(named: Any) -> str:
    """A NamedTuple of arrays by their types and shapes.

    Example:
        >>> from typing import NamedTuple
        >>> class Pair(NamedTuple):
        ...     left: Any
        ...     right: Any
        >>> shapes(Pair(np.ones((2, 3)), None))
        'Pair(left=float64[2, 3], right=None)'
    """
    fields = []
    for name, value in named._asdict().items():
        array = hasattr(value, "shape") and hasattr(value, "dtype")
        kind = f"{value.dtype}{list(value.shape)}" if array else repr(value)
        fields.append(f"{name}={kind}")
    return f"{type(named).__name__}({', '.join(fields)})"


def trajectory(run: Any) -> str:
    """The recorded arrays of a run, as text."""
    return "\n".join([*aligned(record_rows(run.records)), _last_line(run)])


def trajectory_html(run: Any) -> str:
    """The recorded arrays of a run, as HTML for a notebook."""
    return f"{table(record_rows(run.records))}{record_curves(run.records)}<br>{_last_line(run)}"


def _last_line(run: Any) -> str:
    return f"params: {count(run.params)}; diverged_at: {run.diverged_at}"


def group_rows(groups: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A heading, and for each group of results its number of arrays, axes and bytes."""
    rows = [("group", "arrays", "axes", "bytes")]
    for name, dataset in groups.items():
        axes = ", ".join(f"{axis} {length}" for axis, length in dataset.sizes.items())
        rows.append((name, str(len(dataset.data_vars)), axes, f"{dataset.nbytes:,}"))
    return rows
