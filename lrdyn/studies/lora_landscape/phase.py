"""Which ends descent on LoRA's factors has, over the rank r, the number of examples N and lambda.

A *problem* is one draw of derivatives and targets at an N and a lambda; of each, ends from several
starts are looked at. Shares are of problems, one group of them for each seed: starts of one problem
are not independent.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.spectra import half_of_the_digits
from lrdyn.studies.lora_landscape.certificate_claims import rank_at_rest
from lrdyn.studies.lora_landscape.draws import draw_model, draw_starts, model_of_file
from lrdyn.studies.lora_landscape.features import NONE
from lrdyn.studies.lora_landscape.problem import (
    CROSS_ENTROPY,
    SQUARED,
    Factors,
    LinearisedModel,
    largest_decay,
)
from lrdyn.studies.lora_landscape.second_order import End, descend
from lrdyn.studies.lora_landscape.verdicts import (
    Ends,
    Verdict,
    first_count,
    second_count,
    verdicts,
)
from lrdyn.studies.over_seeds import restrict_to
from lrdyn.training import Keeper
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Finding, Outcome, Scenario

PROBLEMS = 24
"""Seeds: draws of each problem."""
OWN_STARTS = 3
"""Seeds of somebody's own problem: draws of its starts."""
SECOND_ORDER = "ends of second order"
"""What is compared, beside every share."""


class Grid(NamedTuple):
    """Problems over lambda and N, flattened with N fastest, and starts at each rank."""

    models: LinearisedModel
    """The first axis counts the problems; examples that only fill it have the weight 0."""
    starts: tuple[Factors, ...]
    """Of each rank: problems, starts, rows, columns. With decay the last one has min(m, n) columns,
    where every second-order point is a global minimum."""
    ranks: tuple[int, ...]
    equations: tuple[int, ...]
    """N K at each N."""
    decays: tuple[float, ...]


class PhaseMeasured(NamedTuple):
    """Ends of descent, and what is said of them."""

    verdict: Int[np.ndarray, "decay equations width start"] = ABSENT
    """0 certified, 1 numerically spurious, 2 undecided (the least found at its rank), 3 undecided
    (not of second order): a :class:`Verdict`."""
    value: Float[np.ndarray, "decay equations width start"] = ABSENT
    """F over F at U = V = 0."""
    gap: Float[np.ndarray, "decay equations width start"] = ABSENT
    """Duality gap over F at U = V = 0."""
    gradient: Float[np.ndarray, "decay equations width start"] = ABSENT
    """||gradient|| over ||R||_2 at W = 0."""
    curvature: Float[np.ndarray, "decay equations width start"] = ABSENT
    """Smallest eigenvalue of the Hessian off the gauge over its largest absolute one."""
    product_rank: Int[np.ndarray, "decay equations width start"] = ABSENT
    """Rank of UV^T."""
    convex_rank: Int[np.ndarray, "decay equations"] = ABSENT
    """Rank of the least certified end at r = min(m, n), of the convex minimiser; -1 where none is
    certified, and without decay."""
    decay: Float[np.ndarray, "decay"] = ABSENT
    """lambda."""
    equations: Int[np.ndarray, "equations"] = ABSENT
    """N K."""
    width: Int[np.ndarray, "width"] = ABSENT
    """r."""
    sides: Int[np.ndarray, "side"] = ABSENT
    """m and n."""


def _stack(models: Sequence[LinearisedModel]) -> LinearisedModel:
    """Models of one shape but for N as one, with examples of weight 0 behind the fewer ones."""
    most = max(len(model.weights) for model in models)

    def filled(array: Array) -> Array:
        return jnp.pad(array, ((0, most - len(array)), *((0, 0),) * (array.ndim - 1)))

    whole = [
        dataclasses.replace(
            model,
            features=filled(model.features),
            targets=filled(model.targets),
            weights=filled(model.weights),
        )
        for model in models
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *whole)


