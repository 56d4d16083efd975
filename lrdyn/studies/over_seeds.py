"""What studies have in common whose networks are trained with several seeds."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lrdyn.verification.stating.claims import above_p
from lrdyn.verification.stating.forms import Stated

ALPHA, SEEDS = 0.01, 3
"""Level of every claim over seeds of a study, and the number of seeds that it needs."""


def mean_exceeds(threshold: float, draws: np.ndarray) -> Stated:
    """State that a mean over seeds exceeds a threshold: the p of Student's test, one-sided.

    The alternative: the same spread about half of the threshold.

    Example:
        >>> form = mean_exceeds(0.5, np.array([0.9, 0.91, 0.92]))
        >>> form.residual() < 0.01 < form.alternative
        True
    """
    elsewhere = draws - np.mean(draws) + threshold / 2
    return Stated(above_p(threshold, draws), alternative=above_p(threshold, elsewhere))


def restrict_to(value: str, settings: Mapping[str, Any], flag: str = "network") -> dict[str, Any]:
    """Settings of the scenario of one value of a flag, which is left out if nobody asked for it.

    Example:
        >>> settings = {"network": ("mlp", "vit")}
        >>> restrict_to("vit", settings), restrict_to("vgg", settings)
        ({'network': ('vit',)}, {'network': ()})
    """
    return {**settings, flag: (value,) if value in settings[flag] else ()}


def first_lost(steps: Iterable[Any]) -> int:
    """Step at which the first of several trainings that were lost was, -1 if none was.

    Example:
        >>> first_lost([-1, 7, 3]), first_lost([-1])
        (7, -1)
    """
    return next((int(step) for step in steps if int(step) >= 0), -1)
