"""The engine: any way of naming points, batching and spreading equals a plain loop."""

from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import lrdyn as lr
from tests import programs
from tests.oracles import refuses
from tests.runs import Told, started

X = [0.5, 1.0, 1.5, 2.0, 2.5]


def power(x, n):
    return {"power": x ** jnp.arange(n), "total": x * n}


def batched_power(x, n):
    assert x.ndim == 1
    return {"power": x[:, None] ** jnp.arange(n)[None, :], "total": x * n}


def plain(x, n):
    """What :func:`power` returns, padded to four entries."""
    return [x**i if i < n else np.nan for i in range(4)]


def assert_equals_loop(found, n, x=X):
    expected = np.array([[plain(xi, ni) for ni in n] for xi in x])[..., : max(n)]
    assert np.array_equal(found["power"], expected, equal_nan=True)
    assert np.array_equal(found["total"], [[xi * ni for ni in n] for xi in x])


def test_product_has_all_combinations():
    points = lr.product(x=[1, 2], y=(3.0, 4.0, 5.0))
    assert points.columns == {"x": [1, 1, 1, 2, 2, 2], "y": [3.0, 4.0, 5.0] * 2}
    assert points.size == 6


def test_zipped_and_listed_are_the_same_points():
    zipped = lr.zipped(x=np.array([1.0, 2.0]), n=range(2, 4))
    assert zipped == lr.listed([{"x": 1.0, "n": 2}, {"n": 3, "x": 2.0}])
    assert zipped.columns == {"x": [1.0, 2.0], "n": [2, 3]}


def test_sampled_draws_each_axis_by_itself():
    uniform = partial(jax.random.uniform, minval=2.0, maxval=3.0)
    points = lr.sampled(jax.random.key(0), 50, a=uniform, b=uniform)
    a, b = (np.array(points.columns[name]) for name in "ab")
    assert points.size == len(a) == 50
    assert np.all((a >= 2) & (a < 3))
    assert not np.any(a == b)
    assert points == lr.sampled(jax.random.key(0), 50, a=uniform, b=uniform)
    assert points != lr.sampled(jax.random.key(1), 50, a=uniform, b=uniform)


test_points_refuse = refuses(
    (lr.product, "axes: got none empty, wanted at least one value"),
    (lambda: lr.product(x=[1], y=[]), r"axes: got \['y'\] empty, wanted at least one value"),
    (lambda: lr.zipped(x=[1], y=[1, 2]), r"axes: got lengths \{'x': 1, 'y': 2\}, wanted all"),
    (lambda: lr.listed([]), "points: got none, wanted at least one"),
    (lambda: lr.listed([{"x": 1}, {"y": 1}]), r"points: got axes \['y'\], wanted \['x'\]"),
    (lambda: lr.sampled(jax.random.key(0), 0, x=jax.random.normal), "count: got 0, wanted at"),
    (lambda: lr.sampled(jax.random.key(0), 3), "axes: got none empty, wanted at least one"),
)


@pytest.mark.parametrize("lanes", [1, 2, 3, 16])
@pytest.mark.parametrize("function", [power, batched_power])
def test_product_equals_a_loop(function, lanes):
    points, dims, batched = lr.product(x=X, n=[2, 4]), {"power": ("index",)}, function is not power
    found = lr.sweep(function, points, shapes=("n",), dims=dims, batched=batched, lanes=lanes)
    assert_equals_loop(found, [2, 4])
    assert found["power"].dims == ("x", "n", "index")
    assert found["x"].values.tolist() == X
    assert found["n"].values.tolist() == [2, 4]


@pytest.fixture
def compiled(monkeypatch):
    """Texts of the programs that a test compiles."""
    texts, compile = [], jax.stages.Lowered.compile

    def noted(self, **how):
        texts.append(self.as_text())
        return compile(self, **how)

    monkeypatch.setattr(jax.stages.Lowered, "compile", noted)
    return texts


