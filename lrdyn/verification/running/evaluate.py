"""The functions of one point: what a sweep calls for a scenario, and for its controls."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lrdyn.training.keeping import FORGETFUL, Keeper
from lrdyn.verification.judging.judging import claim_of
from lrdyn.verification.stating import array_types
from lrdyn.verification.stating.fields import SIZE, arrays_in
from lrdyn.verification.stating.mistakes import BadInput, location_of
from lrdyn.verification.stating.statement import Control, Scenario, longest_axis
from lrdyn.verification.storing import cases

T = TypeVar("T")
Point = Callable[..., dict[str, Any]]
"""A function of ``seed`` and of the swept flags that returns named arrays."""


DATA_DIR = "data_dir"
"""Setting beside the flags: the folder searched first for data, or an empty text."""


def evaluate(scenario: Scenario, fixed: Mapping[str, Any], room: int | None = None) -> Point:
    """Build the function that produces the arrays of a scenario; ``fixed`` is not swept.

    Where the scenario trains it takes a keeper, too. With ``room``, in bytes, it returns the case
    beside them, see :mod:`lrdyn.verification.storing.cases`.
    """
    measure = scenario.measure

    def point(seed: Any, keeper: Keeper = FORGETFUL, **flags: Any) -> dict[str, Any]:
        case = scenario.case(jax.random.key(seed), **case_arguments(scenario, {**fixed, **flags}))
        once = OnceEach()
        theory = once(scenario.predict, case)
        run = scenario.train(case, keeper) if scenario.train else once(measure, case)
        # A table of which nothing is judged may have columns of words.
        words = not (scenario.claims or scenario.findings)
        predicted, measured, compared = (
            _arrays(function, returned, scenario.traced, words=words)
            for function, returned in (
                (scenario.predict, theory),
                (scenario.train or measure, run),
                (scenario.compare, scenario.compare(case, theory, run)),
            )
        )
        beside = {} if room is None else cases.arrays_of(case, room)
        return _case_record(scenario, case) | _name_sides(predicted, measured | compared) | beside

    return point


def evaluate_controls(
    scenario: Scenario, fixed: Mapping[str, Any], controls: Sequence[Control]
) -> Point:
    """Build the function that runs controls: one program, what they share once.

    It takes ``amount`` too, where that is not to be the controls' own. The names of its results
    start with the id of the control. Only what the claim of a control reads is returned, so that
    nothing else is compiled.
    """
    facts = partial(_case_record, scenario)
    # Two controls that break a case in the same way share it; None is the way of the unbroken case.
    ways = [c.case and (c.case, c.amount) for c in controls]

    def point(seed: Any, amount: Any = None, **flags: Any) -> dict[str, Any]:
        key = jax.random.key(seed)
        whole = scenario.case(key, **case_arguments(scenario, {**fixed, **flags}))
        outputs: dict[str, Any] = {}
        cases: dict[Any, Any] = {}
        for control, way in zip(controls, ways, strict=True):
            if control.case is None:
                cases[None] = whole
            elif way not in cases:
                distance = jnp.asarray(control.amount if amount is None else amount)
                # A key of its own: what moves a case must not depend on the draws that made it.
                moved = control.case(jax.random.fold_in(key, 1), whole, distance)
                cases[way] = moved
        once = OnceEach()
        if scenario.traced:
            # One loop over the cases of all controls compiles once, where each by itself compiles
            # again.
            once.map_cases((scenario.predict, scenario.measure, facts), list(cases.values()))
        for control, way in zip(controls, ways, strict=True):
            case = cases[way]
            predicted, measured = (
                _arrays(function, once(function, case), scenario.traced)
                for function in (scenario.predict, scenario.measure)
            )
            if (function := control.predict) is not None:
                predicted |= _arrays(function, once(function, case), scenario.traced)
            if (function := control.measure) is not None:
                measured |= _arrays(function, once(function, case), scenario.traced)
            claim = claim_of(control, scenario)
            read = (*scenario.arrays_of(claim), claim.condition_name, scenario.diverges_name)
            sides = ({n: a for n, a in side.items() if n in read} for side in (predicted, measured))
            named = once(facts, case) | _name_sides(*sides)
            outputs |= {f"{control.id}.{name}": value for name, value in named.items()}
        return outputs

    return point


def _arrays(
    function: Callable[..., Any], returned: Any, traced: bool, *, words: bool = False
) -> dict[str, Any]:
    """The fields that a prediction or a measurement returned, by name.

    Raises:
        BadInput: it is something else, or an array of a type that is not compared.
    """
    if not hasattr(returned, "_asdict"):
        got = type(returned).__name__
        raise BadInput(f"{location_of(function)}: got {got} back, wanted a NamedTuple of arrays")
    arrays = arrays_in(returned)
    return {name: _as_array(function, name, value, traced, words) for name, value in arrays.items()}


def _as_array(
    function: Callable[..., Any], name: str, value: Any, traced: bool, words: bool
) -> Any:
    """What was returned under a name: a traced value as it is, any other one as a NumPy array."""
    if words and isinstance(value, str | np.ndarray) and np.asarray(value).dtype.kind == "U":
        return np.asarray(value)
    try:
        if isinstance(value, jax.Array):
            array_types.refuse_type(value.dtype, name)
            return value
        if traced and isinstance(value, list | tuple):  # which is a tree to JAX
            got = type(value).__name__
            raise array_types.NotNumbers(f"got {got} as {name!r}, wanted a NamedTuple of arrays")
        array = array_types.as_array(value, name)
        if traced and array.dtype.kind in "iu":
            short = jax.dtypes.canonicalize_dtype(array.dtype)
            # JAX would cut them to 32 bits, where two that differ can become one.
            if np.any(array.astype(short) != array):
                largest = max(map(abs, (int(array.min()), int(array.max()))))
                wanted = f"at most {np.iinfo(short).max} in a float32 run, or traced=False"
                raise array_types.NotNumbers(f"got {largest} as {name!r}, wanted {wanted}")
        return array
    except array_types.NotNumbers as error:
        raise BadInput(f"{location_of(function)}: {error}") from None


def refuse_unknown(scenario: Scenario, flags: Mapping[str, Any]) -> None:
    """Refuse a case with an argument, behind the key, that is no flag.

    Raises:
        BadInput: it has one; the line is that of the case.

    Example:
        >>> refuse_unknown(Scenario("a", lambda key, *, dim, size=1: None), {"dim": 3})
    """
    for name in scenario.arguments.needed:
        if name not in (*flags, DATA_DIR):
            wanted = ", ".join(name for name in flags if name != DATA_DIR)
            raise BadInput(
                f"{location_of(scenario.case)}: got an argument {name!r}, wanted flags: {wanted}"
            )


def case_arguments(scenario: Scenario, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that its case takes, and where data are looked for if it asks for that.

    Example:
        >>> case_arguments(Scenario("a", lambda key, *, dim: None), {"dim": 3, "depth": 2})
        {'dim': 3}
    """
    names, _, takes_all = scenario.arguments
    every = flags.keys() - {DATA_DIR} if takes_all else set()
    return {name: value for name, value in flags.items() if name in names or name in every}


