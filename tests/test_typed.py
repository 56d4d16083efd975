"""The tests' checker of annotations: it is told apart by all that an annotation says."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from tests import typed

VECTOR, MATRIX = jnp.zeros(2), jnp.zeros((2, 3))


def made(annotation, returned=None, *, default=False) -> Any:
    """A function as one that stands within another, new at each call."""
    annotated = {"x": annotation} | ({} if returned is None else {"return": returned})

    def inner(x):
        return x

    def optional(x=VECTOR):
        return x

    one = optional if default else inner
    one.__annotations__ = annotated
    one.__qualname__ = "made.<locals>.inner"
    return jaxtyping.jaxtyped(typechecker=typed.checked)(one)


@pytest.mark.parametrize(
    ("first", "second", "fits", "wrong"),
    [
        (Float[Array, "d"], Float[Array, "d d"], jnp.zeros((2, 2)), VECTOR),
        (Float[Array, "d"], Float[Array, "d 3"], MATRIX, VECTOR),
        (Float[Array, "d"], Int[Array, "d"], jnp.arange(3), VECTOR),
        (Float[Array, "d"], Float[np.ndarray, "d"], np.zeros(2), VECTOR),
        (list[Float[Array, "d"]], list[Float[Array, "d 3"]], [MATRIX], [VECTOR]),
        (tuple[int, Float[Array, "d"]], tuple[int, Array | None], (1, None), (1, 2)),
        (Float[Array, "d"], int | None, None, MATRIX),
        (Callable[[int], int], int, 1, "x"),
        (Literal[1], Literal[True], True, "x"),
        (dict[str, int], dict[str, float], {"a": 0.5}, {"a": "x"}),
    ],
)
def test_functions_of_one_place_with_other_annotations_are_checked_by_their_own(
    first, second, fits, wrong
):
    for _ in range(2):  # the second time from what was written before
        made(first)
        assert made(second)(fits) is fits
        with pytest.raises(jaxtyping.TypeCheckError):
            made(second)(wrong)


def test_what_comes_out_is_checked_by_its_own_annotation():
    assert made(Array, Float[Array, "d"])(VECTOR) is VECTOR
    for _ in range(2):
        with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
            made(Array, Float[Array, "d d"])(VECTOR)


def test_an_argument_may_be_left_out_where_it_has_a_default():
    for _ in range(2):
        with pytest.raises(TypeError, match="missing"):
            made(Array)()
        assert made(Array, default=True)() is VECTOR


def test_checks_of_the_same_annotations_are_written_once(monkeypatch):
    written = []
    beartype = typed.beartype.beartype
    monkeypatch.setattr(
        typed.beartype, "beartype", lambda stub: written.append(stub) or beartype(stub)
    )
    for _ in range(3):
        made(Float[Array, "once"], tuple[Float[Array, "once"], int])
    assert len(written) == 2  # for what goes in, and for all


def test_an_annotation_without_a_hash_is_checked_all_the_same():
    listed = Annotated[Array, ["no hash"]]
    assert made(listed)(VECTOR) is VECTOR
    with pytest.raises(jaxtyping.TypeCheckError):
        made(listed)("x")


def test_the_library_is_imported_through_it():
    """Its functions within functions, too."""
    from lrdyn.networks import weights

    assert any(key[0] == weights.__name__ for key in typed._WRITTEN)
