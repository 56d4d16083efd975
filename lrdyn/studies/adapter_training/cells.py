"""Cells of the comparisons: one short training of one method at one rate, and what came of it.

A training takes seconds, and there are thousands: each is one program for all seeds, rates and
numbers of examples, and is kept as a whole under a key of all that decides its bits. The variable
``LRDYN_TRAININGS`` names a folder in which they stay, whichever run asks for them: more seeds, or
the same ones after a figure has changed, then train what is new alone.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn import adapters
from lrdyn.adapters import Method
from lrdyn.adapters.adapter import Shift
from lrdyn.core.algorithm import of_optimizer
from lrdyn.core.recording import recorded_steps
from lrdyn.engine.checkpoints import Checkpoints
from lrdyn.studies.adapter_training import sentences
from lrdyn.studies.adapter_training.digits import Digits
from lrdyn.studies.adapter_training.sentences import Examples
from lrdyn.studies.adapter_training.tasks import Encoded
from lrdyn.studies.adapter_training.tuning import (
    BATCH,
    HEAD,
    CrossEncoder,
    adam,
    pearson,
    squared_error,
)
from lrdyn.training import Batches, Keeper
from lrdyn.training.keeping import Moment
from lrdyn.training.program import Program, digest_of

FOLDER = "LRDYN_TRAININGS"
"""Variable that names a folder in which trainings stay."""
MATRICES = ("attention.query", "attention.value")
"""Of each adapted layer, as LoRA's authors and those of Deep LoRA choose them."""
POINTS = 11
"""Steps at which norms are recorded."""


class Way(NamedTuple):
    """How a method starts and is trained."""

    method: Callable[[float], Method] | None
    """From eps; None trains the matrices themselves."""
    guess: int
    """Its rates are tried from 10^(k/2) on, k around this; the best one is bracketed."""
    ratio: float = 1.0
    """Rate of B over that of A."""
    unit: bool = False
    """Whether LoRA's drawn factor has entries of N(0, 1), and not of variance 1 over its length."""


METHODS = {
    "lora_unit": Way(lambda eps: adapters.LORA, guess=-8, unit=True),
    "lora": Way(lambda eps: adapters.LORA, guess=-6),
    "deep_lora": Way(lambda eps: adapters.deep_lora(depth=3, init_scale=eps), guess=-5),
    "two_factors": Way(lambda eps: adapters.deep_lora(depth=2, init_scale=eps), guess=-6),
    "lora_plus_4": Way(lambda eps: adapters.LORA, guess=-7, ratio=4.0),
    "lora_plus_16": Way(lambda eps: adapters.LORA, guess=-8, ratio=16.0),
    "lora_b": Way(lambda eps: adapters.lora(zero="A"), guess=-6),
    "full": Way(None, guess=-8),
}
"""LoRA from A ~ N(0, 1), as the authors of Deep LoRA have it, and from N(0, 1/d), B = 0 in both;
Deep LoRA, three factors, eps times orthogonal; two such factors; LoRA+ with two ratios; LoRA with B
drawn and A = 0; full training of the same matrices."""


class Cell(NamedTuple):
    """Result of one training: how well it does, its losses, norms and singular values."""

    pearson: Float[np.ndarray, ""]
    """Correlation on texts that were not trained on, 0 where the outputs are constant."""
    losses: Float[np.ndarray, "steps"]
    """Loss of the batch of every step."""
    norms: Float[np.ndarray, "times matrix 2"]
    """||B||_F and ||A||_F, or those of the outer factors, at :func:`recorded`."""
    values: Float[np.ndarray, "matrix rank"]
    """Singular values of what each matrix was given, the largest first."""


class TrainingRequest(NamedTuple):
    """Everything that tells one training from another on the same task."""

    method: str
    rank: int
    examples: int
    rate: float
    """Rate of Adam at the start; it falls linearly to 0."""
    steps: int
    eps: float
    """Scale of the start of small factors."""


def recorded(steps: int) -> Int[np.ndarray, "times"]:
    """Steps at which norms are recorded."""
    return recorded_steps(steps, POINTS)


def seed_of_rates(place: int) -> Key[Array, ""]:
    """Key of a training on which a rate is chosen; no seed of a run has it."""
    return jax.random.fold_in(jax.random.key(crc32(b"rates")), place)


