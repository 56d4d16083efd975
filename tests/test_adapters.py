"""Algorithm 1, against NumPy loops written from its text."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.adapters.maps import lift_onto, over_maps, project, resolve_side
from lrdyn.adapters.state import POLICIES
from lrdyn.engine.produce import unoptimized
from lrdyn.networks import mlp
from lrdyn.theorems.theorem4.mistakes import STALE, UNMERGED, no_factors, pruned
from tests import oracles

M, N, EXAMPLES, RANK, ETA = 5, 7, 9, 2, 0.1
OPTIMIZERS = {
    "sgd": optax.sgd(ETA),
    "momentum": optax.sgd(ETA, momentum=0.9),
    "adam": optax.adam(ETA),
}


# The oracle -----------------------------------------------------------------------------------


def problem(seed=0):
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(N, EXAMPLES)) / np.sqrt(EXAMPLES)
    return X, draw.normal(size=(M, EXAMPLES)), draw.normal(size=(M, N))


def loss(W, X, Y):
    return 0.5 * jnp.sum((W @ X - Y) ** 2)


def slope(W, X, Y):
    return (W @ X - Y) @ X.T


class Optimizer:
    """Textbook rules, one number after another."""

    def __init__(self, kind):
        self.kind, self.count = kind, 0
        self.first: Any = None
        self.second: Any = None

    def update(self, R):
        if self.first is None:
            self.first, self.second = np.zeros_like(R), np.zeros_like(R)
        self.count += 1
        U = np.zeros_like(R)
        for i, j in np.ndindex(*R.shape):
            if self.kind == "sgd":
                U[i, j] = -ETA * R[i, j]
            elif self.kind == "momentum":
                self.first[i, j] = 0.9 * self.first[i, j] + R[i, j]
                U[i, j] = -ETA * self.first[i, j]
            else:
                self.first[i, j] = 0.9 * self.first[i, j] + 0.1 * R[i, j]
                self.second[i, j] = 0.999 * self.second[i, j] + 0.001 * R[i, j] ** 2
                mean = self.first[i, j] / (1 - 0.9**self.count)
                spread = np.sqrt(self.second[i, j] / (1 - 0.999**self.count))
                U[i, j] = -ETA * mean / (spread + 1e-8)
        return U


def vectors(G, rank, side):
    """Top singular vectors as columns, the largest entry of each positive."""
    left, _, right = np.linalg.svd(G)
    P = (left if side == "left" else right.T)[:, :rank].copy()
    for column in P.T:
        if column[np.argmax(np.abs(column))] < 0:
            column *= -1
    return P


def galore_by_hand(W, gradient, kind, *, period, steps, side="left", state="keep", rank=RANK):
    """Algorithm 1 with the gradient projected: the weights at every step."""
    W, path, opt = W.copy(), [W.copy()], Optimizer(kind)
    P: Any = None
    for t in range(steps):
        G = gradient(W)
        if t % period == 0:
            new = vectors(G, rank, side)
            if state == "reset":
                opt = Optimizer(kind)
            elif state == "transport" and opt.first is not None:
                turn = new.T @ P
                opt.first = turn @ opt.first if side == "left" else opt.first @ turn.T
            P = new
        W = W + (P @ opt.update(P.T @ G) if side == "left" else opt.update(G @ P) @ P.T)
        path.append(W.copy())
    return np.array(path)


def relora_by_hand(W, X, Y, *, period, steps, side="left", rank=RANK):
    """ReLoRA with a frozen factor and SGD: W + B A, merged every T steps."""
    W, path = W.copy(), []
    B, A = np.zeros((M, rank)), np.zeros((rank, N))
    for t in range(steps):
        if t % period == 0:
            W = W + B @ A
            P = vectors(slope(W, X, Y), rank, side)
            if side == "left":
                B, A = P, np.zeros((rank, N))
            else:
                B, A = np.zeros((M, rank)), P.T
        path.append(W + B @ A)
        error = (W @ X + B @ (A @ X)) - Y
        if side == "left":
            A = A - ETA * B.T @ error @ X.T
        else:
            B = B - ETA * error @ (A @ X).T
    return np.array([*path, W + B @ A])


fast = functools.partial(jax.jit, compiler_options=unoptimized())
"""Small programs spend their time in the compiler."""


@functools.partial(fast, static_argnames=("method", "kind", "how"))
def _run(method, kind, X, Y, W, how):
    return lr.low_rank_descent(
        method, lambda W: loss(W, X, Y), W, OPTIMIZERS[kind], **dict(how)
    ).records


def run(method, kind, data=None, dtype="float64", **how):
    X, Y, W = (jnp.asarray(array, dtype) for array in data or problem())
    return _run(method, kind, X, Y, W, tuple(sorted({"rank": RANK, **how}.items())))


STEPS = (0, 1, 3, 4, 7, 12, 13)


@pytest.mark.float32
@pytest.mark.parametrize("state", ["keep", "reset", "transport"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_galore_and_relora_are_the_loops_of_the_text(kind, side, state, dtype):
    X, Y, W = problem()
    path = galore_by_hand(
        W, lambda W: slope(W, X, Y), kind, period=4, steps=13, side=side, state=state
    )
    # Five refreshes of projectors of condition 10, at most: an error of the gradient grows so much.
    how = {"steps": 13, "size": 10 * N}
    for method in (lr.GALORE, lr.RELORA_FROZEN):
        found = run(method, kind, dtype=dtype, period=4, steps=STEPS, side=side, state=state)
        oracles.assert_close(found, path[list(STEPS)], **how)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("period", [1, 3, 100])
def test_relora_is_a_merge_every_period(side, period):
    X, Y, W = problem(1)
    path = relora_by_hand(W, X, Y, period=period, steps=8, side=side)
    found = run(lr.RELORA_FROZEN, "sgd", (X, Y, W), period=period, steps=tuple(range(9)), side=side)
    oracles.assert_close(found, path, steps=8, size=10 * N)
    # It is GaLore's path; that of a refresh one step late is another one.
    by_galore = galore_by_hand(
        W, lambda W: slope(W, X, Y), "sgd", period=period, steps=8, side=side
    )
    oracles.assert_close(found, by_galore, steps=8, size=10 * N)
    if period < 8:
        late = galore_by_hand(
            W, lambda W: slope(W, X, Y), "sgd", period=period + 1, steps=8, side=side
        )
        oracles.assert_apart(found, late)


def test_the_whole_rank_is_no_projection():
    X, Y, W = problem()
    found = run(lr.GALORE, "sgd", rank=M, period=3, steps=(10,))
    oracles.assert_close(found[0], oracles.optimise("sgd", W, lambda W: slope(W, X, Y), ETA, 10),
                         steps=10, size=N)  # fmt: skip
    lower = run(lr.GALORE, "sgd", rank=M - 1, period=3, steps=(10,))
    oracles.assert_apart(lower, found)


@pytest.mark.parametrize(
    ("kind", "state", "same"),
    [("momentum", "transport", True), ("momentum", "keep", False), ("adam", "transport", False)],
)
def test_the_whole_rank_is_full_training_if_the_state_turns_with_the_basis(kind, state, same):
    X, Y, W = problem()
    found = run(lr.GALORE, kind, rank=M, period=3, steps=(10,), state=state)
    full = oracles.optimise(kind, W, lambda W: slope(W, X, Y), ETA, 10)
    if same:
        oracles.assert_close(found[0], full, steps=10, size=10 * N)
    else:
        oracles.assert_apart(found[0], full)


def test_lora_and_lora_fa_agree_for_one_step():
    """The gradient of the random factor is 0 while the other is 0."""
    X, Y, W = map(jnp.asarray, problem())

    def choose(key, G):
        return lr.adapters.draw_projectors(jax.random.key(1), G, RANK, "right")

    def path(method, **how):
        return fast(lambda W: lr.low_rank_descent(
            method, lambda W: loss(W, X, Y), W, OPTIMIZERS["sgd"],
            choose=choose, steps=(1, 2), **how,
        ).records)(W)  # fmt: skip

    both, one = path(lr.LORA), path(lr.RELORA_FROZEN, period=9)
    oracles.assert_close(both[0], one[0])
    oracles.assert_apart(both[1], one[1])


# When it is refreshed and recorded -------------------------------------------------------------


@pytest.mark.parametrize("method", [lr.GALORE, lr.RELORA_FROZEN])
@pytest.mark.parametrize(
    ("period", "steps"),
    [(1, (0, 5)), (4, (1, 2)), (4, (4, 8)), (4, (3, 5, 9)), (50, (2, 7)), (3, (0,)), (3, (3,))],
)
def test_records_are_those_of_a_run_that_records_everything(method, period, steps):
    every = run(method, "adam", period=period, steps=tuple(range(10)), state="keep")
    found = run(method, "adam", period=period, steps=steps, state="keep")
    oracles.assert_close(found, every[np.array(steps)], steps=9, size=10 * N)


def test_the_last_weights_are_the_last_record():
    X, Y, W = map(jnp.asarray, problem())
    for method in (lr.GALORE, lr.RELORA_FROZEN):
        found = lr.low_rank_descent(
            method, lambda W: loss(W, X, Y), W, optax.sgd(ETA), rank=1, period=3, steps=(0, 2, 5)
        )
        oracles.assert_close(found.params, found.records[-1])
        assert int(found.diverged_at) == -1


def test_the_first_state_is_new_whatever_the_policy():
    before_a_refresh = [
        run(lr.GALORE, "adam", period=5, steps=(5,), state=state) for state in POLICIES
    ]
    for other in before_a_refresh[1:]:
        oracles.assert_close(other, before_a_refresh[0], steps=5, size=N)
    after = [run(lr.GALORE, "adam", period=5, steps=(8,), state=state) for state in POLICIES]
    oracles.assert_apart(after[0], after[1])
    oracles.assert_apart(after[1], after[2])


def test_sgd_has_no_state():
    paths = [run(lr.RELORA_FROZEN, "sgd", period=2, steps=(9,), state=state) for state in POLICIES]
    assert all((path == paths[0]).all() for path in paths)


# PyTrees ---------------------------------------------------------------------------------------


def network_loss(network, X, Y):
    return 0.5 * jnp.sum((network(X) - Y) ** 2)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_networks_take_the_same_path_and_biases_are_trained_as_they_are(kind):
    X, Y, _ = map(jnp.asarray, problem())
    network: Any = mlp(jax.random.key(0), (N, M, M))

    @functools.partial(fast, static_argnums=0)
    def trained(method):
        return lr.low_rank_descent(
            method, lambda net: network_loss(net, X, Y), network, OPTIMIZERS[kind],
            rank=2, period=3, steps=(0, 1, 8), state="keep", side="left",
        )  # fmt: skip

    one, other = trained(lr.GALORE), trained(lr.RELORA_FROZEN)
    oracles.assert_close(one.records, other.records, steps=8, size=100)
    # One step of a bias is a step of the optimiser itself.
    rule, gradient = OPTIMIZERS[kind], jax.grad(network_loss)(network, X, Y)
    updates, _ = rule.update(gradient, rule.init(network))
    expected: Any = optax.apply_updates(network, updates)
    after = jax.tree.map(lambda leaf: leaf[1], one.records)
    oracles.assert_close(after.biases, expected.biases, size=10)
    oracles.assert_apart(after.weights, expected.weights)


def test_vmap_is_a_loop():
    X, Y, W = map(jnp.asarray, problem())
    rates = jnp.array([0.05, 0.1, 0.2])

    def one(rate):
        return lr.low_rank_descent(
            lr.RELORA_FROZEN, lambda W: loss(W, X, Y), W, optax.adam(rate),
            rank=2, period=3, steps=(0, 5, 8),
        ).records  # fmt: skip

    together = fast(jax.vmap(one))(rates)
    alone = fast(one)
    oracles.assert_close(together, jnp.stack([alone(r) for r in rates]), steps=8, size=10 * N)


def test_it_sees_the_gradient_of_the_merged_weights_times_the_scale():
    """SGD: scale s of an adapter is a step s^2 of GaLore; Adam: s, but for its epsilon."""
    how = {"period": 3, "steps": (7,)}
    scaled = run(lr.RELORA_FROZEN, "sgd", scale=2.0, **how)
    oracles.assert_close(scaled, run(lr.GALORE, "sgd", scale=4.0, **how), steps=7, size=10 * N)
    oracles.assert_apart(scaled, run(lr.GALORE, "sgd", scale=2.0, **how))


# State -----------------------------------------------------------------------------------------


def adam_state(seed=0) -> tuple[Any, Any, Any]:
    """Adam's state after steps in random coordinates, with the projectors before and after."""
    draw = np.random.default_rng(seed)
    old, new = (
        lr.adapters.top_singular_projector(jnp.asarray(draw.normal(size=(M, N))), 3, "left")
        for _ in range(2)
    )
    rule = optax.adam(ETA)
    state = rule.init(jnp.zeros((3, N)))
    for _ in range(4):
        _, state = rule.update(jnp.asarray(draw.normal(size=(3, N))), state)
    return state, old, new


