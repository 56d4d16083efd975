"""GaLore and ReLoRA in optax's idiom, against NumPy loops and against Algorithm 1."""

import math
import runpy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.adapters import memory
from lrdyn.adapters.memory import COUNTER_BYTES
from lrdyn.adapters.state import POLICIES
from lrdyn.core import selection
from lrdyn.galore_noise import last_moving_step, setting
from lrdyn.training import Batches, train
from tests import algorithm1, oracles
from tests.algorithm1 import HOW, KEY, OPTIMIZERS, RANK, STEPS, M, N, problem
from tests.pages import EXAMPLES
from tests.test_adapters_memory import MODELS

galore, relora = lr.adapters.galore, lr.adapters.relora


def path_of(rule, loss, params, steps=STEPS):
    """The parameters at every step of a loop as a user writes it."""

    def step(carry, _):
        params, state = carry
        updates, state = rule.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), params

    (last, _), path = jax.lax.scan(step, (params, rule.init(params)), length=steps)
    return jax.tree.map(lambda path, last: jnp.concatenate([path, last[None]]), path, last)


# Against loops in NumPy -------------------------------------------------------------------------


@pytest.mark.parametrize("state", POLICIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_galore_and_relora_with_a_frozen_factor_are_the_loops_of_the_text(side, state, dtype):
    how: Any = {"rank": RANK, "refresh_every": 4, "side": side, "state": state}
    X, Y, W = (jnp.asarray(array, dtype) for array in problem())

    @jax.jit
    def paths(W):
        return {
            kind: [
                path_of(made, lambda W: algorithm1.loss(W, X, Y), W)
                for made in (galore(rule, **how), relora(rule, frozen=True, **how))
            ]
            for kind, rule in OPTIMIZERS.items()
        }

    for kind, (one, other) in paths(W).items():
        path = algorithm1.galore_by_hand(kind, period=4, side=side, state=state)
        oracles.assert_close(one, path, **HOW)
        oracles.assert_close(other, path, **HOW)
        late = algorithm1.galore_by_hand(kind, period=5, side=side, state=state)
        oracles.assert_apart(one, late)


@pytest.mark.parametrize("side", ["left", "right"])
def test_relora_with_a_bias_is_the_loop_of_the_text(side, dtype):
    """Both factors from GaLore's P, at a scale; the bias is trained as it is."""
    X, Y, W = (jnp.asarray(array, dtype) for array in problem())
    bias = np.linspace(-1, 1, M)

    def loss(net):
        return 0.5 * jnp.sum((net["W"] @ X + net["b"][:, None] - Y) ** 2)

    @jax.jit
    def paths(W, b):
        def choose(key, G):
            return lr.adapters.choose_projectors(G, RANK, side)

        return {
            kind: path_of(
                relora(rule, choose=choose, refresh_every=4, scale=0.5), loss, {"W": W, "b": b}
            )
            for kind, rule in OPTIMIZERS.items()
        }

    for kind, found in paths(W, jnp.asarray(bias, dtype)).items():
        how: Any = {"period": 4, "side": side, "scale": 0.5, "bias": bias}
        path, shifts = algorithm1.adapters_by_hand(kind, **how)
        oracles.assert_close(found["W"], path, **HOW)
        oracles.assert_close(found["b"], shifts, **HOW)
        unscaled, _ = algorithm1.adapters_by_hand(kind, **how | {"scale": 1.0})
        oracles.assert_apart(found["W"], unscaled)


# Against Algorithm 1, on any tree ---------------------------------------------------------------

TREE = {
    "wide": (3, 7),
    "tall": (6, 4),
    "square": (4, 4),
    "thin": (1, 5),
    "stack": (2, 5, 3),
    "vector": (4,),
    "number": (),
}
"""A matrix whose rank is below r among them; arrays of another type, and None, stand beside."""
RULES = {
    "momentum": optax.sgd(0.05, momentum=0.9),
    "scheduled": optax.adamw(optax.cosine_decay_schedule(0.05, 20), weight_decay=0.3),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05)),
}


