"""A search for the worst case in a report: what ``--search N`` left, made into a section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lrdyn.report import runs, saved, tables
from lrdyn.report.markup import Markup, element
from lrdyn.verification.storing import results_file
from lrdyn.verification.storing.verdict_schema import (
    COUNT,
    MAYBE,
    NUMBER,
    TEXT,
    TRUTH,
    Each,
    Entries,
    Form,
)

NAME = results_file.SEARCH
MOST = 2**26
"""Bytes of that file, at most."""
KINDS = ("search", "beyond")
COMMAND = Form("a text or null", lambda value: value is None or TEXT.fits(value))
CLAIM = Entries(
    {
        "id": TEXT,
        "kind": TEXT,
        "statement": TEXT,
        "judged": COUNT,
        "excused": COUNT,
        "outside": COUNT,
        "ratios": Each(dict, NUMBER),
        "repeated": NUMBER,
        "command": COMMAND,
        "lost": TRUTH,
    }
)
EDGE = Entries(
    {
        "hypothesis": TEXT,
        "claim": TEXT,
        "statement": TEXT,
        "precision": TEXT,
        "points": COUNT,
        "fails": COUNT,
        "ratio": NUMBER,
        "least_condition": NUMBER,
        "found_after": Form("a count or null", lambda value: value is None or COUNT.fits(value)),
        "command": TEXT,
    }
)
UNRUN = Entries({"scenario": TEXT, "hypothesis": TEXT, "why": TEXT, "command": TEXT})
WHOLE = Entries(
    {
        "kind": Form("search or beyond", lambda value: value in KINDS),
        "name": TEXT,
        "date": TEXT,
        "points": COUNT,
        "seed": COUNT,
        "held": Each(dict, Form("a list", lambda value: isinstance(value, list))),
        "command": TEXT,
        "environment": Entries({}, others=None),
        "holds": MAYBE,
        "claims": Each(list, CLAIM),
        "edges": Each(list, EDGE),
        "not_run": Each(list, UNRUN),
    },
    optional=frozenset({"holds", "claims", "edges", "not_run"}),
)
"""What the file must be to be read."""
OF_KIND = {"search": ("holds", "claims"), "beyond": ("edges", "not_run")}
"""What a file of each kind must have besides."""


class SearchResult(NamedTuple):
    """What the folder of a search holds."""

    folder: Path
    content: Mapping[str, Any]
    digest: str
    """SHA-256 of the file."""
    pictures: tuple[()] = ()
    """Pictures of a search: there are none."""

    @property
    def name(self) -> str:
        """What it is called in a report."""
        what = "search" if self.content["kind"] == "search" else "search beyond the hypotheses"
        return f"{self.content['name']}, {what}"


def read(folder: Path) -> SearchResult:
    """Read what a search left.

    Raises:
        results.Unreadable: the file is missing or damaged.
        OSError: the machine could not read it.
    """
    path = folder / NAME
    content, digest = saved.read_json(path, "a search", WHOLE, MOST)
    missing = [name for name in OF_KIND[content["kind"]] if name not in content]
    if missing:
        raise results_file.Damaged(path, f"{missing[0]}: got nothing, wanted it")
    return SearchResult(folder, content, digest)


def section(search: SearchResult, anchor: str, level: int) -> Markup:
    """Everything that is said of a search: its verdict, every claim, the worst point of each.

    Args:
        search: what was read.
        anchor: id of the section.
        level: of its heading.
    """
    content, inner = search.content, f"h{level + 1}"
    label = search.name
    inside = content["kind"] == "search"
    parts = [
        element(f"h{level}", label, id=anchor),
        runs.banner(*(_verdict(content) if inside else _beyond(content))),
        element(inner, "Claims" if inside else "Edges"),
        _claims(content["claims"], label) if inside else _edges(content["edges"], label),
    ]
    if not inside and content["not_run"]:
        pairs = [
            (f"{scenario['hypothesis']}: {scenario['scenario']}", scenario["why"])
            for scenario in content["not_run"]
        ]
        parts += [element(inner, "What cannot be run"), tables.listed(pairs)]
    held = [f"{name} {' '.join(map(str, values))}" for name, values in content["held"].items()]
    provenance = tables.listed(
        (
            ("command", tables.typed_out(content["command"])),
            ("date", content["date"]),
            ("seed of the first point", str(content["seed"])),
            ("flags that were held", ", ".join(held)),
            (f"{NAME}, SHA-256", element("code", search.digest)),
        )
    )
    parts += [
        element(inner, "What it was run on"),
        tables.machine(content["environment"]),
        element(inner, "Provenance"),
        provenance,
    ]
    return element("section", *parts, aria_labelledby=anchor)


def _verdict(content: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether every claim held at every point, and the worst of them, in a sentence."""
    judged = [claim for claim in content["claims"] if claim["repeated"] is not None]
    if not judged and content["holds"]:
        return None, f"{content['name']}: no point was judged."
    above = [claim["id"] for claim in content["claims"] if _above(claim)]
    points = f"{content['points']:,} random points and the climbs from the worst of them"
    if above or not content["holds"]:
        which = ", ".join(above) or "a claim"
        return False, f"{content['name']}: among {points} {which} passes its threshold."
    worst = max(judged, key=lambda claim: claim["repeated"])
    return True, (
        f"{content['name']}: no claim passes its threshold among {points}; the nearest is "
        f"{worst['id']}, at {worst['repeated']:.2g} of it."
    )


