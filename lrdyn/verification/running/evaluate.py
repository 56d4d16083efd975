"""The functions of one point: what a sweep calls for a scenario, and for its controls."""

import dataclasses
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
from lrdyn.verification.stating.statement import Control, Scenario, longest_axis, nothing
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
    if scenario.train is None and scenario.traced and scenario.compare is nothing:
        return _in_stages(scenario, fixed, room)
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


PREDICT, MEASURE = "predict", "measure"
"""The two sides of a scenario, and the fields of it and of a control that compute them."""


@dataclasses.dataclass(frozen=True, eq=False)  # a function is itself alone
class Staged:
    """A function of a point, which first makes a case and then computes both sides from it alone.

    A sweep can compile the sides apart (:mod:`lrdyn.verification.running.programs`): an edit of
    theory's formulas then leaves the program of the run as it was, which is most of the work.
    Called like any other function of a point it computes both.
    """

    case: Callable[..., Any]
    """From the values of a point to any PyTree: the case, or those of several controls."""
    sides: Callable[[Sequence[str], Any], list[dict[str, Any]]]
    """The named arrays of each of some sides. What is known of the case is one of theory's."""
    decided_by: Mapping[str, Any]
    """All that decides the case (``"case"``) and each side beside its arguments: functions, and
    constants of its program."""
    apart: bool
    """Whether the sides are programs of their own."""

    def __call__(self, seed: Any, keeper: Keeper = FORGETFUL, **point: Any) -> dict[str, Any]:
        """The arrays of a point by name."""
        return self.join(*self.sides((PREDICT, MEASURE), self.case(seed, **point)))

    @staticmethod
    def join(predicted: Mapping[str, T], measured: Mapping[str, T]) -> dict[str, T]:
        """The arrays of both sides in one mapping; a name that both have tells the side."""
        return _name_sides(predicted, measured)


def _in_stages(scenario: Scenario, fixed: Mapping[str, Any], room: int | None) -> Staged:
    """The function of a scenario that is traced, and whose two sides are compared by claims."""

    def case(seed: Any, **flags: Any) -> Any:
        key = jax.random.key(seed)
        return scenario.case(key, **case_arguments(scenario, {**fixed, **flags}))

    words = not (scenario.claims or scenario.findings)

    def sides(names: Sequence[str], case: Any) -> list[dict[str, Any]]:
        once, found = OnceEach(), []
        for name in names:
            function = getattr(scenario, name)
            arrays = _arrays(function, once(function, case), True, words=words)
            if name == PREDICT:
                beside = {} if room is None else cases.arrays_of(case, room)
                arrays = _case_record(scenario, case) | arrays | beside
            found.append(arrays)
        return found

    facts = (*scenario.hypotheses.items(), scenario.summed)
    decided_by = {
        "case": scenario.case,
        PREDICT: (scenario.predict, facts, words, room),
        MEASURE: (scenario.measure, words),
    }
    return Staged(case, sides, decided_by, scenario.apart)


def evaluate_controls(
    scenario: Scenario, fixed: Mapping[str, Any], controls: Sequence[Control]
) -> Staged:
    """Build the function that runs controls: one program, what they share once.

    It takes ``amount`` too, where that is not to be the controls' own. The names of its results
    start with the id of the control. Only what the claim of a control reads is returned, so that
    nothing else is compiled.
    """
    facts = partial(_case_record, scenario)
    # Two controls that break a case in the same way share it; None is the way of the unbroken case.
    ways = [c.case and (c.case, c.amount) for c in controls]
    places = {way: place for place, way in enumerate(dict.fromkeys(ways))}
    claims = [claim_of(control, scenario) for control in controls]
    reads = [(*scenario.arrays_of(c), c.condition_name, scenario.diverges_name) for c in claims]

    def case(seed: Any, amount: Any = None, **flags: Any) -> list[Any]:
        key = jax.random.key(seed)
        whole = scenario.case(key, **case_arguments(scenario, {**fixed, **flags}))
        broken = []
        for way in places:
            if way is None:
                broken.append(whole)
                continue
            move, usual = way
            distance = jnp.asarray(usual if amount is None else amount)
            # A key of its own: what moves a case must not depend on the draws that made it.
            broken.append(move(jax.random.fold_in(key, 1), whole, distance))
        return broken

    def sides(names: Sequence[str], broken: list[Any]) -> list[dict[str, Any]]:
        once = OnceEach()
        told = (facts,) if PREDICT in names else ()
        if scenario.traced:
            # One loop over the cases of all controls compiles once, where each by itself compiles
            # again.
            once.map_cases((*(getattr(scenario, name) for name in names), *told), broken)
        found: list[dict[str, Any]] = [{} for _ in names]
        for control, way, read in zip(controls, ways, reads, strict=True):
            case = broken[places[way]]
            for name, outputs in zip(names, found, strict=True):
                function = getattr(scenario, name)
                arrays = _arrays(function, once(function, case), scenario.traced)
                if (wrong := getattr(control, name)) is not None:
                    arrays |= _arrays(wrong, once(wrong, case), scenario.traced)
                named = {n: a for n, a in arrays.items() if n in read}
                if name == PREDICT:
                    named |= once(facts, case)
                outputs |= {f"{control.id}.{name}": value for name, value in named.items()}
        return found

    ids = tuple(control.id for control in controls)
    decided_by = {
        "case": (scenario.case, ways, ids, reads),
        PREDICT: (
            *(scenario.predict, *(c.predict for c in controls)),
            *(*scenario.hypotheses.items(), scenario.summed),
        ),
        MEASURE: (scenario.measure, *(c.measure for c in controls)),
    }
    return Staged(case, sides, decided_by, scenario.apart)


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
    leaves, structure = jax.tree.flatten(stacked)
    each = zip(*map(jnp.unstack, leaves), strict=True)
    return [eqx.combine(structure.unflatten(part), others[-1]) for part in each]


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
