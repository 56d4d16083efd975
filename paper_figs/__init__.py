"""The figures of the survey, one script each; ``python -m paper_figs`` draws and checks them."""

from pathlib import Path

import experiments as experiments  # Ctrl-C during the imports below ends in one line
from paper_figs import (
    corollary1_sweep,
    fig01_weight_updates,
    fig03_svd_evolution,
    fig06_compression,
    fig10_masked_training,
    theorem2_sweep,
)

FIGURES = (
    corollary1_sweep.FIGURE,
    fig01_weight_updates.FIGURE,
    fig03_svd_evolution.FIGURE,
    fig06_compression.FIGURE,
    fig10_masked_training.FIGURE,
    theorem2_sweep.FIGURE,
)
BASELINES = Path(__file__).parent / "baselines"