def make_grid(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: tuple[int, ...],
    measurements: tuple[int, ...],
    weight_decay: tuple[float, ...],
    starts: int,
    features: str = NONE,
    loss: str = SQUARED,
) -> Grid:
    """Draw problems and starts; one draw of derivatives and targets for each N serves all lambda.

    Each lambda has starts of its own.
    """
    of_models, of_starts = jax.random.split(key)
    models = []
    for decay in weight_decay:
        for place, count in enumerate(measurements):
            own = model_of_file(features, decay)
            of_draw = jax.random.fold_in(of_models, place)
            models.append(own or draw_model(of_draw, loss, rows, cols, count, decay))
    stacked = _stack(models)
    m, n = stacked.features.shape[-2:]
    counts = dict.fromkeys(rank, starts)
    if weight_decay[0] > 0:
        counts = {min(m, n): 2} | counts
    keys = jax.random.split(of_starts, len(counts))
    return Grid(
        stacked,
        tuple(
            draw_starts(key, (len(models), counts[r]), m, n, r)
            for key, r in zip(keys, sorted(counts), strict=True)
        ),
        rank,
        tuple(count * stacked.features.shape[2] for count in measurements),
        weight_decay,
    )


@partial(jax.jit, static_argnames="decays")
def descend_all(models: LinearisedModel, starts: Factors, decays: bool) -> End:
    """Every start of every problem, one problem after another."""

    def problem(both: tuple[LinearisedModel, Factors]) -> End:
        model, factors = both
        return jax.vmap(lambda start: descend(model, start, decays=decays))(factors)

    return jax.lax.map(problem, (models, starts))


def measure_phase(case: Grid, keeper: Keeper) -> PhaseMeasured:
    """Ends from every start, and what is said of each."""
    del keeper  # a run takes seconds: it is repeated as a whole
    decays = bool(case.decays[0] > 0)
    shape = len(case.decays), len(case.equations)
    ends = [descend_all(case.models, starts, decays) for starts in case.starts]
    zero = jax.vmap(lambda model: model.data_loss(jnp.zeros_like(model.targets)))(case.models)
    unit, size = (np.asarray(a) for a in (zero, jax.vmap(largest_decay)(case.models)))

    def over_ranks(field: Callable[[End], Array], by: np.ndarray | None = None) -> np.ndarray:
        """A field at the ranks that were asked for, over what it is measured in."""
        mine = ends[: len(case.ranks)]
        found = np.stack([np.asarray(field(end)) for end in mine], axis=1)
        found = found if by is None else found / by[:, None, None]
        return found.reshape(*shape, *found.shape[1:])

    digits = half_of_the_digits(ends[0].value.dtype)
    of_ends = Ends(
        over_ranks(lambda end: end.value, unit),
        over_ranks(lambda end: end.gap, unit),
        over_ranks(lambda end: end.gradient),
        over_ranks(lambda end: end.curvature),
        over_ranks(lambda end: end.norm, size),
    )
    widest = ends[-1]
    ranks = np.asarray(rank_at_rest(widest.values))
    is_global = np.asarray(widest.gap) <= digits * unit[:, None]
    found = np.min(np.where(is_global, ranks, np.iinfo(np.int32).max), axis=1)
    convex = np.where(is_global.any(axis=1) & decays, found, -1).reshape(shape)
    return PhaseMeasured(
        verdict=verdicts(of_ends, digits, decays=decays),
        value=of_ends.value,
        gap=of_ends.gap,
        gradient=of_ends.gradient,
        curvature=of_ends.curvature,
        product_rank=over_ranks(lambda end: rank_at_rest(end.values)),
        convex_rank=convex,
        decay=np.asarray(case.decays, float),
        equations=np.asarray(case.equations),
        width=np.asarray(case.ranks),
        sides=np.asarray(case.models.features.shape[-2:]),
    )


# Findings -----------------------------------------------------------------------------------------


class Cells(NamedTuple):
    """What findings look at: axes seed, decay, equations and width."""

    verdict: Int[np.ndarray, "seed decay equations width start"]
    product_rank: Int[np.ndarray, "seed decay equations width start"]
    convex_rank: Int[np.ndarray, "seed decay equations 1"]
    width: Int[np.ndarray, "width"]
    equations: Int[np.ndarray, "equations 1"]
    sides: tuple[int, int]

    @property
    def spurious(self) -> np.ndarray:
        """Cells with a numerically spurious end."""
        return np.any(self.verdict == Verdict.SPURIOUS, axis=-1)

    @property
    def certified(self) -> np.ndarray:
        """Cells all of whose ends are certified."""
        return np.all(self.verdict == Verdict.CERTIFIED, axis=-1)

    @property
    def above(self) -> np.ndarray:
        """``r - r*``; far below 0 where r* is not known."""
        return np.where(self.convex_rank >= 0, self.width - self.convex_rank, -(10**6))

    @property
    def first(self) -> np.ndarray:
        """Cells with ``r (r + 1) / 2 > N``."""
        return np.broadcast_to(first_count(self.width, self.equations), self.spurious.shape)

    @property
    def too_few(self) -> np.ndarray:
        """Cells with ``r (m + n - r) < N``: fewer dimensions than equations."""
        held = self.width * (sum(self.sides) - self.width) < self.equations
        return np.broadcast_to(held, self.spurious.shape)

    @property
    def second(self) -> np.ndarray:
        """Cells with ``r (m + n - r) > 1.35 N``."""
        held = second_count(self.width, self.equations, *self.sides)
        return np.broadcast_to(held, self.spurious.shape)


