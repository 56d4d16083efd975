"""A run in a report: read from its folder alone, and made into a section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from lrdyn.report import pictures, saved, tables
from lrdyn.report.commands import command_of
from lrdyn.report.markup import Markup, element
from lrdyn.report.pictures import Picture
from lrdyn.system import whole_files
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.storing import results_file


class SavedRun(NamedTuple):
    """A run as read from its folder."""

    folder: Path
    verdict: Mapping[str, Any]
    record: Mapping[str, str]
    """Attributes of ``results.nc``: what made it."""
    pictures: list[Picture]
    command: str
    """Command that verifies the theorem."""

    @property
    def name(self) -> str:
        """Name of the theorem, study or experiment."""
        return self.verdict["name"]


def read(folder: Path, command: str = "") -> SavedRun:
    """Read a run from its folder alone: the code that made it is not needed.

    Args:
        folder: with ``verdict.json`` and ``results.nc``.
        command: what verifies it; by default it is that of its name.

    Raises:
        results.Unreadable: a file is missing, damaged or a link, or the results are not those of
            the verdict.
        pictures.DamagedPicture: a picture is no whole PNG.
        OSError: the machine could not read a file.
    """
    for name in (whole_files.VERDICT, results_file.NAME):
        saved.check_no_link(folder / name)
    verdict = results_file.read_verdict(folder)
    if any(not entry["judged"] for entry in verdict["claims"]):
        why = "a claim that says of no precision what was judged"
        raise results_file.Damaged(folder / whole_files.VERDICT, why)
    path = folder / results_file.NAME
    with ExitStack() as opened:
        groups = results_file.read(path)
        for group in groups.values():
            opened.enter_context(group)
        record = {str(name): str(value) for name, value in groups["/"].attrs.items()}
    if not verdict.get("changed") and results_file.checksum(path) != verdict["results_sha256"]:
        raise results_file.Damaged(path, "its checksum is not that of its verdict")
    first = ("verdict", "sweep", "perturb")
    order = {name: place for place, name in enumerate(first)}
    drawings = [pictures.read(path) for path in sorted(folder.glob("*.png"))]
    drawings.sort(key=lambda picture: order.get(picture.name, -1))  # those of its own come first
    repeated_by = command or command_of(verdict["name"], record.get("title", ""))
    return SavedRun(folder, verdict, record, drawings, repeated_by)


def section(run: SavedRun, fits: Sequence[bool], anchor: str, level: int) -> Markup:
    """Section of the report about a run.

    Args:
        run: the run.
        fits: which of its pictures are embedded.
        anchor: id of the section.
        level: of its heading.
    """
    verdict, label = run.verdict, run.name
    title, inner = f"h{level}", f"h{level + 1}"
    parts = [
        element(title, label, id=anchor),
        _about(run.record.get("title", "")),
        _about(run.record.get("about", "")),
        banner(verdict["holds"], verdict_text.sentence(verdict)),
    ]
    if verdict.get("changed"):
        parts.append(
            banner(False, "The results were changed since their run, and judged all the same.")
        )
    parts += [banner(None, line) for line in verdict_text.shortfall_lines(verdict)]
    if any(entry["kind"] != "finding" for entry in verdict["claims"]):
        parts += [
            element(inner, "Claims"),
            tables.claims(verdict, run.command, f"Claims of {label}"),
        ]
    if findings := tables.findings(verdict, label):
        parts += [element(inner, "Findings"), findings]
    if run.pictures:
        parts += [element(inner, "Figures"), pictures.block(run.pictures, list(fits), label)]
    parts += [element(inner, "Settings"), tables.settings(verdict["config"])]
    parts += [element(inner, "What it was run on"), tables.machine(verdict["environment"])]
    if numbers := tables.measured(verdict.get("arithmetic", {}), label):
        parts += [element(inner, "Arithmetic of the device"), numbers]
    parts += [element(inner, "Provenance"), _provenance(run)]
    return element("section", *parts, aria_labelledby=anchor)


def _about(words: str) -> Markup:
    return element("p", words, class_="about") if words else Markup("")


def banner(holds: bool | None, words: str) -> Markup:
    """A sentence that stands out."""
    name, sign = tables.MARKS[holds]
    return element("p", f"{sign} ", element("span", words), class_=f"verdict {name}")


def _provenance(run: SavedRun) -> Markup:
    verdict, record = run.verdict, run.record
    statistics = verdict.get("statistics") or {}
    alarm = (
        f"{statistics['false_alarm']:.0e} over {statistics['tests']} statistical tests"
        if statistics.get("tests")
        else ""
    )
    judged = "; ".join(
        f"{name} {value}" for name, value in (verdict.get("judged_by") or {}).items() if value
    )
    return tables.listed(
        (
            ("folder", element("code", f"{run.folder.parent.name}/{run.folder.name}")),
            ("results.nc, SHA-256", element("code", verdict["results_sha256"] or "none: changed")),
            ("sources, SHA-256", _code(record.get("digest"))),
            ("judges, SHA-256", _code(record.get("judges"))),
            ("revision", _code(record.get("revision") or verdict["environment"].get("git"))),
            ("judged by", judged),
            ("probability of a false alarm", alarm),
        )
    )


def _code(words: str | None) -> Markup | str:
    return element("code", words) if words else ""


def overview(every: Sequence[SavedRun], anchors: Sequence[str]) -> Markup:
    """A line for each of several runs."""
    rows = []
    for run, anchor in zip(every, anchors, strict=True):
        entries = [claim for claim in run.verdict["claims"] if claim["kind"] != "finding"]
        claims = [claim for claim in entries if claim["kind"] != "control"]
        controls = [claim for claim in entries if claim["kind"] == "control"]
        cases = max((claim.get("cases_total", claim["cases"]) for claim in claims), default=0)
        outcome = verdict_text.word(run.verdict) if claims else "no claims"
        rows.append(
            element(
                "tr",
                element("th", element("a", run.name, href=f"#{anchor}"), scope="row"),
                element("td", verdict_text.count_held(claims), class_="number"),
                element("td", str(cases), class_="number"),
                element("td", verdict_text.nearest_claim(claims)),
                element("td", verdict_text.count_held(controls), class_="number"),
                element("td", tables.mark(run.verdict["holds"], outcome)),
                element("td", run.record.get("title", ""), class_="quiet wide"),
            )
        )
    columns = tables.head(
        "name",
        ("claims", "number"),
        ("cases", "number"),
        "nearest its tolerance",
        ("controls", "number"),
        "verdict",
        ("what is claimed", "wide"),
    )
    caption = element("caption", "Claims that hold, controls that were seen to fail")
    table = element("table", caption, columns, element("tbody", *rows), class_="summary")
    return tables.scrolling(table, "Overview")
