"""Figures and tables of the survey, one script each, written by ``python -m paper_figs``."""

from pathlib import Path

import experiments as experiments  # Ctrl-C during the imports below ends in one line
from paper_figs import (
    corollary1_sweep,
    edge_of_stability,
    fig01_labels,
    fig01_networks,
    fig02_dropout_spectra,
    fig03_svd_evolution,
    fig04_adapter_svd,
    fig05_lora_factors,
    fig06_compression,
    fig07_differences,
    fig07_few_shot,
    fig08_ranks,
    fig09_galore_relora,
    fig10_masked_training,
    galore_noise,
    lora_landscape,
    low_rank_training,
    optimizers,
    rank_before_training,
    table1_memory,
    theorem2_sweep,
)

EXHIBITS = (
    corollary1_sweep.FIGURE,
    edge_of_stability.FIGURE,
    optimizers.FIGURE,
    fig01_labels.FIGURE,
    fig01_networks.FIGURE,
    fig02_dropout_spectra.FIGURE,
    fig03_svd_evolution.FIGURE,
    fig04_adapter_svd.FIGURE,
    fig05_lora_factors.FIGURE,
    fig06_compression.FIGURE,
    fig07_few_shot.FIGURE,
    fig07_differences.FIGURE,
    fig08_ranks.FIGURE,
    fig09_galore_relora.FIGURE,
    fig10_masked_training.FIGURE,
    galore_noise.FIGURE,
    lora_landscape.FIGURE,
    low_rank_training.GRADIENTS,
    low_rank_training.LOSSES,
    rank_before_training.FIGURE,
    table1_memory.TABLE,
    theorem2_sweep.FIGURE,
)
BASELINES = Path(__file__).parent / "baselines"
