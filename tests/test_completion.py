"""The theorem on completion: its times, what it judges, and its figure."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from lrdyn import cli
from lrdyn.completion import basis_claims, recovery, statement
from lrdyn.completion.figures import plot_recovery
from lrdyn.completion.problem import (
    CompletionMeasured,
    CompletionTheory,
    amplification,
    enough_seen,
    make_entries,
    make_measurements,
    noise_growth,
)
from lrdyn.completion.start_claims import predict_start
from lrdyn.completion.statement import COMPLETION, first_crossing
from lrdyn.verification.judging.judging import left_out_reasons
from lrdyn.verification.stating.fields import SIZE
from lrdyn.verification.stating.forms import AtMost
from lrdyn.verification.stating.statement import Outcome
from tests import oracles
from tests.runs import finished


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        ([4.0, 2.0, 1.0], 3.0, 5.0),
        ([4.0, 2.0, 1.0], 2.0, 10.0),
        ([4.0, 2.0, 1.0], 1.5, 20.0),
        ([4.0, 2.0, 1.0], 0.5, 60.0),
        ([4.0, 2.0, 1.0], 4.0, 0.0),
        ([4.0, 5.0, 1.0], 4.5, 0.0),
        ([2.0, 2.0, 2.0], 1.0, 60.0),
    ],
)
def test_the_time_at_which_a_curve_first_falls(values, level, expected):
    step = first_crossing(np.array([0, 10, 30]), np.array(values), level)
    oracles.assert_close(step, expected, scale=60.0)


@pytest.mark.parametrize(("condition", "rank"), [(0.0, 3), (1.0, 3), (50.0, 3), (50.0, 2)])
def test_the_target_has_the_condition_of_its_flag(condition, rank):
    settings = {flag.name: flag.quick[0] for flag in COMPLETION.flags} | {"dim": 14, "rank": rank}
    case = make_entries(jax.random.key(0), **settings | {"target_condition": condition})
    values = np.linalg.svd(case.target, compute_uv=False)
    if condition:
        oracles.assert_close(values[rank - 1] / values[0], 1 / condition, size=14)
    else:
        plain = {name: x for name, x in settings.items() if name != "target_condition"}
        assert np.array_equal(case.target, make_entries(jax.random.key(0), **plain).target)
    oracles.assert_close(values[rank:], np.zeros(14 - rank), scale=1.0, size=14)


# What is judged ------------------------------------------------------------------------------

ENTRIES, _, BASIS = COMPLETION.scenarios
CLAIMS = {claim.id: claim for scenario in COMPLETION.scenarios for claim in scenario.claims}


@pytest.fixture(scope="module")
def judged():
    """How small sweeps of the two cheap scenarios were judged: reasons, and all columns."""
    flags = {"dim": 12, "rank": 1, "observed": 0.8, "draw": 0}
    trained = {"init_scale": (0.025, 0.05, 3.0), "learning_rate": (0.15, 2.5)}
    trained |= {"target_scale": (1.0, 2.0)}
    whole = {"observed": 1.0, "steps": 1, "init_scale": (0.05, 0.75, 3.0)}
    legs = {
        **oracles.judged(COMPLETION, ENTRIES, flags | trained)[1],
        **oracles.judged(COMPLETION, BASIS, flags | whole)[1],
    }
    return {name: (left_out_reasons(leg).squeeze().tolist(), leg) for name, leg in legs.items()}


def outcome(predicted, measured=None):
    """An outcome of a run that is recorded at steps 0, 10, 20 and 30."""
    known = {"step": [0, 10, 20, 30], "level": 1e-3, "left": 1e-3 / 32}
    known |= {"floor": 0.3, "hidden": 5}
    arrays: list[dict[str, Any]] = [
        {name: np.asarray(array) for name, array in side.items()}
        for side in (known | predicted, measured or {})
    ]
    theory, run = CompletionTheory(**arrays[0]), CompletionMeasured(**arrays[1])
    return Outcome({}, theory, run, {}, np.dtype("float64"), 12, 30)


def asked(part, outcome):
    """What a part of a claim, which it must have, says of an outcome."""
    assert part is not None
    return part(outcome)


FULL = {"full_error": [1.0, 0.1, 9e-3, 1e-4], "full_loss": [1.0, 1e-2, 1e-4, 1e-8]}


@pytest.mark.parametrize(
    ("claim", "curve", "expected"),
    [
        ("recovery", [1.0, 0.1, 9e-3, 0.5], 0.0),  # the full one has ended
        ("recovery", [1.0, 0.1, 0.01, 1e-4], 1e-3 - 1e-3 / 32),
        ("recovery", [1.0, 0.3, 9e-3, 1e-4], 0.2 - 1e-3 / 32),
        ("recovered", [1.0, 0.1, 9e-3, 1e-3], 0.0),
        ("recovered", [1.0, 0.1, 9e-3, 4e-3], 3e-3),
    ],
)
def test_residuals_of_compressed_networks(claim, curve, expected):
    form = asked(CLAIMS[claim].form, outcome(FULL, {"spectral_error": curve}))
    assert isinstance(form, AtMost)
    oracles.assert_close(form.residual(), expected, scale=1.0)
    lost = asked(CLAIMS[claim].form, outcome(FULL, {"spectral_error": [*curve[:3], np.nan]}))
    assert isinstance(lost, AtMost)
    assert np.isnan(lost.residual())


def test_a_full_network_at_the_level_has_not_ended():
    """It must lie below: at the level itself it still bounds the compressed one."""
    full = FULL | {"full_error": [1.0, 0.1, 9e-3, 1e-3]}
    run = {"spectral_error": [1, 0.1, 9e-3, 0.5]}
    form: Any = asked(CLAIMS["recovery"].form, outcome(full, run))
    oracles.assert_close(form.residual(), 0.5 - 1e-3 - 1e-3 / 32, scale=1.0)


def test_an_error_is_over_its_floor_where_something_is_hidden():
    """Without an entry that is not seen the floor is rounding, and no ratio is made of it."""
    seeds: Any = outcome(
        {
            "full_error": [[1.0, 1e-4]] * 3,
            "level": [1e-3] * 3,
            "hidden": [2, 0, 5],
            "floor": [2, 0, 4],
        },
        {"basis_error": [[1.0, 3.0], [1.0, 5.0], [1.0, 6.0]]},
    )
    met = dataclasses.replace(seeds, hypotheses={"all": np.array([True, True, True])})
    assert statement._floor_ratios(met).tolist() == [1.5, 1.5]
    some = dataclasses.replace(seeds, hypotheses={"all": np.array([False, True, True])})
    assert statement._floor_ratios(some).tolist() == [1.5]


@pytest.mark.parametrize("claim", ["recovery", "recovered"])
def test_the_full_network_decides_what_is_judged(claim):
    """Not fitted: too few steps. Fitted, but elsewhere: nothing is claimed."""
    apart, moving = {"full_error": [1.0] * 4}, {"full_loss": [1.0, 1.0, 1.0, 1e-2]}
    reason = asked(CLAIMS[claim].undecided, outcome(FULL | apart | moving))
    assert reason == "too few steps"
    assert asked(CLAIMS[claim].applies, outcome(FULL | apart | moving))
    assert not asked(CLAIMS[claim].applies, outcome(FULL | apart))
    assert asked(CLAIMS[claim].applies, outcome(FULL))


def test_findings_are_of_runs_that_arrived_and_meet_the_hypotheses():
    """Three seeds: one that counts, one that has not arrived, one that sees too little."""
    apart = FULL | {"full_error": [1.0] * 4}
    curves = {"spectral_error": [1.0, 9e-3, 1e-4, 1e-4], "basis_loss": [1.0, 1e-2, 1e-4, 1e-8]}
    curves |= {"basis_error": [1.0, 0.5, 0.2, 0.15]}
    singles = [outcome(predicted, curves) for predicted in (FULL, apart, FULL)]
    stacked = [
        type(sides[0])(*(np.stack(arrays) for arrays in zip(*sides, strict=True)))
        for sides in zip(*((single.predicted, single.measured) for single in singles), strict=True)
    ]
    hypotheses = {"enough_seen": np.array([True, True, False]), "small_start": np.ones(3, bool)}
    both = dataclasses.replace(
        singles[0],
        predicted=stacked[0],
        measured=stacked[1],
        hypotheses=hypotheses,
    )
    values = {finding.id: finding.value(both) for finding in ENTRIES.findings}
    assert {name: len(value) for name, value in values.items()} == dict.fromkeys(values, 1)
    full, compressed = 10 + 10 * 0.09 / 0.091, 10 * 0.99 / 0.991
    oracles.assert_close(values["sooner"][0], full / compressed, scale=1.0)
    oracles.assert_close(values["same_time"][0], 0.0, scale=1.0)
    oracles.assert_close(values["discrepant_rates"][0], 0.5, scale=1.0)


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [(["--steps", "1"], 4, "too few steps"), (["--step-ratio", "1"], 2, "wanted a number from 2")],
)
def test_commands_without_a_judged_case(words, status, reason, command_line):
    alone = dataclasses.replace(ENTRIES, controls=())
    theorem = dataclasses.replace(COMPLETION, scenarios=(alone,), plots={})
    small = ["--dim", "8", "--observed", "0.9", "--draw", "0", "--seeds", "1"]
    small += ["--dtype", "float32"]
    ended, out, errors = command_line(theorem, *small, *words)
    assert ended == status, (out, errors)
    assert reason in out + errors


@pytest.mark.parametrize("word", ["--learning-rate 2.5", "--target-scale 2", "--init-scale 3"])
def test_what_no_draw_can_meet_is_refused_before_a_run(word):
    with pytest.raises(cli.BadInput, match=r"--(init-scale|learning-rate): got .*wanted at most"):
        cli.parse(COMPLETION, word.split())


def test_starts_and_steps_large_and_small(judged):
    """Axes: init scales 0.025, 0.05 and 3; learning rates 0.15 and 2.5; target scales 1 and 2."""
    large, fast = ["small_start", "stable_steps"], "stable_steps"
    for name in ("recovery", "recovered", "fixed_basis", "start"):
        reasons, leg = judged[name]
        assert reasons[:2] == [[["", fast], [fast, fast]]] * 2, name
        assert set(np.ravel(reasons[2])) == set(large), name
        within = leg.residual <= leg.tolerance
        assert np.all(np.squeeze(within.values) | (np.array(reasons) != "")), name


def test_the_gap_decides_how_exact_a_basis_is(judged):
    """Products of the layers at the start of 1.25e-4, 0.42 and 27, beside sigma_r = 1."""
    for name, far in (("basis", "ill-conditioned"), ("basis_gap", "bound is infinite")):
        reasons, leg = judged[name]
        assert reasons == ["", "", far], name
        within = leg.residual <= leg.tolerance
        assert np.all(np.squeeze(within.values) | (np.array(reasons) != "")), name


# Whether enough is seen ------------------------------------------------------------------------


def of_draws(value, seed, draws, **flags):
    """A value of the cases of several draws, from entries."""
    settings = {flag.name: flag.quick[0] for flag in COMPLETION.flags} | {"steps": 1} | flags

    @jax.jit
    def each(draws):
        def of_draw(draw):
            return value(make_entries(jax.random.key(seed), **settings | {"draw": draw}))

        return jax.lax.map(of_draw, draws)

    return np.asarray(each(jnp.asarray(draws)))


@pytest.mark.parametrize(
    ("seed", "draws", "flags"),
    [
        (82, [0, 1, 2, 3], {"rank": 2, "observed": 0.3}),
        (9002, [7, 39, 57, 59], {"rank": 2, "observed": 0.3}),
        (9003, [21, 47, 76], {"rank": 2, "observed": 0.4}),
        # Few hidden entries, a direction of which next to nothing is seen; a large alpha.
        (204, [153, 355, 532], {"dim": 6, "rank": 2, "observed": 0.9}),
        (202, [2, 38, 337], {"dim": 12, "observed": 0.5, "step_ratio": 100.0}),
    ],
)
def test_draws_that_compressed_networks_miss_are_foreseen(seed, draws, flags):
    """In some of these the compressed network ends farther away than the full one, or later."""
    assert not np.any(of_draws(enough_seen, seed, draws, **flags))


@pytest.mark.parametrize(("alpha", "ratio"), [(1 + 1e-9, 0.5), (4.0, 0.3), (100.0, 0.7)])
def test_noise_grows_as_the_small_network_does(alpha, ratio):
    """Runge-Kutta on u' = alpha u w, w' = u^2, up to ratio times the time of escape."""
    escape = np.arcsinh(np.sqrt(alpha - 1)) / np.sqrt(alpha * (alpha - 1))
    state, step = np.ones(2), ratio * escape / 4000

    def slope(state):
        return np.array([alpha * state[0] * state[1], state[0] ** 2])

    for _ in range(4000):
        first = slope(state)
        second = slope(state + step / 2 * first)
        third = slope(state + step / 2 * second)
        state = state + step / 6 * (first + 2 * second + 2 * third + slope(state + step * third))
    grown = state[0] ** 2 * state[1]
    assert abs(float(noise_growth(alpha, ratio)) / grown - 1) < 1e-7


def test_a_target_that_is_seen_whole_is_not_amplified():
    amplified = of_draws(amplification, 0, [0, 1], observed=1.0)
    oracles.assert_close(amplified, np.sqrt([23 / 22] * 2), size=24)


def test_the_amplification_is_what_it_says():
    """Growth at sigma_{r+1} / sigma_r of the surrogate, d - r directions, the least curvature."""
    flags = {flag.name: flag.quick[0] for flag in COMPLETION.flags}
    flags |= {"dim": 8, "rank": 2, "observed": 0.8, "steps": 1}
    case = make_entries(jax.random.key(1), **flags)
    Phi, mask = oracles.double((case.target, case.mask))
    values = np.linalg.svd(mask * Phi)[1]
    left, _, right = np.linalg.svd(Phi)
    tangent = [np.outer(left[:, i], right[j]) for i in range(8) for j in range(8) if min(i, j) < 2]
    seen = np.stack([(mask * X).ravel() for X in tangent])
    least = np.linalg.eigvalsh(seen @ seen.T / mask.mean())[0]
    oracles.assert_close(case.least_curvature, least, size=64)
    expected = noise_growth(4.0, values[2] / values[1]) * np.sqrt(6 / 4 / least / mask.mean())
    oracles.assert_close(amplification(case), expected, size=64, scale=expected**2)


def test_of_measurements_the_share_is_their_number_over_that_of_the_entries():
    """Which the hypothesis that enough is seen rests on: 0.3 of 36 entries are 11 numbers."""
    flags = {flag.name: flag.quick[0] for flag in COMPLETION.flags}
    flags |= {"dim": 6, "rank": 1, "observed": 0.3, "steps": 1}
    case = make_measurements(jax.random.key(0), **flags)
    assert float(case.share) == pytest.approx(11 / 36, rel=1e-6)


def test_a_start_by_measurements_sees_nothing_else():
    """Another target with the same measurements has the same start and the same loss."""
    flags = {flag.name: flag.quick[0] for flag in COMPLETION.flags}
    flags |= {"dim": 6, "rank": 1, "observed": 0.3, "steps": 1}

    @jax.jit
    def both(key):
        case = make_measurements(key, **flags)
        assert case.measurements is not None
        rows = case.measurements.reshape(len(case.measurements), -1)
        unseen = jnp.linalg.svd(rows)[2][-1].reshape(6, 6)
        other = dataclasses.replace(case, target=case.target + 5 * unseen)
        measured = [recovery.sense(case.measurements, c.target) for c in (case, other)]
        return [
            (values, c.surrogate, c.gradient)
            for values, c in zip(measured, (case, other), strict=True)
        ]

    oracles.assert_close(*both(jax.random.key(0)), size=36)


def test_networks_start_from_what_is_seen():
    """As they are trained: error and loss at the first step, by NumPy from observed entries."""
    flags = {flag.name: flag.quick[0] for flag in COMPLETION.flags}
    flags |= {"dim": 8, "rank": 1, "init_scale": 1.0, "steps": 1}
    case = make_entries(jax.random.key(0), **flags)
    run = jax.jit(ENTRIES.measure)(case)
    Phi, mask, layers = oracles.double((case.target, case.mask, case.weights))
    left, _, right = np.linalg.svd(mask * Phi / mask.mean())
    whole = oracles.product(layers, 8)
    (slope, *_) = oracles.gradients(layers, oracles.masked_slope(Phi, mask))
    rows = [np.linalg.svd(G)[2][:1] for G in (slope, slope.T @ layers[0])]
    columns = np.linalg.qr(np.concatenate(rows).T)[0]
    for errors, losses, start in (
        (run.spectral_error, run.spectral_loss, left[:, :2] @ right[:2]),
        (run.basis_error, run.basis_loss, whole @ columns @ columns.T),
    ):
        error = np.linalg.norm(start - Phi) / np.linalg.norm(Phi)
        loss = 64 * np.sum((mask * (start - Phi)) ** 2) / mask.sum() / 2
        oracles.assert_close(errors[0], error, size=64)
        oracles.assert_close(losses[0], loss, size=64)


def test_conditions_of_the_basis_are_what_they_say():
    """sigma = 1, e = prod eps_l: (1 + e) over sigma - 2e and the angle, over sigma - e."""
    flags = {flag.name: flag.quick[0] for flag in COMPLETION.flags}
    flags |= {"dim": 8, "rank": 1, "observed": 1.0, "init_scale": 0.5, "steps": 1}
    case = make_entries(jax.random.key(0), **flags)
    Phi, layers = oracles.double((case.target, case.weights))
    left, _, right = np.linalg.svd(Phi)
    both = np.stack([right[0], oracles.product(layers, 8).T @ left[:, 0] / 0.125])
    theory = jax.jit(basis_claims.predict)(case)
    angle = np.linalg.svd(both, compute_uv=False)[-1]
    oracles.assert_close(theory.basis_condition, 1.125 / 0.75 / angle, size=64)
    oracles.assert_close(theory.gap_condition, 1.125 / 0.875, size=64)


def test_the_condition_of_a_start_is_what_it_says():
    """Gaps of the surrogate, G and G^T W_1, the angle of the basis, the scale of the slope."""
    flags = {flag.name: flag.quick[0] for flag in COMPLETION.flags}
    flags |= {"dim": 8, "rank": 2, "observed": 0.7, "init_scale": 0.5, "steps": 1}
    case = make_entries(jax.random.key(0), **flags)
    theory = jax.jit(predict_start)(case)
    Phi, mask, layers = oracles.double((case.target, case.mask, case.weights))
    left, values, right = np.linalg.svd(mask * Phi)
    (G, *_) = oracles.gradients(layers, oracles.masked_slope(Phi, mask))
    decomposed = [np.linalg.svd(matrix) for matrix in (G, G.T @ layers[0])]
    both = np.concatenate([rows[:2] for _, _, rows in decomposed])
    of_basis = max(s[0] / (s[1] - s[2]) for _, s, _ in decomposed)
    slope = np.max(np.abs(mask * (left[:, :4] @ right[:4] - Phi)))
    expected = max(
        values[0] / (values[3] - values[4]) / min(1.0, slope),
        of_basis / np.linalg.svd(both, compute_uv=False)[-1],
    )
    oracles.assert_close(theory.start_condition, expected, size=64, scale=expected**2)


def test_a_start_needs_a_surrogate_of_rank_2r():
    """One hidden entry of a target of rank 2 leaves rank 3: the fourth directions are any."""
    flags = {"dim": 6, "rank": 2, "observed": 0.9364, "draw": 1, "init_scale": 0.005}
    drawn = {flag.name: flag.quick[0] for flag in COMPLETION.flags} | flags
    with jax.enable_x64(False):
        case = make_entries(jax.random.key(236403637), **drawn)
        theory = jax.jit(predict_start)(case)
    assert np.sum(np.asarray(case.mask) == 0) == 1
    assert float(theory.start_condition) > 1e6


def test_how_many_cases_are_judged(tmp_path_factory):
    """A wrong prediction that leaves out what it should judge changes these numbers."""
    verdict = finished("completion", tmp_path_factory.getbasetemp()).verdict
    judged = {
        claim["id"]: [leg["judged"] for leg in claim["judged"].values()]
        for claim in verdict["claims"]
        if claim["kind"] not in ("control", "finding")
    }
    groups = {
        (3, 4): ("recovery", "recovered", "fixed_basis", "start"),
        (4, 4): ("basis", "basis_gap"),
        (1, 1): ("sensing_recovery", "sensing_recovered"),
    }
    assert judged == {name: list(counts) for counts, names in groups.items() for name in names}


def test_the_plot_shows_every_network():
    steps = np.array([0, 1, 2])
    names = ("full_error", "spectral_error", "basis_error", "fixed_error")
    curves = {n: (("seed", "dim", "step"), i + np.ones((2, 1, 3))) for i, n in enumerate(names)}
    entries = xr.Dataset({SIZE: (("seed", "dim"), np.ones((2, 1)))} | curves, {"step": steps})
    figure = plot_recovery({"/": entries, "/sensing": entries[[SIZE, *names[:2]]]})
    shown = [[np.asarray(line.get_ydata())[0] for line in ax.lines] for ax in figure.axes]
    assert shown == [[1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 2, 2]]
