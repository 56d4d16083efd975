"""What came of an expectation: every outcome at both of its edges, and what decides it."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from lrdyn.verification.stating.expectations import (
    Expectation,
    outcome,
    outcome_entry,
    simultaneous_interval,
)
from lrdyn.verification.stating.statement import Experiment, Finding, Scenario

GAIN, LOSS = Expectation(above=0.5, source=1.0), Expectation(below=0.5, source=-1.0)
NO_EFFECT = Expectation(within=(-0.1, 0.2))
JUST = 1e-12


@pytest.mark.parametrize(
    ("expected", "low", "high", "wanted"),
    [
        (GAIN, 0.5, 1.0, "too wide"),  # the bound itself is held
        (GAIN, 0.5 + JUST, 1.0, "replicated"),
        (GAIN, 1.0, 9.0, "replicated"),
        (GAIN, 0.5 + JUST, 1.0 - JUST, "same sign, other size"),
        (GAIN, 1.0 + JUST, 9.0, "same sign, other size"),
        (GAIN, 0.5, 1.0 - JUST, "not replicated"),
        (GAIN, -9.0, 0.5 - JUST, "not replicated"),
        (LOSS, -1.0, 0.5, "too wide"),
        (LOSS, -1.0, 0.5 - JUST, "replicated"),
        (LOSS, -1.0 + JUST, 0.5 - JUST, "same sign, other size"),
        (LOSS, -9.0, -1.0 - JUST, "same sign, other size"),
        (LOSS, -1.0 + JUST, 0.5, "not replicated"),
        (LOSS, 0.5 + JUST, 9.0, "not replicated"),
        (NO_EFFECT, -0.1, 0.2, "replicated"),
        (NO_EFFECT, -0.1 - JUST, 0.2, "too wide"),
        (NO_EFFECT, 0.0, 0.2 + JUST, "too wide"),
        (NO_EFFECT, -9.0, 9.0, "too wide"),
        (NO_EFFECT, 0.2, 0.3, "too wide"),
        (NO_EFFECT, 0.2 + JUST, 0.3, "not replicated"),
        (NO_EFFECT, -0.3, -0.1 - JUST, "not replicated"),
        (Expectation(above=0.5), 0.5, 0.7, "not told from 0.5"),
        (Expectation(above=0.5), 0.5 + JUST, 0.7, "above 0.5"),
        (Expectation(below=0.5), 0.5 + JUST, 0.7, "above 0.5"),
        (Expectation(above=0.5), 0.1, 0.5 - JUST, "below 0.5"),
    ],
)
def test_an_outcome_follows_from_the_interval_alone(expected, low, high, wanted):
    assert outcome(expected, low, high) == wanted


@pytest.mark.parametrize("intervals", [1, 11])
@pytest.mark.parametrize("count", [2, 8])
def test_intervals_are_those_of_student_at_the_level_of_bonferroni(count, intervals):
    draws = np.random.default_rng(count).normal(0.3, 2.0, count)
    level = 1 - 0.05 / intervals
    wanted = stats.t.interval(level, count - 1, np.mean(draws), stats.sem(draws))
    assert simultaneous_interval(draws, intervals) == pytest.approx(wanted, rel=1e-9)


def test_all_intervals_together_hold_their_means_as_often_as_they_say():
    """Five means of six draws each, 4,000 times: at least .95, and not much more."""
    draws = np.random.default_rng(0).normal(size=(4000, 5, 6))
    ends = np.array([[simultaneous_interval(one, 5) for one in five] for five in draws])
    held = np.mean(np.all((ends[..., 0] <= 0) & (ends[..., 1] >= 0), axis=1))
    assert 0.94 < held < 0.965


@pytest.mark.parametrize(
    ("expected", "draws", "came_true", "wanted"),
    [
        (Expectation(above=0.0), [0.1], True, "one seed"),
        (Expectation(below=0.0), [0.1], False, "one seed"),
        (Expectation(above=0.0), [], None, None),
        (Expectation(above=0.0), [0.1, np.nan], None, None),
        (Expectation(), [0.1, 0.2], None, None),
        (Expectation(against=0.0), [0.1], None, "one seed"),
        (Expectation(against=0.0), [0.2, 0.2, 0.2], None, "above 0"),
        (Expectation(against=0.1), [0.0, 0.0, 0.0], None, "below 0.1"),
        (Expectation(against=0.0), [-0.1, 0.3], None, "not told from 0"),
        (Expectation(above=0.0), [0.2, 0.2, 0.2], True, "above 0"),  # no spread
        (Expectation(above=0.0), [-0.1, 0.3], True, "not told from 0"),
        (Expectation(below=0.0), [-0.1, 0.3], False, "not told from 0"),
        (Expectation(within=(-0.5, 0.5)), [-0.01, 0.01, 0.0], True, "replicated"),
        (Expectation(within=(-0.5, 0.5)), [0.61, 0.59, 0.6], False, "not replicated"),
    ],
)
def test_what_is_kept_of_an_expectation(expected, draws, came_true, wanted):
    came = outcome_entry(expected, np.array(draws))
    assert (came["came_true"], came["outcome"]) == (came_true, wanted)
    assert (came["interval"] is None) == (wanted in (None, "one seed"))


def test_findings_of_one_experiment_share_the_probability_of_a_miss():
    """Those that an interval decides, whichever scenario they belong to; not the others.

    Also where one scenario alone is run.
    """

    def finding(id, **expected):
        return Finding(id, "", lambda outcome: np.zeros(1), lambda theory, run: (), **expected)

    first = Scenario("a", lambda key: key, findings=(finding("one", above=0.0), finding("free")))
    other = Scenario(
        "b",
        lambda key: key,
        findings=(finding("two", within=(-1.0, 1.0)), finding("three", against=0.0)),
    )
    all_, draws = Experiment("e", "", (), (first, other)), np.array([0.1, 0.3, 0.4])
    for run in (all_, dataclasses.replace(all_, scenarios=(first,))):
        interval = run.outcome_entry("one", draws)["interval"]
        assert interval == pytest.approx(simultaneous_interval(draws, 3))
        assert run.outcome_entry("free", draws)["interval"] is None


def test_what_is_expected_is_not_compared_besides():
    with pytest.raises(ValueError, match="got against=0, wanted none beside what is expected"):
        Finding(
            "one", "", lambda outcome: np.zeros(1), lambda theory, run: (), above=0.0, against=0.0
        )
