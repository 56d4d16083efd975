"""What studies have in common whose networks are trained with several seeds."""

from collections.abc import Iterable, Mapping
from typing import Any

ALPHA, SEEDS = 0.01, 3
"""Of every claim over seeds of a study, and how many of them it needs."""


def only(value: str, settings: Mapping[str, Any], flag: str = "network") -> dict[str, Any]:
    """Settings of the scenario of one value of a flag, which is left out if nobody asked for it.

    Example:
        >>> only("vit", {"network": ("mlp", "vit")}), only("vgg", {"network": ("mlp", "vit")})
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