class SentenceTraining:
    """Texts, an encoder with a head, and how a batch of them is learned and tested.

    Programs and rates that were found stay with it: the points of a sweep share them.

    Args:
        data: the texts.
    """

    def __init__(self, data: Encoded):
        self.rows, self.features = data.rows, data.features
        self.examples, self.tested = data.examples, data.tested
        self.scores = data.examples.scores
        head = jnp.zeros_like(data.model.embeddings.norm.gain)
        self.net = CrossEncoder(data.model, head, data.layer, data.pool)
        layers = range(data.layer, len(data.model.layers))
        self.paths = [f"model.layers.{l}.{name}" for l in layers for name in MATRICES]
        self.rooms = sentences.rooms(data.examples.mask, BATCH)
        self.programs, self.searched = {}, {}

    def weight(self, path: str) -> Float[Array, "m n"]:
        """A matrix of the encoder."""
        _, _, layer, _, name = path.split(".")
        return getattr(self.net.model.layers[int(layer)].attention, name)

    def batch(self, rows: Int[Array, "batch"], scores: Float[Array, "n"]) -> Examples:
        """Batch of the texts of these rows, with their scores."""
        return Examples(self.examples.hidden[rows], self.examples.mask[rows], scores[rows])

    def loss(self, net: CrossEncoder, now: dict[str, Any], batch: Examples) -> Any:
        """Mean squared error of a batch, in the form that a training takes."""
        return squared_error(net, now, None, batch, None, rooms=self.rooms)

    def pearson(self, net: CrossEncoder, added: dict[str, Any], part: str) -> Float[Array, ""]:
        """Correlation on a part that is tested on."""
        return _tested(net, self.tested[part], added)


