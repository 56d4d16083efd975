"""The recorder of a loop of one's own, against NumPy on updates of known spectrum."""

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import lrdyn
from lrdyn.diagnosis import reading, spectrum, theorem_2
from lrdyn.diagnosis.on_device import OnDevice
from lrdyn.diagnosis.watcher import SIDES, principal_angles
from tests.runs import python

RNG = np.random.default_rng(0)
FALLING = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
K = 3


def orthonormal(rows, columns):
    return np.linalg.qr(RNG.standard_normal((rows, columns)))[0]


def made(m, n, values=FALLING):
    """A matrix with these singular values, and its directions."""
    left, right = orthonormal(m, len(values)), orthonormal(n, len(values))
    return left * values @ right.T, left, right


def by_hand(values):
    """Effective rank, stable rank and share of the first K from all singular values."""
    shares = values / values.sum()
    shares = shares[shares > 0]
    squares = values**2
    entropy = -np.sum(shares * np.log(shares))
    return np.exp(entropy), squares.sum() / squares[0], squares[:K].sum() / squares.sum()


@pytest.fixture(scope="module", params=["exact", "wide", "tall"])
def seen(request):
    """A recorder that saw an update of rank 6 and the same one turned, in float32 and float64."""
    shape = {"exact": (20, 30), "wide": (120, 260), "tall": (260, 120)}[request.param]
    update, left, _ = made(*shape)
    start = RNG.standard_normal(shape)
    angle = 0.3
    other = np.linalg.qr(np.column_stack([left, RNG.standard_normal(shape[0])]))[0][:, -1]
    turn = np.outer(other * np.sin(angle) + left[:, 0] * (np.cos(angle) - 1), left[:, 0])
    states = [start, start + update, start + (np.eye(shape[0]) + turn) @ update]
    recorders = {}
    for dtype in ("float64", "float32"):
        first, *later = (W.astype(dtype) for W in states)
        recorders[dtype] = lrdyn.watch({"layer": [first]}, k=K)
        for step, W in enumerate(later, 1):
            recorders[dtype]({"layer": [W]}, 10 * step)
    return request.param, recorders


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_update_of_known_spectrum(seen, dtype):
    kind, recorders = seen
    found = recorders[dtype].dataset.sel(matrix="layer.0", step=10)
    # W is larger than its update, and rounded before they are subtracted.
    scale = 8 * lrdyn.tolerance("identity", dtype, size=260)
    assert found["rank"] == len(FALLING)
    assert found["seen"] == (20 if kind == "exact" else K + spectrum.OVERSAMPLING)
    np.testing.assert_allclose(found["singular_values"], FALLING[:K], rtol=scale)
    effective, stable, energy = by_hand(FALLING)
    np.testing.assert_allclose(found["stable_rank"], stable, rtol=scale)
    np.testing.assert_allclose(found["energy"], energy, rtol=scale)
    np.testing.assert_allclose(found["norm"], np.linalg.norm(FALLING), rtol=scale)
    # Each of 120 values that are 0 is rounded, to eps or so of the sum.
    assert found["effective_rank_least"] <= effective * (1 + 120 * scale)
    assert found["effective_rank"] >= effective * (1 - scale)
    np.testing.assert_allclose(found["effective_rank"], effective, rtol=120 * scale)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_principal_angles(seen, dtype):
    """The first left direction turned by 0.3, and the right ones stayed."""
    _, recorders = seen
    found = recorders[dtype].dataset.sel(matrix="layer.0")
    scale = 8 * lrdyn.tolerance("identity", dtype, size=260)
    assert found["angle_to_last"].sel(step=10).isnull().all()
    np.testing.assert_allclose(found["angle_to_first"].sel(step=10), 0, atol=10 * scale)
    for name in ("angle_to_last", "angle_to_first"):
        left, right = found[name].sel(step=20).values
        # Not exactly 0.3: the turned matrix has other singular values, and the same directions.
        np.testing.assert_allclose(left, [0, 0, 0.3], atol=10 * scale)
        np.testing.assert_allclose(right, 0, atol=10 * scale)