def test_transport_leaves_the_projection_of_the_lifted_momentum():
    state, old, new = adam_state()
    moved = lr.adapters.transport_moments(state, state, old, new)
    P, Q = np.asarray(old.basis), np.asarray(new.basis)
    lifted = P @ np.asarray(state[0].mu)
    oracles.assert_close(new.lift(moved[0].mu), Q @ Q.T @ lifted, size=M)
    assert (moved[0].nu == state[0].nu).all()
    assert int(moved[0].count) == 4
    # Another subspace, so something is lost; the same one loses nothing.
    assert np.linalg.norm(Q @ Q.T @ lifted) < np.linalg.norm(lifted)
    oracles.assert_close(
        lr.adapters.transport_moments(state, state, old, old)[0].mu, state[0].mu, size=M
    )


@pytest.mark.parametrize("seed", range(5))
def test_transported_squares_would_be_negative(seed):
    """A rotation mixes the signs of what is positive."""
    state, old, new = adam_state(seed)
    assert (state[0].nu > 0).all()
    moved = np.asarray(new.project(old.lift(state[0].nu)))
    assert moved.min() < 0


def test_moving_the_squares_ends_the_run():
    def everything(fresh, state, old, new):
        moved = lr.adapters.transport_moments(fresh, state, old, new)
        squares = over_maps(lambda S, T, v: T.project(S.lift(v)), old, new, state[0].nu)
        return (moved[0]._replace(nu=squares), *moved[1:])

    X, Y, W = map(jnp.asarray, problem())
    found = lr.low_rank_descent(lr.GALORE, lambda W: loss(W, X, Y), W, optax.adam(ETA),
                                rank=3, period=2, steps=(20,), state=everything)  # fmt: skip
    assert int(found.diverged_at) in range(3, 21)
    assert jnp.isnan(found.records).any()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("state", "same"), [("keep", False), ("reset", True), ("transport", True)])
