"""Cells of the comparisons: one short training of one method at one rate, and what came of it.

A training takes seconds, and there are thousands: each is one program for all seeds, rates and
numbers of examples, and is kept as a whole under a key of all that decides its bits. The variable
``LRDYN_TRAININGS`` names a folder in which they stay, whichever run asks for them: more seeds, or
the same ones after a figure has changed, then train what is new alone.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn import adapters
from lrdyn.adapters import Method
from lrdyn.adapters.adapter import Shift
from lrdyn.core import chance
from lrdyn.core.algorithm import of_optimizer
from lrdyn.core.recording import recorded_steps
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
from lrdyn.verification.storing.checkpoints import Checkpoints

FOLDER = "LRDYN_TRAININGS"
"""Variable that names a folder in which trainings stay."""
MATRICES = ("attention.query", "attention.value")
"""Matrices of a layer that are adapted, as LoRA's authors and those of Deep LoRA choose them."""
POINTS = 11
"""Steps at which norms are recorded."""


class Way(NamedTuple):
    """How a method starts and is trained."""

    method: Callable[[float], Method] | None
    """Maps eps to the method; None trains the matrices themselves."""
    guess: int
    """Its rates are tried from 10^(k/2) on, k around this; the best one is bracketed."""
    ratio: float = 1.0
    """Rate of B over that of A."""
    unit: bool = False
    """Whether LoRA's drawn factor has entries of N(0, 1), and not of variance 1 over its length."""
    rule: Callable[[int], Callable[[Any], optax.GradientTransformation]] = adam
    """Number of steps -> rate -> optimiser."""


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


def _descent(steps: int) -> Callable[[Any], optax.GradientTransformation]:
    """Rate -> gradient descent whose first step is as long as Adam's; the rate falls linearly."""

    def rule(rate: Any) -> optax.GradientTransformation:
        falling = optax.linear_schedule(rate, 0.0, steps)
        return optax.chain(as_long_as_signs(), optax.sgd(falling))

    return rule


def as_long_as_signs() -> optax.GradientTransformation:
    """Multiply all gradients by one number, which makes the first as long as its signs.

    Adam's first step is the sign of each entry times the rate: sqrt(N) of it is its norm. So a rate
    means the same of descent behind this and of Adam.

    Example:
        >>> rule = as_long_as_signs()
        >>> G = {"W": jnp.array([3.0, 4.0])}
        >>> first, state = rule.update(G, rule.init(G))
        >>> bool(jnp.allclose(jnp.linalg.norm(first["W"]), jnp.sqrt(2)))
        True
        >>> second, _ = rule.update({"W": jnp.array([6.0, 8.0])}, state)
        >>> bool(jnp.allclose(second["W"], 2 * first["W"]))
        True
    """

    def init(params: PyTree) -> Float[Array, ""]:
        return jnp.zeros((), jax.tree.leaves(params)[0].dtype)

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
        arrays = jax.tree.leaves(updates)
        norm, count = jnp.sqrt(sum(jnp.sum(G**2) for G in arrays)), sum(G.size for G in arrays)
        # A first gradient of 0 has no direction: its factor is 0, and the next one sets it.
        first = jnp.sqrt(count) / jnp.where(norm > 0, norm, jnp.inf)
        factor = jnp.where(state > 0, state, first.astype(state.dtype))
        return jax.tree.map(lambda G: factor * G, updates), factor

    return optax.GradientTransformation(init, update)


WAYS = METHODS | {
    f"{name}{more}": Way(
        lambda eps, centred=centred: adapters.deep_lora(depth=3, init_scale=eps, centred=centred),
        guess=guess,
        rule=rule,
    )
    for name, rule, guess in (("adam", adam, -6), ("sgd", _descent, -6))
    for more, centred in (("", False), ("_centred", True))
}
"""The methods of Figures 5, 7 and 8, and the products of Figure 4 under Adam and under descent."""