@pytest.mark.parametrize("distance", [1.0, 1e-9])
@pytest.mark.parametrize(("a", "b"), [(3, 3), (2, 4), (4, 1)])
def test_principal_angles_are_those_of_scipy(a, b, distance):
    """Small ones too, which a cosine does not show."""
    both = orthonormal(9, 4)
    one, other = both[:, :a], both[:, :b] + distance * RNG.standard_normal((9, b))
    other = np.linalg.qr(other)[0]
    found = principal_angles(one, other)
    scale = lrdyn.tolerance("identity", "float64", size=9)
    np.testing.assert_allclose(found, scipy.linalg.subspace_angles(one, other)[::-1], atol=scale)
    assert found[0] > 1e-11


def test_a_gaussian_update_has_full_rank():
    """The control: not low-rank by any of the measures."""
    recorder = lrdyn.watch({"small": np.zeros((20, 60)), "large": np.zeros((120, 400))}, k=K)
    updates = {"small": RNG.standard_normal((20, 60)), "large": RNG.standard_normal((120, 400))}
    recorder(updates, 1)
    found = recorder.dataset.sel(step=1)
    for name, update in updates.items():
        values = np.linalg.svd(update, compute_uv=False)
        effective, stable, energy = by_hand(values)
        one = found.sel(matrix=name)
        low, high = float(one["effective_rank_least"]), float(one["effective_rank"])
        # A sketch sees less than the first values: 0.9 of them in a flat spectrum.
        slack = 0.25 if name == "large" else 1e-12
        assert low * (1 - slack) <= effective <= high * (1 + slack)
        assert high > 0.9 * len(values)
        np.testing.assert_allclose(one["stable_rank"], stable, rtol=slack)
        np.testing.assert_allclose(one["energy"], energy, rtol=slack)
        assert one["rank"] == one["seen"] == (20 if name == "small" else K + 10)
    assert "13+" in repr(recorder)


@given(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=3, max_size=40), st.integers(1, 39)
)
def test_the_effective_rank_lies_between_its_bounds(values, seen):
    values = np.sort(np.array([1.0, *values]))[::-1]
    seen = min(seen, len(values) - 1)
    rest = values[seen:]
    padded = np.append(values[:seen], np.full(len(rest), np.sqrt(np.mean(rest**2))))
    effective, *_ = by_hand(values)
    most, *_ = by_hand(padded)
    least = spectrum.least_effective_rank(padded, seen)
    rounding = 1 + lrdyn.tolerance("bound", "float64", size=40)
    assert least <= effective * rounding
    assert effective <= most * rounding


