"""Theorem 2 for optimisers that do not see the basis: in any frame, blocks of 2r and one scalar.

What is predicted and measured is that of Theorem 2, under each optimiser that it is stated for.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from lrdyn.theorem2 import setting
from lrdyn.theorem2.optimizers import Optimizer
from lrdyn.theorem2.setting import DeepFactorization
from lrdyn.theorem2.statement import (
    FACTORIZATION,
    FactorizationMeasured,
    FactorizationTheory,
    measure,
    predict,
)
from lrdyn.verification.stating.statement import Control

COMPARED = ("off_block", "bulk", "rho", "reduced")
"""Claims of Theorem 2; spectra and losses follow from these."""


def make_run(key: Key[Array, ""], *, coordinatewise: str = "", **flags: Any) -> DeepFactorization:
    """Draw a run of Theorem 2, from its flags; ``coordinatewise`` is another scenario's."""
    return setting.make_case(key, **flags)


def _count_bulk_once(case: DeepFactorization) -> FactorizationTheory:
    """Theory's own run with norms of the reduced layers, as if they were the full ones."""
    stated = case.rule.direction
    assert stated is not None, "a norm is taken by optimisers that have a formula"

    def direction(gradients: Any, state: Any, multiplicity: Any) -> Any:
        return stated(gradients, state, jnp.ones_like(multiplicity))

    wrong = Optimizer(case.rule.name, case.rule.full, direction)
    return predict(dataclasses.replace(case, rule=wrong))


def _without_decay(case: DeepFactorization) -> FactorizationTheory:
    return predict(dataclasses.replace(case, weight_decay=0 * case.weight_decay))


def _adam(case: DeepFactorization) -> FactorizationMeasured:
    return measure(case, optax.adam(case.learning_rate))


AT = setting.AT | {"init_scale": 0.7, "weight_decay": 0.1, "learning_rate": 5e-3}

EVERY_BASIS = dataclasses.replace(
    FACTORIZATION,
    id="every_basis",
    claims=tuple(claim for claim in FACTORIZATION.claims if claim.id in COMPARED),
    controls=(
        *(
            Control(
                f"{name}_norm_without_bulk_{claim}",
                "norms without the d - 2r dimensions of the bulk",
                claim,
                predict=_count_bulk_once,
                at={"optimizer": name, "steps": steps},
            )
            # What is clipped of the bulk's norm shows later: Muon is chaotic by then.
            for name, claim, steps in (
                ("muon", "rho", 50),
                ("muon", "reduced", 50),
                ("clipped", "rho", 150),
                ("clipped", "reduced", 150),
            )
        ),
        *(
            Control(
                f"{claim}_without_decay",
                "theory without the decay of the weights",
                claim,
                predict=_without_decay,
                at={"optimizer": "clipped"},
            )
            for claim in ("rho", "reduced")
        ),
        *(
            Control(f"{claim}_by_adam", "Adam", claim, measure=_adam, at={"optimizer": "muon"})
            for claim in ("off_block", "bulk")
        ),
    ),
    case=make_run,
    narrow=lambda settings: settings | {"coordinatewise": settings["coordinatewise"][:1]},
    at=AT,
    sides="2r x 2r layers and L scalars by formulas of each optimiser against dense layers, "
    "automatic gradients and optax's own optimisers",
)
