"""Gradients become low-rank, and by how much: Lemma 3.3 of GaLore, and what it needs.

Where the gradient is G = (1/N) sum_i (A_i - B_i W C_i) and W <- W + eta G, it follows the operator
S = (1/N) sum_i B_i (x) C_i with eigenvalues l_1 < l_2 < ... < l_max and eigenvectors V_j,

    G_t = sum_j (1 - eta l_j)^t <V_j, G_0> V_j,

so that the part G_par in the eigenspace of l_1 outlives the rest, D = G_0 - G_par. With
q = (1 - eta l_2) / (1 - eta l_1) the stable rank sr(G) = ||G||_F^2 / ||G||_2^2 obeys

    ||G_par||_F^2 / (||G_par||_2 + q^t ||D||_F)^2 <= sr(G_t)
        <= (||G_par||_F^2 + q^2t ||D||_F^2) / (||G_par||_2 - q^t ||D||_F)^2.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.descent import iterate
from lrdyn.core.initialization import gaussians, reflection
from lrdyn.core.recording import Recorded, log_steps
from lrdyn.core.spectra import half_of_the_digits, singular_values
from lrdyn.theorem4 import gradient_rank
from lrdyn.theorem4.gradient_rank import Edges, GradientModes, StableRankBounds
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtLeast, AtMost
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

LARGEST_GRADIENT = (5, 6)
"""Most rows and columns: the operator on matrices is diagonalised as a whole."""

TERMS = 3
"""N."""

MOST_STEPS = 100
"""Most steps of a run, whatever --steps says."""

NAMES = ("full", "kernel", "printed_fails", "printed_slack", "regular", "right", "left")
"""Terms of full rank; of half rank; the counterexample to Lemma 3.3 and its mirror image; and a
single term, of regular B and C, regular B alone and regular C alone."""

ALIGNED = NAMES.index("regular")
"""Place of the first problem whose top singular pair of G_par lies in the eigenspace of l_1; those
behind it are such problems, too."""

FRACTIONS = (1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5)
"""Step sizes, as parts of 2/(l_2 + l_max)."""


class Recursion(Recorded):
    """Problems with the gradient (1/N) sum_i (A_i - B_i W C_i)."""

    left: Float[Array, "problems terms m m"]
    """B_i."""
    right: Float[Array, "problems terms n n"]
    """C_i."""
    targets: Float[Array, "problems terms m n"]
    """A_i; W_0 is 0."""
    modes: GradientModes
    """Eigenvectors of (1/N) sum_i B_i (x) C_i, for each problem."""
    learning_rate: Float[Array, "problems"]
    """eta."""

    @property
    def start(self) -> Float[Array, "problems m n"]:
        """Gradient G_0 of each problem at the start, where W is 0."""
        return jnp.mean(self.targets, axis=1)

    @property
    def part(self) -> Float[Array, "problems m n"]:
        """Part G_par of each G_0 in the eigenspace of l_1."""
        return jax.vmap(gradient_rank.slowest_part)(self.modes, self.start)

    @property
    def edges(self) -> Edges:
        """l_1, l_2 and l_max of each problem."""
        return jax.vmap(gradient_rank.spectral_edges)(self.modes)

    def loss(self, weights: Float[Array, "problems m n"]) -> Float[Array, ""]:
        """The sum over the problems, so that each has minus its own gradient for a derivative."""
        terms = weights[:, None]
        # <W, B W C> / 2 - <A, W>, whose derivative is B W C - A.
        rest = (self.left @ terms @ self.right) / 2 - self.targets
        return jnp.sum(rest * terms) / TERMS


class RecursionTheory(NamedTuple):
    """Gradients from eigenvectors, bounds from G_par and q."""

    gradient_path: Float[Array, "recursion step row column"] = ABSENT
    """G_t of each problem."""
    stable_rank_bound: Float[Array, "recursion step"] = ABSENT
    """Upper bound of sr(G_t), infinite where its bracket is not positive."""
    stable_rank_floor: Float[Array, "recursion step"] = ABSENT
    """Lower bound of sr(G_t)."""
    lemma_3_3: Float[Array, "recursion step"] = ABSENT
    """Lemma 3.3 as printed: sr(G_par) + q^2t ||D||_F^2 / ||G_par||_2^2."""
    resolution: Float[Array, "recursion step"] = ABSENT
    """||G_t|| / ||G_0|| (l_2 - l_1) / l_max: an excess over a bound counts in these units."""
    eigenvalue_spread: Float[Array, "recursion"] = ABSENT
    """Spread of the eigenvalues that count as l_1, over the largest."""
    misalignment: Float[Array, "recursion"] = ABSENT
    """How far the top singular pair of G_par is from the eigenspace of l_1."""
    ratio: Float[Array, "recursion"] = ABSENT
    """q."""


class RecursionMeasured(NamedTuple):
    """Descent on a loss that is differentiated."""

    gradient_path: Float[Array, "recursion step row column"] = ABSENT
    """G_t of each problem, minus the derivative."""
    stable_rank: Float[Array, "recursion step"] = ABSENT
    """sr(G_t)."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


