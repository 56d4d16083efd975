"""What wrong calls of the public functions do.

``python -m tests.faults.wrong_calls`` takes the right call of each public function from its
example, puts wrong things in the place of each argument in turn, and sorts what happens:

* ``named``: a ValueError of ours that names an argument of the function;
* ``foreign``: an error of JAX, NumPy or Python;
* ``right``: no error, since the annotations allow the call, or since its numbers mean the same;
* ``wrong``: no error and another meaning: an argument that was broadcast or cut, or a NaN.

Sizes beyond any memory are put in the place of integers as well, in a process of their own with
6 GB of address space, since such a call may end its process:

* ``ended``: it did;
* ``slow``: no end within ten seconds, as of a number of steps.

It prints how many there are, and each call that is neither named nor right; it fails if one is
wrong, if one has ended the process or if more than one in twenty are foreign. It takes some
minutes; names of modules of ``lrdyn`` choose.
"""

import doctest
import importlib
import inspect
import re
import resource
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, starmap
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from beartype.door import is_bearable
from jaxtyping import PyTree, jaxtyped

MODULES = (
    *"core.factorization core.spectra core.initialization core.recording core.descent".split(),
    *"core.condition core.masking completion.recovery completion.entries".split(),
    *"theorem1.shrinkage theorem1.regularised_autoencoder".split(),
    *"theorem1.landscape theorem1.convergence".split(),
    *"theorem2.subspace theorem2.classifier theorem2.collapse corollary1.compression".split(),
    *"theorem3.masked_autoencoder theorem4.gradient_rank verification.stating.claims".split(),
    *"theorem3.dropout_penalties theorem3.dropout_minimum".split(),
    *"theorem3.several_dropout_layers theorem3.dropconnect theorem3.dropblock".split(),
    *"adapters.projectors adapters.methods adapters.memory".split(),
    *"adapters.state adapters.algorithm_1 adapters.transformations".split(),
    *"networks.perceptron networks.attention networks.small_transformer networks.network".split(),
    *"networks.convolution networks.weights networks.vgg_network networks.residual_network".split(),
    *"networks.vision_transformer networks.packing".split(),
    *"diagnosis.watcher diagnosis.report diagnosis.extraction".split(),
)

# Functions whose arguments have no wrong values: any tree, or what is to be checked. Of the claims
# those that the package offers; the others are those of ``lrdyn.verification``.
ANY = {"count", "product_shape", "checked_frame", "checked_network", "square_layers", "is_map"}
ANY |= {"choose_by_svd", "choose_identity", "begin_coordinates", "decays", "enough_classes"}
ONLY = {
    "lrdyn.verification.stating.claims": ("relative_difference", "tolerance"),
    "lrdyn.diagnosis.report": ("diagnose",),
}

# More telling than what the examples have: sides of different length.
EYE, LONG = np.eye(3), np.arange(1.0, 13.0).reshape(3, 4) / 8
CHAIN = (np.ones((2, 4)), np.ones((3, 2)))
BETTER: dict[str, dict[str, Any]] = {
    "factorization_loss": {"weights": CHAIN, "target": LONG},
    "mean_factorization_loss": {"weights": CHAIN, "target": LONG},
    "decayed_loss": {"weights": CHAIN, "target": LONG},
    "masked_loss": {"weights": CHAIN, "target": LONG, "mask": LONG},
    "recovery_error": {"product": LONG, "target": LONG + 1},
    "observed_loss": {"product": LONG, "target": LONG + 1, "mask": np.ones((3, 4))},
    "surrogate": {"target": LONG, "mask": np.ones((3, 4))},
    "masked_prediction": {"terms": np.ones((2, 3, 4))},
    "regression_loss": {"weights": CHAIN, "inputs": np.ones((4, 5)), "outputs": np.ones((3, 5))},
    "dropout_loss": {
        "left": np.ones((3, 2)),
        "right": np.ones((2, 4)),
        "target": LONG,
        "keep_prob": 0.5,
    },
    "project_rows": {"target": np.ones((2, 4)), "inputs": LONG},
    "sensing_loss": {
        "product": LONG,
        "measurements": np.ones((2, 3, 4)),
        "values": np.ones(2),
    },
    "sense": {"measurements": np.ones((2, 3, 4)), "target": LONG},
    "relative_response": {"first": np.ones(3), "second": np.ones(3) / 2, "scale": np.ones(())},
}

