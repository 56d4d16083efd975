"""The study of Figures 4, 5, 7 and 8 on a tiny BERT and 64 made-up pairs of sentences."""

import json
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import lrdyn
from lrdyn.figures import exhibits, plotting
from lrdyn.figures.long import numbers as long_numbers
from lrdyn.networks import packing
from lrdyn.studies.adapter_training import (
    ADAPTERS,
    cells,
    one_step,
    ranks,
    rates,
    sentences,
    singular_value_evolution,
    tasks,
    tuning,
    widths,
)
from lrdyn.studies.adapter_training.digits import Digits
from lrdyn.studies.adapter_training.few_shot import Searched
from lrdyn.studies.adapter_training.rates import Chosen
from lrdyn.training import FORGETFUL
from lrdyn.verification.stating.claims import CLEARLY, tolerance
from paper_figs import (
    fig04_adapter_svd,
    fig05_lora_factors,
    fig07_few_shot,
    fig08_ranks,
    paired,
)
from tests.kept_numbers import as_kept, kept
from tests.runs import results_of, verdict_of
from tests.sentences import BERT, write_pairs, write_sentences


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    train, dev = (write_pairs(folder / f"{n}.csv", c) for n, c in (("train", 200), ("dev", 20)))
    sentences = write_sentences(folder / "sentences.tsv", 120)
    paths = {"text_file": sentences, "train_file": train, "dev_file": dev}
    return {"encoder": str(BERT), **{name: str(path) for name, path in paths.items()}}


def case_of(files, **other):
    given = {
        "task": "similarity",
        "dev_pairs": 20,
        "method": ("lora",),
        "rank": 2,
        "examples": 16,
        "layers": 2,
        "length": 14,
        "pool": "mean",
        "steps": 2,
        "rate_seeds": 1,
        "init_scale": 1e-3,
        "center": "no",
    }
    return tuning.make_tuning(jax.random.key(1), **files, **given | other)


class Problem(NamedTuple):
    """A cross-encoder, examples that it is trained on, and texts that it is tested on."""

    net: tuning.CrossEncoder
    train: sentences.Examples
    dev: sentences.Tested


def problem_of(case, examples, layer):
    train, dev, parts = tasks.texts_of(tuning.task_of(case))
    read = {"length": case.length, "layer": layer}
    net, drawn_examples = tuning.draw_cross_encoder(
        jax.random.split(case.key, 4)[:2],
        sentences.take_texts(train, parts["train"]),
        examples,
        encoder=case.encoder,
        pool=case.pool,
        **read,
    )
    pretrained = sentences.read(sentences.folder_of(case.encoder))
    tested = sentences.encode(pretrained, dev, parts["test"], precision=tuning.precision(), **read)
    return Problem(net, drawn_examples, sentences.pack_texts(tested))


def begun_on(net, paths):
    """LoRA whose factors are both away from 0."""
    begun = lrdyn.adapters.init(jax.random.key(0), net, select=paths, rank=2)
    ones = jax.tree.map(lambda x: x + 0.1, begun)
    return {p: eqx.tree_at(lambda a: a.scale, x, jnp.asarray(1.0)) for p, x in ones.items()}


def matrices(net):
    """Paths of all dense matrices from its layer on, the pooler among them if it is read."""
    names = [f"attention.{n}" for n in ("query", "key", "value", "output")]
    names += ["mlp.weights.0", "mlp.weights.1"]
    layers = range(net.layer, len(net.model.layers))
    paths = [f"model.layers.{l}.{name}" for l in layers for name in names]
    return [*paths, *(["model.pooler.weight"] if net.pool == "pooler" else [])]


# Data and model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", tasks.POOLS)
def test_layers_below_the_first_adapted_one_are_computed_once(files, pool):
    case = case_of(files, pool=pool)
    part, whole = (problem_of(case, 16, layer) for layer in (1, 0))
    begun = begun_on(part.net, matrices(part.net))

    @jax.jit
    def both(begun):
        def loss(begun, problem):
            return tuning.squared_error(problem.net, begun, None, problem.train, None)[0]

        return [jax.value_and_grad(loss)(begun, problem) for problem in (part, whole)]

    (loss_part, slopes), (loss_whole, others) = jax.device_get(both(begun))
    slack = 100 * tolerance("identity", "float32", size=40)
    np.testing.assert_allclose(loss_part, loss_whole, rtol=slack)
    pairs = zip(*map(jax.tree.leaves, (slopes, others)), strict=True)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(others))
    assert largest > 1e-4
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=slack * largest)
    assert len(begun) == 12 + (pool == "pooler")


