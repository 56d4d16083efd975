"""Write what the pages list of the theorems: ``make refresh``.

Between ``<!-- NAME, written by make refresh -->`` and ``<!-- end -->`` of any page stands what
:data:`TABLES` has of that name, from the registry, the theorems and the files. The newest verdicts
in a folder of results, ``python -m docs.refresh [RESULTS]``, are kept in ``docs/verdicts``;
``results.md`` and the page of findings are written from these.
"""

import ast
import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docs import fidelity, findings, gallery
from lrdyn.registry import REGISTRY, theorems
from lrdyn.studies import studies
from lrdyn.studies.labels.cells import PERCEPTRONS
from lrdyn.studies.labels.trainings import part_in_words
from lrdyn.studies.low_rank_training import CONTESTANTS, LOW_RANK_TRAINING
from lrdyn.verification.stating.flags import option_string
from lrdyn.verification.stating.statement import Claim, Scenario, Theorem
from lrdyn.verification.storing import results_file
from paper_figs import EXHIBITS, low_rank_training

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("results.md")
HEADER = (
    "claim",
    "states",
    "predicted against measured",
    "judged",
    "float64",
    "tolerance",
    "float32",
    "tolerance",
    "controls",
)
INTRODUCTION = """\
# Results

Every claim of `lrdyn verify all` at the quick preset (JAX {jax} on a {platform}): what
predicts and what measures it, how many of its cases were judged in float64 and in float32 (in
brackets those that theory's number of steps does not decide), the worst residual over them in each,
with its tolerance ([how a verdict is reached](claims.md)), and its controls with the smallest
residual that each left in float64. A control must leave ten tolerances or more, that of a
statistical claim one. The residual of a statistical claim is `-log10 p` of its test. This page is
written by `make refresh` from the theorems and from the verdicts of a run.
Each section names the pages that derive its claims.
"""

Verdicts = Mapping[str, Mapping[str, Any]]
"""Name of a theorem -> content of ``verdict.json``."""


