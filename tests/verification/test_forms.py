"""Forms of a claim: no part of a residual is overlooked, and each asks whether it could fail."""

import numpy as np
import pytest

from lrdyn.verification.stating.forms import (
    AtLeast,
    AtMost,
    Count,
    Equal,
    NegativeScale,
    Stated,
    Test,
    Zero,
    lack_of_power,
    residual_of,
    scale_of_each,
    start_of,
)

NAN = float("nan")
ONES = np.ones(3)
LIMIT = 1e-6
BELOW = "below what can be seen here"


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("value", "wanted"), [(2.0, 0.5), (NAN, NAN)])
def test_no_part_of_a_residual_is_overlooked(place, value, wanted):
    changed = np.ones(3)
    changed[place] = value
    for form in (
        Equal(ONES, changed),
        Equal(changed, ONES),
        Equal(ONES, changed, scale=2.0),
        Equal(ONES, changed, scale=np.full(3, 2.0)),
        Equal(ONES, changed, scale=scale_of_each(ONES, changed)),
        Zero(changed - 1, 2.0, alternative=1.0),
        AtMost(changed, 1.5, scale=1.0),
        AtLeast(-changed, -1.5, scale=1.0),
        AtLeast(1.5, changed, scale=1.0),
    ):
        np.testing.assert_equal(form.residual(), wanted)
        np.testing.assert_equal(residual_of([Stated(0.0, 1.0), form]), wanted)
    wrong = Count(np.ones(3, int), changed).residual()
    np.testing.assert_equal(wrong, 1.0 if value == 2.0 else NAN)


def test_a_scale_of_zero_hides_nothing():
    assert Equal(ONES, 0 * ONES, scale=0.0).residual() == 1.0
    assert Zero(ONES, 0.0, alternative=1.0).residual() == 1.0
    assert Equal(0 * ONES, 0 * ONES).residual() == 0.0


def test_a_bound_with_a_scale_of_zero_is_judged_in_its_own_unit():
    for form in (AtMost, AtLeast):
        sign = 1.0 if form is AtMost else -1.0
        assert form(sign * 1.0, sign * 2.0, scale=0.0).residual() == 0.0
        assert form(sign * 2.0, sign * 1.0, scale=0.0).residual() == 1.0


SCALED = (
    lambda wrong, scale: Equal(ONES, wrong, scale=scale),
    lambda wrong, scale: Equal(ONES, wrong, scale=scale, null=3.0),
    lambda wrong, scale: Zero(wrong - ONES, scale, alternative=1.0),
    lambda wrong, scale: AtMost(wrong, ONES, scale=scale),
    lambda wrong, scale: AtLeast(-wrong, -ONES, scale=scale),
)
"""Forms of three entries, of which a larger one breaks the claim, beside their scales."""