Once = Callable[[Callable[[Any], T], Any], T]
"""Signature of what calls a function on a case."""


def each_time(function: Callable[[Any], T], case: Any) -> T:
    """Call a function of a case: what :class:`OnceEach` does, without its memory.

    Example:
        >>> each_time(lambda case: 2 * case, 3)
        6
    """
    return function(case)


class OnceEach:
    """Calls a function on a case once, however often it is asked to.

    A prediction or a measurement that takes an argument ``once`` is given one that lives as long as
    one program is traced: ``once(function, case)`` is traced once for all that ask for it.
    """

    def __init__(self):
        self.returned: dict[tuple[Callable, int], tuple[Any, Any]] = {}

    def __call__(self, function: Callable[[Any], T], case: Any) -> T:
        """Call it, or return what it returned for this case."""
        known = (function, id(case))
        if known not in self.returned:
            takes_it = "once" in inspect.signature(function).parameters
            value = function(case, **({"once": self} if takes_it else {}))
            self.returned[known] = case, value  # keeps the case, so that its id stays
        return self.returned[known][1]

    def map_cases(self, functions: Sequence[Callable[[Any], Any]], cases: Sequence[Any]) -> None:
        """Call functions on several cases; cases of one structure share a compiled loop.

        Args:
            functions: each is called on every case that is not the only one of its form.
            cases: PyTrees; two have one form if they differ in the entries of their arrays alone.
        """
        for alike in _group_by_form(cases):
            if len(alike) > 1:
                returned = _map_in_loop(functions, alike)
                for case, values in zip(alike, returned, strict=True):
                    for function, value in zip(functions, values, strict=True):
                        self.returned[function, id(case)] = case, value


