"""A diagnosis in a report: what ``lrdyn diagnose --out`` left, made into a section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lrdyn.diagnosis.advice import kind_of
from lrdyn.report import pictures, runs, saved, tables
from lrdyn.report.markup import Markup, element
from lrdyn.report.pictures import Picture
from lrdyn.verification.storing.verdict_schema import COUNT, NUMBER, TEXT, Each, Entries, Form

NAME = "diagnosis.json"
MOST = 2**28
"""Bytes of that file, at most: it holds every singular value."""
RANK = Form("an integer >= 0 or null", lambda value: value is None or COUNT.fits(value))
MATRIX = Entries(
    {
        "matrix": TEXT,
        "rows": COUNT,
        "columns": COUNT,
        "relative": NUMBER,
        "rank": COUNT,
        "stable_rank": NUMBER,
        "rank_90": RANK,
        "rank_99": RANK,
        "above_noise": RANK,
        "parameters": COUNT,
        "lora_parameters_90": RANK,
        "lora_parameters_99": RANK,
        "singular_values": Form("a list", lambda value: isinstance(value, list)),
    }
)
WHOLE = Entries(
    {
        "answer": TEXT,
        "k": COUNT,
        "matrices": Each(list, MATRIX),
        "changed": Each(dict, NUMBER),
        "notes": Each(dict, TEXT),
    }
)
"""What the file must be to be read."""


class SavedDiagnosis(NamedTuple):
    """A diagnosis as read from its folder."""

    folder: Path
    content: Mapping[str, Any]
    digest: str
    """SHA-256 of the file."""
    pictures: list[Picture]

    @property
    def name(self) -> str:
        """Name of the diagnosis in a report."""
        return f"diagnosis {self.folder.name}" if self.folder.name else "diagnosis"


def read(folder: Path) -> SavedDiagnosis:
    """Read the folder of a diagnosis, whose file is checked as a whole.

    Raises:
        results.Unreadable: the file is missing or damaged.
        pictures.DamagedPicture: its picture is no whole PNG.
        OSError: the machine could not read a file.
    """
    content, digest = saved.read_json(folder / NAME, "a diagnosis", WHOLE, MOST)
    drawn = folder / "diagnosis.png"
    drawings = [pictures.read(drawn)] if drawn.is_file() else []
    return SavedDiagnosis(folder, content, digest, drawings)


def section(diagnosis: SavedDiagnosis, fits: Sequence[bool], anchor: str, level: int) -> Markup:
    """Section of the report about a diagnosis: the answer, kinds of layers, every matrix.

    Args:
        diagnosis: what was read.
        fits: which of its pictures are embedded.
        anchor: id of the section.
        level: of its heading.
    """
    inner = f"h{level + 1}"
    content, label = diagnosis.content, diagnosis.name
    parts = [
        element(f"h{level}", label, id=anchor),
        element("p", "Which LoRA rank the update needs, and what it would cost.", class_="about"),
        runs.banner(None, content["answer"]),
        element(inner, "By kind of layer"),
        _kinds(content["matrices"], label),
    ]
    if diagnosis.pictures:
        parts += [element(inner, "Figures"), pictures.block(diagnosis.pictures, list(fits), label)]
    parts += [element(inner, "Every matrix"), _matrices(content["matrices"], label)]
    if content["changed"]:
        words = "Changed besides the matrices, by this share of the norm."
        pairs = [(name, _digits(value, "from 0")) for name, value in content["changed"].items()]
        parts += [element(inner, "What else changed"), element("p", words), tables.listed(pairs)]
    if content["notes"]:
        title = element(inner, "What is not compared, or not as a whole")
        parts += [title, tables.listed(content["notes"].items())]
    provenance = tables.listed(
        (
            ("first directions, k", str(content["k"])),
            (f"{NAME}, SHA-256", element("code", diagnosis.digest)),
        )
    )
    return element(
        "section", *parts, element(inner, "Provenance"), provenance, aria_labelledby=anchor
    )


def _kinds(matrices: Sequence[Mapping[str, Any]], label: str) -> Markup:
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for matrix in matrices:
        kinds.setdefault(kind_of(matrix["matrix"]), []).append(matrix)
    rows = [
        element(
            "tr",
            element("th", element("code", name), scope="row"),
            *(
                element("td", cell, class_="number")
                for cell in (
                    str(len(members)),
                    *(
                        cell
                        for share in (90, 99)
                        for cell in (_ranks(members, share), _cost(members, share))
                    ),
                )
            ),
        )
        for name, members in kinds.items()
    ]
    names = ("kind of layer", "matrices", "r 90 %", "cost", "r 99 %", "cost")
    words = (
        "The smallest r with 90 or 99 % of the squared norm of the update, and the parameters of "
        "LoRA over those of the matrices"
    )
    return _table(names, rows, words, f"{label}: kinds of layers")


def _table(names: Sequence[str], rows: Sequence[Markup], words: str, label: str) -> Markup:
    """Rows of numbers under the names of their columns, of which the first names the row."""
    columns = tables.head(names[0], *((name, "number") for name in names[1:]))
    caption = element("caption", words)
    table = element("table", caption, columns, element("tbody", *rows), class_="matrices")
    return tables.scrolling(table, label)


def _ranks(members: Sequence[Mapping[str, Any]], share: int) -> str:
    """The range of ranks r; one that a sketch does not reach is shown as above it."""
    known = [matrix[f"rank_{share}"] for matrix in members if matrix[f"rank_{share}"] is not None]
    above = [
        f">{len(matrix['singular_values'])}"
        for matrix in members
        if matrix[f"rank_{share}"] is None
    ]
    ends = [*([str(min(known)), str(max(known))] if known else []), *above[-1:]]
    return ends[0] if len(set(ends)) == 1 else f"{ends[0]} to {ends[-1]}"


def _cost(members: Sequence[Mapping[str, Any]], share: int) -> str:
    trained = [matrix[f"lora_parameters_{share}"] for matrix in members]
    full = sum(matrix["parameters"] for matrix in members)
    if not full or any(count is None for count in trained):
        return "-"
    return f"{sum(trained) / full:.3g}"


def _matrices(matrices: Sequence[Mapping[str, Any]], label: str) -> Markup:
    rows = [
        element(
            "tr",
            element("th", element("code", matrix["matrix"]), scope="row"),
            *(
                element("td", cell, class_="number")
                for cell in (
                    f"{matrix['rows']} × {matrix['columns']}",
                    _digits(matrix["relative"]),
                    str(matrix["rank"]),
                    _digits(matrix["stable_rank"]),
                    _ranks([matrix], 90),
                    _ranks([matrix], 99),
                    "-" if matrix["above_noise"] is None else str(matrix["above_noise"]),
                )
            ),
        )
        for matrix in matrices
    ]
    of_numbers = ("m × n", "moved", "rank", "stable rank", "r 90 %", "r 99 %", "above noise")
    words = (
        "Moved: norm of the update over that of W before; rank: singular values above rounding; "
        "above noise: those above the noise floor, where there is one"
    )
    return _table(("matrix", *of_numbers), rows, words, f"{label}: every matrix")


def _digits(value: float | None, missing: str = "-") -> str:
    return missing if value is None else f"{value:.3g}"
