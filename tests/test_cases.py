"""Cases take every flag: one that is ignored would move both sides of a claim, which then holds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.registry import theorems
from lrdyn.verification.running.evaluate import case_arguments

SCENARIOS = [
    pytest.param(theorem, scenario, id=f"{theorem.name}-{scenario.id}")
    for theorem in theorems()
    for scenario in theorem.scenarios
]


@eqx.filter_jit
def _arrays(case, settings):
    leaves = jax.tree.leaves(eqx.filter(case(jax.random.key(0), **settings), eqx.is_array))
    return [jax.random.key_data(a) if is_key(a) else a for a in leaves]


class Cases:
    """The cases of a scenario, at its usual settings and at others."""

    def __init__(self, theorem, scenario):
        self.scenario = scenario
        usual = {f.name: f.quick[0] if f.quick else None for f in theorem.flags}
        self.usual = usual | dict(scenario.at)
        if self.usual.get("rank") == 1:
            self.usual["rank"] = 2  # of rank 1 a target has no condition
        self.swept = {f.name: f.quick if f.swept else self.usual[f.name] for f in theorem.flags}
        of_case = case_arguments(scenario, self.usual)
        self.flags = [f for f in theorem.flags if of_case.get(f.name) is not None]
        traced = [f.name for f in self.flags if f.type is float and not f.shapes]
        self.of_case = of_case | {name: jnp.asarray(of_case[name]) for name in traced}

    def outlined(self, **changed):
        """Shapes of the arrays of a case, and all that is none."""
        rest = []

        def case():
            made = self.scenario.case(jax.random.key(0), **self.of_case | changed)
            arrays, others = eqx.partition(made, eqx.is_array)
            rest.append(others)
            return arrays

        return jax.eval_shape(case), rest[0]

    def arrays(self, **changed):
        """Arrays of a case, compiled once for all values of the numbers."""
        return [np.asarray(a) for a in _arrays(self.scenario.case, self.of_case | changed)]

    def takes(self, flag, value, **changed):
        """Whether the scenario runs with another value of a flag, the others as they are."""
        asked = (value,) if flag.swept else value
        if value == self.usual[flag.name] or not flag.domain.contains(value):
            return False
        # A scenario can have settings of its own, whatever the flags are.
        if self.scenario.narrow(self.swept | {flag.name: asked})[flag.name] != asked:
            return False
        try:
            self.outlined(**changed | given(flag, value))
        except ValueError:
            return False
        return True

    def is_minded(self, kind, other):
        try:
            return self.outlined(**kind) != self.outlined(**kind, **other) or any(
                not np.array_equal(one, another, equal_nan=True)
                for one, another in zip(
                    self.arrays(**kind), self.arrays(**kind, **other), strict=True
                )
            )
        except ValueError:  # refused for this kind alone, which is minding, too
            return True


@pytest.mark.parametrize(("theorem", "scenario"), SCENARIOS)
def test_no_number_among_the_flags_is_ignored(theorem, scenario):
    """Both sides of a claim share the case: one that ignores a flag would still be judged to hold.

    Every array of the case is compared: some must be another when a flag has another value.
    """
    cases = Cases(theorem, scenario)
    of_case = case_arguments(scenario, cases.usual)
    traced = [f for f in theorem.flags if f.type is float and not f.shapes and f.name in of_case]
    # No spread of zeros.
    numbers = {
        flag.name: float(of_case[flag.name] or next(filter(flag.domain.contains, (0.1, 1.5))))
        for flag in traced
    }
    others = {flag.name: other_value(flag, numbers[flag.name]) for flag in traced}
    asked = {name: (value,) for name, value in others.items()}
    # A scenario can have settings of its own, whatever the flags are.
    swept = scenario.narrow(cases.swept | asked)
    others = {name: value for name, value in others.items() if swept[name] == asked[name]}
    as_arrays = {name: jnp.asarray(number) for name, number in numbers.items()}
    before = cases.arrays(**as_arrays)
    for name, value in others.items():
        after = cases.arrays(**as_arrays | {name: jnp.asarray(value)})
        same = [np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True)]
        assert not all(same), (name, numbers[name], value)


def given(flag, value):
    """A flag as a case takes it."""
    return {flag.name: jnp.asarray(value) if flag.type is float and not flag.shapes else value}


def whole_numbers(flag, here):
    return [*flag.quick, *flag.paper, here + 1, here - 1, 2 * here]


@pytest.mark.parametrize(("theorem", "scenario"), SCENARIOS)
def test_no_whole_number_among_the_flags_is_ignored(theorem, scenario):
    """The same for those that decide shapes: an array of the case has another shape or entry.

    Some count for one kind of mask or loss alone: each kind is tried until one minds.
    """
    cases = Cases(theorem, scenario)
    kinds = [
        {flag.name: kind}
        for flag in cases.flags
        if flag.type is str and flag.swept
        for kind in flag.quick
    ]
    for flag in cases.flags:
        if flag.type is int:
            here = cases.of_case[flag.name]
            others = filter(lambda value, f=flag: cases.takes(f, value), whole_numbers(flag, here))
            for value in list(others)[:1]:
                minds = (cases.is_minded(kind, {flag.name: value}) for kind in ({}, *kinds))
                assert any(minds), (flag.name, here, value)


def is_key(array):
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def other_value(flag, usual):
    """A number that a flag accepts, and that is not the usual one."""
    numbers = (*flag.quick, *flag.paper, 2 * usual, usual / 2, 0.1)
    return float(next(x for x in numbers if x != usual and flag.domain.contains(float(x))))
