"""Networks: PyTrees of arrays that are called on a batch, and functions that draw them."""

from lrdyn.networks.mlp import MLP as MLP
from lrdyn.networks.mlp import mlp as mlp
from lrdyn.networks.transformer import Attention as Attention
from lrdyn.networks.transformer import LayerNorm as LayerNorm
from lrdyn.networks.transformer import Transformer as Transformer
from lrdyn.networks.transformer import transformer as transformer