def tree_problem():
    draw = np.random.default_rng(5)
    start = {name: jnp.asarray(draw.normal(size=shape)) for name, shape in TREE.items()}
    target = {name: jnp.asarray(draw.normal(size=shape)) for name, shape in TREE.items()}

    def loss(params):
        apart = jax.tree.map(lambda W, T: jnp.sum((jnp.tanh(W) - T) ** 2), params, target | nothing)
        return jnp.asarray(sum(jax.tree.leaves(apart)))

    nothing = {"activation": None, "nested": (None, ())}
    return start | nothing, loss


@pytest.mark.parametrize("state", POLICIES)
@pytest.mark.parametrize("name", RULES)
def test_on_any_tree_it_is_algorithm_1(name, state):
    start, loss = tree_problem()
    kinds: dict[str, Any] = {
        "GALORE": galore,
        "RELORA_FROZEN": lambda rule, **how: relora(rule, frozen=True, **how),
        "RELORA": relora,
    }
    if state == "transport":
        del kinds["RELORA"]  # whose moments are not those of coordinates

    @jax.jit
    def both(start):
        found = {}
        for method, make in kinds.items():
            choose = lr.adapters.choose_by_path(
                getattr(lr, method), rank=2, stacks="stack", extra="*"
            )
            how: Any = {"choose": choose, "scale": 0.5, "state": state, "key": KEY}
            run = lr.low_rank_descent(
                getattr(lr, method), loss, start, RULES[name], period=3, steps=(1, 3, 4, 10), **how
            )
            path = path_of(make(RULES[name], refresh_every=3, **how), loss, start, 10)
            other = path_of(
                make(RULES[name], refresh_every=3, **how | {"state": prune}), loss, start, 10
            )
            found[method] = run.records, path, other
        return found

    def prune(fresh, state, old, new):
        return jax.tree.map(lambda leaf: leaf / 2 if jnp.ndim(leaf) else leaf, state)

    for records, path, other in both(start).values():
        seen = jax.tree.map(lambda leaf: leaf[np.array([1, 3, 4, 10])], path)
        # An error grows by the condition of the projectors, 10 at most, at each of four refreshes.
        oracles.assert_close(seen, records, steps=10, size=10 * N)
        oracles.assert_apart(other["wide"][-1], records["wide"][-1])


# What stands before it, behind it and beside it ---------------------------------------------------


def test_a_decay_inside_and_behind_are_one_decay_of_all_of_w():
    X, Y, W = map(jnp.asarray, problem())
    how: Any = {"rank": RANK, "refresh_every": 4, "scale": 0.7}
    rate = optax.cosine_decay_schedule(0.1, 20)
    rules = {
        "inside": galore(optax.adamw(rate, weight_decay=0.5), **how),
        "behind": optax.chain(
            galore(optax.scale_by_adam(), **how),
            optax.add_decayed_weights(0.5),
            optax.scale_by_learning_rate(rate),
        ),
        "coordinates": galore(
            lr.adapters.in_coordinates(optax.adamw(rate, weight_decay=0.5)), **how
        ),
    }

    @jax.jit
    def paths(W):
        return {
            name: path_of(rule, lambda W: algorithm1.loss(W, X, Y), W)
            for name, rule in rules.items()
        }

    found = paths(W)
    oracles.assert_close(found["inside"], found["behind"], **HOW)
    oracles.assert_apart(found["coordinates"][2:], found["behind"][2:])


def test_partition_leaves_out_what_is_not_projected():
    start, loss = tree_problem()
    how: Any = {"rank": 2, "refresh_every": 3}
    words = {name: "matrix" if len(shape) == 2 else "rest" for name, shape in TREE.items()}
    rest = optax.sgd(0.01)
    split = optax.partition(
        {"matrix": galore(RULES["clipped"], **how), "rest": rest},
        words | {"activation": None, "nested": (None, ())},
    )

    @jax.jit
    def both(start):
        of_rest = {name: start[name] for name, word in words.items() if word == "rest"}
        of_matrices = {name: start[name] for name, word in words.items() if word == "matrix"}

        def fixed(part):
            return lambda params: loss(start | part | params)

        return (
            path_of(split, loss, start, 7),
            path_of(rest, fixed({}), of_rest, 7),
            path_of(galore(RULES["clipped"], **how), fixed({}), of_matrices, 7),
        )

    found, *apart = both(start)
    for path in apart:
        oracles.assert_close({name: found[name] for name in path}, path, steps=7, size=10 * N)


