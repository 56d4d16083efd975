"""The theorem on completion: its times, what it judges, and its figure."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from lrdyn.engine.verify import verify
from lrdyn.theorems.completion import COMPLETION, first_below
from lrdyn.theorems.completion.figures import plot_recovery
from tests import oracles


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        ([4.0, 2.0, 1.0], 3.0, 5.0),
        ([4.0, 2.0, 1.0], 2.0, 10.0),
        ([4.0, 2.0, 1.0], 1.5, 20.0),
        ([4.0, 2.0, 1.0], 0.5, 60.0),
        ([4.0, 2.0, 1.0], 4.0, 0.0),
        ([4.0, 5.0, 1.0], 4.5, 0.0),
        ([2.0, 2.0, 2.0], 1.0, 60.0),
    ],
)
def test_the_time_at_which_a_curve_first_falls(values, level, expected):
    found = first_below(np.array([0, 10, 30]), np.array(values), level)
    oracles.assert_close(found, expected, scale=60.0)


def test_too_few_measurements_are_not_judged(tmp_path, unchecked, capsys, monkeypatch):
    """Where the full network does not find the target there is nothing to be compared with."""
    monkeypatch.setenv("LRDYN_CACHE", "")
    settings = {flag.name: flag.quick for flag in COMPLETION.flags}
    settings |= {"observed": (0.05,), "dim": (12,), "steps": 600}
    bare = [dataclasses.replace(s, controls=()) for s in COMPLETION.scenarios]
    theorem = dataclasses.replace(COMPLETION, scenarios=tuple(bare))
    found = verify(theorem, settings, dtype="float32", seeds=(0,), thorough=False)
    held = {claim["id"]: claim["holds"] for claim in found.verdict["claims"]}
    assert (held["recovery"], held["recovered"], held["sensing_recovery"]) == (None,) * 3
    assert held["basis"] is True


def test_the_plot_shows_every_network():
    steps = np.array([0, 1, 2])
    names = ("full_error", "spectral_error", "basis_error", "fixed_error")
    curves = {n: (("seed", "dim", "step"), i + np.ones((2, 1, 3))) for i, n in enumerate(names)}
    entries = xr.Dataset(curves, {"step": steps})
    figure = plot_recovery({"/": entries, "/sensing": entries[list(names[:2])]})
    shown = [[np.asarray(line.get_ydata())[0] for line in ax.lines] for ax in figure.axes]
    assert shown == [[1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 2, 2]]
