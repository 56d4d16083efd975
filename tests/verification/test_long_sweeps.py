"""Sweeps of more points than can be listed: described points, parts by time, reduced results."""

import sys

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn.verification.running import work
from lrdyn.verification.running.reductions import Histogram, Quantiles, Worst
from tests.runs import Told


def wave(x, n):
    return {"wave": jnp.sin(x * jnp.arange(n)), "level": jnp.where(x == 7, jnp.nan, x % 13)}


POINTS = lr.product(x=range(1000), n=[3])
KEPT = {
    "top": Worst("level", 4),
    "waves": Quantiles("wave", (0.0, 0.1, 0.5, 1.0)),
    "levels": Histogram("level", (2.0, 4.0, 6.5, 12.0)),
}


def swept(**options):
    return lr.sweep(wave, POINTS, shapes=("n",), lanes=2, **options)


@pytest.fixture
def long(monkeypatch):
    """Programs of more than four parts are cut anew, at any speed into four more."""
    monkeypatch.setattr(work, "MANY", 4)
    monkeypatch.setattr(work, "SECONDS", 1e6)


# Points ------------------------------------------------------------------------------------------


def test_a_product_of_many_points_holds_its_axes_alone():
    points = lr.product(a=np.arange(10**5), b=np.arange(10**5), c=[1.0, 2.0])
    assert points.size == 2 * 10**10
    assert sum(sys.getsizeof(values) for values in points.axes.values()) < 2 * 10**6
    assert points.point(2 * 10**10 - 2) == {"a": 99999, "b": 99999, "c": 1.0}
    places = [0, 1, 2, 200_001]
    assert points.column("b")[places].tolist() == [0, 0, 1, 0]
    assert points.column("a")[places].tolist() == [0, 0, 0, 1]


def test_the_points_of_a_shape_are_those_that_have_it():
    """Equal values of an axis are one shape, in the order in which they come first."""
    points = lr.zipped(n=[3, 2, 3, 2, 2], x=range(5))
    groups = work._group_by_shape(points, ("n",))
    assert [(shape, found.tolist()) for shape, found in groups.items()] == [
        ((("n", 3),), [0, 2]),
        ((("n", 2),), [1, 3, 4]),
    ]
    grid = work._group_by_shape(lr.product(a=[1, 2], x=range(2), b=[5, 5]), ("a", "b"))
    assert [found.tolist() for found in grid.values()] == [[0, 1, 2, 3], [4, 5, 6, 7]]


# Parts by time -----------------------------------------------------------------------------------