def test_an_inner_optimiser_has_the_further_arguments_and_a_schedule_counts_on():
    by_value = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, **extra: (
            jax.tree.map(lambda u: -extra["value"] * u, updates),
            state,
        ),
    )
    W = jnp.asarray(problem()[2])
    how: Any = {"rank": RANK, "refresh_every": 2}
    for make in (galore, lambda rule, **how: relora(rule, frozen=True, **how)):
        rule = make(by_value, **how)
        updates, _ = rule.update(W, rule.init(W), W, value=0.1)
        plain = make(optax.sgd(0.1), **how)
        expected, state = plain.update(W, plain.init(W))  # parameters may be left out
        oracles.assert_close(updates, expected, size=N)
        rule = make(optax.scale_by_schedule(lambda t: -1.0 * t), state="reset", **how)
        state: Any = rule.init(W)
        for t in range(5):
            assert int(state.inner.count) == int(state.step) == t
            _, state = rule.update(W, state)


def test_a_period_of_none_chooses_once():
    W = jnp.asarray(problem()[2])
    turned = jnp.flip(W, axis=0)
    rules = {every: galore(optax.sgd(0.1), rank=1, refresh_every=every) for every in (None, 1)}
    after = {}
    first: Any
    state: Any
    for every, rule in rules.items():
        _, first = rule.update(W, rule.init(W))
        _, state = rule.update(turned, first)
        after[every] = first.projectors[0], state.projectors[0]
    oracles.assert_close(after[None][1], after[None][0])
    oracles.assert_apart(after[1][1], after[1][0])


# Types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["galore", "relora", "frozen"])
def test_narrow_parameters_are_trained_by_wide_gradients(make):
    """P comes from an SVD in float32; the state has the type of the gradients."""
    W = {"W": jnp.asarray(problem()[2], jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), W)
    rule = {
        "galore": galore(optax.adam(0.1), rank=2, refresh_every=2),
        "relora": relora(optax.adam(0.1), rank=2, refresh_every=2, key=KEY),
        "frozen": relora(optax.adam(0.1), rank=2, refresh_every=2, frozen=True),
    }[make]

    def floats(state):
        types = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
        return types - {"int32"}

    update = jax.jit(rule.update)
    params: Any
    for gradients in (W, wide):
        params, state = W, rule.init(W)
        assert floats(state) == {"bfloat16"}
        for _ in range(3):
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        assert floats(state) == {gradients["W"].dtype.name}
        assert params["W"].dtype == jnp.bfloat16
        assert bool(jnp.isfinite(params["W"]).all() and (params["W"] != W["W"]).any())

    # A carry of one type from the start.
    def step(carry, _):
        params, state = carry
        updates, state = rule.update(wide, state, params)
        return (optax.apply_updates(params, updates), state), None

    last: Any
    (last, _), _ = jax.jit(lambda: jax.lax.scan(step, (W, rule.init(wide)), length=3))()
    assert bool((last["W"] == params["W"]).all())


# Memory -----------------------------------------------------------------------------------------

HELD = {
    "GALORE": galore,
    "RELORA": relora,
    "RELORA_FROZEN": lambda rule, **how: relora(rule, frozen=True, **how),
}


@pytest.mark.parametrize("model", ["matrix", "transposed", "perceptron", "llama", "narrow", "60M"])
@pytest.mark.parametrize("name", HELD)
def test_model_and_state_hold_what_the_formulas_say_to_the_byte(name, model):
    """And the number of the step. W is held once, by the model, with adapters that are merged."""
    params, method = MODELS[model], getattr(lr, name)
    select = "blocks.*" if model in ("llama", "narrow", "60M") else "*"
    rank = 128 if model == "60M" else 2
    choose = lr.adapters.choose_by_path(method, rank=rank, select=select, extra="*")
    rule = HELD[name](optax.adam(0.1), choose=choose, refresh_every=9, key=KEY)

    def size(tree):
        leaves = jax.tree.leaves(tree)
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    formula = memory.model_bytes(method, params, rank, select)
    assert size((params, jax.eval_shape(rule.init, params))) == formula + COUNTER_BYTES
    # The control: as adapters beside a model that is frozen, what is trained as it is is held
    # twice, which the formula does not allow.
    if model in ("perceptron", "llama") and name != "GALORE":
        made = jax.eval_shape(
            lambda params: lr.adapters.init(
                KEY, params, method=lr.LORA, rank=rank, select=select, extra="*"
            ),
            params,
        )
        kinds = selection.select_leaves(params, select, "*")
        extra = [leaf for path, leaf in selection.named_arrays(params) if kinds[path] == "extra"]
        trained, frozen = lr.adapters.split(made)
        moments = jax.eval_shape(optax.adam(0.1).init, trained)
        scales = size(frozen)
        of_lora = memory.model_bytes(lr.LORA, params, rank, select)
        held = size((params, made, moments)) - scales
        assert held == of_lora + size(extra) > of_lora


