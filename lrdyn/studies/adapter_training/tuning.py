"""Tuning a cross-encoder with adapters: the methods, the loss, the optimiser, the metric.

A pair of sentences is one input of the encoder. The mean of its hidden states over the tokens, or
what its pooler makes of the first token, is read by a random head that stays as it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key

from lrdyn import adapters
from lrdyn.networks import mean_pooled
from lrdyn.networks.bert import Bert
from lrdyn.networks.packing import Packed, pack, room_for
from lrdyn.studies.adapter_training import sentences
from lrdyn.studies.adapter_training.sentences import Examples, Tested, Texts
from lrdyn.studies.adapter_training.tasks import Task

HEAD = 0.02
"""Standard deviation of the head's entries, as BERT's classifiers start."""
BATCH, DEPTH = 16, 3
BETAS, EPS = (0.9, 0.999), 1e-6
"""Constants of Adam; there is no decay."""


class CrossEncoder(eqx.Module):
    """An encoder from one layer on, and a head."""

    model: Bert
    head: Float[Array, "width"]
    layer: int = eqx.field(static=True)
    pool: str = eqx.field(static=True)
    """How a text becomes one vector, one of :data:`lrdyn.studies.adapter_training.tasks.POOLS`."""

    def __call__(
        self, hidden: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch"]:
        """Scores of the texts of a batch."""
        above = self.model.above(hidden, mask, self.layer)
        pooled = mean_pooled(above, mask) if self.pool == "mean" else self.model.pooled(above)
        return pooled @ self.head

    def above(self, rows: Packed) -> Float[Array, "rows room width"]:
        """Hidden states of the last layer, of pairs in rows."""
        return self.model.above(rows.hidden, rows.mask(), self.layer)

    def scores(
        self, rows: Packed, above: Float[Array, "rows room width"], count: int
    ) -> Float[Array, "count"]:
        """Scores of so many pairs in rows."""
        if self.pool == "mean":
            return rows.means(above, count) @ self.head
        return self.model.pooled(rows.firsts(above, count)[:, None]) @ self.head


class Tuning(NamedTuple):
    """What a scenario trains; of ``method``, ``rank`` and ``examples`` some are tuples."""

    key: Key[Array, ""]
    task: str
    encoder: str
    text_file: str
    train_file: str
    dev_file: str
    data_dir: str
    dev_pairs: int
    method: Any
    rank: Any
    examples: Any
    layers: int
    length: int
    pool: str
    steps: int
    rate_seeds: int
    init_scale: float
    center: str


def make_tuning(
    key: Key[Array, ""],
    *,
    task: str,
    encoder: str,
    text_file: str,
    train_file: str,
    dev_file: str,
    data_dir: str = "",
    dev_pairs: int,
    method: Any,
    rank: Any,
    examples: Any,
    layers: int,
    length: int,
    pool: str,
    steps: int,
    rate_seeds: int,
    init_scale: float,
    center: str,
) -> Tuning:
    """Case of a tuning: its settings and its key, of which nothing is drawn yet."""
    return Tuning(
        key,
        str(task),
        encoder,
        text_file,
        train_file,
        dev_file,
        data_dir,
        dev_pairs,
        method,
        rank,
        examples,
        layers,
        length,
        pool,
        steps,
        rate_seeds,
        init_scale,
        center,
    )


def task_of(case: Tuning) -> Task:
    """What is learned, and from which files."""
    return Task(
        case.task,
        case.encoder,
        case.text_file,
        case.train_file,
        case.dev_file,
        case.data_dir,
        case.dev_pairs,
        case.layers,
        case.length,
        case.pool,
    )


def precision() -> str:
    """Name of the floating-point type that runs have now."""
    return str(jnp.zeros(()).dtype)


def model_of(case: Tuning) -> Bert:
    """Pretrained encoder of a case, with its tables."""
    return sentences.read(sentences.folder_of(case.encoder)).model


def draw_cross_encoder(
    keys: Key[Array, "2"],
    texts: Texts,
    count: int,
    *,
    encoder: str,
    length: int,
    pool: str,
    layer: int,
) -> tuple[CrossEncoder, Examples]:
    """A cross-encoder with a random head, and examples with replacement.

    Args:
        keys: of the examples and of the head.
        texts: what the examples are drawn from.
        count: examples.
        encoder: its folder, as the flag has it.
        length: tokens of a text.
        pool: what the head reads.
        layer: the first layer of the cross-encoder; the examples have those below behind them.
    """
    pretrained = sentences.read(sentences.folder_of(encoder))
    rows = np.asarray(jax.random.randint(keys[0], (count,), 0, len(texts.scores)))
    model = sentences.upper_layers(pretrained.model, precision())
    head = HEAD * jax.random.normal(keys[1], model.embeddings.norm.gain.shape)
    examples = sentences.encode(
        pretrained, texts, rows, length=length, layer=layer, precision=precision()
    )
    centred = examples.scores - jnp.mean(examples.scores)
    return CrossEncoder(model, head, layer, pool), examples._replace(scores=centred)


def value_matrix(model: Bert) -> tuple[str, int]:
    """Path of the value matrix of the second-last layer, the 11th of BERT's 12, and its layer."""
    layer = max(len(model.layers) - 2, 0)
    return f"model.layers.{layer}.attention.value", layer


