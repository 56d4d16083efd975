"""Data sets; each is read lazily and from an installed package."""

from lrdyn.data.images import MNIST as MNIST
from lrdyn.data.images import mnist as mnist
from lrdyn.data.images import mnist_file as mnist_file
