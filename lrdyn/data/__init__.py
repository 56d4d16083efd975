"""Data sets; each is read lazily and from an installed package."""

from lrdyn.data.mnist import MNIST as MNIST
from lrdyn.data.mnist import mnist as mnist