def test_examples_are_drawn_with_replacement_by_the_seed(files):
    case = case_of(files)
    drawn_once, drawn_again = (problem_of(case, 64, 1).train for _ in range(2))
    other_seed = problem_of(case._replace(key=jax.random.key(2)), 64, 1).train
    np.testing.assert_array_equal(drawn_once.hidden, drawn_again.hidden)
    assert np.abs(drawn_once.hidden - other_seed.hidden).max() > 0.1
    assert len(np.unique(np.asarray(drawn_once.hidden).reshape(64, -1), axis=0)) < 60


def test_the_mean_of_the_scores_is_the_heads_bias(files):
    train = problem_of(case_of(files), 16, 1).train
    assert abs(float(train.scores.mean())) < 1e-6
    steps = np.diff(np.unique(np.round(5 * np.asarray(train.scores), 4)))
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)  # whole scores, all shifted alike


def test_pairs_are_computed_in_parts(files, monkeypatch):
    read, pairs = sentences.read(BERT), sentences.pairs_of(files["train_file"], "train")
    known = sentences.texts_of_pairs(pairs)
    how = {"length": 14, "layer": 1, "precision": "float32"}
    whole = sentences.encode(read, known, np.arange(7), **how)
    monkeypatch.setattr(sentences, "PART", 3)
    parts = sentences.encode(read, known, np.arange(7), **how)
    np.testing.assert_allclose(parts.hidden, whole.hidden, rtol=0, atol=1e-5)
    second = (known.second or [])[:7]
    tokens = sentences.encoder.tokens(read.tokenizer, known.first[:7], second, length=14)
    expected = read.model.below(tokens, 1)
    np.testing.assert_allclose(whole.hidden[tokens.mask], expected[tokens.mask], atol=1e-5)


def test_what_is_filled_up_beyond_the_longest_pair_changes_nothing(files, monkeypatch):
    def outputs(step):
        monkeypatch.setattr(sentences, "STEP", step)
        pairs = sentences.pairs_of(files["train_file"], "train")
        net, examples = tuning.draw_cross_encoder(
            jax.random.split(jax.random.key(1)),
            sentences.texts_of_pairs(pairs),
            7,
            encoder=files["encoder"],
            length=40,
            pool="mean",
            layer=0,
        )
        return examples, net(examples.hidden, examples.mask)

    (short, values), (filled, others) = outputs(2), outputs(40)
    assert short.hidden.shape[1] - 2 < int(short.mask.sum(axis=1).max()) <= short.hidden.shape[1]
    assert filled.hidden.shape[1] == 40 > short.hidden.shape[1] + 4
    np.testing.assert_allclose(values, others, rtol=0, atol=1e-6 * float(jnp.abs(others).max()))


