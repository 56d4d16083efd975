"""Verifying a theorem: produce its arrays, then judge them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lrdyn.claims import overall
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
        "holds": _holds(theorem, found.claims),
        "config": {},
        "claims": found.claims,
        "judged_by": {name: record[name] for name in ("git", "numpy", "python")},
        "environment": record,
    }
    return Verification(verdict, groups, found.diverged, found.legs)


def _holds(theorem: Experiment, claims: list[dict[str, Any]]) -> bool | None:
    # A side scenario at settings of its own must not carry a verdict about nothing.
    main = {claim.id for claim in theorem.scenarios[0].claims}
    holds = overall(claims)
    if holds and all(claim["holds"] is None for claim in claims if claim["id"] in main):
        return None
    return holds
