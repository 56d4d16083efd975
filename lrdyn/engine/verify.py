"""Verifying a theorem: produce its arrays, then judge them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lrdyn.claims import FALSE_ALARM
from lrdyn.engine.judging import Legs, judge_results
from lrdyn.engine.produce import concerned, produce
from lrdyn.engine.progress import Progress
from lrdyn.engine.results import SCHEMA, environment
from lrdyn.theorem import Experiment

if TYPE_CHECKING:
    import xarray


class Verification(NamedTuple):
    """What :func:`verify` returns."""

    verdict: dict[str, Any]
    """Content of ``verdict.json``."""
    groups: Mapping[str, "xarray.Dataset"]
    """Content of ``results.nc``: ``"/"`` is the first scenario in the dtype asked for."""
    diverged: list[str]
    """One line for each configuration whose step size diverged."""
    legs: Mapping[str, Legs]
    """Claim or control -> precision -> residual and tolerance of every case."""


def verify(
    theorem: Experiment,
    settings: Mapping[str, Any],
    *,
    dtype: str = "float64",
    seeds: Sequence[int] = (0, 1),
    perturb: bool = False,
    thorough: bool = True,
    memory: int = 2**30,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run every scenario of a theorem with its controls and judge every claim.

    Identities run in float64 and in float32, and the verdict uses both; with ``dtype="float32"``
    the float32 run stands alone.

    Args:
        theorem: the theorem, or an experiment, of which nothing is claimed.
        settings: a value for each flag: a tuple for swept flags, one value for the others.
        dtype: ``float64`` or ``float32``.
        seeds: seeds to sweep.
        perturb: also sweep the distance from each hypothesis.
        thorough: run the controls in both precisions, and let XLA optimise the programs of the
            claims. Small sweeps spend their time in the compiler and finish sooner without.
        memory: bytes that the arrays of one part of a sweep may take, see :func:`lrdyn.sweep`.
        store: a folder that keeps finished parts, so that the same call continues after a kill.
        progress: told of every finished part.

    Returns:
        The :class:`Verification`; with a store, its large arrays are read from there when used.

    Raises:
        ValueError: a combination of settings is outside the theorem.
    """
    groups = produce(
        theorem,
        settings,
        dtype=dtype,
        seeds=seeds,
        perturb=perturb,
        thorough=thorough,
        memory=memory,
        store=store,
        progress=progress,
    )
    return judged(concerned(theorem, settings), groups, dtype)


def judged(theorem: Experiment, groups: Mapping[str, "xarray.Dataset"], dtype: str) -> Verification:
    """Judge the content of ``results.nc``; :func:`judge_results` says what it refuses."""
    found = judge_results(theorem, groups, dtype)
    record = environment(dtype)
    verdict = {
        "schema": SCHEMA,
        "name": theorem.name,
        "holds": holds(theorem, found.claims),
        "config": {},
        "claims": found.claims,
        "undecided": undecided(theorem, found.claims),
        "statistics": {"false_alarm": FALSE_ALARM, "tests": found.tests},
        "judged_by": {name: record[name] for name in ("git", "numpy", "python")},
        "environment": record,
    }
    return Verification(verdict, groups, found.diverged, found.legs)


def undecided(theorem: Experiment, claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """Claims of the first scenario that apply, and of which no case could be judged."""
    main = {claim.id for claim in theorem.scenarios[0].claims}
    return [c["id"] for c in claims if c["id"] in main and c["hypotheses_met"] and not c["cases"]]


def holds(theorem: Experiment, claims: Sequence[Mapping[str, Any]]) -> bool | None:
    """Verdict over the entries of all claims and controls.

    False if any is false. None if a claim of the first scenario is undecided, or if none that can
    carry a verdict was judged: side scenarios at settings of their own must not carry one about
    nothing.
    """
    if any(claim["holds"] is False for claim in claims):
        return False
    carriers = {claim.id for claim in theorem.scenarios[0].claims if claim.carries}
    carried = any(claim["holds"] for claim in claims if claim["id"] in carriers)
    return True if carried and not undecided(theorem, claims) else None
