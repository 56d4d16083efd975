"""Networks: PyTrees of arrays, and functions that draw them.

``mlp``, ``vgg``, ``resnet`` and ``vit`` are called alike, one example at a time: see
:class:`Network`, and :func:`apply` for batches. An image is channels x height x width, of
floating-point numbers; :func:`lrdyn.data.images` has height x width x channels, 0 to 255.
``transformer`` is called on a batch, one token a column; its attention is that of ``vit``.
:class:`Bert` is called on a batch of :class:`Tokens`, :class:`Llama` on one of numbers of tokens.
:mod:`lrdyn.data.encoder` and :mod:`lrdyn.data.vision` read pretrained ones.
"""

from lrdyn.networks.attention import Attention as Attention
from lrdyn.networks.attention import LayerNorm as LayerNorm
from lrdyn.networks.attention import causal as causal
from lrdyn.networks.attention import rotary as rotary
from lrdyn.networks.bert import Bert as Bert
from lrdyn.networks.bert import Tokens as Tokens
from lrdyn.networks.bert import mean_pooled as mean_pooled
from lrdyn.networks.bert import sentence_vectors as sentence_vectors
from lrdyn.networks.convolution import BatchNorm as BatchNorm
from lrdyn.networks.convolution import initial_state as initial_state
from lrdyn.networks.llama_network import Llama as Llama
from lrdyn.networks.llama_network import RMSNorm as RMSNorm
from lrdyn.networks.llama_network import SwiGLU as SwiGLU
from lrdyn.networks.llama_network import llama as llama
from lrdyn.networks.network import Network as Network
from lrdyn.networks.network import apply as apply
from lrdyn.networks.network import cross_entropy as cross_entropy
from lrdyn.networks.network import enough_classes as enough_classes
from lrdyn.networks.perceptron import MLP as MLP
from lrdyn.networks.perceptron import mlp as mlp
from lrdyn.networks.residual_network import ResNet as ResNet
from lrdyn.networks.residual_network import resnet as resnet
from lrdyn.networks.small_transformer import Transformer as Transformer
from lrdyn.networks.small_transformer import transformer as transformer
from lrdyn.networks.vgg_network import VGG as VGG
from lrdyn.networks.vgg_network import VGG11 as VGG11
from lrdyn.networks.vgg_network import VGG16 as VGG16
from lrdyn.networks.vgg_network import vgg as vgg
from lrdyn.networks.vision_transformer import ViT as ViT
from lrdyn.networks.vision_transformer import vit as vit
from lrdyn.networks.weights import matrices as matrices
from lrdyn.networks.weights import penultimate as penultimate