RecursionOutcome = Outcome[RecursionTheory, RecursionMeasured]


# Cases ---------------------------------------------------------------------------------------


def _spectra(size: int) -> np.ndarray:
    """Eigenvalues of a single term: one small, all of them large, half of them zero."""
    large, index = np.linspace(0.7, 1.0, size), np.arange(size)
    half = np.where(index < max(size // 2, 1), 0.0, large)
    return np.stack([np.where(index == 0, 0.2, large), large, half])


def _make_side(gaussian: Float[Array, "rows k"], order: list[int]) -> Array:
    """Make B_i, or C_i, of every problem; single terms have the spectra in this order."""
    size = gaussian.shape[1]
    rows = np.stack([np.ones(size), np.arange(size) < max(size // 2, 1)])  # full and half rank
    factors = gaussian.reshape(1, TERMS, size, size) * jnp.asarray(rows)[:, None, :, None]
    # Gram matrices: positive semidefinite, of the rank that the rows have.
    several = jnp.swapaxes(factors, 2, 3) @ factors / size
    vectors, values = reflection(gaussian[0])[None], jnp.asarray(_spectra(size)[order])
    # A reflection is symmetric, and its own inverse.
    single = (vectors * values[:, None, :]) @ vectors
    # B = C = diag(1, 0, ...), of the counterexample to Lemma 3.3 and of its mirror image.
    corner = jnp.zeros((2, size, size)).at[:, 0, 0].set(1.0)
    same = jnp.concatenate([corner, single])[:, None]
    # N equal terms are one.
    return jnp.concatenate([several, jnp.tile(same, (1, TERMS, 1, 1))])


NEAR = 0.1
"""||G_0 - G_par||_F over ||G_par||_F where there are several terms: their l_2 is close to l_1, and
an infinite bound says nothing."""


def _shrink_rest(modes: GradientModes, drawn: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """Scale the part of a draw outside of the eigenspace of l_1 down to :data:`NEAR`."""
    part = gradient_rank.slowest_part(modes, drawn)
    rest = drawn - part
    return part + NEAR * jnp.linalg.norm(part) / jnp.linalg.norm(rest) * rest


def make_recursion(key: Key[Array, ""], *, rows: int, cols: int, steps: int) -> Recursion:
    """Draw the operators and the gradients at the start of all problems."""
    m, n = map(min, (rows, cols), LARGEST_GRADIENT)
    count, first = len(NAMES), NAMES.index("printed_fails")
    shapes = [(TERMS * m, m), (TERMS * n, n), (count * m, n), (count * TERMS * m, n)]
    for_rows, for_columns, drawn, noise = gaussians(key, shapes)
    left, right = _make_side(for_rows, [0, 1, 2]), _make_side(for_columns, [0, 2, 1])
    modes = jax.vmap(gradient_rank.gradient_modes)(left, right)
    drawn = drawn.reshape(count, m, n)
    near = jax.vmap(_shrink_rest)(*jax.tree.map(lambda leaf: leaf[:first], (modes, drawn)))
    # Gradients at the start of the counterexample and its mirror image, 0 elsewhere.
    examples = np.zeros((2, m, n))
    examples[:, :2, :2] = [[[-0.75, 0.5], [0.5, 0.75]], [[0.75, 0.5], [0.5, 0.75]]]
    start = jnp.concatenate([near, jnp.asarray(examples), drawn[ALIGNED:]])
    noise = noise.reshape(count, TERMS, m, n)
    # Terms A_i that differ, with the mean G_0.
    noise = noise - jnp.mean(noise, axis=1, keepdims=True)
    edges = jax.vmap(gradient_rank.spectral_edges)(modes)
    return Recursion(
        left=left,
        right=right,
        targets=start[:, None] + noise,
        modes=modes,
        learning_rate=jnp.asarray(FRACTIONS) * _largest_step(edges),
        steps=np.append(0, log_steps(steps, 12)),
    )


def _largest_step(edges: Edges) -> Float[Array, "problems"]:
    return 2 / (edges.second + edges.last)


# Theory and measurement ----------------------------------------------------------------------


def _ratio(case: Recursion, slower: Float[Array, "problems"]) -> Float[Array, "problems"]:
    """q, from l_2 or another eigenvalue."""
    eta = case.learning_rate
    return (1 - eta * slower) / (1 - eta * case.edges.first)


def _bounds(
    case: Recursion, ratio: Float[Array, "problems"], times: np.ndarray
) -> StableRankBounds:
    rest = case.start - case.part
    each = jax.vmap(gradient_rank.stable_rank_bounds, (0, 0, 0, None))
    return each(case.part, rest, ratio, times)


def _path(case: Recursion, modes: GradientModes) -> Float[Array, "problems times m n"]:
    each = jax.vmap(gradient_rank.gradient_path, (0, 0, 0, None))
    return each(modes, case.start, case.learning_rate, case.times)


def predict_recursion(case: Recursion) -> RecursionTheory:
    """Gradients from eigenvectors, bounds from G_par and q."""
    ratio, path = _ratio(case, case.edges.second), _path(case, case.modes)
    bounds, size = _bounds(case, ratio, case.times), jnp.linalg.norm(path, axis=(2, 3))
    gaps = _gaps(case)
    return RecursionTheory(
        gradient_path=path,
        stable_rank_bound=bounds.upper,
        stable_rank_floor=bounds.lower,
        lemma_3_3=bounds.printed,
        # Gradients are differences of the size of G_0, and so are their errors; those of G_par are
        # larger by the eigenvalues over their gap.
        resolution=size / size[:, :1] * gaps.apart[:, None],
        eigenvalue_spread=gaps.spread,
        misalignment=jax.vmap(gradient_rank.misalignment)(case.modes, case.part),
        ratio=ratio,
    )


class Gaps(NamedTuple):
    """Gaps between the eigenvalues of each problem, over the largest absolute one."""

    apart: Float[Array, "problems"]
    """l_2 - l_1."""
    spread: Float[Array, "problems"]
    """Spread of the eigenvalues that count as l_1."""


def _gaps(case: Recursion) -> Gaps:
    values, edges = case.modes.values, case.edges
    # The largest absolute value, for l_max may be smaller than |l_1|: only the order matters.
    scale = jnp.max(jnp.abs(values), axis=1)
    # With one distinct eigenvalue l_2 is l_max: then all of them count as l_1.
    slow = (values < edges.second[:, None]) | (edges.second == edges.last)[:, None]
    slow = slow & (values - values[:, :1] <= half_of_the_digits(values.dtype) * scale[:, None])
    spread = jnp.max(jnp.where(slow, values, values[:, :1]), axis=1) - edges.first
    return Gaps((edges.second - edges.first) / scale, spread / scale)


def measure_recursion(case: Recursion) -> RecursionMeasured:
    """Descend, differentiate and take singular values."""
    gradient = jax.grad(case.loss)
    eta = case.learning_rate[:, None, None]
    start, step = jnp.zeros_like(case.start), lambda t, weights: weights - eta * gradient(weights)
    path = iterate(step, start, case.times, lambda weights: -gradient(weights))[1]
    ranks = gradient_rank.stable_rank(singular_values(path.reshape(-1, *path.shape[2:])))
    return RecursionMeasured(
        gradient_path=jnp.swapaxes(path, 0, 1),
        stable_rank=ranks.reshape(path.shape[:2]).T,
        step=jnp.asarray(case.steps),
    )


# Claims and controls -------------------------------------------------------------------------


def _distinct_problems(outcome: RecursionOutcome) -> np.ndarray:
    """Problems whose eigenvalues that count as equal are so, up to their rounding."""
    # The operator on matrices has as many rows as they have entries.
    limit = tolerance("identity", outcome.dtype, size=int(np.prod(LARGEST_GRADIENT)) ** 2)
    return np.asarray(outcome.predicted.eigenvalue_spread <= limit)


def _compare_with_bound(
    outcome: RecursionOutcome, bound: np.ndarray | Array, first: int = 0
) -> AtMost:
    """Stable ranks below a bound as far as rounding lets them be known, from a problem on.

    An excess over the bound counts in parts of it over the resolution. Where eigenvalues are too
    close nothing is claimed.
    """
    theory, run = outcome.predicted, outcome.measured
    bound = np.where(_distinct_problems(outcome)[:, None], np.asarray(bound), np.inf)[first:]
    # An infinite bound holds on any scale.
    size = np.where(np.isfinite(bound), bound, 1.0)
    return AtMost(run.stable_rank[first:], bound, size / theory.resolution[first:])


def _compare_with_floor(outcome: RecursionOutcome) -> AtLeast:
    theory, ranks = outcome.predicted, outcome.measured.stable_rank
    floor = np.where(_distinct_problems(outcome)[:, None], theory.stable_rank_floor, 0.0)
    return AtLeast(ranks, floor, ranks / theory.resolution)


def _close_eigenvalues(outcome: RecursionOutcome) -> str:
    return "" if np.any(_distinct_problems(outcome)) else "close eigenvalues"


def _infinite_bound(outcome: RecursionOutcome) -> str:
    # Before the bracket is positive the bound says nothing: at the end it must.
    unknown = np.any(np.isinf(outcome.predicted.stable_rank_bound[:, -1]))
    return "bound is infinite" if unknown else _close_eigenvalues(outcome)


def _is_aligned(outcome: RecursionOutcome) -> bool:
    apart = outcome.predicted.misalignment[ALIGNED:]
    return bool(np.all(apart <= half_of_the_digits(outcome.dtype)))


def _step_in_range(case: Recursion) -> Array:
    largest = _largest_step(case.edges) * (1 + half_of_the_digits(case.left.dtype))
    return jnp.all((case.learning_rate > 0) & (case.learning_rate <= largest))


def _is_symmetric(case: Recursion) -> Array:
    """Whether B_i and C_i are symmetric up to rounding; the signs of eigenvalues do not matter."""
    sides = (case.left, case.right)
    apart = [jnp.max(jnp.abs(side - jnp.swapaxes(side, 2, 3))) for side in sides]
    return jnp.maximum(*apart) <= half_of_the_digits(case.left.dtype)


def _large_step(key: Key[Array, ""], case: Recursion, amount: Array) -> Recursion:
    """Move the steps toward 1.9/l_max: descent converges, but the last mode falls the slowest."""
    beyond = (1 - amount) * case.learning_rate + amount * 1.9 / case.edges.last
    return dataclasses.replace(case, learning_rate=beyond)


def _both_singular(key: Key[Array, ""], case: Recursion, amount: Array) -> Recursion:
    """Put the counterexample in the place of the problems with a nonsingular side."""
    bad = NAMES.index("printed_fails")
    return jax.tree.map(lambda leaf: leaf.at[ALIGNED:].set(leaf[bad]), case)


def _wrong_formulas(case: Recursion) -> RecursionTheory:
    """Predict by a flow, by Lemma 3.3 as printed for all, by q^2t in the floor, by l_max in q."""
    eta, edges = case.learning_rate[:, None], case.edges
    right, last = _ratio(case, edges.second), jnp.abs(_ratio(case, edges.last))
    # With these in the place of l, (1 - eta l)^t is exp(-eta l t).
    flow = case.modes._replace(values=(1 - jnp.exp(-eta * case.modes.values)) / eta)
    return RecursionTheory(
        gradient_path=_path(case, flow),
        stable_rank_bound=_bounds(case, right, case.times).printed,
        stable_rank_floor=_bounds(case, right, 2 * case.times).lower,
        lemma_3_3=_bounds(case, last, case.times).printed,
    )


def _ascent(case: Recursion) -> RecursionMeasured:
    """Ascend, W <- W - eta G / 10: the modes that fall the fastest grow the fastest.

    The tenth keeps them within the numbers of float32.
    """
    return measure_recursion(dataclasses.replace(case, learning_rate=-case.learning_rate / 10))


def _narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """Rows, columns and steps up to what this scenario takes; the rank decides nothing here."""
    sizes = {"steps": min(settings["steps"], MOST_STEPS), "rank": (1,)}
    for name, largest in zip(("rows", "cols"), LARGEST_GRADIENT, strict=True):
        sizes[name] = tuple(dict.fromkeys(min(size, largest) for size in settings[name]))
    return settings | sizes


GRADIENT_RANK = Scenario[Recursion, RecursionTheory, RecursionMeasured](
    "gradient_rank",
    make_recursion,
    predict_recursion,
    measure_recursion,
    theory=RecursionTheory,
    measured=RecursionMeasured,
    claims=(
        Claim(
            "gradient_path",
            "under W <- W + eta G, G = (1/N) sum_i (A_i - B_i W C_i) of up to "
            f"{LARGEST_GRADIENT[0]} x {LARGEST_GRADIENT[1]} entries, the gradient is G_t = sum_j "
            "(1 - eta l_j)^t <V_j, G_0> V_j, l_j and V_j the eigenvalues and eigenvectors of the "
            "map from G to (1/N) sum_i B_i G C_i",
            sides="eigenvectors of the operator against gradients of a loss, differentiated",
        ),
        Claim(
            "stable_rank_bound",
            "sr(G_t) <= (||G_par||_F^2 + q^2t ||D||_F^2) / (||G_par||_2 - q^t ||D||_F)^2 where "
            "the bracket is positive, G_par the part of G_0 in the eigenspace of l_1 (not 0), D "
            "= G_0 - G_par, q = (1 - eta l_2)/(1 - eta l_1)",
            kind="bound",
            form=lambda outcome: _compare_with_bound(outcome, outcome.predicted.stable_rank_bound),
            reads=lambda theory, run: (
                run.stable_rank,
                theory.stable_rank_bound,
                theory.resolution,
                theory.eigenvalue_spread,
            ),
            undecided=_infinite_bound,
        ),
        Claim(
            "stable_rank_floor",
            "sr(G_t) >= ||G_par||_F^2 / (||G_par||_2 + q^t ||D||_F)^2, G_par the part of G_0 in "
            "the eigenspace of l_1, D = G_0 - G_par, q = (1 - eta l_2)/(1 - eta l_1)",
            kind="bound",
            form=_compare_with_floor,
            reads=lambda theory, run: (
                run.stable_rank,
                theory.stable_rank_floor,
                theory.resolution,
                theory.eigenvalue_spread,
            ),
            undecided=_close_eigenvalues,
        ),
        Claim(
            "lemma_3_3",
            "if the top singular pair of G_par lies in the eigenspace of l_1 (here: N = 1, B or "
            "C nonsingular), sr(G_t) <= sr(G_par) + q^2t ||D||_F^2 / ||G_par||_2^2, D = G_0 - "
            "G_par, q = (1 - eta l_2)/(1 - eta l_1)",
            kind="bound",
            form=lambda outcome: _compare_with_bound(outcome, outcome.predicted.lemma_3_3, ALIGNED),
            reads=lambda theory, run: (
                run.stable_rank,
                theory.lemma_3_3,
                theory.resolution,
                theory.misalignment,
                theory.eigenvalue_spread,
            ),
            applies=_is_aligned,
            undecided=_close_eigenvalues,
        ),
    ),
    controls=(
        Control(
            "gradient_flow",
            "exp(-eta l t) in place of (1 - eta l)^t",
            "gradient_path",
            predict=_wrong_formulas,
        ),
        Control("ascent", "W <- W - eta G / 10", "gradient_path", measure=_ascent),
        Control("bound_of_ascent", "W <- W - eta G / 10", "stable_rank_bound", measure=_ascent),
        Control("floor_of_ascent", "W <- W - eta G / 10", "stable_rank_floor", measure=_ascent),
        Control("lemma_of_ascent", "W <- W - eta G / 10", "lemma_3_3", measure=_ascent),
        Control(
            "printed_in_general",
            "Lemma 3.3 as printed, for B = C = diag(1, 0) too",
            "stable_rank_bound",
            predict=_wrong_formulas,
            drops="the top singular pair of G_par lies in the eigenspace of l_1",
        ),
        Control(
            "large_step",
            "a step of 1.9 over the largest eigenvalue",
            "stable_rank_bound",
            case=_large_step,
            breaks="step_in_range",
            amounts=(1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0),
            amount_label=r"way of $\eta$ to 1.9 / $\lambda_{\max}$",
        ),
        Control(
            "squared_ratio",
            "the lower bound with q^2t in place of q^t",
            "stable_rank_floor",
            predict=_wrong_formulas,
        ),
        Control(
            "both_singular",
            "B = C = diag(1, 0), the counterexample",
            "lemma_3_3",
            case=_both_singular,
            breaks="applies",
        ),
        Control(
            "last_eigenvalue", "q with l_max in place of l_2", "lemma_3_3", predict=_wrong_formulas
        ),
    ),
    hypotheses={"symmetric": _is_symmetric, "step_in_range": _step_in_range},
    narrow=_narrow,
    steps="steps",
    sides="G_par, q and eigenvalues against singular values of the gradients",
    at={"rows": 5, "cols": 6, "steps": MOST_STEPS},
)
