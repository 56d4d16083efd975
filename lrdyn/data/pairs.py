"""Pairs of sentences with a score (STS-B and the like), and plain text."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lrdyn.data import guarded
from lrdyn.data.guarded import reading, refused
from lrdyn.data.lookup import find, is_file, missing

LIMIT = 2**26
"""Bytes of a file of pairs, at most."""
SPLITS = ("train", "dev", "test")
HIGHEST = 5.0
"""STS-B scores pairs from 0 (unrelated) to 5 (the same)."""


class Pairs(NamedTuple):
    """Pairs of sentences with scores; entries i of the three fields belong together."""

    sentence1: list[str]
    sentence2: list[str]
    scores: Float[np.ndarray, "n"]
    """Scores from 0 to the highest one; NaN where the file has none."""


def stsb_names(split: str) -> tuple[str, ...]:
    """Names of a part of STS-B below a place: GLUE's TSV, or a CSV without a header.

    Raises:
        ValueError: there is no such part.

    Example:
        >>> stsb_names("dev")
        ('STS-B/dev.tsv', 'stsb/dev.tsv', 'stsb/dev.csv', 'stsb-en-dev.csv')
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, wanted one of {', '.join(SPLITS)}")
    return (
        f"STS-B/{split}.tsv",
        f"stsb/{split}.tsv",
        f"stsb/{split}.csv",
        f"stsb-en-{split}.csv",
    )


def stsb(
    path: str | Path | None = None, split: str = "train", *, data_dir: str | Path = ""
) -> Pairs:
    """Read a part of STS-B: GLUE's TSV, or a CSV of ``sentence1,sentence2,score``.

    GLUE keeps the scores of its test part to itself: that one's are NaN.

    Args:
        path: the file; without one it is looked for in the places.
        split: ``train``, ``dev`` or ``test``, if no file is named.
        data_dir: the first of those places.

    Raises:
        MissingData: the file is in none of the places.
        Refused: it is no such file.
        ValueError: there is no such part.

    Example:
        >>> len(stsb(split="dev").scores)  # doctest: +SKIP
        1500
    """
    names = stsb_names(split)
    file = find(names, data_dir) if path is None else Path(path)
    if file is None or not is_file(file):
        title, files = f"STS-B ({split})", str(path or f"{names[0]} or {names[-1]}")
        raise missing(title, files, "put GLUE's STS-B folder there", data_dir)
    return pairs(file)


def pairs(
    path: str | Path,
    *,
    first: str = "sentence1",
    second: str = "sentence2",
    score: str = "score",
    highest: float | int = HIGHEST,
    limit: int = LIMIT,
) -> Pairs:
    r"""Read a TSV whose first line names its columns, or a CSV of three columns without that line.

    Args:
        path: the file; as GLUE has it, a quotation mark in a ``.tsv`` is a letter like others.
        first: column of the first sentence.
        second: column of the second one.
        score: column of the score; without such a column scores are NaN.
        highest: the highest score.
        limit: bytes of the file, at most.

    Raises:
        Refused: a column is missing, a line is longer or shorter than others, a score is no number
            from 0 to the highest, or the file is too large or no UTF-8.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.tsv")
        >>> _ = path.write_text("A\tB\na cat\tsome cat")
        >>> pairs(path, first="A", second="B").sentence2
        ['some cat']
    """
    path = Path(path)
    rows = _rows(path, limit)
    names = (first, second, score)
    if path.suffix == ".tsv":
        header = rows.pop(0)[1] if rows else []
        for name in names[:2]:
            if header.count(name) != 1:
                raise refused(path, f"the columns {', '.join(header)}", f"one named {name}")
    else:
        header = list(names)
        rows = [row for place, row in enumerate(rows) if place or row[1] != header]
    places = [header.index(name) if name in header else None for name in names]
    firsts, seconds, scores = (_column(path, rows, len(header), place) for place in places)
    return Pairs(firsts, seconds, _scores(path, rows, scores, highest))


Rows = Sequence[tuple[int, list[str]]]
"""Number of a line and its cells."""


def _rows(path: Path, limit: int) -> list[tuple[int, list[str]]]:
    content = text(path, limit=limit)
    plain = path.suffix == ".tsv"
    with reading(path, "lines of cells"):
        lines = csv.reader(
            io.StringIO(content, newline=""),
            delimiter="\t" if plain else ",",
            # GLUE's sentences have single quotation marks, behind which a reader of CSV would take
            # in lines.
            quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
            strict=True,
        )
        return [(lines.line_num, cells) for cells in lines if cells]


def _column(path: Path, rows: Rows, width: int, place: int | None) -> list[str]:
    for number, cells in rows:
        if len(cells) != width:
            raise refused(path, f"{len(cells)} columns in line {number}", f"{width}")
    return [] if place is None else [cells[place] for _, cells in rows]


def _scores(
    path: Path, rows: Rows, cells: list[str], highest: float | int
) -> Float[np.ndarray, "n"]:
    if not cells:
        return np.full(len(rows), math.nan)
    scores = np.full(len(rows), math.nan)
    for place, cell in enumerate(cells):
        with reading(path, "a number as score"):
            scores[place] = float(cell)
        if not 0 <= scores[place] <= highest:
            got = f"the score {cell} in line {rows[place][0]}"
            raise refused(path, got, f"a score from 0 to {highest:g}")
    return scores


def text(path: str | Path, *, limit: int = 2**28) -> str:
    """Read a file of UTF-8 text, from the path or from the places.

    Args:
        path: the file, or its name below one of the places.
        limit: bytes of the file, at most; a larger one is refused.

    Raises:
        MissingData: there is no such file.
        Refused: it is too large or no UTF-8.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.txt")
        >>> _ = path.write_text("To be")
        >>> text(path)
        'To be'
    """
    file = Path(path) if is_file(Path(path)) else find([str(path)])
    if file is None:
        raise missing("such text", ascii(str(path))[1:-1], "give the path of a file")
    with reading(file, "UTF-8 text"):
        # Editors of Windows begin a file of UTF-8 with a mark, which is no letter of the text.
        return guarded.content(file, most=limit).decode("utf-8-sig")
