"""Figures beside a verdict: those that every theorem has, and those of its own."""

from functools import partial
from pathlib import Path

from lrdyn.engine.judging import worst_ratio
from lrdyn.engine.outcomes import precisions
from lrdyn.engine.statement import Experiment
from lrdyn.engine.verify import Verification
from lrdyn.figures import plotting

_save = partial(plotting.save, for_a_look=True)


def draw(experiment: Experiment, found: Verification, path: Path) -> None:
    """Draw what shows a verdict, and what the theorem draws of its own, into a folder."""
    for name, plot in experiment.plots.items():
        figure = plot(found.groups)
        if figure is not None:
            _save(figure, path / name)
    if not experiment.judged:
        return
    _save(plotting.verdict_figure(found.verdict, found.legs), path / "verdict")
    dtype = found.verdict["environment"]["dtype"]
    first, runs = experiment.scenarios[0], precisions(experiment, experiment.scenarios[0], dtype)
    if any(group.startswith("/perturb/") for group in found.groups):
        _save(plotting.perturb_figure(experiment, found.groups, runs), path / "perturb")
    ratios = {p: worst_ratio(first.claims, found.legs, p) for p in runs}
    if any(map(plotting.swept_axes, ratios.values())):
        figure = plotting.sweep_figure(experiment.name, ratios, experiment.axes)
        _save(figure, path / "sweep")
