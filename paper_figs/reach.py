"""Sweeps over depth, rank and init scale that the figures of Theorem 2 and Corollary 1 share."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import lrdyn
from lrdyn import plotting
from lrdyn.theorem import Theorem
from lrdyn.verify import claims_job, worst_ratio

MAP = {"dim": 16, "depths": [2, 3, 4], "ranks": [1, 2, 3], "steps": 200, "seeds": [0, 1]}
"""Settings of the maps of residual over tolerance."""

REDUCED = {
    "dim": 30, "rank": 3, "depths": [2, 3, 4, 5], "learning_rate": 0.05, "steps": 60000,
    "threshold": 0.01, "rank_at": 100.0, "seed": 0,
}  # fmt: skip
"""Settings of the sweeps of the reduced dynamics."""


def ratio_map(
    theorem: Theorem,
    *,
    dim: int,
    depths: Sequence[int],
    ranks: Sequence[int],
    init_scales: Sequence[float],
    steps: int,
    seeds: Sequence[int],
) -> xr.DataArray:
    """Verify a theorem over depth, rank and init scale, in float64.

    Args:
        theorem: the theorem; its first statement is verified, other flags at their first values.
        dim: d.
        depths: L.
        ranks: r.
        init_scales: eps.
        steps: steps of gradient descent.
        seeds: random seeds.

    Returns:
        Largest residual / tolerance over seeds and claims, ``(rank, depth, init_scale)``.
    """
    settings: dict[str, Any] = {f.name: f.quick[:1] for f in theorem.flags if f.swept}
    settings |= {"dim": (dim,), "depth": tuple(depths), "rank": tuple(ranks)}
    settings |= {"init_scale": tuple(init_scales), "steps": steps, "target": None}
    statement = theorem.statements[0]
    job = claims_job(theorem, statement, settings, seeds, "/", "float64", optimize=False)
    ratio = worst_ratio(job.run()["/"], statement)
    ratio = ratio.max([name for name in ratio.dims if name not in ("rank", "depth", "init_scale")])
    return ratio.transpose("rank", "depth", "init_scale")


def reduced_sweep(
    *,
    dim: int,
    rank: int,
    depths: Sequence[int],
    init_scales: Sequence[float],
    learning_rate: float,
    steps: int,
    threshold: float,
    rank_at: float,
    seed: int,
) -> xr.Dataset:
    """Run full and compressed networks by their reduced dynamics until they have converged.

    Args:
        dim: d.
        rank: r of the target, singular values evenly spaced in [1/2, 1].
        depths: L.
        init_scales: eps.
        learning_rate: eta.
        steps: most steps.
        rank_at: time eta t of the effective rank.
        threshold: a run has converged when ``||f - Phi||_F <= threshold ||Phi||_F``.
        seed: random seed.

    Returns:
        Over ``depth`` and ``init_scale``: times eta t of convergence of the full and of the
        compressed network (NaN if later than ``steps``); effective rank of the full product at the
        recorded time next to ``rank_at``; error ``||f - f_C||_F`` when the compressed network has
        converged, and its bound.
    """
    times = np.unique(np.rint(np.geomspace(1, steps, 400)).astype(int))
    names = ["distance", "distance_compressed", "effective", "error"]
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(names, ("time",))

    def run(init_scale, depth):
        return reduced_runs(
            init_scale, depth=depth, dim=dim, rank=rank, eta=learning_rate, times=times, seed=seed
        )

    points = lrdyn.product(depth=depths, init_scale=init_scales)
    found = lrdyn.sweep(run, points, shapes=("depth",), dims=dims, batched=True, lanes=64)
    at = learning_rate * times - rank_at
    _, full_time = _first(found["distance"] <= threshold, times, learning_rate)
    small, small_time = _first(found["distance_compressed"] <= threshold, times, learning_rate)
    return xr.Dataset(
        {
            "convergence_time": full_time,
            "convergence_time_compressed": small_time,
            "effective_rank": found["effective"].isel(time=int(np.argmin(abs(at)))),
            "error": found["error"].isel(time=small).where(small_time.notnull()),
            "error_bound": np.sqrt(dim - 2 * rank) * found["init_scale"] ** found["depth"],
        }
    )


def _first(
    reached: xr.DataArray, times: np.ndarray, learning_rate: float
) -> tuple[xr.DataArray, xr.DataArray]:
    index = reached.argmax("time")
    time = learning_rate * xr.DataArray(times, dims="time").isel(time=index)
    return index, time.where(reached.any("time"))


def reduced_runs(
    scales: jax.Array,
    *,
    depth: int,
    dim: int,
    rank: int,
    eta: float,
    times: np.ndarray,
    seed: int,
) -> Mapping[str, jax.Array]:
    """Distances to the target, effective rank and compression error of many runs.

    Args:
        scales: eps of each run.
        depth: L.
        dim: d.
        rank: r.
        eta: learning rate.
        times: recorded steps.
        seed: of the target and of the start.

    Returns:
        Arrays ``(run, time)``.
    """
    weights_key, target_key = jax.random.split(jax.random.key(seed))
    target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
    weights = lrdyn.orthogonal_layers(weights_key, (dim,) * (depth + 1), jnp.ones(depth))
    size, still = 2 * rank, dim - 2 * rank
    small = lrdyn.reduced_target(lrdyn.frame(weights, target, rank), target, size)

    def record(layers):
        product = lrdyn.end_to_end(layers)
        return jnp.linalg.norm(product - small), lrdyn.singular_values(product)

    eps = jnp.broadcast_to(scales[:, None], (len(scales), depth))
    runs = lrdyn.reduced_lanes(
        jnp.broadcast_to(small[None], (len(scales), size, size)),
        eps,
        jnp.full_like(scales, eta),
        jnp.zeros_like(scales),
        times,
        record=record,
    )
    inner, moving = runs.records
    bulk = jnp.abs(jnp.prod(jax.vmap(lambda e: lrdyn.rho(e, eta, 0.0, times))(eps), axis=2))
    every = jnp.concatenate(
        [moving, jnp.broadcast_to(bulk[:, :, None], (*bulk.shape, still))], axis=2
    )
    norm = jnp.linalg.norm(small)
    return {
        "distance": jnp.sqrt(inner**2 + still * bulk**2) / norm,
        "distance_compressed": inner / norm,
        "effective": lrdyn.effective_rank(every),
        "error": jnp.sqrt(1.0 * still) * bulk,
    }


COLORS = (plotting.BLUE, plotting.ORANGE, plotting.GREEN, plotting.PINK)
"""One for each depth."""


def layout(titles: Sequence[str], maps: int, below: int) -> tuple[Any, list[Any], list[Any]]:
    """Make a figure with a row of maps above a row of curves, each panel with its letter.

    Args:
        titles: of the maps, then of the curves.
        maps: number of maps.
        below: number of panels with curves.

    Returns:
        The figure, the axes of the maps and those of the curves.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(plotting.TEXT_WIDTH, 4.3), layout="constrained")
    rows: Any = figure.subfigures(2, 1, height_ratios=(1, 1.35))
    upper, lower = rows
    top, bottom = list(upper.subplots(1, maps, sharey=True)), list(lower.subplots(1, below))
    for letter, title, ax in zip("abcdefgh", titles, top + bottom, strict=False):
        ax.set_title(f"({letter}) {title}")
    return figure, top, bottom


