"""Single sentences with a score: a user's tables, and the corpus of VADER."""

import csv
import html
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lrdyn.data import archives
from lrdyn.data.guarded import reading, refused
from lrdyn.data.lookup import find, is_file, missing
from lrdyn.data.pairs import LIMIT, text

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
"""The corpus as its authors publish it."""
PARTS = {
    "tweets": "tweets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
"""Name of a part of the corpus -> its file in the archive."""
OTHERS = (
    *(file.replace("GroundTruth", "anonDataRatings") for file in PARTS.values()),
    "_README_.txt",
    "vaderSentiment.py",
    "vader_icwsm2014_final.pdf",
    "vader_sentiment_comparison_online_weblink.url",
    "vader_sentiment_lexicon.txt",
)
"""Members that are known and not read."""
LARGEST = 2**22
"""Bytes of a member, at most."""
BOUND = 4.0
"""Raters score from -4, extremely negative, to 4, extremely positive."""
COLUMNS = ("score", "text")


class Scored(NamedTuple):
    """Sentences, each with a score."""

    texts: list[str]
    scores: Float[np.ndarray, "n"]


def names_of(part: str = "tweets") -> tuple[str, ...]:
    """Names of a part of the corpus below a place: a table, or the archive.

    Raises:
        ValueError: there is no such part.

    Example:
        >>> names_of()
        ('vader/tweets.tsv', 'vader_tweets.tsv', 'hutto_ICWSM_2014.tar.gz')
    """
    if part not in PARTS:
        raise ValueError(f"part: got {part!r}, wanted one of {', '.join(PARTS)}")
    return f"vader/{part}.tsv", f"vader_{part}.tsv", ARCHIVE


def vader(
    path: str | Path | None = None, part: str = "tweets", *, data_dir: str | Path = ""
) -> Scored:
    """Read a part of VADER's corpus: human mean scores from -4 to 4 of single sentences.

    Of the archive the entities of HTML (``&amp;``) are read as what they stand for.

    Args:
        path: the archive, or a table as :func:`scored` reads it; without one it is looked for in
            the places.
        part: ``tweets``, ``movies``, ``products`` or ``editorials``.
        data_dir: the first of those places.

    Raises:
        MissingData: the file is in none of the places.
        Refused: it is no such file.
        ValueError: there is no such part.

    Reference:
        Hutto and Gilbert, VADER, ICWSM 2014.

    Example:
        >>> len(vader().texts)  # doctest: +SKIP
        4200
    """
    names = names_of(part)
    file = find(names, data_dir) if path is None else Path(path)
    if file is None or not is_file(file):
        files = str(path or f"{names[0]} or {names[-1]}")
        raise missing(
            f"scored sentences ({part} of VADER)", files, "lrdyn data download vader", data_dir
        )
    if file.name != ARCHIVE:
        return scored(file)
    sizes = dict.fromkeys((*PARTS.values(), *OTHERS), LARGEST)
    content = dict(archives.members(file, ARCHIVE.partition(".")[0], sizes, "VADER's corpus"))
    if PARTS[part] not in content:
        raise refused(file, f"no {PARTS[part]}", "all parts: it is truncated or another archive")
    with reading(file, "text"):
        # The quotation marks of some are those of Windows.
        lines = content[PARTS[part]].decode("cp1252").splitlines()
    rows = [(n, line.split("\t")) for n, line in enumerate(lines, 1) if line]
    for number, cells in rows:
        if len(cells) != 3:
            raise refused(file, f"{len(cells)} columns in line {number} of {part}", "3")
    texts = [html.unescape(cells[2]).strip() for _, cells in rows]
    return Scored(texts, _scores(file, [(n, cells[1]) for n, cells in rows], BOUND))


def scored(path: str | Path, *, limit: int = LIMIT) -> Scored:
    r"""Read a TSV of ``score<TAB>text``, or one whose first line names these two columns.

    Args:
        path: the file; a quotation mark is a letter like others.
        limit: bytes of the file, at most.

    Raises:
        Refused: a column is missing, a line is longer or shorter than others, a score is no finite
            number, or the file is too large, empty or no UTF-8.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.tsv")
        >>> _ = path.write_text("id\tscore\ttext\n7\t-1.5\tnot great\n")
        >>> scored(path)
        Scored(texts=['not great'], scores=array([-1.5]))
    """
    path = Path(path)
    content = text(path, limit=limit)
    with reading(path, "lines of cells"):
        lines = csv.reader(
            io.StringIO(content, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True
        )
        rows = [(lines.line_num, cells) for cells in lines if cells]
    header = list(COLUMNS)
    if rows and set(COLUMNS) & set(rows[0][1]):
        header = rows.pop(0)[1]
        for name in COLUMNS:
            if header.count(name) != 1:
                raise refused(path, f"the columns {', '.join(header)}", f"one named {name}")
    if not rows:
        raise refused(path, "no sentences", "lines of score, tab, text")
    for number, cells in rows:
        if len(cells) != len(header):
            raise refused(path, f"{len(cells)} columns in line {number}", f"{len(header)}")
    score, sentence = map(header.index, COLUMNS)
    texts = [cells[sentence] for _, cells in rows]
    return Scored(texts, _scores(path, [(n, cells[score]) for n, cells in rows], math.inf))


def _scores(path: Path, cells: list[tuple[int, str]], bound: float) -> Float[np.ndarray, "n"]:
    scores = np.zeros(len(cells))
    for place, (number, cell) in enumerate(cells):
        with reading(path, "a number as score"):
            scores[place] = float(cell)
        if not (math.isfinite(scores[place]) and abs(scores[place]) <= bound):
            wanted = (
                "a finite number" if math.isinf(bound) else f"a score from -{bound:g} to {bound:g}"
            )
            raise refused(path, f"the score {cell} in line {number}", wanted)
    return scores
