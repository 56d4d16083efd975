"""Identities in rational arithmetic: equal, and unequal with a wrong formula."""

import subprocess
import sys

import pytest
from flint import fmpq_mat

from referee.exact import __main__ as exact
from referee.exact import rational
from referee.exact.claim import answer

IDENTITIES = exact.identities()
NAMES = [f"{one.theorem}-{one.claim}-{k}" for k, one in enumerate(IDENTITIES)]


@pytest.mark.parametrize("identity", IDENTITIES, ids=NAMES)
def test_both_sides_are_equal_and_a_wrong_formula_is_told_apart(identity):
    found = answer(identity)
    assert found.agree
    assert found.told_apart


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
