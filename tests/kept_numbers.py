"""Numbers that a training left once, kept in ``tests/data/studies`` and compared.

``pytest --record tests/test_study_numbers.py`` writes what these tests found, after a change that
is meant. It refuses a file whose numbers moved unless *Numbers that moved* in CHANGELOG.md names it
in backticks, where the reason is to be read.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.kept import CHANGELOG, excused

Arrays = dict[str, dict[str, Any]]
"""Name of an array -> what is kept of it."""

recording = False
"""Whether files are written: the option ``--record`` of pytest alone sets it."""

KEPT = Path(__file__).with_name("data") / "studies"
ENTRIES = 20
"""Entries that are kept of an array, evenly spread, beside the norm of all."""
TOLERANCE = 2e-3
"""Of the largest entry. A few steps in float32 differ by some 1e-5 between machines; each of the
changes that are to be seen moves some array by more than 1e-2."""


def kept(array):
    """Some entries of an array, its largest one, and the norm of all."""
    flat = np.ravel(np.asarray(array, float))
    places = np.unique(np.linspace(0, max(flat.size - 1, 0), ENTRIES).astype(int))
    finite = flat[np.isfinite(flat)]
    return {
        "shape": list(np.shape(array)),
        "infinite": int(flat.size - finite.size),
        "largest": rounded(np.max(np.abs(finite), initial=0)),
        "norm": rounded(np.linalg.norm(finite)),
        "entries": [rounded(x) for x in flat[places]] if flat.size else [],
    }


def rounded(number):
    return float(f"{number:.7g}") if np.isfinite(number) else None


def as_kept(name: str, found: Arrays) -> None:
    """Compare arrays with those of a file, which is written first if that is asked for."""
    path = KEPT / f"{name}.json"
    if recording:
        record(path, found, CHANGELOG.read_text())
    assert moved(found, json.loads(path.read_text())) == []


def moved(found: Arrays, wanted: Arrays) -> list[str]:
    """What is different between arrays and those that are kept, a line each."""
    other = [f"{name}: in one of both" for name in sorted(found.keys() ^ wanted.keys())]
    lines = (differs(n, found[n], wanted[n]) for n in wanted.keys() & found.keys())
    return [*other, *sorted(filter(None, lines))]


def record(path: Path, found: Arrays, changelog: str) -> None:
    """Write arrays to a file, if it is a new one or the changelog says that its numbers moved."""
    lines = moved(found, json.loads(path.read_text())) if path.exists() else []
    if lines and path.stem not in excused(changelog):
        wanted = f"wanted `{path.stem}` under Numbers that moved in CHANGELOG.md"
        raise AssertionError("\n".join([f"{path.stem}: {wanted}", *lines]))
    path.parent.mkdir(exist_ok=True)
    entries = (f"{json.dumps(name)}: {json.dumps(array)}" for name, array in found.items())
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def differs(name, found, wanted):
    """What is different about an array, or a text, in a line; empty if nothing is."""
    for part in wanted.keys() - {"largest", "norm", "entries"}:
        if found[part] != wanted[part]:
            return f"{name}: {part}: got {found[part]}, wanted {wanted[part]}"
    if "text" in wanted:
        return ""
    pairs = zip(
        [found["norm"], *found["entries"]], [wanted["norm"], *wanted["entries"]], strict=True
    )
    scales = [wanted["norm"], *[wanted["largest"]] * len(wanted["entries"])]
    for (got, want), scale in zip(pairs, scales, strict=True):
        if got == want:
            continue
        if None in (got, want) or abs(got - want) > TOLERANCE * (scale or 1.0):
            return f"{name}: got {got}, wanted {want}"
    return ""
