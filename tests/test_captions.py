"""What captions speak of: the optimiser, the loss and the settings are those that are run."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn
from lrdyn.corollary1.statement import COROLLARY1
from lrdyn.data import Images
from lrdyn.figures import plotting, rendering
from lrdyn.studies.dropout_spectra import DROPOUT_SPECTRA, synthetic
from lrdyn.studies.weight_updates import WEIGHT_UPDATES, linear
from lrdyn.theorem2.statement import THEOREM2
from lrdyn.theorem3 import dropout_minimiser_claims
from lrdyn.theorem4.problems import OPTIMIZERS
from lrdyn.verification.stating.claims import tolerance
from paper_figs import (
    BASELINES,
    EXHIBITS,
    fig01_networks,
    fig03_svd_evolution,
    fig06_compression,
    fig09_galore_relora,
    fig10_masked_training,
    reach,
    table1_memory,
)
from tests import oracles

CAPTIONS = {one.name: " ".join(f"{one.caption} {one.notes}".split()) for one in EXHIBITS}


class Started(Exception):
    """What a run is about to do."""


class Run(NamedTuple):
    loss: Callable[[Any], Any]
    start: Any
    rule: optax.GradientTransformation
    steps: np.ndarray


def begun(experiment, patch, **settings):
    """The case of a run, and how it starts to train: nothing is trained, nor compiled."""

    def simulate(loss, start, rule, steps, record=None):
        raise Started(Run(loss, start, rule, np.asarray(steps)))

    patch.setattr(lrdyn, "simulate", simulate)
    (scenario,) = experiment.scenarios
    case = scenario.case(jax.random.key(0), **settings)
    measure = partial(scenario.measure, case)
    # Traced where it can be, what comes before the training is not computed.
    trace = partial(jax.eval_shape, measure) if scenario.traced else measure
    with pytest.raises(Started) as started:
        trace()
    return case, started.value.args[0]


def is_rule(rule, kind, rate):
    """The optimiser makes the updates of a textbook one, whatever the weights: no decay."""
    textbook, weights = oracles.Optimizer(kind, rate), jnp.arange(1.0, 4.0)
    gradients = np.random.default_rng(0).normal(size=(4, 3))

    def step(state, gradient):
        return rule.update(gradient, state, weights)[::-1]

    updates = jax.jit(lambda each: jax.lax.scan(step, rule.init(weights), each)[1])(gradients)
    oracles.assert_close(updates, np.stack([textbook.update(g) for g in gradients]), steps=4)


def is_loss(run, start, expected):
    oracles.assert_close(jax.jit(run.loss)(start), expected, size=100)


def is_scaled_orthogonal(layers, scale):
    for W in layers:
        oracles.assert_close(W @ W.T, scale**2 * np.eye(len(W)), size=len(W), scale=scale**2)


def evenly_spaced(target, rank):
    values = np.linalg.svd(target, compute_uv=False)
    oracles.assert_close(values[:rank], np.linspace(1.0, 0.5, rank), size=len(values))
    assert np.all(values[rank:] <= tolerance("identity", "float64", size=len(values)))


# What each caption says --------------------------------------------------------------------------


def figure_1(patch):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(256, size=(40, 3, 4, 1)).astype(np.uint8), np.arange(40) % 10
    few = Images("mnist", "a few", 10, pixels, labels, pixels, labels)
    patch.setattr(linear, "images", lambda name, data_dir: few)

    def train(key, loss, start, rule, batches, steps, record, keeper, name):
        raise Started((loss, start, rule, batches, steps))

    patch.setattr(linear, "train", train)
    quick = {flag.name: flag.default("quick") for flag in WEIGHT_UPDATES.flags}
    names = ("flat_data", "depth", "linear_scale", "linear_rate", "linear_steps")
    case = linear.make_linear(jax.random.key(0), examples=40, **{n: quick[n] for n in names})
    with pytest.raises(Started) as started:
        linear.measure_linear(case)
    loss, start, rule, batches, steps = started.value.args[0]
    assert fig01_networks.QUICK["preset"] == "quick"
    assert batches.size is None  # full batches
    is_rule(rule, "sgd", quick["linear_rate"])
    assert steps[-1] == quick["linear_steps"]
    is_scaled_orthogonal(start, quick["linear_scale"])
    X = pixels.reshape(40, 12).T / 255

    def cost(layers):
        zeros = tuple(jnp.zeros_like(W) for W in layers)
        value, _ = loss(tuple(layers), None, batches.data, None)
        constant, _ = loss(zeros, None, batches.data, None)
        return value - constant + 0.5  # the moments leave out what no weights change

    missed = oracles.product(oracles.double(start), 12) @ X - np.eye(10)[:, labels]
    is_loss(Run(cost, start, rule, steps), start, np.sum(missed**2) / 2 / 40)


def figure_2(patch):
    """Of the networks on synthetic data: one is linear, both are trained with it and without."""

    def train(key, loss, net, rule, batches, steps, *, record, name, keeper):
        raise Started((loss, net, rule, batches, steps))

    patch.setattr(synthetic, "train", train)
    quick = {flag.name: flag.default("quick") for flag in DROPOUT_SPECTRA.flags}
    names = ("dropout", "synthetic_rate", "synthetic_epochs", "batch_size", "synthetic_depth")
    sizes = {"synthetic_examples": 200, "synthetic_width": 5}
    for linear_one, activation in ((True, lambda x: x), (False, lambda x: np.maximum(x, 0))):
        case = synthetic.make_synthetic(
            jax.random.key(0), linear=linear_one, **{n: quick[n] for n in names}, **sizes
        )
        with pytest.raises(Started) as started:
            synthetic.measure_synthetic(case)
        loss, net, rule, batches, steps = started.value.args[0]
        is_rule(rule, "adam", quick["synthetic_rate"])
        assert (net.dropout, batches.size) == (quick["dropout"], quick["batch_size"])
        assert steps[-1] == quick["synthetic_epochs"] * batches.epoch
        values = np.linalg.svd(case.target @ case.inputs.T / 200, compute_uv=False)
        assert values[synthetic.RANK - 1] > 4 * values[synthetic.RANK]  # the teacher's rank
        hidden = np.asarray(case.inputs)
        for place, W in enumerate(oracles.double(net.weights)):
            hidden = W @ (activation(hidden) if place else hidden)
        batch = {"x": case.inputs.T, "y": case.target.T}
        expected = np.mean(np.sum((hidden - np.asarray(case.target)) ** 2, axis=0))
        value, _ = loss(net, None, batch, None)
        oracles.assert_close(value, expected, size=200)


def figure_3(patch):
    preset = fig03_svd_evolution.PRESET | {"dim": 9}
    del preset["seed"]
    saved, every_steps, axes = rendering.load(BASELINES / "fig03.nc"), set(), mock.MagicMock()
    assert saved is not None
    patch.setattr(plotting, "plot_compared", lambda *_, every, **__: every_steps.add(every[1]))
    fig03_svd_evolution.plot_evolution(axes, saved, "sigma")
    assert every_steps == {5}  # "every fifth iteration"
    case, run = begun(fig03_svd_evolution.EVOLUTION, patch, **preset)
    is_rule(run.rule, "sgd", preset["learning_rate"])
    assert run.steps.tolist() == list(range(preset["steps"] + 1))
    is_scaled_orthogonal(run.start, preset["init_scale"])
    assert np.linalg.matrix_rank(np.asarray(case.target)) == preset["rank"]
    missed = oracles.product(oracles.double(run.start), 9) - np.asarray(case.target)
    is_loss(run, run.start, np.mean(missed**2) / 2)


def figure_6(patch):
    quick = fig06_compression.QUICK
    how = {name: quick[name] for name in ("depth", "learning_rate", "steps")}
    how |= {"dim": 9, "rank": 2, "init_scale": 0.3, "compressed_rank": 2}
    case, run = begun(fig06_compression.COMPRESSION, patch, **how)
    is_rule(run.rule, "sgd", quick["learning_rate"])
    assert run.steps[-1] == quick["steps"]
    is_scaled_orthogonal(run.start, 0.3)
    evenly_spaced(case.target, 2)
    missed = oracles.product(oracles.double(run.start), 9) - np.asarray(case.target)
    is_loss(run, run.start, np.sum(missed**2) / 2)


def figure_9(patch):
    quick = fig09_galore_relora.QUICK
    assert list(OPTIMIZERS) == ["sgd", "momentum", "adam"]  # the order of the words
    for number, (name, rate) in enumerate(quick["rates"].items()):
        is_rule(fig09_galore_relora.chosen_optimizer(number, quick["rates"]), name, rate)
    assert quick["steps"] % quick["period"] == 0


def figure_10(patch):
    """Dropout on hidden units and masks on inputs, by all masks of four features."""
    rng = np.random.default_rng(0)
    X, first, second, A = rng.normal(size=(4, 4, 4))
    p = 0.3
    patch.setattr(fig10_masked_training, "features", lambda side: X)
    quick = fig10_masked_training.QUICK
    own = {name: quick[name] for name in quick if name not in ("keep_probs", "seed")}
    _, run = begun(fig10_masked_training.MASKED, patch, keep_prob=p, **own)
    assert quick["momentum"] == 0.9
    is_rule(run.rule, "momentum", quick["learning_rate"])
    assert run.steps[-1] == quick["steps"]
    expected = 0.0
    for mask, chance in oracles.masks_of(range(4), p):
        missed = X - second @ (mask[:, None] / p * (first @ X))
        masked = X - A @ (mask[:, None] * X)
        expected += chance / 2 * (np.sum(missed**2) + np.sum(masked**2))
    is_loss(run, {"dropout": (first, second), "input": A}, expected)


def table_1(patch):
    is_rule(table1_memory.ADAM, "adam", 1e-3)
    assert table1_memory.PRESET["dtype"] == "float32"


def sweeps(patch):
    reduced: dict[str, Any] = reach.REDUCED | {"depth": 2, "dim": 9, "rank": 2}
    names = ("depth", "dim", "rank", "init_scales", "learning_rate", "steps")
    case = reach.reduced_case(jax.random.key(0), **{name: reduced[name] for name in names})
    values = np.linalg.svd(np.asarray(case.target), compute_uv=False)
    evenly_spaced(np.diag(values), 2)
    assert [claim.id for claim in COROLLARY1.scenarios[0].claims] == [
        "error_identity",
        "error_bound",
        "bound_attained",
        "parameters",
    ]
    (excess,) = (flag for flag in COROLLARY1.flags if flag.name == "excess_rank")
    assert excess.quick == (1,)
    for theorem in (COROLLARY1, THEOREM2):
        assert not any(claim.seeds for claim in theorem.scenarios[0].claims)


CHECKS = {
    "fig01_networks": figure_1,
    "fig02": figure_2,
    "fig03": figure_3,
    "fig06": figure_6,
    "fig09": figure_9,
    "fig10": figure_10,
    "table1": table_1,
    "sweeps of theorems": sweeps,
}


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_run_is_what_a_caption_speaks_of(name, monkeypatch):
    """Its loss, optimiser, start, decay and target, whatever the words."""
    CHECKS[name](monkeypatch)


def test_the_figure_of_theorem_3_shows_gradient_descent(monkeypatch, unchecked):
    """Its legend says so."""

    def simulate(loss, start, rule, steps):
        raise Started(rule)

    monkeypatch.setattr(dropout_minimiser_claims, "simulate", simulate)
    case: Any = SimpleNamespace(learning_rate=0.3, weights=(), steps=5)
    with pytest.raises(Started) as started:
        dropout_minimiser_claims.descend(case)
    is_rule(started.value.args[0], "sgd", 0.3)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_runs_have_the_precision_that_a_caption_names(exhibit):
    """Table 1 and what trains name that of their runs; the others are in double precision."""
    caption = CAPTIONS[exhibit.name] + exhibit.notes.replace("{precision}", "double")
    names_its_own = exhibit.long or exhibit.name == "table1"
    assert ("double" in caption, "{dtype}" in caption) == (not names_its_own, names_its_own)
    usual = "float32" if exhibit.long else "float64"
    for settings in exhibit.presets.values():
        for run in exhibit.sources(**settings).values():
            own = run.experiment.dtype or usual  # a study may state another
            assert run.dtype == settings.get("dtype", own), run.experiment.name