def test_the_bounds_are_attained():
    flat = np.array([3.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    padded = np.append(flat[:2], np.full(4, np.sqrt(0.5)))
    assert spectrum.least_effective_rank(padded, 2) == pytest.approx(by_hand(flat)[0])
    assert spectrum.least_effective_rank(padded, 2) < 0.9 * by_hand(padded)[0]


class OnlyDLPack:
    """As an array of another framework."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **how):
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class OnlyArray:
    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array


class NeedsDetach(OnlyArray):
    """As a parameter of torch, which gives nothing away beside its gradient."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("call detach()")

    def detach(self):
        return OnlyArray(self._array)


BFLOAT16 = jnp.asarray(np.arange(6.0).reshape(2, 3), jnp.bfloat16)
FRAMEWORKS = {
    "numpy": np.asarray,
    "jax": jnp.asarray,
    "dlpack": OnlyDLPack,
    "array": OnlyArray,
    "detach": NeedsDetach,
}


@pytest.mark.parametrize("wrapped", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_arrays_of_any_framework(wrapped):
    start, update = RNG.standard_normal((6, 5)), made(6, 5, FALLING[:2])[0]
    recorder = lrdyn.watch({"W": wrapped(start), "name": "net", "f": jnp.tanh, "n": 3}, k=2)
    recorder({"W": wrapped(start + update)}, 1)
    assert recorder.dataset["rank"].values.tolist() == [[2]]
    np.testing.assert_allclose(recorder.dataset["singular_values"][0, 0], FALLING[:2])


@pytest.mark.parametrize("wrapped", [np.asarray, OnlyDLPack, OnlyArray])
def test_bfloat16_of_any_framework(wrapped):
    """NumPy has no bfloat16 of its own, and refuses it from DLPack."""
    given = BFLOAT16 if wrapped is OnlyDLPack else np.asarray(BFLOAT16)
    found = reading.to_numpy("W", wrapped(given))
    assert found.dtype.name == "bfloat16"
    np.testing.assert_array_equal(reading.widen(found), np.arange(6.0).reshape(2, 3))


def test_what_cannot_be_read_is_named():
    class Elsewhere:
        def __dlpack__(self, **how):
            raise BufferError("on another device")

    with pytest.raises(ValueError, match=r"params0\['W'\]: got a Elsewhere that cannot be read"):
        lrdyn.watch({"W": Elsewhere()})


def test_parameters_that_are_trained_in_place():
    W = RNG.standard_normal((6, 5))
    recorder = lrdyn.watch({"W": W})
    W += np.outer(np.ones(6), np.ones(5))
    recorder({"W": W}, 1)
    assert recorder.dataset["rank"].values.tolist() == [[1]]


def test_rounding_of_half_precision_is_no_rank():
    """An update of rank 3 in bfloat16: its rounding has full rank, and is not counted."""
    start = RNG.standard_normal((40, 30))
    update = 0.5 * made(40, 30, np.array([20.0, 18.0, 16.0]))[0]
    half = [jnp.asarray(W, jnp.bfloat16) for W in (start, start + update)]
    recorder = lrdyn.watch({"W": half[0]}, k=3)
    recorder({"W": half[1]}, 1)
    assert recorder.dataset["rank"].values.tolist() == [[3]]
    # The same numbers, said to be exact.
    exact = lrdyn.watch({"W": np.asarray(half[0], np.float32)}, k=3)
    exact({"W": np.asarray(half[1], np.float32)}, 1)
    assert exact.dataset["rank"].values.tolist() == [[30]]


def test_no_update_and_no_numbers():
    start = RNG.standard_normal((6, 5))
    recorder = lrdyn.watch({"W": start}, k=2)
    recorder({"W": start}, 0)
    recorder({"W": start + made(6, 5, FALLING[:2])[0]}, 1)
    recorder({"W": np.full((6, 5), np.nan)}, 2)
    recorder({"W": start + made(6, 5, FALLING[:2])[0]}, 3)
    found = recorder.dataset.squeeze("matrix")
    assert found["rank"].values.tolist() == [0, 2, -1, 2]
    assert found["norm"].values[0] == 0
    assert found["effective_rank"].isnull().values.tolist() == [True, False, True, False]
    angles = found["angle_to_last"].sel(side="left")
    assert angles.isnull().all("direction").values.tolist() == [True, True, True, False]
    # The call before with an update is that of step 1.
    np.testing.assert_array_equal(angles[3], found["angle_to_first"].sel(side="left")[3])
    assert float(angles[3].max()) > 0.1


def test_the_dataset_grows_and_is_drawn():
    start = {"a": np.zeros((6, 5)), "b": np.zeros((4, 7)), "bias": np.zeros(4)}
    recorder = lrdyn.watch(start, "[ab]", k=2)
    assert recorder.dataset.sizes == {"step": 0, "matrix": 2, "side": 2, "direction": 2}
    assert "not called yet" in repr(recorder)
    for step in (1, 5, 9):
        moved = {name: W + RNG.standard_normal(W.shape) for name, W in start.items()}
        recorder(moved, step)
        assert recorder.dataset["step"].values[-1] == step
    found = recorder.dataset
    assert found["matrix"].values.tolist() == ["a", "b"]
    assert found["columns"].values.tolist() == [5, 7]
    assert all(found[name].attrs["long_name"] for name in found.data_vars)
    assert "<table>" in recorder._repr_html_()
    figure = recorder.plot()
    for ax, name in zip(figure.axes, ("effective_rank", "energy"), strict=False):
        for line, curve in zip(ax.lines, found[name].values.T, strict=False):
            assert list(np.asarray(line.get_xdata())) == [1, 5, 9]
            np.testing.assert_array_equal(
                line.get_ydata(), curve if name == "effective_rank" else 1 - curve
            )


THREE: Any = 3
HALF: Any = 1.5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda W: lrdyn.watch({"W": W}, "V"), "select: got 'V', wanted a pattern of some"),
        (lambda W: lrdyn.watch({"W": W}, THREE), "select: got 3, wanted a glob"),
        (lambda W: lrdyn.watch({"b": W[0]}), "select: got .* matrices among none, since there are"),
        (lambda W: lrdyn.watch("text"), "select: got .* among none, since there are"),
        (lambda W: lrdyn.watch({"W": W}, k=0), "k: got 0, wanted at least 1"),
        (lambda W: lrdyn.watch({"W": W}, k=HALF), "k: got 1.5, wanted an integer"),
        (lambda W: lrdyn.watch({"W": W})({"V": W}, 1), r"params\['W'\]: got no such array"),
        (lambda W: lrdyn.watch({"W": W})({"W": W[:2]}, 1), r"params\['W'\]: got .*\(2, 3\)"),
        (lambda W: lrdyn.watch({"W": W})({"W": W > 0}, 1), r"params\['W'\]: got bool"),
        (lambda W: lrdyn.watch({"W": W})({"W": W}, -1), "step: got -1, wanted"),
        (lambda W: lrdyn.watch({"W": W})({"W": W}, HALF), "step: got 1.5, wanted an integer"),
        (lambda W: jax.jit(lrdyn.watch)({"W": W}), r"params0\['W'\]: got a traced array"),
    ],
)
def test_wrong_calls_are_named(call, said, unchecked):
    with pytest.raises(ValueError, match=said):
        call(np.ones((4, 3)))


