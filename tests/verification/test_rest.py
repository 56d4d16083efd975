"""Whether what a training compares had come to rest: a rule of two doublings of the steps."""

import numpy as np
import pytest

from lrdyn.verification.judging import verdict_text
from lrdyn.verification.stating.claims import STILL_MOVING, MoreSteps
from lrdyn.verification.stating.rest import SHARE, OverSteps
from lrdyn.verification.stating.rest import reason_to_train_on as reason_of

LOGS = np.append(0, np.unique(np.geomspace(1, 4096, 49).round().astype(int)))


def curve(function, steps=LOGS, threshold=0.0, seeds=1):
    """A quantity over steps, the same for every seed; lost at the start as a rank is."""
    with np.errstate(all="ignore"):
        values = np.where(steps > 0, function(steps.astype(float)), np.nan)
    return OverSteps(steps, np.tile(values, (seeds, 1)), threshold)


@pytest.mark.parametrize("power", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("threshold", [0.0, -3.0])
def test_movements_are_those_of_a_power_law(power, threshold):
    """q = t^-p: each doubling moves q by (2^p - 1) q(T), and the one before 2^p times as far."""
    moved, before = curve(lambda t: t**-power, threshold=threshold).movements()
    end = 4096.0**-power
    distance = end - threshold
    wanted = (2**power - 1) * end / distance
    assert moved == pytest.approx(wanted, rel=2e-3)
    assert before == pytest.approx(2**power * wanted, rel=2e-3)


@pytest.mark.parametrize("limit", [1.0, 5.0, -2.0])
def test_after_the_steps_that_are_named_a_quantity_that_settles_is_at_rest(limit):
    """q = limit + 100 t^-1/2 and a training of the steps that the reason names."""

    def run(steps):
        settled = np.append(0, np.unique(np.geomspace(1, steps, 60).round().astype(int)))
        return curve(lambda t: limit + 100 * t**-0.5, steps=settled)

    short = reason_of(run(64), {})
    assert isinstance(short, MoreSteps)
    assert short == STILL_MOVING
    steps = 64
    for _ in range(6):
        if not (reason := reason_of(run(steps), {})):
            break
        assert isinstance(reason, MoreSteps)
        assert reason.needed is not None
        assert reason.needed > steps
        steps = reason.needed
    assert steps > 64
    assert max(run(steps).movements()) < SHARE


def test_what_does_not_settle_has_no_number_of_steps():
    reason = reason_of(curve(np.log), {})
    assert isinstance(curve(np.log).longer(), float)
    grows = reason_of(curve(lambda t: t), {})
    assert grows == STILL_MOVING
    assert isinstance(grows, MoreSteps)
    assert grows.needed is None
    assert reason in ("", STILL_MOVING)


def test_one_quiet_doubling_is_not_enough():
    """A fall that ends before the last doubling begins: one doubling more shows it at rest."""
    late = curve(lambda t: np.where(t < 1500, 2.0, 1.0))
    assert late.movements()[0] < SHARE <= late.movements()[1]
    assert late.longer() == 2.0


@pytest.mark.parametrize("steps", [[0], [0, 4], [0, 2, 4], [0, 3, 4]])
def test_of_too_few_records_nothing_is_known(steps):
    """A record at a quarter of the steps, or before it, is the least."""
    known = 1 in steps
    assert np.isnan(curve(lambda t: 0 * t + 1, steps=np.array(steps)).movements()[0]) is not known


def test_a_training_that_was_lost_is_not_at_rest():
    lost = curve(lambda t: np.where(t > 100, np.nan, 1.0))
    assert reason_of(lost, {}) == STILL_MOVING


def test_the_mean_over_seeds_decides():
    """Two seeds that move against each other: their mean does not."""
    rising, falling = (curve(lambda t, s=s: 1 + s * t / 4096).values for s in (1, -1))
    both = OverSteps(LOGS, np.concatenate([rising, falling]))
    assert reason_of(both, {}) == ""
    assert reason_of(OverSteps(LOGS, rising), {}) == STILL_MOVING


def test_epochs_are_asked_for_where_a_flag_counts_them():
    falling = curve(lambda t: 100 * t**-0.5)._replace(threshold=-1.0, flag="epochs")
    in_steps = reason_of(falling._replace(flag=""), {})
    assert isinstance(in_steps, MoreSteps)
    asked = reason_of(falling, {"epochs": 8})
    assert isinstance(asked, MoreSteps)
    assert asked.flag == "epochs"
    assert asked.needed is not None
    assert asked.needed * 512 == in_steps.needed


ASKED = {"needed": 320, "flag": "epochs"}


@pytest.mark.parametrize(
    ("left_out", "more_steps", "said"),
    [
        ({STILL_MOVING: 1}, ASKED, "still moving (1): --epochs 320 would do"),
        # A theorem that says in words alone that its run is not at rest asks for nothing.
        ({STILL_MOVING: 2}, None, "still moving (2)"),
        (
            {STILL_MOVING: 2, "too few steps": 1},
            ASKED,
            "still moving (2), too few steps (1): --epochs 320 would do",
        ),
        ({"too few steps": 1}, None, "too few steps (1): how many would do is not known"),
    ],
)
def test_a_number_of_steps_stands_with_the_reason_that_asks_for_it(left_out, more_steps, said):
    counts = {"left_out": left_out} | ({"more_steps": more_steps} if more_steps else {})
    assert verdict_text.reasons(counts) == said