# What is outside the domain of a number, by the name of its argument; NaN always is.
NEGATIVE = (-1.0,)
DOMAINS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("decay", "weight_decay", "learning_rate", "close", "strength"), NEGATIVE),
    **dict.fromkeys(("rate", "tolerance"), NEGATIVE),
    **dict.fromkeys(("keep_prob", "fraction", "at_block"), (-1.0, 0.0, 1.5)),
    "spread": (-1.0, 0.0),
}
SPECTRA = {"values", "singular_values", "shrunk", "found"}  # singular values: none is negative
MEASURED = {"sensing_loss", "sensing_surrogate", "product_of_others"}  # values of any sign
MAY_BE_ZERO = {("tolerance", "steps"), ("dropout_descent", "steps")}
MAY_BE_ZERO |= {("compression_error", "rank"), ("compression_bound", "rank"), ("jagged", "start")}
MAY_BE_ZERO |= {
    (name, size)
    for name in ("entries", "weights_held", "adam_state", "state_bytes", "temporaries")
    for size in ("mnrb" if name == "entries" else "rb")
}
MAY_BE_EMPTY = {"principal_angles"}  # a span of nothing has none


class Wrong(NamedTuple):
    """One wrong call."""

    function: Callable[..., Any]
    name: str
    argument: str
    kind: str
    """What was put in the argument's place."""
    call: dict[str, Any]
    same: dict[str, Any] | None
    """A right call that would mean the same."""
    longer: dict[str, Any] | None
    """The call with an axis of another length than this one of length 1."""


def public(paths: Sequence[str] = MODULES) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Module, name and function of every public function."""
    for path in paths:
        module = importlib.import_module(f"lrdyn.{path}")
        for name, function in list(vars(module).items()):
            ours = getattr(function, "__module__", None) == module.__name__
            called = inspect.isfunction(function) or isinstance(function, jax.custom_vjp)
            offered = name in ONLY.get(module.__name__, (name,)) and name not in ANY
            if ours and called and offered and not name.startswith("_"):
                yield module, name, function


class _Called(Exception):
    pass


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Its parameters; annotations that are texts as they read where the function stands."""
    found = dict(inspect.signature(function).parameters)
    for name, one in found.items():
        if isinstance(one.annotation, str):
            read = eval(one.annotation, vars(inspect.getmodule(function)))
            found[name] = one.replace(annotation=read)
    return found


def right_call(module: Any, name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of the first call in the example of a function, and its other defaults."""
    signature = inspect.signature(function)

    def record(*args: Any, **kwargs: Any) -> Any:
        raise _Called(signature.bind(*args, **kwargs))

    names = {**vars(module), name: record}
    try:
        for example in doctest.DocTestParser().get_examples(function.__doc__ or ""):
            exec(example.source, names)
    except _Called as called:
        bound = called.args[0]
        bound.apply_defaults()
        better = jax.tree.map(jnp.asarray, BETTER.get(name, {}))
        return dict(bound.arguments) | better
    raise AssertionError(f"{name} has no example")


def wrong_values(function: str, name: str, x: Any) -> Iterator[Any]:
    """What is put in the place of x: its kind, x', what means the same, an axis that is longer."""
    if x is None or type(x) is bool or (function, name) == ("measured_memory", "donate"):
        return  # anything has a truth, and JAX its own rule for positions
    yield "a text", "text", None, None
    if isinstance(x, tuple) and x and all(map(_is_array, x)):
        yield from _in_a_tuple(function, name, x)
    elif isinstance(x, tuple | list) and x and all(type(n) is int for n in x):
        bad = {"none": (), "zero": 0, "negative": -1, "5.5": 5.5, "a text in it": "text"}
        for kind, n in bad.items():
            yield kind, n if n == () else type(x)([*x[:-1], n]), None, None
        yield "None", None, None, None
    elif _is_key(x):
        both: Any = [x, x]
        for kind, bad in {"None": None, "number": 1.0, "several": jnp.stack(both)}.items():
            yield kind, bad, None, None
    elif _is_array(x) or type(x) is float:
        yield from _in_an_array(function, name, x)
    elif type(x) is int:
        yield from _of_an_integer(function, name, x)
    else:
        yield "None", None, None, None
        yield "number", 1.5, None, None


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray) and not _is_key(x)


