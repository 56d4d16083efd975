"""Rows of the page of findings, from ``docs/findings.toml`` and from committed verdicts.

A row is a statement that is printed or often repeated. What became of it is decided by claims and
findings of verdicts, and its numbers are theirs. ``python -m docs.findings`` lists the verdicts
whose theorem was edited since.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lrdyn.registry import REGISTRY, theorem
from lrdyn.verification.stating.sources import source_digest

DOCS = Path(__file__).parent
ROWS = DOCS / "findings.toml"
VERDICTS = DOCS / "verdicts"
"""``verdict.json`` of the quick run of each theorem, with the digest of the files that state it."""
TRAININGS = DOCS.parent / "paper_figs" / "baselines"
"""``NAME_record.json``: the verdict of the trainings that a figure draws."""
WORDS = ("holds", "holds if", "false as printed", "not told")
NUMBER = re.compile(r"\{([^{}/]+)/([^{}/:]+)(?:/(\w+))?:([^{}]*)\}")
"""A number of a record: its name, an id, which number (the value of a finding), its format."""


class Row(NamedTuple):
    """A statement and what was found of it, see ``findings.toml``."""

    said: str
    word: str
    rests_on: list[str]
    found: str
    size: str
    command: str
    page: str

    @property
    def records(self) -> tuple[str, ...]:
        """Names of the records that decide the row."""
        return tuple(dict.fromkeys(name.partition("/")[0] for name in self.rests_on))

    def outcome(self) -> str:
        """The word of the row, or "not told" if a claim or finding came out otherwise."""
        return self.word if all(map(came_out, self.rests_on)) else "not told"

    def text(self) -> str:
        """What was found, with its numbers."""
        return NUMBER.sub(lambda number: written(*number.groups()), self.found)


def rows() -> list[Row]:
    """All rows.

    Raises:
        ValueError: one has a word that is none of :data:`WORDS`.
    """
    every = [Row(**row) for row in tomllib.loads(ROWS.read_text())["row"]]
    for row in every:
        if row.word not in WORDS:
            raise ValueError(f"{row.said!r}: got {row.word!r}, wanted one of {', '.join(WORDS)}")
    return every


@cache
def record(name: str) -> Mapping[str, Any]:
    """The committed verdict of a theorem, or of the trainings of a figure."""
    if name in REGISTRY:
        return json.loads((VERDICTS / f"{name}.json").read_text())
    of_studies = json.loads((TRAININGS / f"{name}_record.json").read_text())
    (study,) = of_studies.values()
    return study["verdict"]


@cache
def entries(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Claims, controls and findings of a record, by id."""
    return {entry["id"]: entry for entry in record(name)["claims"]}


def came_out(condition: str) -> bool:
    """Whether a claim holds (``"theorem2/bulk"``), or a finding came out as said (``=above 0``)."""
    place, _, wanted = condition.partition("=")
    name, _, id = place.partition("/")
    entry = entries(name)[id]
    return entry["finding"]["outcome"] == wanted if wanted else entry["holds"] is True


def written(name: str, id: str, what: str | None, form: str) -> str:
    """A number of a record."""
    entry = entries(name)[id]
    if what in ("low", "high"):
        return format(entry["finding"]["interval"][what == "high"], form)
    return format(entry[what] if what else entry["finding"]["value"], form)


def revision(name: str) -> str:
    """Revision of git that left a record, or of the files that stated it where there was none."""
    return (record(name)["environment"]["git"] or record(name)["sources"])[:8]


def keep(verdict: Mapping[str, Any], sources: str) -> None:
    """Keep the verdict of a theorem, with the digest of the files that stated it in that run."""
    lines = [
        f'"{key}": {one_a_line(value)}'
        for key, value in sorted({**verdict, "sources": sources}.items())
    ]
    VERDICTS.mkdir(exist_ok=True)
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (VERDICTS / f"{verdict['name']}.json").write_text(text)
    record.cache_clear()
    entries.cache_clear()


def one_a_line(value: Any) -> str:
    """JSON with each entry of a list of entries on a line of its own, so that a change is seen."""
    if value and isinstance(value, list) and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(entry, sort_keys=True) for entry in value) + "\n]"
    return json.dumps(value, sort_keys=True)


def kept() -> dict[str, Mapping[str, Any]]:
    """The kept verdicts of theorems, in the order of the registry."""
    return {name: record(name) for name in REGISTRY if (VERDICTS / f"{name}.json").exists()}


def is_stale(name: str) -> bool:
    """Whether the files that state a theorem were edited since its record; of trainings no."""
    if name not in REGISTRY:
        return False
    return record(name)["sources"] != source_digest(theorem(name), record(name)["config"])


def marked_stale(page: str) -> str:
    """The page, where each stale verdict says so."""

    def mark(found: re.Match[str]) -> str:
        return f"{found[0]} (edited since)" if is_stale(found[1]) else found[0]

    return re.sub(r"\b(\w+) at [0-9a-f]{8}\b", mark, page)


def table() -> Iterator[tuple[str, ...]]:
    """Header and rows of the page."""
    yield ("often said", "", "what was found", "shown by")
    for row in rows():
        where = ", ".join(f"{name} at {revision(name)}" for name in row.records)
        links = f"[why]({row.page}), [contest](../CONTRIBUTING.md#contest-a-finding)"
        shown = f"`{row.command}`: {row.size}. Verdict: {where}; {links}"
        yield (row.said, f"**{row.outcome()}**", row.text(), shown)


if __name__ == "__main__":
    for name in dict.fromkeys(name for row in rows() for name in row.records):
        if is_stale(name):
            print(f"{name}: its statement was edited since {revision(name)}: run it, make refresh")
