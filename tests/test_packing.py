"""Sentences that share rows: each is what it is alone, and little is filled up."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdyn.networks import mean_pooled
from lrdyn.networks.packing import lengths, pack, room_for
from lrdyn.verification.stating.claims import tolerance
from tests.oracles import refuses
from tests.test_bert import tiny

LENGTHS = (3, 14, 1, 9, 9, 2, 5)

# Each of these calls compiles once; outside of jit, each of their operations would.
packed_into = jax.jit(pack, static_argnames=("rows", "room"))
room_of = jax.jit(room_for, static_argnames="rows")


@eqx.filter_jit
def above(model, hidden, mask):
    return model.above(hidden, mask, 0)


def masks(lengths, length=14):
    return np.arange(length) < np.asarray(lengths)[:, None]


@given(st.lists(st.integers(1, 14), min_size=1, max_size=20), st.integers(1, 6))
def test_every_token_stands_once_and_no_row_is_fuller_than_said(found, rows):
    mask, length = masks(found), 14
    hidden = np.arange(1.0, 1 + len(found) * length).reshape(-1, length, 1)
    room = int(room_of(mask, rows))
    packed = jax.device_get(packed_into(jnp.asarray(hidden), mask, rows, room))
    there = packed.owner >= 0
    np.testing.assert_array_equal(np.sort(packed.hidden[there][:, 0]), np.sort(hidden[mask][:, 0]))
    assert (packed.hidden[~there] == 0).all()
    assert there.sum(axis=1).max() == room
    np.testing.assert_array_equal(packed.owner[there], (packed.hidden[there][:, 0] - 1) // length)


@given(st.lists(st.integers(1, 14), min_size=8, max_size=20), st.data())
def test_the_longest_sentences_need_the_most_room(found, data):
    some = data.draw(st.permutations(found))[:8]
    longest = sorted(found)[-8:]
    assert room_of(masks(some), 3) <= room_of(masks(longest), 3)


def test_rows_are_equally_full():
    drawn = np.random.default_rng(0).integers(5, 60, 64)
    room = int(room_of(masks(drawn, 64), 16))
    assert drawn.sum() / 16 <= room < 1.1 * drawn.sum() / 16


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("room", [0, 5])
def test_a_sentence_is_what_it_is_alone(rows, room):
    model, mask = tiny().model, masks(LENGTHS)
    width = len(model.embeddings.norm.gain)
    hidden = jax.random.normal(jax.random.key(0), (*mask.shape, width))
    alone = above(model, hidden, mask)
    packed = packed_into(hidden, mask, rows, int(room_of(mask, rows)) + room)
    found = above(model, packed.hidden, packed.mask())
    slack = 100 * tolerance("identity", "float32", size=width)
    owner, states, states_alone = jax.device_get((packed.owner, found, alone))
    for i, n in enumerate(LENGTHS):
        np.testing.assert_allclose(states[owner == i], states_alone[i, :n], rtol=0, atol=slack)
    np.testing.assert_allclose(packed.means(found, 7), mean_pooled(alone, mask), atol=slack)
    np.testing.assert_allclose(packed.firsts(found, 7), alone[:, 0], atol=slack)


def test_tokens_look_at_their_neighbours_in_a_row_without_the_mask():
    model, mask = tiny().model, masks(LENGTHS)
    hidden = jax.random.normal(jax.random.key(0), (*mask.shape, len(model.embeddings.norm.gain)))
    packed = packed_into(hidden, mask, 3, int(room_of(mask, 3)))
    found = above(model, packed.hidden, packed.owner >= 0)
    difference = packed.means(found, 7) - mean_pooled(above(model, hidden, mask), mask)
    assert jnp.max(jnp.abs(difference)) > 1e-2


def test_places_between_tokens_are_no_tokens():
    mask = jnp.array([[True, False, True, False]])
    packed = packed_into(jnp.ones((1, 4, 1)), mask, 1, 4)
    assert packed.owner.tolist() == [[0, -1, 0, -1]]
    assert packed.means(packed.hidden, 2).tolist() == [[1.0], [0.0]]


test_wrong_calls = refuses(
    (lambda: pack(jnp.ones((2, 3)), masks([1, 2], 3), 1, 3), "hidden: got shape"),
    (lambda: pack(jnp.ones((2, 3, 1)), masks([1, 2], 4), 1, 3), "mask: got shape"),
    (lambda: pack(jnp.ones((2, 3, 1)), jnp.ones((2, 3)), 1, 3), "mask: got dtype"),
    (lambda: pack(jnp.ones((2, 3, 1)), masks([1, 2], 3), 0, 3), "rows: got 0"),
    (lambda: pack(jnp.ones((2, 3, 1)), masks([1, 2], 3), 1, 0), "room: got 0"),
    (lambda: room_for(masks([1, 2], 3), 0), "rows: got 0"),
    (lambda: lengths(jnp.ones((2, 3))), "mask: got dtype"),
)
