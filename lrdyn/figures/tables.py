r"""Tables as aligned text, CSV and LaTeX, from one grid of cells.

Texts hold mathematics between dollar signs. LaTeX gets it as it is and everything else escaped; in
text the signs are dropped. Names out of somebody's files hold none: ``mathematics=False`` leaves
them as they are.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lrdyn.core.show import make_printable

Cell = str | int | float
Rows = Sequence[Sequence[Cell]]


class Grid(NamedTuple):
    """Cells of a table.

    Args:
        header: names of the columns; the first is that of the sections.
        sections: title of a section -> its rows, without the column of the sections.
    """

    header: Sequence[str]
    sections: Mapping[str, Rows]


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%#_{}"},
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}


def escape(text: str) -> str:
    r"""Make ASCII text safe for LaTeX, but for the mathematics between dollar signs.

    Example:
        >>> print(escape("50 % of a_1: $m_1 + n^2$"))
        50 \% of a\_1: $m_1 + n^2$
    """
    parts = text.split("$")
    if len(parts) % 2 == 0:
        raise ValueError(f"text: got {text!r}, wanted dollar signs in pairs")
    if not text.isascii():
        raise ValueError(f"text: got {text!r}, wanted ASCII letters")
    outside = ["".join(SPECIAL.get(sign, sign) for sign in part) for part in parts[::2]]
    inside = [f"${part}$" for part in parts[1::2]]
    return "".join(a + b for a, b in zip(outside, [*inside, ""], strict=True))


def plain_text(text: str) -> str:
    r"""Text for a terminal: mathematics without dollar signs and backslashes.

    Example:
        >>> plain_text(r"temporaries $2mn + \max(m^2, b)$")
        'temporaries 2mn + max(m^2, b)'
    """
    return re.sub(r"[$\\]", "", text)


def as_text(grid: Grid, *, mathematics: bool = True) -> str:
    r"""Columns side by side, numbers to the right, sections under their titles; all printable.

    Example:
        >>> grid = Grid(["", "name", "rank"], {"updates": [["a$\n$", 2], ["b", 10]]})
        >>> print(as_text(grid, mathematics=False), end="")
          name    rank
        updates
          a$\n$     2
          b         10
    """

    def text(cell: Cell) -> str:
        if isinstance(cell, str):
            return make_printable(plain_text(cell) if mathematics else cell)
        return f"{cell:,}" if isinstance(cell, int) else f"{cell:.3g}"

    rows = [[text(cell) for cell in row] for row in _rows(grid)]
    right = _numeric_columns(grid)
    header = list(map(text, grid.header[1:]))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, right, strict=True)
        texts = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in cells]
        return ("  " + "  ".join(texts)).rstrip()

    lines = [line(header)]
    for title, section in grid.sections.items():
        lines += [text(title), *(line([text(cell) for cell in row]) for row in section)]
    return "\n".join(lines) + "\n"


FORMULA = re.compile(r"[=+\-@\t\r]")
"""First signs of a text that a spreadsheet computes."""


def as_csv(grid: Grid, *, mathematics: bool = True) -> str:
    """Comma-separated values, numbers as they are, one header line.

    A text that a spreadsheet would compute gets an apostrophe in front, as OWASP has it; what a
    terminal would obey is escaped.

    Example:
        >>> grid = Grid(["matrix", "rank"], {"=1+1": [[-2]], "x^$n$": [[3]]})
        >>> print(as_csv(grid, mathematics=False))
        matrix,rank
        '=1+1,-2
        x^$n$,3
        <BLANKLINE>
    """

    def shown(cell: Cell) -> Cell:
        if not isinstance(cell, str):
            return cell
        text = make_printable(plain_text(cell) if mathematics else cell)
        return f"'{text}" if FORMULA.match(text) else text

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(shown, grid.header))
    for title, section in grid.sections.items():
        writer.writerows(map(shown, (title, *row)) for row in section)
    return out.getvalue()


def as_latex(grid: Grid, caption: str, label: str) -> str:
    r"""A floating table with rules of the package booktabs, in ASCII.

    Args:
        grid: the cells.
        caption: text below the table.
        label: by which LaTeX refers to it.

    Example:
        >>> grid = Grid(["what", "name", "bytes"], {"state": [["$2mn$", 12000]]})
        >>> print(as_latex(grid, "A.", "t"))
        % needs \usepackage{booktabs}
        \begin{table}
          \centering
          \begin{tabular}{lr}
            \toprule
            name & bytes \\
            \midrule
            \multicolumn{2}{l}{\emph{state}} \\
            $2mn$ & 12\,000 \\
            \bottomrule
          \end{tabular}
          \caption{A.}
          \label{t}
        \end{table}
        <BLANKLINE>
    """
    columns = "".join("r" if numeric else "l" for numeric in _numeric_columns(grid))
    lines = [_row(map(escape, grid.header[1:]))]
    for title, section in grid.sections.items():
        heading = rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{escape(title)}}}}}"
        lines += [r"\midrule", _row([heading]), *(_row(map(_latex_cell, row)) for row in section)]
    inner = [r"\toprule", *lines, r"\bottomrule"]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            rf"  \begin{{tabular}}{{{columns}}}",
            *("    " + line for line in inner),
            r"  \end{tabular}",
            rf"  \caption{{{escape(caption)}}}",
            rf"  \label{{{label}}}",
            r"\end{table}",
            "",
        ]
    )


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _rows(grid: Grid) -> list[Sequence[Cell]]:
    return [row for section in grid.sections.values() for row in section]


def _numeric_columns(grid: Grid) -> list[bool]:
    """Whether a column has a number."""
    columns = zip(*_rows(grid), strict=True)
    return [any(not isinstance(cell, str) for cell in column) for column in columns]


def _latex_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    shown = f"{cell:,}".replace(",", r"\,") if isinstance(cell, int) else f"{cell:.3g}"
    return f"${shown}$" if shown.startswith("-") else shown
