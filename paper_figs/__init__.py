"""The figures of the survey, one script each; ``python -m paper_figs`` draws and checks them."""

from pathlib import Path

from paper_figs import fig01_weight_updates, fig03_svd_evolution, fig06_compression

FIGURES = (
    fig01_weight_updates.FIGURE,
    fig03_svd_evolution.FIGURE,
    fig06_compression.FIGURE,
)
BASELINES = Path(__file__).parent / "baselines"