def _of_an_integer(function: str, name: str, x: int) -> Iterator[Any]:
    yield "5.5", 5.5, None, None
    yield "float", float(x), x, None
    yield "negative", -1, None, None
    if (function, name) not in MAY_BE_ZERO:
        yield "zero", 0, None, None
    yield "vector", jnp.full(2, x), None, None
    yield "None", None, None, None
    yield "complex", complex(x), None, None
    yield "True", True, 1, None


def _in_a_tuple(function: str, name: str, x: tuple) -> Iterator[Any]:
    """Wrong layers, or wrong fields of a named tuple."""
    rebuilt = getattr(x, "_make", tuple)
    yield "None", None, None, None
    yield "no layer", (), None, None
    yield "an array", x[0], None, None
    for place, leaf in enumerate(x):

        def put(value: Any, place: int = place) -> Any:
            return rebuilt([*x[:place], value, *x[place + 1 :]])

        for kind, *values in wrong_values(function, f"{name}[{place}]", leaf):
            yield f"{kind} at {place}", *(v if v is None else put(v) for v in values)


def _in_an_array(function: str, name: str, x: Any) -> Iterator[Any]:
    """The same shapes and numbers as NumPy's where x is."""
    own = np.asarray if isinstance(x, np.ndarray) else jnp.asarray
    for kind, *values in _arrays_in_place_of(function, name, x):
        yield (
            kind,
            *(own(v) if isinstance(v, np.ndarray) and v.dtype.kind != "U" else v for v in values),
        )


def _arrays_in_place_of(
    function: str, name: str, x: Any
) -> Iterator[tuple[str, Any, Any, np.ndarray | None]]:
    array = np.asarray(x)
    yield "None", None, None, None
    if array.ndim:
        yield "scalar", array.ravel()[:1].reshape(()), None, None
    if array.ndim != 1:
        yield "vector", np.append(array.ravel(), array.ravel()), None, None
    if array.ndim > 1:
        yield "transposed", np.ascontiguousarray(array.T), None, None
    yield "one more axis", array[None], None, None
    for axis, length in enumerate(array.shape):
        longer = np.concatenate([array, array.take([0], axis)], axis)
        yield f"longer axis {axis}", longer, None, None
        yield f"empty axis {axis}", array.take(np.zeros(0, int), axis), None, None
        if length > 1:
            # The longer steps do not increase.
            other = None if name == "steps" else longer
            yield f"length 1 of axis {axis}", array.take([0], axis), None, other
    yield "complex", array.astype(complex), None, None
    if array.dtype.kind == "b":
        yield "integers", array.astype(int), None, None
        yield "floats", array.astype(float), None, None
        return
    yield "bool", array > 0, (array > 0).astype(float), None
    yield "an array of texts", np.full(array.shape, "text"), None, None
    if array.dtype.kind == "i":
        yield "floats", array + 0.5, None, None
        yield "negative", -abs(array) - 2, None, None
        return
    whole = np.round(np.nan_to_num(array, posinf=9.0) + 0.6)
    yield "integers", whole.astype(int), whole, None
    domain = DOMAINS.get(name, ())
    for number in (*domain, *([np.nan] if domain else [])):
        yield str(number), np.full_like(array, number), None, None
        if type(x) is float:
            yield f"{number} of Python's", number, None, None
    if name in SPECTRA and function not in MEASURED:
        yield "negative", -array - 1, None, None


