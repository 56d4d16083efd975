"""What the scenarios about the edge of stability share: their flags."""

from collections.abc import Mapping
from typing import Any

from lrdyn.shared_flags import DEPTH, DIM, STEPS, TARGET_SCALE
from lrdyn.verification.stating.flags import Domain, Flag, at_least, between

FLAGS = (
    DIM.at((5,), paper=(10,), help="width of the layers"),
    DEPTH.at((3,), paper=(2, 3, 4, 6)),
    Flag(
        "edge_ratio",
        (1.1, 1.2),
        Domain(0.5, 2.0),
        symbol="eta / eta_c",
        help="step size over that of the edge, (2 / L) s_1^{-(2 - 2/L)}",
        paper=(1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 1.9),
    ),
    Flag(
        "mode_ratio",
        (0.5, 0.85),
        Domain(0.0, 1.0, low_open=True, high_open=True),
        symbol="s_2 / s_1",
        help="second singular value of the target over the first",
        paper=(0.3, 0.5, 0.7, 0.85, 0.95),
        # Errors of modes that are close grow too fast for float32: one of its pairs is not.
        float32=(0.5, 0.85),
    ),
    # Steps are scaled with the target: numbers stay those of s_1 = 1 but for a factor.
    TARGET_SCALE.at((1.0,), paper=(1.0, 5.0), domain=between(1e-3, 1e3), symbol="s_1"),
    # Not fewer than the steps over which unbalanced layers are followed.
    STEPS.at((600,), paper=(6000,), domain=at_least(20)),
)
SMALL = {"depth": (2,), "edge_ratio": (1.2,), "mode_ratio": (0.8,), "target_scale": (0.7,)}
"""Settings of a run of seconds. The scale is none of which all powers are alike, as those of 1."""


def numbers(point: Mapping[str, Any]) -> int:
    """Numbers of a case: bases, layers and what their step is differentiated in."""
    return 6 * (point["depth"] + 1) * point["dim"] ** 2