def test_signs_of_singular_vectors(kind, state, same):
    """A path depends on them if a state is kept across a refresh, and not otherwise."""
    X, Y, W = map(jnp.asarray, problem())

    def by_first_entry(key, G):
        P = lr.adapters.top_singular_projector(G, RANK, "left")
        return lr.adapters.Projector(P.basis * jnp.sign(P.basis[:1]), "left")

    def path(choose, steps):
        return fast(lambda W: lr.low_rank_descent(
            lr.GALORE, lambda W: loss(W, X, Y), W, OPTIMIZERS[kind],
            choose=choose, period=4, steps=steps, state=state,
        ).records)(W)  # fmt: skip

    rules = [lambda key, G: lr.adapters.top_singular_projector(G, RANK, "left"), by_first_entry]
    one, other = (path(rule, (4, 20)) for rule in rules)
    oracles.assert_close(one[0], other[0], steps=4, size=10 * N)  # within a period: no effect
    if same or kind == "sgd":
        oracles.assert_close(one, other, steps=20, size=10 * N)
    else:
        oracles.assert_apart(one[1], other[1])


def test_a_pruned_state_with_a_new_count_is_a_reset():
    """With few entries 99.9 % are all of them; the count is what is left of the state."""
    X, Y, W = map(jnp.asarray, problem())

    def path(state):
        return fast(lambda W: lr.low_rank_descent(
            lr.RELORA_FROZEN, lambda W: loss(W, X, Y), W, optax.adam(ETA),
            rank=RANK, period=4, steps=(12,), state=state,
        ).records)(W)  # fmt: skip

    key = jax.random.key(0)
    reset = path("reset")
    oracles.assert_close(path(pruned(key, count=True)), reset, steps=12, size=N)
    oracles.assert_apart(path(pruned(key)), reset)
    oracles.assert_close(path(pruned(key, share=0.0)), path("keep"), steps=12, size=N)