@pytest.mark.parametrize(("examples", "pool"), [(16, "mean"), (48, "pooler")])
def test_pairs_that_share_rows_leave_the_loss_as_it_is(files, examples, pool):
    problem = problem_of(case_of(files, pool=pool, length=40), examples, 1)
    begun = begun_on(problem.net, matrices(problem.net))
    loss = partial(
        tuning.squared_error, problem.net, rooms=sentences.rooms(problem.train.mask, tuning.BATCH)
    )
    longest = jnp.argsort(-problem.train.mask.sum(axis=1))
    usual, *most = loss.keywords["rooms"]
    assert len(most) == (examples > tuning.BATCH)

    @jax.jit
    def both(begun, batch):
        return [
            jax.value_and_grad(lambda added, way=way: way(added, None, batch, None)[0])(begun)
            for way in (loss, partial(tuning.squared_error, problem.net))
        ]

    # Of many examples the longest do not fit into the usual room, the shortest do.
    for rows in (longest[:16], longest[-16:]):
        batch = jax.tree.map(lambda x, rows=rows: x[rows], problem.train)
        fits = int(packing.room_for(batch.mask, 4)) <= usual
        assert fits == (not most or rows[0] != longest[0])
        (packed, slopes), (apart, others) = jax.device_get(both(begun, batch))
        slack = 100 * tolerance("identity", "float32", size=40)
        np.testing.assert_allclose(packed, apart, rtol=slack)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(others))
        assert largest > 1e-4
        for mine, theirs in zip(*map(jax.tree.leaves, (slopes, others)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=slack * largest)


@pytest.mark.parametrize("pool", tasks.POOLS)
def test_pearson_is_the_correlation_of_all_outputs(files, pool):
    case = case_of(files, pool=pool)
    problem = problem_of(case, 16, 1)
    read, pairs = sentences.read(BERT), sentences.pairs_of(files["dev_file"], "dev")
    known = sentences.texts_of_pairs(pairs)
    how = {"length": case.length, "layer": 1, "precision": "float32"}
    dev = sentences.encode(read, known, np.arange(20), **how)
    expected = np.corrcoef(problem.net(dev.hidden, dev.mask), dev.scores)[0, 1]
    np.testing.assert_allclose(tuning.pearson(problem.net, problem.dev, {}), expected, atol=1e-5)


# Methods -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(files):
    """Small trainings on sentences."""
    task = tasks.Task(
        "sentiment", str(BERT), files["text_file"], "auto", "auto", "", 30, layers=1, length=14
    )
    return cells.Bench(cells.SentenceTraining(tasks.encode(task, "float64")), FORGETFUL)


def asked(method="lora", **other):
    given = {"rank": 2, "examples": 16, "rate": 1e-2, "steps": 4, "eps": 1e-3}
    return cells.TrainingRequest(method, **given | other)


def test_methods_start_as_stated(bench):
    path = "model.layers.2.attention.value"
    assert bench.paths == ["model.layers.2.attention.query", path]
    begun = {
        n: bench.init_adapters(jax.random.key(0), asked(n, rank=8))[path] for n in cells.METHODS
    }
    assert not begun["lora"].B.any()
    assert 0.8 < begun["lora"].A.std() * np.sqrt(24) < 1.2  # variance 1 / d
    np.testing.assert_allclose(begun["lora_unit"].A, begun["lora"].A * np.sqrt(24))
    assert not begun["lora_b"].A.any()
    assert begun["lora_b"].B.any()
    for name, shapes in (("deep_lora", [(24, 8), (8, 8), (8, 24)]), ("two_factors", 0)):
        layers = begun[name].factors
        assert [F.shape for F in layers] == (shapes or [(24, 8), (8, 24)])
        for F in layers:
            np.testing.assert_allclose(np.linalg.svd(F)[1], 1e-3, rtol=1e-4)
    assert not begun["full"].value.any()


def test_parts_of_the_texts_share_none(files):
    texts, dev, parts = tasks.texts_of(
        tasks.Task("sentiment", str(BERT), files["text_file"], "auto", "auto", "", 30, 1, 14)
    )
    assert dev is texts
    rows = np.concatenate(list(parts.values()))
    assert sorted(rows.tolist()) == list(range(len(texts.scores)))
    assert {n: len(r) for n, r in parts.items()} == {
        "test": 30, "rate_test": 10, "rate_train": 30, "train": 50
    }  # fmt: skip
    assert (texts.scores.min(), texts.scores.max()) == (0, 1)


def test_a_text_that_stands_twice_is_read_once(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("1\ta cat\n0.5\tsome cat\n0\ta cat\n")
    texts = tasks.read_sentiment(str(path))
    assert (texts.first, texts.scores.tolist()) == (["a cat", "some cat"], [1.0, 0.0])


def test_a_rate_is_chosen_where_no_report_looks(bench):
    keys = [jax.random.key_data(cells.seed_of_rates(place)).tolist() for place in range(3)]
    assert len({str(key) for key in keys}) == 3
    assert all(jax.random.key_data(jax.random.key(seed)).tolist() not in keys for seed in range(99))
    reported = set(bench.draw_rows(jax.random.key(1), 40).tolist())
    elsewhere = set(bench.draw_rows(jax.random.key(1), 30, "rate_").tolist())
    assert len(reported) == 40
    assert not reported & elsewhere
    assert reported | elsewhere <= set(range(len(bench.ground.scores)))
    tested = {name: set(bench.ground.rows[name].tolist()) for name in ("test", "rate_test")}
    assert not tested["test"] & tested["rate_test"]
    assert not (reported | elsewhere) & (tested["test"] | tested["rate_test"])


def test_few_examples_are_the_first_of_more(bench):
    few, more = (bench.draw_rows(jax.random.key(3), count) for count in (16, 48))
    assert few.tolist() == more[:16].tolist()
    with pytest.raises(ValueError, match=r"--examples: got 51, wanted at most the 50 there"):
        bench.draw_rows(jax.random.key(3), 51)


def test_batches_are_epochs_of_the_examples(bench):
    rows = bench.draw_rows(jax.random.key(3), 48)
    order = np.asarray(bench.batches(jax.random.key(4), rows, 7))
    assert order.shape == (7, 16)
    for epoch in (order[:3], order[3:6]):
        assert sorted(epoch.ravel().tolist()) == sorted(rows.tolist())
    assert (order[:3] != order[3:6]).any()


@pytest.mark.parametrize("method", ["lora_plus_16", "full"])
def test_a_cell_is_a_plain_loop_of_optax(bench, method):
    """Losses, norms and correlation, step by step with arrays that are merged."""
    ask, key = asked(method, steps=3), jax.random.key(5)
    cell = bench.run(ask, key)
    rows_key, head_key, start_key, order_key = jax.random.split(key, 4)
    rows = bench.draw_rows(rows_key, 16)
    order = np.asarray(bench.batches(order_key, rows, 3))
    head = tuning.HEAD * jax.random.normal(head_key, (24,))
    data = bench.ground
    scores = data.scores - jnp.mean(data.scores[rows])
    begun = bench.init_adapters(start_key, ask)

    def outputs(now, places):
        net = lrdyn.adapters.merge(bench.net, now)
        mask = data.examples.mask[places]
        above = net.model.above(data.examples.hidden[places], mask, net.layer)
        weights = mask / mask.sum(axis=1, keepdims=True)
        return jnp.einsum("blw,bl,w->b", above, weights, head)

    def loss(now, places):
        return jnp.mean((outputs(now, places) - scores[places]) ** 2)

    import optax

    now, losses = begun, []
    falling = [1e-2, 1e-2 * 2 / 3, 1e-2 / 3]
    moments = optax.scale_by_adam(0.9, 0.999, 1e-6)
    state = moments.init(now)
    faster = jax.tree.map(lambda x: 1.0, now)
    if method == "lora_plus_16":
        faster = {p: eqx.tree_at(lambda a: a.B, x, 16.0) for p, x in faster.items()}
    for t in range(3):
        value, slope = jax.value_and_grad(loss)(now, order[t])
        losses.append(float(value))
        moves, state = moments.update(slope, state)
        now = jax.tree.map(lambda x, m, f, t=t: x - falling[t] * f * m, now, moves, faster)
    slack = 2.0**-23  # optax has its schedules in float32
    np.testing.assert_allclose(cell.losses, losses, rtol=slack)
    ends = [jnp.linalg.norm(x.factors_now()[0]) for x in now.values()]
    np.testing.assert_allclose(cell.norms[-1, :, 0], ends, rtol=slack)
    places = data.rows["test"]
    expected = np.corrcoef(outputs(now, places), data.scores[places])[0, 1]
    np.testing.assert_allclose(cell.pearson, expected, atol=1e-7)
    added = now[bench.paths[1]].onto(jnp.zeros((24, 24)))
    values = np.linalg.svd(np.asarray(added))[1][: cell.values.shape[1]]
    np.testing.assert_allclose(cell.values[1], values, atol=slack * values[0])


def test_a_training_that_was_kept_is_not_run_again(files, bench, tmp_path, monkeypatch):
    monkeypatch.setenv("LRDYN_TRAININGS", str(tmp_path / "kept"))
    once = cells.Bench(bench.ground, FORGETFUL)
    first = once.run(asked(), jax.random.key(5))
    again = cells.Bench(bench.ground, FORGETFUL)
    monkeypatch.setattr(cells, "_test_pearson", None)  # what is run would need it
    second = again.run(asked(), jax.random.key(5))
    for mine, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for other in (asked(rate=2e-2), asked(examples=32), asked("lora_unit"), asked(steps=5)):
        with pytest.raises(TypeError):  # another training
            again.run(other, jax.random.key(5))
    with pytest.raises(TypeError):
        again.run(asked(), jax.random.key(6))


# Rates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [-9, -6, -5, -1])
def test_the_best_rate_is_never_at_an_edge(best):
    tried = []

    def score(rate):
        tried.append(round(2 * np.log10(rate)))
        return -np.array([abs(tried[-1] - best), abs(tried[-1] - best) + 0.5])

    chosen = rates.search_rate(score, -6)
    assert round(2 * np.log10(chosen.rate)) == best
    assert chosen.bracketed
    assert min(tried) < best < max(tried)
    assert len(chosen.tried) == len(tried) == len(set(tried)) >= 5
    assert set(range(-8, -3)) <= set(tried)


def test_a_score_that_only_rises_is_not_called_bracketed():
    chosen = rates.search_rate(lambda rate: np.array([rate]), -6)
    assert not chosen.bracketed


def test_a_training_that_diverged_is_not_chosen():
    scores = {-6: 0.5, -5: 0.6, -4: np.nan}
    chosen = rates.search_rate(
        lambda rate: np.array([scores.get(round(2 * np.log10(rate)), 0.1)]), -6
    )
    assert chosen.rate == pytest.approx(10**-2.5)


def test_the_ridge_solves_its_normal_equations():
    rng = np.random.default_rng(0)
    H, y = rng.normal(size=(9, 20)) + 3, rng.normal(size=9)
    fit = rates.ridge(H, y, 0.3)
    centred = H - H.mean(axis=0)
    penalty = 0.3 * np.mean(centred**2)
    left = centred.T @ (centred @ fit.weights - (y - y.mean())) / 9 + penalty * fit.weights
    np.testing.assert_allclose(left, 0, atol=1e-12)
    assert np.mean(H @ fit.weights + fit.bias - y) == pytest.approx(0, abs=1e-12)


def test_adam_is_the_authors(files):
    rule, slopes = tuning.adam(4)(0.1), np.array([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]])
    state, m, v = rule.init(jnp.zeros(2)), 0.0, 0.0
    for t, G in enumerate(slopes):
        move, state = rule.update(jnp.asarray(G), state, jnp.ones(2))
        m, v = 0.9 * m + 0.1 * G, 0.999 * v + 0.001 * G**2
        hats = m / (1 - 0.9 ** (t + 1)), v / (1 - 0.999 ** (t + 1))
        expected = -0.1 * (1 - t / 4) * hats[0] / (np.sqrt(hats[1]) + 1e-6)
        np.testing.assert_allclose(np.asarray(move), expected, rtol=1e-6)


def test_ranks_are_counted():
    values = np.array([1.0, 0.5, 1e-3, 1e-9])
    assert cells.final_rank(values, 24) == 3
    assert cells.final_rank(0.9e-3 * values, 24) == 0
    assert cells.energy_rank(values) == 2
    assert cells.energy_rank(values, 0.79) == 1
    assert cells.energy_rank(np.zeros(3)) == 0


# The identity ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step(files):
    given = {name: files[name] for name in ("encoder", "text_file", "train_file")}
    return one_step.make_step(jax.random.key(0), **given, length=14, pool="mean", rank=2)


def test_the_gradient_of_the_real_loss_by_differences(step):
    W, rng = one_step.merged_matrix(step), np.random.default_rng(0)
    direction = jnp.asarray(rng.normal(size=W.shape))

    def loss(t):
        layers = [*step.net.model.layers]
        place = step.net.layer
        layers[place] = eqx.tree_at(lambda l: l.attention.value, layers[place], W + t * direction)
        net = eqx.tree_at(lambda n: n.model.layers, step.net, tuple(layers))
        outputs = net(step.batch.hidden, step.batch.mask)
        return np.mean((np.asarray(outputs) - np.asarray(step.batch.scores)) ** 2)

    h = 1e-5
    expected = (loss(h) - loss(-h)) / (2 * h)
    np.testing.assert_allclose(np.sum(one_step.slope(step, W) * direction), expected, rtol=1e-6)


def test_one_step_on_the_real_loss(step):
    """The new factors by hand, from that gradient and the chain rule."""
    G = np.asarray(one_step.slope(step, one_step.merged_matrix(step)))
    (eta_A, eta_B), s = np.asarray(step.rates), float(step.adapter.scale)
    B, A = np.asarray(step.adapter.B), np.asarray(step.adapter.A)
    after = s * (B - eta_B * s * G @ A.T) @ (A - eta_A * s * B.T @ G)
    theory, run = one_step.predict_step(step), one_step.measure_step(step)
    slack = tolerance("identity", "float64", size=40) * float(theory.real_scale)
    np.testing.assert_allclose(run.real_step, after - s * B @ A, rtol=0, atol=slack)
    np.testing.assert_allclose(theory.real_step, after - s * B @ A, rtol=0, atol=slack)
    parts = [np.abs(part).max() for part in one_step.terms(step, jnp.asarray(G))]
    assert min(parts) > 1e-3 * max(parts)


# The toy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [(0.1, 1.0), (0.5, 0.5)])
def test_two_steps_of_the_toy_in_numpy(rates):
    x, a = np.random.default_rng(0).normal(size=(2, 30)) / np.array([[1], [30**0.5]])
    z, U = a @ x, -1.0
    b = -rates[1] * U * z
    U = b * z - 1
    expected = [rates[0] * b**2 * (x @ x), rates[1] * z**2, abs(U)]
    moves = widths.second_step(jnp.asarray(a), jnp.asarray(x), lambda G: G, jnp.asarray(rates))
    np.testing.assert_allclose(moves, expected, rtol=1e-12)


# Theorem 2's form --------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "holds"), [("sgd", True), ("adam", False)])
def test_the_form_is_seen_where_theorem_2_holds(rule, holds):
    import optax

    keys = jax.random.split(jax.random.key(0), 2)
    start = lrdyn.orthogonal_layers(keys[0], (9,) * 4, jnp.full(3, 0.5))
    Phi = lrdyn.low_rank_target(keys[1], (9, 9), jnp.array([1.0, 0.7]))
    frame = lrdyn.frame(start, Phi, 2)
    run = lrdyn.simulate(
        lambda layers: lrdyn.factorization_loss(layers, Phi),
        start,
        optax.sgd(0.1) if rule == "sgd" else optax.adam(0.01),
        np.array([0, 40]),
        record=lambda layers: singular_value_evolution.snapshot(frame, start, 4, layers),
    )
    slack = tolerance("identity", "float64", size=9, steps=40)
    assert (run.records.gap[1] <= 10 * slack) == holds
    assert holds or run.records.gap[1] > CLEARLY * slack
    if holds:  # the four that move are those of the frame
        angles = np.sort(run.records.right_angle[1])
        np.testing.assert_allclose(angles[:4], 0, atol=1e-6)
        np.testing.assert_allclose(angles[4:], 90, atol=1e-5)


# The study ---------------------------------------------------------------------------------------


SMALL = (
    "--task sentiment --dev-pairs 10 --rank 2 3 --examples 16 --layers 1 --length 14 --steps 2 "
    "--init-scale 1 --center yes --method lora lora_unit --seeds 2 --rate-seeds 1"
).split()


def words_of(files):
    return [w for name, value in files.items() for w in ("--" + name.replace("_", "-"), value)]


def test_the_study_and_its_figures(command_line, files, tmp_path):
    out = tmp_path / "out"
    status, text, errors = command_line(ADAPTERS, *words_of(files), *SMALL, "--out", out)
    assert status == 0, errors + text
    assert text.splitlines()[0] == (
        "adapters: on an encoder of 3 layers of width 24: sentiment (70 texts to draw from, 10 to "
        "test on, 30 and 10 to choose rates on)"
    )
    claims = {claim["id"]: claim for claim in verdict_of(out)["claims"]}
    for name in ("real_step", "width_A", "width_B", "width_ratio"):
        assert claims[name]["holds"] is True
        assert set(claims[name]["judged"]) == {"float32", "float64"}
    assert all(c["holds"] for c in claims.values() if c["kind"] == "control")
    found = claims["sentiment_lora_less_lora_unit_16"]["finding"]
    assert found["seeds"] == 2
    assert claims["sentiment_lora_less_lora_unit_64"]["finding"]["value"] is None  # not run
    few, ranks = (results_of(out, group) for group in ("/few_shot", "/ranks"))
    assert few.method.values.ravel()[:2].tolist() == [1, 0]
    rows = few.pearson.values.reshape(2, 2)
    assert found["value"] == pytest.approx(np.mean(rows[:, 0] - rows[:, 1]))
    # At the first rank both figures have the same trainings, and both rates are the same.
    columns = ranks.pearson.values.reshape(2, 2, 2, 2)
    np.testing.assert_array_equal(columns[:, :, 0, 0], rows)
    np.testing.assert_array_equal(columns[:, :, 0, 1], rows)
    tried = few.tried.values.reshape(4, -1)[0]
    assert np.isfinite(tried).sum() >= 5
    assert few.rate.values.ravel()[0] in tried
    evolved = results_of(out, "/evolution")
    np.testing.assert_allclose(evolved.sigma.isel(step=0).values, 1, atol=1e-5)
    # Centred, the model starts as it was.
    read = sentences.read(BERT).model
    W = np.asarray(read.layers[1].attention.value, float)
    before = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(
        evolved.value_sigma.isel(step=0).values.squeeze()[0, 0], before, rtol=1e-4, atol=1e-5
    )
    assert evolved.moved.isel(step=-1).values.min() > 1e-5
    for figure in (fig04_adapter_svd, fig05_lora_factors, fig07_few_shot, fig08_ranks):
        drawn(figure.FIGURE, out)
    values = {name: c["finding"]["value"] for name, c in claims.items() if "finding" in c}
    found = {name: kept(value) for name, value in values.items() if value is not None}
    as_kept("small_findings", found)
    for group in ("evolution", "factors", "few_shot", "ranks"):
        as_kept(f"small_{group}", numbers_of(results_of(out, f"/{group}")))


def numbers_of(run):
    """What is kept of a part of the study.

    Of vectors whose singular values are equal to rounding nothing is known: angles are kept of the
    largest value alone, and behind the start.
    """
    arrays = {str(name): array for name, array in run.data_vars.items() if array.dtype.kind in "fi"}
    for name in ("right_angle", "left_angle"):
        if name in arrays:
            (axis,) = {"index", "curve"} & set(arrays[name].dims)
            arrays[name] = arrays[name].isel({axis: 0, "step": slice(1, None)})
    return {name: kept(array.values) for name, array in arrays.items()}


def drawn(figure, out):
    """Draw from the results, and fill its caption."""
    dataset = long_numbers(figure, out, None, "quick")
    with plotting.style():
        assert len(figure.draw(dataset).axes) >= 2
    caption = exhibits.caption(figure, dataset)
    assert "{" not in caption
    assert "nan" not in caption
    as_kept(f"small_{figure.name}", numbers_of(dataset))
    assert json.loads(dataset.attrs["settings"])["adapters"]["length"] == 14


def test_ranks_are_trained_at_their_own_rates_and_at_the_first(files, monkeypatch):
    asked = []

    class Bench:
        def run(self, one, key):
            asked.append((one.rank, one.rate))
            return cells.Cell(np.array(0.5), np.zeros(2), np.zeros((2, 1, 2)), np.ones((1, 2)))

    best = {2: 0.1, 4: 0.01, 8: 0.001}
    chosen = {r: Chosen(rate, np.array([rate]), np.zeros((1, 1)), True) for r, rate in best.items()}
    monkeypatch.setattr(ranks, "bench_of", lambda case, keeper: Bench())
    monkeypatch.setattr(
        ranks, "search_rates", lambda bench, case, name, r, n: Searched(chosen[r], np.zeros((1, 1)))
    )
    monkeypatch.setattr(ranks, "ridge_pearson", lambda bench, case, n: n / 100)
    found = ranks.measure_ranks(case_of(files, rank=(2, 4, 8)))
    assert asked == [(r, rate) for r in best for rate in (best[r], best[2])]
    assert found.rate.tolist() == [list(best.values())]
    assert found.tried[..., 0].tolist() == found.rate.tolist()
    assert np.isnan(found.tried[..., 1:]).all()
    assert found.ridge == 0.16


def test_a_figure_needs_its_own_part_of_the_results(tmp_path):
    from lrdyn.figures.long import Undrawable

    with pytest.raises(Undrawable, match="fig07"):
        long_numbers(fig07_few_shot.FIGURE, tmp_path, None, "quick")


def test_what_two_methods_differ_by():
    difference = paired.compare_pair(np.array([0.5, 0.2, 0.9, 0.4]), np.array([0.4, 0.3, 0.5, 0.4]))
    assert difference.seeds == 4
    assert difference.mean == pytest.approx(0.1)
    assert difference.error == pytest.approx(np.std([0.1, -0.1, 0.4, 0.0], ddof=1) / 2)


def test_captions_say_what_the_findings_of_the_study_say():
    """Each finding that an interval decides has its part of .05."""
    stated = [one for one in ADAPTERS.findings.values() if one.expected.decided]
    # Eight differences at four n and six changes at two, of two tasks, and two of Figure 5.
    assert len(stated) == ADAPTERS.intervals == 2 * (8 * 4 + 6 * 2) + 2
    found = paired.compare_pair(np.array([0.5, 0.4, 0.7, 0.4]), np.array([0.4, 0.3, 0.5, 0.4]))
    low, high = stats.t.interval(1 - 0.05 / len(stated), 3, 0.1, found.error)
    name = "similarity_deep_lora_less_lora_unit_16"
    assert found.came_of(name) == f"too wide, {low:+.3f} to {high:+.3f}"
    assert paired.compare_pair(np.ones(1), np.zeros(1)).came_of(name) == "one seed"


def test_the_authors_numbers_are_expected_of_their_task_alone():
    sources = {name: one.source for name, one in ADAPTERS.findings.items() if one.source}
    assert sources["similarity_deep_lora_less_lora_unit_16"] == 0.069
    assert sources["ranks_similarity_16_lora_unit_first"] == -0.364
    assert all("similarity" in name for name in sources)


def test_intervals_and_p_values_hold_for_all_differences_at_once():
    rng = np.random.default_rng(0)
    draws = {str(k): rng.normal(0.3 * k, 1.0, 12) for k in range(4)}
    found = paired.compare(draws)
    raw = np.array([stats.ttest_1samp(values, 0.0)[1] for values in draws.values()], float)
    order = np.argsort(raw)
    corrected = np.maximum.accumulate([(4 - i) * raw[k] for i, k in enumerate(order)])
    # As many intervals hold at once as the table of the study has.
    for one, (label, values) in zip(found, draws.items(), strict=True):
        t = stats.t.ppf(1 - 0.05 / (2 * ADAPTERS.intervals), 11)
        error = stats.sem(values)
        assert one.label == label
        assert one.low == pytest.approx(values.mean() - t * error)
        assert one.high == pytest.approx(values.mean() + t * error)
        assert one.least == pytest.approx((t + stats.norm.ppf(0.8)) * error)
    got = np.array([one.p for one in found])[order]
    np.testing.assert_allclose(got, np.minimum(corrected, 1), rtol=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text-file", "none.tsv"), "none.tsv"),
        (("--encoder", "none"), "encoder: got 'none', wanted a folder with config.json, "),
        (("--task", "similarity", "--train-file", "none.csv"), "data: got no STS-B (train)"),
        (("--task", "similarity", "--dev-file", "none.csv"), "put GLUE's STS-B folder there"),
        (("--examples", "31"), "--examples: got 31, wanted at most 30, the texts of sentiment"),
        (("--layers", "4"), "--layers: got 4, wanted at most 3"),
        (("--length", "41"), "--length: got 41, wanted at most 40, the encoder's table"),
        (("--rank", "12"), "--rank: got 12, wanted less than half of the width 24"),
        (
            ("--method", "lora_fa"),
            "--method: got 'lora_fa', wanted one of lora_unit, lora, ",
        ),
        (("--steps", "0"), "--steps: got '0', wanted an integer >= 1"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_said_before_anything_runs(
    command_line, files, tmp_path, words, message
):
    given = [*words_of(files), "--out", tmp_path / "out", *words]
    status, _, errors = command_line(ADAPTERS, *given)
    assert (status, errors.count("\n")) == (2, 1)
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_the_package_that_is_missing_is_named(command_line, monkeypatch, tmp_path):
    monkeypatch.setattr(sentences.encoder, "PACKAGE", "no_such_package")
    status, _, errors = command_line(ADAPTERS, "--out", tmp_path / "out")
    assert status == 2
    assert "run make encoder" in errors


def test_only_factors_move_and_b_faster_than_a(bench):
    """LoRA+: the scale stays."""
    ask = asked("lora_plus_16", steps=2, rate=1e-3)
    begun = bench.init_adapters(jax.random.key(0), ask)
    rows = bench.draw_rows(jax.random.key(1), 16)
    order = bench.batches(jax.random.key(2), rows, 2)
    head = tuning.HEAD * jnp.ones(24)
    way, times = cells.WAYS["lora_plus_16"], cells.norm_steps(2)
    scores, rate = bench.ground.scores, jnp.asarray(1e-3)
    now, _, _ = bench.train(way, 2, cells.norms_of, times, begun, head, order, scores, rate)
    before, after = (m[bench.paths[1]] for m in (begun, now))
    assert float(after.scale) == float(before.scale)
    moved = [np.abs(np.asarray(getattr(after, n) - getattr(before, n))).max() for n in ("A", "B")]
    assert moved[1] > 5 * moved[0] > 0


def test_digits_are_learned_by_a_perceptron_that_knows_others():
    ground = Digits("float32")
    assert {str(x.dtype) for x in jax.tree.leaves(ground.net)} == {"float32"}  # here float64 is on
    assert (float(ground.scores.min()), float(ground.scores.max())) == (0, 1)
    assert len(np.unique(ground.scores)) == 5
    images = np.asarray(ground.images)[ground.rows["test"]]
    assert len(images) == 625
    bench = cells.Bench(ground, FORGETFUL)
    cell = bench.run(asked(examples=64, rank=8, rate=1e-2, steps=60), jax.random.key(1))
    assert cell.pearson > 0.4
    assert cell.losses[-5:].mean() < 0.1 * cell.losses[:5].mean()
