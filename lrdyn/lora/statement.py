"""LoRA and its relatives, exactly: one step, where they start, what they train, what compresses.

The product s B A of LoRA, beside a frozen W, changes in one step of SGD by

    - eta_A s^2 B B^T G - eta_B s^2 G A^T A + eta_A eta_B s^3 G A^T B^T G,

G the gradient in W + s B A (``one_step_claims``, with DoRA and PiSSA). Deep LoRA,
W_0 + W_L ... W_1, and its compressed form of width 2r are sqrt(d - 2r) prod_l |rho_l| apart
(``compressed_deep_lora_claims``). What each trains is counted (``parameter_counts_claims``).
"""

from collections.abc import Mapping
from typing import Any

from lrdyn.lora.compressed_deep_lora_claims import COMPRESSED
from lrdyn.lora.figures import plot_aspects
from lrdyn.lora.one_step_claims import ONE_STEP
from lrdyn.lora.parameter_counts_claims import COUNTS
from lrdyn.shared_flags import (
    COLS,
    DEPTH,
    DIM,
    INIT_SCALE,
    LEARNING_RATE,
    RANK,
    ROWS,
    STEPS,
    TARGET_CONDITION,
)
from lrdyn.theorem2 import setting
from lrdyn.verification.stating.flags import Flag, between
from lrdyn.verification.stating.statement import Theorem

FLAGS = (
    ROWS.at((6,), paper=(12, 40)),
    COLS.at((9,), paper=(16,)),
    Flag("adapter_scale", (0.5, 2.0), between(1e-3, 1e3), float, "s", "scale of the adapter"),
    Flag(
        "rate_ratio",
        (1.0, 16.0),
        between(1e-3, 1e3),
        float,
        symbol="eta_B / eta_A",
        help="rate of B over that of A, as in LoRA+",
    ),
    DIM.at((12,), paper=(30, 100)),
    DEPTH.at((3,), paper=(2, 3, 5, 8)),
    RANK.at((2,), paper=(1, 3, 10)),
    INIT_SCALE.at((0.3, 1.0), paper=(0.01, 0.1, 0.3, 1.0)),
    LEARNING_RATE.at((0.1,)),
    TARGET_CONDITION.at((2.0,)),
    STEPS.at((100,), paper=(500,)),
)


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    setting.check(point)
    if point["rank"] > min(point["rows"], point["cols"]):
        raise ValueError(
            f"--rank: got {point['rank']} with {point['rows']} x {point['cols']}, "
            "wanted at most the smaller side"
        )


def numbers(point: Mapping[str, Any]) -> int:
    """Numbers of a case: W with its factors and data, and the layers of a run."""
    rows, cols = point["rows"], point["cols"]
    return rows * cols + (rows + cols) * (point["rank"] + 7) + setting.numbers(point)


LORA = Theorem(
    "lora",
    "one step of LoRA, the starts of PiSSA and DoRA, and when Deep LoRA can be compressed",
    FLAGS,
    (ONE_STEP, COMPRESSED, COUNTS),
    plots={"aspects": plot_aspects},
    check=check,
    axes=("init_scale", "rank"),
    numbers=numbers,
    title="LoRA and its relatives",
    page="docs/theorems/lora.md",
    small={"adapter_scale": (2.0,), "rate_ratio": (4.0,), "init_scale": (1.0,)},
)
