"""Data sets, read lazily from their standard files; nothing is downloaded unless asked for.

They are looked for in the folder of ``--data-dir``, in ``$LRDYN_DATA`` and in the user's cache.
"""

from lrdyn.data.digits import MNIST as MNIST
from lrdyn.data.digits import mnist as mnist
from lrdyn.data.digits import mnist_file as mnist_file
from lrdyn.data.guarded import Refused as Refused
from lrdyn.data.lookup import MissingData as MissingData
from lrdyn.data.lookup import find as find
from lrdyn.data.lookup import places as places
from lrdyn.data.pairs import Pairs as Pairs
from lrdyn.data.pairs import stsb as stsb
from lrdyn.data.pairs import text as text
from lrdyn.data.sets import AUTO as AUTO
from lrdyn.data.sets import IMAGES as IMAGES
from lrdyn.data.sets import Images as Images
from lrdyn.data.sets import cifar10 as cifar10
from lrdyn.data.sets import fashion_mnist as fashion_mnist
from lrdyn.data.sets import image_files as image_files
from lrdyn.data.sets import images as images
from lrdyn.data.sets import mnist_images as mnist_images
from lrdyn.data.sets import resolve as resolve
