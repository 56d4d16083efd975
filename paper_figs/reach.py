"""Sweeps over depth, rank and init scale that the figures of Theorem 2 and Corollary 1 share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import lrdyn
from lrdyn.drawing.exhibits import one_seed
from lrdyn.engine.judging import Groups, residuals, worst_ratio
from lrdyn.engine.runs import Run, run_of
from lrdyn.theorem import POSITIVE, Experiment, Flag, Statement, Theorem, at_least

MAP = {"dim": 16, "depths": [2, 3, 4], "ranks": [1, 2, 3], "steps": 200, "seeds": [0, 1]}
"""Settings of the maps of residual over tolerance."""

REDUCED = {
    "dim": 30, "rank": 3, "depths": [2, 3, 4, 5], "learning_rate": 0.05, "steps": 60000,
    "threshold": 0.01, "rank_at": 100.0, "seed": 0,
}  # fmt: skip
"""Settings of the sweeps of the reduced dynamics."""


def map_of(theorem: Theorem) -> Experiment:
    """The first statement of a theorem without its claims, which are judged when it is drawn.

    Args:
        theorem: the theorem.

    Returns:
        The experiment, with the flags of the theorem.
    """
    first = dataclasses.replace(theorem.statements[0], claims=(), controls=())
    summary = f"{theorem.name} in double precision, not judged"
    return Experiment(f"{theorem.name}_map", summary, theorem.flags, (first,), check=theorem.check)


def map_run(
    experiment: Experiment,
    *,
    dim: int,
    depths: Sequence[int],
    ranks: Sequence[int],
    init_scales: Sequence[float],
    steps: int,
    seeds: Sequence[int],
) -> Run:
    """A run over depth, rank and init scale; other flags at their first values.

    Args:
        experiment: see :func:`map_of`.
        dim: d.
        depths: L.
        ranks: r.
        init_scales: eps.
        steps: steps of gradient descent.
        seeds: random seeds, one after the other.

    Returns:
        The run.

    Raises:
        ValueError: a seed is left out.
    """
    if list(seeds) != list(range(seeds[0], seeds[0] + len(seeds))):
        raise ValueError(f"seeds: got {seeds}, wanted them without gaps")
    return run_of(
        experiment, dim=dim, depth=depths, rank=ranks, init_scale=init_scales, steps=steps,
        seed=seeds[0], seeds=len(seeds),
    )  # fmt: skip


def ratio_map(theorem: Theorem, groups: Groups) -> xr.DataArray:
    """Judge a theorem on the results of its map.

    Args:
        theorem: the theorem.
        groups: results of :func:`map_run`.

    Returns:
        Largest residual / tolerance over seeds and claims, ``(rank, depth, init_scale)``.
    """
    statement = theorem.statements[0]
    legs = {
        claim.id: {"float64": residuals(claim, statement, groups["/"], "float64")}
        for claim in statement.claims
    }
    ratio = worst_ratio(statement.claims, legs, "float64")
    ratio = ratio.max([name for name in ratio.dims if name not in ("rank", "depth", "init_scale")])
    return ratio.transpose("rank", "depth", "init_scale")


class Reduced(NamedTuple):
    """Runs of one depth that start at several scales."""

    target: jax.Array
    """Of the moving part, 2r x 2r."""
    scales: np.ndarray
    depth: int
    dim: int
    eta: float
    times: np.ndarray


def reduced_case(
    key: jax.Array,
    *,
    depth: int,
    dim: int,
    rank: int,
    init_scales: Sequence[float],
    learning_rate: float,
    steps: int,
) -> Reduced:
    """Draw a target and an orthogonal start, and reduce them.

    Args:
        key: random key.
        depth: L.
        dim: d.
        rank: r of the target, singular values evenly spaced in [1/2, 1].
        init_scales: eps of each run.
        learning_rate: eta.
        steps: most steps.

    Returns:
        The case.
    """
    weights_key, target_key = jax.random.split(key)
    target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
    weights = lrdyn.orthogonal_layers(weights_key, (dim,) * (depth + 1), jnp.ones(depth))
    small = lrdyn.reduced_target(lrdyn.frame(weights, target, rank), target, 2 * rank)
    times = np.unique(np.rint(np.geomspace(1, steps, 400)).astype(int))
    return Reduced(small, np.asarray(init_scales), depth, dim, learning_rate, times)


def reduced_runs(case: Reduced, scales: jax.Array) -> Mapping[str, jax.Array]:
    """Distances to the target, effective rank and compression error of many runs.

    Args:
        case: the case.
        scales: eps of each run.

    Returns:
        Arrays ``(run, time)``.
    """
    size = len(case.target)
    still = case.dim - size

    def record(layers):
        product = lrdyn.end_to_end(layers)
        return jnp.linalg.norm(product - case.target), lrdyn.singular_values(product)

    eps = jnp.broadcast_to(scales[:, None], (len(scales), case.depth))
    runs = lrdyn.subspace.reduced_lanes(
        jnp.broadcast_to(case.target[None], (len(scales), size, size)),
        eps,
        jnp.full_like(scales, case.eta),
        jnp.zeros_like(scales),
        case.times,
        record=record,
    )
    inner, moving = runs.records
    rho = jax.vmap(lambda e: lrdyn.rho(e, case.eta, 0.0, case.times))(eps)
    bulk = jnp.abs(jnp.prod(rho, axis=2))
    every = jnp.concatenate(
        [moving, jnp.broadcast_to(bulk[:, :, None], (*bulk.shape, still))], axis=2
    )
    norm = jnp.linalg.norm(case.target)
    return {
        "distance": jnp.sqrt(inner**2 + still * bulk**2) / norm,
        "distance_compressed": inner / norm,
        "effective_rank": lrdyn.effective_rank(every),
        "error": jnp.sqrt(1.0 * still) * bulk,
    }


def measure_reduced(case: Reduced) -> dict[str, Any]:
    """Run many scales at once, the runs as the last axis, which no batch of single runs would do.

    Args:
        case: the case.

    Returns:
        Arrays ``(init_scale, time)``, and the coordinates of both.
    """
    found = lrdyn.sweep(
        lambda init_scale: reduced_runs(case, init_scale),
        lrdyn.product(init_scale=case.scales),
        batched=True,
        lanes=64,
    )
    arrays = {str(name): array.values for name, array in found.items()}
    return {**arrays, "init_scale": case.scales, "time": case.eta * case.times}


REDUCED_SWEEP = Experiment(
    "reduced_sweep",
    "full and compressed networks by their reduced dynamics, over depth and init scale",
    (
        Flag("depth", (2, 3, 4, 5), at_least(2), int, "L", "number of layers"),
        Flag("dim", (30,), at_least(3), int, "d", "width of the square layers", swept=False),
        Flag("rank", (3,), at_least(1), int, "r", "rank of the target Phi", swept=False),
        Flag("init_scales", ([0.1, 1.0],), symbol="eps", help="init scales", swept=False),
        Flag("learning_rate", (0.05,), POSITIVE, symbol="eta", help="step size", swept=False),
        Flag("steps", (60000,), at_least(1), int, "t", "steps of gradient descent", swept=False),
    ),
    (
        Statement(
            "reduced",
            reduced_case,
            measure=measure_reduced,
            dims={
                "distance": ("init_scale", "time"),
                "distance_compressed": ("init_scale", "time"),
                "effective_rank": ("init_scale", "time"),
                "error": ("init_scale", "time"),
                "init_scale": ("init_scale",),
                "time": ("time",),
            },
            traced=False,
        ),
    ),
)


def reduced_run(
    *,
    depths: Sequence[int],
    threshold: float,
    rank_at: float,
    **settings: Any,
) -> Run:
    """The run of :data:`REDUCED_SWEEP` behind the curves.

    Args:
        depths: L.
        threshold: see :func:`reduced_curves`, as ``rank_at``.
        rank_at: does not change the run.
        **settings: other flags, and ``seed``.

    Returns:
        The run.
    """
    return run_of(REDUCED_SWEEP, depth=depths, seeds=1, **settings)


def reduced_curves(groups: Groups, reduced: Mapping[str, Any]) -> xr.Dataset:
    """Read from the reduced dynamics when full and compressed networks have converged.

    Args:
        groups: results of :func:`reduced_run`.
        reduced: its settings. A run has converged when ``||f - Phi||_F <= threshold ||Phi||_F``;
            ``rank_at`` is the time eta t of the effective rank.

    Returns:
        Over ``depth`` and ``init_scale``: times eta t of convergence of the full and of the
        compressed network (NaN if later than ``steps``); effective rank of the full product at the
        recorded time next to ``rank_at``; error ``||f - f_C||_F`` when the compressed network has
        converged, and its bound.
    """
    found = one_seed(groups)
    _, full_time = _first(found["distance"] <= reduced["threshold"])
    small, small_time = _first(found["distance_compressed"] <= reduced["threshold"])
    at = int(np.argmin(np.abs(found["time"].values - reduced["rank_at"])))
    still = reduced["dim"] - 2 * reduced["rank"]
    return xr.Dataset(
        {
            "convergence_time": full_time,
            "convergence_time_compressed": small_time,
            "effective_rank": found["effective_rank"].isel(time=at, drop=True),
            "error": found["error"].isel(time=small).drop_vars("time").where(small_time.notnull()),
            "error_bound": np.sqrt(still) * found["init_scale"] ** found["depth"],
        }
    )


def _first(reached: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    index = reached.argmax("time")
    time = reached["time"].isel(time=index).drop_vars("time")
    return index, time.where(reached.any("time"))