def wrong_calls(module: Any, name: str, function: Callable[..., Any]) -> Iterator[Wrong]:
    """Those of one function."""
    right, hints = right_call(module, name, function), parameters_of(function)
    for argument, x in right.items():
        hint = hints[argument].annotation
        if hint in (Any, PyTree) or isinstance(hint, TypeVar):
            continue  # any tree is right
        for kind, value, same, longer in wrong_values(name, argument, x):
            if (value is None or type(value) is str) and is_bearable(value, hint):
                continue  # none, or a pattern of names, is among what is wanted
            others = (v if v is None else {**right, argument: v} for v in (same, longer))
            yield Wrong(function, name, argument, kind, {**right, argument: value}, *others)


HUGE = (2**31, 2**32, 2**62, 2**63)
"""Beyond 32 bits, beyond a memory, products of two beyond 64 bits, and beyond 64 bits alone."""
ADDRESS_SPACE = 6 * 10**9
SECONDS = 10.0


def huge_calls(module: Any, name: str, function: Callable[..., Any]) -> Iterator[Wrong]:
    """Those of one function with a huge size: in the place of an integer, of one of several, all.

    Example:
        >>> module, name, function = next(public(["core.masking"]))
        >>> list(huge_calls(module, name, function))
        []
    """
    right = right_call(module, name, function)
    for argument, x in right.items():
        if (name, argument) == ("measured_memory", "donate"):
            continue  # positions, no sizes
        for size in HUGE:
            if type(x) is int:
                puts = {"": size}
            elif isinstance(x, tuple | list) and any(type(n) is int for n in x):
                puts = {
                    f" at {place}": type(x)([*x[:place], size, *x[place + 1 :]])
                    for place, n in enumerate(x)
                    if type(n) is int
                }
                puts[" everywhere"] = type(x)(size if type(n) is int else n for n in x)
            else:
                continue
            for where, value in puts.items():
                kind = f"2**{size.bit_length() - 1}{where}"
                yield Wrong(function, name, argument, kind, {**right, argument: value}, None, None)


def all_huge_calls(path: str) -> Iterator[Wrong]:
    """Those of one module."""
    return chain.from_iterable(starmap(huge_calls, public([path])))


