import re

import jax
import numpy as np
import pytest
from scipy import stats

import lrdyn as lr
from lrdyn.verification.stating.claims import (
    CLEARLY,
    above_p,
    chi_square_p,
    judge,
    judge_control,
    roundings,
    scales_with_epsilon,
    standard_error,
    student_p,
    surprise,
    tolerance,
)
from tests.runs import ROOT

NAN = float("nan")
EVERYWHERE = np.ones(2, bool)


@pytest.mark.parametrize("kind", ["identity", "bound"])
def test_tolerance_of_rounding_scales_with_epsilon_and_grows_like_a_random_walk(kind, dtype):
    eps = float(np.finfo(dtype).eps)
    assert tolerance(kind, dtype, steps=0) == 8 * eps
    assert tolerance(kind, dtype, steps=99, size=4) == 8 * eps * (20 + 99 / 2)
    assert tolerance(kind, np.dtype(dtype), size=8) == 8 * eps * (4 + 1 / 2)


@pytest.mark.parametrize("name", ["steps", "size"])
def test_a_run_has_no_negative_number_of_roundings(name):
    with pytest.raises(ValueError, match=f"^{name}: got -1, wanted"):
        roundings(**{name: -1})


def test_tolerance_of_other_kinds():
    assert tolerance("exact", "float32", steps=1000, size=1000) == 0
    # One false alarm in 1e6 commands, however many tests share it.
    for tests in (1, 12, 50):
        chance = 10 ** -tolerance("statistical", "float32", tests=tests)
        assert tests * chance == pytest.approx(1e-6, rel=1e-12)


@pytest.mark.parametrize("kind", ["limit", "rate", "control"])
def test_tolerance_knows_no_rule_for_the_rest(kind, unchecked):
    with pytest.raises(ValueError, match=f"kind: got '{kind}', wanted 'exact'"):
        tolerance(kind, "float64")


@pytest.mark.parametrize("count", [2, 24, 256])
def test_p_values_are_those_of_scipy(count):
    draws = np.random.default_rng(count).normal(0.3, 2.0, count)
    assert student_p(0.1, draws) == pytest.approx(stats.ttest_1samp(draws, 0.1)[1], rel=1e-10)
    for value in (0.5 * count, 1.0 * count, 1.7 * count):
        wanted = 2 * min(stats.chi2.cdf(value, count), stats.chi2.sf(value, count))
        assert chi_square_p(value, count) == pytest.approx(min(1.0, wanted), rel=1e-10)


@pytest.mark.parametrize("draws", [[2.0, 2.0], [1.0, NAN]])
def test_a_mean_without_a_standard_error_is_lost(draws):
    assert np.isnan(surprise(student_p(5.0, np.array(draws))))
    assert np.isnan(surprise(chi_square_p(NAN, 3)))


def test_a_scale_of_zero_hides_nothing():
    assert lr.relative_difference(np.ones(1), np.zeros(1), 0.0) == 1.0


def test_surprise_is_finite_where_p_underflows():
    assert (surprise(1.0), surprise(0.0)) == (0.0, 300.0)


@pytest.mark.parametrize(
    ("residuals", "tolerances", "holds", "worst"),
    [
        ([1.0, 2.0], [2.0, 2.0], True, 1),  # the tolerance itself still holds
        ([1.0, np.nextafter(2.0, 3.0)], [2.0, 2.0], False, 1),
        ([3.0, 2.0], [4.0, 2.0], True, 1),  # worst relative to its tolerance
        ([1.0, NAN], [2.0, 2.0], False, 1),
        ([9.0, NAN], [2.0, 2.0], False, 1),
        ([1.0, np.inf], [2.0, 2.0], False, 1),
        ([0.0, 0.0], [0.0, 0.0], True, 0),  # exact
        ([0.0, 1e-300], [0.0, 0.0], False, 1),
    ],
)
def test_judge(residuals, tolerances, holds, worst):
    found = judge(np.array(residuals), np.array(tolerances), EVERYWHERE)
    assert (found.holds, found.worst, found.cases) == (holds, worst, 2)
    assert found.tolerance == tolerances[worst]
    assert found.residual == pytest.approx(residuals[worst], rel=0, abs=0, nan_ok=True)


def test_judge_leaves_out_what_does_not_apply():
    residuals = np.array([[NAN, 1.0], [9.0, 0.5]])
    found = judge(residuals, np.full((2, 2), 2.0), np.array([[False, True], [False, True]]))
    assert found == (1.0, 2.0, True, 2, 4, 1)


def test_a_vacuous_pass_is_no_pass():
    assert judge(np.zeros(2), np.ones(2), ~EVERYWHERE) == (None, None, None, 0, 2, None)


