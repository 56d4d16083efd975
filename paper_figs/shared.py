"""What experiments behind several figures share: flags without values, and recorded steps."""

import numpy as np

from lrdyn.theorem import NON_NEGATIVE, POSITIVE, Flag, at_least

DIM = Flag("dim", (), at_least(3), int, "d", "width of the square layers", swept=False)
RANK = Flag("rank", (), at_least(1), int, "r", "rank of the target Phi", swept=False)
DEPTH = Flag("depth", (), at_least(2), int, "L", "number of layers", swept=False)
INIT_SCALE = Flag("init_scale", (), POSITIVE, symbol="eps", help="init scale", swept=False)
LEARNING_RATE = Flag("learning_rate", (), POSITIVE, symbol="eta", help="step size", swept=False)
STEPS = Flag("steps", (), at_least(1), int, "t", "steps of gradient descent", swept=False)
WEIGHT_DECAY = Flag("weight_decay", (), NON_NEGATIVE, symbol="lambda", help="decay", swept=False)


def log_steps(steps: int, count: int) -> np.ndarray:
    """At most so many step numbers from 1 on, evenly spaced on a log axis."""
    return np.unique(np.rint(np.geomspace(1, steps, count)).astype(int))
