"""What chance gives: closed forms against draws of another generator, and against exact moments."""

import numpy as np
import pytest

from lrdyn.core import chance

MATRICES = [(5, 5), (10, 40), (20, 20), (256, 64), (128, 500)]


@pytest.fixture(scope="module", params=MATRICES, ids=str)
def drawn(request):
    """Singular values of Gaussian matrices of one size, a matrix a row."""
    rows, columns = request.param
    draws = np.random.default_rng(5).normal(
        size=(max(40, 4000 // min(rows, columns)), rows, columns)
    )
    return rows, columns, np.linalg.svd(draws, compute_uv=False)


def close(rows, columns):
    return 0.05 if min(rows, columns) < 20 else 0.03 if min(rows, columns) < 128 else 0.011


def test_ranks_and_energies_are_those_of_draws(drawn):
    rows, columns, values = drawn
    first = max(2, min(rows, columns) // 4)
    energies, shares = values**2, values / np.sum(values, axis=1, keepdims=True)
    sums = np.sum(energies, axis=1)
    for found, wanted in (
        (
            chance.gaussian_effective_rank(rows, columns),
            np.exp(-np.sum(shares * np.log(shares), axis=1)),
        ),
        (chance.gaussian_stable_rank(rows, columns), sums / energies[:, 0]),
        (chance.gaussian_energy(rows, columns, first), np.sum(energies[:, :first], axis=1) / sums),
        (chance.gaussian_ratio(rows, columns, first), values[:, first] / values[:, first - 1]),
    ):
        assert found == pytest.approx(float(np.mean(wanted)), rel=close(rows, columns))


def test_singular_values_are_those_of_draws(drawn):
    rows, columns, values = drawn
    found, wanted = chance.gaussian_singular_values(rows, columns), np.mean(values, axis=0)
    np.testing.assert_allclose(found / wanted[0], wanted / wanted[0], atol=close(rows, columns))
    # E ||G||_F^2 = m n, exactly; the other way round it is the same matrix.
    assert np.sum(found**2) == pytest.approx(rows * columns, rel=close(rows, columns))
    np.testing.assert_array_equal(found, chance.gaussian_singular_values(columns, rows))


@pytest.mark.parametrize(("dim", "subspace"), [(2, 1), (10, 3), (384, 16)])
def test_shares_and_angles_of_a_direction_are_those_of_draws(dim, subspace):
    directions = np.random.default_rng(3).normal(size=(40_000, dim))
    squares = directions**2 / np.sum(directions**2, axis=1, keepdims=True)
    shares = np.sum(squares[:, -subspace:], axis=1)
    angles = np.degrees(np.arccos(np.sqrt(shares)))
    for found, draws in (
        (chance.direction_share(dim, subspace), shares),
        (chance.direction_angle(dim, subspace), angles),
    ):
        assert float(found.value) == pytest.approx(np.mean(draws), rel=0.01)
        inside = np.mean((found.low <= draws) & (draws <= found.high))
        assert inside == pytest.approx(chance.BAND, abs=0.005)
        assert np.mean(draws < found.low) == pytest.approx(0.025, abs=0.004)


@pytest.mark.parametrize(
    ("dim", "first", "second"), [(20, 3, 5), (20, 5, 3), (64, 8, 8), (6, 6, 2)]
)
def test_principal_angles_have_the_exact_mean_of_their_squared_cosines(dim, first, second):
    found = chance.principal_angles(dim, first, second)
    assert found.value.shape == (min(first, second),)
    assert np.all(np.diff(found.value) >= 0)
    assert np.all((found.low <= found.value) & (found.value <= found.high))
    rng, cosines = np.random.default_rng(9), []
    for _ in range(400):
        U, V = (np.linalg.qr(rng.normal(size=(dim, n)))[0] for n in (first, second))
        cosines.append(np.linalg.svd(U.T @ V, compute_uv=False))
    assert np.mean(np.sum(np.square(cosines), axis=1)) == pytest.approx(
        first * second / dim, rel=0.03
    )
    wanted = np.mean(np.degrees(np.arccos(np.minimum(cosines, 1))), axis=0)
    np.testing.assert_allclose(found.value, wanted, atol=1.0)


def test_the_same_call_draws_the_same():
    first, again = (
        chance.gaussian_statistic(lambda G: float(np.linalg.norm(G)), 4, 3, norm=2.0, draws=9)
        for _ in range(2)
    )
    assert first == again
    assert float(first.value) == pytest.approx(2.0)
    squares = chance.gaussian_statistic(lambda G: np.sum(G**2), 20, 30)
    assert float(squares.value) == pytest.approx(600, rel=0.02)
    assert squares.low < 600 < squares.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chance.direction_share(4, 4), "subspace: got 4, wanted less than dim, 4"),
        (lambda: chance.direction_angle(1, 1), "dim: got 1, wanted at least 2"),
        (lambda: chance.principal_angles(4, 5, 1), "first: got 5, wanted at most dim, 4"),
        (lambda: chance.gaussian_energy(4, 3, 4), "first: got 4, wanted at most 3"),
        (lambda: chance.gaussian_ratio(4, 3, 3), "first: got 3, wanted at most 2"),
        (lambda: chance.gaussian_singular_values(0, 3), "rows: got 0, wanted at least 1"),
        (lambda: chance.gaussian_statistic(np.sum, 2, 2, draws=0), "draws: got 0, wanted"),
    ],
)
def test_sizes_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