def _group_by_form(cases: Sequence[Any]) -> list[list[Any]]:
    """Group cases that differ only in the entries of their arrays."""
    groups: list[tuple[Any, list[Any]]] = []
    for case in cases:
        leaves, structure = jax.tree.flatten(case)
        # What is no array stays as it is: it must be the same object.
        form = structure, [jax.typeof(a) if eqx.is_array(a) else id(a) for a in leaves]
        same = next((alike for known, alike in groups if known == form), None)
        if same is None:
            groups.append((form, [case]))
        else:
            same.append(case)
    return [alike for _, alike in groups]


def _map_in_loop(
    functions: Sequence[Callable[[Any], Any]], cases: Sequence[Any]
) -> list[list[Any]]:
    """What the functions return for each of some cases of one form."""
    arrays = [eqx.filter(case, eqx.is_array) for case in cases]
    others = []

    def returned(arrays: Any) -> Any:
        once, case = OnceEach(), eqx.combine(arrays, cases[0])
        arrays_out, other = eqx.partition([once(f, case) for f in functions], eqx.is_array_like)
        others.append(other)  # no tracer in it: it may leave the loop
        return arrays_out

    stacked = jax.lax.map(returned, jax.tree.map(lambda *each: jnp.stack(each), *arrays))
    parts = (jax.tree.map(lambda array, n=n: array[n], stacked) for n in range(len(cases)))
    return [eqx.combine(part, others[-1]) for part in parts]


def _case_record(scenario: Scenario, case: Any) -> dict[str, Any]:
    """What the judge needs to know of a case: its longest axis, and which hypotheses it meets."""
    met = {
        f"met_{n}": _check_hypothesis(n, check, case) for n, check in scenario.hypotheses.items()
    }
    # 32 bits also in a float64 run: one type in the files of both precisions.
    return met | {SIZE: jnp.asarray(longest_axis(scenario.summed(case)), jnp.int32)}


def _check_hypothesis(name: str, check: Callable[[Any], Any], case: Any) -> Any:
    """Whether a case meets a hypothesis.

    Raises:
        BadInput: the check says neither yes nor no; a NaN would count as yes.
    """
    value = check(case)
    try:
        answer = value if hasattr(value, "dtype") else array_types.as_array(value)
        got = f"an array of {answer.dtype}" if answer.dtype != bool else ""
        got = got or ("no entry" if not answer.size else "")
    except array_types.NotNumbers:
        got = type(value).__name__
    if got:
        raise BadInput(f"{location_of(check)}: got {got} of hypothesis {name!r}, wanted booleans")
    return jnp.asarray(value)


def _name_sides(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    both = predicted.keys() & measured.keys()
    named = {f"{n}_predicted" if n in both else n: v for n, v in predicted.items()}
    return named | {f"{n}_measured" if n in both else n: v for n, v in measured.items()}
