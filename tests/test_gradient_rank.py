"""Gradients that become low-rank, against Kronecker matrices, loops and brute force in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.theorem4 import gradient_rank
from lrdyn.theorem4.gradient_rank import GradientModes, spectral_edges
from lrdyn.theorem4.gradient_rank_claims import ALIGNED, GRADIENT_RANK
from lrdyn.theorem4.problems import _draw_regression, _draw_unscaled, distance
from lrdyn.theorem4.statement import THEOREM4
from lrdyn.verification.stating.statement import Outcome
from tests import oracles
from tests.oracles import assert_close

pytestmark = pytest.mark.usefixtures("strict")

both_sides = jax.jit(lambda case: (GRADIENT_RANK.predict(case), GRADIENT_RANK.measure(case)))
TIMES = np.arange(40)
SLACK = 1 + np.sqrt(np.finfo(float).eps)
"""Of a bound: half of all digits, which small gaps between eigenvalues leave."""


def semidefinite(rng, terms, size, rank):
    """Random terms of a rank; those of full rank far from singular."""
    factors = rng.standard_normal((terms, size, rank))
    return factors @ factors.transpose(0, 2, 1) / size + 0.2 * np.eye(size) * (rank == size)


def draw(seed=0, terms=2, shape=(3, 4), ranks=(3, 4), fraction=1.0):
    """B, C, G_0 and a step, the largest one or a part of it, by NumPy alone."""
    rng = np.random.default_rng(seed)
    B, C = (semidefinite(rng, terms, n, r) for n, r in zip(shape, ranks, strict=True))
    values = np.linalg.eigvalsh(kronecker(B, C))
    second = values[values > values[0] + 1e-9 * values[-1]][0]
    return B, C, rng.standard_normal(shape), fraction * 2 / (second + values[-1])


def kronecker(B, C):
    """(1/N) sum_i C_i (x) B_i, for matrices read column after column."""
    return np.mean([np.kron(c, b) for b, c in zip(B, C, strict=True)], axis=0)


def split(B, C, start):
    """G_par by a projector of SciPy's null space, and the three eigenvalues."""
    S = kronecker(B, C)
    values, vectors = np.linalg.eigh(S)
    slow = values - values[0] < 1e-9 * values[-1]
    coordinates = vectors[:, slow].T @ start.ravel(order="F")
    part = (vectors[:, slow] @ coordinates).reshape(start.shape, order="F")
    return part, (values[0], values[~slow][0], values[-1])


def ranks_of(gradients):
    values = np.linalg.svd(gradients, compute_uv=False)
    return (values**2).sum(-1) / values[..., 0] ** 2


def iterated(B, C, start, eta):
    """The recursion, for matrices read column after column."""
    S, vector, seen = kronecker(B, C), start.ravel(order="F"), []
    for _ in TIMES:
        seen.append(vector.reshape(start.shape, order="F"))
        vector = vector - eta * S @ vector
    return np.stack(seen)


@jax.jit
def library(B, C, start, eta):
    """Path, slowest part and edges."""
    modes = gradient_rank.gradient_modes(B, C)
    path = gradient_rank.gradient_path(modes, start, eta, TIMES)
    return path, gradient_rank.slowest_part(modes, start), jnp.stack(spectral_edges(modes))


@pytest.mark.parametrize("terms", [1, 3])
def test_the_closed_form_is_the_iteration(terms, dtype):
    case = draw(terms=terms)
    assert_close(library(*case)[0], iterated(*case), steps=40, size=12)


@pytest.mark.parametrize("ranks", [(3, 4), (2, 4), (3, 1), (2, 2)])
def test_the_slowest_part_and_the_edges(ranks, dtype):
    """One term, of regular and of singular sides: l_1 = 0 is degenerate then."""
    case = draw(1, terms=1, ranks=ranks)
    part, edges = split(*case[:3])
    _, found, found_edges = library(*case)
    assert_close(found_edges, np.array(edges), size=12)
    gap = (edges[1] - edges[0]) / edges[2]
    assert_close(np.asarray(found) * np.asarray(gap, dtype), gap * part, scale=1.0)


def test_close_eigenvalues_count_as_one():
    values = jnp.array([1.0, 1 + 1e-9, 1 + 1e-6, 3.0])
    modes = GradientModes(values, jnp.eye(4))
    assert float(spectral_edges(modes).second) == 1 + 1e-6
    assert float(spectral_edges(modes, 1e-5).second) == 3.0
    assert float(spectral_edges(modes, 1e-12).second) == 1 + 1e-9
    kept = gradient_rank.slowest_part(modes, jnp.ones((2, 2)))
    assert kept.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    # A map that is a multiple of the identity has no second eigenvalue.
    same = GradientModes(jnp.ones(4), jnp.eye(4))
    assert [float(x) for x in spectral_edges(same)] == [1.0, 1.0, 1.0]


