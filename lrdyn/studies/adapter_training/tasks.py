"""What adapters learn on few examples: the sentiment of a sentence, the similarity of two.

Texts are in four parts that share none: those that a reported training draws from and those that it
is tested on, and two likewise on which rates are chosen, which are reported nowhere.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.data import find
from lrdyn.data.sentiment import names_of, scored, vader
from lrdyn.networks.bert import Bert, mean_pooled
from lrdyn.networks.packing import lengths
from lrdyn.studies.adapter_training import sentences
from lrdyn.studies.adapter_training.sentences import AUTO, Examples, Tested, Texts
from lrdyn.studies.pictures import spread_out

TASKS = ("sentiment", "similarity")
DIGITS = "digits"
"""The task that takes no texts."""
POOLS = ("mean", "pooler")
"""What the head reads: the mean over the tokens, or what the pooler makes of the first."""
MOST = {"train": 2000, "rate_train": 1100, "rate_test": 350}
"""Texts of a part, at most; those that are tested on are as many as the flag says."""
SHARES = {"test": 1 / 4, "rate_test": 1 / 12, "rate_train": 1 / 4}
"""Shares of the texts of a file, in the order in which parts are cut off; the rest is ``train``."""
PARTS = ("train", "test", "rate_train", "rate_test")
ORDER = 38
"""Seed of the order in which a file is cut into parts: the same for all runs."""


class Task(NamedTuple):
    """What is read for a task, and how."""

    name: str
    """One of :data:`TASKS`."""
    encoder: str
    text_file: str
    """File of the texts with a sentiment."""
    train_file: str
    dev_file: str
    """File of the pairs that are tested on, for similarity."""
    data_dir: str
    tested: int
    """Texts that are tested on, at most."""
    layers: int
    """Number of layers that are adapted, the last ones."""
    length: int
    """Tokens of a text, at most."""
    pool: str = "mean"
    """One of :data:`POOLS`."""


class Encoded(NamedTuple):
    """The texts of a task as the first adapted layer gets them."""

    model: Bert
    """The encoder, without its tables."""
    layer: int
    """The first adapted one."""
    pool: str
    """What the head reads."""
    examples: Examples
    """All texts."""
    rows: dict[str, Int[np.ndarray, "_"]]
    """Part -> which of them."""
    tested: dict[str, Tested]
    """The parts that are tested on, in rows."""
    features: Float[np.ndarray, "n width"]
    """What the head reads of the encoder as it is."""


def read_sentiment(text_file: str, data_dir: str = "") -> Texts:
    """Scored sentences, each once, scores scaled to [0, 1] by the least and the largest.

    Raises:
        MissingData: the tweets of VADER's corpus are in none of the places.
        ValueError: the file has fewer than two scores.
    """
    if text_file == AUTO:
        path = find(names_of(), data_dir)
        read = vader(path, data_dir=data_dir)
    else:
        read = scored(text_file)
    # A sentence that stands in a file twice could be trained on and tested on.
    first = {text: i for i, text in reversed(list(enumerate(read.texts)))}
    rows = np.array(sorted(first.values()))
    scores = read.scores[rows]
    least, most = scores.min(), scores.max()
    if least == most:
        raise ValueError(f"--text-file: got one score, {least:g}, wanted several")
    return Texts([read.texts[i] for i in rows], None, (scores - least) / (most - least))


def file_of_sentiment(text_file: str, data_dir: str = "") -> Path | None:
    """The file, if it is there."""
    path = find(names_of(), data_dir) if text_file == AUTO else Path(text_file)
    return path if path is not None and path.is_file() else None


def any_texts(text_file: str, train_file: str, data_dir: str = "") -> Texts:
    """Texts to draw a batch from: scored sentences if there are some, else pairs."""
    if text_file != AUTO or file_of_sentiment(text_file, data_dir):
        return read_sentiment(text_file, data_dir)
    return sentences.texts_of_pairs(sentences.pairs_of(train_file, "train", data_dir))


def parts_of(count: int, tested: int, *, own_test: bool) -> dict[str, Int[np.ndarray, "_"]]:
    """Cut so many texts into parts, in an order that is the same for all runs.

    Args:
        count: of texts.
        tested: how many are tested on, at most.
        own_test: whether those are in a file of their own.

    Example:
        >>> {name: len(rows) for name, rows in parts_of(4200, 1500, own_test=False).items()}
        {'test': 1050, 'rate_test': 350, 'rate_train': 1050, 'train': 1750}
    """
    # Raw words of Philox, whose numbers are the same in all releases of NumPy: the split of the
    # texts is part of what a result means.
    raw = np.random.Philox(np.random.SeedSequence(ORDER)).random_raw(count)
    order, parts = np.argsort(raw, kind="stable"), {}
    for name, share in SHARES.items():
        if name == "test" and own_test:
            continue
        size = min(int(share * count), tested if name == "test" else MOST[name])
        parts[name], order = order[:size], order[size:]
    return parts | {"train": order[: MOST["train"]]}


def texts_of(task: Task) -> tuple[Texts, Texts, dict[str, Int[np.ndarray, "_"]]]:
    """Texts to train on, texts to test on, and rows of the parts; ``test`` of the second."""
    if task.name == "sentiment":
        read = read_sentiment(task.text_file, task.data_dir)
        return read, read, parts_of(len(read.scores), task.tested, own_test=False)
    train, dev = (
        sentences.texts_of_pairs(sentences.pairs_of(name, split, task.data_dir))
        for name, split in ((task.train_file, "train"), (task.dev_file, "dev"))
    )
    parts = parts_of(len(train.scores), task.tested, own_test=True)
    spread = spread_out(task.tested, len(dev.scores))
    return train, dev, {"test": spread, **parts}


@lru_cache(maxsize=2)
def encode(task: Task, precision: str) -> Encoded:
    """All texts of a task, computed once: layers below the first adapted one do not change."""
    train, dev, parts = texts_of(task)
    pretrained = sentences.read(sentences.folder_of(task.encoder))
    layer = len(pretrained.model.layers) - task.layers
    sides = [(dev if name == "test" else train, parts[name]) for name in PARTS]
    blocks = [
        sentences.encode(
            pretrained, texts, rows, length=task.length, layer=layer, precision=precision
        )
        for texts, rows in sides
    ]
    longest = max(block.mask.shape[1] for block in blocks)

    def fill(array: Array) -> Array:
        more = [(0, 0)] * array.ndim
        return jnp.pad(array, [more[0], (0, longest - array.shape[1]), *more[2:]])

    examples = Examples(
        jnp.concatenate([fill(block.hidden) for block in blocks]),
        jnp.concatenate([fill(block.mask) for block in blocks]),
        jnp.concatenate([block.scores for block in blocks]),
    )
    ends = np.cumsum([0, *(len(block.scores) for block in blocks)])
    rows = {n: np.arange(*ends[i : i + 2]) for i, n in enumerate(PARTS)}
    model = sentences.upper_layers(pretrained.model, precision)
    tested = {n: sentences.pack_texts(b) for n, b in zip(PARTS, blocks, strict=True) if "test" in n}
    read = features(model, layer, examples, task.pool)
    return Encoded(model, layer, task.pool, examples, rows, tested, read)


@eqx.filter_jit
def _pool_states(model: Bert, hidden: Array, mask: Array, layer: int, pool: str) -> Array:
    above = model.above(hidden, mask, layer)
    return mean_pooled(above, mask) if pool == "mean" else model.pooled(above)


def features(
    model: Bert, layer: int, examples: Examples, pool: str
) -> Float[np.ndarray, "n width"]:
    """What the head reads of each text, the short ones first.

    Texts are computed :data:`lrdyn.studies.adapter_training.sentences.PART` at a time, cut to
    their longest: few programs are compiled.
    """
    sizes = np.asarray(lengths(examples.mask))
    order, vectors = (
        np.argsort(sizes, kind="stable"),
        np.zeros((len(sizes), len(model.embeddings.norm.gain))),
    )
    for start in range(0, len(order), sentences.PART):
        rows = order[start : start + sentences.PART]
        filled = np.resize(rows, min(sentences.PART, len(order)))
        longest = min(
            -(-sizes[rows[-1]] // sentences.LONGER) * sentences.LONGER, examples.mask.shape[1]
        )
        hidden, mask = examples.hidden[filled, :longest], examples.mask[filled, :longest]
        states = _pool_states(model, hidden, mask, layer, pool)
        vectors[rows] = np.asarray(states)[: len(rows)]
    return vectors
