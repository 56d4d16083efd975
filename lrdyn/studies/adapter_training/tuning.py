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
from jaxtyping import Array, Bool, Float, Key, PyTree

from lrdyn import adapters
from lrdyn.adapters import Method
from lrdyn.core.descent import Trajectory
from lrdyn.networks import mean_pooled
from lrdyn.networks.bert import Bert
from lrdyn.networks.packing import Packed, pack, room_for
from lrdyn.studies.adapter_training import sentences
from lrdyn.studies.adapter_training.sentences import Examples, Tested
from lrdyn.training import FORGETFUL, Batches, Keeper, train

HEAD = 0.02
"""Standard deviation of the head's entries, as BERT's classifiers start."""
BATCH, RATIO, ALPHA, DEPTH = 16, 16.0, 8.0, 3
POOLS = ("mean", "pooler")
"""What the head reads: the mean over the tokens, or what the pooler makes of the first."""
BETAS, EPS = (0.9, 0.999), 1e-6
"""Of Adam; there is no decay."""
MATRICES = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "mlp.weights.0",
    "mlp.weights.1",
)


class CrossEncoder(eqx.Module):
    """An encoder from one layer on, and a head."""

    model: Bert
    head: Float[Array, "width"]
    layer: int = eqx.field(static=True)
    pool: str = eqx.field(static=True)
    """Of :data:`POOLS`."""

    def __call__(
        self, hidden: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch"]:
        """Scores."""
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


class Way(NamedTuple):
    """How a method starts and is trained."""

    method: Callable[[float], Method]
    """From eps."""
    scale: Any = 1.0
    ratio: float = 1.0
    """Rate of B over that of A."""
    faster: float = 1.0
    """Its rate over that of LoRA."""


METHODS = {
    "lora": Way(lambda eps: adapters.LORA),
    "lora_over_rank": Way(lambda eps: adapters.LORA, scale=adapters.over_rank(ALPHA)),
    "lora_plus": Way(lambda eps: adapters.LORA, ratio=RATIO),
    "lora_b": Way(lambda eps: adapters.lora(zero="A")),
    "deep_lora": Way(lambda eps: adapters.deep_lora(depth=DEPTH, init_scale=eps), faster=10.0),
}
"""LoRA as the authors of Deep LoRA have it (N(0, 1) and 0, no alpha / r), LoRA with alpha / r,
LoRA+, LoRA with B drawn in place of A, Deep LoRA with factors eps times orthogonal. LoRA and Deep
LoRA have the rate of 1e-4, 3e-4, 1e-3 that was best for each on seed 0, which no finding counts."""


class Tuning(NamedTuple):
    """What a scenario trains; of ``method``, ``rank`` and ``examples`` some are tuples."""

    key: Key[Array, ""]
    encoder: str
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
    learning_rate: float
    init_scale: float
    center: str


def make_tuning(
    key: Key[Array, ""],
    *,
    encoder: str,
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
    learning_rate: float,
    init_scale: float,
    center: str,
) -> Tuning:
    """Nothing is drawn yet."""
    return Tuning(
        key,
        encoder,
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
        learning_rate,
        init_scale,
        center,
    )


def model_of(case: Tuning) -> Bert:
    """The encoder, whole."""
    return sentences.read(sentences.folder_of(case.encoder)).model


def first_layer(case: Tuning) -> int:
    """The lowest layer that is adapted."""
    return len(model_of(case).layers) - case.layers


class Problem(NamedTuple):
    """A cross-encoder and its data."""

    net: CrossEncoder
    train: Examples
    dev: Tested


def drawn(
    keys: Key[Array, "2"],
    count: int,
    *,
    encoder: str,
    train_file: str,
    data_dir: str = "",
    length: int,
    pool: str,
    layer: int,
) -> tuple[CrossEncoder, Examples]:
    """A cross-encoder with a random head, and examples with replacement.

    Args:
        keys: of the examples and of the head.
        count: examples.
        encoder: its folder, as the flag has it.
        train_file: pairs to draw from, likewise.
        data_dir: where data are looked for first.
        length: tokens of a pair.
        pool: what the head reads.
        layer: the first layer of the cross-encoder; the examples have those below behind them.
    """
    precision = jnp.zeros(()).dtype
    pretrained = sentences.read(sentences.folder_of(encoder))
    pairs = sentences.pairs_of(train_file, "train", data_dir)
    rows = np.asarray(jax.random.randint(keys[0], (count,), 0, len(pairs.scores)))
    model = sentences.upper(pretrained.model, precision)
    head = HEAD * jax.random.normal(keys[1], model.embeddings.norm.gain.shape)
    examples = sentences.encoded(
        pretrained, pairs, rows, length=length, layer=layer, precision=precision
    )
    return CrossEncoder(model, head, layer, pool), examples


def problem(case: Tuning, examples: int, layer: int) -> Problem:
    """A cross-encoder, examples to train on, and pairs to test on."""
    net, train_examples = drawn(
        jax.random.split(case.key, 4)[:2],  # the others are of the adapters and of the batches
        examples,
        encoder=case.encoder,
        train_file=case.train_file,
        data_dir=case.data_dir,
        length=case.length,
        pool=case.pool,
        layer=layer,
    )
    dev = sentences.tested(
        case.encoder,
        case.dev_file,
        case.data_dir,
        count=case.dev_pairs,
        length=case.length,
        layer=layer,
        precision=str(net.head.dtype),
    )
    return Problem(net, train_examples, dev)


def matrices(net: CrossEncoder) -> list[str]:
    """Paths of all dense matrices from its layer on, the pooler among them if it is read."""
    layers = range(net.layer, len(net.model.layers))
    paths = [f"model.layers.{l}.{name}" for l in layers for name in MATRICES]
    return [*paths, *(["model.pooler.weight"] if net.pool == "pooler" else [])]


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


def started(key: Key[Array, ""], net: CrossEncoder, name: str, rank: int, eps: float) -> dict:
    """The adapters of a method on all dense matrices, at their start."""
    way = METHODS[name]
    begun = adapters.init(
        key,
        net,
        select=matrices(net),
        method=way.method(eps),
        rank=rank,
        scale=way.scale,
    )
    return {path: _standard(adapter) for path, adapter in begun.items()}


def _standard(adapter: Any) -> Any:
    """Entries of N(0, 1) where LoRA's factor is drawn; ours have variance 1 over their length."""
    if not isinstance(adapter, adapters.Factors):
        return adapter
    sizes = np.sqrt(adapter.B.shape[0]), np.sqrt(adapter.A.shape[1])
    factors = (adapter.B * sizes[0], adapter.A * sizes[1])
    return eqx.tree_at(lambda adapter: (adapter.B, adapter.A), adapter, factors)


def rate_of(case: Tuning, name: str) -> Any:
    """Rate at which a method starts."""
    return case.learning_rate * METHODS[name].faster


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
        outputs = jax.lax.cond(fits, *(partial(scores, room) for room in rooms))
    return jnp.mean((outputs - batch.scores) ** 2), (None, {})


def pearson(net: CrossEncoder, data: Tested, added: dict) -> Float[Array, ""]:
    """Correlation of outputs and scores, with adapters."""
    adapted = adapters.apply(net, added)
    parts = jax.tree.map(lambda x: x.reshape(-1, sentences.ROWS, *x.shape[1:]), data.rows)
    above = jax.lax.map(adapted.above, parts).reshape(data.rows.hidden.shape)
    outputs = adapted.scores(data.rows, above, len(data.scores))
    return jnp.corrcoef(outputs, data.scores)[0, 1]


def batches_of(problem: Problem) -> tuple[Batches, partial]:
    """The batches of a problem, and the loss of one."""
    size = min(BATCH, len(problem.train.scores))
    rooms = sentences.rooms(problem.train.mask, size)
    return Batches(problem.train, size), partial(squared_error, problem.net, rooms=rooms)


class Record(NamedTuple):
    """What is recorded of a training."""

    pearson: Float[Array, ""]
    """Correlation on pairs that were not trained on."""
    watched: PyTree
    """What else was asked for."""


def tuned(
    case: Tuning,
    problem: Problem,
    name: str,
    rank: int,
    recorded: np.ndarray,
    *,
    watch: Callable[[dict], PyTree] = lambda added: None,
    label: str = "",
    keeper: Keeper = FORGETFUL,
) -> tuple[dict, Trajectory]:
    """Train with a method.

    Args:
        case: how it is trained.
        problem: what on.
        name: of the method.
        rank: of its adapters.
        recorded: steps at which a :class:`Record` is left.
        watch: what of the adapters is recorded beside the correlation.
        label: name of the run; by default it says method, rank and examples.
        keeper: keeps its checkpoints.

    Returns:
        The adapters at the start, and the run.
    """
    *_, start_key, key = jax.random.split(case.key, 4)  # the first two are those of `problem`
    begun = started(start_key, problem.net, name, rank, case.init_scale)
    rate, ratio = rate_of(case, name), METHODS[name].ratio
    rule = adam(case.steps)(rate)
    if ratio != 1:
        rule = adapters.lora_plus(adam(case.steps), rate, ratio, begun)

    def look(added: dict, state: PyTree) -> Record:
        return Record(pearson(problem.net, problem.dev, added), watch(added))

    batches, loss = batches_of(problem)
    run = train(
        key,
        loss,
        begun,
        rule,
        batches,
        recorded,
        record=look,
        keeper=keeper,
        name=label or f"{name} rank {rank} examples {len(problem.train.scores)}",
    )
    return begun, run


SMALL = 1e-3
"""An adapter with ||dW||_2 up to this counts as rank 0, as the authors count."""


def final_rank(adapter: Any) -> int:
    """Singular values of dW above max(m, n) eps32 sigma_1; 0 if ||dW||_2 is at most 1e-3."""
    first, *inner, last = (np.asarray(F, np.float64) for F in adapter.factors_now())
    # Triangular factors of both ends: no matrix of the size of dW is decomposed.
    core, right = (np.asarray(np.linalg.qr(F, mode="r")) for F in (first, last.T))
    for F in inner:
        core = core @ F
    values = float(adapter.scale) * np.linalg.svd(core @ right.T, compute_uv=False)
    if values[0] <= SMALL:
        return 0
    size = max(len(first), last.shape[1])
    return int(np.sum(values > size * np.finfo(np.float32).eps * values[0]))