def judged(B, C, start, eta):
    """Stable ranks and all bounds of the library, NumPy's stable ranks by iteration."""
    modes = gradient_rank.gradient_modes(B, C)
    part = gradient_rank.slowest_part(modes, start)
    edges = spectral_edges(modes)
    ratio = (1 - eta * edges.second) / (1 - eta * edges.first)
    # The common factor (1 - eta l_1)^t is left out, so that nothing underflows.
    scaled = modes._replace(values=(modes.values - edges.first) / (1 - eta * edges.first))
    path = gradient_rank.gradient_path(scaled, start, eta, TIMES)
    bounds = gradient_rank.stable_rank_bounds(part, start - part, ratio, TIMES)
    return path, bounds, gradient_rank.misalignment(modes, part)


@pytest.mark.parametrize(
    ("terms", "ranks"), [(1, (2, 3)), (1, (4, 3)), (1, (2, 5)), (1, (4, 5)), (2, (2, 2))]
)
def test_bounds_in_random_cases(terms, ranks):
    """The corrected bounds are never violated; the printed one is, unless one side is regular."""
    parts = 0.3, 0.7, 1.0
    draws = [draw(seed, terms, (4, 5), ranks, fraction=parts[seed % 3]) for seed in range(150)]
    stacked = [np.stack([d[i] for d in draws]) for i in range(4)]
    path, bounds, misaligned = jax.device_get(jax.jit(jax.vmap(judged))(*stacked))
    found = ranks_of(path)
    assert np.all(found <= SLACK * bounds.upper)
    assert np.all(found >= bounds.lower / SLACK)
    violated = np.any(found > SLACK * bounds.printed, axis=1).sum()
    if terms == 1 and (ranks[0] == 4 or ranks[1] == 5):
        assert violated == 0
        assert np.all(misaligned < 1e-6)
    else:
        assert violated > 10
        assert np.all(misaligned > 1e-3)


def test_definiteness_is_not_needed():
    """Symmetric terms of any sign, as long as 0 < eta <= 2/(l_2 + l_max)."""
    bounds_of = jax.jit(gradient_rank.stable_rank_bounds)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        B, C = (rng.standard_normal((2, n, n)) for n in (3, 4))
        B, C = B + B.transpose(0, 2, 1), C @ C.transpose(0, 2, 1)
        start = rng.standard_normal((3, 4))
        part, (first, second, last) = split(B, C, start)
        if second + last <= 0:
            B = -B
            part, (first, second, last) = split(B, C, start)
        assert first < 0 < second + last
        eta = 2 / (second + last)
        ratio = (1 - eta * second) / (1 - eta * first)
        bounds = jax.device_get(bounds_of(part, start - part, ratio, TIMES))
        found = ranks_of(iterated(B, C, start, eta))
        assert np.all(bounds.lower / SLACK <= found)
        assert np.all(found <= bounds.upper * SLACK)


def example(entry=-0.75, factor=0.5, times=TIMES):
    """B = C = diag(1, 0): one entry of the gradient falls, all others stay."""
    gradients = np.repeat([[[entry, 0.5], [0.5, 0.75]]], len(times), axis=0)
    gradients[:, 0, 0] *= factor**times
    return gradients


@pytest.mark.parametrize("also", [[], [np.eye(2)]], ids=["alone", "a definite operator"])
def test_the_counterexample(also):
    """A second term B = C = I moves all eigenvalues and no eigenvector."""
    B = np.stack([np.diag([1.0, 0.0]), *also])
    path, bounds, misaligned = jax.device_get(jax.jit(judged)(B, B, example()[0], 0.5))
    assert_close(misaligned, 0.2)
    # Not at the start alone: the printed bound falls as q^2t, the stable rank as q^t.
    assert np.all(ranks_of(path) > bounds.printed)
    if also:
        values = gradient_rank.gradient_modes(jnp.asarray(B), jnp.asarray(B)).values
        assert_close(values, np.array([0.5, 0.5, 0.5, 1.0]), size=4)
    else:
        assert_close(path, example(), steps=40)
        assert_close(ranks_of(example())[0], 2.0)
        assert_close((bounds.printed[0], bounds.upper[0]), (1.625, 26.0))


def test_rates():
    """The distance from sr(G_par) falls as q^t, and as q^2t if the top pair is aligned."""
    q, times = 0.5, np.arange(8, 14)
    distance = ranks_of(example(factor=q, times=times)) - 1.0625
    # -2 sr(G_par) <u v^T, D> q^t / ||G_par||_2 and terms in q^2t, with u = v = (1, 2)/sqrt 5.
    first = 2 * 1.0625 * 0.75 / 5 * q**times
    assert np.all(np.abs(distance - first) < 4 * q ** (2 * times))
    aligned = np.array([np.diag([1.0, q**t]) for t in times])
    assert_close(ranks_of(aligned) - 1.0, q ** (2 * times), scale=1.0)


@pytest.mark.parametrize("fraction", [0.2, 0.9, 1.0])
def test_up_to_the_largest_step_no_mode_is_slower_than_the_second(fraction):
    B, C, start, eta = draw(3, fraction=fraction)
    _, (_, second, last) = split(B, C, start)
    assert abs(1 - eta * last) <= (1 - eta * second) * SLACK
    beyond = 1.01 * eta / fraction
    assert abs(1 - beyond * last) > 1 - beyond * second


