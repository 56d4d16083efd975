"""Pictures of the pages that are no figures of the survey: ``python -m docs.pictures [RESULTS]``.

Those of ``draw-your-own.md`` are what its blocks draw. Those of Theorem 1 are drawn from numbers in
``pictures.nc``; with a folder of results these come from its newest run of the theorem. A watched
training and a diagnosis are computed, in a second each.
"""

import contextlib
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import lrdyn
from docs import gallery
from lrdyn.figures import animate, panels, plotting, style
from lrdyn.system import whole_files
from lrdyn.theorem1 import figures as of_theorem1
from lrdyn.verification.storing import files, results_file
from paper_figs import EXHIBITS

PAGE = Path(__file__).with_name("draw-your-own.md")
NUMBERS = Path(__file__).with_name("pictures.nc")
OF_THEOREM1 = {
    "landscape": ("/critical_points", of_theorem1.landscape_figure),
    "shrinkage": ("/", of_theorem1.shrinkage_figure),
    "basins": ("/basins", of_theorem1.basins_figure),
}
"""Name of a picture -> the group of results that it shows, and what draws it."""
PART = re.compile(
    r"^```python\n(.*?)^```$|!\[[^\]]*\]\(images/(\w+\.(?:png|webp))\)", re.DOTALL | re.M
)


@cache
def of_the_page() -> dict[str, Any]:
    """What the blocks of the page draw: each picture is the ``figure`` of the block above it.

    What moves is the content of the file that the block writes.
    """
    names: dict[str, Any] = {}
    shown = {}
    jax.devices()  # so that a page which sets up the process finds it as it is
    with whole_files.scratch_folder() as folder, contextlib.chdir(folder):
        for block, image in PART.findall(PAGE.read_text()):
            if image.endswith(".webp"):
                (written,) = folder.glob("*.webp")
                shown[image] = written.read_bytes()
            elif image:
                shown[image] = names["figure"]
            else:
                exec(compile(block, PAGE.name, "exec"), names)
    return shown


def watched() -> Any:
    """A deep factorisation of a target of rank 2 under the eyes of a recorder."""
    with jax.enable_x64(True):  # other random numbers are drawn in single precision
        return _watch_factorization().plot()


def _watch_factorization() -> Any:
    target_key, weight_key = jax.random.split(jax.random.key(0))
    target = lrdyn.low_rank_target(target_key, (24, 24), lrdyn.spaced_singular_values(2))
    layers = lrdyn.gaussian_layers(weight_key, (24,) * 4, jnp.full(3, 0.8 / 24**0.5))
    descend = jax.jit(jax.grad(lambda W: lrdyn.factorization_loss(W, target)))
    named = lambda W: {f"W_{place}": layer for place, layer in enumerate(W, 1)}  # noqa: E731
    recorder = lrdyn.watch(named(layers), k=2)
    for step in range(1, 121):
        layers = [W - 0.05 * slope for W, slope in zip(layers, descend(layers), strict=True)]
        if step % 10 == 0:
            recorder(named(layers), step)
    return recorder


DIRECTIONS = {
    "self_attn.q_proj": (96, 96, 6),
    "self_attn.v_proj": (96, 96, 3),
    "mlp.up_proj": (192, 96, 12),
    "mlp.down_proj": (96, 192, 8),
}
"""Kind of matrices -> rows, columns, and the number of directions of its made-up update."""


def diagnosed() -> Any:
    """Two made-up checkpoints of six layers, whose updates are some directions and noise."""
    rng = np.random.default_rng(0)
    before, after = {}, {}
    for layer in range(6):
        for kind, (rows, columns, count) in DIRECTIONS.items():
            name = f"model.layers.{layer}.{kind}.weight"
            before[name] = (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)
            signal = rng.standard_normal((rows, count)) @ rng.standard_normal((count, columns))
            update = 0.01 * signal + 0.003 * rng.standard_normal((rows, columns))
            after[name] = before[name] + update.astype(np.float32)
    return lrdyn.diagnose(before, after).plot()


