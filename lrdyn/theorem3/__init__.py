"""Dropout of linear networks: its penalties, what they induce, and the minimisers (Example 4.1).

``U`` is m x h and ``V`` is h x n, for a network ``U = W_2`` and ``V = W_1 X``: a hidden unit is
the term ``Z_i = u_i v_i^T`` with ``u_i`` a column of U and ``v_i^T`` a row of V. Theta, the
``keep_prob``, is the probability with which a unit is kept, and masks are scaled by 1/theta. The
``inputs`` X and the ``target`` Y have one example a column, and h is the ``width``.

Reference: arXiv 2503.19859; Cavazza et al., Dropout as a low-rank regularizer for matrix
factorization, 2018.
"""

from lrdyn.dropout.deep import dropconnect_penalty as dropconnect_penalty
from lrdyn.dropout.deep import equalized_layers as equalized_layers
from lrdyn.dropout.deep import layers_penalty as layers_penalty
from lrdyn.dropout.deep import layers_schatten_bound as layers_schatten_bound
from lrdyn.dropout.deep import layers_strength as layers_strength
from lrdyn.dropout.dropblock import enough_blocks as enough_blocks
from lrdyn.dropout.dropblock import spectral_support_norm as spectral_support_norm
from lrdyn.dropout.dropblock import support_factors as support_factors
from lrdyn.dropout.dropblock import support_norm as support_norm
from lrdyn.dropout.minimiser import Shrinkage as Shrinkage
from lrdyn.dropout.minimiser import decreasing_step as decreasing_step
from lrdyn.dropout.minimiser import dropout_descent as dropout_descent
from lrdyn.dropout.minimiser import dropout_minimiser as dropout_minimiser
from lrdyn.dropout.minimiser import dropout_step as dropout_step
from lrdyn.dropout.minimiser import input_layer as input_layer
from lrdyn.dropout.minimiser import project_rows as project_rows
from lrdyn.dropout.minimiser import shrink_squared as shrink_squared
from lrdyn.dropout.minimiser import shrink_squared_values as shrink_squared_values
from lrdyn.dropout.penalty import dropout_loss as dropout_loss
from lrdyn.dropout.penalty import dropout_penalty as dropout_penalty
from lrdyn.dropout.penalty import dropout_strength as dropout_strength
from lrdyn.dropout.penalty import equalize as equalize
from lrdyn.dropout.penalty import equalized_factors as equalized_factors
from lrdyn.dropout.penalty import odds as odds
from lrdyn.dropout.penalty import width_free_keep_prob as width_free_keep_prob
