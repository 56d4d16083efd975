"""Numbers that a run left once, kept in ``tests/data`` and compared.

``LRDYN_RECORD=1 pytest FILE`` writes them anew, after a change that is meant.
"""

import json
import os
from pathlib import Path

import numpy as np

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


def as_kept(name, found):
    """Compare arrays with those of a file, which is written first if that is asked for."""
    path = KEPT / f"{name}.json"
    if os.environ.get("LRDYN_RECORD"):
        path.parent.mkdir(exist_ok=True)
        lines = (f"{json.dumps(array)}: {json.dumps(one)}" for array, one in found.items())
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    wanted = json.loads(path.read_text())
    assert found.keys() == wanted.keys()
    assert not list(filter(None, (differs(n, found[n], wanted[n]) for n in wanted)))


def committed(path, theorem, found, mine=lambda name: True):
    """Numbers of a theorem in a file; those that were found are put there first if that is asked.

    Args:
        path: of the file.
        theorem: its name.
        found: name -> number, as it is now.
        mine: whether a name is one of those that were looked for; all are unless this is said.
    """
    if os.environ.get("LRDYN_RECORD"):
        every = json.loads(path.read_text()) if path.exists() else {}
        others = {name: x for name, x in every.get(theorem, {}).items() if not mine(name)}
        path.write_text(by_theorem(every | {theorem: others | found}))
    return {name: x for name, x in json.loads(path.read_text())[theorem].items() if mine(name)}


def by_theorem(every):
    """The text of such a file, one line for each number's name."""
    parts = []
    for theorem, found in sorted(every.items()):
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in found)
        parts.append(f" {json.dumps(theorem)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


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