@pytest.mark.parametrize(
    ("residuals", "tolerances", "holds", "worst"),
    [
        ([CLEARLY, 99.0], [1.0, 1.0], True, 0),
        ([99.0, np.nextafter(CLEARLY, 0.0)], [1.0, 1.0], False, 1),
        ([99.0, 50.0], [9.0, 1.0], True, 0),  # least clear relative to its tolerance
        ([99.0, NAN], [1.0, 1.0], False, 1),
        ([99.0, 0.0], [1.0, 1.0], False, 1),
        ([1.0, 2.0], [0.0, 0.0], True, 0),  # exact: any difference is a failure
        ([1.0, 0.0], [0.0, 0.0], False, 1),  # exact and equal: nothing failed
    ],
)
def test_judge_control(residuals, tolerances, holds, worst):
    found = judge_control(np.array(residuals), np.array(tolerances))
    assert (found.holds, found.worst, found.cases) == (holds, worst, 2)


def test_a_test_is_as_clear_as_its_own_tolerance():
    assert judge_control(np.array([6.1]), np.array([6.0]), clearly=1.0).holds is True
    assert judge_control(np.array([6.0]), np.array([6.0]), clearly=1.0).holds is False


@pytest.mark.parametrize(("error", "scales"), [(0.0, True), (1e-11, False)])
def test_a_coincidence_does_not_scale_with_epsilon(error, scales):
    """A formula that is off by 1e-11 passes any test in float32 and a loose one in float64."""
    residuals = {}
    for dtype in ("float64", "float32"):
        with jax.enable_x64(dtype == "float64"):
            x = jax.random.uniform(jax.random.key(0), (100,))
            residuals[dtype] = lr.relative_difference(3 * x * (1 + error), x + x + x)
    assert residuals["float32"] <= tolerance("identity", "float32")
    assert scales_with_epsilon(**residuals) == scales


@pytest.mark.parametrize(
    ("float64", "float32", "scales"),
    [(0.0, 0.0, True), (1e-14, 0.0, True), (1e-13, 0.0, False), (NAN, 1.0, False)],
)
def test_a_lucky_float32_run_counts_as_one_rounding(float64, float32, scales):
    assert scales_with_epsilon(float64, float32) == scales


def test_the_page_has_the_formula_of_the_tolerance():
    """The tolerance of an identity has one place: the page, and the referee's, follow it."""
    page = (ROOT / "docs/claims.md").read_text()
    (formula,) = re.findall(r"^\| `identity`, `bound` \| `(8 eps [^`]+)` \|", page, re.M)
    assert formula in (tolerance.__doc__ or "")
    for dtype, steps, size in (("float64", 99, 16), ("float32", 7, 300)):
        known = {"eps": float(np.finfo(dtype).eps), "steps": steps, "size": size, "sqrt": np.sqrt}
        on_page = eval(formula.replace("eps (", "* eps * (").replace("size (", "size * ("), known)
        assert tolerance("identity", dtype, steps=steps, size=size) == pytest.approx(on_page)


def test_tolerance_without_sizes_is_that_of_one_step_one_number_and_one_test():
    eps = float(np.finfo("float64").eps)
    assert tolerance("identity", "float64") == 8 * eps * (np.sqrt(2) + 1 / 2)
    assert tolerance("identity", "float64", steps=3) == 8 * eps * (2 + 3 / 2)
    assert tolerance("bound", "float64", size=2, steps=0) == 8 * eps * np.sqrt(2)
    assert tolerance("statistical", "float64") == surprise(1e-6) == 6.0


@pytest.mark.parametrize("count", [2, 3, 24])
def test_p_values_of_one_side_are_those_of_scipy(count):
    draws = np.random.default_rng(count).normal(0.3, 2.0, count)
    for threshold in (-1.0, 0.1, 2.0):
        wanted = stats.ttest_1samp(draws, threshold, alternative="greater")[1]
        assert above_p(threshold, draws) == pytest.approx(wanted, rel=1e-10)
    assert standard_error(draws) == pytest.approx(stats.sem(draws), rel=1e-12)


@pytest.mark.parametrize(
    ("draws", "p"),
    [([2.0, 2.0], 0.0), ([1.0, 1.0], 1.0), ([0.5, 0.5], 1.0), ([2.0, NAN], NAN), ([2.0], NAN)],
)
def test_draws_without_spread_are_above_a_threshold_or_not(draws, p):
    np.testing.assert_equal(above_p(1.0, np.array(draws)), p)


@pytest.mark.parametrize(("steps", "walk"), [(0, 1.0), (3, 2.0), (99, 10.0)])
def test_the_floor_of_float32_is_a_random_walk(steps, walk):
    """The largest float64 residual is 100 eps64 times the walk, or in proportion to float32's."""
    eps64, eps32 = (float(np.finfo(dtype).eps) for dtype in ("float64", "float32"))
    for residual, most in ((0.0, walk), (walk * eps32, walk), (4 * walk * eps32, 4 * walk)):
        assert scales_with_epsilon(99.99 * eps64 * most, residual, steps)
        assert not scales_with_epsilon(100.01 * eps64 * most, residual, steps)


def test_without_a_scale_it_is_the_larger_side():
    small, large = np.array([1.0, -2.0]), np.array([1.0, -8.0])
    assert lr.relative_difference(small, large) == lr.relative_difference(large, small) == 0.75