def plot_maps(figure: Any, axes: Sequence[Any], ratio: xr.DataArray) -> None:
    """Draw residual / tolerance over depth and init scale, one panel for each rank.

    Args:
        figure: the figure.
        axes: one for each rank.
        ratio: values ``(rank, depth, init_scale)``.
    """
    from matplotlib.colors import LogNorm

    scales, depths = ratio["init_scale"].values, ratio["depth"].values
    images = []
    for ax, rank in zip(axes, ratio["rank"].values, strict=True):
        image = ax.imshow(
            ratio.sel(rank=rank).clip(min=1e-3).values, origin="lower", aspect="auto",
            cmap="cividis", norm=LogNorm(1e-3, 1.0),
        )  # fmt: skip
        images.append(image)
        ax.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        ax.set_yticks(range(len(depths)), [str(depth) for depth in depths])
        ax.set_xlabel(r"init scale $\varepsilon$")
    axes[0].set_ylabel("depth L")
    figure.colorbar(images[0], ax=list(axes), shrink=0.95, pad=0.02)


def plot_family(ax: Any, data: xr.DataArray, **look: Any) -> Any:
    """Draw one curve for each depth over the init scale.

    Args:
        ax: where to draw.
        data: values ``(depth, init_scale)``.
        **look: of the lines.

    Returns:
        ``ax``.
    """
    for color, depth in zip(COLORS, data["depth"].values, strict=True):
        ax.plot(data["init_scale"].values, data.sel(depth=depth).values, color=color, **look)
    ax.set(xscale="log", xlabel=r"init scale $\varepsilon$")
    ax.set_xlim(float(data["init_scale"].min()), float(data["init_scale"].max()))
    ax.set_xticks([0.1, 0.3, 1.0], ["0.1", "0.3", "1"])
    ax.minorticks_off()
    return ax


def depth_key(ax: Any, depths: Sequence[int], **place: Any) -> Any:
    """Explain the colours.

    Args:
        ax: where to draw.
        depths: the depths.
        **place: where the legend goes.

    Returns:
        ``ax``.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, lw=1.0, label=f"L = {depth}")
        for color, depth in zip(COLORS, depths, strict=False)
    ]
    ax.legend(handles=handles, **place)
    return ax
