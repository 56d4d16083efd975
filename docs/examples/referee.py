"""Recompute a claim of Theorem 2 from its newest run, without lrdyn: referee.py RESULTS."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

EPS = np.finfo(float).eps


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


def judged(case: dict, steps: int, condition: str) -> tuple[float, float]:
    """Residual of rho, over the largest singular value, and its tolerance.

    That is 8 eps (sqrt(size (1 + steps)) + steps / 2), times the condition of the run.
    """
    gap = np.max(abs(case["rho_predicted"] - case["rho_measured"]))
    rounding = np.sqrt(case["longest_axis"] * (1 + steps)) + steps / 2
    tolerance = 8 * EPS * rounding * case.get(condition, 1.0)
    return gap / case["singular_values_measured"].max(), tolerance


runs = Path(sys.argv[1]).glob("theorem2/*/verdict.json")
newest = max(runs, key=lambda path: path.stat().st_mtime)
(entry,) = (e for e in json.loads(newest.read_text())["claims"] if e["id"] == "rho")
with h5py.File(newest.with_name("results.nc")) as file:
    # The first scenario is the root of the file; the flag that counts its steps is not swept.
    steps = json.loads(file.attrs["fixed"])[file.attrs["steps"]]
    condition = json.loads(file.attrs["conditions"]).get("rho", "")
    met = [c for c in cases(file) if all(v for n, v in c.items() if n.startswith("met_"))]
    met = [case for case in met if case.get(file.attrs["diverges"], -1) < 0]
    found = [judged(case, steps, condition) for case in met]
residual, tolerance = max(found, key=lambda pair: pair[0] / pair[1])
assert (len(met), residual <= tolerance) == (entry["cases"], entry["holds"])
assert np.allclose(
    (residual, tolerance), (entry["residual"], entry["tolerance"]), rtol=1e-12, atol=0
)
print(f"rho: {residual:.3g} in {len(met)} cases, as the verdict says")