class Cell(NamedTuple):
    """Result of one training: how well it does, its losses, norms and singular values."""

    pearson: Float[np.ndarray, ""]
    """Correlation on texts that were not trained on, 0 where the outputs are constant."""
    losses: Float[np.ndarray, "steps"]
    """Loss of the batch of every step."""
    norms: Float[np.ndarray, "times matrix 2"]
    """||B||_F and ||A||_F, or those of the outer factors, at :func:`norm_steps`."""
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


class Beginning(NamedTuple):
    """Where a training begins, and what it learns from: the arguments of its program."""

    adapters: dict[str, Any]
    head: Float[Array, "width"]
    order: Int[Array, "steps batch"]
    """Rows of the batch of every step."""
    scores: Float[Array, "n"]
    """Scores of all texts, less the mean over those that are trained on."""
    rate: Float[Array, ""]


Look = Callable[..., PyTree]
"""``look(adapters, *seen)``: what is recorded of a training at some of its steps."""


def name_of(asked: TrainingRequest) -> str:
    """Words for a training, on the line of its progress."""
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in asked)


def norm_steps(steps: int) -> Int[np.ndarray, "times"]:
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
        paths: of the matrices that are adapted; without, those of every layer from the first on.
    """

    def __init__(self, data: Encoded, paths: Sequence[str] = ()):
        self.rows, self.features = data.rows, data.features
        self.examples, self.tested = data.examples, data.tested
        self.scores = data.examples.scores
        head = jnp.zeros_like(data.model.embeddings.norm.gain)
        self.net = CrossEncoder(data.model, head, data.layer, data.pool)
        layers = range(data.layer, len(data.model.layers))
        every = [f"model.layers.{l}.{name}" for l in layers for name in MATRICES]
        self.paths = list(paths) or every
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
        return _test_pearson(net, self.tested[part], added)


class Bench:
    """Trains on one task, with one program for each method, rank and what is recorded.

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
        """Train and test, or read the result that was kept.

        Args:
            asked: which training.
            key: decides examples, head, start and batches.
            part: ``rate_`` where a rate is chosen, on texts of their own; empty for a report.
        """
        begun = self.beginning(asked, key, part=part)
        program, digest = self.program(asked, norms_of, norm_steps(asked.steps), begun)
        tested = self.ground.scores[self.ground.rows[f"{part}test"]]
        # The scores that are tested on belong to the key: they decide the result, and no program
        # has them.
        key_of_cell = digest_of([begun, tested], digest, part)
        name = name_of(asked)
        checkpoint = self.keeper.load(key_of_cell, self.blank_cell(asked), name)
        if checkpoint is not None:
            return Cell(*map(np.asarray, checkpoint[1]))
        now, losses, norms = program(*begun)
        # What each matrix was given, as one array.
        added = {
            path: Shift(adapter.onto(jnp.zeros_like(self.weight(path))))
            for path, adapter in now.items()
        }
        r = self.value_count(asked)
        cell = Cell(
            # Constant outputs have no correlation: they count as 0, so that a rate which learns
            # nothing is not chosen and a mean over seeds stays a number.
            np.nan_to_num(
                np.asarray(self.ground.pearson(self.with_head(begun.head), added, f"{part}test"))
            ),
            np.asarray(losses),
            np.asarray(norms),
            np.stack([singular_values(np.asarray(x.value), r) for x in added.values()]),
        )
        self.keeper.save(key_of_cell, asked.steps, cell)
        metrics = {"loss": float(losses[-1]), "pearson": float(cell.pearson)}
        self.keeper.tell(Moment(asked.steps, asked.steps, metrics, 0.0), f"{part}{name}")
        return cell

    def follow(
        self,
        asked: TrainingRequest,
        key: Key[Array, ""],
        look: Look,
        times: Int[np.ndarray, "times"],
        *seen: PyTree,
    ) -> PyTree:
        """Record a training at some steps, or read the records that were kept of it.

        Args:
            asked: which training.
            key: decides examples, head, start and batches.
            look: ``look(adapters, *seen)``: arrays.
            times: steps at which it looks, the first of them 0.
            seen: arrays.
        """
        begun = self.beginning(asked, key)
        program, digest = self.program(asked, look, times, begun, *seen)
        digest = digest_of([begun, *seen], digest)
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.out[2])
        checkpoint = self.keeper.load(digest, blank, name_of(asked))
        if checkpoint is not None:
            return jax.tree.map(np.asarray, checkpoint[1])
        _, losses, looks = program(*begun, *seen)
        looks = jax.tree.map(np.asarray, looks)
        self.keeper.save(digest, asked.steps, looks)
        metrics = {"loss": float(losses[-1])}
        self.keeper.tell(Moment(asked.steps, asked.steps, metrics, 0.0), name_of(asked))
        return looks

    def beginning(
        self, asked: TrainingRequest, key: Key[Array, ""], *, part: str = ""
    ) -> "Beginning":
        """Adapters, head, batches and centred scores with which a training begins."""
        rows_key, head_key, start_key, order_key = jax.random.split(key, 4)
        begun = self.init_adapters(start_key, asked)
        head = HEAD * jax.random.normal(head_key, self.net.head.shape)
        rows = self.draw_rows(rows_key, asked.examples, part)
        order = self.batches(order_key, rows, asked.steps)
        scores = self.ground.scores
        # The mean of the scores is the head's bias: what is left of them is learned.
        centred = scores - jnp.mean(scores[rows])
        return Beginning(begun, head, order, centred, jnp.asarray(asked.rate, head.dtype))

    def with_head(self, head: Float[Array, "width"]) -> Any:
        """The network with a head."""
        return eqx.tree_at(lambda net: net.head, self.net, head)

    def init_adapters(self, key: Key[Array, ""], asked: TrainingRequest) -> dict[str, Any]:
        """The adapters of a method at their start."""
        way = WAYS[asked.method]
        if way.method is None:
            return {path: Shift(jnp.zeros_like(self.weight(path))) for path in self.paths}
        begun = adapters.init(
            key, self.net, select=self.paths, method=way.method(asked.eps), rank=asked.rank
        )
        return (
            {path: _with_unit_entries(adapter) for path, adapter in begun.items()}
            if way.unit
            else begun
        )

    def draw_rows(
        self, key: Key[Array, ""], count: int, part: str = ""
    ) -> Int[np.ndarray, "examples"]:
        """Rows of the examples, without replacement: of fewer they are the first of more.

        Raises:
            ValueError: there are fewer.
        """
        rows = self.ground.rows[f"{part}train"]
        if count > len(rows):
            raise ValueError(f"--examples: got {count}, wanted at most the {len(rows)} there")
        # A prefix of one random order: 64 examples contain the 16, so that more examples are more
        # and not others.
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

    def program(
        self, asked: TrainingRequest, look: Look, times: Int[np.ndarray, "times"], *like: PyTree
    ) -> tuple[Program, str]:
        """The program of a method at a rank, and its digest."""
        begun, *seen = like
        shapes = str(jax.tree.map(jnp.shape, like))
        # Rate and seed are arguments of the program and no part of its place.
        place = (asked.method, asked.rank, asked.steps, asked.eps, look, shapes)
        if place not in self.programs:
            function = partial(self.train, WAYS[asked.method], asked.steps, look, times)
            # Not donated: what a training begins with is part of its key, and is read again.
            program = Program(function, (*begun, *seen), donate=False)
            self.programs[place] = program, digest_of([program])
        return self.programs[place]

    def train(
        self,
        way: Way,
        steps: int,
        look: Look,
        times: Int[np.ndarray, "times"],
        begun: dict[str, Any],
        head: Array,
        order: Array,
        scores: Array,
        rate: Array,
        *seen: PyTree,
    ) -> tuple[dict[str, Any], Array, PyTree]:
        """The adapters after the training, the losses, and what was seen of the adapters."""
        net = self.with_head(head)
        rule = way.rule(steps)(rate)
        if way.ratio != 1:
            rule = adapters.lora_plus(way.rule(steps), rate, way.ratio, begun)
        algorithm = of_optimizer(rule)
        moments = jnp.asarray(times)

        def step(t: Array, state: tuple) -> tuple:
            held, losses, looks = state
            batch = self.ground.batch(order[t], scores)

            def cost(now: Any) -> Any:
                return self.ground.loss(net, now, batch)

            value, _, held = algorithm.step(cost, held)
            at = jnp.searchsorted(moments, t + 1)

            def record_now() -> PyTree:
                now = look(algorithm.weights(held), *seen)
                return jax.tree.map(lambda all, new: all.at[at].set(new), looks, now)

            # Beyond the last moment the index is clamped to it, and the comparison fails.
            looks = jax.lax.cond(moments[at] == t + 1, record_now, lambda: looks)
            return held, losses.at[t].set(value), looks

        first = look(begun, *seen)
        looks = jax.tree.map(
            lambda x: jnp.zeros((len(times), *x.shape), x.dtype).at[0].set(x), first
        )
        start = algorithm.begin(begun), jnp.zeros(steps), looks
        held, losses, looks = jax.lax.fori_loop(0, steps, step, start)
        return algorithm.weights(held), losses, looks

    def value_count(self, asked: TrainingRequest) -> int:
        """How many singular values there can be."""
        most = min(self.weight(self.paths[0]).shape)
        return most if WAYS[asked.method].method is None else min(asked.rank, most)

    def blank_cell(self, asked: TrainingRequest) -> Cell:
        """Cell of zeros, in whose form a checkpoint is read."""
        dtype = self.net.head.dtype
        times, count = len(norm_steps(asked.steps)), len(self.paths)
        return Cell(
            np.zeros((), dtype),
            np.zeros(asked.steps, dtype),
            np.zeros((times, count, 2), dtype),
            np.zeros((count, self.value_count(asked))),
        )


