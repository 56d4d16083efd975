"""Corollary 1: the compressed network and its error.

The formulas stand in ``compression``; what is claimed, in ``statement``.
"""

from lrdyn.corollary1.compression import CompressedNetwork as CompressedNetwork
from lrdyn.corollary1.compression import GradientBasis as GradientBasis
from lrdyn.corollary1.compression import bulk_contracts as bulk_contracts
from lrdyn.corollary1.compression import checked_network as checked_network
from lrdyn.corollary1.compression import compress as compress
from lrdyn.corollary1.compression import compressed_product as compressed_product
from lrdyn.corollary1.compression import compression_bound as compression_bound
from lrdyn.corollary1.compression import compression_error as compression_error
from lrdyn.corollary1.compression import count as count
from lrdyn.corollary1.compression import gradient_basis as gradient_basis
from lrdyn.corollary1.compression import gradient_gap_bound as gradient_gap_bound
from lrdyn.corollary1.compression import gradient_network as gradient_network
from lrdyn.corollary1.compression import parameter_counts as parameter_counts
