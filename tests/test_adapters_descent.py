"""Algorithm 1, GaLore and its dual, against NumPy loops written from its text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.adapters.state import POLICIES
from lrdyn.networks import mlp
from lrdyn.theorem4.mistakes import STALE, UNMERGED, choose_zero_maps
from tests import algorithm1, oracles
from tests.algorithm1 import HOW, KEY, OPTIMIZERS, RANK, STEPS, M, N, problem, run, runs


@pytest.mark.parametrize("state", POLICIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_galore_and_relora_are_the_loops_of_the_text(side, state, dtype):
    how: Any = {"period": 4, "side": side, "state": state}
    one, other = (runs(method, dtype=dtype, **how) for method in (lr.GALORE, lr.RELORA_FROZEN))
    for kind in OPTIMIZERS:
        path = algorithm1.galore_by_hand(kind, **how)
        oracles.assert_close(one[kind], path, **HOW)
        oracles.assert_close(other[kind], path, **HOW)
        if state != "transport":  # a merge every period
            merged, _ = algorithm1.adapters_by_hand(kind, frozen=True, **how)
            oracles.assert_close(other[kind], merged, **HOW)
        late = algorithm1.galore_by_hand(kind, **how | {"period": 5})
        oracles.assert_apart(other[kind], late)


def test_full_training_is_that_of_the_whole_rank_if_the_state_turns_with_the_basis():
    """By SGD, which has none, P P^T = I is enough; Adam's squares do not turn."""
    full = {kind: algorithm1.full_by_hand(kind) for kind in OPTIMIZERS}
    for kind, path in runs(lr.FULL, scale=7.0).items():  # nothing is projected: there is no scale
        oracles.assert_close(path[-1], full[kind], **HOW)
    how: Any = {"period": 3, "steps": (STEPS,)}
    turning = runs(lr.GALORE, rank=M, state="transport", **how)
    oracles.assert_close(turning["sgd"][0], full["sgd"], steps=STEPS, size=N)
    oracles.assert_close(turning["momentum"][0], full["momentum"], **HOW)
    oracles.assert_apart(turning["adam"][0], full["adam"])
    oracles.assert_apart(run(lr.GALORE, "momentum", rank=M, **how)[0], full["momentum"])
    oracles.assert_apart(run(lr.GALORE, "sgd", rank=M - 1, **how)[0], full["sgd"])


@pytest.mark.parametrize(
    ("period", "steps"),
    [(1, (0, 5)), (4, (1, 2)), (4, (4, 8)), (4, (3, 5, 9)), (50, (2, 7)), (3, (0,)), (3, (3,))],
)
def test_records_are_those_of_the_steps(period, steps):
    found = run(lr.RELORA_FROZEN, "adam", period=period, steps=steps, state="keep")
    path = algorithm1.galore_by_hand("adam", period=period)
    oracles.assert_close(found, path[list(steps)], steps=9, size=10 * N)


@pytest.mark.parametrize("method", [lr.GALORE, lr.RELORA_FROZEN])
def test_the_last_weights_are_the_last_record_and_divergence_is_reported(method):
    for found in algorithm1.trajectories(method, period=4, side="left", state="keep").values():
        oracles.assert_close(found.params, found.records[-1])
        assert int(found.diverged_at) == -1
    far = algorithm1.trajectories(method, ("sgd",), rank=M, scale=1000.0, period=5, steps=(0, 60))
    assert 0 < int(far["sgd"].diverged_at) < 60


def network_loss(network):
    X, Y, _ = map(jnp.asarray, problem())
    return 0.5 * jnp.sum((network(X) - Y) ** 2)


def trained(start, method, kind, **how: Any):
    how = {"rank": 2, "period": 3, "steps": (0, 1, 8)} | how
    return lr.low_rank_descent(method, network_loss, start, OPTIMIZERS[kind], **how).records


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_networks_take_the_same_path_and_biases_are_trained_as_they_are(kind):
    @jax.jit
    def both(start):
        rule = OPTIMIZERS[kind]
        updates, _ = rule.update(jax.grad(network_loss)(start), rule.init(start))
        paths = [
            trained(start, method, kind, state="keep", side="left")
            for method in (lr.GALORE, lr.RELORA_FROZEN)
        ]
        return *paths, optax.apply_updates(start, updates)

    one, other, expected = both(mlp(jax.random.key(0), (N, M, M)))
    oracles.assert_close(one, other, steps=8, size=100)
    # One step of a bias is a step of the optimiser itself.
    after = jax.tree.map(lambda leaf: leaf[1], one)
    oracles.assert_close(after.biases, expected.biases, size=10)
    oracles.assert_apart(after.weights, expected.weights)