# Mistakes --------------------------------------------------------------------------------------


def by_svd(key, G):
    return lr.adapters.choose_projectors(G, RANK, "left")


def mistaken(method, steps, choose=by_svd):
    X, Y, W = map(jnp.asarray, problem())
    return fast(lambda W: lr.low_rank_descent(
        method, lambda W: loss(W, X, Y), W, OPTIMIZERS["sgd"],
        choose=choose, period=3, steps=steps,
    ).records)(W)  # fmt: skip


def test_both_factors_zero_never_move():
    found = mistaken(lr.RELORA, (0, 1, 10), no_factors(RANK, "left"))
    assert (found == found[:1]).all()


def test_both_factors_trained_by_hand():
    X, Y, W = problem()
    path, B, A = [], np.zeros((M, RANK)), np.zeros((RANK, N))
    for t in range(7):
        if t % 3 == 0:
            W = W + B @ A
            B, A = vectors(slope(W, X, Y), RANK, "left"), np.zeros((RANK, N))
        path.append(W + B @ A)
        G = slope(W + B @ A, X, Y)
        B, A = B - ETA * G @ A.T, A - ETA * B.T @ G
    found = mistaken(lr.RELORA, tuple(range(7)))
    oracles.assert_close(found, np.array(path), steps=7, size=10 * N)


