"""Optimisers that do not see the basis: reduced runs, trials, Muon's law, against plain loops."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from docs import optax_equivariance
from lrdyn.core.condition import Twins
from lrdyn.core.descent import Trajectory
from lrdyn.equivariance import muon_law, optax_exports, own, trial
from lrdyn.equivariance.standard_basis_claims import COORDINATEWISE, ENTRYWISE
from lrdyn.theorem2 import optimizers, setting, subspace
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.mistakes import BadInput

KEY = jax.random.key(3)
STEPS = np.array([0, 1, 7, 20])


def dense_and_reduced(name, multiplicity=None, init_scale=0.6):
    """Dense layers in the frame and layers of 2r + 1, at the recorded steps."""
    case = setting.make_case(
        KEY,
        dim=9,
        depth=3,
        rank=2,
        init_scale=init_scale,
        init_spread=2.0,
        weight_decay=0.1,
        decay_spread=3.0,
        learning_rate=5e-3,
        target_scale=1.0,
        steps=20,
        optimizer=name,
    )
    rates = (case.learning_rate, case.weight_decay)
    dense = lr.simulate(case.loss, case.weights, case.rule.full(*rates), STEPS).records
    counts = optimizers.multiplicities(4, 1, 5) if multiplicity is None else multiplicity
    target = jnp.pad(case.reduced_target, (0, 1))
    small = lr.simulate(
        lambda layers: lr.factorization_loss(layers, target),
        subspace.reduced_start(case.scales, 5),
        optimizers.reduced_optimizer(case.rule, *rates, counts),
        STEPS,
    ).records
    return case, dense, small


def whole_layers(case, small):
    """``U_l blkdiag(Wt_l, rho_l I) V_l^T``."""
    return [
        np.stack([np.asarray(layer) for layer in of_layer])
        for of_layer in zip(
            *(
                subspace.expand(
                    case.frame,
                    tuple(W[t, :4, :4] for W in small),
                    jnp.stack([W[t, 4, 4] for W in small]),
                )
                for t in range(len(STEPS))
            ),
            strict=True,
        )
    ]


def apart(case, dense, small):
    pairs = zip(dense, whole_layers(case, small), strict=True)
    return max(float(np.max(np.abs(np.asarray(W) - P))) for W, P in pairs)


ROUNDING = 1e3 * tolerance("identity", np.float64, steps=20, size=9)
"""Of 20 steps, times what Muon amplifies it by in them."""


@pytest.mark.parametrize("name", [name for name in optimizers.OPTIMIZERS if name[0] != "g"])
def test_blocks_and_a_scalar_are_the_whole_run_of_an_optimiser_of_optax(name):
    case, dense, small = dense_and_reduced(name)
    moved = max(float(jnp.max(jnp.abs(W[-1] - W[0]))) for W in dense)
    assert apart(case, dense, small) < ROUNDING < 1e-3 * moved


@pytest.mark.parametrize("name", ["clipped", "normalized", "muon"])
def test_a_norm_that_counts_the_bulk_once_gives_another_run(name):
    case, dense, small = dense_and_reduced(name, jnp.ones((5, 5)))
    assert apart(case, dense, small) > 1e3 * ROUNDING


def test_momentum_takes_no_norm():
    case, dense, small = dense_and_reduced("momentum", jnp.ones((5, 5)))
    assert apart(case, dense, small) < ROUNDING


def test_a_norm_of_reduced_layers_is_that_of_the_full_ones():
    inner = np.arange(4.0).reshape(2, 2)
    full = np.zeros((7, 7))
    full[:2, :2], full[2:, 2:] = inner, 3 * np.eye(5)
    for spare in (1, 2):
        reduced = np.zeros((2 + spare, 2 + spare))
        reduced[:2, :2], reduced[2:, 2:] = inner, 3 * np.eye(spare)
        counts = optimizers.multiplicities(2, spare, 5)
        (norm,) = optimizers.squared_norms(jnp.asarray(reduced)[None], counts)
        np.testing.assert_allclose(norm, np.sum(full**2), rtol=1e-14)


def test_a_run_is_compared_until_it_amplifies_errors():
    """An error that is 3^t times as large at step t passes 1,000 behind step 6."""
    times, sizes = np.arange(20), (1e-8, 1e-12)

    def twin(size):
        return Trajectory(None, 1 + size * 3.0 ** jnp.arange(20)[:, None], jnp.asarray(-1))

    runs = Twins(twin(0.0), twin(sizes[0]), twin(sizes[1]), sizes)
    last, condition = setting.windowed_conditions(times, 3, runs, lambda records: records)
    assert 3.0**last <= setting.AMPLIFIED < 3.0 ** (last + 1)
    np.testing.assert_allclose(condition, 3.0**last, rtol=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        (optax.sgd(0.1, momentum=0.9), "equivariant"),
        (optax.contrib.muon(0.01), "equivariant"),
        (optax.sgd(0.1, momentum=0.9, accumulator_dtype="float32"), "low precision"),
        (optax.sign_sgd(0.01), "signed permutations"),
        (optax.chain(optax.centralize(), optax.sgd(0.1)), "neither"),
    ],
)
def test_a_trial_tells_what_an_optimiser_sees(optimizer, kind):
    seen = trial.equivariance(KEY, optimizer, dim=7, depth=2, rank=2, steps=10)
    assert seen.kind == kind
    # Theorem 2's blocks are kept in a random basis by what does not see it, and in the standard one
    # by what commutes with signed permutations.
    assert (seen.frame < 1e-3) == (kind in ("equivariant", "low precision"))
    assert (seen.frame_in_coordinates < 1e-12) == (kind != "neither")


def test_every_export_of_optax_is_tried_or_has_a_reason():
    assert optax_exports.unknown() == []
    assert list(optax_exports.gone()) == []


def test_an_export_that_nobody_knows_is_named():
    names = {"sgd": optax.sgd, "muon_of_tomorrow": optax.sgd, "SomeState": optax.EmptyState}
    assert optax_exports.unknown(names=names) == ["muon_of_tomorrow"]


def test_the_committed_table_tries_what_is_listed():
    """Otherwise: ``python -m docs.optax_equivariance``."""
    kept = json.loads(optax_equivariance.KEPT.read_text())
    assert [entry["tried"] for entry in kept["rows"]] == list(optax_exports.TRIED)
    assert optax_equivariance.PAGE.read_text() == optax_equivariance.page(kept)


def test_what_a_release_changes_is_said():
    before = {"optax": "0.2.8", "rows": [{"tried": "optax.sgd(0.1)", "kind": "equivariant"}]}
    now = {"optax": "0.3.0", "rows": [{"tried": "optax.sgd(0.1)", "kind": "neither"}]}
    assert list(optax_equivariance.changes(before, now)) == [
        "optax.sgd(0.1): equivariant in optax 0.2.8, now neither"
    ]
    assert list(optax_equivariance.changes(before, before)) == []


def law_by_hand(start, modes, rate, steps):
    """Every step by itself: up while a product is below its mode, down else; and first arrivals."""
    values, path, arrived = np.array(start, float), [], [-1] * len(modes)
    for t in range(steps + 1):
        path.append(values.copy())
        product = np.prod(values, axis=0)
        arrived = [
            t if seen < 0 and p >= m else seen
            for seen, p, m in zip(arrived, product, modes, strict=True)
        ]
        values = values - rate * np.sign(product - modes)
    return np.array(path), arrived


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_muons_values_and_arrivals_are_those_of_a_loop(depth):
    rng = np.random.default_rng(depth)
    start, modes = rng.uniform(0.05, 0.4, (depth, 6)), rng.uniform(0.2, 2.0, 6)
    path, arrived = law_by_hand(start, modes, 0.013, 150)
    found = muon_law.muon_values(jnp.asarray(start), jnp.asarray(modes), 0.013, np.arange(151))
    np.testing.assert_allclose(found, path, atol=1e-12)
    steps = muon_law.arrival_steps(jnp.asarray(start), jnp.asarray(modes), 0.013)
    assert steps.tolist() == arrived


def test_equal_starts_learn_small_singular_values_first_under_muon():
    """n_i = ceil((m_i^{1/L} - eps) / eta), which grows in m_i."""
    modes, eps, eta = np.array([3.0, 1.7, 0.6]), 0.21, 1e-3
    steps = muon_law.arrival_steps(jnp.full((2, 3), eps), jnp.asarray(modes), eta)
    assert steps.tolist() == np.ceil((np.sqrt(modes) - eps) / eta).astype(int).tolist()
    assert steps.tolist() == sorted(steps.tolist(), reverse=True)


def first_update(rule, gradient, layer):
    updates: Any = rule.update((gradient,), rule.init((layer,)), (layer,))[0]
    return updates[0]


def test_muon_of_optax_has_exact_polar_factors():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(2))
    gradient = jnp.asarray((left * np.array([3.0, 1.0, 1e-2, 1e-5, 1e-7])) @ right)
    update = first_update(muon_law.polar_muon(1.0), gradient, gradient)
    # A singular vector of 1e-7 of the norm has lost seven digits.
    np.testing.assert_allclose(update, -left @ right, atol=1e-8)


def test_an_optimiser_of_ones_own_is_tried_first_and_told():
    small = {"dim": 7, "depth": 2, "rank": 1, "init_scale": 0.5, "init_spread": 1.0, "steps": 6}
    found = lr.verify(own.theorem2_for(optax.adam(0.01)), **small, seeds=1)
    assert found.outcome.name == "UNDECIDED"
    assert "equivariant" in repr(found)


def raising(updates, state, params=None):
    raise RuntimeError("no such luck")


def first_rows(updates, state, params=None):
    return tuple(update[:1] for update in updates), state


@pytest.mark.parametrize(
    ("optimizer", "match"),
    [
        (optax.GradientTransformation(lambda params: (), raising), "RuntimeError: no such luck"),
        (
            optax.GradientTransformation(lambda params: (), first_rows),
            r"updates of .*\(1, 7\)",
        ),
        (optax.lbfgs(), "raises TypeError: .*value_fn"),
        (optax.partition({0: optax.sgd(0.1)}, (0, 0, 0)), "raises"),
    ],
)
def test_an_optimiser_that_cannot_step_is_refused_in_a_line(optimizer, match):
    small = {"dim": 7, "depth": 2, "rank": 1, "init_scale": 0.5, "steps": 6}
    with pytest.raises(BadInput, match=f"optimizer: got .*{match}.*, wanted an optimiser"):
        lr.verify(own.theorem2_for(optimizer), **small, seeds=1)


def test_the_words_of_coordinatewise_optimisers():
    """Entry by entry: what one entry does, does not depend on another."""
    for name, make in COORDINATEWISE.items():
        first = jnp.ones((3, 3)).at[0, 0].set(2.0)
        other = first.at[2, 1].set(30.0)
        updates = [first_update(make(0.01), g, jnp.ones((3, 3))) for g in (first, other)]
        same = bool(jnp.all(updates[0][0] == updates[1][0]))
        assert same == (name in ENTRYWISE)


def test_the_field_of_a_case_says_which_optimiser_runs():
    case = dense_and_reduced("momentum")[0]
    other = dataclasses.replace(case, rule=optimizers.OPTIMIZERS["nesterov"])
    assert (case.rule.name, other.rule.name) == ("momentum", "nesterov")
    # An optimiser without a formula is run at full size.
    unknown = optimizers.Optimizer("own", lambda *_: optax.sgd(0.1))
    assert dataclasses.replace(case, rule=unknown).spare == 5
    assert case.spare == setting.SPARE
