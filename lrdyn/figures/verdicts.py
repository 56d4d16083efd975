"""Figures beside a verdict: the common ones, and those that the theorem defines."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lrdyn.figures import plotting, verdict_plots
from lrdyn.verification.judging.judging import worst_ratio
from lrdyn.verification.judging.outcomes import precisions
from lrdyn.verification.runs.verify import Verification
from lrdyn.verification.stating.statement import Experiment

_save = partial(plotting.save, for_a_look=True)


def draw(experiment: Experiment, verification: Verification, path: Path) -> None:
    """Draw the figures of a verdict, and those that the theorem defines, into a folder."""
    for name, plot in experiment.plots.items():
        figure = plot(verification.results)
        if figure is not None:
            figure.set_label(figure.get_label() or caption(plot))
            _save(figure, path / name)
    if not experiment.has_claims:
        return
    _save(verdict_plots.verdict_figure(verification.verdict, verification.legs), path / "verdict")
    dtype = verification.verdict["environment"]["dtype"]
    first, runs = experiment.scenarios[0], precisions(experiment, experiment.scenarios[0], dtype)
    if departures := verdict_plots.departures(experiment, verification.results, runs):
        _save(
            verdict_plots.perturb_figure(experiment.title or experiment.name, departures),
            path / "perturb",
        )
    ratios = {p: worst_ratio(first.claims, verification.legs, p) for p in runs}
    if any(map(verdict_plots.swept_axes, ratios.values())):
        figure = verdict_plots.sweep_figure(experiment.name, ratios, experiment.axes)
        _save(figure, path / "sweep")


def caption(plot: Callable[..., Any]) -> str:
    """Description of a figure, from the docstring of the function that draws it.

    That is its text up to the arguments, without the verb that such lines begin with.

    Example:
        >>> def losses(groups):
        ...     '''Draw the losses.
        ...
        ...     One curve a seed.
        ...     '''
        >>> caption(losses)
        'The losses. One curve a seed.'
    """
    while isinstance(plot, partial):
        plot = plot.func
    text = re.split(
        r"\n\s*(?:Args|Returns|Raises|Example|Reference)s?:", inspect.getdoc(plot) or ""
    )
    words = " ".join(text[0].split())
    words = re.sub(r"^(?:Draw|Plot|Show)s? ", "", words)
    return words[:1].upper() + words[1:]
