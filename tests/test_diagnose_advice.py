"""The answer in sentences, the noise floor on planted ranks, and plans against brute force."""

import itertools
import json

import numpy as np
import pytest

import lrdyn
from lrdyn import diagnosis
from lrdyn.adapters import peft_config
from lrdyn.adapters.peft import StoredFactors, described
from lrdyn.diagnosis import advice, noise
from lrdyn.diagnosis.planning import Sizes, choose

RNG = np.random.default_rng(2)


def drawn(m, n):
    return RNG.standard_normal((m, n)).astype(np.float32)


def report(updates, **how):
    before = {name: drawn(*U.shape) for name, U in updates.items()}
    return lrdyn.diagnose(before, {name: before[name] + U for name, U in updates.items()}, **how)


def low(m, n, r):
    return drawn(m, r) @ drawn(r, n)


# The answer ---------------------------------------------------------------------------------------


def test_an_update_of_low_rank_is_called_so():
    found = report({f"layers.{i}.q.weight": low(60, 80, 2) for i in range(3)})
    text = " ".join(found.answer())
    assert text.startswith("The update is low-rank. 90 % of its squared norm takes r = ")
    assert "parameters of full training" in text
    assert "singular values are exact" in text


def test_an_update_that_is_not_is_called_so_with_its_cost():
    found = report({"q.weight": drawn(60, 60)})
    (one,) = found.matrices
    text = str(found)
    assert text.startswith("The update is not low-rank: LoRA is not worth it.")
    assert one.rank_99 is not None
    cost = one.lora(one.rank_99) / one.full
    assert cost > 1
    assert f"{cost:.3g} times the 3,600 of full training: not worth it" in text


def test_kinds_of_layers_on_which_low_rank_does_not_pay_are_named():
    updates = {f"layers.{i}.q.weight": low(100, 120, 2) for i in range(4)}
    found = report(updates | {"head.weight": drawn(40, 50)})
    assert "Low rank does not pay on head (r = " in " ".join(found.answer())


def test_identical_checkpoints_are_called_identical():
    weights = {"q.weight": drawn(4, 5)}
    found = lrdyn.diagnose(weights, weights)
    assert "The two sets of weights are identical" in str(found)
    assert "LoRA trains" not in str(found)
    other = lrdyn.diagnose(weights | {"b": np.zeros(3)}, weights | {"b": np.ones(3)})
    assert "The two matrices are identical" in str(other)


def test_tables_are_at_most_80_columns_wide():
    names = [f"model.decoder.layers.{i}.self_attention.{x}.weight" for i in range(6) for x in "qkv"]
    found = report({name: low(300, 1200, 40) for name in names})
    lines = str(found).splitlines()
    tables = lines[: next(i for i, line in enumerate(lines) if line.startswith("90 %:"))]
    assert max(map(len, tables)) <= 80
    assert sum(line.startswith("self_attention.") for line in lines) == 3
    many = report({f"{i}.weight": low(4, 5, 1) for i in range(30)})
    assert "\n7  " not in many.table()
    assert "\n7  " in many.table(every=True)


def test_json_has_every_number():
    found = report({"q.weight": low(50, 60, 2)})
    content = json.loads(found.json())
    (one,) = content["matrices"]
    assert one["rank_99"] == found.matrices[0].rank_99
    assert one["mean_before"] is None
    np.testing.assert_allclose(one["singular_values"], found.matrices[0].values)


# A sketch -----------------------------------------------------------------------------------------


def test_a_sketch_says_no_r_that_is_too_small():
    updates = {"q.weight": low(400, 500, 6), "noise.weight": drawn(400, 500)}
    before = {name: drawn(*U.shape) for name, U in updates.items()}
    after = {name: before[name] + U for name, U in updates.items()}
    exact, found = (
        {one.name: one for one in lrdyn.diagnose(before, after, sketch=width).matrices}
        for width in (None, 20)
    )
    assert found["q.weight"].rank_99 == exact["q.weight"].rank_99
    noisy = found["noise.weight"]
    assert (noisy.rank_90, noisy.rank_99, noisy.is_sketched) == (None, None, True)
    assert noisy.cells[3] == ">30"
    tail = np.sum(exact["noise.weight"].values[30:] ** 2) / exact["noise.weight"].norm ** 2
    assert tail <= noisy.beyond < 1.2 * tail
    with pytest.raises(ValueError, match="a plan past the 30 values of a sketch, wanted exact"):
        diagnosis.plan(lrdyn.diagnose(before, after, sketch=20), error=0.1)


# Noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 60), (80, 200), (300, 240)])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_the_values_above_the_edge_are_the_planted_ones(shape, rank):
    reach = np.sqrt(shape[0]) + np.sqrt(shape[1])
    right = 0
    for _ in range(5):
        left, other = (np.linalg.qr(RNG.standard_normal((d, max(rank, 1))))[0] for d in shape)
        planted = left[:, :rank] * np.linspace(2, 4, rank) * reach @ other[:, :rank].T
        values = np.linalg.svd(planted + RNG.standard_normal(shape), compute_uv=False)
        found = noise.floor(values, shape)
        assert found is not None
        right += found.above == rank
    assert right >= 4  # one value of noise in a thousand lies above


@pytest.mark.parametrize(
    "values",
    [1 / np.arange(1, 201), np.exp(-np.arange(200) / 20), np.linspace(1, 0.01, 200), np.ones(200)],
)
def test_other_spectra_have_no_noise_floor(values):
    for shape in ((200, 200), (200, 800)):
        assert noise.floor(values, shape) is None


def test_the_law_against_its_moments():
    """The moments of the law: 1, 1 + beta, 1 + 3 beta + beta^2."""
    for beta in (0.1, 0.5, 1.0):
        points, shares = noise.law(beta)
        middle, mass = 0.5 * (points[1:] + points[:-1]), np.diff(shares)
        found = [np.sum(mass * middle**p) for p in (1, 2, 3)]
        np.testing.assert_allclose(found, [1, 1 + beta, 1 + 3 * beta + beta**2], rtol=1e-5)


# Plans --------------------------------------------------------------------------------------------


def brute(matrices, most):
    """Of each cost up to ``most`` the least error, over all ranks."""
    total = sum(one.squares.sum() for one in matrices.values())
    best = {}
    for ranks in itertools.product(*(range(len(one.squares) + 1) for one in matrices.values())):
        pairs = list(zip(ranks, matrices.values(), strict=True))
        cost = sum(r * one.cost for r, one in pairs)
        missed = sum(one.squares[r:].sum() for r, one in pairs)
        if cost <= most:
            best[cost] = min(best.get(cost, np.inf), np.sqrt(missed / total))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_no_ranks_of_equal_or_lower_cost_miss_less(seed):
    rng = np.random.default_rng(seed)
    sizes = {
        name: Sizes(np.sort(rng.exponential(size=rng.integers(1, 5)))[::-1], int(cost))
        for name, cost in zip("abcd", rng.integers(2, 9, size=4), strict=True)
    }
    for budget in (5, 17, 40):
        found = choose(sizes, budget=budget)
        assert found.cost == sum(r * sizes[name].cost for name, r in found.ranks.items())
        assert found.left == budget - found.cost
        rivals = brute(sizes, found.cost)
        assert found.error <= min(rivals.values()) + 1e-12
    reached = choose(sizes, error=0.5)
    assert reached.error <= 0.5
    assert min(brute(sizes, reached.cost).values()) >= reached.error - 1e-12


def test_a_plan_as_the_configuration_of_peft(tmp_path):
    updates = {"q.weight": low(40, 40, 4), "x.q.weight": 1e-3 * drawn(40, 40)}
    found = report(updates)
    made = diagnosis.plan(found, budget=4 * 80)
    made.write(tmp_path)
    config = peft_config.read(tmp_path / "adapter_config.json")
    assert config.rank("q") == 4
    # PEFT looks for a name at the end of a module's: the other one must not be taken in.
    assert config.adapts("q")
    assert not config.adapts("x.q")
    assert made.chosen.ranks == {"q.weight": 4, "x.q.weight": 0}
    text = "\n".join(made.lines())
    assert "not in target_modules (r = 0): x.q" in text
    assert "left of the budget: 0 parameters" in text
    assert "the error is one of weights, not of the loss" in text
    assert made.chosen.error < made.one_rank[1]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "budget: got both or neither"),
        ({"budget": 10, "error": 0.1}, "budget: got both or neither"),
        ({"budget": 10}, "budget: got 10, wanted 80 at least"),
        ({"error": 1.5}, "error: got 1.5, wanted"),
    ],
)
def test_wrong_plans_are_named(how, said, unchecked):
    found = report({"q.weight": drawn(40, 40)})
    with pytest.raises(ValueError, match=said):
        diagnosis.plan(found, **how)