def test_the_claims_hold_for_many_draws(dtype):
    flags = {"rows": 5, "cols": 6, "steps": 100}
    found, legs = oracles.judged(THEOREM4, GRADIENT_RANK, flags, range(30), dtype)
    for name, leg in legs.items():
        assert leg.sizes["seed"] == 30
        assert np.all(leg.reason == ""), name
        assert np.all(leg.residual <= leg.tolerance), name
    assert np.all(found["met_step_in_range"] & found["met_symmetric"])
    # The bound says something: it is finite from the start and close to the truth at the end.
    end = (found["stable_rank_bound"] / found["stable_rank"]).isel(step=-1)
    assert np.all(end.median("seed").values.ravel() < [3, 3, 1.001, 1.001, 1.1, 1.001, 1.001])


def test_an_excess_counts_as_far_as_the_gradient_is_known():
    """In parts of the bound, times how small G_t is and how close l_2 is to l_1: by hand."""
    key = jax.random.key(0)
    case = jax.jit(lambda: GRADIENT_RANK.case(key, rows=5, cols=6, steps=100))()
    theory, run = jax.device_get(both_sides(case))
    sizes = np.linalg.norm(theory.gradient_path, axis=(2, 3))
    gaps = (case.edges.second - case.edges.first) / jnp.max(jnp.abs(case.modes.values), axis=1)
    resolution = sizes / sizes[:, :1] * np.asarray(gaps)[:, None]
    claims = {claim.id: claim for claim in GRADIENT_RANK.claims}
    for name, problems, sign in (
        ("stable_rank_bound", (0, 6), 1),
        ("stable_rank_floor", (0, 6), -1),
        ("lemma_3_3", (ALIGNED, 6), 1),
    ):
        bound = getattr(theory, name)
        for problem in problems:
            ranks = np.where(np.isfinite(bound), bound, run.stable_rank)
            ranks[problem, -1] *= 1 + sign * 3e-12 / resolution[problem, -1]
            moved = run._replace(stable_rank=ranks)
            outcome = Outcome({}, theory, moved, {}, np.dtype("float64"), size=6, steps=100)
            form: Any = claims[name].form
            # Of the floor the scale is the rank itself, which is smaller by as little.
            np.testing.assert_allclose(form(outcome).residual(), 3e-12, rtol=0.05)


@pytest.mark.parametrize("shape", [(2, 2), (2, 9), (3, 4)])
def test_small_problems(shape):
    rows, cols = shape
    key = jax.random.key(0)
    case = jax.jit(lambda: GRADIENT_RANK.case(key, rows=rows, cols=cols, steps=20))()
    assert case.start.shape == (7, rows, min(cols, 6))
    assert_close(case.start[2, :2, :2], example()[0], size=6)
    assert_close(case.start[3, :2, :2], np.abs(example()[0]), size=6)


def test_several_terms_start_a_tenth_away_from_their_slowest_part():
    """So that bounds with l_2 close to l_1 are finite, and are tried by what decays faster."""
    case = jax.jit(lambda: GRADIENT_RANK.case(jax.random.key(0), rows=5, cols=6, steps=20))()
    rest, part = (np.linalg.norm(G, axis=(1, 2)) for G in (case.start - case.part, case.part))
    np.testing.assert_allclose((rest / part)[:2], 0.1, rtol=1e-9)


B, C, modes_of = jnp.ones((2, 3, 3)), jnp.ones((1, 2, 2)), gradient_rank.gradient_modes
test_sides_must_match = oracles.refuses(
    (lambda: modes_of(B, C), r"right: got shape \(1, 2, 2\), wanted \(2, n, n\)"),
    (lambda: modes_of(B[:1, :, :2], C), r"left: got shape \(1, ., .\), wanted \(terms, m, m\)"),
)


def test_a_distance_of_two_runs_is_relative_to_the_largest_weight():
    path, other = jnp.array([[4.0, -8.0], [1.0, 2.0]]), jnp.array([[5.0, -8.0], [1.0, -2.0]])
    np.testing.assert_allclose(distance(path, other), [1 / 8, 4 / 8])


@pytest.mark.parametrize("cols", [40, 160])
def test_problems_are_drawn_with_moments_of_size_1(cols):
    """Weights of variance 1/n; second moments of the inputs near I, or entries of size 1."""
    weights, (inputs, outputs) = _draw_regression(jax.random.key(5), 50, cols)
    assert inputs.shape == (cols, 2 * cols)
    spreads = [np.std(weights) * cols**0.5, np.std(inputs) * (2 * cols) ** 0.5]
    _, (entries, results) = _draw_unscaled(jax.random.key(5), 50, cols)
    spreads += [np.std(outputs) * (2 * cols) ** 0.5, np.std(entries), np.std(results)]
    np.testing.assert_allclose(spreads, 1.0, rtol=0.05)
