"""The checks that the annotations of a function are: kinds, shapes, and lengths by name."""

import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import beartype
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Int, Key

import lrdyn as lr
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Decay, Scalar, Weights
from tests.faults.wrong_calls import MODULES, public

pytestmark = pytest.mark.usefixtures("unchecked")


class Pair(NamedTuple):
    left: Float[Array, "k d"]
    places: Int[Array, "k"]


class Both(NamedTuple):
    first: Pair
    second: Pair
    scale: Float[Array, "d"]


def accept(*arguments):
    """What a function without checks makes of them."""
    return arguments


def chain(weights: Annotated[Weights, "k d"], target: Float[Array, "k d"]):
    return accept(weights, target)


def shapes(
    matrix: Float[Array, "m n"], square: Float[np.ndarray, "n n"], *, row: Float[Array, "n"]
):
    return accept(matrix, square, row)


def kinds(key: Key[Array, ""], some: Bool[Array, "n"], labels: Int[Array, "n"], of: Callable):
    return accept(key, some, labels, of)


def numbers(scale: Scalar, decay: Decay = 0.0, limit: float | None = None, count: int | Scalar = 1):
    return accept(scale, decay, limit, count)


def fields(pair: Pair, rest: Float[Array, "k"]):
    return accept(pair, rest)


def nested(both: Both, column: Float[Array, "k"]):
    return accept(both, column)


def several(
    two: tuple[Float[Array, "h d"], Float[Array, "m h"]], square: tuple[Float[Array, "d d"], ...]
):
    return accept(two, square)


def outer(weights: Annotated[Weights, "h d", "m h"], target: Float[Array, "m d"]):
    return accept(weights, target)


def batches(x: Float[Array, "*batch d"], y: Float[Array, "*batch"], z: Float[Array, "*_ 3"]):
    return accept(x, y, z)


class Plain:
    pass


class Special(Plain):
    pass


@runtime_checkable
class Sized(Protocol):
    def __len__(self) -> int: ...


def classes(plain: Plain, table: Mapping[str, Any], own: dict[str, Any] | None, sized: Sized):
    return accept(plain, table, own, sized)


def pairs(pairs: tuple[Pair, ...], bare: Array, scale: Scalar):
    return accept(pairs, bare, scale)


I2, I3, KEY = jnp.eye(2), jnp.eye(3), jax.random.key(0)
ONES = jnp.ones
PAIR = Pair(ONES((2, 3)), jnp.arange(2))
BOTH = Both(PAIR, Pair(ONES((4, 5)), jnp.arange(4)), ONES(6))

RIGHT = {
    "chain": (chain, (ONES((4, 3)), ONES((2, 4))), ONES((2, 3))),
    "one layer": (chain, (ONES((2, 3)),), ONES((2, 3))),
    "kinds": (kinds, KEY, ONES(2, bool), jnp.arange(2), len),
    "one decay": (numbers, 1.0, ONES(()), 0.5, 3),
    "a decay each": (numbers, jnp.float32(1), ONES(4)),
    "fields": (fields, PAIR, ONES(2)),
    "nested": (nested, BOTH, ONES(7)),
    "several": (several, (ONES((4, 3)), ONES((2, 4))), (I3, I3)),
    "outer": (outer, (ONES((4, 3)), ONES((2, 4))), ONES((2, 3))),
    "batches": (batches, ONES((2, 1, 4)), ONES((2, 1)), ONES((5, 3))),
    "classes": (classes, Plain(), {"a": 1}, {}, 5),
    "heirs": (classes, Special(), MappingProxyType({}), None, ()),
    "no pairs": (pairs, (), np.eye(2), 1.0),
    "no batch": (batches, ONES(4), ONES(()), ONES(3)),
}