def classified_apart(path: str) -> Iterator[tuple[Wrong, str, str]]:
    """Each call of a module with a huge size, its class and what was seen, from other processes."""
    calls = list(all_huge_calls(path))
    done = 0
    while done < len(calls):
        words = [sys.executable, "-m", __spec__.name, "--huge", path, str(done)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stderr
            begun = False
            while True:
                # The first line comes when everything is imported.
                ready, _, _ = select.select([child.stdout], [], [], SECONDS if begun else 120)
                line = child.stdout.readline().decode() if ready else ""
                if line == "begun\n":
                    begun = True
                    continue
                if not line:
                    break
                yield calls[done], *line.rstrip("\n").split(" ", 1)
                done += 1
            if done == len(calls):
                break
            child.kill()
            if not ready:
                yield calls[done], "slow", f"no end within {SECONDS:.0f} s"
            else:
                last = child.stderr.read().decode().strip().rpartition("\n")[2]
                yield calls[done], "ended", f"status {child.wait()}: {last}"
            done += 1


def classify_here(path: str, first: int) -> None:
    """Make the calls of a module from this one on, and print a line about each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for number, wrong in enumerate(islice(all_huge_calls(path), first, None)):
        if not number:
            print("begun", flush=True)
        try:
            jax.block_until_ready(called(wrong.function, wrong.call))
        except Exception as error:
            print(*judged_error(wrong, error), flush=True)
        else:
            print("right ", flush=True)


def called(function: Callable[..., Any], call: dict[str, Any]) -> Any:
    """Call with arguments by name; those of ``*args`` and positional ones find their place."""
    bound = inspect.signature(function).bind_partial()
    bound.arguments.update(call)
    return function(*bound.args, **bound.kwargs)


def classified(wrong: Wrong) -> tuple[str, str]:
    """The class of a wrong call, and what was seen."""
    try:
        result = called(wrong.function, wrong.call)
    except Exception as error:
        return judged_error(wrong, error)
    if wrong.same is not None:
        return (
            ("right", "")
            if _agree(result, called(wrong.function, wrong.same))
            else (
                "wrong",
                "not what the same numbers give as floats",
            )
        )
    if not _allowed(wrong.function, wrong.call) or _outside(wrong):
        return "wrong", f"silent: {result!r:.60}"
    if _lost(result):
        return "wrong", "NaN"
    if wrong.longer is not None:
        try:
            called(wrong.function, wrong.longer)
        except Exception:
            return "wrong", "an axis of length 1 was broadcast"
    return "right", ""


def judged_error(wrong: Wrong, error: Exception) -> tuple[str, str]:
    """Whether an error is ours and names an argument, and its message."""
    message = str(error).split("\n")[0]
    # A model is the ``params`` of a run.
    names = "|".join([*inspect.signature(wrong.function).parameters, "params"])
    ours = isinstance(error, ValueError) and ", wanted" in message
    good = ours and re.match(rf"(the size of |rows of a factor of )?({names})\b", message)
    return "named" if good else "foreign", f"{type(error).__name__}: {message}"


def _outside(wrong: Wrong) -> bool:
    """Whether numbers alone, which no annotation sees, make the call wrong."""
    kind = wrong.kind.split(" ")[0]
    if kind == "empty" and wrong.name in MAY_BE_EMPTY:
        return False
    return kind in ("negative", "zero", "nan", "-1.0", "0.0", "1.5", "empty", "no")


def _allowed(function: Callable[..., Any], call: dict[str, Any]) -> bool:
    """Whether the annotations allow the arguments, the same letter for the same length."""
    parameters = parameters_of(function)
    with jaxtyped("context"):
        return all(
            is_bearable(x, parameters[name].annotation)
            for name, x in call.items()
            if parameters[name].annotation is not inspect.Parameter.empty
        )


def _arrays(result: Any) -> list[np.ndarray]:
    leaves = map(np.asarray, jax.tree.leaves(result))
    return [leaf for leaf in leaves if leaf.dtype.kind in "biufc"]


def _agree(one: Any, other: Any) -> bool:
    pairs = zip(_arrays(one), _arrays(other), strict=True)
    return all(a.shape == b.shape and np.allclose(a, b, equal_nan=True) for a, b in pairs)


def _lost(result: Any) -> bool:
    return any(np.isnan(a).any() for a in _arrays(result) if a.dtype.kind == "f")


def main(words: Sequence[str]) -> int:
    """Make every wrong call; whether too many are foreign, or one is wrong or ends a process."""
    if words[:1] == ["--huge"]:
        classify_here(words[1], int(words[2]))
        return 0
    modules = [word.removeprefix("lrdyn.") for word in words] or MODULES
    wrong_ones = chain.from_iterable(starmap(wrong_calls, public(modules)))
    huge = chain.from_iterable(map(classified_apart, modules))
    failed = False
    for what, classes in {
        "calls": ((wrong, *classified(wrong)) for wrong in wrong_ones),
        "calls with huge sizes": huge,
    }.items():
        counts: Counter[str] = Counter()
        for wrong, found, seen in classes:
            counts[found] += 1
            if found not in ("named", "right"):
                call = f"{wrong.name}, {wrong.kind} for {wrong.argument}"
                print(f"{found}: {call}: {seen:.150}", flush=True)
        total = sum(counts.values())
        print(f"{total} {what}:", ", ".join(f"{n} {name}" for name, n in counts.items()))
        failed |= counts["wrong"] + counts["ended"] > 0 or counts["foreign"] > total / 20
    return int(failed)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    sys.exit(main(sys.argv[1:]))