@pytest.mark.parametrize("method", [lr.GALORE, lr.RELORA_FROZEN, lr.RELORA])
def test_in_layers_a_network_takes_the_same_path(method):
    @jax.jit
    def paths(start):
        return [
            trained(start, method, "adam", scale=0.5, key=KEY, network=view)
            for view in (lr.adapters.layered, lr.adapters.merged)
        ]

    one, other = paths(mlp(jax.random.key(0), (N, M, M)))
    oracles.assert_close(one, other, steps=8, size=100)


def test_vmap_is_a_loop_over_rates_and_keys():
    X, Y, W = map(jnp.asarray, problem())
    cases = jnp.array([0.05, 0.1]), jax.random.split(KEY, 2)

    def both(rate, key):
        return [
            lr.low_rank_descent(
                method,
                lambda W: algorithm1.loss(W, X, Y),
                W,
                optax.adam(rate),
                rank=RANK,
                period=4,
                key=key,
                steps=(0, 5, 9),
            ).records
            for method in (lr.RELORA_FROZEN, lr.RELORA)
        ]

    one = jax.jit(both)
    alone = [jnp.stack(found) for found in zip(*map(one, *cases), strict=True)]
    oracles.assert_close(jax.jit(jax.vmap(both))(*cases), alone, **HOW)
    for found in alone:  # and each case is one of its own
        oracles.assert_apart(found[0], found[1])


def test_both_factors_zero_never_move():
    found = run(lr.RELORA, "sgd", period=3, choose=choose_zero_maps(RANK, "left"))
    assert (found == found[:1]).all()


@pytest.mark.parametrize(
    ("method", "mistake"), [(UNMERGED, {"merge": False}), (STALE, {"restart": False})]
)
def test_mistakes_at_a_refresh_by_hand(method, mistake):
    """Up to the first refresh nothing is wrong; there the weights jump."""
    path, _ = algorithm1.adapters_by_hand("sgd", period=4, frozen=True, **mistake)
    found = run(method, "sgd", period=4, side="left")
    oracles.assert_close(found, path, **HOW)
    right = runs(lr.RELORA_FROZEN, period=4, side="left", state="reset")["sgd"]
    oracles.assert_close(found[:5], right[:5], steps=4, size=10 * N)
    oracles.assert_apart(found[5:], right[5:])


COSINE: Any = optax.cosine_decay_schedule(0.1, 20)
DECAYS = {
    "adamw": optax.adamw(0.1, weight_decay=0.5),
    "scheduled": optax.adamw(COSINE, weight_decay=0.5),
    "injected": optax.inject_hyperparams(optax.adamw)(COSINE, weight_decay=0.5),
    "lion": optax.lion(0.1, weight_decay=0.5),
    "muon": optax.contrib.muon(0.1, weight_decay=0.5),
    "adafactor": optax.adafactor(0.1, multiply_by_parameter_scale=False, weight_decay_rate=0.05),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1, weight_decay=0.5)),
    "accumulated": optax.MultiSteps(
        optax.adamw(0.1, weight_decay=0.5), 2
    ).gradient_transformation(),
    "matrices": optax.adamw(
        0.1, weight_decay=0.5, mask=lambda net: jax.tree.map(lambda leaf: leaf.ndim > 1, net)
    ),
    "none": optax.adamw(0.1, weight_decay=0.5, mask={"W": False, "b": True}),
    "plain": lr.gradient_descent(0.1, 0.5),
}