@pytest.mark.parametrize(("size", "at_once"), [(30, 16), (200, 2), (1000, 1)])
def test_points_that_leave_the_cache_of_a_cpu_are_batched_less(size, at_once, compiled):
    def function(x):
        matrix = jnp.full((size, size), x)
        return {"y": jnp.sum(matrix * jnp.roll(matrix, 1))}

    found = lr.sweep(function, lr.product(x=[float(x) for x in range(32)]))
    assert np.array_equal(found["y"], size**2 * np.arange(32.0) ** 2)
    batch = f"{at_once}x{size}x{size}" if at_once > 1 else f"<{size}x{size}"
    assert any(f"{batch}xf64" in text for text in compiled)
    every = lr.sweep(function, lr.product(x=[float(x) for x in range(32)]), lanes=16)
    assert f"16x{size}x{size}xf64" in compiled[-1]  # what is asked for is done
    assert every.equals(found)


def test_what_a_loop_makes_in_a_turn_decides_how_many_points_are_batched(compiled):
    """A large start beside a small loop, in which the time goes."""

    def function(x):
        large = jnp.full((600, 600), x)
        start = jnp.sum(large * jnp.roll(large, 1)) * jnp.ones((20, 20))
        return {"y": jax.lax.fori_loop(0, 50, lambda _, W: 0.5 * W + 1, start)[0, 0]}

    lr.sweep(function, lr.product(x=[float(x) for x in range(32)]))
    assert any("16x20x20xf64" in text for text in compiled)


def test_a_list_of_points_equals_a_loop():
    points = [{"x": 2.0, "n": 3}, {"x": 0.5, "n": 1}, {"x": 1.5, "n": 3}]
    found = lr.sweep(power, lr.listed(points), shapes=("n",))
    expected = [plain(**point)[:3] for point in points]
    assert np.array_equal(found["power"], expected, equal_nan=True)
    assert found["power"].dims == ("point", "power_0")
    assert found["x"].dims == found["n"].dims == ("point",)
    assert found["n"].values.tolist() == [3, 1, 3]


@pytest.mark.parametrize(
    ("x", "n", "shapes"), [(X[:1], [4], ["n"]), (X[:2], [4], ["n"]), (X, [2, 4], ["x", "n"])]
)
def test_few_points_and_none_but_shapes(x, n, shapes):
    assert_equals_loop(lr.sweep(power, lr.product(x=x, n=n), shapes=tuple(shapes)), n, x)


@pytest.mark.parametrize("x", [X[:2], X])
def test_each_shape_is_traced_and_compiled_once_whatever_the_other_axes(x, monkeypatch):
    compiled, compile = [], jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda self, **how: compiled.append(1) or compile(self, **how),
    )
    chex.clear_trace_counter()
    function = chex.assert_max_traces(power, n=2)
    lr.sweep(function, lr.product(x=x, n=[2, 4]), shapes=("n",), lanes=2, memory=1)
    assert len(compiled) == 2


def test_axes_that_decide_shapes_are_python_numbers():
    seen = []
    lr.sweep(
        lambda x, n: seen.append((x, n)) or power(x, n),
        lr.product(x=np.array([0.5]), n=np.array([2])),
        shapes=("n", "x"),
    )
    assert seen == [(0.5, 2)]
    assert [type(value) for value in seen[0]] == [float, int]


def test_numbers_that_float32_does_not_have():
    """Too large a number is infinite, without a warning; an integer would lose its first bits."""
    with jax.enable_x64(False):
        found = lr.sweep(lambda x: {"same": x}, lr.product(x=[-1e300, 3e38, 1e300]))
        assert np.array_equal(found["same"], np.array([-np.inf, 3e38, np.inf], np.float32))
        for x in ([2**31], [1, -(2**40)]):
            with pytest.raises(ValueError, match=r"x: got \d+, wanted integers up to 2147483647"):
                lr.sweep(lambda x: {"same": x}, lr.product(x=x))
        assert lr.sweep(lambda x: {"same": x}, lr.product(x=[2**31 - 1]))["same"] == 2**31 - 1


def chaotic(seed):
    """A long chain of roundings: other kernels would end with other bits."""
    A = jax.random.normal(jax.random.key(seed), (6, 6))
    return {"A": jax.lax.fori_loop(0, 20, lambda _, B: jnp.tanh(B @ A) @ B, A)}


