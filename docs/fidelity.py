"""Rows of the page of fidelity, from ``docs/fidelity.toml``: our statements beside the survey's."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lrdyn.registry import theorem

ROWS = Path(__file__).with_name("fidelity.toml")


class Item(NamedTuple):
    """A theorem, example, algorithm, figure or table of the survey, see ``fidelity.toml``."""

    item: str
    ours: str
    differs: str
    command: str
    signed: str
    source: str = ""
    theorem: str = ""


def items() -> list[Item]:
    """All items, in the survey's order."""
    return [Item(**row) for row in tomllib.loads(ROWS.read_text())["row"]]


def table() -> Iterator[tuple[str, ...]]:
    """Header and rows of the page."""
    yield ("in the survey", "here", "source", "known differences", "as printed? (reader, date)")
    for row in items():
        yield (
            row.item,
            f"{row.ours} (`{row.command}`)",
            row.source or theorem(row.theorem).source,
            row.differs,
            row.signed,
        )