@pytest.mark.parametrize("name", DECAYS)
def test_where_there_is_no_gradient_galore_decays_as_full_training_does(name):
    """All of W, and not the part in r directions; at the rates of a schedule."""
    start = {"W": jnp.asarray(problem()[2]), "b": jnp.arange(3.0)}
    P = lr.adapters.choose_projectors(start, RANK, "left")

    @jax.jit
    def ends(net):
        def train(method, **how):
            return lr.low_rank_descent(
                method, lambda net: 0 * net["b"].sum(), net, DECAYS[name], steps=(2, 4), **how
            ).records

        return train(lr.FULL), train(lr.GALORE, choose=lambda key, G: P, period=2)

    full, galore = ends(start)
    oracles.assert_close(galore, full, steps=4, size=N)
    decayed = {"W": name != "none", "b": name not in ("matrices", "muon")}
    moved = jax.tree.map(lambda end, W: bool((end[-1] != W).all()), full, start)
    # The first bias is 0, and stays.
    assert moved["W"] == decayed["W"]
    assert bool((full["b"][-1, 1:] != start["b"][1:]).all()) == decayed["b"]


def test_galore_with_adamw_is_the_loop_of_its_authors():
    """W <- W + alpha P U - eta lambda W: alpha is of the update alone, the rate of both."""
    W, slopes, rank, _, steps = algorithm1.regression()
    opt, path, P = oracles.Optimizer("adam", 1.0), [W], np.zeros(0)
    for t in range(steps):
        G, opt.eta = slopes(W)[0], float(COSINE(t))
        if t % 4 == 0:
            P = algorithm1.vectors(G, rank)
        W = W + 0.7 * P @ opt.update(P.T @ G) - opt.eta * 0.5 * W
        path.append(W)
    X, Y, start = map(jnp.asarray, problem())
    found = lr.low_rank_descent(
        lr.GALORE,
        lambda W: algorithm1.loss(W, X, Y),
        start,
        DECAYS["scheduled"],
        rank=rank,
        period=4,
        side="left",
        scale=0.7,
        steps=tuple(range(steps + 1)),
    ).records
    oracles.assert_close(found, np.array(path), **HOW)


LOOKS = {
    "lamb": optax.lamb(0.1),
    "lars": optax.lars(0.1),
    "adafactor": optax.adafactor(0.1),
    "penalty through Adam": optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1)),
    "penalty through momentum": optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
    ),
    "clip behind the decay": optax.chain(optax.adamw(0.1), optax.clip_by_global_norm(1.0)),
    "signs": optax.stateless(lambda g, W: jax.tree.map(lambda g, W: g - jnp.sign(W), g, W)),
    "a copy": optax.contrib.schedule_free_adamw(0.1),
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_else_looks_at_the_parameters_is_refused_or_given_coordinates(name):
    rule, W = LOOKS[name], jnp.asarray(problem()[2])
    how: dict[str, Any] = {"rank": RANK, "period": 2, "steps": (3,)}
    loss = lambda W: jnp.sum(W**2)  # noqa: E731
    with pytest.raises(ValueError, match="optimizer: got one that looks at the parameters"):
        lr.low_rank_descent(lr.GALORE, loss, W, rule, **how)
    lr.low_rank_descent(lr.FULL, loss, W, rule, steps=(3,))
    lr.low_rank_descent(lr.RELORA_FROZEN, loss, W, rule, **how)
    given = lr.adapters.in_coordinates(rule)
    assert jnp.isfinite(lr.low_rank_descent(lr.GALORE, loss, W, given, **how).params).all()


def test_decay_of_adapters_is_that_of_factors():
    """With no gradient W of LoRA stays; in coordinates GaLore's decay is that of r directions."""
    W = jnp.asarray(problem()[2])
    P = lr.adapters.choose_projectors(W, RANK, "left")

    @jax.jit
    def last(W):
        how: dict[str, Any] = {"steps": (4,)}
        rule, loss = DECAYS["adamw"], lambda W: 0 * jnp.sum(W)
        coordinates = lr.adapters.in_coordinates(rule)
        return (
            lr.low_rank_descent(lr.LORA, loss, W, rule, rank=RANK, key=KEY, **how).params,
            lr.low_rank_descent(
                lr.GALORE, loss, W, coordinates, choose=lambda key, G: P, period=9, **how
            ).params,
        )

    lora, galore = last(W)
    oracles.assert_close(lora, W)  # W stays, B A is 0
    oracles.assert_close(galore, W - (1 - 0.95**4) * P.lift(P.project(W)), steps=4, size=N)


