import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import lrdyn as lr
from tests.oracles import Compiled, assert_close, assert_zero, normal, rotated

pytestmark = pytest.mark.usefixtures("strict")

seeds = st.integers(0, 2**31 - 2)
spectra = Compiled(lr.core)


def rotation(seed, rows, columns):
    return np.linalg.qr(normal(seed, (rows, columns))[0])[0]


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (6, 3), (2, 4, 3), (2, 2, 3, 3)])
def test_singular_values_of_a_batch(shape, dtype):
    (A,) = normal(0, shape)
    assert_close(spectra.singular_values(A), np.linalg.svd(A, compute_uv=False), size=max(shape))


def test_singular_values_that_are_close_are_as_exact_as_others():
    """As those of a layer that has moved a little from an orthogonal start, in float32."""
    gaps = np.array([1e-5, 1e-4] * 60)[:, None]
    A = np.stack([rotated(i, (3, 3), 1 + gap * np.arange(3)) for i, gap in enumerate(gaps)])
    A = A.astype(np.float32)
    expected = np.linalg.svd(A.astype(float), compute_uv=False)
    with jax.enable_x64(False):
        found = np.asarray(spectra.singular_values(A), float)
    assert np.abs(found - expected).max() < 8 * np.finfo(np.float32).eps


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_numerical_rank_sees_through_round_off(rank, dtype):
    A = rotated(1, (8, 6), np.linspace(1.0, 0.5, rank))
    assert int(lr.numerical_rank(spectra.singular_values(A), 8)) == rank


def test_numerical_rank_of_a_batch_and_its_threshold():
    values = np.array([[1.0, 1e-3, 1e-9], [100.0, 1e-3, 1e-3]])
    assert lr.numerical_rank(values, 3).tolist() == [3, 3]
    assert lr.numerical_rank(values, 3, tolerance=1e-4).tolist() == [2, 1]


@given(seeds)
def test_sines_agree_with_scipy(seed):
    one, other = rotation(seed, 6, 2), rotation(seed + 1, 6, 2)
    # The largest angle between two planes belongs to a combination of columns: compare with lines.
    angles = [scipy.linalg.subspace_angles(one, v[:, None])[0] for v in other.T]
    assert_close(spectra.sines(one, other), np.sin(angles), size=6, scale=1)


def test_sines_do_not_floor(dtype):
    """arccos of a cosine cannot see angles below the square root of machine epsilon."""
    angle = np.finfo(dtype).eps
    assert_close(spectra.sines(np.eye(3)[:, :2], np.array([[1.0], [0.0], [angle]])), [angle])


def test_sines_do_not_depend_on_the_basis(dtype):
    basis, turn, vectors = rotation(0, 6, 3), rotation(1, 3, 3), rotation(2, 6, 3)
    assert_close(
        spectra.sines(basis @ turn, vectors), spectra.sines(basis, vectors), size=6, scale=1
    )
    assert_zero(spectra.sines(basis, basis @ turn), size=6, scale=1)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(lambda v: max(v) > 1e-3))
def test_effective_rank_is_the_exponential_of_the_entropy(values):
    padded = np.pad(values, (0, 6 - len(values)))  # zeros change nothing, and one shape serves all
    found = float(spectra.effective_rank(padded))
    assert_close(found, np.exp(scipy.stats.entropy(values)), size=len(values))
    assert found <= np.count_nonzero(values) * (1 + lr.tolerance("identity", "float64"))


def test_effective_rank_of_each_row():
    values = np.array([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    assert_close(spectra.effective_rank(values), np.array([3.0, 1.0]), size=3)


def test_of_zeros_the_effective_rank_is_nan_and_elsewhere_its_gradient_is_finite(dtype):
    values = np.array([[0.0, 0.0, 0.0], [3.0, 1.0, 0.0], [np.nan, 1.0, 1.0]], dtype)
    ranks = spectra.effective_rank(values)
    assert np.isnan(ranks).tolist() == [True, False, True]
    assert_close(ranks[1], np.exp(scipy.stats.entropy([3.0, 1.0])), size=3)
    slope = jax.grad(lr.effective_rank)(jax.numpy.asarray(values[1]))
    # d exp(H) / d sigma_j = -exp(H) (log p_j + H) / sum; a value at 0 has no slope from outside.
    entropy = scipy.stats.entropy([3.0, 1.0])
    expected = -np.exp(entropy) * (np.log([0.75, 0.25]) + entropy) / 4
    assert_close(slope[:2], expected, size=3)
    assert np.isfinite(slope).all()
