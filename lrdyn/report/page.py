"""The page: what a folder of results holds, in one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lrdyn.data import guarded
from lrdyn.report import diagnoses, pictures, runs, saved, searches
from lrdyn.report.diagnoses import SavedDiagnosis
from lrdyn.report.markup import Markup, element, joined
from lrdyn.report.pictures import Picture
from lrdyn.report.runs import SavedRun
from lrdyn.report.searches import SearchResult
from lrdyn.system import whole_files
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.storing import results_file

FILE = "report.html"
"""Name of a report beside its results."""
MOST = 15_000_000
"""Bytes that a report stays below: so much is sent by mail."""
SUMMARY = "summary.json"
"""File that ``verify all`` writes."""
FIGURES = "figures"
"""Folder of the figures of a paper, beside the results that they are drawn from."""
STYLE = Path(__file__).with_name("style.css")
GENERATOR = '<meta name="generator" content="lrdyn report">'
"""Mark near the beginning of every report, by which it may be replaced."""
READING = (
    (
        "claim",
        "a statement that can be false; it holds if no judged case leaves a residual above "
        "the tolerance",
    ),
    (
        "residual",
        "the largest difference of prediction and measurement over all judged cases, on "
        "the scale of the data; of a control the smallest",
    ),
    ("tolerance", "what rounding may leave, or the claim's own bound; ratio: residual over it"),
    (
        "control",
        "a broken hypothesis, formula or algorithm: its claim must be seen to fail, by 10 "
        "tolerances or more",
    ),
    ("finding", "a measured number with its spread over seeds; it decides nothing"),
    (
        "not judged",
        "no case could be judged, or none meets the hypotheses: the reasons stand there",
    ),
)


class Contents(NamedTuple):
    """The runs, diagnoses and figures of a report."""

    runs: list[SavedRun]
    diagnoses: list[SavedDiagnosis]
    figures: list[Picture]
    searches: list[SearchResult]
    others: int = 0
    """Runs in the folder that are not among those of its summary."""


def contents(folder: Path, command: str = "") -> Contents:
    """Find and read the results in a folder: of a run, of several, of a search, of a diagnosis.

    With ``summary.json`` these are the runs that it names, else all below the folder.

    Args:
        folder: what is reported.
        command: what verifies the theorem of a single run, if that is known.

    Raises:
        BadInput: there are none, or a file is damaged.
        OSError: the machine could not read one.
    """
    got = f"report: got {os.fspath(folder)!r}"
    if not os.path.isdir(folder):
        kind = "a file" if os.path.lexists(folder) else "no such folder"
        raise BadInput(f"{got} ({kind}), wanted a folder of results")
    try:
        return _read(folder, command)
    except (results_file.Unreadable, pictures.DamagedPicture, guarded.Refused) as error:
        why = f"{error}".removeprefix(f"{folder}{os.sep}")
        raise BadInput(f"{got} ({why}), wanted a folder of results") from None


def _read(folder: Path, command: str) -> Contents:
    if (folder / whole_files.VERDICT).is_file():
        return Contents([runs.read(folder, command)], [], [], [])
    if (folder / diagnoses.NAME).is_file():
        return Contents([], [diagnoses.read(folder)], [], [])
    if (folder / searches.NAME).is_file():
        return Contents([], [], [], [searches.read(folder)])
    below = sorted(_below(folder, whole_files.VERDICT))
    named = _summarised(folder)
    chosen = below if named is None else named
    read_runs = [runs.read(path) for path in chosen]
    diagnosed = [diagnoses.read(path) for path in sorted(_below(folder, diagnoses.NAME))]
    saved.check_no_link(folder / FIGURES)
    drawn = [pictures.read(path) for path in sorted((folder / FIGURES).glob("*.png"))]
    searched = [searches.read(path) for path in sorted(_below(folder, searches.NAME))]
    if not read_runs and not diagnosed and not searched:
        raise BadInput(
            f"report: got {os.fspath(folder)!r} (no results in it), wanted a folder of results"
        )
    return Contents(read_runs, diagnosed, drawn, searched, len(set(below) - set(chosen)))


def _below(folder: Path, name: str) -> list[Path]:
    """Folders below one that hold a file; links are not followed."""
    return [Path(here) for here, _, names in os.walk(folder) if name in names]


def _summarised(folder: Path) -> list[Path] | None:
    """The folders of the runs that a summary names, None without one."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    saved.check_no_link(path)
    content = guarded.read_json(path, "a summary", most=results_file.VERDICT)
    try:
        # One that is named twice is reported once.
        paths = dict.fromkeys(Path(entry["folder"]) for entry in content["theorems"])
    except (TypeError, KeyError):
        raise results_file.Damaged(path, "it names no folders of theorems") from None
    # A folder of results is looked for where it lies now, whatever it was called then.
    named = dict.fromkeys(folder / path.parent.name / path.name for path in paths)
    for one in named:
        if ".." in one.relative_to(folder).parts:
            raise results_file.Damaged(path, "it names a folder above it")
        try:
            saved.check_no_link(one.parent)
            saved.check_no_link(one)
        except OSError as error:
            raise results_file.Damaged(
                path, f"it names a folder that is none: {error.strerror}"
            ) from None
    return list(named)