# GoLore's example -------------------------------------------------------------------------------


def test_the_true_rows_stop_at_the_step_that_is_known_beforehand():
    """GoLore's example by mini-batches of one sign of the noise, in whatever order they come."""
    case = setting.make_case(
        jax.random.key(1),
        dim=7,
        rank=2,
        period=10,
        side="left",
        learning_rate=0.04,
        noise=1.0,
        steps=400,
    )
    last = int(last_moving_step(case.values, 1.0, 0.04, 10, 2))
    assert 0 < last < 300
    assert bool((case.schedule.gap > 1e-3).all())
    k = len(case.target)

    def loss(X, state, batch, key):
        return case.cost(X, batch[0]), (state, {})

    def moved(rule, noise=1.0):
        signs = Batches(np.asarray(case.signs) * noise, 1)
        run = train(KEY, loss, case.start, rule, signs, tuple(range(401)))
        return jnp.max(jnp.abs(jnp.diff(run.records[:, :k], axis=0)), axis=(1, 2))

    how: Any = {"rank": 2, "refresh_every": 10, "side": "left"}
    sgd = optax.sgd(0.04)
    assert int(setting.last_move(case, moved(galore(sgd, **how)))) == last
    assert int(setting.last_move(case, moved(relora(sgd, frozen=True, **how)))) == last
    # Without noise, and with a P that does not look at it, the rows move until the end.
    drawn = galore(
        sgd,
        choose=lambda key, G: lr.adapters.draw_projectors(key, G, 2, "left"),
        refresh_every=10,
        key=KEY,
    )
    assert int(setting.last_move(case, moved(drawn))) > 380
    assert int(setting.last_move(case, moved(galore(sgd, **how), 0.0))) > last


# Examples and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["galore_flax", "relora_nnx", "galore_equinox"])
def test_the_examples_of_other_libraries_learn(name):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def small(make=galore, rule=optax.sgd(0.1), params: Any = None, **how: Any):  # noqa: B008
    params = jnp.ones((2, 3)) if params is None else params
    made = make(rule, **{"rank": 1, "refresh_every": 1} | how)
    return made.update(params, made.init(params), params)


test_they_refuse = oracles.refuses(
    (lambda: small(rank=0), "rank: got 0, wanted at least 1"),
    (lambda: small(refresh_every=0), "refresh_every: got 0, wanted at least 1"),
    (lambda: small(relora, refresh_every=None), "refresh_every: got"),
    (lambda: small(state="drop"), "got 'drop', wanted one of keep, reset, transport"),
    (lambda: small(side="up"), "side: got 'up', wanted one of left, right, smaller,"),
    (lambda: small(relora), "key: got type NoneType, wanted a random key"),
    (lambda: small(params={"a": jnp.ones((2, 3, 4))}), r'got a of shape \(2, 3, 4\).*stacks="a"'),
    (lambda: small(rule=optax.lamb(0.1)), "got one that looks at the parameters otherwise"),
    (
        lambda: small(relora, rule=optax.sgd(0.1, 0.9), key=KEY, state="transport"),
        "moments of maps that are trained",
    ),
    (
        lambda: small(
            relora,
            params={"a": jnp.ones((2, 3)), "b": jnp.ones(2)},
            choose=lr.adapters.choose_by_path(lr.RELORA, rank=1),
            key=KEY,
        ),
        "choose: got Frozen for b, wanted a Projector or the Identity",
    ),
    (
        lambda: small(choose=lr.adapters.choose_by_path(lr.adapters.deep_lora(), rank=1), key=KEY),
        "choose: got DeepFactors for W, wanted a LinearMap",
    ),
)