def _above(claim: Mapping[str, Any]) -> bool:
    ratios = [*claim["ratios"].values(), claim["repeated"]]
    return claim["lost"] or any(ratio is not None and ratio > 1 for ratio in ratios)


def _beyond(content: Mapping[str, Any]) -> tuple[None, str]:
    needed = sorted({edge["hypothesis"] for edge in content["edges"] if edge["fails"]})
    return None, (
        f"{content['name']}: {content['points']:,} random points without the hypotheses. Claims "
        f"fail where one of these alone is lost: {', '.join(needed) or 'none'}."
    )


def _claims(claims: Sequence[Mapping[str, Any]], label: str) -> Markup:
    names = ("judged", "excused", "outside")
    bodies = []
    for claim in claims:
        title = _title(
            element("code", claim["id"], class_="name"),
            element("span", claim["kind"], class_="kind"),
            tables.mark(None if claim["command"] is None else not _above(claim), _outcome(claim)),
            statement=claim["statement"],
        )
        counts = [f"{claim[name]:,}" for name in names]
        rows = [_row(p, [_ratio(claim, p), *["" for _ in names]]) for p in claim["ratios"]]
        rows.append(_row("repeated alone", [_digits(claim["repeated"]), *counts]))
        bodies.append(element("tbody", title, *rows, _again(claim["command"])))
    words = (
        "Largest residual over its threshold among the points that could be judged, climbs and "
        "both precisions counted; repeated alone: what the command of the worst point gives"
    )
    return _table(("precision", "ratio", *names), words, bodies, f"{label}: claims")


def _edges(edges: Sequence[Mapping[str, Any]], label: str) -> Markup:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for edge in edges:
        if edge["fails"]:
            groups.setdefault((edge["hypothesis"], edge["claim"]), []).append(edge)
    bodies = []
    for (hypothesis, claim), legs in groups.items():
        title = _title(
            element("span", f"without {hypothesis}: "),
            element("code", claim, class_="name"),
            statement=legs[0]["statement"],
        )
        rows = [
            _row(
                leg["precision"],
                [
                    "lost" if leg["ratio"] is None else _digits(leg["ratio"]),
                    f"{leg['fails']:,} of {leg['points']:,}",
                    "-" if leg["found_after"] is None else f"{leg['found_after']:,}",
                    _condition(leg),
                ],
            )
            for leg in legs
        ]
        bodies.append(element("tbody", title, *rows, _again(legs[0]["command"])))
    names = ("precision", "ratio", "fails at", "first at", "condition")
    words = (
        "Claims that fail where one hypothesis alone is lost, the largest residual over its "
        "threshold, and the point at which the search met the first (counted from 1)"
    )
    return _table(names, words, bodies, f"{label}: edges")


COLUMNS = 5


def _title(*names: Markup, statement: str) -> Markup:
    """A row that names what the rows below it are about."""
    words = element("p", statement, class_="statement")
    return element("tr", element("th", *names, words, scope="rowgroup", colspan=COLUMNS))


def _row(name: str, cells: Sequence[str]) -> Markup:
    numbers = (element("td", cell, class_="number") for cell in cells)
    return element("tr", element("th", name, scope="row", class_="leg"), *numbers)


def _again(command: str | None) -> Markup:
    """The command of the worst point."""
    if not command:
        return Markup("")
    label = element("span", "worst case: ", class_="label")
    line = element("p", label, tables.typed_out(command))
    return element("tr", element("td", line, colspan=COLUMNS, class_="more"))


def _table(names: Sequence[str], words: str, bodies: Sequence[Markup], label: str) -> Markup:
    columns = tables.head(names[0], *((name, "number") for name in names[1:]))
    table = element("table", element("caption", words), columns, *bodies, class_="claims")
    return tables.scrolling(table, label)


def _outcome(claim: Mapping[str, Any]) -> str:
    if claim["command"] is None:
        return "not judged"
    return "above" if _above(claim) else "below"


def _ratio(claim: Mapping[str, Any], precision: str) -> str:
    """Residual over threshold; a run that is lost has none."""
    ratio = claim["ratios"][precision]
    return "lost" if ratio is None else _digits(ratio)


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _condition(edge: Mapping[str, Any]) -> str:
    least = edge["least_condition"]
    return "infinite" if least is None else "" if least == 1 else f"from {least:.2g}"
