"""Figure 9: the plotted numbers of GaLore and ReLoRA against NumPy."""

import functools

import jax
import numpy as np
import pytest

from lrdyn.figures import baselines, rendering
from lrdyn.verification.stating.claims import CLEARLY, tolerance
from paper_figs import BASELINES, fig09_galore_relora
from tests import algorithm1, oracles
from tests.runs import numbers_of

SMALL = {
    "rows": 6,
    "columns": 8,
    "rank": 2,
    "examples": 20,
    "period": 10,
    "steps": 40,
    "every": 5,
    "memory_rows": 128,
    "memory_columns": 256,
    "memory_batch": 16,
    "memory_ranks": [32],
}
SETTINGS = fig09_galore_relora.QUICK | SMALL
RATES = SETTINGS["rates"]
RUN = {"steps": SMALL["steps"], "size": SMALL["columns"]}


@pytest.fixture(scope="module")
def found():
    """Numbers of Figure 9 at a small size."""
    return numbers_of(fig09_galore_relora.FIGURE, SETTINGS)


def slack(precision="float64"):
    return tolerance("identity", precision, **RUN)


def test_figure_9_equal_runs_differ_by_round_off_of_either_precision(found):
    for precision in ("float64", "float32"):
        assert 0 < float(found.gap.sel(precision=precision).max()) <= slack(precision)
    assert found.attrs["gap64"] == float(found.gap.sel(precision="float64").max())
    assert float(found.gap.sel(precision="float32").min("optimizer").max()) > slack()


def test_figure_9_other_runs_are_apart(found):
    period, late = SMALL["period"], slice(SMALL["period"] + 5, None)
    assert float(found.gap_state.sel(step=slice(0, period)).max()) <= slack()
    assert float(found.gap_state.sel(step=late).min()) > 1e-2
    assert float(found.gap_both.sel(step=late).min()) > 1e-2


def test_figure_9_rank_grows_by_r_with_each_refresh(found):
    rank, values = SMALL["rank"], found["values"]
    assert values.period.values.tolist() == [1, 2, 3]
    for k in values.period.values:
        one = values.sel(period=k).values
        assert np.all(one[: rank * k] > CLEARLY * slack())
        assert np.all(one[rank * k :] <= slack())


@functools.cache
def by_hand(kind):
    """The problem of the figure, tanh(W X), in NumPy, and its loss."""
    m, n, N, rank, steps = (SMALL[x] for x in ("rows", "columns", "examples", "rank", "steps"))
    key = jax.random.key(SETTINGS["seed"])
    W, loss_of = fig09_galore_relora.problem(key, m, n, N, "float64")
    keys, shapes = jax.random.split(key, 4), ((n, N), (m, n), (), (m, N))
    inputs, target, _, noise = map(np.asarray, map(jax.random.normal, keys, shapes))
    X = np.linspace(1.0, 0.2, n)[:, None] * inputs
    Y = np.tanh(2 * target / np.sqrt(n) @ X) + 0.1 * noise

    def loss(W):
        return np.sum((np.tanh(W @ X) - Y) ** 2) / (2 * N)

    def slopes(W, b=0.0):
        outputs = np.tanh(W @ X)
        return (outputs - Y) * (1 - outputs**2) @ X.T / N, 0 * b

    oracles.assert_close(loss_of(W), loss(np.asarray(W)), size=200)
    return algorithm1.Task(np.array(W), slopes, rank, RATES[kind], steps), loss


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_figure_9_losses_are_those_of_a_loop(found, kind, policy):
    task, loss = by_hand(kind)
    path = algorithm1.galore_by_hand(kind, period=SMALL["period"], state=policy, task=task)
    expected = np.array([loss(W) for W in path[:: SMALL["every"]]])
    oracles.assert_close(found.loss.sel(optimizer=kind, policy=policy).values, expected, **RUN)


def test_figure_9_singular_values_are_those_of_adam_with_its_state_kept(found):
    caption = " ".join(f"{fig09_galore_relora.CAPTION} {fig09_galore_relora.NOTES}".split())
    assert "periods of GaLore with Adam" in caption
    assert "both keeping the state" in caption
    path = algorithm1.galore_by_hand("adam", period=SMALL["period"], task=by_hand("adam")[0])
    for k in found.period.values:
        moved = path[min(k * SMALL["period"], SMALL["steps"])] - path[0]
        values = np.linalg.svd(moved, compute_uv=False)
        shown = found["values"].sel(period=k).values
        oracles.assert_close(shown, values / values[0], **RUN)


def test_figure_9_training_both_factors_is_what_a_loop_does(found):
    how = {"period": SMALL["period"], "task": by_hand("sgd")[0]}
    both, _ = algorithm1.adapters_by_hand("sgd", **how)
    frozen, _ = algorithm1.adapters_by_hand("sgd", frozen=True, **how)
    expected = fig09_galore_relora.relative_gap(both, frozen)[:: SMALL["every"]]
    oracles.assert_close(found.gap_both.sel(optimizer="sgd").values, expected, **RUN)
    assert expected[-1] > 1e-2


def test_figure_9_memory_is_the_least_and_what_table_1_names(found):
    more = found.peak_measured - found.peak_predicted
    scalars = 1000
    for method in found.program.values:
        spare = 4 * 2 * SMALL["memory_rows"] * found["rank"] if method == "lora" else 0
        one = more.sel(program=method)
        assert bool((one >= 0).all())
        assert bool((one <= spare + scalars).all())
    peak = found.peak_measured.isel(rank=0)
    order = ["relora_frozen", "lora", "galore", "full", "galore_optax"]
    assert np.all(np.diff([int(peak.sel(program=name)) for name in order]) >= 0)


@pytest.fixture(scope="module")
def baseline():
    return rendering.load(BASELINES / "fig09.nc")


def test_figure_9_draws_every_number(baseline):
    axes = fig09_galore_relora.draw(baseline).get_axes()
    curves = [[np.asarray(line.get_ydata()) for line in ax.get_lines()] for ax in axes]
    assert [len(lines) for lines in curves] == [6 + 3 + 2, 4 + 3, 6, 2 * 5]
    quick = fig09_galore_relora.QUICK
    weights = 4 * quick["memory_rows"] * quick["memory_columns"]
    gaps = [baseline[name].values[..., 1:] for name in ("gap", "gap_both", "gap_state")]
    bytes_of = [baseline[name].values for name in ("peak_predicted", "peak_measured")]
    shown = (
        [np.maximum(gap, fig09_galore_relora.SMALLEST) for gap in gaps],
        [baseline["values"].values],
        [baseline.loss.values[1:]],
        [peaks / weights for peaks in bytes_of],
    )
    for panel, families in zip(curves, shown, strict=True):
        for row in (row for rows in families for row in rows.reshape(-1, rows.shape[-1])):
            assert any(np.array_equal(row, curve) for curve in panel)


def test_figure_9_is_checked_where_machines_agree(baseline):
    """A gap that is no round-off any more is a difference; ten times the round-off is none."""
    assert baselines.compare(baseline.assign(gap=10 * baseline.gap), baseline) == []
    (difference,) = baselines.compare(baseline.assign(gap=baseline.gap + 1e-6), baseline)
    assert difference.curve.startswith("gap[precision=float64")