def report(contents: Contents, version: str) -> str:
    """Make the HTML of the whole page.

    Args:
        contents: what is reported.
        version: of the library.

    Raises:
        BadInput: without a single picture it is too large.
    """
    owners = [*contents.runs, *contents.searches, *contents.diagnoses]
    every = [*(picture for owner in owners for picture in owner.pictures), *contents.figures]
    bare = _page(contents, [False] * len(every), version)
    # 2,000 bytes beside each picture: its element, its caption and its alternative text.
    room = MOST - len(bare.encode()) - 2000 * len(every)
    if room < 0:
        size = f"{len(bare.encode()) / 1e6:.0f} MB"
        raise BadInput(
            f"report: got {len(owners)} results, whose tables alone take {size}, wanted a "
            "folder of fewer"
        )
    return _page(contents, pictures.embedded(every, room), version)


def _page(contents: Contents, fits: Sequence[bool], version: str) -> str:
    owners = [*contents.runs, *contents.searches, *contents.diagnoses]
    anchors = [f"results-{place + 1}" for place in range(len(owners))]
    of_searches = anchors[len(contents.runs) :][: len(contents.searches)]
    of_diagnoses = anchors[len(contents.runs) + len(contents.searches) :]
    # Taken from the front, section by section, in the order in which ``report`` lists the pictures.
    left = list(fits)

    def take(owned: Sequence[Picture]) -> list[bool]:
        taken, left[:] = left[: len(owned)], left[len(owned) :]
        return taken

    sections = []
    alone = len(anchors) == 1 and not contents.figures
    level = 1 if alone else 2
    for run, anchor in zip(contents.runs, anchors, strict=False):
        sections.append(runs.section(run, take(run.pictures), anchor, level))
    for search, anchor in zip(contents.searches, of_searches, strict=True):
        sections.append(searches.section(search, anchor, level))
    for diagnosis, anchor in zip(contents.diagnoses, of_diagnoses, strict=True):
        sections.append(diagnoses.section(diagnosis, take(diagnosis.pictures), anchor, level))
    if contents.figures:
        title = element("h2", "Figures and tables", id="figures")
        drawn = pictures.block(contents.figures, left, "Figure")
        sections.append(element("section", title, drawn, aria_labelledby="figures"))
    title = _title(contents)
    top = element("header", element("h1", title), *_over_all(contents, anchors))
    reading = element(
        "section",
        element("h2", "How to read this", id="reading"),
        _definitions(),
        aria_labelledby="reading",
    )
    main = element("main", *sections, *([reading] if contents.runs else []))
    footer = element(
        "footer",
        element(
            "p",
            f"Made by lrdyn {version} from the results alone. "
            "The file needs no other and no network.",
        ),
    )
    meta = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(GENERATOR),
        # Nothing is fetched and nothing runs, whatever the results hold.
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        element("title", title),
        element("style", Markup(STYLE.read_text())),
    ]
    body = element("body", "" if alone else top, main, footer)
    page = element("html", joined("\n", element("head", *meta)), body, lang="en")
    return f"<!doctype html>\n{page}\n"


def _definitions() -> Markup:
    return element(
        "dl", *(joined(element("dt", name), element("dd", words)) for name, words in READING)
    )


def _title(contents: Contents) -> str:
    names = [owner.name for owner in (*contents.runs, *contents.searches, *contents.diagnoses)]
    return f"Report: {names[0]}" if len(names) == 1 else f"Report of {len(names)} results"


def _over_all(contents: Contents, anchors: Sequence[str]) -> list[Markup]:
    """The overview of several results, with links to each."""
    verdicts = [run.verdict["holds"] for run in contents.runs if run.verdict["claims"]]
    parts = []
    if verdicts:
        false = [run.name for run in contents.runs if run.verdict["holds"] is False]
        open_ = [
            run.name
            for run in contents.runs
            if run.verdict["claims"] and run.verdict["holds"] is None
        ]
        words = f"{verdicts.count(True)} of {len(verdicts)} hold"
        words += f"; false: {', '.join(false)}" if false else ""
        words += f"; undecided: {', '.join(open_)}" if open_ else ""
        holds = False if false else None if open_ else True
        parts += [
            runs.banner(holds, f"{words}."),
            runs.overview(contents.runs, anchors[: len(contents.runs)]),
        ]
    links = [
        (owner.name, anchor)
        for owner, anchor in zip(
            (*contents.searches, *contents.diagnoses), anchors[len(contents.runs) :], strict=True
        )
    ]
    links += [("Figures and tables", "figures")] if contents.figures else []
    if links:
        parts.append(
            element(
                "p",
                joined(
                    *(element("a", name, href=f"#{anchor}") for name, anchor in links), by=" · "
                ),
            )
        )
    if contents.others:
        parts.append(
            element(
                "p",
                f"{contents.others} other runs in this folder are not in the report.",
                class_="quiet",
            )
        )
    return parts


def write(text: str, path: Path) -> None:
    """Write a report atomically; a file that is not a report is not replaced.

    Raises:
        BadInput: it is a folder, or a file that is no report.
        whole_files.Linked: it is a symbolic link.
        OSError: it cannot be written.
    """
    got = f"--out: got {os.fspath(path)!r}"
    if os.path.isdir(path):
        raise BadInput(f"{got} (a folder), wanted a file")
    # A thesis may be called report.html, too; a link is refused below, by ``replacing``.
    if path.exists() and not path.is_symlink() and not is_report(path):
        raise BadInput(f"{got} (a file that is no report), wanted a new name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(f"{got}, wanted a file in a folder") from None
    with whole_files.replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_report(path: Path) -> bool:
    """Whether a file is a report, which another may replace."""
    try:
        with guarded.opened(path) as file:
            # The mark is in the first lines of the head: a large file of somebody else is not read
            # whole.
            return GENERATOR.encode() in file.read(2000)
    except (guarded.Refused, OSError):
        return False