def of_theorem(name: str) -> Any:
    """A picture of Theorem 1, from the numbers that are kept."""
    group, draw = OF_THEOREM1[name]
    return draw({group: results_file.load(NUMBERS)[f"/{name}"]})


def spectrum_over_steps() -> bytes:
    """The spectrum of the first layer in Figure 3, from its committed numbers."""
    exhibit = next(exhibit for exhibit in EXHIBITS if exhibit.name == "fig03")
    dataset = gallery.numbers(exhibit)
    predicted, measured = (
        np.sort(dataset[f"sigma_{side}"].values)[:, ::-1] for side in ("predicted", "measured")
    )
    index, moving = dataset.index.values, int(dataset.attrs["growing"])
    low, high = predicted.min(), predicted.max()
    with style(width=4.5):
        figure, (ax,) = panels(["step t = 00"], height=2.8)
    # The bulk stands between what grows and what shrinks: two lines are its edges.
    first, last = moving, moving + int(dataset.attrs["bulk"]) - 1
    ax.axvspan(first + 0.5, last + 1.5, color="#F2F2F2", lw=0, zorder=0)
    (line,) = ax.plot(index, predicted[-1], color=plotting.BLUE, lw=1.0)
    (marks,) = ax.plot(index, measured[-1], mec=plotting.BLUE, **plotting.OPEN)
    ax.set(
        xlabel="index i",
        xlim=(0.2, len(index) + 0.8),
        xticks=(1, *range(5, len(index) + 1, 5)),
        ylabel=r"$\sigma_i(W_1(t))$",
        ylim=(low - 0.04 * (high - low), high + 0.06 * (high - low)),
    )
    ax.text((first + last) / 2 + 1, high, f"bulk, {dataset.attrs['bulk']} values", ha="center")
    entries = [
        plotting.entry("Theorem 2", plotting.BLUE),
        plotting.entry("trained", **plotting.OPEN | {"mec": plotting.BLUE}),
    ]
    plotting.common_key(figure, entries)

    def update(step: int) -> None:
        line.set_ydata(predicted[step])
        marks.set_ydata(measured[step])
        ax.set_title(f"step t = {dataset.step.values[step]}")

    with whole_files.scratch_folder() as folder:
        steps = range(dataset.sizes["step"])
        return animate(figure, update, steps, folder / "spectrum.webp").read_bytes()


def shown_animations() -> dict[str, Callable[[], bytes]]:
    """Name of a file of images -> what makes it."""
    of_page = [name for name in names_on_the_page() if name.endswith(".webp")]
    drawn = {name: (lambda name=name: of_the_page()[name]) for name in of_page}
    return drawn | {"theorem2_spectrum.webp": spectrum_over_steps}


def shown_pictures() -> dict[str, Any]:
    """Name of an image without suffix -> what draws it."""
    of_page = [name for name in names_on_the_page() if name.endswith(".png")]
    drawn = {name[:-4]: (lambda name=name: of_the_page()[name]) for name in of_page}
    drawn |= {name: (lambda name=name: of_theorem(name)) for name in OF_THEOREM1}
    return drawn | {"watch": watched, "diagnose": diagnosed}


def names_on_the_page() -> list[str]:
    """Files of its images, without drawing them."""
    return [image for _, image in PART.findall(PAGE.read_text()) if image]


def keep(folder: Path) -> None:
    """Take the numbers from the newest run of Theorem 1 in a folder of results."""
    runs = sorted(folder.glob(f"theorem1/*/{results_file.NAME}"), key=lambda p: p.stat().st_mtime)
    groups = results_file.load(runs[-1])
    kept: dict[str, xr.Dataset] = {}
    for name, (group, _) in OF_THEOREM1.items():
        # A picture of some points shows no matrices.
        small = [str(v) for v, array in groups[group].data_vars.items() if array.size <= 500]
        kept[f"/{name}"] = groups[group][small].drop_attrs()
    files.write_netcdf(NUMBERS, kept)


def draw() -> None:
    """Draw all of them."""
    for name, figure in shown_pictures().items():
        gallery.save(figure(), name)
    for name, content in shown_animations().items():
        (gallery.IMAGES / name).write_bytes(content())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        keep(Path(sys.argv[1]))
    draw()
