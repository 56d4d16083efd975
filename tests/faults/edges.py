"""Known edges, found by the search: ``python -m tests.faults.edges [NAME ...]``.

Each theorem is searched beyond its hypotheses at N points, 2,000 by default, as ``--search N
--beyond`` does. An edge is found where a claim fails although one hypothesis alone is lost, or
where what is asked for cannot be run. It prints at how many points each failed, by how much, and
the points, from the first on, that were needed to find it. With ``--out`` results stay, and the
same command goes on from there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

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
    Edge("corollary1", "ill-conditioned", "error_identity"),
    Edge("theorem1", "sigma_r > sigma_{r+1}", "minimiser"),
    Edge("theorem2", "d > 2 rank", "factorization"),
    Edge("theorem4", "condition of lemma_3_3", "lemma_3_3"),
)


def words_of(edge: Edge, found: dict[str, Any]) -> tuple[str, str]:
    """What a search says of an edge, and the points that it took; empty if it did not find it."""
    for one in found["edges"]:
        same = (one["hypothesis"], one["claim"]) == (edge.hypothesis, edge.claim)
        if same and one["fails"]:
            ratio = "lost" if one["ratio"] is None else f"{one['ratio']:.2g}"
            said = f"{one['precision']}: {one['fails']} of {one['points']}, {ratio}"
            if one["least_condition"] not in (None, 1.0):
                said += f", condition from {one['least_condition']:.1e}"
            return said, f"{one['found_after']:,}"
    for one in found["not_run"]:
        if (one["hypothesis"], one["scenario"]) == (edge.hypothesis, edge.claim):
            return one["why"], "-"
    return "", ""


def main(words: list[str]) -> int:
    """Search, and print every edge; how many were not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.edges")
    parser.add_argument("names", nargs="*", help="theorems")
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--out", help="folder in which results stay")
    asked = parser.parse_args(words)
    rows, missed = [("theorem", "without", "claim", "found", "points needed")], 0
    with tempfile.TemporaryDirectory() as scratch:
        out = asked.out or scratch
        for name in dict.fromkeys(edge.theorem for edge in EDGES):
            if asked.names and name not in asked.names:
                continue
            command = (f"experiments.{name}", "--search", str(asked.points), "--beyond")
            words = [sys.executable, "-m", *command, "--out", out]
            status = subprocess.run(words, cwd=ROOT, check=False).returncode
            files = sorted(Path(out).glob(f"{name}/beyond-*/{FILE}"), key=_age)
            found = json.loads(files[-1].read_text()) if files and status == 0 else None
            for edge in (edge for edge in EDGES if edge.theorem == name):
                said, needed = words_of(edge, found) if found else (f"status {status}", "")
                missed += not (found and said)
                rows.append((name, edge.hypothesis, edge.claim, said or "NOT FOUND", needed))
    print("\n".join(aligned(rows)))
    return missed


def _age(path: Path) -> float:
    return path.stat().st_mtime


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
