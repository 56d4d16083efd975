"""Intruder dimensions: counted beside whole decompositions, by chance beside random matrices."""

import numpy as np
import pytest

import lrdyn
from lrdyn import diagnosis
from lrdyn.diagnosis import intruders

RNG = np.random.default_rng(17)
M, N = 60, 90
SHAPES = [(M, N), (N, M), (M, M)]


def unit(size):
    x = RNG.standard_normal(size)
    return x / np.linalg.norm(x)


def spike(m, n, theta):
    return theta * np.outer(unit(m), unit(n))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_outlier_of_noise_is_that_of_baik_ben_arous_and_peche(shape):
    """theta = t sqrt(n): y = sqrt(n (1 + t^2) (beta + t^2)) / t, of unit variance, beta = m / n."""
    m, n = shape
    t, ratio = 2.0, m / n
    draws = []
    wanted = np.sqrt(n * (1 + t**2) * (ratio + t**2)) / t
    for _ in range(20):
        W = RNG.standard_normal(shape)
        values = np.linalg.svd(W, compute_uv=False)
        (found,) = intruders.outliers(np.array([t * np.sqrt(n)]), values, shape)
        np.testing.assert_allclose(found, wanted, rtol=0.05)
        draws.append(np.linalg.norm(W + spike(m, n, t * np.sqrt(n)), 2) / found)
    # Fluctuations are of the order of 1 / m of the value.
    np.testing.assert_allclose(np.mean(draws), 1, atol=3 / M)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("theta", [2.0, 5.0])
def test_the_weights_are_the_means_over_random_directions(shape, theta):
    """Of a W that is no noise: values from 3 to 1."""
    m, n = shape
    values = np.linspace(3, 1, min(shape))
    W = np.zeros(shape)
    np.fill_diagonal(W, values)
    mean = np.zeros(len(values))
    draws = 80
    for _ in range(draws):
        left, _, _ = np.linalg.svd(W + spike(m, n, theta), full_matrices=False)
        mean += left[: len(values), 0] ** 2 / draws
    wanted = intruders.weights(np.array([theta]), values, shape)[0]
    # Sums of ten: 80 draws of squares of Gaussians, and a theory to first order in 1 / m.
    for block in range(0, len(values), 10):
        pair = mean[block : block + 10].sum(), wanted[block : block + 10].sum()
        np.testing.assert_allclose(*pair, rtol=0.2)


def test_random_spikes_intrude_where_theory_says_and_those_along_w_do_not():
    W = RNG.standard_normal((M, N))
    left, values, right = np.linalg.svd(W, full_matrices=False)
    large, small = 4 * np.sqrt(N), 0.3 * np.sqrt(N)
    for update, count, by_chance in (
        (spike(M, N, large), 1, 1),
        (spike(M, N, small), 0, 0),
        # The control: as large, along W's own direction.
        (large * np.outer(left[:, 0], right[0]), 0, 1),
    ):
        sizes = np.linalg.svd(update, compute_uv=False)
        found = intruders.find_intruders(W, W + update, sizes, 4)
        assert (found.found, found.by_chance) == (count, by_chance)
    assert values[0] < large


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_report_counts_what_whole_decompositions_count(dtype):
    W = RNG.standard_normal((M, N)).astype(dtype)
    A, B = (3 * RNG.standard_normal(s).astype(dtype) for s in ((3, N), (M, 3)))
    report = lrdyn.diagnose({"q.weight": W}, {"q.weight": W + B @ A}, k=5, intruders=True)
    one, other = (np.linalg.svd(x)[0] for x in (W, W + B @ A))
    wanted = int(np.sum(np.abs(one.T @ other[:, :5]).max(axis=0) < intruders.COSINE))
    matrix = report.matrices[0]
    assert (matrix.intruders, matrix.intruders_by_chance) == (wanted, 3)
    assert wanted == 3
    assert "intruders" in report.table()
    head, row = report.table().splitlines()[(i := _line(report, "kind of layer")) : i + 2]
    assert head.endswith("new")
    assert row.endswith("3 (3)")
    assert "intruders" not in lrdyn.diagnose({"q.weight": W}, {"q.weight": W + B @ A}).table()


def _line(report, start):
    return next(i for i, x in enumerate(report.table().splitlines()) if x.startswith(start))


def test_a_plan_names_intruders_beyond_those_of_chance():
    W = RNG.standard_normal((M, N))
    update = spike(M, N, 4 * np.linalg.norm(W, 2))
    found = lrdyn.diagnose({"q.weight": W}, {"q.weight": W + update}, k=2, intruders=True)
    (matrix,) = found.matrices
    # A random direction is one that chance gives, of which nothing is said; one more is named.
    assert (matrix.intruders, matrix.intruders_by_chance) == (1, 1)
    seen = matrix._replace(intruders=2, intruders_by_chance=1)
    made = diagnosis.plan(found._replace(matrices=(seen,)), budget=2 * (M + N))
    assert made.intruders == {"q.weight": 1}
    assert "intruders beyond chance: q 1" in made.lines()
    assert not diagnosis.plan(found, budget=2 * (M + N)).intruders
