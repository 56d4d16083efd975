"""Theorem 4: GaLore and ReLoRA with a frozen factor take the same path.

GaLore trains W through the coordinates of its gradient, ReLoRA an adapter P A beside it:

    W <- W + P opt(P^T G),      G = df/dW,
    A <- A + opt(df/dA),        df/dA = P^T G at W + P A,

with P from an SVD of G every T steps, when W takes over P A and A becomes 0. If the state of the
optimiser is treated alike at such a refresh, W (of GaLore) and W + P A (of ReLoRA) are equal at
every step, for any optimiser that looks at gradients only. On the right it is A P^T, and G P.

Each scenario stands in a file of its own: the path (``trajectory_claims``), the state at a refresh
(``optimizer_state_claims``), what is held (``memory_claims``), any linear map in the place of P^T
(``duality_claims``) and why gradients become low-rank (``gradient_rank_claims``).
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from lrdyn.shared_flags import COLS, LEARNING_RATE, PERIOD, RANK, ROWS, SIDE, SIDES, STEPS
from lrdyn.theorem4.duality_claims import DUALITY
from lrdyn.theorem4.figures import plot_paths
from lrdyn.theorem4.gradient_rank_claims import GRADIENT_RANK
from lrdyn.theorem4.memory_claims import MEMORY
from lrdyn.theorem4.optimizer_state_claims import NAMES, OPTIMIZER_STATE
from lrdyn.theorem4.problems import OPTIMIZER, PROBLEMS
from lrdyn.theorem4.trajectory_claims import OTHER_PROBLEMS, TRAJECTORY
from lrdyn.verification.stating.flags import Flag, between, one_of
from lrdyn.verification.stating.statement import Theorem

FLAGS = (
    ROWS.at((10,), help="rows of W: outputs, classes, hidden units"),
    COLS.at((14,), help="columns of W: features of an example"),
    RANK.at((2,), paper=(1, 3), help="columns of P"),
    PERIOD.at((10,), paper=(1, 7, 25)),
    OPTIMIZER,
    Flag(
        "state",
        ("keep",),
        one_of(*NAMES),
        str,
        help="what becomes of the optimiser's state at a refresh",
        paper=NAMES,
        shapes=True,
    ),
    SIDE.at(SIDES),
    Flag(
        "problem",
        ("regression", "mlp"),
        one_of(*PROBLEMS),
        str,
        symbol="f",
        help="what is trained; every matrix of a network is projected",
        paper=PROBLEMS,
        shapes=True,
    ),
    LEARNING_RATE.at(
        (0.05,),
        paper=(0.02, 0.05),
        help="step size; for the regression that of the loss 1/2 ||.||_F^2",
    ),
    Flag(
        "gradient_gap",
        (1.0,),
        between(1e-12, 1.0, zero=True),
        float,
        symbol="gap",
        help="regression: sigma_r - sigma_{r+1} of the gradient at the first refresh, over what it "
        "is as drawn; 0: a tie",
    ),
    # Three periods: a run of more may amplify rounding in float32 beyond two digits.
    STEPS.at((60,), paper=(100,), float32=(30,)),
)

SMALL = {"rows": (6,), "cols": (8,), "period": (10,), "steps": 40}
"""Settings of a run of seconds."""


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    if point["rank"] > min(point["rows"], point["cols"]):
        raise ValueError(
            f"--rank: got {point['rank']} with {point['rows']} x {point['cols']}, "
            "wanted at most the smaller side"
        )


def refuse_equal_cases(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Refuse several gaps of the gradient where they change nothing: a case would count twice.

    Without a singular value beyond sigma_r there is no gap, and in a network none is moved.
    """
    gaps = settings["gradient_gap"]
    if len(gaps) == 1:
        return settings
    got = f"--gradient-gap: got {' '.join(f'{gap:g}' for gap in gaps)}"
    for rank, rows, cols in product(*(settings[name] for name in ("rank", "rows", "cols"))):
        if rank == min(rows, cols):
            raise ValueError(
                f"{got} with --rank {rank} of {rows} x {cols}, wanted one value: no singular value "
                f"stands behind sigma_{rank}, and all these cases are the same"
            )
    first = settings.get("problem", ("regression",))[0]
    if first != "regression":
        raise ValueError(
            f"{got} with --problem {first}, wanted one value, or regression as the first problem: "
            "in others no gap is moved, and all these cases are the same"
        )
    return settings


THEOREM4 = Theorem(
    "theorem4",
    "GaLore and ReLoRA with a frozen factor take the same path, for any optimiser of gradients",
    FLAGS,
    (TRAJECTORY, OPTIMIZER_STATE, OTHER_PROBLEMS, MEMORY, DUALITY, GRADIENT_RANK),
    plots={"paths": plot_paths},
    numbers=lambda point: 4 * point["rows"] * point["cols"],  # W, G and two moments
    prepare=refuse_equal_cases,
    check=check,
    axes=("rank",),
    title="Theorem 4",
    page="docs/theorems/theorem4.md",
    source="the name of the theorem in arXiv 2503.19859; GaLore (2403.03507), ReLoRA "
    "(2307.05695), duality (2502.13811)",
    small=SMALL,
)