@pytest.mark.parametrize("form", SCALED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_scale_that_is_no_size_lets_no_wrong_entry_pass(form, place):
    wrong, scale = np.ones(3), np.ones(3)
    wrong[place] = 9.0
    assert form(wrong, scale).residual() == 8.0
    scale[place] = -1.0
    with pytest.raises(NegativeScale):
        form(wrong, scale).residual()
    # Beside an infinite scale anything agrees: nothing was compared, so that the case stays open.
    scale[place] = np.inf
    assert form(wrong, scale).lack_of_power(LIMIT) == BELOW


def test_an_infinite_bound_needs_no_finite_scale():
    bound = np.array([2.0, np.inf])
    assert AtMost(np.ones(2), bound, scale=bound).lack_of_power(LIMIT) == ""
    assert AtMost(np.ones(2), bound, scale=bound).residual() == 0.0


def test_what_no_claim_computes_is_lost():
    assert np.isnan(Stated(-1.0, 1.0).residual())
    assert np.isnan(Test(1.5, 0.0).residual())
    assert np.isnan(Test(-0.5, 0.0).residual())


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_what_is_let_pass_is_the_threshold(factor):
    """Limit times scale: no more, no less."""
    for scale in (1.0, 64.0, 1e-3):
        off = factor * LIMIT * scale
        for form in (
            Equal(scale * ONES, scale * ONES - off),
            Equal(ONES, ONES + off, scale),
            Zero(off * ONES, scale, 1.0),
            AtMost(ONES + off, 1.0, scale),
            AtLeast(ONES - off, 1.0, scale),
        ):
            assert (form.residual() <= LIMIT) == (factor < 1)
            assert form.threshold(LIMIT) == pytest.approx(LIMIT * scale, rel=1e-5)


@pytest.mark.parametrize("times", [0.99, 1.01])
def test_a_zero_needs_an_alternative_of_thirty_thresholds(times):
    form = Zero(0 * ONES, 2.0, alternative=times * 30 * LIMIT * 2.0)
    assert form.lack_of_power(LIMIT) == ("" if times > 1 else BELOW)


def test_a_bound_needs_a_size():
    for bound, said in ((2 * LIMIT, ""), (0.5 * LIMIT, BELOW), (np.inf, BELOW)):
        assert AtMost(0.0, bound, 1.0).lack_of_power(LIMIT) == said
        assert AtLeast(1.0, bound, 1.0).lack_of_power(LIMIT) == said
    assert AtMost(0.0, np.array([np.inf, 1.0]), 1.0).lack_of_power(LIMIT) == ""
    assert AtLeast(1.0, 0.0, 1.0).lack_of_power(LIMIT) == "trivial"


def test_the_null_is_what_the_claim_names():
    runs = np.array([[1.0, 2.0], [1.5, 2.0], [3.0, 2.0]])
    assert Equal(runs, runs, null=start_of(runs)).lack_of_power(LIMIT) == ""
    still = np.broadcast_to(runs[:1], runs.shape)
    assert Equal(still, still, null=start_of(still)).lack_of_power(LIMIT) == BELOW
    assert Equal(still, still).lack_of_power(LIMIT) == ""
    assert Equal(0 * runs, 1e-9 * runs, scale=1.0).lack_of_power(LIMIT) == "trivial"
    assert Equal(1e-9 * runs, 1e-9 * runs, scale=1.0).lack_of_power(LIMIT) == BELOW


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_entry_whose_move_is_lost_in_rounding_opens_the_case(place):
    """The first, the largest and the last are asked."""
    values, scale = np.array([1.0, 2.0, 1.0]), np.ones(3)
    assert Equal(values, values, scale).lack_of_power(LIMIT) == ""
    scale[place] = 1e-30
    assert Equal(values, values, scale).lack_of_power(LIMIT) == BELOW


def test_a_limit_that_lets_anything_pass_has_no_power():
    assert Equal(ONES, ONES).lack_of_power(1.5) == BELOW
    assert Equal(ONES, ONES, scale=1.0).lack_of_power(0.9) == ""
    assert Count(ONES, ONES).lack_of_power(1.0) == BELOW
    assert Stated(0.0, alternative=0.5).lack_of_power(0.6) == BELOW
    assert Stated(0.0, alternative=0.5).lack_of_power(0.4) == ""
    assert Test(0.5, alternative=1e-9).lack_of_power(8.0) == ""
    assert Test(0.5, alternative=1e-9).lack_of_power(10.0) == BELOW


def test_one_form_of_several_that_could_not_fail_opens_the_case():
    seen, small = Equal(ONES, ONES), Equal(1e-9 * ONES, 1e-9 * ONES, scale=1.0)
    trivial = Equal(0 * ONES, 0 * ONES, scale=1.0)
    assert lack_of_power([seen, small], LIMIT) == BELOW
    assert lack_of_power([seen, trivial], LIMIT) == ""
    assert lack_of_power([trivial, trivial], LIMIT) == "trivial"
    assert lack_of_power([small, trivial], LIMIT) == BELOW


# Where each judgement turns: exact in binary, so that one bit more is another answer -------------

EXACT_LIMIT = 2.0**-20
MORE = 1 + 2.0**-52


@pytest.mark.parametrize(
    ("form", "said"),
    [
        # Guessing the null leaves the limit itself, or a bit more.
        (Equal(EXACT_LIMIT * ONES, EXACT_LIMIT * ONES, 1.0), BELOW),
        (Equal(EXACT_LIMIT * MORE * ONES, EXACT_LIMIT * MORE * ONES, 1.0), ""),
        (Zero(0 * ONES, 2.0, alternative=30 * EXACT_LIMIT * 2), ""),
        (Zero(0 * ONES, 2.0, alternative=30 * EXACT_LIMIT * 2 / MORE), BELOW),
        # The largest of several decides.
        (Zero(0 * ONES, 1.0, alternative=np.array([0.0, 1.0, 0.0])), ""),
        (Zero(0 * ONES, np.array([1.0, 1e9, 1e9]), alternative=1.0), ""),
        (AtMost(0.0, EXACT_LIMIT, 1.0), BELOW),
        (AtMost(0.0, EXACT_LIMIT * MORE, 1.0), ""),
        (AtMost(0.0, -2 * EXACT_LIMIT, 1.0), ""),
        # A bound of 0 is trivial from below, unless another entry has one.
        (AtLeast(ONES, np.array([0.0, 1.0, 0.0]), 1.0), ""),
        (AtLeast(ONES, 0 * ONES, 1.0), "trivial"),
        (AtMost(-ONES, 0 * ONES, 1.0), BELOW),
        (Stated(0.0, alternative=EXACT_LIMIT), BELOW),
        (Stated(0.0, alternative=EXACT_LIMIT * MORE), ""),
        (Count(ONES, ONES), ""),
    ],
)
def test_power_begins_where_it_is_said(form, said):
    assert form.lack_of_power(EXACT_LIMIT) == said


def test_a_test_has_power_where_its_alternative_surprises_more_than_the_limit():
    form = Test(0.5, alternative=1e-9)
    limit = form._replace(p=form.alternative).residual()
    assert form.lack_of_power(limit) == BELOW
    assert form.lack_of_power(limit * (1 - 1e-9)) == ""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_entry_counts_where_thirty_thresholds_move_it_by_more_than_its_rounding(place):
    for scale, said in ((1e-10, ""), (1e-12, BELOW)):
        values, scales = np.array([1.0, 2.0, 1.0]), np.ones(3)
        scales[place] = scale
        assert Equal(values, values, scales).lack_of_power(LIMIT) == said


def test_an_entry_that_is_moved_is_part_of_the_scale():
    """It moves up, to 1 + 30 L: its residual, 30 L / (1 + 30 L), is L where L is 29/30."""
    assert Equal(ONES, ONES).lack_of_power(0.96) == ""
    assert Equal(ONES, ONES).lack_of_power(0.97) == BELOW


@pytest.mark.parametrize(
    ("form", "residual", "threshold"),
    [
        (Equal(np.array([1.0, 2.0]), np.array([1.0, -2.0])), 2.0, 2.0),
        (Equal(np.array([1.0, 8.0]), np.array([2.0, 8.0]), np.array([4.0, 2.0])), 0.25, 4.0),
        (Equal(0 * ONES, 0 * ONES), 0.0, 0.0),
        (Zero(np.array([1.0, -3.0, 2.0]), np.array([2.0, 4.0, 16.0]), 1.0), 0.75, 16.0),
        (AtMost(np.array([3.0, 6.0, 0.0]), np.array([2.0, 4.0, 9.0])), 1 / 3, 9.0),
        (AtLeast(np.array([2.0, 4.0, 9.0]), np.array([3.0, 6.0, 0.0])), 1 / 3, 9.0),
        (AtLeast(np.array([-5.0]), np.array([-4.0])), 0.2, 5.0),
        (AtMost(np.array([-1.0]), np.array([-4.0])), 0.75, 4.0),
        (AtMost(0 * ONES, 0 * ONES), 0.0, 1.0),
        (AtMost(np.array([3.0, 6.0]), 2.0, np.array([1.0, 8.0])), 1.0, 8.0),
        (Count(np.array([1, 7, 3]), np.array([1, 4, 3])), 3.0, 1.0),
        (Test(1e-3, 0.0), 3.0, 1.0),
        (Stated(0.25, 1.0), 0.25, 1.0),
        (Stated(0.0, 1.0), 0.0, 1.0),
    ],
)
def test_residuals_and_thresholds_by_hand(form, residual, threshold):
    assert form.residual() == pytest.approx(residual, rel=1e-15)
    assert form.threshold(1.0) == threshold
    assert form.threshold(0.5) == threshold / 2


@pytest.mark.parametrize(
    ("axis", "wanted"), [(0, [[8.0], [3.0], [1.0]]), (1, [[3.0, 8.0]]), (-1, [[3.0, 8.0]])]
)
def test_each_part_has_the_scale_of_its_largest_entry(axis, wanted):
    one, other = np.array([[1.0, -8.0], [2.0, 0.0], [0.0, 0.0]]), np.zeros((3, 2))
    other[1, 0] = -3.0
    assert scale_of_each(one, other, axis).tolist() == wanted
    assert scale_of_each(other, one, axis).tolist() == wanted


def test_the_start_is_the_first_entry_of_its_axis():
    values = np.arange(6.0).reshape(2, 3)
    assert start_of(values, 0).tolist() == [[0.0, 1.0, 2.0]]
    assert start_of(values, 1).tolist() == [[0.0], [3.0]]


def test_without_an_axis_parts_and_records_lie_along_the_first():
    values = np.array([[1.0, 2.0], [3.0, 8.0]])
    assert scale_of_each(values, values).tolist() == [[2.0], [8.0]]
    assert start_of(values).tolist() == [[1.0, 2.0]]