@pytest.fixture(scope="module")
def reference():
    return lr.sweep(chaotic, lr.product(seed=range(11)))


@pytest.mark.parametrize(
    ("memory", "parts"), [(2**30, [11]), (30_000, None), (10_000, None), (1, [4, 4, 3])]
)
def test_the_memory_budget_changes_nothing_but_the_number_of_parts(memory, parts, reference):
    told = Told()
    found = lr.sweep(chaotic, lr.product(seed=range(11)), lanes=2, memory=memory, progress=told)
    assert found.identical(reference)
    assert parts in (None, told.computed)


def test_a_lane_that_diverges_leaves_its_neighbours_alone(reference):
    def function(seed):
        (A,) = chaotic(seed).values()
        return {"A": jnp.where(seed == 4, A / 0.0 - A / 0.0, A)}

    found = lr.sweep(function, lr.product(seed=range(11)))
    others = [seed for seed in range(11) if seed != 4]
    assert not np.isfinite(found["A"].sel(seed=4)).any()
    assert found.sel(seed=others).identical(reference.sel(seed=others))


def test_ragged_results_are_padded_with_nan():
    def function(n, m):
        return {"a": jnp.ones((n, m)), "count": jnp.arange(n), "empty": jnp.ones(n - 1) > 0}

    found = lr.sweep(function, lr.product(n=[1, 3], m=[2, 1]), shapes=("n", "m"))
    assert found["a"].shape == (2, 2, 3, 2)
    assert np.array_equal(found["a"].sum(("a_0", "a_1")), [[2, 1], [6, 3]])
    assert int(np.isnan(found["a"]).sum()) == 4 * 6 - 12
    assert found["count"].sel(n=1, m=2).values.tolist()[0] == 0
    assert np.isnan(found["count"].sel(n=1, m=2)[1:]).all()
    assert np.isnan(found["empty"].sel(n=1)).all()


def test_equal_shapes_keep_their_dtype():
    found = lr.sweep(lambda x: {"i": jnp.arange(2), "b": x > 1.0}, lr.product(x=X))
    assert found["i"].dtype.kind == "i"
    assert found["b"].dtype == bool


def test_a_result_named_like_its_only_axis_becomes_the_coordinate():
    def function(x):
        return {"step": jnp.array([0, 5, 9]), "y": x * jnp.ones(3)}

    found = lr.sweep(function, lr.product(x=X), dims={"step": ("step",), "y": ("step",)})
    assert found["y"].dims == ("x", "step")
    assert float(found["y"].sel(x=0.5, step=5)) == 0.5
    assert "step" in found.indexes


def test_precision_follows_jax(dtype):
    assert lr.sweep(lambda x: {"y": x / 3.0}, lr.product(x=X))["y"].dtype == dtype


def powers(*shapes, **options):
    return lr.sweep(power, lr.product(x=X, n=[2]), shapes=shapes, **options)


def two_of(x):
    return {"y": x[:2]}


test_sweep_refuses = refuses(
    (lambda: powers("m"), r"shapes: got \['m'\], wanted axes out of \['x', 'n'\]"),
    (lambda: powers("n", lanes=0), "lanes: got 0, wanted at least 1"),
    (lambda: powers("n", dims={"power": ("a", "b")}), "dims: got .* for 'power', wanted 1"),
    (lambda: powers("x", "n", batched=True), "batched: got no traced axis"),
    (
        lambda: lr.sweep(two_of, lr.product(x=X), batched=True, lanes=3),
        r"y: got shape \(2,\), wanted 3 lanes",
    ),
)


# Shared --------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
SHARED = {"A": RNG.standard_normal((60, 60)), "b": [jnp.asarray(RNG.standard_normal(60)), None]}


def product_with(x, n, shared):
    return {"y": x * (shared["A"] @ shared["b"][0])[:n]}


def batched_product_with(x, n, shared):
    return {"y": x[:, None] * (shared["A"] @ shared["b"][0])[None, :n]}