class Bench:
    """Trains on one task, with one program for each method and rank.

    Args:
        ground: what is learned: texts or digits.
        keeper: keeps what has ended, unless ``LRDYN_TRAININGS`` names a folder.
    """

    def __init__(self, ground: SentenceTraining | Digits, keeper: Keeper):
        folder = os.environ.get(FOLDER)
        self.keeper: Any = Checkpoints(Path(folder)) if folder else keeper
        self.ground: Any = ground
        self.programs: dict[Any, tuple[Program, str]] = ground.programs
        self.net, self.paths, self.weight = ground.net, ground.paths, ground.weight

    def run(self, asked: TrainingRequest, key: Key[Array, ""], *, part: str = "") -> Cell:
        """Train and test, or take what was kept.

        Args:
            asked: which training.
            key: decides examples, head, start and batches.
            part: ``rate_`` where a rate is chosen, on texts of their own; empty for a report.
        """
        rows_key, head_key, start_key, order_key = jax.random.split(key, 4)
        begun = self.started(start_key, asked)
        head = HEAD * jax.random.normal(head_key, self.net.head.shape)
        rows = self.drawn(rows_key, asked.examples, part)
        order = self.batches(order_key, rows, asked.steps)
        scores = self.ground.scores
        # The mean of the scores is the head's bias: what is left of them is learned.
        centred = scores - jnp.mean(scores[rows])
        rate = jnp.asarray(asked.rate, head.dtype)
        program, digest = self.program(asked, (begun, head, order, centred, rate))
        tested = scores[self.ground.rows[f"{part}test"]]
        key_of_cell = digest_of([(begun, head, order, centred, rate), tested], digest, part)
        name = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in asked)
        checkpoint = self.keeper.load(key_of_cell, self.blank(asked), name)
        if checkpoint is not None:
            return Cell(*map(np.asarray, checkpoint[1]))
        now, losses, norms = program(begun, head, order, centred, rate)
        net = eqx.tree_at(lambda net: net.head, self.net, head)
        added = {path: self.added(path, adapter) for path, adapter in now.items()}
        r = self.values_of(asked)
        cell = Cell(
            np.nan_to_num(np.asarray(self.ground.pearson(net, added, f"{part}test"))),
            np.asarray(losses),
            np.asarray(norms),
            np.stack([singular_values(np.asarray(x.value), r) for x in added.values()]),
        )
        self.keeper.save(key_of_cell, asked.steps, cell)
        metrics = {"loss": float(losses[-1]), "pearson": float(cell.pearson)}
        self.keeper.tell(Moment(asked.steps, asked.steps, metrics, 0.0), f"{part}{name}")
        return cell

    def started(self, key: Key[Array, ""], asked: TrainingRequest) -> dict[str, Any]:
        """The adapters of a method at their start."""
        way = METHODS[asked.method]
        if way.method is None:
            return {path: Shift(jnp.zeros_like(self.weight(path))) for path in self.paths}
        begun = adapters.init(
            key, self.net, select=self.paths, method=way.method(asked.eps), rank=asked.rank
        )
        return {path: _unit(adapter) for path, adapter in begun.items()} if way.unit else begun

    def drawn(self, key: Key[Array, ""], count: int, part: str = "") -> Int[np.ndarray, "examples"]:
        """Rows of the examples, without replacement: of fewer they are the first of more.

        Raises:
            ValueError: there are fewer.
        """
        rows = self.ground.rows[f"{part}train"]
        if count > len(rows):
            raise ValueError(f"--examples: got {count}, wanted at most the {len(rows)} there")
        return rows[Batches(np.arange(len(rows)), 1).order(key, 0)[:count]]

    def batches(
        self, key: Key[Array, ""], rows: Int[np.ndarray, "examples"], steps: int
    ) -> Int[Array, "steps batch"]:
        """Rows of the batch of every step."""
        batches = Batches(rows, min(BATCH, len(rows)))
        epochs = [
            rows[batches.order(key, e)[: batches.epoch * batches.examples]]
            for e in range(-(-steps // batches.epoch))
        ]
        return jnp.asarray(np.concatenate(epochs).reshape(-1, batches.examples)[:steps])

    def program(self, asked: TrainingRequest, like: tuple) -> tuple[Program, str]:
        """The program of a method at a rank, and its digest."""
        shapes = str(jax.tree.map(jnp.shape, like))
        place = (asked.method, asked.rank, asked.steps, asked.eps, shapes)
        if place not in self.programs:
            function = partial(self.trained, METHODS[asked.method].ratio, asked.steps)
            program = Program(function, like, donate=False)
            self.programs[place] = program, digest_of([program])
        return self.programs[place]

    def trained(
        self,
        ratio: float,
        steps: int,
        begun: dict[str, Any],
        head: Array,
        order: Array,
        scores: Array,
        rate: Array,
    ) -> tuple[dict[str, Any], Array, Array]:
        """The adapters after the training, the losses and the norms."""
        net = eqx.tree_at(lambda net: net.head, self.net, head)
        rule = adam(steps)(rate)
        if ratio != 1:
            rule = adapters.lora_plus(adam(steps), rate, ratio, begun)
        algorithm = of_optimizer(rule)
        times = jnp.asarray(recorded(steps))

        def step(t: Array, state: tuple) -> tuple:
            held, losses, norms = state
            batch = self.ground.batch(order[t], scores)

            def cost(now: Any) -> Any:
                return self.ground.loss(net, now, batch)

            value, _, held = algorithm.step(cost, held)
            at = jnp.searchsorted(times, t + 1)
            now = norms_of(algorithm.weights(held))
            norms = norms.at[at].set(jnp.where(times[at] == t + 1, now, norms[at]))
            return held, losses.at[t].set(value), norms

        first = norms_of(begun)
        norms = jnp.zeros((len(times), *first.shape)).at[0].set(first)
        start = algorithm.begin(begun), jnp.zeros(steps), norms
        held, losses, norms = jax.lax.fori_loop(0, steps, step, start)
        return algorithm.weights(held), losses, norms

    def added(self, path: str, adapter: Any) -> Shift:
        """What a matrix was given, as one array."""
        return Shift(adapter.onto(jnp.zeros_like(self.weight(path))))

    def values_of(self, asked: TrainingRequest) -> int:
        """How many singular values there can be."""
        most = min(self.weight(self.paths[0]).shape)
        return most if METHODS[asked.method].method is None else min(asked.rank, most)

    def blank(self, asked: TrainingRequest) -> Cell:
        """Cell of zeros, in whose form a checkpoint is read."""
        dtype = self.net.head.dtype
        times, count = len(recorded(asked.steps)), len(self.paths)
        return Cell(
            np.zeros((), dtype),
            np.zeros(asked.steps, dtype),
            np.zeros((times, count, 2), dtype),
            np.zeros((count, self.values_of(asked))),
        )


def _unit(adapter: Any) -> Any:
    """Adapter whose drawn A has entries of N(0, 1), and not of variance 1 over its length."""
    return eqx.tree_at(lambda a: a.A, adapter, adapter.A * np.sqrt(adapter.A.shape[1]))


def norms_of(now: dict[str, Any]) -> Float[Array, "matrix 2"]:
    """Norms of the outer factors of each matrix."""
    ends = [(adapter.factors_now()[0], adapter.factors_now()[-1]) for adapter in now.values()]
    return jnp.stack([jnp.stack([jnp.linalg.norm(F) for F in pair]) for pair in ends])


_tested = eqx.filter_jit(pearson)


def singular_values(added: Float[np.ndarray, "m n"], count: int) -> Float[np.ndarray, "count"]:
    """The first singular values of what a matrix was given; NaN of one that is not finite."""
    if not np.isfinite(added).all():
        return np.full(count, np.nan)
    return np.linalg.svd(added.astype(np.float64), compute_uv=False)[:count]


SMALL = 1e-3
"""An adapter with ||dW||_2 up to this counts as rank 0, as the authors count."""


def final_rank(values: Float[np.ndarray, "rank"], size: int) -> int:
    """Singular values above max(m, n) eps32 sigma_1; 0 if sigma_1 is at most 1e-3.

    Args:
        values: the largest first.
        size: max(m, n).

    Example:
        >>> final_rank(np.array([1.0, 1e-3, 1e-9]), 384), final_rank(np.array([1e-4]), 384)
        (2, 0)
    """
    if not values[0] > SMALL:
        return 0
    return int(np.sum(values > size * np.finfo(np.float32).eps * values[0]))


def energy_rank(values: Float[np.ndarray, "rank"], share: float = 0.99) -> int:
    """How many singular values hold a share of the squared norm; 0 of what did not move.

    Example:
        >>> energy_rank(np.array([3.0, 1.0, 0.1])), energy_rank(np.zeros(2))
        (2, 0)
    """
    energies = np.cumsum(values**2)
    return int(np.searchsorted(energies, share * energies[-1]) + 1) if energies[-1] > 0 else 0
