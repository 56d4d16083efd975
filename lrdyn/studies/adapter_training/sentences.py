"""What the study reads: a pretrained encoder, pairs of sentences, and these as an encoder's tokens.

Layers below the first adapted one do not change: what they make of a pair is computed once.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lrdyn.data import encoder, find, stsb
from lrdyn.data.pairs import HIGHEST, Pairs, stsb_names
from lrdyn.networks.bert import Bert, Tokens
from lrdyn.networks.packing import Packed, lengths, pack, room_for

AUTO = "auto"
"""The package of ``make encoder``; STS-B in the places where data are looked for."""
PART = 50
"""Pairs that are computed at a time."""
LONGER = 16
"""Parts are computed at lengths that are multiples of it."""
STEP = 8
"""Lengths are multiples of it: few programs are compiled."""
SIDE = 4
"""Pairs that stand side by side in a row, about."""
ROWS = 12
"""Rows that are tested at a time."""


class Examples(NamedTuple):
    """Pairs as the first adapted layer gets them."""

    hidden: Float[Array, "n length width"]
    mask: Bool[Array, "n length"]
    scores: Float[Array, "n"]
    """Scores from 0 to 1."""


class Texts(NamedTuple):
    """Single texts, or pairs of them, with scores."""

    first: list[str]
    second: list[str] | None
    """The second text of each pair; None if there are single texts."""
    scores: Float[np.ndarray, "n"]
    """Scores from 0 to 1."""


class Tested(NamedTuple):
    """Pairs that are tested on: in rows, of which there is a multiple of :data:`ROWS`."""

    rows: Packed
    scores: Float[Array, "n"]


def folder_of(name: str) -> Path:
    """The folder of an encoder.

    Raises:
        MissingData: it is not there; the line says what to fetch.
    """
    return encoder.folder(None if name == AUTO else name)


@lru_cache(maxsize=1)
def read(folder: Path) -> encoder.Encoder:
    """Read an encoder from its folder, once for each folder."""
    return encoder.read(folder)


@lru_cache(maxsize=4)
def read_pairs(name: str, split: str, place: Path | None) -> Pairs:
    """Pairs of a file, read once for each place at which it is found.

    Raises:
        MissingData: STS-B is in none of the places, or there is no such file.
        ValueError: a pair has no score.
    """
    pairs = stsb(place, split) if name == AUTO else stsb(name)
    if np.isnan(pairs.scores).any():
        raise ValueError(f"--{split}-file: got pairs without scores, wanted three columns")
    return pairs


def pairs_of(name: str, split: str, data_dir: str = "") -> Pairs:
    """Pairs to train on (``train``) or to test on (``dev``)."""
    if name != AUTO:
        return read_pairs(name, split, None)
    place = find(stsb_names(split), data_dir)
    # Without any, the error says where it was looked for.
    return read_pairs(name, split, place) if place else stsb(split=split, data_dir=data_dir)


def texts_of_pairs(pairs: Pairs) -> Texts:
    """Pairs with their scores over the highest one."""
    return Texts(pairs.sentence1, pairs.sentence2, pairs.scores / HIGHEST)


def take_texts(texts: Texts, rows: np.ndarray) -> Texts:
    """Texts of these rows, with their scores."""
    second = None if texts.second is None else [texts.second[i] for i in rows]
    return Texts([texts.first[i] for i in rows], second, texts.scores[rows])


def files_of(name: str, *pair_files: str, data_dir: str = "") -> tuple[Path, ...]:
    """The files of an encoder and of pairs, as far as they are there."""
    try:
        folder = folder_of(name)
    except encoder.MissingData:
        folder = Path("no such folder")
    own = [path for end in ("*.json", "*.safetensors") for path in sorted(folder.glob(end))]
    splits = zip(pair_files, ("train", "dev"), strict=False)
    paths = [
        find(stsb_names(split), data_dir) if word == AUTO else Path(word) for word, split in splits
    ]
    return (*own, *(path for path in paths if path is not None and path.is_file()))


def upper_layers(model: Bert, precision: Any) -> Bert:
    """An encoder without its tables, which the layers do not read, in some precision."""

    def tables(model: Any) -> Any:  # tree_at asks with its own leaves for the places, too
        return model.embeddings.words, model.embeddings.positions, model.embeddings.types

    # Of no rows rather than None: the width of the model is read off them.
    empty = tuple(jnp.zeros((0, table.shape[1])) for table in tables(model))
    bare = eqx.tree_at(tables, model, empty)
    return jax.tree.map(lambda x: x.astype(precision) if eqx.is_inexact_array(x) else x, bare)


@eqx.filter_jit
def _lower_states(model: Bert, tokens: Tokens, layer: int) -> Array:
    return model.below(tokens, layer)


def encode(
    pretrained: encoder.Encoder,
    texts: Texts,
    rows: np.ndarray,
    *,
    length: int,
    layer: int,
    precision: Any,
) -> Examples:
    """Some texts, cut off at a length, as a layer gets them; the first ``layer`` are done.

    They are filled up to the longest of them: what more is filled up changes nothing.
    """
    texts = take_texts(texts, rows)
    tokens = encoder.tokens(pretrained.tokenizer, texts.first, texts.second, length=length)
    longest = int(jnp.max(lengths(tokens.mask)))
    tokens = Tokens(*(x[:, : next_multiple(longest, STEP)] for x in tokens))
    width = len(pretrained.model.embeddings.norm.gain)
    sizes = np.asarray(lengths(tokens.mask))
    hidden, order = (
        np.zeros((*tokens.mask.shape, width), precision),
        np.argsort(sizes, kind="stable"),
    )
    for start in range(0, len(rows), PART):
        # The short ones first, each part as long as its longest; few programs are compiled. Of a
        # last part some are computed again: one program serves all of a length.
        part = np.resize(order[start : start + PART], min(PART, len(rows)))
        most = min(next_multiple(int(sizes[part].max()), LONGER), tokens.mask.shape[1])
        states = _lower_states(pretrained.model, Tokens(*(x[part, :most] for x in tokens)), layer)
        hidden[part, :most] = np.asarray(states)
    scores = texts.scores.astype(precision)
    arrays = hidden, tokens.mask, scores
    return Examples(*map(jnp.asarray, arrays))


def pack_texts(examples: Examples) -> Tested:
    """Texts in rows, to be tested on."""
    several = next_multiple(rows_of(len(examples.scores)), ROWS)
    room = int(room_for(examples.mask, several))
    return Tested(pack(examples.hidden, examples.mask, several, room), examples.scores)


def next_multiple(number: int, step: int) -> int:
    """Least multiple of a step that is not below a number.

    Example:
        >>> next_multiple(9, 8), next_multiple(8, 8)
        (16, 8)
    """
    return -(-number // step) * step


def rows_of(pairs: int) -> int:
    """Number of rows in which a batch of so many pairs is packed."""
    return -(-pairs // SIDE)


def rooms(mask: Bool[Array, "n length"], batch: int) -> tuple[int, ...]:
    """Places of a row with which batches are tried one after the other; the last fits any.

    Of pairs that are all in one batch it is what they need. Else the first is what 19 of 20 random
    batches do not pass, and the last that of the longest pairs. Both are multiples of
    :data:`STEP`.
    """
    count = rows_of(batch)
    longest = jnp.argsort(-lengths(mask))[:batch]
    rng = np.random.default_rng(0)
    # 200 batches: enough for the quantile .95, and the same ones at every call.
    drawn = jnp.asarray([rng.permutation(len(mask))[:batch] for _ in range(200)])
    usual = np.quantile(jax.vmap(lambda rows: room_for(mask[rows], count))(drawn), 0.95)
    most = room_for(mask[longest], count)
    return tuple(sorted({next_multiple(int(np.ceil(n)), STEP) for n in (usual, most)}))