def lowered(monkeypatch, *arguments, **options):
    """Programs of a sweep as they go to the compiler."""
    texts, compile = [], jax.stages.Lowered.compile
    with monkeypatch.context() as patch:
        patch.setattr(
            jax.stages.Lowered,
            "compile",
            lambda self, **how: texts.append(self.as_text()) or compile(self, **how),
        )
        lr.sweep(*arguments, **options)
    return texts


@pytest.mark.parametrize("lanes", [1, 2, 5])  # one by one, in chunks, in a single batch
@pytest.mark.parametrize("function", [product_with, batched_product_with])
def test_shared_arrays_are_those_that_one_closes_over(function, lanes):
    how = {"shapes": ("n",), "batched": function is not product_with, "lanes": lanes}
    points = lr.product(x=X, n=[2, 60])
    found = lr.sweep(function, points, shared=SHARED, **how)
    closed = lr.sweep(partial(function, shared=SHARED), points, **how)
    expected = np.array(X)[:, None] * (SHARED["A"] @ np.asarray(SHARED["b"][0]))
    np.testing.assert_allclose(found["y"].sel(n=60), expected, rtol=1e-12)
    np.testing.assert_allclose(found["y"], closed["y"], rtol=1e-12)


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_shared_arrays_are_no_part_of_the_program(lanes, monkeypatch):
    points, how = lr.product(x=X, n=[60]), {"shapes": ("n",), "lanes": lanes}
    (text,) = lowered(monkeypatch, product_with, points, shared=SHARED, **how)
    other = jax.tree.map(lambda array: array + 1, SHARED)
    assert lowered(monkeypatch, product_with, points, shared=other, **how) == [text]
    (closed,) = lowered(monkeypatch, partial(product_with, shared=SHARED), points, **how)
    assert len(closed) > SHARED["A"].nbytes > 2 * len(text)


def test_shared_arrays_are_not_batched():
    seen = []

    def function(x, shared):
        seen.append((x.shape, shared.shape))
        return {"y": x + shared[0], "alone": shared}

    found = lr.sweep(function, lr.product(x=X), shared=jnp.arange(3), lanes=2)
    assert set(seen) == {((), (3,))}
    assert found["alone"].values.tolist() == [[0, 1, 2]] * len(X)


def test_shared_arrays_are_moved_once(monkeypatch):
    moved, put = [], jax.device_put

    def counted(tree, *where, **how):
        moved.extend(one for one in jax.tree.leaves(tree) if np.shape(one) == (60, 60))
        return put(tree, *where, **how)

    monkeypatch.setattr(jax, "device_put", counted)
    told = Told()
    points = lr.product(x=np.arange(12.0), n=[2, 60])
    lr.sweep(product_with, points, shapes=("n",), shared=SHARED, memory=1, progress=told)
    assert told.computed == [4] * 6
    assert len(moved) == jax.local_device_count()


def test_the_budget_counts_shared_arrays_once():
    told, shared, size = Told(), np.ones(10_000), 8 * 50
    lr.sweep(
        lambda x, shared: {"y": jnp.full(50, x)},
        lr.product(x=np.arange(40.0)),
        shared=shared,
        memory=shared.nbytes + 2 * size * 10,
        progress=told,
    )
    assert told.computed == [10] * 4


def test_a_key_a_module_and_a_weak_number_are_shared():
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(1))
    shared = {"key": jax.random.key(0), "linear": linear, "weak": jnp.asarray(2.0)}

    def function(x, shared):
        noise = shared["weak"] * jax.random.normal(shared["key"], (2,), jnp.float32)
        assert noise.dtype == jnp.float32
        return {"y": shared["linear"](jnp.full(3, x)) + noise}

    found = lr.sweep(function, lr.product(x=X), shared=shared)
    for x in X:
        np.testing.assert_allclose(
            found["y"].sel(x=x), function(jnp.asarray(x), shared)["y"], rtol=1e-6
        )


def share(shared, function=lambda x, shared: {"y": x}, axis="x"):
    return lambda: lr.sweep(function, lr.product(**{axis: X}), shared=shared)


