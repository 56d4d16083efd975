"""Flags that several theorems share: a statement takes one at values of its own.

``RANK.at((2, 4), paper=(1, 3, 10))`` is ``--rank`` with these presets. A domain or words of its own
stand beside the values.
"""

from lrdyn.verification.stating.flags import Flag, at_least, between, one_of

SIZE = between(1e-12, 1e12)
"""Where float32 loses nothing: a gradient below its least number, 1e-38, times the largest step
does not reach the last digit of the smallest layer, 1e-15 with the largest spread."""
DECAY = between(1e-12, 1e12, zero=True)
"""Weight decays: 0, or sizes for which float32 loses nothing."""

# Shapes: a random draw of the larger ones would take minutes.
DIM = Flag("dim", (), at_least(3), int, "d", "width of the square layers", shapes=True, most=14)
DEPTH = Flag("depth", (), at_least(2), int, "L", "number of layers", shapes=True, most=5)
RANK = Flag("rank", (), at_least(1), int, "r", "rank of the target Phi", shapes=True, most=3)
ROWS = Flag("rows", (), at_least(2), int, "m", "rows of W", shapes=True, most=7)
COLS = Flag("cols", (), at_least(2), int, "n", "columns of W", shapes=True, most=7)

INIT_SCALE = Flag(
    "init_scale", (), SIZE, symbol="eps", help="init scale, geometric mean over the layers"
)
WEIGHT_DECAY = Flag("weight_decay", (), DECAY, symbol="lambda", help="weight decay of every layer")
LEARNING_RATE = Flag(
    "learning_rate", (), SIZE, symbol="eta", help="step size for the loss 1/2 ||.||_F^2"
)
TARGET_SCALE = Flag(
    "target_scale", (), SIZE, symbol="sigma_1", help="largest singular value of Phi"
)
TARGET_CONDITION = Flag(
    "target_condition",
    (),
    between(1.0, 1e12),
    symbol="sigma_1 / sigma_r",
    help="largest over smallest singular value of the default target; 1: all are equal",
)
SIDES = ("left", "right")
SIDE = Flag(
    "side",
    (),
    one_of(*SIDES),
    str,
    help="side of the gradient that is projected",
    shapes=True,
)
PERIOD = Flag(
    "period",
    (),
    at_least(1),
    int,
    symbol="T",
    help="steps between two refreshes of P",
    shapes=True,
)
STEPS = Flag(
    "steps", (), at_least(1), int, "t", "steps of descent", swept=False, most=1500, from_usual=True
)