def test_a_long_sweep_has_fewer_parts_and_the_same_results(long, tmp_path):
    told = Told()
    found = swept(store=tmp_path, progress=told)
    assert found["level"].values[:, 0][[0, 14]].tolist() == [0.0, 1.0]
    np.testing.assert_allclose(found["wave"].values[:, 0, 2], np.sin(2.0 * np.arange(1000)))
    parts = sorted(tmp_path.glob("*.npz"))
    chunk = 32 * 2  # points of a part before
    assert len(parts) < -(-1000 // chunk)
    assert len(parts) == 3 + 4 + 1  # tried, cut anew, and how they were cut


def test_a_long_sweep_that_was_killed_is_cut_as_before(long, tmp_path, monkeypatch):
    whole = swept(store=tmp_path)
    names = {path.name for path in tmp_path.glob("*.npz")}
    for path in sorted(tmp_path.glob("*.npz"))[-2:]:
        path.unlink()
    monkeypatch.setattr(work, "SECONDS", 1e-9)  # another speed, which nobody asks for again
    again = swept(store=tmp_path)
    assert again.identical(whole)
    assert {path.name for path in tmp_path.glob("*.npz")} >= names - {"0-"}


def test_parts_are_cut_by_what_they_take():
    assert work._points_per_part(64, [0.5, 0.25]) == work.SECONDS * 4 * 64
    assert work._points_per_part(64, []) == 64


def test_a_sweep_of_few_parts_is_left_alone(tmp_path):
    swept(store=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == -(-1000 // 64)


# What is kept ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything():
    return swept()


def test_the_worst_points_are_those_of_all(everything):
    found = swept(reduce=KEPT)
    levels = everything["level"].values.ravel()
    order = np.lexsort((np.arange(1000), -np.nan_to_num(levels, nan=-np.inf)))[:4]
    assert found["top_point"].values.tolist() == order.tolist()
    assert found["top"].values.tolist() == levels[order].tolist()
    assert found["top_x"].values.tolist() == order.tolist()
    assert found["top_n"].values.tolist() == [3] * 4
    assert found["top_nan"] == 1


def test_quantiles_are_those_of_all_entries_within_a_share(everything):
    found = swept(reduce=KEPT)["waves"]
    values = np.sort(everything["wave"].values.ravel())
    exact = values[np.floor(found["waves_q"].values * (len(values) - 1)).astype(int)]
    np.testing.assert_allclose(found.values, exact, rtol=0.01, atol=1e-12)
    assert found.values[[0, -1]].tolist() == values[[0, -1]].tolist()


def test_a_histogram_counts_every_entry_once(everything):
    found = swept(reduce=KEPT)
    levels = everything["level"].values
    there = levels[np.isfinite(levels)]
    assert found["levels"].values.tolist() == np.histogram(there, KEPT["levels"].edges)[0].tolist()
    rest = [int(found[f"levels_{name}"]) for name in ("below", "above", "nan")]
    assert rest == [int((there < 2).sum()), int((there > 12).sum()), 1]
    assert int(found["levels"].sum()) + sum(rest) == 1000


def test_what_is_kept_depends_on_no_cut_and_on_no_kill(long, tmp_path):
    found = swept(reduce=KEPT, store=tmp_path)
    assert found.identical(lr.sweep(wave, POINTS, shapes=("n",), lanes=16, reduce=KEPT))
    sorted(tmp_path.glob("*.npz"))[2].unlink()
    told = Told()
    assert swept(reduce=KEPT, store=tmp_path, progress=told).identical(found)


def test_parts_that_were_kept_are_not_taken_for_reduced_ones(tmp_path):
    whole = swept(store=tmp_path)
    assert "top" in swept(store=tmp_path, reduce=KEPT)
    assert "top" not in swept(store=tmp_path)
    two = {"top": Worst("level", 2)}
    assert swept(store=tmp_path, reduce=two).sizes == {"top_place": 2}
    assert swept(store=tmp_path).identical(whole)


@hypothesis.given(st.lists(st.floats(width=64), min_size=1, max_size=40), st.integers(0, 40))
def test_quantiles_of_any_numbers(numbers, cut):
    kept = Quantiles("y", (0.0, 0.3, 0.5, 1.0), within=0.05)
    one, other = (kept.summarise(np.array(part)) for part in (numbers[:cut], numbers[cut:]))
    joined = kept.merge(one, other)
    for name, value in kept.merge(other, one).items():
        np.testing.assert_array_equal(value, joined[name])
    found = kept.label("y", joined, POINTS)["y"][1]
    there = np.sort([x for x in numbers if not np.isnan(x)])
    assert joined["nan"] == len(numbers) - len(there)
    if not len(there):
        assert np.isnan(found).all()
        return
    exact = there[np.floor(np.array(kept.at) * (len(there) - 1)).astype(int)]
    finite = np.isfinite(exact)
    normal = np.abs(exact[finite]) >= np.finfo(float).tiny
    error = np.abs(found[finite] - exact[finite])
    assert np.all(error[normal] <= 0.0500001 * np.abs(exact[finite][normal]))
    assert np.all(error[~normal] <= 2 * np.finfo(float).tiny)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Worst("y", 0), "count: got 0, wanted at least 1"),
        (lambda: Quantiles("y", (0.5, 1.5)), r"at: got \[0.5, 1.5\], wanted shares from 0 to 1"),
        (lambda: Quantiles("y", within=0.0), "within: got 0.0, wanted a number between 0 and 1"),
        (lambda: Histogram("y", (1.0,)), r"edges: got \[1.0\], wanted two or more that increase"),
        (lambda: Histogram("y", (1.0, 1.0)), "wanted two or more that increase"),
        (
            lambda: swept(reduce={"top": Worst("height")}),
            r"reduce: got 'height' for 'top', wanted a result out of \['level', 'wave'\]",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