# The rank above the noise floor -------------------------------------------------------------------


def planted(m, n, r, share):
    """An update of rank r that has a share of the squared norm, and noise that has the rest."""
    signal, rest = low(m, n, r), drawn(m, n)
    return np.sqrt(share) * signal / np.linalg.norm(signal) + np.sqrt(
        1 - share
    ) * rest / np.linalg.norm(rest)


def test_the_first_sentence_has_the_planted_rank_beside_those_of_shares_of_the_norm():
    found = report({f"layers.{i}.q.weight": planted(120, 160, 6, 0.8) for i in range(2)})
    first = " ".join(found.answer()).partition(". ")[0]
    squares = [matrix.values**2 for matrix in found.matrices]
    held = sum(np.sum(s[:6]) for s in squares) / np.sum(squares)
    assert f"above its noise floor r = 6, {held:.0%}" in first
    nineties = [matrix.rank_90 or 0 for matrix in found.matrices]
    assert f"90 % of its squared norm takes r = {min(nineties)}" in first
    assert min(nineties) > 6
    command = advice.next_command(found.matrices, "a b", "c", ["--select", "*.q"])
    wanted = "lrdyn diagnose 'a b' c --select '*.q' --extract adapter --rank noise"
    assert command == wanted


def test_the_rank_above_the_noise_floor_is_extracted_and_planned():
    # Of k no floor can be claimed: its values fall and fall.
    spread = np.diag(1.0 / np.arange(1, 81)).astype(np.float32)
    zeros = {"q.weight": np.zeros((80, 80), np.float32)}
    before = {"q.weight": drawn(120, 160), "k.weight": zeros["q.weight"]}
    after = {"q.weight": before["q.weight"] + planted(120, 160, 6, 0.8), "k.weight": spread}
    both = diagnosis.extract(before, after, rank="noise")
    k = next(m for m in both.diagnosis.matrices if m.name == "k.weight")
    assert both.adapter.factors["k"].A.shape[0] == k.rank_90
    assert both.notes["k.weight"] == "no noise floor: r keeps 0.9 of its squared norm"
    one = diagnosis.extract(before, after, rank="noise", select="q.*")
    assert one.adapter.config["r"] == 6
    (q,) = one.diagnosis.matrices
    assert one.errors["q"] ** 2 == pytest.approx(1 - q.energy_above_noise, rel=1e-4)
    made = diagnosis.plan(lrdyn.diagnose(before, after, select="q.*"), rank="noise")
    assert made.chosen.ranks == {"q.weight": 6}
    assert made.chosen.cost == 6 * (120 + 160)
    assert made.chosen.error == pytest.approx(one.errors["q"], rel=1e-4)
    after = {"q.weight": spread}
    for call in (
        lambda: diagnosis.extract(zeros, after, rank="noise"),
        lambda: diagnosis.plan(lrdyn.diagnose(zeros, after), rank="noise"),
    ):
        with pytest.raises(ValueError, match="rank: got 'noise' where no update has a noise floor"):
            call()


@pytest.mark.parametrize("shape", [(768, 768), (512, 1024)])
def test_an_adapter_whose_factors_are_noise_is_cut_at_what_lies_above_it(shape):
    """Both factors are noise, and the planted part of B lies well above what it makes."""
    m, n = shape
    left = np.linalg.qr(RNG.standard_normal((m, 4)))[0]
    right = np.linalg.qr(RNG.standard_normal((64, 4)))[0]
    B = RNG.standard_normal((m, 64)) + 3 * (np.sqrt(m) + 8) * left @ right.T
    adapter = described({"q": StoredFactors(B, RNG.standard_normal((64, n)), 1.0)})
    smaller = diagnosis.combine([adapter], rank="noise")
    assert smaller.adapter.factors["q"].A.shape[0] == 4
    few = described({"q": StoredFactors(B[:, :8], np.eye(8, n), 1.0)})
    with pytest.raises(ValueError, match="rank: got 'noise' where no module has a noise floor"):
        diagnosis.combine([few], rank="noise")