def _with_unit_entries(adapter: Any) -> Any:
    """Adapter whose drawn A has entries of N(0, 1), and not of variance 1 over its length."""
    # The library draws A with variance 1 / n, n the number of its columns.
    return eqx.tree_at(lambda a: a.A, adapter, adapter.A * np.sqrt(adapter.A.shape[1]))


def norms_of(now: dict[str, Any]) -> Float[Array, "matrix 2"]:
    """Norms of the outer factors of each matrix."""
    ends = [(adapter.factors_now()[0], adapter.factors_now()[-1]) for adapter in now.values()]
    return jnp.stack([jnp.stack([jnp.linalg.norm(F) for F in pair]) for pair in ends])


_test_pearson = eqx.filter_jit(pearson)


def singular_values(added: Float[np.ndarray, "m n"], count: int) -> Float[np.ndarray, "count"]:
    """The first singular values of what a matrix was given; NaN of one that is not finite."""
    if not np.isfinite(added).all():
        return np.full(count, np.nan)
    # In float64, for a rank is counted down to eps32 of the largest.
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


def random_rank(shape: Sequence[int], rank: int) -> int:
    """:func:`energy_rank` by chance: of two Gaussian factors, m x r and r x n, multiplied.

    Of full rank it is that of a Gaussian matrix.

    Example:
        >>> random_rank((384, 384), 8), random_rank((384, 384), 384)
        (8, 296)
    """
    rows, columns = shape
    if rank >= min(shape):
        return energy_rank(chance.gaussian_singular_values(rows, columns))
    rng = np.random.default_rng(0)
    product = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    return energy_rank(np.linalg.svd(product, compute_uv=False)[:rank])


def mean_rank(
    ranks: Int[np.ndarray, "*seed matrix"], final: Int[np.ndarray, "*seed matrix"]
) -> Float[np.ndarray, "*seed"]:
    """Mean of ranks over the matrices that moved; NaN where none did.

    What rounding left of a matrix that hardly moved has a rank, too, and it means nothing.

    Args:
        ranks: what :func:`energy_rank` says of each matrix.
        final: what :func:`final_rank` says, 0 of one that hardly moved.

    Example:
        >>> mean_rank(np.array([[1, 8], [7, 8]]), np.array([[4, 0], [0, 0]]))
        array([ 1., nan])
    """
    moved = final > 0
    count = moved.sum(axis=-1)
    total = np.where(moved, ranks, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
