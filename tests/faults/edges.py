"""Known edges, found by the search: ``python -m tests.faults.edges [N] [NAME ...]``.

Each theorem is searched beyond its hypotheses at N points, 2,000 by default, as ``--search N
--beyond`` does. An edge is found where a claim fails although one hypothesis alone is lost, or
where what is asked for cannot be run. It prints how many points of each failed, and by how much.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from lrdyn.commands.search import FILE
from lrdyn.core.show import aligned
from tests.runs import ROOT


class Edge(NamedTuple):
    """A hypothesis, and the claim that is false without it."""

    theorem: str
    hypothesis: str
    claim: str
    """Or the scenario that cannot be run."""


EDGES = (
    Edge("corollary1", "condition of error_bound", "error_bound"),
    Edge("corollary1", "d > 2 rank", "compression"),
    Edge("theorem1", "sigma_r > sigma_{r+1}", "minimiser"),
    Edge("theorem2", "d > 2 rank", "factorization"),
    Edge("theorem4", "condition of lemma_3_3", "lemma_3_3"),
)


def seen(edge: Edge, folder: Path) -> str:
    """What the search says of an edge; empty if it did not find it."""
    (file,) = folder.glob(f"{edge.theorem}/beyond-*/{FILE}")
    found = json.loads(file.read_text())
    for one in found["edges"]:
        same = (one["hypothesis"], one["claim"]) == (edge.hypothesis, edge.claim)
        if same and one["fails"]:
            return f"{one['fails']}/{one['points']}, {one['ratio'] or 'lost'}"
    for one in found["not_run"]:
        if (one["hypothesis"], one["scenario"]) == (edge.hypothesis, edge.claim):
            return one["why"]
    return ""


def main(words: list[str]) -> int:
    """Search, and print every edge; how many were not found."""
    points, *names = words or ["2000"]
    if not points.isdigit():
        points, names = "2000", words
    rows, missed = [("theorem", "without", "claim", "found")], 0
    with tempfile.TemporaryDirectory() as out:
        for name in dict.fromkeys(edge.theorem for edge in EDGES):
            if names and name not in names:
                continue
            command = (f"experiments.{name}", "--search", points, "--beyond", "--out", out)
            words = [sys.executable, "-m", *command]
            status = subprocess.run(words, cwd=ROOT, check=False).returncode
            for edge in (edge for edge in EDGES if edge.theorem == name):
                found = seen(edge, Path(out)) if status == 0 else f"status {status}"
                missed += status != 0 or not found
                rows.append((name, edge.hypothesis, edge.claim, found or "NOT FOUND"))
    print("\n".join(aligned(rows)))
    return missed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