def cells_of(run: PhaseMeasured) -> Cells:
    """Cells of arrays whose first axis is the seed.

    Args:
        run: fields of every seed.
    """
    return Cells(
        run.verdict,
        run.product_rank,
        run.convex_rank[..., None],
        run.width[0],
        run.equations[0][:, None],
        (int(run.sides[0, 0]), int(run.sides[0, 1])),
    )


def share_of_problems(holds: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Of the problems with a cell ``among``, the share that has one of these where it holds.

    Args:
        holds: seed, decay, equations, width.
        among: likewise.

    Returns:
        One number for each seed, NaN where no problem has such a cell.

    Example:
        >>> holds = np.array([[[[True, False], [False, False]]]])
        >>> share_of_problems(holds, np.ones_like(holds)).tolist()
        [0.5]
    """
    asked = np.any(among, axis=-1)
    hits = np.any(holds & among, axis=-1)
    counts = np.sum(asked, axis=(1, 2))
    return np.sum(hits, axis=(1, 2)) / np.where(counts > 0, counts, np.nan)


def rank_needed(cells: Cells) -> np.ndarray:
    """The least r from which on all ends are certified, less r*, mean over problems of a seed."""
    # All ends certified at this rank and at every larger one.
    good = np.flip(np.logical_and.accumulate(np.flip(cells.certified, -1), -1), -1)
    known = good.any(axis=-1) & (cells.convex_rank[..., 0] >= 0)
    least = cells.width[np.argmax(good, axis=-1)] - cells.convex_rank[..., 0]
    counts = np.sum(known, axis=(1, 2))
    total = np.sum(np.where(known, least, 0), axis=(1, 2))
    return total / np.where(counts > 0, counts, np.nan)


def _undecided(cells: Cells) -> np.ndarray:
    unresolved = cells.verdict == Verdict.UNRESOLVED
    return np.mean(unresolved, axis=(1, 2, 3, 4))


def _deficient(cells: Cells) -> np.ndarray:
    second = np.isin(cells.verdict, (Verdict.SPURIOUS, Verdict.LEAST))
    low = cells.product_rank < cells.width[:, None]
    return np.sum(second & low, axis=(1, 2, 3, 4)).astype(float)


def _over_root(cells: Cells) -> np.ndarray:
    known = cells.convex_rank[..., 0] >= 0
    ratio = np.where(known, cells.convex_rank[..., 0] / np.sqrt(cells.equations[:, 0]), np.nan)
    return np.nanmean(ratio, axis=(1, 2))


def _pataki(cells: Cells) -> np.ndarray:
    rank = cells.convex_rank[..., 0]
    over = first_count(rank, cells.equations[:, 0]) & (rank >= 0)
    return np.mean(over, axis=(1, 2))


RARE = 0.01
"""Below this share of problems none was expected, from the pilot's 12 draws of seed 0."""

OF_DECAY: dict[str, tuple[str, Callable[[Cells], np.ndarray], dict[str, Any]]] = {
    "at_convex_rank": (
        "share of problems with a numerically spurious end at r = r*, the convex minimiser's rank",
        lambda cells: share_of_problems(cells.spurious, cells.above == 0),
        {"above": 0.0},
    ),
    "one_above": (
        "the same at some r >= r* + 1",
        lambda cells: share_of_problems(cells.spurious, cells.above >= 1),
        {"below": RARE},
    ),
    "uncertified_one_above": (
        "share of problems with an end that is not certified at some r >= r* + 1",
        lambda cells: share_of_problems(~cells.certified, cells.above >= 1),
        {"below": RARE},
    ),
    "first_count": (
        "share of problems with a numerically spurious end at some r with r (r + 1) / 2 > N",
        lambda cells: share_of_problems(cells.spurious, cells.first),
        {"below": RARE},
    ),
    "second_count": (
        "share of problems with a numerically spurious end at some r with r (m + n - r) > 1.35 N",
        lambda cells: share_of_problems(cells.spurious, cells.second),
        {"above": 0.0},
    ),
    "rank_needed": (
        "the least r from which on all ends are certified, less r*",
        rank_needed,
        {"below": 1.0},
    ),
    "over_root": ("r* over the square root of N", _over_root, {}),
    "beyond_count": (
        "share of problems with r* (r* + 1) / 2 > N, which a minimiser that is the only one has "
        "never",
        _pataki,
        {},
    ),
    "deficient": (
        "number of second-order ends of rank UV^T < r that are not certified, which theory says "
        "there are none of",
        _deficient,
        {},
    ),
    "unresolved": ("share of ends that are not of second order to the digits", _undecided, {}),
}
"""Findings with lambda > 0: what is measured, how, and what the pilot let expect."""
WITHOUT_DECAY: dict[str, tuple[str, Callable[[Cells], np.ndarray], dict[str, Any]]] = {
    "first_count": OF_DECAY["first_count"],
    "second_count": (
        OF_DECAY["second_count"][0],
        OF_DECAY["second_count"][1],
        {"below": RARE},
    ),
    "below_second": (
        "share of problems with a numerically spurious end at some r with r (m + n - r) < N",
        lambda cells: share_of_problems(cells.spurious, cells.too_few),
        {"above": 0.0},
    ),
    "unresolved": OF_DECAY["unresolved"],
}
"""Those without decay."""


def _value(measured: Callable[[Cells], np.ndarray]) -> Callable[[Outcome], np.ndarray]:
    return lambda outcome: measured(cells_of(outcome.measured))


def _findings(name: str, table: dict[str, Any]) -> tuple[Finding[Any, PhaseMeasured], ...]:
    return tuple(
        Finding(
            f"{name}_{finding}",
            f"{TITLES[name]}: {statement}",
            _value(measured),
            reads=lambda theory, run: (
                run.verdict,
                run.product_rank,
                run.convex_rank,
                run.width,
                run.equations,
                run.sides,
            ),
            rest=SECOND_ORDER,
            **expected,
        )
        for finding, (statement, measured, expected) in table.items()
    )


GAUSSIAN, UNREGULARISED = "gaussian", "unregularised"
RECTANGULAR, CLASSES, OWN = "rectangular", "classes", "own"
TITLES = {
    GAUSSIAN: "m = n, squared error",
    UNREGULARISED: "m = n, squared error, lambda = 0",
    RECTANGULAR: "n = 2 m, squared error",
    CLASSES: "m = n, cross-entropy of three classes",
    OWN: "own features, one problem a lambda, seeds are draws of starts",
}
"""Problems that can be looked at, and what they are."""


def _settings(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the problems of one name."""
    mine = restrict_to(name, settings, "problem")
    largest = max(settings["weight_decay"])
    if name != OWN:
        mine = mine | {"features": NONE}
    if name == UNREGULARISED:
        return mine | {"weight_decay": (0.0,)}
    if name == RECTANGULAR:
        return mine | {"cols": 2 * settings["rows"], "weight_decay": (largest,)}
    if name == CLASSES:
        # Each example has three outputs: as many equations with a third of the examples.
        counts = tuple(dict.fromkeys(max(1, round(N / 3)) for N in settings["measurements"]))
        return mine | {"measurements": counts, "weight_decay": (largest,)}
    return mine


def _scenario(
    name: str, table: dict[str, Any], loss: str = SQUARED
) -> Scenario[Grid, Any, PhaseMeasured]:
    return Scenario[Grid, Any, PhaseMeasured](
        name,
        partial(make_grid, loss=loss),
        train=measure_phase,
        measured=PhaseMeasured,
        findings=_findings(name, table),
        narrow=partial(_settings, name),
        whole=("rank", "measurements", "weight_decay"),
        # Of a file there is one problem, and other starts alone.
        seeds=OWN_STARTS if name == OWN else PROBLEMS,
    )


PHASES = (
    _scenario(GAUSSIAN, OF_DECAY),
    _scenario(UNREGULARISED, WITHOUT_DECAY),
    _scenario(RECTANGULAR, OF_DECAY),
    _scenario(CLASSES, OF_DECAY, CROSS_ENTROPY),
    _scenario(OWN, OF_DECAY),
)
