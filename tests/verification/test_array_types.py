"""Types of arrays: each is compared as exactly as rational arithmetic does, or refused by name."""

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.statements import verify
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.running.work import Context
from lrdyn.verification.runs.verify import verify_run
from lrdyn.verification.stating.array_types import NotNumbers, as_compared, difference
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from lrdyn.verification.stating.forms import (
    AtLeast,
    AtMost,
    Count,
    Equal,
    NothingCompared,
    Stated,
    Test,
    Zero,
)
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.stating.statement import Claim, Control, Misstated, Scenario, Theorem

INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = [np.dtype(kind) for kind in (np.float16, jnp.bfloat16, np.float32, np.float64)]
EVERY = [np.dtype(bool), *INTEGERS, *FLOATS]


def numbers_of(dtype):
    """Numbers of a type at which arithmetic in that type goes wrong."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        near = [n for n in (-5, -1, 0, 1, 3, 5, 2**53, 2**53 + 1) if ends.min <= n <= ends.max]
        return np.array([ends.min, *near, ends.max - 1, ends.max], dtype)
    largest = min(float(jnp.finfo(dtype).max), 2.0**1000)  # differences stay below float64's end
    values = [-math.inf, -largest, -1, 0, 1e-3, 1, 1.0078125, 3, 5, largest, math.inf, math.nan]
    return np.array(values).astype(dtype)


def exact(number: Any) -> Fraction | float:
    """A number as a fraction; infinities and NaN as they are."""
    number = number.item() if isinstance(number, np.bool_ | np.integer) else float(number)
    return Fraction(number) if math.isfinite(number) else number


def is_lost(number: Fraction | float) -> bool:
    return not isinstance(number, Fraction)


def apart(first: Fraction | float, second: Fraction | float, scale: Any) -> Fraction | None:
    """|first - second| over its scale; None, which fails, if one of them was lost."""
    if is_lost(first) or is_lost(second):
        return None
    largest = max(abs(first), abs(second)) if scale is None else scale
    return abs(Fraction(first) - Fraction(second)) / Fraction(largest or 1)


def above(value: Fraction | float, bound: Fraction | float, scale: Any) -> Fraction | None:
    """Excess of a value over a bound, which may be infinite, in which case it bounds nothing."""
    if is_lost(value) or math.isnan(bound) or bound == -math.inf:
        return None
    if bound == math.inf:
        return Fraction(0)
    largest = max(abs(value), abs(bound)) if scale is None else scale
    return max(Fraction(value) - Fraction(bound), Fraction(0)) / Fraction(largest or 1)


FORMS = {
    "Equal": (lambda p, m, s: Equal(p, m, s), apart),
    "Count": (lambda p, m, s: Count(p, m), lambda p, m, s: apart(p, m, 1)),
    "Zero": (
        lambda p, m, s: Zero(m, 1.0 if s is None else s, 1.0),
        lambda p, m, s: apart(m, Fraction(0), 1 if s is None else s),
    ),
    "AtMost": (lambda p, m, s: AtMost(m, p, s), lambda p, m, s: above(m, p, s)),
    "AtLeast": (
        lambda p, m, s: AtLeast(m, p, s),
        lambda p, m, s: above(-m, -p, s),
    ),
}


def pairs_of(one, other):
    """Pairs of numbers: all of one type, and of two each number with some of the other."""
    first, second = numbers_of(one), numbers_of(other)
    if one == other:
        return itertools.product(first, second)
    longest = max(len(first), len(second))
    return ((first[n % len(first)], second[(n + n // 3) % len(second)]) for n in range(longest))


@pytest.mark.parametrize("scale", [None, 64.0])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_judges_every_type_as_rational_arithmetic_does(form, scale):
    make, oracle = FORMS[form]
    for one, other in itertools.product(EVERY, EVERY):
        for p, m in pairs_of(one, other):
            wanted = oracle(exact(p), exact(m), scale)
            with np.errstate(all="ignore"):
                of_numbers = make(np.asarray(p), np.asarray(m), scale).residual()
            if wanted is None:
                assert not of_numbers <= np.finfo(float).max, (one, other, p, m)
            else:
                # A scale that is no power of two rounds once more.
                assert of_numbers == pytest.approx(float(wanted), rel=1e-15, abs=0), (p, m)
                assert (of_numbers == 0) == (wanted == 0), (p, m)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_a_number_by_itself_may_have_any_type(dtype):
    for number in numbers_of(dtype):
        as_it_is = exact(number)
        probable = not is_lost(as_it_is) and 0 <= as_it_is <= 1
        residual = Test(number, 0.0).residual()
        assert residual == (
            pytest.approx(-math.log10(max(float(number), 1e-300)), abs=1e-9)
            if probable
            else pytest.approx(math.nan, nan_ok=True)
        )
        counts = float(number) >= 0
        assert Stated(number, 1.0).residual() == pytest.approx(
            float(number) if counts else math.nan, nan_ok=True
        )


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_without_an_entry_nothing_is_compared(form, dtype):
    nothing = np.zeros((2, 0), dtype)
    with pytest.raises(NothingCompared):
        FORMS[form][0](nothing, nothing, None).residual()


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_differences_are_exact(dtype):
    for other in EVERY:
        for one, two in pairs_of(dtype, other):
            apart_exactly = apart(exact(one), exact(two), 1)
            if apart_exactly is not None:
                wanted = float(Fraction(exact(one)) - Fraction(exact(two)))
                assert float(difference(one, two)) == pytest.approx(wanted, rel=5e-16, abs=0)


OTHERS = {
    "complex128": np.array([1j]),
    "complex64": np.complex64(1),
    "object": np.array([None]),
    "datetime64": np.array(["2020-01-01"], "M8[D]"),
    "timedelta64": np.array([3], "m8[s]"),
    "<U1": np.array(["a"]),
    "key": jax.random.key(0),
    "int": 2**70,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_types_are_refused_by_name(kind):
    with pytest.raises(NotNumbers, match=f"got .*{kind}.* as 'roots', wanted"):
        as_compared(OTHERS[kind], "roots")
    for form in (Equal, Count, AtMost, AtLeast):
        with pytest.raises(NotNumbers):
            form(OTHERS[kind], OTHERS[kind]).residual()


# Theorems --------------------------------------------------------------------------------------


class Side(NamedTuple):
    """What either side has."""

    value: Any = ABSENT


TIME = Flag("t", (1.0, 2.0), at_least(0), float, "t", "time")
SAME = Claim[Side, Side](
    "same", "both sides agree", compares=lambda theory, run: (theory.value, run.value)
)


def theorem_of(predicted, measured, claim=SAME, wrong=lambda t: Side(t * jnp.full(2, 7.0)), **more):
    """A theorem whose sides are functions of a time."""
    control = Control[Any, Side, Side]("wrong", "another value", claim.id, predict=wrong)
    scenario = Scenario(
        "one",
        lambda key, *, t: t,
        lambda t: Side(predicted(t)),
        lambda t: Side(measured(t)),
        claims=(claim,),
        controls=(control,),
        theory=Side,
        measured=Side,
        **more,
    )
    return Theorem("made_up", "made up", (TIME,), (scenario,))


EXACTLY = dataclasses.replace(SAME, kind="exact")


def vector(t):
    return t * jnp.ones(2)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("traced", [True, False])
def test_a_theorem_that_returns_another_type_is_refused_with_its_line(kind, traced):
    theorem = theorem_of(lambda t: OTHERS[kind], lambda t: OTHERS[kind], traced=traced)
    with pytest.raises(BadInput, match=r"test_array_types.py:\d+ \(lambda\): got .* as 'value'"):
        verify(theorem, seeds=1)


def test_eigenvalues_with_other_imaginary_parts_do_not_hold():
    """cos t +- 7i sin t is not what a rotation has: the real parts alone agree."""

    def rotation(t):
        return jnp.array([[jnp.cos(t), -jnp.sin(t)], [jnp.sin(t), jnp.cos(t)]])

    theorem = theorem_of(
        lambda t: jnp.cos(t) + jnp.array([7j, -7j]) * jnp.sin(t),
        lambda t: jnp.linalg.eigvals(rotation(t)),
    )
    with pytest.raises(BadInput, match="got an array of complex128 as 'value', wanted real and"):
        verify(theorem, seeds=1)


@pytest.mark.parametrize(("apart", "holds"), [(0, True), (1, False)])
def test_integers_of_64_bits_are_counted_exactly(apart, holds):
    """2^53 + 1 is 2^53 for whoever compares in float64."""
    theorem = theorem_of(
        lambda t: np.array([2**53 + apart, 2]),
        lambda t: np.array([2**53, 2]),
        EXACTLY,
        lambda t: Side(np.array([0, 0])),
        traced=False,
    )
    assert verify(theorem, seeds=1).verdict["holds"] is holds


def test_integers_that_a_run_would_cut_are_refused():
    theorem = theorem_of(lambda t: np.array([2**32 + 5]), lambda t: np.array([5]), EXACTLY)
    with pytest.raises(BadInput, match="got 4294967301 as 'value', wanted at most 2147483647"):
        verify(theorem, seeds=1, dtype="float32")


@pytest.mark.parametrize("dtype", [bool, jnp.int8, jnp.uint32, jnp.float16, jnp.bfloat16])
def test_short_types_are_run_kept_and_judged(dtype):
    def ones(factor):
        return lambda t: (factor * jnp.ones(2)).astype(dtype)

    kind = "identity" if jnp.issubdtype(dtype, jnp.floating) else "exact"
    claim = dataclasses.replace(SAME, kind=kind)
    for factor, holds in ((1, True), (0, False)):
        theorem = theorem_of(ones(1), ones(factor), claim, lambda t: Side(ones(0)(t)))
        claims = verify(theorem, seeds=1).verdict["claims"]
        assert claims[0]["holds"] is holds


@pytest.mark.parametrize(
    "answer", [lambda t: jnp.nan, lambda t: "yes", lambda t: jnp.zeros(0, bool)]
)
def test_a_hypothesis_answers_yes_or_no(answer):
    theorem = theorem_of(vector, vector, hypotheses={"sure": answer})
    with pytest.raises(BadInput, match=r"\(lambda\): got .* of hypothesis 'sure', wanted booleans"):
        verify(theorem, seeds=1)


def test_theory_that_is_no_number_is_refused_and_a_run_that_is_none_is_false():
    def lost(t):
        return t * jnp.array([1.0, jnp.nan])

    with pytest.raises(BadInput, match=r"\(lambda\): 'value' is NaN at axis 0 1 \(seed=0 t=1\)"):
        verify(theorem_of(lost, vector), seeds=1)
    assert verify(theorem_of(vector, lost), seeds=1).verdict["holds"] is False


def test_a_control_of_a_claim_that_nothing_meets_decides_nothing():
    """Its claim was judged nowhere: that the control did not fail is no verdict."""
    theorem = theorem_of(
        vector, vector, wrong=lambda t: Side(vector(t)), hypotheses={"early": lambda t: t < 0}
    )
    verdict = verify(theorem, seeds=1).verdict
    assert [claim["holds"] for claim in verdict["claims"]] == [None, False]
    assert verdict["holds"] is None


def test_what_is_judged_was_written_and_read(monkeypatch):
    """A writer that loses a digit is seen, whatever the run had in memory."""
    from lrdyn.verification.storing import files

    real = files.write_netcdf

    def lossy(path, groups):
        root = groups["/"]
        changed = root.assign(value_measured=root["value_measured"] + 1.0)
        real(path, {**groups, "/": changed})

    theorem = theorem_of(vector, vector)
    assert verify(theorem, seeds=1).verdict["holds"] is True
    monkeypatch.setattr(files, "write_netcdf", lossy)
    run = run_of(theorem, seeds=1)
    assert verify_run(run, Context()).verdict["holds"] is False


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "identiy"}, "got kind='identiy' .did you mean 'identity'.., wanted one of"),
        ({"kind": "limit"}, "got kind='limit' without a tolerance, wanted one"),
        (
            {"compares": lambda theory, run: (theory.value, theory.value)},
            "got compares of theory, wanted",
        ),
    ],
)
def test_a_claim_that_is_stated_wrongly_says_so(change, said):
    with pytest.raises(Misstated, match=f"claim 'same': .*{said}"):
        dataclasses.replace(SAME, **change)
