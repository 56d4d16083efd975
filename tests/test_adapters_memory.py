"""Memory: formulas against what is really there, and the compiler's analysis on known programs."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from lrdyn import FULL, GALORE, LORA, RELORA, RELORA_FROZEN
from lrdyn.adapters import memory
from lrdyn.adapters.memory import Formula, entries, measured_memory
from lrdyn.adapters.methods import OPTAX_GALORE
from tests import oracles

SIZES = [(20, 30, 3), (16, 16, 5), (30, 20, 3)]


@pytest.mark.parametrize(("m", "n", "r"), SIZES)
def test_weights_and_states_are_those_of_the_methods(m, n, r):
    small, large = min(m, n), max(m, n)
    expected = [
        (FULL, m * n, 2 * m * n),
        (LORA, m * n + r * (m + n), 2 * r * (m + n)),
        (RELORA, m * n + r * (m + n), 2 * r * (m + n)),
        (RELORA_FROZEN, m * n + r * (m + n), 2 * r * large),
        (GALORE, m * n, r * small + 2 * r * large),
        (OPTAX_GALORE, m * n, r * large + 2 * r * small),
    ]
    for method, weights, state in expected:
        assert memory.weights_held(method, m, n, r) == weights
        assert memory.adam_state(method, m, n, r) == state
        counters = 2 if method is OPTAX_GALORE else 1
        assert memory.state_bytes(method, m, n, r, 8) == 8 * state + 4 * counters


def test_a_formula_is_evaluated_term_by_term():
    m, n, r, b = 7, 11, 3, 5
    formula = Formula("2mn + mm + m", ("mb", "12nr + rb"))
    assert entries(formula, m, n, r, b) == 2 * m * n + m * m + m + 12 * n * r + r * b
    assert entries(formula, m, n, 0, b) == 2 * m * n + m * m + m + m * b
    assert str(formula) == "2mn + m^2 + m + max(mb, 12nr + rb)"
    assert str(Formula("", ("m", "n"))) == "max(m, n)"


def test_temporaries_are_those_of_the_arrays_that_live_at_once():
    m, n, r, b = 16, 20, 11, 3
    svd = 2 * m * n + m * m + m
    for method, form, expected in (
        (
            RELORA,
            "merged",
            m * n + m * r + n * r,
        ),  # W + B A, then its gradient beside those of B, A
        (RELORA, "layered", r * b + m * b + r * b + m * r),  # A X; E, B^T E and the gradient of B
        (RELORA, "refresh", m * n),
        (RELORA_FROZEN, "merged", m * n + n * r),
        (RELORA_FROZEN, "layered", r * b + n * r),
        (RELORA_FROZEN, "refresh", svd),
        (GALORE, "merged", m * n + n * r),
        (FULL, "merged", m * n + m * b),
        (OPTAX_GALORE, "merged", m * n + svd),
    ):
        which = {"layered": form == "layered", "refresh": form == "refresh"}
        assert memory.temporaries(method, m, n, r, b, **which) == expected


held, ADAPTERS = memory.temporaries, "method: got one that holds mn, wanted one with adapters"
test_temporaries_refuse = oracles.refuses(
    (lambda: held(FULL, 3, 2, 1, 1), "m, n: got 3 and 2, wanted m <= n"),
    (lambda: held(FULL, 2, 3, 1, 1, layered=True), ADAPTERS),
    (lambda: held(LORA, 2, 3, 1, 1, refresh=True), "wanted one with a refresh of its own"),
)


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_a_known_program_holds_what_it_must():
    """X^T (A B): the product in brackets is the only temporary."""
    found = measured_memory(lambda X, A, B: X.T @ (A @ B), *[shape(300, 300)] * 3)
    size = 300 * 300 * 4
    assert found[:3] == (3 * size, size, 0)
    assert size <= found.temporaries < size + 1000
    assert 5 * size <= found.peak < 5 * size + 1000


def test_donated_arguments_are_overwritten_and_addresses_counted_apart():
    tree = {"a": shape(5, 3), "b": shape(7), "c": shape(2, dtype="int32")}
    step = partial(measured_memory, lambda t: jax.tree.map(lambda x: x + 1, t), tree)
    both = [step(donate=()), step(donate=(0,))]
    size = 4 * (15 + 7 + 2)
    assert [found[:3] for found in both] == [(size, size, 0), (size, size, size)]
    assert [found.table for found in both] == [24, 24]
    assert both[0].peak - both[1].peak == size
    assert both[1].peak == size + both[1].temporaries + 24


def test_an_unused_argument_is_held_and_arrays_are_taken_as_shapes():
    found = measured_memory(lambda x, y: x, jnp.ones((4, 2), "float32"), shape(100))
    assert found.arguments == 4 * 8 + 400


def test_a_backend_without_analysis_is_named(monkeypatch):
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    with pytest.raises(RuntimeError, match="backend: got 'cpu', wanted one with a memory analysis"):
        measured_memory(lambda x: x, shape(2))