@pytest.mark.parametrize("state", POLICIES)
@pytest.mark.parametrize("name", ["scheduled", "clipped", "injected"])
@pytest.mark.parametrize("method", ["GALORE", "RELORA_FROZEN", "RELORA", "LORA"])
def test_what_is_trained_as_it_is_takes_the_path_of_the_optimiser_alone(method, name, state):
    """Moments, count, schedule and decay of a bias: nothing of it hears of a refresh."""
    kind = getattr(lr, method)
    if state == "transport" and method in ("RELORA", "LORA"):
        pytest.skip("moments of trained maps are not transported")
    X, Y, W = map(jnp.asarray, problem())
    # W has no part in the norm by which the gradients are clipped.
    size = 0.0 if name == "clipped" else 1.0
    start = {"W": W, "b": jnp.arange(1.0, 4.0)}

    def bend(b):
        return jnp.sum(jnp.cosh(b - 2))

    @jax.jit
    def both(net):
        how: dict[str, Any] = {"steps": (0, 1, 4, 5, 9, 13)}
        return lr.low_rank_descent(
            kind,
            lambda net: size * algorithm1.loss(net["W"], X, Y) + bend(net["b"]),
            net,
            DECAYS[name],
            rank=RANK,
            period=0 if kind.once else 4,
            state=state,
            key=KEY,
            **how,
        ).records["b"], lr.low_rank_descent(lr.FULL, bend, net["b"], DECAYS[name], **how).records

    found, alone = both(start)
    oracles.assert_close(found, alone, steps=13, size=10)
    oracles.assert_apart(found[-1], found[-2])


def test_lora_on_kernels_of_inputs_times_outputs_is_the_transposed_run():
    """PEFT's random factor is on the side of the inputs: of flax's kernels that is the left."""
    X, Y, W = map(jnp.asarray, problem())
    how: dict[str, Any] = {"rank": RANK, "key": KEY, "steps": (0, 1, 5)}
    rule = optax.adam(0.1)
    one = lr.low_rank_descent(lr.LORA, lambda W: jnp.sum((W @ X - Y) ** 2), W, rule, **how)
    flax = lr.adapters.lora(zero="A")
    other = lr.low_rank_descent(flax, lambda K: jnp.sum((X.T @ K - Y.T) ** 2), W.T, rule, **how)
    oracles.assert_close(other.records.mT, one.records, steps=5, size=10 * N)


def small(method=lr.GALORE, optimizer=None, **how: Any):
    how = {"rank": 1, "steps": (1,)} | how
    rule = optimizer or optax.sgd(0.1)
    return lr.low_rank_descent(method, lambda W: jnp.sum(W**2), jnp.ones((2, 3)), rule, **how)


def transported(method, optimizer):
    return small(method, optimizer, period=1, state="transport", key=KEY)


test_low_rank_descent_refuses = oracles.refuses(
    (lambda: small(period=1, rank=0), "rank: got 0, wanted at least 1"),
    (lambda: small(lr.LORA, rank=0), "rank: got 0, wanted at least 1"),
    (lambda: small(period=1, side="up"), "side: got 'up', wanted one of left, right, smaller,"),
    (lambda: small(lr.RELORA), "period: got 0, wanted at least 1"),
    (lambda: small(lr.LORA, period=3), "period: got 3, wanted none for a method without a"),
    (lambda: small(period=1, steps=(2, 2)), r"steps: got \[2, 2\], wanted increasing integers"),
    (lambda: small(period=1, steps=(-1, 2)), r"steps: got \[-1, 2\], wanted increasing"),
    (
        lambda: small(period=1, steps=()),
        "steps: got dtype float64, wanted increasing",
    ),
    (lambda: small(period=1, state="drop"), "got 'drop', wanted one of keep, reset, transport"),
    (lambda: small(lr.RELORA, period=1), "key: got type NoneType, wanted a random key"),
    (lambda: transported(lr.GALORE, optax.adagrad(0.1)), "wanted one that keeps it as mu or"),
    (lambda: transported(lr.RELORA, optax.sgd(0.1, 0.9)), "moments of maps that are trained"),
)
