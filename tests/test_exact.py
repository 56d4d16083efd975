"""Identities in rational arithmetic: equal, and unequal with a wrong formula."""

import functools
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from flint import arb, arb_mat, fmpq, fmpq_mat, fmpq_poly

from referee.exact import __main__ as exact
from referee.exact import rational
from referee.exact.claim import Answer, Sides, answer
from tests.kept_numbers import committed

IDENTITIES = exact.identities()
NAMES = [f"{one.theorem}-{one.claim}-{k}" for k, one in enumerate(IDENTITIES)]
KEPT = Path(__file__).parent / "data" / "exact_sides.json"


class Computed(NamedTuple):
    """What came of an identity, with the sides that it was found on."""

    answer: Answer
    sides: Sides
    wrong: Sides


@functools.cache
def computed(place: int) -> Computed:
    """Both sides of an identity, each computed once."""
    identity = IDENTITIES[place]
    sides, wrong = identity.sides(), identity.wrong()
    known = identity._replace(sides=lambda: sides, wrong=lambda: wrong)
    return Computed(answer(known), sides, wrong)


@pytest.mark.parametrize("place", range(len(IDENTITIES)), ids=NAMES)
def test_both_sides_are_equal_and_a_wrong_formula_is_told_apart(place):
    found = computed(place).answer
    assert found.agree
    assert found.told_apart


def numbers(side: Any) -> list[float]:
    """Every number of a side: of lists, a matrix, a polynomial; of a ball its middle."""
    if isinstance(side, fmpq_mat | arb_mat):
        side = side.entries()
    if isinstance(side, fmpq_poly):
        side = side.coeffs()
    if isinstance(side, list | tuple):
        return [number for part in side for number in numbers(part)]
    if isinstance(side, arb):
        return [float(side.mid())]
    return [float(Fraction(int(side.p), int(side.q)) if isinstance(side, fmpq) else side)]


def size_of(side: Any) -> list[float]:
    """How many numbers there are, their norm, and their sum with alternating signs."""
    found = np.array(numbers(side))
    mixed = float(found @ np.cos(np.arange(len(found))))
    return [len(found), *(float(f"{x:.7g}") for x in (np.linalg.norm(found), mixed))]


@pytest.mark.parametrize("theorem", sorted({one.theorem for one in IDENTITIES}))
def test_the_instances_are_what_they_were(theorem):
    """Every number of both sides and of the wrong ones; ``LRDYN_RECORD=1`` writes them anew."""
    places = [k for k, one in enumerate(IDENTITIES) if one.theorem == theorem]
    now: dict[str, list[list[float]]] = {}
    for k in places:
        claim, sides = IDENTITIES[k].claim, [side for both in computed(k)[1:] for side in both]
        number = sum(IDENTITIES[other].claim == claim for other in places if other < k)
        now[f"{claim} {number}"] = [size_of(side) for side in sides]
    wanted = committed(KEPT, theorem, now)
    assert now.keys() == wanted.keys()
    for name, before in wanted.items():
        for found, kept in zip(now[name], before, strict=True):
            assert found == pytest.approx(kept, rel=1e-6, abs=1e-12), name


def test_small_integers_are_the_same_on_every_machine():
    """A congruential generator modulo 2^31; the numbers are at most as large as is said."""
    assert rational.integers(2, 4, 7) == fmpq_mat([[3, 1, 1, 2], [-1, -3, 3, 2]])
    for most in (1, 3):
        drawn = {int(x.p) for x in rational.integers(9, 9, 5, most).entries()}
        assert drawn == set(range(-most, most + 1))


def test_a_false_identity_ends_with_1_and_is_named(monkeypatch, capsys):
    true = IDENTITIES[0]
    monkeypatch.setattr(exact, "identities", lambda: [true._replace(sides=true.wrong)])
    assert exact.main([]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


def test_an_identity_that_nothing_contradicts_ends_with_1(monkeypatch, capsys):
    true = IDENTITIES[0]
    monkeypatch.setattr(exact, "identities", lambda: [true._replace(wrong=true.sides)])
    assert exact.main([]) == 1
    assert "THE WRONG FORMULA AGREES" in capsys.readouterr().out


def test_nothing_of_this_library_or_of_jax_is_imported():
    code = (
        "import sys, referee.exact.__main__\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lrdyn', 'jax', 'jaxlib')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