WRONG = {
    "a row": (chain, (I3, I3), ONES((1, 3)), "target: got shape (1, 3), wanted (3, 3)"),
    "gap": (chain, (ONES((4, 3)), I3), I3, "weights[1]: got shape (3, 3), wanted (k, 4)"),
    "no layer": (chain, (), I3, "weights: got a tuple of 0, wanted a tuple of layers"),
    "an array": (chain, I3, I3, f"weights: got a {type(I3).__name__} of 9, wanted a tuple of lay"),
    "one letter": (
        shapes,
        ONES((2, 3)),
        np.ones((3, 2)),
        "square: got shape (3, 2), wanted (3, 3)",
    ),
    "new letters": (shapes, ONES(3), np.eye(3), "matrix: got shape (3,), wanted (m, n)"),
    "empty": (shapes, ONES((0, 3)), np.eye(3), "matrix: got shape (0, 3), wanted (m, n)"),
    "complex": (
        shapes,
        I2 * 1j,
        np.eye(2),
        f"matrix: got dtype {(I2 * 1j).dtype}, wanted floating",
    ),
    "a list": (shapes, [[1.0]], np.eye(1), "matrix: got type list, wanted floating-point numbers"),
    "number": (kinds, 0, ONES(2, bool), jnp.arange(2), len, "key: got type int, wanted a random k"),
    "keys": (kinds, jnp.stack([KEY] * 2), ONES(2), None, len, "key: got shape (2,), wanted ()"),
    "floats": (kinds, KEY, np.ones(2), None, len, "some: got dtype float64, wanted booleans"),
    "labels": (kinds, KEY, ONES(2, bool), np.ones(2), len, "labels: got dtype float64, wanted int"),
    "more": (kinds, KEY, ONES(2, bool), np.arange(3), len, "labels: got shape (3,), wanted (2,)"),
    "no function": (kinds, KEY, ONES(1, bool), np.arange(1), 3, "of: got type int, wanted a Call"),
    "True": (numbers, True, "scale: got type bool, wanted floating-point numbers"),
    "a vector": (numbers, ONES(2), "scale: got shape (2,), wanted ()"),
    "two axes": (numbers, 1.0, I2, "decay: got shape (2, 2), wanted (depth,)"),
    "no number": (numbers, 1.0, None, "decay: got type NoneType, wanted floating-point numbers"),
    "no limit": (numbers, 1.0, 1.0, "text", "limit: got type str, wanted floating-point numbers"),
    "no fields": (fields, (I2, I2), ONES(2), "pair: got type tuple, wanted a Pair"),
    "a field": (
        fields,
        Pair(I2, jnp.ones(2)),
        I2,
        "pair.places: got dtype float64, wanted integers",
    ),
    "two fields": (fields, Pair(I2, jnp.arange(3)), I2, "pair.places: got shape (3,), wanted (2,)"),
    "a field's": (fields, PAIR, ONES(3), "rest: got shape (3,), wanted (2,)"),
    "inside": (
        nested,
        BOTH._replace(second=PAIR._replace(places=np.arange(5))),
        ONES(7),
        "both.second.places: got shape (5,), wanted (2,)",
    ),
    "three layers": (several, (I3,) * 3, (I3,), "two: got a tuple of 3, wanted a tuple of 2"),
    "hidden": (several, (I3, I2), (I3,), "two[1]: got shape (2, 2), wanted (m, 3)"),
    "not two": (outer, (I3,), I3, "weights: got a tuple of 1, wanted a tuple of 2"),
    "no hidden one": (outer, (I3, I2), I3, "weights[1]: got shape (2, 2), wanted (m, 3)"),
    "another size": (several, (I3, I3), (I3, I2), "square[1]: got shape (2, 2), wanted (3, 3)"),
    "no square": (several, (I3, I3), [], "square: got a list of 0, wanted a tuple of layers"),
    "batch": (batches, ONES((2, 1, 4)), ONES((2, 2)), I3, "y: got shape (2, 2), wanted (2, 1)"),
    "no class": (classes, 3, {}, {}, (), "plain: got type int, wanted a Plain"),
    "no mapping": (classes, Plain(), [], {}, (), "table: got type list, wanted a Mapping"),
    "no dictionary": (classes, Plain(), {}, 1.0, (), "own: got type float, wanted a Mapping"),
    "a length": (batches, ONES(4), ONES(()), ONES((2, 4)), "z: got shape (2, 4), wanted (..., 3)"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_fits_passes_as_it_is(name):
    function, *arguments = RIGHT[name]
    for passed, x in zip(checked(function)(*arguments), arguments, strict=False):
        assert passed is x or isinstance(x, tuple)
        assert jax.tree.all(jax.tree.map(lambda one, other: one is other, passed, x))


@pytest.mark.parametrize("name", WRONG)
def test_each_message(name):
    function, *arguments, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        checked(function)(*arguments)


ROW = ONES((1, 3))
BROADCAST = {
    "factorization_loss": (lr.factorization_loss, (I3, I3), ROW),
    "recovery_error": (lr.completion.recovery_error, I3, ROW),
    "masked_prediction": (lr.core.masked_prediction, ONES(2), ONES(1), ONES((2, 1, 1))),
    "product_of_others": (lr.theorem2.product_of_others, I3),
    "surrogate": (lr.completion.surrogate, I3, ROW),
}


@pytest.mark.parametrize("name", BROADCAST)
def test_the_decorator_is_what_refuses(name):
    """Without it the library broadcasts in silence: the mutant of these tests."""
    function, *arguments = BROADCAST[name]
    with pytest.raises(ValueError, match=r"^\w+: got shape .*, wanted \("):
        function(*arguments)
    assert np.all(np.isfinite(inspect.unwrap(function)(*arguments)))


def is_checked(function):
    while function is not None:
        if getattr(function, "__code__", None) is checked(scaled).__code__:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def test_no_public_function_is_forgotten():
    rooms = ("core", "theorem", "corollary", "completion", "networks", "adapters")
    names = [path for path in MODULES if path.startswith(rooms)]
    names += "networks.bert adapters.adapter adapters.model adapters.peft".split()
    names += "adapters.peft_adapters training.loop".split()
    forgotten = []
    for _, name, function in public(names):
        try:
            checked(inspect.unwrap(function))
        except TypeError:
            continue  # its annotations say nothing
        if not is_checked(function):
            forgotten.append(name)
    assert forgotten == []
    assert len(list(public(names))) > 100


def test_arguments_by_name_and_those_that_can_only_be_named():
    function: Any = checked(shapes)
    with pytest.raises(ValueError, match=re.escape("row: got shape (2,), wanted (3,)")):
        function(row=ONES(2), square=np.eye(3), matrix=I3)
    with pytest.raises(TypeError, match=r"shapes\(\) missing 1 required keyword-only argument"):
        function(I3, np.eye(3))
    with pytest.raises(TypeError, match=r"shapes\(\) takes 2 positional arguments"):
        function(I3, np.eye(3), "row")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        function(I3, np.eye(3), row=ONES(3), colour=3)


def scaled(x: float | Float[Array, "n"]):
    return x


@pytest.mark.parametrize("x", [2, jnp.arange(3, dtype="int8")])
def test_integers_become_floats_of_the_precision_of_the_others(x):
    number = checked(scaled)(x)
    np.testing.assert_array_equal(number, x)
    assert jnp.issubdtype(jnp.result_type(number), jnp.floating)
    assert (ONES(3, "float32") * number).dtype == "float32"
    pair = checked(fields)(PAIR._replace(left=jnp.ones((2, 3), int)), ONES(2))[0]
    assert pair.left.dtype == "float64"
    assert pair.places is PAIR.places
    assert type(checked(numbers)(1.0, 0.0, None, 3)[3]) is int  # the annotation says so


def test_signature_and_docstring_stay():
    plain = inspect.unwrap(lr.factorization_loss)
    assert plain is not lr.factorization_loss
    assert inspect.signature(lr.factorization_loss) == inspect.signature(plain)
    assert lr.factorization_loss.__doc__ == plain.__doc__
    assert lr.factorization_loss.__qualname__ == "factorization_loss"


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_shapes_inside_of_a_traced_program(transform):
    @checked
    def distance(x: Float[Array, "d"], y: Float[Array, "d"]) -> Float[Array, ""]:
        return jnp.sum((x - y) ** 2)

    runs = (2,) if transform is jax.vmap else ()
    assert np.all(np.isfinite(transform(distance)(ONES((*runs, 3)), 2 * ONES((*runs, 3)))))
    with pytest.raises(ValueError, match=re.escape("y: got shape (1,), wanted (3,)")):
        transform(distance)(ONES((*runs, 3)), ONES((*runs, 1)))


def test_both_orders_with_the_checks_of_jaxtyping():
    typed = jaxtyping.jaxtyped(typechecker=beartype.beartype)
    jaxtyping.config.update("jaxtyping_disable", False)
    for decorate in (lambda f: typed(checked(f)), lambda f: checked(typed(f))):
        function = decorate(scaled)
        assert function(1.0) == 1.0
        np.testing.assert_array_equal(function(ONES(2)), ONES(2))
        with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
            function("text")


@pytest.mark.parametrize("axis", ["2*r", "k=3", "#k", "?k"])
def test_an_axis_that_is_neither_a_length_nor_a_name_is_refused_at_the_definition(axis):
    def function(x: Float[Array, axis]):
        """Nothing."""

    with pytest.raises(TypeError, match=f"axis: got '{re.escape(axis)}' in"):
        checked(function)


def test_annotations_that_say_nothing_are_refused_at_the_definition():
    with pytest.raises(TypeError, match="wanted annotations that say something"):
        checked(lambda rank: rank)
