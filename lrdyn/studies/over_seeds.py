"""What studies have in common whose networks are trained with several seeds."""

from typing import Any

ALPHA, SEEDS = 0.01, 3
"""Of every claim over seeds of a study, and how many of them it needs."""


def only(network: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the scenario of one network, which is left out if nobody asked for it.

    Example:
        >>> only("vit", {"network": ("mlp", "vit")}), only("vgg", {"network": ("mlp", "vit")})
        ({'network': ('vit',)}, {'network': ()})
    """
    asked = (network,) if network in settings["network"] else ()
    return settings | {"network": asked}
