"""Recompute a claim of each theorem from its newest run, without lrdyn: referee.py RESULTS."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np


def relative(case: dict, name: str, scale: float | np.ndarray | None = None) -> float:
    predicted, measured = sides = [case[f"{name}_{side}"] for side in ("predicted", "measured")]
    if scale is None:
        scale = np.max(np.abs(sides)) or 1.0
    return np.max(abs(predicted - measured) / scale)


CHECKS = {  # theorem: group, claim, its residual
    "theorem1": ("critical_points", "critical_loss", lambda c: relative(c, "critical_loss")),
    "theorem2": ("/", "rho", lambda c: relative(c, "rho", c["singular_values_measured"].max())),
    "corollary1": ("/", "error_identity", lambda c: relative(c, "error", c["scale"])),
    "completion": ("basis", "basis", lambda c: relative(c, "basis", 1.0)),
    "theorem3": ("/", "mask_identity", lambda c: relative(c, "mask_identity")),
    "theorem4": ("gradient_rank", "gradient_path", lambda c: relative(c, "gradient_path")),
    "galore": ("/", "optax_decay", lambda c: relative(c, "optax_decay", c["update_scale"])),
    "lora": ("/", "one_step", lambda c: relative(c, "one_step", c["step_scale"][:, None, None])),
}


def cases(group: h5py.Group):
    """Arrays of each point, without padding; points lie along the axes of longest_axis."""
    points = [dim[0].name.split("/")[-1] for dim in group["longest_axis"].dims]
    arrays = {}
    for name, array in ((n, a) for n, a in group.items() if isinstance(a, h5py.Dataset)):
        axes = [dim[0].name.split("/")[-1] for dim in array.dims if len(dim)]
        if axes[: len(points)] == points:
            arrays[name] = (array[()], axes[len(points) :])
    for place in np.ndindex(group["longest_axis"].shape):
        ends = {name[7:]: int(a[place]) for name, (a, _) in arrays.items() if name[:7] == "length_"}
        cut = {n: tuple(slice(ends.get(axis)) for axis in axes) for n, (_, axes) in arrays.items()}
        yield {n: np.asarray(a[place], float)[cut[n]] for n, (a, _) in arrays.items()}


def tolerance(group: h5py.Group, case: dict, claim: str) -> float:
    """8 eps (sqrt(size (1 + steps)) + steps / 2), times the condition of the run."""
    steps = json.loads(group.attrs["fixed"]).get(group.attrs["steps"], 1)
    rounding = np.sqrt(case["longest_axis"] * (1 + steps)) + steps / 2
    condition = json.loads(group.attrs["conditions"]).get(claim, "")
    return 8 * np.finfo(float).eps * rounding * case.get(condition, 1.0)


for theorem, (name, claim, residual) in CHECKS.items():
    verdicts = Path(sys.argv[1]).glob(f"{theorem}/*/verdict.json")
    newest = max(verdicts, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        print(f"{theorem} {claim}: no run in {sys.argv[1]}")
        continue
    verdict = json.loads(newest.read_text())
    (entry,) = [entry for entry in verdict["claims"] if entry["id"] == claim]
    with h5py.File(newest.with_name("results.nc")) as file:
        group = file[name]
        met = [c for c in cases(group) if all(v for n, v in c.items() if n.startswith("met_"))]
        met = [c for c in met if c.get(group.attrs["diverges"], -1) < 0]
        judged = [(residual(c), tolerance(group, c, claim)) for c in met]
        worst, limit = max(judged, key=lambda pair: pair[0] / pair[1])
    assert (len(met), worst <= limit) == (entry["cases"], entry["holds"])
    assert np.allclose((worst, limit), (entry["residual"], entry["tolerance"]), rtol=1e-12, atol=0)
    print(f"{theorem} {claim}: {worst:.3g} in {len(met)} cases, as the verdict says")