test_sweep_refuses_to_share = refuses(
    (share({"a": [jnp.ones(2), 1.0]}), r"shared\['a'\]\[1\]: got 1.0, wanted an array of numbers"),
    (lambda: jax.jit(lambda a: share(a)())(1.0), "shared: got .*Tracer.*, wanted an array"),
    (share(np.array(["a"])), r"shared: got array\(\['a'\].*, wanted an array of numbers"),
    (share(eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))), "shared.activation: got .*, wanted an"),
    (
        share(jnp.ones(2), lambda x: {"y": x}),
        r"shared: got a function without it, wanted .* \['x'\]",
    ),
    (share(jnp.ones(2), axis="shared"), "shared: got an axis of this name"),
)


# Devices -------------------------------------------------------------------------------------

ON_DEVICES = """
import sys
import jax, jax.numpy as jnp
from lrdyn import cli
cli.setup(host_devices=int(sys.argv[1]))
import lrdyn as lr

assert jax.local_device_count() == int(sys.argv[1])

def function(seed, depth):
    W = lr.orthogonal_layers(jax.random.key(seed), (6,) * (depth + 1), jnp.ones(depth))
    A = lr.low_rank_target(jax.random.key(seed), (6, 6), jnp.array([1.0, 0.5]))
    product = lr.end_to_end(W) @ A + jnp.eye(6)
    return {"W": jnp.stack(W), "spectrum": lr.singular_values(jnp.stack([product, A]))}

def with_data(seed, depth, shared):
    A = function(seed, depth)["spectrum"] @ shared["data"]
    return {"W": jnp.sin(A @ shared["weights"].T) * depth}

points = lr.product(seed=range(11), depth=[2, 3])
numbers = jax.random.normal(jax.random.key(5), (6, 7))
shared = {"data": numbers, "weights": jnp.cos(numbers)}
for lanes, run, more in (
    (2, function, {}), (1, function, {}),
    ("2-shared", with_data, {"shared": shared}), ("1-shared", with_data, {"shared": shared}),
):
    store = f"{sys.argv[2]}-{lanes}"
    found = lr.sweep(
        run, points, shapes=("depth",), lanes=int(str(lanes)[0]), store=store, memory=1, **more
    )
    found.load().to_netcdf(f"{store}.nc", engine="h5netcdf")
"""


@pytest.fixture(scope="module")
def on_devices(tmp_path_factory):
    """The same sweep, with batched SVD and QR and point by point, on 1, 2 and 8 host devices."""
    folder, running = tmp_path_factory.mktemp("devices"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NPROC", raising=False)  # it hides a deadlock of JAX 0.10
        for count in (1, 2, 8):  # of each the programs are its own, as users compile them
            words = ("-c", ON_DEVICES, str(count), folder / str(count))
            running[count] = started(*words, cache=programs.of_command("devices"))
    try:
        for process in running.values():
            process.communicate(timeout=200)
        assert [process.returncode for process in running.values()] == [0, 0, 0]
    finally:
        for process in running.values():
            process.kill()
    return {
        (count, lanes): (
            xr.load_dataset(folder / f"{count}-{lanes}.nc", engine="h5netcdf"),
            {path.name for path in (folder / f"{count}-{lanes}").glob("*.npz")},
        )
        for count in running
        for lanes in (2, 1, "2-shared", "1-shared")
    }


@pytest.mark.parametrize("lanes", [2, 1, "2-shared", "1-shared"])
@pytest.mark.parametrize("count", [2, 8])
def test_any_number_of_devices_gives_the_same_bits_and_parts(count, lanes, on_devices):
    (one, its_parts), (many, parts) = on_devices[1, lanes], on_devices[count, lanes]
    assert many.identical(one)
    assert parts == its_parts
    assert len(parts) == 6  # 11 points of each shape, by at most 4


@pytest.mark.parametrize("lanes", [2, 1])
def test_devices_compute_what_numpy_does(lanes, on_devices):
    found, _ = on_devices[8, lanes]
    W = found["W"].sel(depth=2).values[:, :2]
    tolerance = lr.tolerance("identity", "float64", size=6)
    assert np.abs(W @ np.swapaxes(W, -1, -2) - np.eye(6)).max() < tolerance
    spectrum = found["spectrum"].values[..., 1, :]
    assert np.abs(spectrum[..., :2] - [1.0, 0.5]).max() < tolerance
