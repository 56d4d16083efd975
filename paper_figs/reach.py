"""Sweeps over depth, rank and init scale that the figures of Theorem 2 and Corollary 1 share.

Maps judge the theorem itself in double precision; curves over the init scale come from the reduced
dynamics (2r x 2r blocks and L scalars), so that widths and steps can be large.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float

import lrdyn
from lrdyn.core.recording import log_steps
from lrdyn.figures.exhibits import Results, one_seed
from lrdyn.verification.judging.judging import Groups, residuals, worst_ratio
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from lrdyn.verification.stating.statement import Experiment, Theorem
from paper_figs.shared import DIM, LEARNING_RATE, RANK, STEPS, one_scenario

MAP_SCALES = [0.01, 0.03, 0.1, 0.3, 1.0]
MAP = {
    "dim": 16,
    "depths": [2, 3, 4],
    "ranks": [1, 2, 3],
    "steps": 200,
    "seeds": [0, 1],
    "init_scales": MAP_SCALES,
}
REDUCED = {
    "dim": 30,
    "rank": 3,
    "depths": [2, 3, 4, 5],
    "learning_rate": 0.05,
    "steps": 60000,
    "threshold": 0.01,
    "rank_at": 100.0,
    "seed": 0,
    "init_scales": np.geomspace(0.1, 1.2, 40).round(4).tolist(),
}
LARGE_MAP = {"dim": 30, "depths": [2, 3, 4, 6, 8], "steps": 500, "seeds": [0, 1, 2, 3]}
PRESETS = {
    "quick": {"map": MAP, "reduced": REDUCED},
    "paper": {"map": MAP | LARGE_MAP, "reduced": REDUCED},
}
RECORDED = 400
"""Most recorded steps of the reduced dynamics."""
POINT = ("rank", "depth", "init_scale")


def map_of(theorem: Theorem) -> Experiment:
    """The first scenario of a theorem without its claims, which are judged when it is drawn."""
    first = dataclasses.replace(theorem.scenarios[0], claims=(), controls=())
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
    """A run over depth, rank and init scale, from layers of equal scales and decays."""
    if list(seeds) != list(range(seeds[0], seeds[0] + len(seeds))):
        raise ValueError(f"seeds: got {seeds}, wanted them without gaps")
    return run_of(
        experiment,
        dim=dim,
        depth=depths,
        rank=ranks,
        init_scale=init_scales,
        steps=steps,
        init_spread=1.0,
        decay_spread=1.0,
        seed=seeds[0],
        seeds=len(seeds),
    )


def _dtype_of(groups: Groups) -> str:
    """That of the runs; arrays that no command saved have no configuration, and the usual one."""
    config = groups["/"].attrs.get("config")
    return json.loads(config)["dtype"] if config else "float64"


def ratio_map(theorem: Theorem, groups: Groups) -> xr.DataArray:
    """Largest residual / tolerance over seeds and claims, (rank, depth, init_scale)."""
    scenario, dtype = theorem.scenarios[0], _dtype_of(groups)
    legs = {
        claim.id: {dtype: residuals(claim, scenario, groups["/"], dtype)}
        for claim in scenario.claims
    }
    ratio = worst_ratio(scenario.claims, legs, dtype)
    worst = ratio.max([name for name in ratio.dims if name not in POINT]).transpose(*POINT)
    return worst.drop_attrs().assign_attrs(precision=dtype)


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
    """Draw a target with values evenly spaced in [1/2, 1], an orthogonal start; reduce them."""
    weights_key, target_key = jax.random.split(key)
    target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
    weights = lrdyn.orthogonal_layers(weights_key, (dim,) * (depth + 1), jnp.ones(depth))
    small = lrdyn.reduced_target(lrdyn.frame(weights, target, rank), target, 2 * rank)
    return Reduced(
        small, np.asarray(init_scales), depth, dim, learning_rate, log_steps(steps, RECORDED)
    )


class ReducedMeasured(NamedTuple):
    """What runs of one depth leave, over their init scales."""

    distance: Float[np.ndarray, "init_scale time"] = ABSENT
    """||f - Phi||_F / ||Phi||_F of the full network."""
    distance_compressed: Float[np.ndarray, "init_scale time"] = ABSENT
    """||f_C - Phi||_F / ||Phi||_F of the compressed one."""
    effective_rank: Float[np.ndarray, "init_scale time"] = ABSENT
    """Exponential of the entropy of the singular values of f."""
    error: Float[np.ndarray, "init_scale time"] = ABSENT
    """||f - f_C||_F."""
    init_scale: Float[np.ndarray, "init_scale"] = ABSENT
    """eps, the same for all layers."""
    time: Float[np.ndarray, "time"] = ABSENT
    """eta t at the recorded steps."""


def reduced_runs(case: Reduced, scales: jax.Array) -> Mapping[str, jax.Array]:
    """Distances to the target, effective rank and compression error of many runs, (run, time)."""
    size = len(case.target)
    still = case.dim - size

    def record(layers: lrdyn.core.Weights) -> tuple[jax.Array, jax.Array]:
        product = lrdyn.end_to_end(layers)
        return jnp.linalg.norm(product - case.target), lrdyn.singular_values(product)

    eps = jnp.broadcast_to(scales[:, None], (len(scales), case.depth))
    runs = lrdyn.theorem2.reduced_lanes(
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
    resting = jnp.broadcast_to(bulk[:, :, None], (*bulk.shape, still))
    norm = jnp.linalg.norm(case.target)
    return {
        "distance": jnp.sqrt(inner**2 + still * bulk**2) / norm,
        "distance_compressed": inner / norm,
        "effective_rank": lrdyn.effective_rank(jnp.concatenate([moving, resting], axis=2)),
        "error": jnp.sqrt(1.0 * still) * bulk,
    }


def measure_reduced(case: Reduced) -> ReducedMeasured:
    """Run many scales at once, as the last axis, which no batch of single runs would do."""
    curves = lrdyn.sweep(
        lambda init_scale: reduced_runs(case, init_scale),
        lrdyn.product(init_scale=case.scales),
        batched=True,
        lanes=64,
    )
    return ReducedMeasured(
        **{str(name): array.values for name, array in curves.items()},
        init_scale=case.scales,
        time=case.eta * case.times,
    )


REDUCED_SWEEP = one_scenario(
    "reduced_sweep",
    "full and compressed networks by their reduced dynamics, over depth and init scale",
    (
        Flag("depth", (2, 3, 4, 5), at_least(2), int, "L", "number of layers"),
        Flag("init_scales", (), type="array", symbol="eps", help="init scales", swept=False),
        *(DIM, RANK, LEARNING_RATE, STEPS),
    ),
    reduced_case,
    measure=measure_reduced,
    measured=ReducedMeasured,
    traced=False,
)


def reduced_run(*, depths: Sequence[int], threshold: float, rank_at: float, **settings: Any) -> Run:
    """The run behind the curves, in which ``threshold`` and ``rank_at`` change nothing."""
    return run_of(REDUCED_SWEEP, depth=depths, seeds=1, **settings)


def reduced_curves(groups: Groups, reduced: Mapping[str, Any]) -> xr.Dataset:
    """Read from the reduced dynamics when full and compressed networks have converged.

    Over depth and init scale: times eta t from which ``||f - Phi||_F <= threshold ||Phi||_F`` for
    the full and for the compressed network (NaN if later than ``steps``); effective rank of the
    full product at the recorded time next to ``rank_at``; error ``||f - f_C||_F`` when the
    compressed network has converged, and its bound.
    """
    saved = one_seed(groups)
    run, least = fields.of_run(saved, ReducedMeasured), reduced["threshold"]
    _, full_time = _first_time(run(lambda run: run.distance) <= least)
    small, small_time = _first_time(run(lambda run: run.distance_compressed) <= least)
    error = run(lambda run: run.error).isel(time=small).drop_vars("time")
    at = int(np.argmin(np.abs(run(lambda run: run.time).values - reduced["rank_at"])))
    still = reduced["dim"] - 2 * reduced["rank"]
    return xr.Dataset(
        {
            "convergence_time": full_time,
            "convergence_time_compressed": small_time,
            "effective_rank": run(lambda run: run.effective_rank).isel(time=at, drop=True),
            "error": error.where(small_time.notnull()),
            "error_bound": np.sqrt(still) * run(lambda run: run.init_scale) ** saved["depth"],
        }
    )


def _first_time(reached: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    index = reached.argmax("time")
    time = reached["time"].isel(time=index).drop_vars("time")
    return index, time.where(reached.any("time"))


def sources(
    experiment: Experiment, map: Mapping[str, Any], reduced: Mapping[str, Any]
) -> dict[str, Run]:
    """Runs behind the maps of a theorem and behind the curves, which both figures share."""
    return {"map": map_run(experiment, **map), "reduced": reduced_run(**reduced)}


def numbers(
    theorem: Theorem,
    curves: Sequence[str],
    results: Results,
    map: Mapping[str, Any],
    reduced: Mapping[str, Any],
) -> xr.Dataset:
    """Maps, with axes of their own, and some curves, with the numbers of the caption."""
    ratio = ratio_map(theorem, results["map"])
    plotted = reduced_curves(results["reduced"], reduced)[list(curves)]
    for curve in plotted.values():
        curve.attrs["curve_along"] = "init_scale"
    axes = {"depth": "map_depth", "init_scale": "map_init_scale"}
    if "error_bound" in plotted:
        plotted["error_bound"].attrs["kind"] = "identity"
    # Values of the ratio are round-off and not compared.
    plotted["ratio"] = ratio.rename(axes).drop_attrs().assign_attrs(compare=0)
    if ratio.attrs["precision"] == "float32":
        plotted.attrs["precision"] = "single precision"
    return plotted.assign_attrs(
        largest=float(ratio.max()),
        seeds=len(map["seeds"]),
        map_dim=map["dim"],
        map_steps=map["steps"],
        eta=reduced["learning_rate"],
        small=2 * reduced["rank"],
        rank_of_target=float(lrdyn.effective_rank(lrdyn.spaced_singular_values(reduced["rank"]))),
        recorded=len(log_steps(reduced["steps"], RECORDED)),
        **{name: reduced[name] for name in ("dim", "rank", "steps", "threshold", "rank_at")},
    )