@pytest.mark.parametrize("method", [UNMERGED, STALE])
def test_mistakes_at_a_refresh_by_hand(method):
    """Up to the first refresh nothing is wrong; there the weights jump."""
    X, Y, W = problem()
    path, B, A = [], np.zeros((M, RANK)), np.zeros((RANK, N))
    for t in range(7):
        if t % 3 == 0:
            if t and method is STALE:
                W = W + B @ A
            seen = W + B @ A if t and method is UNMERGED else W
            B = vectors(slope(seen, X, Y), RANK, "left")
            A = A if t and method is STALE else np.zeros((RANK, N))
        A = A - ETA * B.T @ slope(W + B @ A, X, Y)
        path.append(W + B @ A)
    found = mistaken(method, tuple(range(1, 8)))
    oracles.assert_close(found, np.array(path), steps=7, size=10 * N)
    right = mistaken(lr.RELORA_FROZEN, tuple(range(1, 8)))
    oracles.assert_close(found[:3], right[:3], steps=3, size=10 * N)
    oracles.assert_apart(found[3:], right[3:])


# Pieces ----------------------------------------------------------------------------------------


@pytest.mark.float32
@pytest.mark.parametrize("side", ["left", "right", "smaller", "larger"])
def test_a_projector_is_orthonormal_with_a_rule_for_signs(side, dtype):
    G = jnp.asarray(np.random.default_rng(3).normal(size=(M, N)), dtype)
    P = lr.adapters.top_singular_projector(G, 3, side)
    assert P.side == {"smaller": "left", "larger": "right"}.get(side, side)
    oracles.assert_close(P.basis.T @ P.basis, np.eye(3), size=N)
    left, values, right = np.linalg.svd(np.asarray(G, np.float64))
    best = left[:, :3] * values[:3] @ right[:3]
    oracles.assert_close(P.lift(P.project(G)), best, size=10 * N)
    largest = np.take_along_axis(np.asarray(P.basis), np.abs(P.basis).argmax(axis=0)[None], axis=0)
    assert (largest > 0).all()
    flipped = lr.adapters.top_singular_projector(-G, 3, side)
    oracles.assert_close(flipped.basis, P.basis, size=10 * N)