def test_steps_increase(unchecked):
    recorder = lrdyn.watch({"W": np.zeros((4, 3))})
    recorder({"W": np.ones((4, 3))}, 5)
    with pytest.raises(ValueError, match="step: got 5, wanted at least 6"):
        recorder({"W": np.ones((4, 3))}, 5)


def test_nothing_heavy_is_imported():
    source = (
        "import sys, lrdyn; lrdyn.watch, lrdyn.diagnose\n"
        "heavy = ('xarray', 'matplotlib', 'safetensors', 'scipy', 'dask', 'distributed')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = python("-c", source)
    assert done.stdout.strip() == "[]", done.stderr
    assert "xarray" in sys.modules


def deep_linear(scale, rate, decay, steps, k, r=2, d=24, depth=3):
    """A recorder of gradient descent from an orthogonal start, and rho / eps - 1 at its calls."""
    keys = jax.random.split(jax.random.key(3))
    scales = jnp.full(depth, scale)
    weights = jnp.stack(lrdyn.orthogonal_layers(keys[0], [d] * (depth + 1), scales))
    target = lrdyn.low_rank_target(keys[1], (d, d), jnp.array([3.0, 2.0]))
    recorder = lrdyn.watch(list(weights), k=k)

    def loss(weights):
        product = weights[2] @ weights[1] @ weights[0]
        return jnp.sum((product - target) ** 2) / 2 + decay * jnp.sum(weights**2) / 2

    slope = jax.jit(jax.grad(loss))
    for step in range(1, steps + 1):
        weights = weights - rate * slope(weights)
        if 2 * step >= steps:
            recorder(list(weights), step)
    rho = lrdyn.rho(scales, rate, decay, jnp.asarray(recorder.dataset["step"].values))
    return recorder, np.asarray(rho) / scale - 1


def test_theorem_2_of_its_own_network():
    """Behind 2r directions each layer moves by rho / eps - 1 of itself, and the rest stays."""
    recorder, drift = deep_linear(0.3, 0.1, 0.0, 60, k=4)
    found = recorder.dataset
    close = 100 * lrdyn.tolerance("identity", "float64", size=24)
    np.testing.assert_allclose(found["bulk_drift"], drift, rtol=0, atol=close)
    np.testing.assert_allclose(found["bulk_along_start"], 1, atol=close)
    np.testing.assert_allclose(found["angle_to_first"], 0, atol=close)
    assert drift.max() < -0.02
    assert "energy of 3, angle of 3, drift of 3" in " ".join(repr(recorder).split())


def test_with_fewer_directions_the_rest_is_no_multiple_of_the_start():
    recorder, _ = deep_linear(0.3, 0.1, 0.0, 60, k=2)
    assert (recorder.dataset["bulk_along_start"] < 0.99).all()


def test_a_bulk_that_moves_most_takes_places_among_the_first():
    """Directions of the network's own are then behind it: the rest is nearly a multiple."""
    recorder, drift = deep_linear(1.0, 0.05, 0.01, 20, k=4)
    found = recorder.dataset
    assert drift.min() < -0.3
    np.testing.assert_allclose(found["bulk_drift"], drift, atol=0.01)
    along = found["bulk_along_start"]
    assert ((along > 0.9) & (along < 1 - 1e-6)).all()


def test_noise_has_what_chance_gives():
    """The control: updates that know nothing of the start."""
    rng = np.random.default_rng(0)  # its own: the draws depend on no test that ran before
    shapes = {"square": (60, 60), "wide": (50, 300), "large": (300, 200)}
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    recorder = lrdyn.watch(start, k=K)
    for step in range(1, 41):
        recorder({n: W + rng.standard_normal(W.shape) for n, W in start.items()}, step)
    found = recorder.dataset
    assert found["bulk_drift_chance"].min() > 0
    beyond = np.abs(found["bulk_drift"]) > found["bulk_drift_chance"]
    assert beyond.mean() < 0.1  # 2.5 % of either sign, of 120
    # So it is 2.24 standard deviations of a normal law.
    spread = float(np.std(found["bulk_drift"] / found["bulk_drift_chance"]))
    assert 0.36 < spread < 0.54
    np.testing.assert_allclose(
        found["bulk_along_start"].mean("step"), found["bulk_along_start_chance"][0], rtol=0.9
    )
    # The range finder sees a little less of a flat spectrum.
    np.testing.assert_allclose(found["energy"].mean("step"), found["energy_chance"], rtol=0.15)
    later = found.isel(step=slice(1, None))
    for side in ("left", "right"):
        seen, usual = (later[x].sel(side=side) for x in ("angle_to_first", "angle_chance"))
        for name, shape in shapes.items():
            law = theorem_2.angle_chance(shape[SIDES.index(side)], K)
            # Of a mean of 39 independent spaces and of one of 40 draws, from the band of 95 %.
            error = (law.high - law.low) / 3.92 * math.sqrt(1 / 39 + 1 / theorem_2.DRAWS)
            apart = (seen.mean("step") - usual.mean("step")).sel(matrix=name)
            assert (abs(apart) < 4 * error).all()  # of 6 K normal numbers one in 900 seeds
    assert "energy of 0, angle of 0" in " ".join(repr(recorder).split())


def test_what_lies_behind_is_rounding_where_nothing_else_does():
    start, update = RNG.standard_normal((30, 20)), made(30, 20, FALLING[:2])[0]
    recorder = lrdyn.watch({"W": start, "from 0": np.zeros((30, 20))}, k=K)
    recorder({"W": start + update, "from 0": update}, 1)
    found = recorder.dataset.sel(step=1)
    assert found["bulk_along_start"].isnull().all()
    assert abs(float(found["bulk_drift"].sel(matrix="W"))) < 1e-14
    assert found["bulk_drift"].sel(matrix="from 0").isnull()
    rows = repr(recorder).splitlines()
    assert [row.split()[-3:] for row in rows[5:7]] == [["-", "-", "-"]] * 2


def test_the_figure_shows_chance():
    start = {"a": RNG.standard_normal((20, 30)), "b": RNG.standard_normal((12, 40))}
    recorder = lrdyn.watch(start, k=K)
    for step in (1, 2, 3):
        recorder({n: W + RNG.standard_normal(W.shape) for n, W in start.items()}, step)
    found, axes = recorder.dataset, recorder.plot().axes
    lines = [[np.asarray(line.get_ydata()) for line in ax.lines] for ax in axes]
    for place, name in enumerate(start):
        one = found.sel(matrix=name)
        np.testing.assert_allclose(lines[1][2 + place], 1 - float(one["energy_chance"]))
        angles = np.degrees(one["angle_chance"].mean(("side", "direction")))
        np.testing.assert_allclose(lines[3][2 + place][1:], angles[1:])
        shaded = np.asarray(axes[2].collections[place].get_paths()[0].vertices)[:, 1]
        np.testing.assert_allclose(shaded.max(), one["bulk_drift_chance"].max())
    assert np.isnan(lines[3][0][0])  # the first call, to itself


def test_scalars_are_the_last_row_of_the_dataset_as_flat_floats(seen):
    _, recorders = seen
    recorder = recorders["float64"]
    scalars, last = recorder.scalars(), recorder.dataset.isel(step=-1, matrix=0)
    name = str(last["matrix"].item())
    assert all(type(value) is float and math.isfinite(value) for value in scalars.values())
    for field in ("norm", "rank", "effective_rank", "stable_rank", "energy", "bulk_drift"):
        assert scalars[f"{name}/{field}"] == last[field].item()
    for field in ("angle_to_last", "angle_to_first"):
        np.testing.assert_allclose(scalars[f"{name}/{field}"], np.nanmean(last[field].values))
    largest = last["singular_values"].values[0]
    assert scalars[f"{name}/largest_singular_value"] == largest


def test_what_is_not_known_is_not_among_the_scalars():
    recorder = lrdyn.watch({"W": np.eye(4)}, k=1)
    with pytest.raises(ValueError, match="recorder: got no call yet, wanted"):
        recorder.scalars()
    recorder({"W": np.eye(4) * 2}, 1)
    assert "W/angle_to_last" not in recorder.scalars()
    recorder({"W": np.full((4, 4), np.nan)}, 2)
    assert recorder.scalars()["W/rank"] == -1
    assert "W/norm" not in recorder.scalars()


# On a device -------------------------------------------------------------------------------------


def as_torch(array):
    torch = pytest.importorskip("torch")
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return torch.tensor(np.array(array, np.float32), dtype=kinds[array.dtype.name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("placed", [jnp.asarray, as_torch], ids=["jax", "torch"])
def test_a_matrix_that_stays_on_its_device_is_measured_as_on_the_cpu(placed, dtype, monkeypatch):
    """Small matrices, those that do not fit float32's squares, and NaN are copied."""
    shapes = {"wide": (120, 300), "small": (20, 30), "huge": (110, 110), "lost": (110, 130)}
    starts = {n: RNG.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    updates = {n: made(*shape, 8.0 ** -np.arange(5))[0] for n, shape in shapes.items()}
    starts["huge"], updates["huge"] = 1e20 * starts["huge"], 1e20 * updates["huge"]
    updates["lost"] = np.full(shapes["lost"], np.nan)
    trees = [
        {n: jnp.asarray(W + size * updates[n] if size else W, dtype) for n, W in starts.items()}
        for size in (0, 1, 2)
    ]
    found = {}
    for stays in (False, True):
        monkeypatch.setattr(reading, "is_elsewhere", lambda x, stays=stays: stays)
        first, *others = ({n: placed(W) for n, W in tree.items()} for tree in trees)
        recorder = lrdyn.watch(first, k=3)
        for step, tree in enumerate(others, 1):
            recorder(tree, step)
        found[stays] = recorder.dataset
        # Else both ways were the CPU's, and would agree whatever the other one does.
        stayed = {n for n, W in recorder._start.items() if isinstance(W, OnDevice)}
        assert stayed == ({"wide", "lost"} if stays else set())
    for name, variable in found[False].data_vars.items():
        np.testing.assert_allclose(
            found[True][name], variable, rtol=2e-3, atol=2e-3, err_msg=str(name)
        )
    assert found[True]["seen"].sel(matrix="wide").values.tolist() == [13, 13]


def test_products_with_a_matrix_on_a_device_are_those_of_numpy():
    W, B, A = (RNG.standard_normal(shape) for shape in ((7, 5), (7, 2), (2, 5)))
    held = OnDevice(jnp.asarray(W))
    for mine, theirs in (
        (held @ A.T, W @ A.T),
        (held.T @ B, W.T @ B),
        (B.T @ held, B.T @ W),
        (held.minus_product(B, A).on_cpu(), W - B @ A),
        (held.square_sums()[0], spectrum.square_sums(W).by_row),
        (held.square_sums()[1], spectrum.square_sums(W).by_column),
        ((held - held.copy()).inner(held), 0.0),
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-13)