def short(value: float | None) -> str:
    """A number with two digits."""
    if value is None:
        return "-"
    if value == 0 or 0.01 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def judged(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """How many cases were judged in each precision, of how many; one number if they are equal."""
    each = list(dict.fromkeys(leg["judged"] for leg in counts.values()))
    drawn = max(leg["drawn"] for leg in counts.values())
    return f"{', '.join(map(str, each))} of {drawn}"


def decided(by: Mapping[str, int]) -> str:
    """Cases that theory's number of steps does not decide, if there are any."""
    words = {"certificate": "by certificate", "trivial": "trivial", "excused": "excused"}
    said = [f"{by[name]} {text}" for name, text in words.items() if by[name]]
    return f" ({', '.join(said)})" if said else ""


def row(cells: tuple[str, ...]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def cells(claim: Claim, scenario: Scenario, entries: Mapping[str, Any]) -> tuple[str, ...]:
    """What the theorem says of a claim, and what the verdict."""
    entry = entries[claim.id]
    names = ("residual", "tolerance", "residual_float32", "tolerance_float32")
    mine = [c.id for c in scenario.controls if c.claim == claim.id]
    return (
        f"`{claim.id}`",
        claim.statement,
        claim.sides or scenario.sides,
        judged(entry["judged"]) + decided(entry["decided_by"]),
        *(short(entry.get(name)) for name in names),
        ", ".join(f"{name} {short(entries[name]['residual'])}" for name in mine),
    )


def pages_of(name: str) -> list[Path]:
    """The pages in ``docs/theorems`` whose command is that of an experiment, its own first."""
    command = re.compile(rf"`lrdyn verify {name}`")
    pages = (PAGE.parent / "theorems").glob("*.md")
    mine = (page for page in pages if command.match(page.read_text().splitlines()[2]))
    return sorted(mine, key=lambda page: (page.stem != name, page.stem))


def heading(page: Path) -> str:
    """The first line of a page."""
    return page.read_text().partition("\n")[0].removeprefix("# ")


def section(theorem: Theorem, verdict: Mapping[str, Any]) -> Iterator[str]:
    """Lines about one theorem."""
    entries = {entry["id"]: entry for entry in verdict["claims"]}
    yield f"## {theorem.title}"
    yield ""
    yield f"`lrdyn verify {theorem.name}`: {theorem.summary}."
    yield ""
    yield "Derived on these pages:"
    yield ""
    for page in pages_of(theorem.name):
        yield f"- [{heading(page)}](theorems/{page.name})"
    yield ""
    yield row(HEADER)
    yield "|" + "---|" * len(HEADER)
    for scenario in theorem.scenarios:
        for claim in scenario.claims:
            yield row(cells(claim, scenario, entries))


def written(verdicts: Verdicts) -> str:
    """The whole page of results, of the theorems of which there is a verdict."""
    environment = next(iter(verdicts.values()))["environment"]
    text = INTRODUCTION.format(jax=environment["jax"], platform=environment["platform"].upper())
    for theorem in theorems():
        if theorem.name in verdicts:
            text += "\n" + "\n".join(section(theorem, verdicts[theorem.name])) + "\n"
    return text


def keep_newest(results: Path) -> None:
    """Keep the newest verdict of each theorem of which a folder of results has one."""
    for theorem in theorems():
        paths = sorted(results.glob(f"{theorem.name}/*/verdict.json"), key=_age)
        if paths:
            with contextlib.ExitStack() as opened:
                groups = results_file.read(paths[-1].with_name(results_file.NAME))
                for group in groups.values():
                    opened.enter_context(group)
                digest = str(groups["/"].attrs["digest"])
            findings.keep(json.loads(paths[-1].read_text()), digest)


def _age(path: Path) -> float:
    return path.stat().st_mtime


# Tables -------------------------------------------------------------------------------------------


def theorem_table() -> Iterator[str]:
    """What each theorem and study says, its command and its figures."""
    yield from ("| command | says | figures |", "|---|---|---|")
    for one in (*theorems(), *studies()):
        shown = ", ".join(f"`{exhibit.name}`" for exhibit in EXHIBITS if one.name in exhibit.shows)
        yield row((f"`lrdyn verify {one.name}`", one.summary, shown))


def flag_table() -> Iterator[str]:
    """The flags of all theorems, and what each means in which of them."""
    yield from ("| flag | symbol | meaning | values |", "|---|---|---|---|")
    stated = [(one, flag) for one in theorems() for flag in one.flags]
    for name in dict.fromkeys(flag.name for _, flag in stated):
        mine = [(one, flag) for one, flag in stated if flag.name == name]
        symbols = ", ".join(dict.fromkeys(flag.symbol for _, flag in mine if flag.symbol))
        values = "; ".join(dict.fromkeys(flag.wanted() for _, flag in mine))
        meanings: dict[str, list[str]] = {}
        for one, flag in mine:
            meanings.setdefault(flag.help, []).append(one.name)
        said = "; ".join(f"{', '.join(of)}: {text}" for text, of in meanings.items())
        yield row((f"`{option_string(name)}`", symbols, said, values))


def page_table() -> Iterator[str]:
    """The pages of each theorem, and those of studies that have one among them."""
    yield from ("| item | pages | command |", "|---|---|---|")
    for one in (*theorems(), *studies()):
        links = [f"[{heading(page)}](theorems/{page.name})" for page in pages_of(one.name)]
        if links:
            yield row((one.title, "<br>".join(links), f"`lrdyn verify {one.name}`"))


def room_table() -> Iterator[str]:
    """The files of formulas in the room of each theorem, with what they say of themselves."""
    yield from ("| item | file in `lrdyn/` | what stands there |", "|---|---|---|")
    for one in theorems():
        for path in sorted((ROOT / "lrdyn" / room_of(one.name)).glob("*.py")):
            usual = path.stem in ("__init__", "figures", "statement")
            if not usual and not path.stem.endswith("_claims"):
                said = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
                yield row((one.title, f"`{path.parent.name}/{path.name}`", said.rstrip(".")))


def room_of(name: str) -> str:
    """The folder of a theorem in ``lrdyn/``."""
    return REGISTRY[name].split(".")[1]


def toctree() -> Iterator[str]:
    """The pages of theorems in the table of contents of the site."""
    yield from (":::{toctree}", ":caption: Theorems", ":hidden:", "theory")
    for one in (*theorems(), *studies()):
        yield from (f"theorems/{page.stem}" for page in pages_of(one.name))
    yield from ("results", ":::")


def share_table() -> Iterator[str]:
    """Which share of random points is judged, of theorems with a committed log."""
    log = json.loads((ROOT / "tests" / "data" / "configurations.json").read_text())["theorems"]
    yield from ("| theorem | points judged |", "|---|---|")
    for name in (name for name in REGISTRY if name in log):
        yield row((f"`{name}`", f"{log[name]['share']:.0%}"))


def cell_table() -> Iterator[str]:
    """What each cell of the study of labels found, from the committed record of Figure 1."""
    record = json.loads((ROOT / "paper_figs" / "baselines" / "fig01_record.json").read_text())
    entries = {entry["id"]: entry for entry in record["labels"]["verdict"]["claims"]}
    yield row(
        (
            *("cell", "K", "edge, true", "edge, shuffled"),
            *("R at loss 0.1 log K", "R at 0.01 log K", "labels decide", "R, labels anew"),
        )
    )
    yield row(("---",) * 8)
    for name, cell in PERCEPTRONS.items():
        found = {
            what: entries[f"{name}_{what}"]["finding"]
            for what in ("true_drop", "shuffled_drop", "part_at_0.1", "part_at_0.01", "part_fresh")
        }
        parts = [found[what] for what in ("part_at_0.1", "part_at_0.01", "part_fresh")]
        first, last, fresh = (
            "{:.2f} ({:.2f} to {:.2f})".format(one["value"], *one["interval"]) for one in parts
        )
        edges = (f"{found[what]['value']:.2f}" for what in ("true_drop", "shuffled_drop"))
        decided = part_in_words(*found["part_at_0.01"]["interval"])
        yield row((cell.title, str(cell.classes), *edges, first, last, decided, fresh))


def _of_low_rank_training() -> Mapping[str, Mapping[str, Any]]:
    """Claims, controls and findings of the committed record of low-rank training, by id."""
    return findings.entries("low_rank_losses")


def _interval(found: Mapping[str, Any]) -> str:
    """A mean in per cent, with its interval."""
    low, high = found["interval"]
    return f"{found['value']:+.1%} ({low:+.1%} to {high:+.1%})"


def method_table() -> Iterator[str]:
    """What each method of low-rank training costs and holds."""
    entries, drawn = _of_low_rank_training(), gallery.numbers(low_rank_training.LOSSES)
    titles = ("method", "s", "r", "bytes", "loss over that of full training", "outcome", "rank")
    yield from (row(titles), row(("---",) * len(titles)))
    for name, contestant in CONTESTANTS.items():
        held = drawn.sel(contestant=name)
        cells = [contestant.title, *("-" if name == "full" else f"{contestant.scale:g}",)]
        cells += ["-" if name == "full" else f"{int(held.rank_held)}", f"{int(held.held):,}"]
        if name == "full":
            cells += ["-", "-"]
        else:
            found = entries[f"{name}_behind_full"]["finding"]
            cells += [_interval(found), "apart" if _apart(found) else "not told from it"]
        yield row((*cells, f"{entries[f'{name}_update_rank']['finding']['value']:.0f}"))


def _apart(found: Mapping[str, Any]) -> bool:
    """Whether an interval does not hold 0."""
    low, high = found["interval"]
    return low > 0 or high < 0


def published_table() -> Iterator[str]:
    """What GaLore's paper has for each difference, and what came of it in low-rank training."""
    titles = ("difference", "published", "here", "outcome")
    yield from (row(titles), row(("---",) * len(titles)))
    for id, entry in _of_low_rank_training().items():
        expected = LOW_RANK_TRAINING.findings.get(id)
        if expected is not None and expected.source is not None:
            said = entry["statement"].removesuffix(" on held-out documents, less 1")
            found = entry["finding"]
            outcome = found["outcome"].partition(" (")[0]
            yield row((said, f"{expected.source:+.1%}", _interval(found), outcome))


def break_table() -> Iterator[str]:
    """How far GaLore and ReLoRA' part where something is not equal."""
    titles = ("what is not equal", "control", "difference")
    yield from (row(titles), row(("---",) * len(titles)))
    for id, entry in _of_low_rank_training().items():
        if entry["kind"] == "control" and not id.startswith(("trained", "layered")):
            said = entry["statement"].removesuffix(f": {entry['claim']} fails")
            yield row((said, f"`{id}`", f"{entry['residual']:.0e}"))


def rest_table() -> Iterator[str]:
    """Of what a training leaves: what must have come to rest, what is compared at a budget."""
    header = ("must be at rest", "compared at an equal budget", "not tested for rest")
    yield row(("study", "trainings", *header))
    yield row(("---",) * 5)
    trainings: dict[tuple[str, ...], list[str]] = {}
    for study in studies():
        for scenario in filter(lambda scenario: scenario.trains, study.scenarios):
            entries = (*scenario.claims, *scenario.findings)
            rests = {entry.id.removeprefix(f"{scenario.id}_"): entry.rest for entry in entries}
            asked = [name for name, rest in rests.items() if callable(rest)]
            budgets = Counter(rest for rest in rests.values() if rest and not callable(rest))
            untested = [name for name, rest in rests.items() if not rest]
            said = [f"{budget}: {count}" for budget, count in budgets.items()]
            alike = (study.name, *(", ".join(names) or "-" for names in (asked, said, untested)))
            trainings.setdefault(alike, []).append(scenario.id)
    for (name, *cells), ids in trainings.items():
        yield row((f"`{name}`", ", ".join(ids), *cells))


def training_table() -> Iterator[str]:
    """Which run left the committed record of each figure of a study."""
    titles = ("figure", "study", "preset", "seeds", "type", "JAX", "platform", "revision")
    yield from (row(titles), row(("---",) * len(titles)))
    for path in sorted(findings.TRAININGS.glob("*_record.json")):
        for study, kept in json.loads(path.read_text()).items():
            config, machine = kept["verdict"]["config"], kept["verdict"]["environment"]
            seeds = config["seeds"] or "of each scenario"
            run = (config["preset"], f"{seeds}, from {config['seed']}", config["dtype"])
            where = (machine["jax"], machine["platform"], f"`{machine['git']}`")
            yield row((f"`{path.stem.removesuffix('_record')}`", f"`{study}`", *run, *where))


def lined(table: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table whose first row is its header."""
    header, *rows = table
    yield from (row(header), row(("---",) * len(header)), *map(row, rows))


def finding_table() -> Iterator[str]:
    """What became of each statement that is printed or often repeated."""
    yield from lined(findings.table())


def fidelity_table() -> Iterator[str]:
    """What stands here in the place of each item of the survey."""
    yield from lined(fidelity.table())


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    "theorems": theorem_table,
    "pages": page_table,
    "rooms": room_table,
    "contents": toctree,
    "shares": share_table,
    "flags": flag_table,
    "cells": cell_table,
    "methods": method_table,
    "published": published_table,
    "breaks": break_table,
    "rest": rest_table,
    "trainings": training_table,
    "findings": finding_table,
    "fidelity": fidelity_table,
}
"""Name in a marker -> the lines behind it."""
MARKED = re.compile(r"(<!-- (\w+), written by make refresh -->\n).*?(<!-- end -->)", re.S)


def refreshed(text: str) -> str:
    """A page with its tables as they should be.

    Raises:
        KeyError: a marker names no table.
    """

    def table(found: re.Match[str]) -> str:
        marker, name, end = found.groups()
        return "\n".join([marker, *TABLES[name](), "", end])

    return MARKED.sub(table, text)


def marked_pages() -> list[Path]:
    """Pages with a marker."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return [page for page in sorted(pages) if MARKED.search(page.read_text())]


def without_pages() -> list[str]:
    """A line for each theorem that no page in ``docs/theorems`` is of."""
    wanted = "wanted one in docs/theorems whose third line begins with"
    return [
        f"{one.name}: got no page, {wanted} `lrdyn verify {one.name}`"
        for one in theorems()
        if not pages_of(one.name)
    ]


def main(results: Path) -> None:
    """Write all of it; what a theorem lacks is said."""
    keep_newest(results)
    PAGE.write_text(written(findings.kept()))
    for page in marked_pages():
        page.write_text(refreshed(page.read_text()))
    for line in without_pages():
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))
