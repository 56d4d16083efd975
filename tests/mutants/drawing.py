"""Which mutants there are, and which of them are drawn.

A drawing is by the name of a mutant: an edit of one function leaves those of all others drawn as
they were, and what was found out about them stays true of them.
"""

import ast
import hashlib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.mutants import operators
from tests.mutants.operators import Mutant
from tests.runs import ROOT

ROOMS = (
    "theorem1",
    "theorem2",
    "theorem3",
    "theorem4",
    "corollary1",
    "completion",
    "galore",
    "lora",
)

KINDS: dict[str, tuple[str, ...]] = {
    "claims": tuple(
        f"lrdyn/{room}/{name}.py"
        for room in ROOMS
        for name in ("*_claims", "statement", "setting", "problem", "problems")
    ),
    "judging": tuple(
        f"lrdyn/verification/{name}.py"
        for name in (
            *("judging/judging", "judging/outcomes", "stating/forms", "stating/claims"),
            "runs/verify",
        )
    ),
    "formulas": (
        *(f"lrdyn/{room}/*.py" for room in ROOMS),
        *(
            f"lrdyn/core/{name}.py"
            for name in (
                *("algorithm", "chance", "condition", "descent", "factorization", "initialization"),
                *("linalg", "masking", "recording", "spectra"),
            )
        ),
    ),
    "adapters": tuple(
        f"lrdyn/adapters/{name}.py"
        for name in (
            *("adapter", "algorithm_1", "array_like", "memory", "methods", "projectors", "state"),
        )
    ),
    "referee": ("referee/*.py", "referee/exact/*.py"),
}
"""Kind of module -> its files; one that is of two kinds is of the first."""

SHARES = {"claims": 0.3, "formulas": 0.3, "judging": 0.15, "referee": 0.15, "adapters": 0.1}
"""Part of a drawing that each kind has."""

NO_FORMULA = ("__init__.py", "figures.py", "mistakes.py")
"""Files of those folders that export, draw, or have the wrong formulas of controls."""

USUAL = ("arithmetic", "number", "condition", "boundary", "sign", "statement dropped")
"""Operators that every tool has; the others are drawn twice as often."""


class Drawn(NamedTuple):
    """A mutant, and the kind of its module."""

    mutant: Mutant
    kind: str


def files(root: Path = ROOT) -> dict[str, str]:
    """Path -> kind of module."""
    found: dict[str, str] = {}
    for kind, patterns in KINDS.items():
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                if path.name not in NO_FORMULA:
                    found.setdefault(path.relative_to(root).as_posix(), kind)
    return found


@cache
def usual_values(root: Path = ROOT) -> Mapping[str, str]:
    """Flag of a theorem -> the first value of its quick preset, as text.

    Flags of words are left out: another word is another branch, which other operators reach.
    """
    found: dict[str, str] = {}
    for path in sorted(root.glob("lrdyn/*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    ast.Name("Flag"), [ast.Constant(str(name)), ast.Tuple([first, *_]), *_]
                ):
                    if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
                        found.setdefault(name, ast.unparse(first))
    return found


@cache
def every(root: Path = ROOT) -> tuple[Drawn, ...]:
    """All mutants, in the order of files and places."""
    flags = usual_values(root)
    return tuple(
        Drawn(mutant, kind)
        for file, kind in sorted(files(root).items())
        for mutant in operators.mutants(file, (root / file).read_text(), flags)
    )


def drawn(seed: int, count: int, root: Path = ROOT) -> list[Drawn]:
    """So many mutants, without replacement; those that come first have the same shares of kinds."""
    placed: list[tuple[float, Drawn]] = []
    for kind, share in SHARES.items():
        mine = [one for one in every(root) if one.kind == kind]
        mine.sort(key=lambda one: _time(one.mutant, seed))
        placed += [((n + 0.5) / share, one) for n, one in enumerate(mine)]
    placed.sort(key=lambda pair: (pair[0], pair[1].mutant.key))
    return [one for _, one in placed[:count]]


def _time(mutant: Mutant, seed: int) -> float:
    """When a mutant is drawn: exponential times, of the rates by which operators are drawn."""
    digest = hashlib.sha256(f"{seed} {mutant.key}".encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 1) / 2**64
    return -math.log(uniform) / (1 if mutant.operator in USUAL else 2)