def test_a_rank_beyond_the_matrix_is_all_of_it():
    G = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    assert lr.adapters.top_singular_projector(G, 9, "left").basis.shape == (3, 3)


def test_a_square_matrix_has_a_left_side():
    assert resolve_side((4, 4), "smaller") == resolve_side((4, 4), "larger") == "left"


def test_lifting_is_the_transpose_of_projecting():
    draw = np.random.default_rng(0)
    gradients = {"W": jnp.asarray(draw.normal(size=(M, N))), "b": jnp.asarray(draw.normal(size=M))}
    maps = lr.adapters.choose_projectors(gradients, 2, "right")
    R = {"W": jnp.asarray(draw.normal(size=(M, 2))), "b": jnp.asarray(draw.normal(size=M))}
    zeros = jax.tree.map(jnp.zeros_like, gradients)

    def inner(a, b):
        return sum(float(jnp.vdot(a[name], b[name])) for name in ("W", "b"))

    down = inner(project(maps, gradients), R)
    up = inner(gradients, lift_onto(zeros, maps, R))
    oracles.assert_close(jnp.asarray(down), up, size=M * N)
    found = lr.adapters.merged(lr.adapters.Parts(gradients, maps, R), 3.0)
    oracles.assert_close(found["b"], gradients["b"] + R["b"])  # not projected: no scale


def test_divergence_is_reported():
    X, Y, W = map(jnp.asarray, problem())
    for method in (lr.GALORE, lr.RELORA_FROZEN):
        found = lr.low_rank_descent(
            method, lambda W: loss(W, X, Y), W, optax.sgd(100.0), rank=M, period=5, steps=(0, 60)
        )
        assert 0 < int(found.diverged_at) < 60


def adagrad():
    return lr.low_rank_descent(lr.GALORE, jnp.sum, jnp.ones((2, 3)), optax.adagrad(0.1),
                               rank=1, period=1, steps=(1,), state="transport")  # fmt: skip


def small(**how):
    how = {"rank": 1, "period": 1, "steps": (1,)} | how
    return lr.low_rank_descent(
        lr.GALORE, lambda W: jnp.sum(W**2), jnp.ones((2, 3)), optax.sgd(0.1), **how
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(rank=0), "rank: got 0, wanted an integer >= 1"),
        (lambda: small(side="up"), "side: got 'up', wanted one of left, right, smaller, larger"),
        (lambda: small(period=0), "period: got 0, wanted at least 1"),
        (lambda: small(steps=(2, 2)), r"steps: got \[2, 2\], wanted increasing integers >= 0"),
        (lambda: small(steps=(-1, 2)), r"steps: got \[-1, 2\], wanted increasing"),
        (lambda: small(steps=()), r"steps: got \[\], wanted increasing"),
        (lambda: small(state="drop"), "state: got 'drop', wanted one of keep, reset, transport"),
        (adagrad, "wanted one that keeps it as mu or trace"),
    ],
)
def test_projection_refuses(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_projector_is_a_pytree():
    P = lr.adapters.Projector(jnp.eye(3)[:, :2], "right")
    assert eqx.tree_equal(jax.tree.map(lambda x: x, P), P)
    assert [leaf.shape for leaf in jax.tree.leaves(P)] == [(3, 2)]
