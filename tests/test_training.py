"""The loop of a training: its step is that of `simulate`, and it continues to the bit."""

import json
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn
from lrdyn.adapters import algorithm1
from lrdyn.system import whole_files
from lrdyn.training import FORGETFUL, Batches, train
from lrdyn.verification.storing import checkpoints
from lrdyn.verification.storing.checkpoints import Checkpoints
from tests.runs import Told, python

KEY = jax.random.key(0)
STEPS = np.array([0, 1, 5, 12, 30])


def data(count=24, inputs=6):
    x = jax.random.normal(jax.random.key(1), (count, inputs))
    return {"x": np.asarray(x), "y": np.asarray(jnp.sin(x @ jnp.arange(1.0, inputs + 1)))}


def network(inputs=6):
    return eqx.nn.MLP(inputs, "scalar", 5, 2, jnp.tanh, key=jax.random.key(2))


def plain(model, batch):
    return jnp.mean((jax.vmap(model)(batch["x"]) - batch["y"]) ** 2)


def loss(model, state, batch, key):
    return plain(model, batch), (state, {})


def weights(model, state=None):
    return model.layers[0].weight


class Remembers(Checkpoints):
    """Looks at every piece, and can end a run there as a kill would."""

    def __init__(self, folder, stop_after=10**9, **how):
        super().__init__(folder, **how)
        self.stop_after, self.told = stop_after, []

    def tell(self, moment, name):
        super().tell(moment, name)
        self.told.append(moment.step)

    def save(self, key, step, state):
        super().save(key, step, state)
        if len(self.told) >= self.stop_after:
            raise KeyboardInterrupt


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.01),
    "clipped": optax.chain(
        optax.clip_by_global_norm(0.1), optax.adamw(optax.warmup_constant_schedule(0, 0.1, 10))
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_full_batch_it_is_simulate(name):
    rule = OPTIMIZERS[name]
    run = train(KEY, loss, network(), rule, Batches(data()), STEPS, record=weights)
    given = data()
    wanted = eqx.filter_jit(
        lambda model: (
            lrdyn.simulate(
                lambda model: plain(model, given), model, rule, STEPS, record=weights
            ).records
        )
    )(network())
    chex.assert_trees_all_close(run.records, np.asarray(wanted), rtol=0, atol=1e-12)
    assert run.diverged_at == -1
    assert run.metrics["loss"].shape == STEPS.shape


@pytest.mark.parametrize("method", [lrdyn.GALORE, lrdyn.RELORA_FROZEN, lrdyn.RELORA, lrdyn.LORA])
def test_algorithm_1_runs_in_it(method):
    W, rule = jnp.ones((5, 4)) / 3, optax.adam(0.01)
    how: dict[str, Any] = {"rank": 2, "period": 0 if method.once else 7}

    def fits(W, state, batch, key):
        return jnp.mean((batch["x"] @ W.T - batch["y"]) ** 2), (state, {})

    given = {"x": np.asarray(jax.random.normal(KEY, (8, 4))), "y": np.ones((8, 5))}
    run = train(KEY, fits, W, algorithm1(method, rule, **how), Batches(given), STEPS)
    _, _, maps = jax.random.split(KEY, 3)
    wanted = lrdyn.low_rank_descent(
        method, lambda W: fits(W, None, given, None)[0], W, rule, steps=STEPS, key=maps, **how
    )
    chex.assert_trees_all_close(run.records, np.asarray(wanted.records), rtol=0, atol=1e-12)
    batches = Batches(given, 4)
    small = train(KEY, fits, W, algorithm1(method, rule, **how), batches, STEPS)
    assert np.abs(small.records[-1] - run.records[-1]).max() > 1e-4


@pytest.mark.parametrize("method", [None, lrdyn.GALORE, lrdyn.RELORA])
def test_a_model_is_recorded_with_all_its_leaves(method, tmp_path):
    """Functions, texts, integers and None among them, without a recorder and from a checkpoint."""
    rule = optax.adam(0.01)
    if method is not None:
        rule = algorithm1(method, rule, rank=2, period=7)
    net = {"net": network(), "name": "mlp", "nothing": None, "order": jnp.arange(6), "size": 3}

    def of_net(model, state, batch, key):
        assert (model["name"], model["nothing"], model["size"]) == ("mlp", None, 3)
        return loss(model["net"], state, {**batch, "x": batch["x"][:, model["order"]]}, key)

    def run(keeper):
        return train(KEY, of_net, net, rule, Batches(data()), STEPS, keeper=keeper)

    found = run(Checkpoints(tmp_path))
    for again in (found, run(Checkpoints(tmp_path))):
        assert again.records["name"] == "mlp"
        assert again.records["net"].activation is net["net"].activation
        assert again.records["order"].shape == (len(STEPS), 6)
        last = jax.tree.map(
            lambda leaf: leaf[-1] if eqx.is_array_like(leaf) else leaf, again.records
        )
        assert eqx.tree_equal(
            eqx.filter(last, eqx.is_inexact_array_like),
            eqx.filter(found.params, eqx.is_inexact_array),
        )


def test_records_of_half_precision_behind_a_loss_are_no_numbers():
    def fits(w, state, batch, key):
        return jnp.mean((w - batch) ** 2).astype(jnp.float32), (state, {})

    start = jnp.ones((), jnp.bfloat16)
    run = train(KEY, fits, start, optax.sgd(50.0), Batches(np.zeros(2)), (0, 900))
    assert run.diverged_at > 0
    assert np.isnan(run.records[1].astype(float))


def test_gradients_are_accumulated_to_the_large_batch():
    def run(size, rule, steps):
        batches = Batches(data(), size)
        return train(KEY, loss, network(), rule, batches, steps, record=weights).records

    rule = optax.sgd(0.1, momentum=0.9)
    large = run(8, rule, (0, 3, 9))
    four = optax.MultiSteps(rule, 4, accumulator_dtype=jnp.float64).gradient_transformation()
    chex.assert_trees_all_close(run(2, four, (0, 12, 36)), large, rtol=0, atol=1e-12)
    assert np.abs(run(2, rule, (0, 12, 36)) - large).max() > 1e-3


def test_numbers_of_half_precision_have_digests():
    given = {"x": jnp.ones((4, 2), jnp.bfloat16)}
    assert Batches(given).digest != Batches({"x": jnp.zeros((4, 2), jnp.bfloat16)}).digest

    def fits(w, state, batch, key):
        return jnp.mean((batch["x"] @ w).astype(jnp.float32) ** 2), (state, {})

    start = jnp.ones(2, jnp.bfloat16)
    run = train(KEY, fits, start, optax.sgd(0.5), Batches(given), (0, 1))
    assert run.records.astype(float).tolist() == [[1, 1], [-1, -1]]


def test_the_order_of_an_epoch_is_that_of_all_releases():
    first, second = (Batches(np.arange(7), 2).order(KEY, epoch).tolist() for epoch in range(2))
    assert first == [0, 3, 5, 1, 2, 6, 4]
    assert second == [2, 0, 1, 4, 5, 6, 3]


def test_an_epoch_takes_every_example_once_in_an_order_of_its_own():
    batches = Batches({"x": np.arange(10)}, 3)
    seen = [
        np.concatenate(
            [
                batches.at(batches.data, batches.order(KEY, epoch), epoch * 3 + t)["x"]
                for t in range(batches.epoch)
            ]
        )
        for epoch in range(2)
    ]
    assert all(len(set(one.tolist())) == 9 for one in seen)
    assert seen[0].tolist() != seen[1].tolist()


def test_a_state_and_numbers_to_watch_are_handed_on():
    def counts(w, state, batch, key):
        return w**2, (state + 1, {"noise": jax.random.normal(key)})

    steps = (0, 1, 2, 4)
    run = train(
        KEY,
        counts,
        jnp.ones(()),
        optax.sgd(0.1),
        Batches(np.ones(2)),
        steps,
        state=jnp.zeros(()),
        record=lambda w, state: state,
    )
    assert run.records.tolist() == [0, 1, 2, 4]
    assert run.state == 4
    _, noise, _ = jax.random.split(KEY, 3)
    wanted = [float(jax.random.normal(jax.random.fold_in(noise, t))) for t in (0, 1, 3)]
    assert run.metrics["noise"][1:].tolist() == wanted


def with_dropout(model, state, batch, key):
    kept = jax.random.bernoulli(key, 0.5, batch["x"].shape)
    return plain(model, {**batch, "x": batch["x"] * kept}), (state, {})


@pytest.mark.parametrize("every", [3, None])
def test_a_run_that_continues_ends_with_the_bits_of_one_that_did_not_stop(tmp_path, every):
    def run(keeper):
        batches = Batches(data(), 5)
        rule = optax.adam(0.01)
        return train(
            KEY, with_dropout, network(), rule, batches, STEPS, record=weights, keeper=keeper
        )

    whole = run(FORGETFUL)
    tries = 0
    while True:
        tries += 1
        keeper = Remembers(tmp_path, 3, every=every)
        keeper.last = -1e9  # a checkpoint is due at every piece
        try:
            found = run(keeper)
            break
        except KeyboardInterrupt:
            assert len(list(tmp_path.rglob("*.ckpt"))) <= 2
    assert tries > 1
    chex.assert_trees_all_equal(found.records, whole.records)
    chex.assert_trees_all_equal(weights(found.params), weights(whole.params))
    chex.assert_trees_all_equal(found.metrics, whole.metrics)
    kept = Remembers(tmp_path)
    chex.assert_trees_all_equal(run(kept).records, whole.records)
    assert kept.told == []  # a finished training takes no step


def small(keeper, *, scale=1.0, rate=0.1, steps=(0, 4), given=None, key=KEY):
    def fits(w, state, batch, key):
        return scale * jnp.mean((w - batch) ** 2), (state, {})

    batches = Batches(np.arange(4.0) if given is None else given, 2)
    return train(key, fits, jnp.zeros(()), optax.sgd(rate), batches, steps, keeper=keeper)


@pytest.mark.parametrize(
    "other",
    [
        {"scale": 2.0},
        {"rate": 0.2},
        {"steps": (0, 2, 4)},
        {"given": np.arange(4.0) + 1},
        {"key": jax.random.key(1)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_checkpoint_of_something_else_is_never_taken(tmp_path, other):
    small(Checkpoints(tmp_path))
    keeper = Remembers(tmp_path)
    small(keeper, **other)
    assert keeper.told
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_of_another_period_is_never_taken(tmp_path):
    """No program knows the period, and a run of another one is another run."""

    def run(keeper, period):
        def fits(W, state, batch, key):
            return jnp.sum((batch @ W - jnp.diag(jnp.array([3.0, 2.0, 1.0]))) ** 2), (state, {})

        rule = algorithm1(lrdyn.GALORE, optax.sgd(0.1), rank=1, period=period)
        batches = Batches(np.eye(3))
        return train(KEY, fits, jnp.zeros((3, 3)), rule, batches, (0, 8), keeper=keeper).params

    run(Checkpoints(tmp_path), 2)
    keeper = Remembers(tmp_path)
    found = run(keeper, 8)
    assert keeper.told
    chex.assert_trees_all_equal(found, run(FORGETFUL, 8))
    assert float(jnp.max(jnp.abs(found - run(FORGETFUL, 2)))) > 1e-6


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    whole = small(Remembers(tmp_path, every=1))
    before, last = sorted(tmp_path.rglob("*.ckpt"))
    body = last.read_bytes()
    changed = {
        "cut": body[:-3],
        "changed": body[:-3] + b"abc",
        "empty": b"",
        "other": json.dumps({"key": "0"}).encode() + b"\n",
    }
    last.write_bytes(changed[damage])
    told = Told()
    keeper = Remembers(tmp_path, every=1, progress=told)
    found = small(keeper)
    assert keeper.told == [4]
    assert found.params == whole.params
    (note,) = told.notes
    assert str(last) in note
    assert "damaged" in note
    assert last.with_name(f"{last.name}.damaged").exists()
    assert last.exists()
    assert before.exists()


def test_a_lost_run_ends_and_its_last_finite_checkpoint_stays(tmp_path):
    told = Told()
    folder = tmp_path / checkpoints.FOLDER
    keeper = Checkpoints(folder, every=2, label="one seed=1", progress=told)
    steps = (0, 2, 600)
    run = small(keeper, rate=5.0, steps=steps)
    assert 2 < run.diverged_at < 600
    assert np.isfinite(run.records[:2]).all()
    assert np.isnan(run.records[2])
    (note,) = told.notes
    assert note.startswith(f"one seed=1: diverged at step {run.diverged_at}")
    (tmp_path / whole_files.MARK).touch()
    checkpoints.clear(tmp_path)
    paths = sorted(tmp_path.rglob("*.ckpt"))
    assert 1 <= len(paths) <= 2
    assert all(int(path.stem.removeprefix("step-")) <= run.diverged_at for path in paths)
    small(Checkpoints(folder))
    checkpoints.clear(tmp_path)
    assert sorted(tmp_path.rglob("*.ckpt")) == paths


def test_what_is_measured_is_written_down(tmp_path):
    log = tmp_path / "metrics.csv"
    small(Checkpoints(tmp_path / "kept", every=1, label="a", log=log))
    head, *rows = [line.split(",") for line in log.read_text().splitlines()]
    assert head == ["run", "step", "name", "value"]
    losses = [(int(step), float(value)) for _, step, name, value in rows if name == "loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    # A run that continues at step 3 writes step 4 again, once.
    (last,) = (tmp_path / "kept").rglob("step-0000000004.ckpt")
    last.unlink()
    small(Checkpoints(tmp_path / "kept", every=1, label="a", log=log))
    assert len(log.read_text().splitlines()) == len(rows) + 1


def test_a_second_training_leaves_the_lines_of_the_first(tmp_path):
    """One run can train twice, and the label of one can begin like that of another."""
    log = tmp_path / "metrics.csv"

    def fits(w, state, batch, key):
        return jnp.mean((w - batch) ** 2), (state, {})

    # The longest label first: each training begins anew, and must forget no lines but its own.
    said = (("a seed=10", ""), ("a seed=1", "shuffled"), ("a seed=1", ""))
    for number, (label, name) in enumerate(said):
        keeper = Checkpoints(tmp_path / "kept", every=1, label=label, log=log)
        key, batches = jax.random.key(number), Batches(np.arange(4.0), 2)
        train(key, fits, jnp.zeros(()), optax.sgd(0.1), batches, (0, 2), name=name, keeper=keeper)
    runs = {line.split(",")[0] for line in log.read_text().splitlines()[1:]}
    assert runs == {"a seed=10", "a seed=1 shuffled", "a seed=1"}


def test_what_a_loss_closes_over_is_not_built_into_the_program():
    frozen = jax.random.normal(KEY, (200, 200))

    def fits(w, state, batch, key):
        return jnp.mean((frozen @ w - batch[0]) ** 2), (state, {})

    rule, steps, given = optax.sgd(1e-3), np.array([0, 3]), np.ones((1, 200))
    run = train(KEY, fits, jnp.zeros(200), rule, Batches(given), steps)
    wanted = lrdyn.simulate(lambda w: fits(w, None, given, None)[0], jnp.zeros(200), rule, steps)
    chex.assert_trees_all_close(run.params, np.asarray(wanted.params), rtol=0, atol=1e-12)


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, optax, sys
from lrdyn import cli
from lrdyn.training import (Batches, train)

cli.setup("float64", host_devices=8)
x = np.asarray(jax.random.normal(jax.random.key(1), (48, 6)))
def loss(w, state, batch, key):
    noise = jax.random.normal(key)
    return jnp.mean((batch @ w - 1) ** 2) + 0 * noise, (state, {})
for size in (16, None):
    ends = [
        train(jax.random.key(0), loss, jnp.zeros(6), optax.adam(0.1), Batches(x, size), (0, 20),
              devices=jax.devices()[:count]).params
        for count in (1, 2, 8)
    ]
    print(max(float(abs(end - ends[0]).max()) for end in ends) < 1e-14)
try:
    train(jax.random.key(0), loss, jnp.zeros(6), optax.adam(0.1), Batches(x, 9), (0, 1),
          devices=jax.devices()[:2])
except ValueError as error:
    print(error)
"""


def test_one_two_and_eight_devices_agree(tmp_path):
    done = python("-", source=DEVICES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True",
        "True",
        "batches: got 9 examples, wanted a multiple of 2",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size: got 0, wanted 1 to 4"),
        ({"size": 5}, "size: got 5"),
        ({"data": {"x": np.ones(3), "y": np.ones(4)}}, "data: got leading axes"),
        ({"data": None}, "data: got leading axes"),
    ],
)
def test_wrong_batches_are_named(unchecked, wrong, message):
    given = {"data": np.ones(4), "size": None, **wrong}
    with pytest.raises(ValueError, match=message):
        Batches(given["data"], given["size"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"key": 0}, "key: got"),
        ({"optimizer": None}, "optimizer: got"),
        ({"batches": np.ones(3)}, "batches: got type ndarray"),
        ({"steps": (2, 1)}, "steps: got"),
        ({"params": 3}, "params: got"),
    ],
)
def test_wrong_arguments_are_named(unchecked, wrong, message):
    given = {
        "key": KEY,
        "loss": loss,
        "params": network(),
        "optimizer": optax.sgd(0.1),
        "batches": Batches(data()),
        "steps": (0, 1),
        **wrong,
    }
    with pytest.raises(ValueError, match=message):
        train(*given.values())


def test_convolutions_step_by_step_are_those_of_a_loop(monkeypatch):
    """On a CPU a network with convolutions is stepped from Python."""
    from lrdyn.training import loop

    net = eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(3))
    given = {"x": np.asarray(jax.random.normal(KEY, (6, 1, 5, 5))), "y": np.ones(6)}

    def fits(net, state, batch, key):
        found = jax.vmap(net)(batch["x"]).mean(axis=(1, 2, 3))
        return jnp.mean((found - batch["y"]) ** 2), (state, {})

    def run():
        rule, batches = optax.adam(0.1), Batches(given, 2)
        return train(KEY, fits, net, rule, batches, (0, 3, 9), record=lambda net, _: net.weight)

    made = []
    kept = loop._Programs.pieces
    monkeypatch.setattr(
        loop._Programs, "pieces", lambda self, *ends: made.append(self.looped) or kept(self, *ends)
    )
    alone = run().records
    assert not any(made)
    monkeypatch.setattr(loop, "STEPPED", "nothing")
    looped = run().records
    assert made[-1]
    chex.assert_trees_all_close(alone, looped, rtol=0, atol=1e-12)