def value_of(net: CrossEncoder) -> Any:
    """The value matrix of its first layer, m x n; for ``tree_at``, the place of it."""
    return net.model.layers[net.layer].attention.value


@eqx.filter_jit
def value_slope(net: CrossEncoder, W: Float[Array, "m n"], batch: Examples) -> Float[Array, "m n"]:
    """Gradient of the loss of a batch in that matrix, at W."""

    def loss(W: Array) -> Array:
        return squared_error(eqx.tree_at(value_of, net, W), {}, None, batch, None)[0]

    return jax.grad(loss)(W)


def adam(steps: int) -> Callable[[Any], optax.GradientTransformation]:
    """Rate -> Adam as the authors have it: the rate falls linearly to 0."""

    def rule(rate: Any) -> optax.GradientTransformation:
        falling = optax.linear_schedule(rate, 0.0, steps)
        return optax.adam(falling, b1=BETAS[0], b2=BETAS[1], eps=EPS)

    return rule


def squared_error(
    net: CrossEncoder,
    added: dict,
    state: None,
    batch: Examples,
    key: Any,
    *,
    rooms: tuple[int, ...] = (),
) -> tuple[Float[Array, ""], tuple[None, dict]]:
    """Mean of (f - score)^2 over a batch, with adapters.

    With ``rooms``, of :func:`lrdyn.studies.adapter_training.sentences.rooms`, pairs share rows:
    the same to round-off, for less work the more their lengths differ.
    """
    adapted = adapters.apply(net, added)
    count = len(batch.scores)
    side = sentences.rows_of(count)

    def scores(room: int) -> Array:
        rows = pack(batch.hidden, batch.mask, side, room)
        return adapted.scores(rows, adapted.above(rows), count)

    if not rooms:
        outputs = adapted(batch.hidden, batch.mask)
    elif len(rooms) == 1:
        outputs = scores(*rooms)
    else:
        fits = room_for(batch.mask, side) <= rooms[0]
        # A real branch, for a training is not batched: 19 of 20 steps take the smaller room.
        outputs = jax.lax.cond(fits, *(partial(scores, room) for room in rooms))
    return jnp.mean((outputs - batch.scores) ** 2), (None, {})


def pearson(net: CrossEncoder, data: Tested, added: dict) -> Float[Array, ""]:
    """Correlation of outputs and scores, with adapters."""
    adapted = adapters.apply(net, added)
    parts = jax.tree.map(lambda x: x.reshape(-1, sentences.ROWS, *x.shape[1:]), data.rows)
    above = jax.lax.map(adapted.above, parts).reshape(data.rows.hidden.shape)
    outputs = adapted.scores(data.rows, above, len(data.scores))
    return jnp.corrcoef(outputs, data.scores)[0, 1]
