"""Theorem 3 and its examples: masked training.

Example 4.1 stands in ``dropout_penalties``, ``dropout_minimum``, ``dropblock`` and
``several_dropout_layers``, ``dropconnect``, Example 4.2 in ``masked_autoencoder``; masks and
their expectations, in :mod:`lrdyn.core.masking`; what is claimed, in ``statement``.
"""

from lrdyn.theorem3.dropblock import enough_blocks as enough_blocks
from lrdyn.theorem3.dropblock import spectral_support_norm as spectral_support_norm
from lrdyn.theorem3.dropblock import support_factors as support_factors
from lrdyn.theorem3.dropblock import support_norm as support_norm
from lrdyn.theorem3.dropconnect import dropconnect_penalty as dropconnect_penalty
from lrdyn.theorem3.dropout_minimum import Shrinkage as Shrinkage
from lrdyn.theorem3.dropout_minimum import decreasing_step as decreasing_step
from lrdyn.theorem3.dropout_minimum import dropout_descent as dropout_descent
from lrdyn.theorem3.dropout_minimum import dropout_minimiser as dropout_minimiser
from lrdyn.theorem3.dropout_minimum import dropout_step as dropout_step
from lrdyn.theorem3.dropout_minimum import input_layer as input_layer
from lrdyn.theorem3.dropout_minimum import project_rows as project_rows
from lrdyn.theorem3.dropout_minimum import shrink_squared as shrink_squared
from lrdyn.theorem3.dropout_minimum import shrink_squared_values as shrink_squared_values
from lrdyn.theorem3.dropout_penalties import dropout_loss as dropout_loss
from lrdyn.theorem3.dropout_penalties import dropout_penalty as dropout_penalty
from lrdyn.theorem3.dropout_penalties import dropout_strength as dropout_strength
from lrdyn.theorem3.dropout_penalties import equalize as equalize
from lrdyn.theorem3.dropout_penalties import equalized_factors as equalized_factors
from lrdyn.theorem3.dropout_penalties import odds as odds
from lrdyn.theorem3.dropout_penalties import width_free_keep_prob as width_free_keep_prob
from lrdyn.theorem3.masked_autoencoder import Bottleneck as Bottleneck
from lrdyn.theorem3.masked_autoencoder import Groups as Groups
from lrdyn.theorem3.masked_autoencoder import MaskedMoments as MaskedMoments
from lrdyn.theorem3.masked_autoencoder import bottleneck_autoencoder as bottleneck_autoencoder
from lrdyn.theorem3.masked_autoencoder import masked_autoencoder_loss as masked_autoencoder_loss
from lrdyn.theorem3.masked_autoencoder import masked_moments as masked_moments
from lrdyn.theorem3.masked_autoencoder import masked_only_loss as masked_only_loss
from lrdyn.theorem3.masked_autoencoder import masking_penalty as masking_penalty
from lrdyn.theorem3.masked_autoencoder import nuclear_norm_bound as nuclear_norm_bound
from lrdyn.theorem3.masked_autoencoder import optimal_autoencoder as optimal_autoencoder
from lrdyn.theorem3.masked_autoencoder import optimal_masked_only as optimal_masked_only
from lrdyn.theorem3.masked_autoencoder import patches as patches
from lrdyn.theorem3.masked_autoencoder import pool_images as pool_images
from lrdyn.theorem3.masked_autoencoder import within_patches as within_patches
from lrdyn.theorem3.several_dropout_layers import equalized_layers as equalized_layers
from lrdyn.theorem3.several_dropout_layers import layers_penalty as layers_penalty
from lrdyn.theorem3.several_dropout_layers import layers_schatten_bound as layers_schatten_bound
from lrdyn.theorem3.several_dropout_layers import layers_strength as layers_strength
