"""Networks: PyTrees of arrays that are called on a batch, and functions that draw them."""

from lrdyn.networks.attention import Attention as Attention
from lrdyn.networks.attention import LayerNorm as LayerNorm
from lrdyn.networks.attention import Transformer as Transformer
from lrdyn.networks.attention import transformer as transformer
from lrdyn.networks.perceptron import MLP as MLP
from lrdyn.networks.perceptron import mlp as mlp
